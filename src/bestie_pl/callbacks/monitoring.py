"""What goes on in a training: learning rate, labels and their weight, where time goes; and each class's precision."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from bestie_pl.callbacks.loggers import log_table

POINTS = 50
"""A training logs at least so many times, however short it is."""


class TrainingMonitor(Callback):
    """Log ``lr``, number and weight of labels, and ``seconds/data``, ``seconds/compute`` beside the losses.

    - ``lr``: the highest learning rate of the optimiser's groups.
    - ``labels/pseudo``: pseudo labels of the batch, in the mean over its images; ``weight/pseudo``: their mean weight.
      ``BestieModule`` logs the same of its refined labels; and, where the data module reads the truth, how many of both
      are right and which share (``train/pseudo/true_positives``, ``.../precision``).
    - ``seconds/data``: what a step waits for its batch, decoding and labelling included; ``seconds/compute``: the step
      itself. Means over the steps since the last line of the log. A GPU works on while the host waits for data, so
      there the sum is right and the parts are the host's.

    A training of fewer than 50 times ``trainer.log_every_n_steps`` steps logs every fiftieth part of it.

    After a validation or a test, the precision of each class goes to Weights & Biases and TensorBoard as a table,
    ``val/per_class``; the columns ``val/ap50/CLASS`` of a CSVLogger hold the same.
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

    def skip(self) -> None:
        """What went on since the last step is no part of the next one."""
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show each class's scores; validation is no part of a step."""
        if not trainer.sanity_checking:
            _log_classes(trainer, "val")
        self.skip()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show each class's scores."""
        _log_classes(trainer, "test")

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
            values["labels/pseudo"], values["weight/pseudo"] = pseudo.count_and_weight()
        pl_module.log_dict(values, batch_size=1)


@rank_zero_only
def _log_classes(trainer: pl.Trainer, stage: str) -> None:
    table = class_table(trainer.callback_metrics, stage)
    if table is not None:
        log_table(trainer, f"{stage}/per_class", *table)


def class_table(metrics: Mapping[str, Any], stage: str) -> tuple[list[str], list[list[str | float]]] | None:
    """Columns and rows of the scores ``STAGE/SCORE/CLASS``, a row a class; None if there are none.

    >>> class_table({"val/ap25/cat": 0.5, "val/ap50/cat": 0.25, "val/ap25/dog": 0.75, "val/map25": 0.6}, "val")
    (['class', 'ap25', 'ap50'], [['cat', 0.5, 0.25], ['dog', 0.75, nan]])
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = name.split("/", 2)
        if len(parts) == 3 and parts[0].startswith(stage):
            found.setdefault(parts[2], {})[parts[1]] = float(value)
    if not found:
        return None
    columns = sorted({score for scores in found.values() for score in scores})
    return ["class", *columns], [[name, *(s.get(c, math.nan) for c in columns)] for name, s in found.items()]
