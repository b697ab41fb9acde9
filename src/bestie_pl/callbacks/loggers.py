"""Pictures and tables for the loggers that take them; a CSVLogger takes numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger


def log_picture(trainer: pl.Trainer, key: str, path: Path) -> None:
    """Give an image file to Weights & Biases and TensorBoard, at the current step."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(key, values, trainer.global_step, dataformats="HWC")


def log_table(trainer: pl.Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Give a table to Weights & Biases, and to TensorBoard as a text, at the current step."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            data = [list(row) for row in rows]
            logger.log_table(key, columns=list(columns), data=data, step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            cells = [list(columns), ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
            text = "\n".join(f"| {' | '.join(line)} |" for line in cells)
            logger.experiment.add_text(key, text, trainer.global_step)


def _text(value: str | float) -> str:
    return value.replace("|", "\\|") if isinstance(value, str) else f"{value:.3f}"
