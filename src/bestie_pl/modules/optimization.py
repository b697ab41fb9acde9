"""Optimisers and learning-rate schedules of all modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

DECAY_POWER = 0.9
"""Of the polynomial decay (paper section 4.2 and release 8.2)."""
WARMUP_START = 0.001
"""Factor of the very first step of a warm-up (release 8.2; Detectron2 and torchvision have the same)."""
MOMENTUM = 0.9
"""Of SGD (release 12.4)."""
BIAS_FACTOR = 2.0
"""Learning rate of biases relative to weights, with SGD (release 12.4)."""
DROPS = (4, 9)
"""Finished epochs after which the rate of SGD is divided by ten (release 12.4: at the start of epochs 5 and 10)."""
DETECTOR_DROPS = (2 / 3, 8 / 9)
"""Shares of a detector's training after which the rate is divided by ten: 60,000 and 80,000 of the official 90,000."""


@dataclass(frozen=True)
class Optimization:
    """Optimiser and schedule.

    Args:
        optimizer: ``adam`` as in the paper, ``adamw``, or ``sgd`` as the release trains its classifier: Nesterov
            momentum 0.9, biases twice as fast, and a tenth of the rate from the epochs 5 and 10 on (counted from 1) in
            the place of the polynomial decay. A detector (``configure_detector``) has schedules of its own.
        lr: Learning rate at its highest.
        backbone_lr_factor: Learning rate of the backbone relative to ``lr``.
        weight_decay: Of all parameters.
        warmup_steps: Optimiser steps over which the rate rises linearly (release: 2000); not for its ``sgd``.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 5e-5
    backbone_lr_factor: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("backbone_lr_factor", "weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def polynomial_decay(optimizer: Optimizer, steps: int, warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up from 0.001, times ``(1 - i / steps) ** 0.9``; ``i`` counts finished optimiser steps.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = polynomial_decay(optimizer, 4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(round(schedule.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [1.0, 0.772, 0.536, 0.287, 0.0]
    """
    return _schedule(optimizer, warmup_steps, lambda done: max(0.0, 1 - done / max(1, steps)) ** DECAY_POWER)


def _schedule(optimizer: Optimizer, warmup_steps: int, decay: Callable[[int], float]) -> LambdaLR:
    """Warm-up times ``decay``, both of the finished steps alone.

    A checkpoint then holds how many these are and not where the rate was to end: a training that goes on with more
    steps than it was begun with has the rates of the longer one.
    """

    def factor(done: int) -> float:
        warm = WARMUP_START + (1 - WARMUP_START) * done / warmup_steps if done < warmup_steps else 1.0
        return warm * decay(done)

    return LambdaLR(optimizer, factor)


def configure(
    module: pl.LightningModule,
    backbone: Sequence[nn.Parameter],
    head: Sequence[nn.Parameter],
    settings: Optimization,
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns.

    Args:
        module: In a trainer that knows where its training ends.
        backbone: Trained at ``lr`` times ``backbone_lr_factor``.
        head: Trained at ``lr``.
        settings: Of the optimiser.

    Raises:
        ValueError: The training has no end.
    """
    rates = ((backbone, settings.lr * settings.backbone_lr_factor), (head, settings.lr))
    if settings.optimizer == "sgd":
        groups: list[dict[str, Any]] = []
        for parameters, lr in rates:
            groups.append({"params": [p for p in parameters if p.dim() > 1], "lr": lr})
            groups.append({"params": [p for p in parameters if p.dim() <= 1], "lr": lr * BIAS_FACTOR})
        sgd = torch.optim.SGD(groups, settings.lr, MOMENTUM, nesterov=True, weight_decay=settings.weight_decay)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": MultiStepLR(sgd, list(DROPS))}}
    optimizer = (torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW)(
        [{"params": list(parameters), "lr": lr} for parameters, lr in rates],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=may_fuse(module),
    )
    schedule = polynomial_decay(optimizer, steps_of(module), settings.warmup_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def step_decay(optimizer: Optimizer, steps: int, warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up from 0.001, times 1, 0.1 and 0.01 from 2/3 and 8/9 of the steps on.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = step_decay(optimizer, 9)
    >>> rates = []
    >>> for _ in range(9):
    ...     rates.append(round(schedule.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01]
    """
    drops = [round(share * steps) for share in DETECTOR_DROPS]
    return _schedule(optimizer, warmup_steps, lambda done: 0.1 ** sum(done >= drop for drop in drops))


def configure_detector(
    module: pl.LightningModule,
    backbone: Sequence[nn.Parameter],
    head: Sequence[nn.Parameter],
    settings: Optimization,
) -> OptimizerLRSchedulerConfig:
    """The same as ``configure`` for a detector: plain momentum 0.9 with ``sgd``, and ``step_decay``.

    Source: the official 1x schedule of Mask R-CNN (Detectron2's model zoo).

    Raises:
        ValueError: The training has no end.
    """
    groups = [
        {"params": list(backbone), "lr": settings.lr * settings.backbone_lr_factor},
        {"params": list(head), "lr": settings.lr},
    ]
    optimizer: Optimizer
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, settings.lr, MOMENTUM, weight_decay=settings.weight_decay)
    else:
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=may_fuse(module))
    schedule = step_decay(optimizer, steps_of(module), settings.warmup_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def steps_of(module: pl.LightningModule) -> int:
    """Optimiser steps of the whole training.

    Raises:
        ValueError: It has no end.
    """
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("the learning rate falls towards the training's end: set trainer.max_steps or max_epochs")
    return int(steps)


def may_fuse(module: pl.LightningModule) -> bool:
    """Whether the optimiser's step may be one kernel: on a GPU, unless gradients are clipped in mixed precision.

    A fused optimiser divides by the loss scale inside its step, so Lightning refuses to clip before it.
    """
    trainer = module.trainer
    clips = bool(trainer.gradient_clip_val) and "mixed" in str(trainer.precision)
    return module.device.type == "cuda" and not clips


def follow_new_rate(trainer: pl.Trainer, lr: float) -> None:
    """Let optimisers and schedules that were made for another highest rate follow a new one from where they are.

    Lightning's learning-rate finder writes its rate into all parameter groups alike, and schedules keep their own base.

    Args:
        trainer: With optimisers and schedules.
        lr: The new rate that the optimisers are made for; the groups keep theirs relative to it.
    """
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        factors = [now / group["initial_lr"] for now, group in _rates(schedule)]
        before = schedule.optimizer.defaults["lr"]
        for (_, group), factor in zip(_rates(schedule), factors, strict=True):
            group["initial_lr"] *= lr / before
            group["lr"] = group["initial_lr"] * factor
        schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
        schedule.optimizer.defaults["lr"] = lr
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def take_rates(schedule: LRScheduler) -> None:
    """Set the rates to what a schedule says of its finished steps, where it knows no more than these.

    A checkpoint restores the rates of the schedule that wrote it, which may have been one of another length.
    """
    if isinstance(schedule, LambdaLR):
        rates = zip(schedule.base_lrs, schedule.lr_lambdas, schedule.optimizer.param_groups, strict=True)
        for base, factor, group in rates:
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def _rates(schedule: Any) -> list[tuple[float, dict[str, Any]]]:
    """What a schedule last made of each parameter group's rate, and the group."""
    return list(zip(schedule.get_last_lr(), schedule.optimizer.param_groups, strict=True))
