"""Writers of ``predict`` that go on where an interrupted run stopped, and never mix files of different makings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info

from bestie_pl.callbacks.provenance import claim, provenance
from bestie_pl.data.files import below
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import EvaluationSamples
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.run_folders import sweep


class ResumableWriter(BasePredictionWriter):
    """Writes after each batch; images whose files are all there are not even read again.

    Of several such writers in a run each says which images it has finished; an image is left out if all say so. The
    first process looks, so that all agree, and nothing is written before. With a data module that is not an
    ``InstanceDataModule`` every image is predicted again.

    ``made_by.yaml`` in the folder says what made the files (weights, settings, version); a run that would make them
    otherwise is refused (``callbacks.provenance``). A prediction is made anew where its image, or what it rests on
    besides (given points or tags, a map that is imported), is newer. At the end every image must have its file,
    whichever process was to write it.

    Args:
        overwrite: Predict and write all images anew, also in the place of files of another making.
    """

    suffix: str
    """What the name of an image's file ends in."""
    regardless_of: ClassVar[frozenset[str]] = frozenset()
    """Settings of modules that change nothing in these files."""

    def __init__(self, overwrite: bool = False) -> None:
        super().__init__("batch")
        self.overwrite = overwrite
        self.left_out: list[int] = []
        self._has_claimed = False

    @abstractmethod
    def applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether this writer has something to do for the module."""

    @abstractmethod
    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the files go."""

    def settings(self) -> Mapping[str, Any]:
        """What of the writer's own settings decides what is in the files."""
        return {}

    def is_finished(self, trainer: pl.Trainer, name: str, after: float = 0.0) -> bool:
        """Whether the image has its file, one that is not older than the time ``after``."""
        file = self._file(trainer, name)
        return file.is_file() and file.stat().st_mtime >= after

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave out the finished images, as soon as the weights are known that they would be predicted with."""
        super().setup(trainer, pl_module, stage)
        self.left_out, self._has_claimed = [], False
        data = _data(trainer)
        if stage == "predict" and data is not None and self.applies(trainer, pl_module):
            data.predict_only(lambda: _unfinished(trainer, pl_module))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """With another data module, claim the folder at least."""
        if self.applies(trainer, pl_module) and not self._has_claimed and trainer.is_global_zero:
            _claim([self], trainer, pl_module, None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare files with images, when all processes have come here; another run with the same data decides anew."""
        _forget(trainer)
        images = images_of(trainer)
        if stage != "predict" or images is None or not self.applies(trainer, pl_module):
            return
        trainer.strategy.barrier("predicted")
        limit = trainer.limit_predict_batches  # 1 is one batch, 1.0 is all
        if trainer.is_global_zero and isinstance(limit, float) and limit == 1:
            names = images.split.names
            missing = [name for name in names if not self.is_finished(trainer, name)]
            if missing:
                raise ValueError(
                    f"{self.folder(trainer)}: {len(missing)} of {len(names)} images have no file, {missing[0]} among "
                    "them; the messages above may say why. Run the same again, which goes on with these"
                )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Another run with the same data module decides anew."""
        _forget(trainer)

    def _file(self, trainer: pl.Trainer, name: str) -> Path:
        return below(self.folder(trainer), f"{name}{self.suffix}")


def images_of(trainer: pl.Trainer) -> EvaluationSamples | None:
    """All images that ``predict`` is about, those left out included; None with a data module of another kind."""
    data = _data(trainer)
    images = None if data is None else data.datasets.get("predict")
    return images if isinstance(images, EvaluationSamples) else None


def below_root(trainer: pl.Trainer, folder: str) -> Path:
    """A folder as data modules understand it: below the data set's root unless it is absolute."""
    return Path(getattr(getattr(trainer, "datamodule", None), "root", ""), folder)


def _unfinished(trainer: pl.Trainer, module: pl.LightningModule) -> Sequence[int]:
    """Rows of the images that some writer has no file of; all writers claim their folders first."""
    images = images_of(trainer)
    assert images is not None  # its loader asks
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    writers = [w for w in callbacks if isinstance(w, ResumableWriter) and w.applies(trainer, module)]
    problem = None
    if trainer.is_global_zero:
        try:
            _claim(writers, trainer, module, images.split.names)
        except ValueError as error:
            problem = str(error)
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise ValueError(problem)
    finished: list[int] = []
    if trainer.is_global_zero and not any(writer.overwrite for writer in writers):
        for index, name in enumerate(images.split.names):
            newest = max((_time(file) for file in _given(module, images, index)), default=0.0)
            if all(writer.is_finished(trainer, name, newest) for writer in writers):
                finished.append(index)
    finished = trainer.strategy.broadcast(finished)
    if finished:
        rank_zero_info(f"{len(finished)} of {len(images)} images were finished before and are left out.")
    for writer in writers:
        writer.left_out, writer._has_claimed = finished, True
    done = set(finished)
    return [row for row in range(len(images)) if row not in done]


def _given(module: pl.LightningModule, images: EvaluationSamples, index: int) -> Iterator[Path | None]:
    """The files that the prediction for an image rests on besides weights: it, its points and tags, a map to import."""
    split = images.split
    yield Path(split.images[index])
    if isinstance(module, ImportedMaps):
        yield module.source.file_of(split.names[index])
    if getattr(module, "reads_points", False):
        yield split.cue_file(index)
    if getattr(module, "reads_tags", False):
        yield split.tags_file


def _time(file: Path | None) -> float:
    """When a file was last changed; 0 where there is none, or where it is a member of a shard."""
    return file.stat().st_mtime if file is not None and file.is_file() else 0.0


def _claim(
    writers: Sequence[ResumableWriter],
    trainer: pl.Trainer,
    module: pl.LightningModule,
    names: Sequence[str] | None,
) -> None:
    """Say in the folders what makes their files, or raise ValueError; for the first process."""
    for writer in writers:
        folder = writer.folder(trainer)
        sweep(folder, age=5)
        # which images there are is known of our own data modules alone
        files = None if names is None else [writer._file(trainer, name) for name in names]
        made_by = provenance(trainer, module, folder, writer.settings(), writer.regardless_of)
        claim(folder, made_by, writer.suffix, files, overwrite=writer.overwrite)


def _forget(trainer: pl.Trainer) -> None:
    data = _data(trainer)
    if data is not None:
        data.predict_rows = None


def _data(trainer: pl.Trainer) -> InstanceDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, InstanceDataModule) else None
