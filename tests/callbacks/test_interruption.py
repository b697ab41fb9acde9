"""Signals: the training ends after its step, saved, with a status that says so."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bestie_pl.callbacks.checkpoints import NewestState, WholeFileIO
from bestie_pl.callbacks.interruption import Interruption, end_with_parent


class Signalled(pl.LightningModule):
    """Gets a signal in one of its hooks."""

    def __init__(self, where: str, numbers: tuple[int, ...], rank: int = 0) -> None:
        super().__init__()
        self.where, self.numbers, self.of = where, numbers, rank
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.steps = 0
        self.validated = 0

    def signal(self, where: str) -> None:
        if where == self.where and self.trainer.global_rank == self.of:
            for number in self.numbers:
                os.kill(os.getpid(), number)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.steps += 1
        if batch_idx == 1:
            self.signal("train")
        return self.weight.square().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated += 1
        self.signal("validate")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.signal("predict")
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {"devices": 1, "max_epochs": 3, "num_sanity_val_steps": 0}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[Interruption(), NewestState()],
        plugins=[WholeFileIO()],
        **{**defaults, **settings},
    )


def loader() -> DataLoader[Tensor]:
    return DataLoader(torch.zeros(4, 1), batch_size=1)  # type: ignore[arg-type]


def step_of(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
@pytest.mark.parametrize(("where", "step"), [("train", 2), ("validate", 4)])
def test_a_signal_ends_the_training_after_the_step(
    number: signal.Signals, status: int, where: str, step: int, tmp_path: Path
) -> None:
    """Lightning makes 1 of an interrupt, and the command line 130 of that."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    module = Signalled(where, (number,))
    try:
        with pytest.raises(SystemExit) as stop:
            make_trainer(tmp_path).fit(module, loader(), loader())
        assert stop.value.code == status
        assert module.steps == step == step_of(tmp_path) and module.validated == (where == "validate")
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["train", "predict"])
def test_a_second_signal_and_one_outside_of_training_end_at_once(where: str, tmp_path: Path) -> None:
    module = Signalled(where, (signal.SIGTERM,) * (2 if where == "train" else 1))
    trainer = make_trainer(tmp_path)
    with pytest.raises(SystemExit) as stop:
        trainer.predict(module, loader()) if where == "predict" else trainer.fit(module, loader())
    assert stop.value.code == 143 and not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["train", "validate"])
def test_a_signal_to_one_process_ends_all_with_one_state(where: str, tmp_path: Path) -> None:
    """To the second process, of which the first one knows nothing."""
    module = Signalled(where, (signal.SIGTERM,), rank=1)
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork", max_epochs=50)
    with pytest.raises(Exception, match="143"):
        trainer.fit(module, loader(), loader())
    assert step_of(tmp_path) == 2  # two of four items a process, or the end of the first epoch


def test_a_process_ends_after_the_one_that_started_it() -> None:
    """A first process that is killed, or ended before a run has begun, leaves none behind that waits for it."""
    reading, writing = os.pipe()
    if (first := os.fork()) == 0:
        if os.fork() == 0:
            end_with_parent(seconds=0)
            os.write(writing, b"waits")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 5)  # it waits: end
        os._exit(0)
    os.waitpid(first, 0)
    os.close(writing)
    assert select.select([reading], [], [], 20)[0], "the pipe closes as the process ends"
    assert os.read(reading, 5) == b""
    os.close(reading)
