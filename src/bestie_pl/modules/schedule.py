"""Learning-rate schedules, as factors of the highest rate."""

from __future__ import annotations

from collections.abc import Callable

DECAY_POWER = 0.9
"""Of the polynomial decay (paper section 4.2 and release)."""
WARMUP_START = 0.001
"""Factor of the very first step of a warm-up (release)."""


def polynomial_decay(steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Linear warm-up from 0.001, times ``(1 - i / steps) ** 0.9``; ``i`` counts finished optimiser steps.

    >>> [round(polynomial_decay(4)(i), 3) for i in range(5)]
    [1.0, 0.772, 0.536, 0.287, 0.0]
    """

    def factor(done: int) -> float:
        progress = min(1.0, done / warmup_steps) if warmup_steps else 1.0
        warmup = WARMUP_START * (1 - progress) + progress
        return float(warmup * max(0.0, 1 - done / steps) ** DECAY_POWER)

    return factor
