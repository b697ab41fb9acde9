"""The learning rate of every step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bestie_pl.modules.optimization import polynomial_decay


def test_equals_the_release(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    data = golden("l_schedule")
    factor = polynomial_decay(50_000, 2_000)
    rates = [5e-5 * factor(int(done)) for done in data["iterations_done"]]
    np.testing.assert_allclose(rates, data["lr"], rtol=1e-12)


def test_falls_to_zero_without_warm_up() -> None:
    rates = [polynomial_decay(10)(done) for done in range(11)]
    assert rates[0] == 1 and rates[-1] == 0 and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_warm_up_longer_than_the_training_just_ends_early(steps: int) -> None:
    factor = polynomial_decay(steps, 100)
    assert 0 < factor(0) < 0.01 and factor(steps) == 0
