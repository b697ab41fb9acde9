"""Progress bars for whatever takes longer than a moment."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]  # a requirement of Lightning

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds without a bar: what is done by then needs none."""


def progress(
    items: Iterable[T], what: str, unit: str = "images", *, total: int | None = None, patience: float = PATIENCE
) -> Iterable[T]:
    """The same items, with a bar of their number, rate and rest on standard error.

    Nothing is shown where standard error is no terminal, nor before ``patience`` ends; a finished bar vanishes.

    Args:
        items: Anything to loop over.
        what: Stands before the bar.
        unit: Of the rate.
        total: Number of items; their length if omitted, as far as they have one.
        patience: Seconds without a bar.

    >>> [2 * number for number in progress(range(3), "doubling", "numbers")]
    [0, 2, 4]
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    bar: Iterable[T] = tqdm(
        items, desc=what, total=count, unit=f" {unit}", disable=None, leave=False, delay=patience, dynamic_ncols=True
    )
    return bar
