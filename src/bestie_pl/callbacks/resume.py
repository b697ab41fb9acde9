"""Writers of ``predict`` that go on where an interrupted run stopped."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info

from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import EvaluationSamples


class ResumableWriter(BasePredictionWriter):
    """Writes after each batch; images whose files are all there are not even read again.

    Of several such writers in a run each says which images it has finished; an image is left out if all say so. The
    first process looks, so that all agree, and nothing is written before (Lightning waits after ``setup``). With a data
    module that is not an ``InstanceDataModule`` every image is predicted again.

    Args:
        overwrite: Predict and write all images anew.
    """

    def __init__(self, overwrite: bool = False) -> None:
        super().__init__("batch")
        self.overwrite = overwrite
        self.left_out: list[int] = []

    @abstractmethod
    def applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether this writer has something to do for the module."""

    @abstractmethod
    def is_finished(self, trainer: pl.Trainer, name: str) -> bool:
        """Whether all files of the image are there."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave out the finished images."""
        super().setup(trainer, pl_module, stage)
        self.left_out = []
        data, images = _data(trainer), images_of(trainer)
        if stage != "predict" or data is None or images is None or not self.applies(trainer, pl_module):
            return
        everyone = [c for c in _callbacks(trainer) if isinstance(c, ResumableWriter)]
        writers = [writer for writer in everyone if writer.applies(trainer, pl_module)]
        finished: list[int] = []
        if trainer.is_global_zero and not any(writer.overwrite for writer in writers):
            for index, name in enumerate(images.split.names):
                if all(writer.is_finished(trainer, name) for writer in writers):
                    finished.append(index)
        self.left_out = trainer.strategy.broadcast(finished)
        if self.left_out:
            if self is writers[0]:
                rank_zero_info(f"{len(self.left_out)} of {len(images)} images were finished before and are left out.")
            finished_rows = set(self.left_out)
            data.predict_only([row for row in range(len(images)) if row not in finished_rows])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Another run with the same data module decides anew."""
        _forget(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same after a failure."""
        _forget(trainer)


def images_of(trainer: pl.Trainer) -> EvaluationSamples | None:
    """All images that ``predict`` is about, those left out included; None with a data module of another kind."""
    data = _data(trainer)
    images = None if data is None else data.datasets.get("predict")
    return images if isinstance(images, EvaluationSamples) else None


def below_root(trainer: pl.Trainer, folder: str) -> Path:
    """A folder as data modules understand it: below the data set's root unless it is absolute."""
    return Path(getattr(getattr(trainer, "datamodule", None), "root", ""), folder)


def _forget(trainer: pl.Trainer) -> None:
    data = _data(trainer)
    if data is not None:
        data.predict_rows = None


def _data(trainer: pl.Trainer) -> InstanceDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, InstanceDataModule) else None


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks
