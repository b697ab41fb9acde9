"""What a run says on the screen: what it trains, scores as they come, and where everything is in the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm  # type: ignore[import-untyped]  # a requirement of Lightning

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.run_folder import root_of, run_folder
from bestie_pl.modules.run_folders import CHECKPOINTS, LAST

FIRST = ("map50", "map25", "map70", "coco_ap", "miou")
"""Scores that stand first in a line, where there are any."""

SHOWN = 5
"""Scores in a line; all are in the log."""


class Screen(Callback):
    """Print a few lines about a run: network, steps and device; the scores of each validation; results and paths.

    Lines go to standard output, above a progress bar where there is one. Only the first process prints.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._first_step = 0
        self._validation = ""

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is trained."""
        self._start, self._first_step, self._validation = time.perf_counter(), trainer.global_step, ""
        count = sum(parameter.numel() for parameter in pl_module.parameters())
        steps = trainer.estimated_stepping_batches
        processes = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
        length = f"{steps:.0f} steps" if 0 < steps < float("inf") else "no limit of steps"
        going_on = f", from step {trainer.global_step}" if trainer.global_step else ""
        device = trainer.strategy.root_device
        name = type(pl_module).__name__
        _say(f"{name}: {count / 1e6:.1f} M parameters on {device}{processes}, {length}{going_on}")

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the scores of a validation within ``fit``."""
        scores = main_scores(trainer.callback_metrics, "val")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and scores:
            self._validation = f"validation after {trainer.global_step} steps: {scores}"
            _say(self._validation)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what came out, and where it is."""
        for line in self._outcome(trainer):
            _say(line)

    def _outcome(self, trainer: pl.Trainer) -> Iterator[str]:
        steps, seconds = trainer.global_step - self._first_step, time.perf_counter() - self._start
        loss = trainer.callback_metrics.get("train/loss")
        parts = [f"{steps} steps in {_duration(seconds)}", "" if loss is None else f"loss {float(loss):.4g}"]
        yield "trained " + "; ".join(filter(None, [*parts, self._validation]))
        checkpoint, folder = _checkpoint(trainer), run_folder(trainer)
        if checkpoint is not None:
            yield f"  checkpoint  {checkpoint}"
        if folder.is_dir():
            yield f"  this run    {folder}  (`bestie-pl report {root_of(trainer) or folder}` shows it)"

    @rank_zero_only
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say where the scores are, below Lightning's table of them."""
        path = run_folder(trainer) / f"scores_{'test' if stage == 'test' else 'val'}.json"
        if stage in ("validate", "test") and path.is_file():
            _say(f"scores in {path}")

    @rank_zero_only
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the predictions are; writers of cues and maps say so themselves, with figures."""
        for writer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(writer, PredictionWriter) and writer.applies(trainer, pl_module):
                _say(f"predictions in {writer.folder(trainer)}")


def main_scores(metrics: Mapping[str, Any], stage: str) -> str:
    """The most important scores of a stage in a line, without those of single classes; empty if there are none.

    >>> main_scores({"val/miou": 0.5, "val/map50": 0.25, "val/ap50/cat": 0.1, "train/loss": 3.0}, "val")
    'map50 0.250, miou 0.500'
    """
    scores = {}
    for name, value in metrics.items():
        found, _, rest = name.partition("/")
        note = found.removeprefix(stage).strip("_")
        if found.startswith(stage) and "/" not in rest:
            scores[rest] = f"{note} {rest} {float(value):.3f}".strip()
    order = [name for name in FIRST if name in scores] + [name for name in scores if name not in FIRST]
    return ", ".join(scores[name] for name in order[:SHOWN])


def _checkpoint(trainer: pl.Trainer) -> Path | None:
    """The newest state, by the name that stays."""
    root = root_of(trainer)
    link = None if root is None else root / CHECKPOINTS / LAST
    if link is not None and link.exists():
        return link
    kept = next((path for c in trainer.checkpoint_callbacks if (path := getattr(c, "best_model_path", ""))), "")
    return Path(kept) if kept else None


def _duration(seconds: float) -> str:
    """As people say it.

    >>> [_duration(seconds) for seconds in (4.26, 75, 7322)]
    ['4.3 s', '1 min 15 s', '2 h 2 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _say(line: str) -> None:
    tqdm.write(line)  # above any bar, and also where none is
    sys.stdout.flush()
