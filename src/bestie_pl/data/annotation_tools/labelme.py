"""Points of LabelMe's files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bestie_pl.data.annotation_tools.geometry import box_center, from_corner, mask_area, numbers, polygon_area
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Shape, add_shapes, field_of, label_of, size_of
from bestie_pl.data.files import is_hidden, read_json
from bestie_pl.data.formats.codes import FARTHEST
from bestie_pl.data.formats.images import FORMATS, check_pixels
from bestie_pl.data.formats.points import relative_file
from bestie_pl.errors import UserError

CORNERS = {"point": (1,), "circle": (2,), "rectangle": (2, 4), "oriented_rectangle": (4,), "mask": (2,)}
"""How many points a kind of shape has. Of rectangles LabelMe writes two corners, programs that follow it write all."""

NO_CLASSES = ("__ignore__", "_background_")
"""Labels to which LabelMe's own converters give another meaning: regions to leave out, and background."""
WITHOUT_INSIDE = ("line", "linestrip", "points")


def read_labelme(path: Path) -> Marked:
    """A LabelMe file, or a folder of them with subfolders: points, rectangles, circles, polygons and masks.

    Shapes of the same label and ``group_id`` are parts of one object. Images are named as ``imagePath`` says, relative
    to the file, so the folder of the files stands for the folder of the images; what leads out of it is left off. Of a
    folder, hidden files are left out; of a file, the labels ``__ignore__`` and ``_background_``, which are no classes.
    """
    files = sorted(f for f in path.rglob("*.json") if not is_hidden(f, path)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no LabelMe file *.json in it; give the folder that LabelMe saved to")
    return Marked([_labelme_image(file, path if path.is_dir() else path.parent) for file in files])


def _labelme_image(path: Path, folder: Path) -> MarkedImage:
    content = read_json(path, "a LabelMe file")
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise UserError(f"{path}: expected a LabelMe file with `shapes` and `imagePath`")
    size = size_of(content, "imageHeight", "imageWidth", str(path))
    beside = path.parent.relative_to(folder).as_posix()
    image = MarkedImage(relative_file(f"{beside}/{content['imagePath']}"), size, str(path))
    marked = [(k, s) for k, s in enumerate(shapes, 1) if not isinstance(s, dict) or s.get("label") not in NO_CLASSES]
    add_shapes(image, (_labelme_shape(s, size, f"{path}: shape {k}") for k, s in marked))
    return image


def _labelme_shape(shape: dict[str, Any], size: tuple[int, int] | None, where: str) -> Shape:
    label = label_of(field_of(shape, "label", where), where)
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    where = f"{where} ({label})"
    if not isinstance(points, list) or not points:
        raise UserError(f"{where}: points: {points!r:.100}; expected [[x, y], ...]")
    corners = np.array([numbers(point, 2, f"{where}: points") for point in points], dtype=np.float64)
    spot, area = None, None
    needed = CORNERS.get(kind, (len(corners),))
    if len(corners) not in needed:
        raise UserError(f"{where}: points: {len(corners)}; expected {needed[0]} for a {kind}")
    if kind in ("point", "circle"):  # a circle's first point is its centre
        spot = from_corner(corners[0, 0], corners[0, 1], size, where)
    elif kind == "rectangle":
        (left, top), (width, height) = corners.min(0), np.ptp(corners, 0)
        spot = box_center(left, top, width, height, size, where)
    elif kind == "oriented_rectangle":
        x, y = corners.mean(0)
        spot = from_corner(x, y, size, where)
    elif kind == "polygon":
        area = polygon_area([corners.flatten().tolist()], size, where)
    elif kind == "mask":
        x, y = corners[0]
        if max(abs(x), abs(y)) > FARTHEST:
            raise UserError(f"{where}: points: {points!r:.100}; expected the mask's corners, in the image")
        area = mask_area(_mask(field_of(shape, "mask", where), size, where), size, where, left=round(x), top=round(y))
    else:
        why = "has no inside" if kind in WITHOUT_INSIDE else "is no shape of LabelMe's"
        raise UserError(f"{where}: shape_type: {kind!r:.50} {why}; use point, rectangle, circle, polygon or mask")
    return Shape(label, shape.get("group_id"), where, spot, area)


def _mask(code: object, size: tuple[int, int] | None, where: str) -> NDArray[np.bool_]:
    """The picture (h, w) that a text holds, decoded only if it is no larger than the image."""
    try:
        if not isinstance(code, str):
            raise TypeError(f"found {code!r:.50}")
        with Image.open(io.BytesIO(base64.b64decode(code, validate=True)), formats=FORMATS) as picture:
            width, height = picture.size
            check_pixels(height, width, f"{where}: mask: height, width")
            if size is not None and (height > size[0] + 1 or width > size[1] + 1):
                raise UserError(
                    f"{where}: mask: {width} x {height} px in an image of {size[1]} x {size[0]}; draw it anew"
                )
            mask: NDArray[np.bool_] = np.asarray(picture) > 0
            if mask.ndim != 2:
                raise UserError(f"{where}: mask: is a colour picture; expected black and white")
            return mask
    except UserError:
        raise
    except Exception as error:  # as in formats.images.opened
        raise UserError(f"{where}: mask: is no picture in base64 ({error!s:.200}); save the file again") from error
