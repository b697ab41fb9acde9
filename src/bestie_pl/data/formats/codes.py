"""Run-length codes and polygons of files: checked here, since pycocotools trusts what it gets.

It fills what a code leaves out with whatever the memory held, and walks along the outline of a polygon wherever that
leads: a corner at 1e8 takes gigabytes, and then the process.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as rle

from bestie_pl.errors import UserError

LONGEST_OUTLINE = 2**20
"""Pixels that the polygons of one object may run along: pycocotools takes some hundred bytes for each of them."""

FARTHEST = 10**6
"""Pixels that a corner may be away from the image's first one; five times this fits into pycocotools' integers."""


def encode_polygons(polygons: object, size: tuple[int, int], where: str) -> list[dict[str, Any]]:
    """A compressed run-length code of each of an object's polygons ``[x, y, x, y, ...]``; ``size`` is the image's.

    Raises:
        UserError: Not three corners or more of finite numbers, or an outline that is far longer than the image allows.
    """
    # pycocotools takes a list of four numbers for a box, and what is no number for 0
    if not isinstance(polygons, list) or not polygons:
        raise UserError(f"{where}: {polygons!r:.100}; expected polygons [[x, y, x, y, x, y, ...], ...]")
    for polygon in polygons:
        check_polygon(polygon, where)
    height, width = size
    longest = min(LONGEST_OUTLINE, 4 * (height + 1) * (width + 1))
    length = 0.0
    for polygon in polygons:
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        length += float(np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum())
        if np.abs(corners).max() > FARTHEST or length > longest:
            x, y = corners[np.abs(corners - np.array([width, height]) / 2).max(1).argmax()]
            raise UserError(
                f"{where}: the corner x={x:g}, y={y:g} or the length of the outline, {length:.3g} px, is far beyond "
                f"the {width} x {height} px image; correct the corners"
            )
    codes: list[dict[str, Any]] = rle.frPyObjects(polygons, height, width)
    return codes


def encode_runs(counts: object, size: tuple[int, int], where: str) -> dict[str, Any]:
    """A compressed run-length code from one of either kind, a string or a list of the lengths of runs.

    Raises:
        UserError: It is neither, or does not cover an image of ``size`` (H, W).
    """
    if not isinstance(counts, (str, list)):
        raise UserError(f"{where}: a run-length code without counts; expected a list or a string")
    code = {"size": list(size), "counts": counts.encode(errors="replace") if isinstance(counts, str) else counts}
    try:
        check_code(code)
    except UserError as error:
        raise UserError(f"{where}: {error}; restore the file") from error
    coded: dict[str, Any] = code if isinstance(counts, str) else rle.frPyObjects(code, *size)
    return coded


def check_code(code: dict[str, Any]) -> None:
    """Raise UserError unless a run-length code of either kind covers its image."""
    height, width = code["size"]
    counts = code["counts"]
    runs = read_runs(counts) if isinstance(counts, bytes) else counts
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise UserError(f"a broken run-length code, whose runs do not add up to the {height} x {width} px of the image")


def read_runs(counts: bytes) -> list[int]:
    """The lengths of the runs of a compressed run-length code; of a broken one, they do not add up.

    Source: pycocotools' ``rleFrString``: five bits a byte, the lowest first; from the fourth run on the difference to
    the run before the last.

    >>> read_runs(rle.encode(np.array([[0, 1], [1, 1]], dtype=np.uint8, order="F"))["counts"])
    [1, 3]
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:  # no character of a code, or longer than any number
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more follow
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def check_polygon(polygon: Any, where: str) -> None:
    """Raise UserError unless it holds three corners or more, as finite numbers."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise UserError(f"{where}: {polygon!r:.100}; expected a polygon as numbers x, y, x, y, ...")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in polygon):
        raise UserError(f"{where}: {polygon!r:.100}; expected a polygon as finite numbers x, y, x, y, ...")
    if len(polygon) < 6:
        raise UserError(f"{where}: a polygon of {len(polygon) // 2} corners; expected three or more")
