"""Run-length codes read without unfolding them to masks: memory follows the outlines of objects, not their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIRST_CHARACTER = 48
"""Code of the character that stands for 0."""


def read_runs(code: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Where the runs of a mask start and how long they are, down the columns.

    Args:
        code: ``{"size": [H, W], "counts": bytes}`` as pycocotools makes it.

    Returns:
        start: (R,) int64, index into the flat (W, H), ascending.
        length: (R,) int64, positive.

    Source: the text form of COCO's run-length codes: lengths of nothing and mask in turn, from the fourth on as
    differences to the length before the last, in groups of five bits, lowest first; a sixth bit says that more follow.

    >>> from bestie_pl.ops.masks import encode
    >>> _, (code,) = encode(torch.tensor([[0, 1], [1, 1]]))
    >>> [values.tolist() for values in read_runs(code)]
    [[1], [3]]
    """
    digits = np.frombuffer(code["counts"], np.uint8).astype(np.int64) - FIRST_CHARACTER
    if not len(digits):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    last = (digits & 32) == 0
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = 5 * (np.arange(len(digits)) - np.repeat(first, np.diff(np.append(first, len(digits)))))
    counts = np.add.reduceat((digits & 31) << place, first)
    negative = (digits[last] & 16) != 0
    counts[negative] -= np.int64(1) << (place[last][negative] + 5)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    ends = counts.cumsum()
    start, length = ends[0::2][: len(counts[1::2])], counts[1::2]
    kept = length > 0
    return torch.from_numpy(start[kept]), torch.from_numpy(length[kept])


def covers(code: Mapping[str, Any], yx: Tensor) -> Tensor:
    """Whether a mask has the pixels ``yx`` (N, 2) int64, which lie in its image: (N,) bool.

    >>> from bestie_pl.ops.masks import encode
    >>> _, (code,) = encode(torch.tensor([[0, 1], [1, 1]]))
    >>> covers(code, torch.tensor([[0, 0], [0, 1], [1, 0]])).tolist()
    [False, True, True]
    """
    start, length = read_runs(code)
    if not len(start):
        return torch.zeros(len(yx), dtype=torch.bool)
    place = yx[:, 1] * int(code["size"][0]) + yx[:, 0]
    run = torch.searchsorted(start, place, right=True) - 1
    return (run >= 0) & (place < (start + length)[run])


def paint_codes(codes: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Tensor:
    """A label map (H, W) int32: 0 for nothing, ``i + 1`` for code i; later ones cover earlier ones.

    >>> from bestie_pl.ops.masks import encode
    >>> paint_codes(encode(torch.tensor([[0, 7], [3, 7]]))[1], (2, 2)).tolist()
    [[0, 2], [1, 2]]
    """
    height, width = size
    flat = np.zeros(height * width, np.int32)
    for number, code in enumerate(codes, 1):
        for start, length in torch.stack(read_runs(code), 1).tolist():
            flat[start : start + length] = number
    return torch.from_numpy(flat).view(width, height).t().contiguous()


def measure(code: Mapping[str, Any]) -> tuple[int, tuple[float, float]]:
    """Number of pixels of a mask and its centroid (y, x); NaN without a pixel.

    >>> from bestie_pl.ops.masks import encode
    >>> _, (code,) = encode(torch.tensor([[0, 1], [0, 1]]))
    >>> measure(code)
    (2, (0.5, 1.0))
    """
    height = int(code["size"][0])
    start, length = read_runs(code)
    area = int(length.sum())
    if not area:
        return 0, (float("nan"), float("nan"))
    end = start + length
    places = int((start * length + length * (length - 1) // 2).sum())
    columns = int((_columns_before(end, height) - _columns_before(start, height)).sum())
    return area, ((places - height * columns) / area, columns / area)


def _columns_before(place: Tensor, height: int) -> Tensor:
    """Sum of the column numbers of all places below each one."""
    whole = place // height
    return height * whole * (whole - 1) // 2 + whole * (place % height)
