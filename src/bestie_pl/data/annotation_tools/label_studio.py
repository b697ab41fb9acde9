"""Points of Label Studio's JSON export."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from bestie_pl.data.annotation_tools.geometry import (
    Spot,
    box_center,
    from_corner,
    mask_area,
    nearest_to_centroid,
    numbers,
    polygon_area,
)
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Object, field_of, label_of, size_of
from bestie_pl.data.files import is_set, read_json, read_xml
from bestie_pl.data.formats.images import IMAGE_SUFFIXES
from bestie_pl.data.formats.points import relative_file
from bestie_pl.errors import UserError

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


def read_label_studio(path: Path, keys: Mapping[str, str] | None = None) -> Marked:
    """Label Studio's export of the kind JSON: keypoints, rectangles, ellipses, polygons and brushes, with labels.

    Tasks without an annotation were not looked at and are left out; predictions are not read. Images keep the name that
    they had before they were uploaded.

    **Which image** a region is on, where a task's data holds several: the labelling configuration says which key the
    region's ``to_name`` stands for. Without it, a key of the same name counts.

    Args:
        path: Of the export.
        keys: Key of the data of each ``to_name``; see ``read_label_config``.
    """
    content = read_json(path, "Label Studio's export of the kind JSON")
    tasks = content if isinstance(content, list) else [None]
    if not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
        raise UserError(f"{path}: expected Label Studio's export of the kind JSON, not JSON-MIN: a list of tasks")
    used = set(keys.values()) if keys is not None else _named_keys(content)
    return Marked([image for task in content for image in _label_studio_images(task, keys, used, path)])


def read_label_config(path: Path) -> dict[str, str]:
    """Name of each image of a labelling configuration -> key of tasks' data, from ``<Image name= value="$key">``."""
    root = read_xml(path, "Label Studio's labelling configuration (Settings, Labeling Interface, Code)")
    images = [element for element in root.iter("Image") if element.get("name")]
    keys = {str(e.get("name")): str(e.get("value") or e.get("valueList")).removeprefix("$") for e in images}
    if not keys:
        raise UserError(f"{path}: no <Image name=... value=...>; expected Label Studio's labelling configuration")
    return keys


def _named_keys(tasks: Sequence[dict[str, Any]]) -> set[str]:
    """Keys of the tasks' data that regions name: other images there are previews."""
    results = [r for task in tasks for a in task.get("annotations", ()) for r in a.get("result", ())]
    return {str(r["to_name"]) for r in results if "to_name" in r} & {key for task in tasks for key in task["data"]}


def _label_studio_images(
    task: dict[str, Any], keys: Mapping[str, str] | None, used: set[str], path: Path
) -> list[MarkedImage]:
    """The images of a task that was looked at."""
    where = f"{path}: task {task.get('id')}"
    files = _files_of(task)
    if not files:
        raise UserError(f"{where}: data: no image in it; expected the path or the address of one")
    done = [a for a in task.get("annotations", ()) if not is_set(a.get("was_cancelled"), f"{where}: was_cancelled")]
    done = [a for a in done if is_set(a.get("ground_truth"), f"{where}: ground_truth")] or done
    if len(done) > 1:
        file = next(iter(files.values()))
        raise UserError(f"{where} ({file}): {len(done)} annotations; keep one, or mark one as ground truth")
    if not done:
        return []
    shown = {place: file for place, file in files.items() if place[0] in used} or files
    images = {place: MarkedImage(file, None, f"{where} ({file})") for place, file in shown.items()}
    if len(images) > 1 and keys is None and not used:
        raise UserError(
            f"{where}: data holds several images ({', '.join(sorted({key for key, _ in images}))}); say which one the "
            "regions are on: give the labelling configuration as --label-config"
        )
    for number, result in enumerate(done[0].get("result", ()), 1):
        _add_result(result, _image_of(result, images, keys, f"{where}, result {number}"), number)
    return list(images.values())


def _image_of(
    result: dict[str, Any], images: dict[tuple[str, int], MarkedImage], keys: Mapping[str, str] | None, where: str
) -> MarkedImage:
    """The image that a result is on."""
    name = str(result.get("to_name"))
    key = name if keys is None else keys.get(name)
    own = images.get((str(key), int(result.get("item_index") or 0)))
    if own is None and len(images) == 1 and keys is None:
        return next(iter(images.values()))
    if own is None:
        raise UserError(
            f"{where}: to_name: {name!r}; expected the name of one of the task's images "
            f"({', '.join(sorted({key for key, _ in images}))}): give the labelling configuration as --label-config"
        )
    return own


