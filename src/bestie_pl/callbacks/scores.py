"""What a run scored, as a file that says what the scores rest on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from bestie_pl import __version__
from bestie_pl.data.files import write_json
from bestie_pl.modules.bestie import BestieModule


def environment() -> dict[str, str]:
    """Date, versions and machine, for files that hold measured numbers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "bestie-pl": __version__,
        **{package: version(package) for package in ("torch", "pytorch-lightning", "timm")},
        "python": platform.python_version(),
        "device": device,
        "cores": str(os.cpu_count()),
    }


class ScoreWriter(Callback):
    """Write the scores of ``validate`` and ``test`` to ``scores_<stage>.json`` in the run's folder.

    The file says what the scores rest on: supervision, recipe, oracle, views that predictions are averaged over, and
    every use of ground truth in training; and which scores are VOC's and which COCO's.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the scores of ``validate``; those of the validation within ``fit`` are in the logger's files."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the scores of ``test``."""
        self._write(trainer, pl_module, "test")

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(stage)}
        content = {
            "supervision": getattr(module, "supervision", None),
            "recipe": getattr(module, "recipe", None),
            "oracle": getattr(module, "oracle", None),
            "inference": asdict(module.inference) if isinstance(module, BestieModule) else None,
            "ground_truth_used": list(getattr(data, "leak_notes", ())),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "scores": scores,
            "legend": getattr(module, "legend", None),
            "environment": environment(),
        }
        write_json(Path(trainer.default_root_dir, f"scores_{stage}.json"), content)
