"""Every way of finding out how large tables are; see ``bestie_pl.ops.capacity``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from torch import Tensor

from bestie_pl.ops import capacity

WAYS = ("exact", "guessed", "scarce")


class ScarceCapacity(capacity.GuessedCapacity):
    """The worst guesses: one row, one round."""

    def pick(self, name: str, mask: Tensor, room: int) -> capacity.Rows:
        return super().pick(name, mask, 1)

    def limit(self, name: str, needed: Tensor, room: int) -> int:
        return super().limit(name, needed, 1)

    def repeat(self, name: str, undone: Callable[[], Tensor], room: int) -> Iterator[None]:
        return super().repeat(name, undone, 1)


@contextmanager
def going(way: str) -> Iterator[None]:
    """``exact`` as on a CPU, ``guessed`` as on an accelerator, ``scarce`` with guesses that are too small at first."""
    with pytest.MonkeyPatch.context() as patch:
        if way != "exact":
            patch.setattr(capacity, "HOSTS", frozenset())
            # on a GPU thousands of empty rows cost nothing
            patch.setattr(capacity, "LEAST_ROOM", 16)
        if way == "scarce":
            patch.setattr(capacity, "GuessedCapacity", ScarceCapacity)
            patch.setattr(capacity, "LEAST_ROOM", 1)
        yield


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """All tests of the module that use it are run in each way."""
    with going(request.param):
        yield request.param


@pytest.fixture(scope="session")
def go() -> Callable[[str], AbstractContextManager[None]]:
    """One way after the other within a test."""
    return going