def _add_result(result: dict[str, Any], image: MarkedImage, number: int) -> None:
    """Add the object that a result marks, if it marks one."""
    at, kind, value = f"{image.where}, result {number}", result.get("type"), result.get("value")
    if kind in REGIONS:
        size = size_of(result, "original_height", "original_width", at)
        if size is None:
            raise UserError(f"{at}: no original_height and original_width; export again")
        image.size = size
        if turned := _number(result.get("image_rotation"), f"{at}: image_rotation"):
            raise UserError(f"{at}: image_rotation: {turned:g}; turn the image back and export again")
        for name in (kind, *REGIONS[kind]):
            field_of(value, name, f"{at}: value")
        assert value is not None  # it has fields
        if not isinstance(value[kind], list) or len(value[kind]) != 1:
            raise UserError(f"{at}: {kind}: {value[kind]!r:.100}; expected one label a region")
        image.objects.append(Object(label_of(value[kind][0], at), _label_studio_spot(kind, value, size, at), at))
    elif kind not in REMARKS and isinstance(value, dict) and not PLACES.isdisjoint(value):
        raise UserError(f"{at}: type: {kind!r:.100}; expected a region with its label, one of {', '.join(REGIONS)}")


def _number(value: object, where: str) -> float:
    """A number that may be missing, then 0."""
    return numbers([value or 0], 1, where)[0]


def _label_studio_spot(kind: str, value: dict[str, Any], size: tuple[int, int], where: str) -> Spot:
    """Positions are per cent of the image's sides."""
    height, width = size
    if kind == "polygonlabels":
        points = [numbers(point, 2, f"{where}: points") for point in value["points"]]
        corners = [side * part / 100 for x, y in points for side, part in ((width, x), (height, y))]
        return nearest_to_centroid(polygon_area([corners], size, where))
    if kind == "brushlabels":
        return nearest_to_centroid(mask_area(decode_brush(value["rle"], size, where), size, where))
    x, y, *sides = numbers([value[name] for name in REGIONS[kind]], len(REGIONS[kind]), where)
    x, y = width * x / 100, height * y / 100
    if kind == "rectanglelabels":
        w, h = width * sides[0] / 100, height * sides[1] / 100
        turn = math.radians(_number(value.get("rotation"), f"{where}: rotation"))
        if turn == 0:
            return box_center(x, y, w, h, size, where)
        # turned clockwise about the corner at (x, y)
        x, y = x + (w * math.cos(turn) - h * math.sin(turn)) / 2, y + (w * math.sin(turn) + h * math.cos(turn)) / 2
    return from_corner(x, y, size, where)


def decode_brush(codes: object, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask (H, W) of a brush: Label Studio packs its RGBA picture bit by bit; painted is what is not transparent.

    After the number of values (32 bits), the bits of a value less one (5) and four widths less one (4 each) come
    blocks: one bit tells a run of one value from single values, two bits which of the widths the block's length less
    one has. Of the values only the transparencies are kept, a byte a pixel.
    """
    if not isinstance(codes, list) or not all(type(code) is int and 0 <= code < 256 for code in codes):
        raise UserError(f"{where}: rle: {codes!r:.100}; expected a list of bytes, 0..255")
    bits = np.unpackbits(np.array(codes, dtype=np.uint8))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise UserError(f"{where}: rle: ends too early; export again")
        at += count
        return int("".join(map(str, bits[at - count : at])), 2)

    total = read(32)
    if total != 4 * math.prod(size):
        raise UserError(f"{where}: rle: {total} values; expected four for each of the {size[1]} x {size[0]} pixels")
    word, widths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    painted = np.zeros(total // 4, dtype=np.bool_)
    done = 0
    while done < total:
        same, length = read(1), read(widths[read(2)]) + 1
        for k in range(1 if same else length):
            start, end = done + k, done + (length if same else k + 1)
            painted[start // 4 : end // 4] = read(word) > 0  # pixel p's transparency is value 4 p + 3
        done += length
    return painted.reshape(size)


def _files_of(task: dict[str, Any]) -> dict[tuple[str, int], str]:
    """The images of a task: key of its data and place in a list (0 outside of lists) -> file."""
    files: dict[tuple[str, int], str] = {}
    for key, value in {**task["data"], "": task.get("file_upload")}.items():
        if key == "" and files:  # says again what the data says
            break
        for place, address in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(address, str) and (file := _file_of(address, task)) is not None:
                files[str(key), place] = file
    return files


def _file_of(value: str, task: dict[str, Any]) -> str | None:
    """The file of an image that an address names, None if it is none of an image."""
    scheme, mark, rest = value.partition("://")
    if mark and scheme.lower() not in ("http", "https"):  # cloud storages write names as they are, # and % among them
        file = rest.partition("/")[2]
        return relative_file(file) if file.lower().endswith(IMAGE_SUFFIXES) else None
    try:
        address = urlsplit(value)
    except ValueError:  # brackets that are no address of version 6
        return None
    local = parse_qs(address.query).get("d")  # files that the server reads from its own folder
    file = local[0] if local else unquote(address.path)
    if not file.lower().endswith(IMAGE_SUFFIXES) and value.lower().endswith(IMAGE_SUFFIXES):
        # a name with # or ? that was not written as in an address
        file = unquote(rest.partition("/")[2] if mark else value)
    if not file.lower().endswith(IMAGE_SUFFIXES):
        return None
    if not local and (file.startswith("/data/upload/") or value == task.get("file_upload")):
        return re.sub(r"^[0-9a-f]{8}-", "", file.rsplit("/", 1)[-1])
    return relative_file(file.lstrip("/") if address.scheme or local else file)
