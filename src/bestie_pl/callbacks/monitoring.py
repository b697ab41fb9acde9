"""What goes on in a training: learning rate, number of labels, and where the time of a step goes."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

POINTS = 50
"""A training logs at least so many times, however short it is."""


class TrainingMonitor(Callback):
    """Log ``lr``, ``labels/pseudo`` and ``seconds/data``, ``seconds/compute`` beside the losses, often enough.

    - ``lr``: the highest learning rate of the optimiser's groups.
    - ``labels/pseudo``: pseudo labels of the batch, in the mean over its images.
    - ``seconds/data``: what a step waits for its batch, decoding and labelling included; ``seconds/compute``: the step
      itself. Means over the steps since the last line of the log. A GPU works on while the host waits for data, so
      there the sum is right and the parts are the host's.

    A training of fewer than 50 times ``trainer.log_every_n_steps`` steps logs every fiftieth part of it.
    """

    def __init__(self) -> None:
        self._mark = 0.0
        self._rate: float | None = None
        self._data: deque[float] = deque()
        self._compute: deque[float] = deque()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose how often to log."""
        settings: Any = trainer  # whose class does not declare it
        steps, interval = trainer.estimated_stepping_batches, int(settings.log_every_n_steps)
        if 0 < steps < float("inf") and interval > 0:
            interval = settings.log_every_n_steps = min(interval, max(1, int(steps) // POINTS))
        self._data, self._compute = (deque(maxlen=max(1, interval)) for _ in range(2))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to wait for a batch."""
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no part of a step."""
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        now = time.perf_counter()
        self._data.append(now - self._mark)
        self._mark = now
        # afterwards the schedule has set that of the next step
        rates = [group["lr"] for optimizer in trainer.optimizers[:1] for group in optimizer.param_groups]
        self._rate = max(rates, default=None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        now = time.perf_counter()
        self._compute.append(now - self._mark)
        self._mark = now
        values: dict[str, float | Tensor] = {
            "seconds/data": sum(self._data) / len(self._data),
            "seconds/compute": sum(self._compute) / len(self._compute),
        }
        if self._rate is not None:
            values["lr"] = self._rate
        pseudo = getattr(batch, "pseudo", None)
        if pseudo is not None:  # not read on the host: a device is not waited for
            values["labels/pseudo"] = ((pseudo.area > 0) & (pseudo.weight > 0)).sum() / len(batch)
        pl_module.log_dict(values, batch_size=1)
