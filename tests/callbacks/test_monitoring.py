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
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from bestie_pl.callbacks.monitoring import TrainingMonitor, class_table
from bestie_pl.structures import Cues, LabeledInstances

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
        area, weight = batch.T
        whole, ids = torch.zeros(len(area)).long(), torch.zeros(2, 1, 1, dtype=torch.int32)
        pseudo = LabeledInstances(
            ids=ids, image=whole, classes=whole, center_yx=torch.zeros(len(area), 2), weight=weight, area=area,
            peaks=Cues.empty(),
        )  # fmt: skip
        return LabeledBatch(pseudo=pseudo)

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
    assert [float(row["weight/pseudo"]) for row in rows] == pytest.approx([(1 + 1 + 0.5) / 3] * 10)
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


def test_a_short_run_logs_each_loss_and_both_kinds_of_labels(trained_run: Path) -> None:
    rows = list(csv.DictReader((trained_run / "logs" / "version_0" / "metrics.csv").open()))
    steps = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in steps] == [0, 1]
    names = ["train/center_pseudo", "train/offset_refined", "train/semantic", "lr", "labels/pseudo", "weight/pseudo"]
    names += ["labels/refined", "weight/refined", "seconds/data", "seconds/compute"]
    assert all(float(row[name]) >= 0 for row in steps for name in names)
    quality = [row for row in rows if row["train/pseudo/precision"]]
    assert quality and float(quality[-1]["train/pseudo/true_positives"]) >= 1


class Tables(WandbLogger):
    """What is asked of Weights & Biases."""

    def __init__(self) -> None:
        self.tables: list[Any] = []

    def log_table(self, key: str, **kwargs: Any) -> None:
        self.tables.append((key, kwargs["columns"], kwargs["data"], kwargs["step"]))


class Texts(TensorBoardLogger):
    """What is asked of TensorBoard."""

    def __init__(self) -> None:
        self.writer = SimpleNamespace(add_text=lambda *given: self.texts.append(given))
        self.texts: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self.writer


def test_each_class_stands_in_a_table() -> None:
    wandb, board = Tables(), Texts()
    metrics = {"val_oracle_tags/ap25/a|b": torch.tensor(0.5), "val_oracle_tags/ap50/a|b": 0.25, "val/map25": 0.5}
    trainer: Any = SimpleNamespace(
        loggers=[wandb, board], callback_metrics=metrics, global_step=7, sanity_checking=False
    )
    TrainingMonitor().on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert wandb.tables == [("val/per_class", ["class", "ap25", "ap50"], [["a|b", 0.5, 0.25]], 7)]
    text = "| class | ap25 | ap50 |\n| --- | --- | --- |\n| a\\|b | 0.500 | 0.250 |"
    assert board.texts == [("val/per_class", text, 7)]
    trainer.sanity_checking = True
    TrainingMonitor().on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert len(wandb.tables) == 1
    assert class_table({"val/map50": 0.5, "test/ap50/x": 1.0}, "val") is None
