"""A trainer for tests: on the CPU, for two steps, and silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

SILENT: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Switches of a trainer that writes nothing and prints nothing."""


def make_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    """A silent trainer of two steps, whose folder is ``folder``; ``settings`` win over all that."""
    return pl.Trainer(**{**SILENT, "max_steps": 2, "default_root_dir": folder, **settings})
