"""Every way of finding out how large tables are; see ``bestie_pl.ops.sizes``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from torch import Tensor

from bestie_pl.ops import sizes


class ScarceSizes(sizes.GuessedSizes):
    """The worst guesses: one row, one round."""

    def pick(self, name: str, mask: Tensor, room: int) -> sizes.Rows:
        return super().pick(name, mask, 1)

    def limit(self, name: str, needed: Tensor, room: int) -> int:
        return super().limit(name, needed, 1)

    def repeat(self, name: str, undone: Callable[[], Tensor], room: int) -> Iterator[None]:
        return super().repeat(name, undone, 1)


@pytest.fixture(scope="module", params=["exact", "guessed", "scarce"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """``exact`` as on a CPU, ``guessed`` as on an accelerator, ``scarce`` with guesses that are too small at first."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "exact":
            patch.setattr(sizes, "HOSTS", frozenset())
            # on a GPU thousands of empty rows cost nothing
            patch.setattr(sizes, "LEAST_ROOM", 16)
        if request.param == "scarce":
            patch.setattr(sizes, "GuessedSizes", ScarceSizes)
            patch.setattr(sizes, "LEAST_ROOM", 1)
        yield request.param
