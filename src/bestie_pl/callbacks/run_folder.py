"""The folder of this run, as callbacks find it."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bestie_pl.modules.run_folders import link_newest


class RunFolder(Callback):
    """Knows where this run of the command line writes; without it, that is ``trainer.default_root_dir``.

    Args:
        root: The folder of all runs, where links lead to the newest.
        folder: This run's own. The other processes take the first one's.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree on one folder."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))


def run_folder(trainer: pl.Trainer) -> Path:
    """Where this run writes what is about the run itself."""
    found = _found(trainer)
    return found.folder if found is not None else Path(trainer.default_root_dir)


def root_of(trainer: pl.Trainer) -> Path | None:
    """The folder of all runs; None where a run has no folder of its own."""
    found = _found(trainer)
    return found.root if found is not None else None


def publish(trainer: pl.Trainer, name: str) -> None:
    """Let the folder of all runs lead to the file of this name that the newest run has written."""
    root = root_of(trainer)
    if root is not None and trainer.is_global_zero:
        link_newest(root, name)


def _found(trainer: pl.Trainer) -> RunFolder | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, RunFolder)), None)
