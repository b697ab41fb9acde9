"""Points of Label Studio's JSON export."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from bestie_pl.data.annotation_tools.geometry import (
    Spot,
    box_center,
    from_corner,
    mask_pixels,
    nearest_to_centroid,
    numbers,
    polygon_pixels,
)
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Object, field_of, parse_json, size_of
from bestie_pl.data.formats.images import IMAGE_SUFFIXES
from bestie_pl.data.formats.points import relative_file

REGIONS = {
    "keypointlabels": ("x", "y"),
    "rectanglelabels": ("x", "y", "width", "height"),
    "ellipselabels": ("x", "y"),
    "polygonlabels": ("points",),
    "brushlabels": ("rle",),
}
"""Kinds of Label Studio's results that mark an object, and what their value must have."""

REMARKS = ("choices", "datetime", "number", "rating", "taxonomy", "textarea")
"""Kinds of results that say more about a region, and repeat where it is."""

PLACES = {"x", "points", "rle", "vertices"}
"""What only the value of a region has."""


def read_label_studio(path: Path) -> Marked:
    """Label Studio's export of the kind JSON: keypoints, rectangles, ellipses, polygons and brushes, with labels.

    Tasks without an annotation were not looked at and are left out; predictions are not read. Images keep the name that
    they had before they were uploaded.
    """
    content = parse_json(path, "Label Studio's export of the kind JSON")
    if not isinstance(content, list) or not all(isinstance(task, dict) and "data" in task for task in content):
        raise ValueError(f"{path}: expected Label Studio's export of the kind JSON, not JSON-MIN: a list of tasks")
    return Marked([image for task in content if (image := _label_studio_image(task, path)) is not None])


def _label_studio_image(task: dict[str, Any], path: Path) -> MarkedImage | None:
    file = _label_studio_file(task)
    where = f"{path}: task {task.get('id')}"
    if file is None:
        raise ValueError(f"{where}: data: no image in it; expected the path or the address of one")
    done = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
    done = [a for a in done if a.get("ground_truth")] or done
    if len(done) > 1:
        raise ValueError(f"{where} ({file}): {len(done)} annotations; keep one, or mark one as ground truth")
    if not done:
        return None
    image = MarkedImage(file, None, f"{where} ({file})")
    for number, result in enumerate(done[0].get("result", ()), 1):
        at, kind, value = f"{image.where}, result {number}", result.get("type"), result.get("value")
        if kind in REGIONS:
            size = size_of(result, "original_height", "original_width", at)
            if size is None:
                raise ValueError(f"{at}: no original_height and original_width; export again")
            image.size = size
            if result.get("image_rotation"):
                raise ValueError(
                    f"{at}: image_rotation: {result['image_rotation']}; turn the image back and export again"
                )
            for name in (kind, *REGIONS[kind]):
                field_of(value, name, f"{at}: value")
            if len(value[kind]) != 1:
                raise ValueError(f"{at}: {kind}: {value[kind]!r}; expected one label a region")
            image.objects.append(Object(str(value[kind][0]), _label_studio_spot(kind, value, size, at), at))
        elif kind not in REMARKS and isinstance(value, dict) and not PLACES.isdisjoint(value):
            raise ValueError(f"{at}: type: {kind!r}; expected a region with its label, one of {', '.join(REGIONS)}")
    return image


def _label_studio_spot(kind: str, value: dict[str, Any], size: tuple[int, int], where: str) -> Spot:
    """Positions are per cent of the image's sides."""
    height, width = size
    if kind == "polygonlabels":
        corners = [side * part / 100 for x, y in value["points"] for side, part in ((width, x), (height, y))]
        return nearest_to_centroid(polygon_pixels([corners], size, where))
    if kind == "brushlabels":
        return nearest_to_centroid(mask_pixels(decode_brush(value["rle"], size, where), size, where))
    x, y, *sides = numbers([value[name] for name in REGIONS[kind]], len(REGIONS[kind]), where)
    x, y = width * x / 100, height * y / 100
    if kind == "rectanglelabels":
        w, h = width * sides[0] / 100, height * sides[1] / 100
        turn = math.radians(value.get("rotation") or 0)
        if turn == 0:
            return box_center(x, y, w, h, size, where)
        # turned clockwise about the corner at (x, y)
        x, y = x + (w * math.cos(turn) - h * math.sin(turn)) / 2, y + (w * math.sin(turn) + h * math.cos(turn)) / 2
    return from_corner(x, y, size, where)


def decode_brush(codes: Sequence[int], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask (H, W) of a brush: Label Studio packs its RGBA picture bit by bit; painted is what is not transparent.

    After the number of values (32 bits), the bits of a value less one (5) and four widths less one (4 each) come
    blocks: one bit tells a run of one value from single values, two bits which of the widths the block's length less
    one has.
    """
    bits = np.unpackbits(np.asarray(codes, dtype=np.uint8))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise ValueError(f"{where}: rle: ends too early")
        at += count
        return int("".join(map(str, bits[at - count : at])), 2)

    total = read(32)
    if total != 4 * math.prod(size):
        raise ValueError(f"{where}: rle: {total} values; expected four for each of the {size[1]} x {size[0]} pixels")
    word, widths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=np.uint8)
    done = 0
    while done < total:
        same, length = read(1), read(widths[read(2)]) + 1
        for k in range(1 if same else length):
            values[done + k : done + (length if same else k + 1)] = read(word)
        done += length
    return values.reshape(*size, 4)[..., 3] > 0


def _label_studio_file(task: dict[str, Any]) -> str | None:
    for value in (*task["data"].values(), task.get("file_upload")):
        if not isinstance(value, str):
            continue
        address = urlsplit(value)
        local = parse_qs(address.query).get("d")  # files that the server reads from its own folder
        file = local[0] if local else unquote(address.path)
        if file.lower().endswith(IMAGE_SUFFIXES):
            uploaded = not local and (file.startswith("/data/upload/") or value == task.get("file_upload"))
            if uploaded:
                return re.sub(r"^[0-9a-f]{8}-", "", file.rsplit("/", 1)[-1])
            return relative_file(file.lstrip("/") if address.scheme or local else file)
    return None
