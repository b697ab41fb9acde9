"""Where the point of an object is: positions from a corner, centres of boxes, pixels of areas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from bestie_pl.data.formats.truth import read_runs

Spot = tuple[float, float]
"""x and y in pixels, 0 at the centre of the first one."""
Pixels = NDArray[np.int64]
"""(K, 2): y and x of the pixels of an area."""


def numbers(values: object, count: int, where: str) -> list[float]:
    """The values, if they are a list of ``count`` numbers; else ValueError."""
    if not isinstance(values, list) or len(values) != count or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"{where}: {values!r:.100}; expected {count} {'number' if count == 1 else 'numbers'}")
    return values


def from_corner(x: float, y: float, size: tuple[int, int] | None, where: str) -> Spot:
    """A position measured from the corner of an image, as pixels.

    >>> from_corner(0, 29.25, (30, 40), "")
    (0.0, 28.75)
    """
    for axis, value, limit in zip("xy", (x, y), (size or (math.inf, math.inf))[::-1], strict=True):
        if not 0 <= value <= limit:
            raise ValueError(f"{where}: {axis}={value:g} is outside the image, whose {axis} ends at {limit:g}")
    height, width = size or (math.inf, math.inf)
    # half of the image's outermost pixels lies beyond their centres
    return float(min(max(x - 0.5, 0.0), width - 1)), float(min(max(y - 0.5, 0.0), height - 1))


def box_center(x: float, y: float, width: float, height: float, size: tuple[int, int] | None, where: str) -> Spot:
    """Centre of the part of a box that is in the image."""
    if not (width > 0 and height > 0):
        raise ValueError(f"{where}: a box of {width:g} x {height:g} px; expected a positive width and height")
    limits = size or (math.inf, math.inf)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, limits[1]), min(y + height, limits[0])
    if not (left < right and top < bottom):
        raise ValueError(f"{where}: the box is outside the image")
    return from_corner((left + right) / 2, (top + bottom) / 2, size, where)


def polygon_pixels(polygons: Iterable[Sequence[float]], size: tuple[int, int] | None, where: str) -> Pixels:
    """Pixels of polygons ``[x, y, x, y, ...]`` that are parts of one object; of a sliver the pixel in its middle."""
    parts = []
    for polygon in polygons:
        try:
            corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {polygon!r:.100}; expected a polygon as numbers x, y, x, y, ...") from None
        if len(corners) < 3 or not np.isfinite(corners).all():
            raise ValueError(f"{where}: a polygon of {len(corners)} corners; expected three or more, as numbers")
        height, width = size if size is not None else (int(v) for v in np.maximum(np.ceil(corners.max(0)) + 1, 0)[::-1])
        (code,) = rle.frPyObjects([corners.flatten().tolist()], height, width)
        # the runs of a small polygon are few in an image of any size
        ends = np.cumsum([0, *read_runs(code["counts"])])
        inside = np.concatenate([np.arange(0), *(np.arange(*run) for run in zip(ends[1::2], ends[2::2], strict=False))])
        pixels = (
            np.stack([inside % height, inside // height], 1) if len(inside) else np.floor(corners.mean(0))[None, ::-1]
        )
        parts.append(pixels.astype(np.int64))
    return _inside(np.concatenate(parts), size, where)


def decode_runs(counts: object, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask (H, W) of one of COCO's run-length codes: columns, beginning with zeros; as a list or compressed."""
    if not isinstance(counts, (str, list)):
        raise ValueError(f"{where}: a run-length code without counts; expected a list or a string")
    runs = read_runs(counts.encode()) if isinstance(counts, str) else counts
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != math.prod(size):
        raise ValueError(
            f"{where}: counts: {counts!r:.100}; expected runs of {size[0]} x {size[1]} pixels in all: restore the file"
        )
    inside: NDArray[np.bool_] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(size[::-1]).T


def mask_pixels(mask: NDArray[Any], size: tuple[int, int] | None, where: str, *, left: int = 0, top: int = 0) -> Pixels:
    """Pixels of a mask (h, w) whose first pixel lies at ``left`` and ``top`` of the image."""
    return _inside(np.argwhere(mask) + np.array([top, left]), size, where)


def nearest_to_centroid(pixels: Pixels) -> Spot:
    """The pixel of an area that is nearest to its centroid; the first of several.

    >>> nearest_to_centroid(np.array([[0, 0], [0, 4], [1, 0], [1, 4]]))
    (0.0, 0.0)
    """
    # of whole numbers, so that of equal distances none is smaller by rounding
    away = np.square((pixels * len(pixels) - pixels.sum(0)).astype(np.float64)).sum(1)
    y, x = pixels[away.argmin()]
    return float(x), float(y)


def _inside(pixels: Pixels, size: tuple[int, int] | None, where: str) -> Pixels:
    if size is not None:
        pixels = pixels[((pixels >= 0) & (pixels < size)).all(1)]
    if len(pixels) == 0:
        raise ValueError(f"{where}: no pixel of it is in the image")
    return pixels
