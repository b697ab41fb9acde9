"""What writers share that measure their files: all images, those of earlier runs included, in one report."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torchmetrics import Metric

from bestie_pl.callbacks import verdicts
from bestie_pl.callbacks.resume import ResumableWriter, images_of
from bestie_pl.data.samples import Sample


class ReportingWriter(ResumableWriter):
    """A ``ResumableWriter`` whose ``report`` covers also what earlier runs have written."""

    @abstractmethod
    def measure_again(self, trainer: pl.Trainer, sample: Sample) -> None:
        """Add the file of an image that an earlier run finished to the figures."""

    @abstractmethod
    def report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the figures, in every process, and let the first one write and tell them."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Measure this process's share of the images that were left out, and report."""
        if stage == "predict" and self.applies(trainer, pl_module):
            images = images_of(trainer)
            for index in self.left_out[trainer.global_rank :: trainer.world_size]:
                assert images is not None  # who left them out knows them
                self.measure_again(trainer, images[index])
            self.report(trainer, pl_module)
        super().teardown(trainer, pl_module, stage)


def computed(trainer: pl.Trainer, metric: Metric) -> Any:
    """A metric over the images of all processes, each of which may be without any; all of them call this."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*before the ``update`` method.*")
        if trainer.world_size > 1:
            metric.to(trainer.strategy.root_device)  # states are gathered on the device of the processes
        return metric.compute()


def tell(subject: str, verdict: str) -> None:
    """A stage's verdict on the screen, as a warning unless it is good."""
    show = rank_zero_info if verdict.startswith(verdicts.GOOD) else rank_zero_warn
    show(f"{subject}: {verdict}.")
