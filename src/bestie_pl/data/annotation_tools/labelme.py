"""Points of LabelMe's files."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bestie_pl.data.annotation_tools.geometry import box_center, from_corner, mask_pixels, polygon_pixels
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Shape, add_shapes, field_of, parse_json, size_of
from bestie_pl.data.formats.points import relative_file

CORNERS = {"point": (1,), "circle": (2,), "rectangle": (2, 4), "oriented_rectangle": (4,), "mask": (2,)}
"""How many points a kind of shape has. Of rectangles LabelMe writes two corners, programs that follow it write all."""


def read_labelme(path: Path) -> Marked:
    """A LabelMe file, or a folder of them with subfolders: points, rectangles, circles, polygons and masks.

    Shapes of the same label and ``group_id`` are parts of one object. Images are named as ``imagePath`` says, relative
    to the file, so the folder of the files stands for the folder of the images; what leads out of it is left off.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no LabelMe file *.json in it")
    return Marked([_labelme_image(file, path if path.is_dir() else path.parent) for file in files])


def _labelme_image(path: Path, folder: Path) -> MarkedImage:
    content = parse_json(path, "a LabelMe file")
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list) or "imagePath" not in content:
        raise ValueError(f"{path}: expected a LabelMe file with `shapes` and `imagePath`")
    size = size_of(content, "imageHeight", "imageWidth", str(path))
    beside = path.parent.relative_to(folder).as_posix()
    image = MarkedImage(relative_file(f"{beside}/{content['imagePath']}"), size, str(path))
    add_shapes(image, (_labelme_shape(s, size, f"{path}: shape {k}") for k, s in enumerate(content["shapes"], 1)))
    return image


def _labelme_shape(shape: dict[str, Any], size: tuple[int, int] | None, where: str) -> Shape:
    label, kind, points = str(field_of(shape, "label", where)), shape.get("shape_type", "polygon"), shape.get("points")
    where = f"{where} ({label})"
    try:
        corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: points: {points!r:.100}; expected [[x, y], ...]") from None
    if not np.isfinite(corners).all():
        raise ValueError(f"{where}: points: {points!r:.100}; expected numbers")
    spot, pixels = None, None
    needed = CORNERS.get(kind, (len(corners),))
    if len(corners) not in needed:
        raise ValueError(f"{where}: points: {len(corners)}; expected {needed[0]} for a {kind}")
    if kind in ("point", "circle"):  # a circle's first point is its centre
        spot = from_corner(corners[0, 0], corners[0, 1], size, where)
    elif kind == "rectangle":
        (left, top), (width, height) = corners.min(0), np.ptp(corners, 0)
        spot = box_center(left, top, width, height, size, where)
    elif kind == "oriented_rectangle":
        x, y = corners.mean(0)
        spot = from_corner(x, y, size, where)
    elif kind == "polygon":
        pixels = polygon_pixels([corners.flatten().tolist()], size, where)
    elif kind == "mask":
        try:
            with Image.open(io.BytesIO(base64.b64decode(field_of(shape, "mask", where), validate=True))) as picture:
                mask = np.asarray(picture) > 0
        except (OSError, binascii.Error, TypeError) as error:
            raise ValueError(f"{where}: mask: is no picture in base64 ({error})") from error
        pixels = mask_pixels(mask, size, where, left=round(corners[0, 0]), top=round(corners[0, 1]))
    else:
        raise ValueError(f"{where}: shape_type: {kind!r} has no inside; use point, rectangle, circle, polygon or mask")
    return Shape(label, shape.get("group_id"), where, spot, pixels)
