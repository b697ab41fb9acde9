"""A training that is stopped and resumed equals one that is not, to the last digit; checkpoints are whole or absent."""

from __future__ import annotations

import errno
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from bestie_pl.callbacks.checkpoints import NewestState, WholeFileIO
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.structures import Batch

Seen = list[tuple[tuple[str, ...], float]]


class Tiny(pl.LightningModule):
    """Everything that a state consists of: weights, batch statistics, random draws, momentum, a schedule."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(1))
        self.fails_at = fails_at

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.network(batch.images).square().mean()
        if self.global_step == self.fails_at:
            raise RuntimeError("in the middle of a step")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Look at nothing."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stop(pl.Callback):
    """Save and stop after a step, as a signal does."""

    def __init__(self, after: int | None) -> None:
        self.after = after
        self.seen: Seen = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append((batch.names, float(batch.images.sum())))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.after:
            trainer.checkpoint_callbacks[0].keep(trainer)  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def train(
    root: Path,
    folder: Path,
    *,
    stop: int | None = None,
    goes_on: bool = False,
    workers: int = 0,
    fails_at: int | None = None,
    **settings: Any,
) -> tuple[dict[str, Tensor], Seen, pl.Trainer]:
    """Train ``Tiny`` on 16 images in batches of 4."""
    pl.seed_everything(1, verbose=False)
    data = ShapesDataModule(
        str(root),
        **{"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64, "clutter": 1, "generator_seed": 0},
        **{"crop_size": 64, "batch_size": 4, "num_workers": workers},
    )
    module, callback = Tiny(fails_at), Stop(stop)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, NewestState()],
        plugins=[WholeFileIO()],
        **settings,
    )
    try:
        trainer.fit(module, data, ckpt_path=folder / "checkpoints" / "last.ckpt" if goes_on else None)
    except SystemExit:
        assert stop is not None
    return module.state_dict(), callback.seen, trainer


CASES = [
    ({"max_steps": 9, "limit_val_batches": 0}, 0, [1, 4, 5]),
    ({"max_steps": 9}, 0, [3, 4]),
    ({"max_steps": 9, "limit_val_batches": 0}, 2, [3, 4]),
    ({"max_epochs": 2, "limit_val_batches": 0}, 0, [3, 4]),
    ({"max_epochs": 2}, 2, [3, 4]),
    ({"max_epochs": 2, "val_check_interval": 2}, 0, [2, 6]),
    ({"max_steps": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0}, 0, [1, 2]),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("settings", "workers", "stops"), CASES, ids=str)
def test_stopped_and_resumed_equals_not_stopped(
    settings: dict[str, Any], workers: int, stops: list[int], shapes_folder: Path, tmp_path: Path
) -> None:
    """With max_steps and max_epochs, with and without workers and validation, in mid-epoch and between epochs."""
    whole, seen, trainer = train(shapes_folder, tmp_path / "whole", workers=workers, **settings)
    for stop in stops:
        folder = tmp_path / str(stop)
        _, first, _ = train(shapes_folder, folder, stop=stop, workers=workers, **settings)
        resumed, second, again = train(shapes_folder, folder, goes_on=True, workers=workers, **settings)
        assert first + second == seen, f"other images or draws after step {stop}"
        assert all(torch.equal(values, resumed[name]) for name, values in whole.items()), f"after step {stop}"
        assert again.global_step == trainer.global_step and again.current_epoch == trainer.current_epoch
        if "val_check_interval" not in settings:  # what loggers count
            assert again.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step


def step_of(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def test_a_failure_between_steps_is_saved_and_one_within_a_step_is_not(shapes_folder: Path, tmp_path: Path) -> None:
    """In the middle of a step, batch statistics have seen a batch that the weights have not."""
    settings = {"max_steps": 8, "limit_val_batches": 0}
    image = next((shapes_folder / "JPEGImages").glob("train_*"))
    whole = image.read_bytes()
    try:
        image.write_bytes(b"no image")
        with pytest.raises(ValueError, match=image.name):
            train(shapes_folder, tmp_path / "between", **settings)
    finally:
        image.write_bytes(whole)
    saved = list((tmp_path / "between").glob("checkpoints/step=*.ckpt"))
    if saved:  # the image may be the first that is read
        assert len(saved) == 1 and 0 < step_of(tmp_path / "between") < 4

    with pytest.raises(RuntimeError, match="middle of a step"):
        train(shapes_folder, tmp_path / "within", fails_at=6, **settings)
    assert step_of(tmp_path / "within") == 4  # of the epoch's end


def test_weights_that_are_not_finite_are_never_written(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = train(shapes_folder, tmp_path, max_steps=4, limit_val_batches=0)[2]
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 5
    next(trainer.lightning_module.parameters()).data.fill_(torch.inf)
    trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ValueError, match=r"not finite after step 5, in network\.0\.weight"):
        trainer.checkpoint_callbacks[0].keep(trainer)  # type: ignore[attr-defined]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step=2.ckpt"
    io = WholeFileIO()
    io.save_checkpoint({"a": torch.zeros(3)}, path)
    whole = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"step=2.ckpt: the checkpoint cannot be written \(No space left on device\)"):
        io.save_checkpoint({"a": torch.ones(3)}, path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_nothing_is_staged_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder may be small or on another disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    stale = tmp_path / ".step=1.ckpt.part-abcdefgh"
    stale.write_bytes(b"of a killed process")
    os.utime(stale, (time.time() - 100,) * 2)
    WholeFileIO().save_checkpoint({"a": 1}, tmp_path / "step=2.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_checkpoint_on_the_web_runs_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "good.ckpt")
    torch.save({"state_dict": Code(tmp_path / "touched")}, tmp_path / "bad.ckpt")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with HTTPServer(("127.0.0.1", 0), handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            good = WholeFileIO().load_checkpoint(f"{address}/good.ckpt")
            with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
                WholeFileIO().load_checkpoint(f"{address}/bad.ckpt")
        finally:
            server.shutdown()
    assert good["state_dict"]["weight"].equal(torch.ones(2)) and not (tmp_path / "touched").exists()
