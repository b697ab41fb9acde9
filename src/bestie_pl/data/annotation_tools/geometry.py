"""Where the point of an object is: positions from a corner, centres of boxes, pixels of areas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestie_pl.data.formats.codes import check_polygon, encode_polygons, encode_runs, read_runs
from bestie_pl.data.formats.images import check_pixels
from bestie_pl.errors import UserError

Spot = tuple[float, float]
"""x and y in pixels, 0 at the centre of the first one."""
Area = NDArray[np.int64]
"""(K, 4): rectangles of pixels, mostly runs: first row, first column, and the row and column that end them.

An area of any size has few of them, while a list of its pixels takes gigabytes for a large one.
"""

MOST_RUNS = 2**22
"""Runs of one mask; noise has more, no object. A picture of few bytes can hold any number of them."""


def numbers(values: object, count: int, where: str) -> list[float]:
    """The values, if they are a list of ``count`` finite numbers; else UserError."""
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(type(v) in (int, float) and math.isfinite(v) for v in values)
    ):
        raise UserError(f"{where}: {values!r:.100}; expected {count} {'number' if count == 1 else 'numbers'}")
    return values


def from_corner(x: float, y: float, size: tuple[int, int] | None, where: str) -> Spot:
    """A position measured from the corner of an image, as pixels.

    >>> from_corner(0, 29.25, (30, 40), "")
    (0.0, 28.75)
    """
    for axis, value, limit in zip("xy", (x, y), (size or (math.inf, math.inf))[::-1], strict=True):
        if not 0 <= value <= limit:
            raise UserError(f"{where}: {axis}={value:g} is outside the image, whose {axis} ends at {limit:g}")
    height, width = size or (math.inf, math.inf)
    # half of the image's outermost pixels lies beyond their centres
    return float(min(max(x - 0.5, 0.0), width - 1)), float(min(max(y - 0.5, 0.0), height - 1))


def box_center(x: float, y: float, width: float, height: float, size: tuple[int, int] | None, where: str) -> Spot:
    """Centre of the part of a box that is in the image."""
    if not (width > 0 and height > 0):
        raise UserError(f"{where}: a box of {width:g} x {height:g} px; expected a positive width and height")
    limits = size or (math.inf, math.inf)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, limits[1]), min(y + height, limits[0])
    if not (left < right and top < bottom):
        raise UserError(f"{where}: the box is outside the image")
    return from_corner((left + right) / 2, (top + bottom) / 2, size, where)


def polygon_area(polygons: Iterable[Any], size: tuple[int, int] | None, where: str) -> Area:
    """Pixels of polygons ``[x, y, x, y, ...]`` that are parts of one object; of a sliver the pixel in its middle."""
    parts = []
    for polygon in polygons:
        check_polygon(polygon, where)
        bounds = size
        if bounds is None:  # as large as the corners need
            right, bottom = (max(0, math.ceil(max(polygon[axis::2]))) + 1 for axis in (0, 1))
            bounds = check_pixels(bottom, right, f"{where}: height, width that the corners need")
        (code,) = encode_polygons([polygon], bounds, where)
        area = runs_area(read_runs(code["counts"]), bounds[0])
        if not len(area):
            corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
            x, y = (int(v) for v in np.floor(corners.mean(0)))
            area = np.array([[y, x, y + 1, x + 1]])
        parts.append(area)
    return inside(np.concatenate(parts) if parts else np.zeros((0, 4), np.int64), size, where)


def coded_area(counts: object, size: tuple[int, int], where: str) -> Area:
    """Pixels of one of COCO's run-length codes: columns, beginning with zeros; as a list or compressed."""
    code = encode_runs(counts, size, where)
    return inside(runs_area(read_runs(code["counts"]), size[0]), size, where)


def mask_area(
    mask: NDArray[np.bool_], size: tuple[int, int] | None, where: str, *, left: int = 0, top: int = 0
) -> Area:
    """Pixels of a mask (h, w) whose first pixel lies at ``left`` and ``top`` of the image."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    if (count := int(np.count_nonzero(starts))) > MOST_RUNS:
        raise UserError(
            f"{where}: a mask of {count} runs of pixels; expected at most {MOST_RUNS}: draw the object anew"
        )
    ends = mask.copy()
    ends[:, :-1] &= ~mask[:, 1:]
    y, x = np.nonzero(starts)
    end = np.nonzero(ends)[1]
    return inside(np.stack([y + top, x + left, y + top + 1, end + left + 1], 1), size, where)


def runs_area(runs: Sequence[int], length: int) -> Area:
    """Rectangles of the odd ones of runs down columns of ``length`` pixels; those over several columns are cut.

    >>> runs_area([1, 3], 2).tolist()
    [[1, 0, 2, 1], [0, 1, 2, 2]]
    """
    ends = np.cumsum(np.array([0, *runs], dtype=np.int64))
    start, end = ends[1:-1:2], ends[2::2]
    start, end = start[start < end], end[start < end]
    # the first column of each run, its last one, and what lies between as one rectangle
    first, last = start // length, (end - 1) // length
    one, more = first == last, last > first + 1
    top = np.stack([start % length, first, np.where(one, (end - 1) % length + 1, length), first + 1], 1)
    middle = np.stack([np.zeros_like(first), first + 1, np.full_like(first, length), last], 1)
    bottom = np.stack([np.zeros_like(first), last, (end - 1) % length + 1, last + 1], 1)
    area: Area = np.stack([top, middle, bottom], 1)[np.stack([np.ones_like(one), more, ~one], 1)]
    return area


def nearest_to_centroid(area: Area) -> Spot:
    """The pixel of an area that is nearest to its centroid; the first of several.

    >>> nearest_to_centroid(np.array([[0, 0, 2, 1], [0, 4, 2, 5]]))
    (0.0, 0.0)
    """
    first, end = area[:, :2], area[:, 2:]
    side = end - first
    count = side.prod(1)
    total = int(count.sum())
    middle = (count[:, None] * (first + end - 1)).sum(0)  # twice the sum of the pixels' coordinates
    # of equal distances none is smaller by rounding: all in whole numbers, as multiples of 1 / (2 * total)
    nearest = np.clip((middle + total - 1) // (2 * total), first, end - 1)
    away = np.square((2 * total * nearest - middle).astype(np.float64)).sum(1)
    y, x = nearest[away.argmin()]
    return float(x), float(y)


def inside(area: Area, size: tuple[int, int] | None, where: str) -> Area:
    """What of an area lies in the image; UserError if nothing does."""
    if size is not None:
        area = np.clip(area, 0, [*size, *size])
    area = area[(area[:, 2:] > area[:, :2]).all(1)]
    if len(area) == 0:
        raise UserError(f"{where}: no pixel of it is in the image")
    return area
