"""Tables whose number of rows only the device knows: how to build them without waiting for it.

An accelerator works behind the host's back; to ask it for a number means to wait until all earlier work is done. So the
operations that find things (runs, pixels, centres) ask a ``Capacity`` how large their tables should be. On the host it
takes them as large as they are. On an accelerator it guesses, fills the tables up with rows that stand for nothing,
and looks once, at the end, at how many rows each needed; if a guess was too small, everything is done again::

    for capacity in attempts(device):
        rows = capacity.pick("peaks", mask, room=1000)
        ...
    peaks = rows.at[: capacity.count("peaks")]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_ROOM = 2**11
"""Rows that any table may have whose size is guessed: what is found in small images is no small part of them."""

HOSTS = frozenset({"cpu"})
"""Device types that compute while the host waits anyway: their sizes cost nothing to read."""


class Rows(NamedTuple):
    """Where a mask is true, in ascending order; behind these, perhaps, rows that stand for nothing.

    ``at``: (R,) int64, index into the flat mask in all rows. ``filled``: (R,) bool, True in rows that stand for
    nothing; None if there are none.
    """

    at: Tensor
    filled: Tensor | None = None

    def clear(self, values: Tensor, to: float = 0) -> Tensor:
        """Columns (..., R) of the table with ``to`` in the rows that stand for nothing."""
        return values if self.filled is None else values.masked_fill(self.filled, to)


class Capacity:
    """Sizes read where they are needed. Right everywhere; on an accelerator each one is waited for."""

    def pick(self, name: str, mask: Tensor, room: int) -> Rows:
        """Rows for all places where a mask is true.

        Args:
            name: Of the table, for ``count``; each is picked once an attempt.
            mask: Bool of any shape; rows index it flat.
            room: Guess of how many there are at most, where it is not read.
        """
        return Rows(mask.flatten().nonzero().squeeze(1))

    def narrow(self, mask: Tensor) -> Tensor | None:
        """Index (R,) of the true entries of a mask (P,), for ``take``; None, for all entries, if that costs waiting."""
        return mask.nonzero().squeeze(1)

    def limit(self, name: str, needed: Tensor, room: int) -> int:
        """A number that a loop runs to: ``needed``, a scalar int64, or a guess that is at least as large."""
        return int(needed)

    def repeat(self, name: str, undone: Callable[[], Tensor], room: int) -> Iterator[None]:
        """Rounds of a loop, at least one, until ``undone()``, a scalar bool, is False."""
        yield
        while undone():
            yield

    def count(self, name: str) -> int | None:
        """How many rows of a table stand for something, once the attempt is over; None for all of them."""
        return None


EXACT = Capacity()


class GuessedCapacity(Capacity):
    """Sizes as guessed; ``shortage`` tells whether they were enough.

    Args:
        known: Sizes that are known better than by the guesses of those who ask.
    """

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known
        self._given: dict[str, int] = {}
        self._needed: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def pick(self, name: str, mask: Tensor, room: int) -> Rows:
        """As many rows as were guessed, the last ones empty."""
        size = self._give(name, max(LEAST_ROOM, room))
        mask = mask.flatten()
        if len(mask) == 0:  # as the host knows
            size, mask = 0, mask.new_zeros(1)
        so_far = mask.cumsum(0)
        self._needed[name] = so_far[-1]
        at = torch.searchsorted(so_far, torch.arange(1, size + 1, device=mask.device))
        return Rows(at.clamp(max=len(mask) - 1), at == len(mask))

    def narrow(self, mask: Tensor) -> None:
        """All entries."""

    def limit(self, name: str, needed: Tensor, room: int) -> int:
        """The guess."""
        self._needed[name] = needed
        return self._give(name, room)

    def repeat(self, name: str, undone: Callable[[], Tensor], room: int) -> Iterator[None]:
        """As many rounds as were guessed."""
        rounds = self._give(name, room)
        for _ in range(rounds):
            yield
        self._needed[name] = undone() * (2 * rounds)

    def count(self, name: str) -> int:
        """As ``shortage`` found."""
        return self._counts[name]

    def shortage(self) -> dict[str, int]:
        """The sizes that were too small, as they should have been; the only time that the device is waited for."""
        self._counts = dict(zip(self._needed, torch.stack(list(self._needed.values())).tolist(), strict=True))
        return {name: count for name, count in self._counts.items() if count > self._given[name]}

    def _give(self, name: str, room: int) -> int:
        size = self._given[name] = self._known.get(name, room)
        return size


def take(values: Tensor, rows: Tensor | None) -> Tensor:
    """Entries of ``values`` (P, ...) as ``narrow`` says."""
    return values if rows is None else values.index_select(0, rows)


def attempts(device: torch.device) -> Iterator[Capacity]:
    """Sizes to do something with, again and again until none was too small; nearly always once."""
    if device.type in HOSTS:
        yield EXACT
        return
    known: dict[str, int] = {}
    while True:
        capacity = GuessedCapacity(known)
        yield capacity
        shortage = capacity.shortage()
        if not shortage:
            return
        # counts that follow from a table that was too small may be too small as well: the next look finds them
        known |= shortage
