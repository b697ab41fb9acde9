"""Points of CVAT's XML export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from bestie_pl.data.annotation_tools.geometry import Spot, box_center, from_corner, inside, polygon_area, runs_area
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Shape, add_shapes, label_of
from bestie_pl.data.files import read_xml
from bestie_pl.data.formats.codes import FARTHEST
from bestie_pl.data.formats.images import check_pixels
from bestie_pl.data.formats.points import relative_file
from bestie_pl.errors import UserError

WITHOUT_INSIDE = ("polyline", "skeleton", "cuboid")


def read_cvat(path: Path) -> Marked:
    """CVAT's XML export "CVAT for images 1.1": points, boxes, ellipses, polygons and masks.

    Each of the points of a ``points`` element is an object. Shapes of the same label and ``group_id`` are parts of one
    object. A ``tag`` element gives a tag. Every image of the file counts as looked at.
    """
    root = read_xml(path, "CVAT's export of the kind `CVAT for images`, annotations.xml")
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise UserError(f"{path}: holds no images; export from CVAT as `CVAT for images 1.1`, not as video")
    return Marked([_cvat_image(element, path) for element in root.iterfind("image")])


def _cvat_image(element: ElementTree.Element, path: Path) -> MarkedImage:
    name = _attribute(element, "name", f"{path}: image")
    where = f"{path}: image {name!r}"
    size = check_pixels(
        round(_number(element, "height", where)), round(_number(element, "width", where)), f"{where}: height, width"
    )
    image = MarkedImage(relative_file(name), size, where)
    shapes: list[Shape] = []
    for number, child in enumerate(element, 1):
        at = f"{where}, {child.tag} {number}"
        if child.tag == "tag":
            image.tags.add(label_of(_attribute(child, "label", at), at))
        else:
            shapes += _cvat_shapes(child, size, at)
    add_shapes(image, shapes)
    return image


def _cvat_shapes(element: ElementTree.Element, size: tuple[int, int], where: str) -> Iterator[Shape]:
    label, kind = label_of(_attribute(element, "label", where), where), element.tag
    group = None if element.get("group_id") in (None, "", "0") else element.get("group_id")

    def number(name: str) -> float:
        return _number(element, name, where)

    if kind == "points":
        for x, y in _cvat_corners(element, where):
            yield Shape(label, group, where, from_corner(x, y, size, where))
    elif kind == "box":
        left, top, right, bottom = number("xtl"), number("ytl"), number("xbr"), number("ybr")
        if element.get("rotation") is not None:  # about the box's centre, which stays where it is
            spot = from_corner((left + right) / 2, (top + bottom) / 2, size, where)
        else:
            spot = box_center(left, top, right - left, bottom - top, size, where)
        yield Shape(label, group, where, spot)
    elif kind == "ellipse":
        yield Shape(label, group, where, from_corner(number("cx"), number("cy"), size, where))
    elif kind == "polygon":
        corners = [value for corner in _cvat_corners(element, where) for value in corner]
        yield Shape(label, group, where, area=polygon_area([corners], size, where))
    elif kind == "mask":
        # rows of the rectangle one after the other, beginning with a run of zeros
        try:
            runs = [int(run) for run in _attribute(element, "rle", where).split(",")]
        except ValueError:
            raise UserError(f"{where}: rle: expected whole numbers with commas") from None
        height, width = check_pixels(round(number("height")), round(number("width")), f"{where}: height, width")
        if min(runs) < 0 or sum(runs) > height * width:
            raise UserError(
                f"{where}: rle: {sum(runs)} pixels; expected at most {width} x {height}, each run 0 or more"
            )
        left, top = round(number("left")), round(number("top"))
        area = runs_area(runs, width)[:, [1, 0, 3, 2]] + np.array([top, left, top, left])
        yield Shape(label, group, where, area=inside(area, size, where))
    else:
        why = "has no inside" if kind in WITHOUT_INSIDE else "is no shape of CVAT's images"
        raise UserError(f"{where}: a {kind} {why}; use points, box, ellipse, polygon or mask")


def _cvat_corners(element: ElementTree.Element, where: str) -> list[Spot]:
    text = _attribute(element, "points", where)
    try:
        return [(float(x), float(y)) for x, y in (corner.split(",") for corner in text.split(";"))]
    except ValueError:
        raise UserError(f"{where}: points: {text!r:.100}; expected x,y;x,y") from None


def _attribute(element: ElementTree.Element, name: str, where: str) -> str:
    value = element.get(name)
    if value is None:
        raise UserError(f"{where}: no {name}; expected an export of CVAT as it is")
    return value


def _number(element: ElementTree.Element, name: str, where: str) -> float:
    value = _attribute(element, name, where)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= FARTHEST:
        raise UserError(f"{where}: {name}: {value!r:.100}; expected a number of pixels")
    return number
