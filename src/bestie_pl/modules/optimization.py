"""Optimisers, and learning-rate schedules as factors of the highest rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

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


def adam_with_decay(
    module: pl.LightningModule,
    groups: list[dict[str, Any]],
    *,
    kind: Literal["adam", "adamw"],
    weight_decay: float,
    warmup_steps: int,
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns: Adam or AdamW, and ``polynomial_decay`` to the end of the training.

    Args:
        module: In a trainer that knows where its training ends.
        groups: Parameter groups with their learning rates.
        kind: Of optimiser.
        weight_decay: Of all groups.
        warmup_steps: Optimiser steps over which the rate rises linearly.

    Raises:
        ValueError: The training has no end.
    """
    trainer = module.trainer
    # Lightning refuses to clip what a fused optimiser unscales inside its step
    clipped_under_amp = bool(trainer.gradient_clip_val) and "mixed" in str(trainer.precision)
    optimizer = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(
        groups, weight_decay=weight_decay, fused=module.device.type == "cuda" and not clipped_under_amp
    )
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("the learning rate decays to the end of the training: set trainer.max_steps or max_epochs")
    scheduler = LambdaLR(optimizer, polynomial_decay(int(steps), warmup_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
