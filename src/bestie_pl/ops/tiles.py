"""Windows that cover a large image, and how the labels of one compare with what earlier ones left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of an image; the last ones are left out."""

    top: int
    left: int
    bottom: int
    right: int


def windows(size: tuple[int, int], side: int, overlap: int) -> list[Window]:
    """Square windows of a ``side`` that cover an image, row by row, neighbours sharing ``overlap`` pixels.

    The last ones of a row and of a column end with the image and may be smaller, though larger than the overlap. Starts
    are multiples of ``side - overlap``, so that a network's cells lie in all windows as in the image where its stride
    divides that.

    Raises:
        ValueError: Unless ``0 <= overlap <= side / 2``.

    >>> windows((5, 8), 6, 2)
    [Window(top=0, left=0, bottom=5, right=6), Window(top=0, left=4, bottom=5, right=8)]
    """
    if not 0 <= 2 * overlap <= side:
        raise ValueError(f"overlap must be at least 0 and at most half a tile of {side} px, got {overlap}")
    rows, columns = (_starts(length, side, overlap) for length in size)
    return [Window(top, left, min(top + side, size[0]), min(left + side, size[1])) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: int) -> range:
    return range(0, max(1, length - overlap), side - overlap)


def shared_pixels(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many pixels regions of two label maps have in common.

    Args:
        first: (H, W) integers, 0 or below where there is nothing.
        second: The same.

    Returns:
        Numbers of the first map, numbers of the second, and their pixels in common: three times (P,) int64, the pairs
        in ascending order.

    >>> [values.tolist() for values in shared_pixels(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 7, 7]]))]
    [[1, 2], [7, 7], [1, 1]]
    """
    both = (first > 0) & (second > 0)
    numbers, others = first[both].long(), second[both].long()
    step = int(others.max()) + 1 if len(others) else 1
    pairs, counts = torch.unique(numbers * step + others, return_counts=True)
    return pairs // step, pairs % step, counts
