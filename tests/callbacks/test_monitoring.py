"""What the monitor of a training logs, and how often."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from bestie_pl.callbacks.monitoring import TrainingMonitor

WAIT, WORK = 0.03, 0.01


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Batches of two images with three labels, and two rows that are none; each takes its time to come."""

    def __iter__(self) -> Any:
        for _ in range(10):
            time.sleep(WAIT)
            yield torch.tensor([[0.0, 0], [9, 1], [5, 1], [0, 1], [7, 0.5], [4, 0]])

    def __len__(self) -> int:
        return 10


class LabeledBatch(SimpleNamespace):
    def __len__(self) -> int:
        return 2


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> Any:
        return LabeledBatch(pseudo=SimpleNamespace(area=batch[:, 0], weight=batch[:, 1]))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(WORK)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias], "lr": 0.5}]
        optimizer = torch.optim.SGD(groups)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5), "interval": "step"}]


@pytest.mark.parametrize("given", [50, 2])
def test_short_trainings_log_every_step(tmp_path: Path, given: int) -> None:
    trainer = pl.Trainer(
        max_steps=10,
        accelerator="cpu",
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[TrainingMonitor()],
        log_every_n_steps=given,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(Batches(), batch_size=None))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(10))
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.5] * 5 + [0.05] * 5)
    assert {float(row["labels/pseudo"]) for row in rows} == {1.5}
    data, compute = (sum(float(row[f"seconds/{part}"]) for row in rows) / 10 for part in ("data", "compute"))
    assert data >= 0.9 * WAIT and compute >= WORK


def test_a_long_training_keeps_the_interval() -> None:
    monitor = TrainingMonitor()
    trainer = SimpleNamespace(estimated_stepping_batches=10000, log_every_n_steps=50)
    monitor.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.log_every_n_steps == 50
    trainer.estimated_stepping_batches = 1000
    monitor.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.log_every_n_steps == 20
    trainer.estimated_stepping_batches = float("inf")
    monitor.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.log_every_n_steps == 20
