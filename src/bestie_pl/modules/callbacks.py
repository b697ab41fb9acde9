"""Callbacks that write what a run found: scores, predictions, pictures. All files appear complete or not at all."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from pytorch_lightning.utilities import rank_zero_only

from bestie_pl.data.files import write_json
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.drawing import Picture, draw_points, overlay, sheet, to_picture, write_picture
from bestie_pl.ops.masks import paint
from bestie_pl.structures import Batch, Instances


def environment() -> dict[str, str]:
    """Date, versions and machine, for files that hold measured numbers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{package: version(package) for package in ("bestie-pl", "torch", "pytorch-lightning", "timm")},
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
            "refine_at_test": getattr(module, "refine_at_test", None),
            "mirror": getattr(module, "mirror", None),
            "test_scales": getattr(module, "test_scales", None),
            "average_offsets": getattr(module, "average_offsets", None),
            "ground_truth_used": list(getattr(data, "leak_notes", ())),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "scores": scores,
            "legend": getattr(module, "legend", None),
            "environment": environment(),
        }
        write_json(Path(trainer.default_root_dir, f"scores_{stage}.json"), content)


class PredictionWriter(BasePredictionWriter):
    """Write each image's predicted instances to ``<output_dir>/<image name>.json`` as soon as they are known.

    A file is a list of ``{"image", "class", "category_id", "score", "segmentation"}``, best score first, with masks as
    COCO run-length codes at the image's original size. In a distributed run every process writes its own images.
    Predictions that are no instances are left to other writers.

    Args:
        output_dir: Folder for the files; ``predictions`` in the run's folder if omitted.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__("batch")
        self.output_dir = output_dir

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        if not all(isinstance(instances, Instances) for instances in prediction):
            return
        folder = Path(self.output_dir or Path(trainer.default_root_dir, "predictions"))
        data = getattr(trainer, "datamodule", None)
        names = getattr(pl_module, "class_names", None)
        categories = getattr(data, "category_ids", None)
        for name, instances in zip(batch.names, prediction, strict=True):
            write_json(
                folder / f"{name}.json",
                [_record(name, instances, row, names, categories) for row in range(len(instances))],
            )


def _record(
    image: str, instances: Instances, row: int, names: Sequence[str] | None, categories: Sequence[int] | None
) -> dict[str, Any]:
    mask, number = instances.masks[row], int(instances.classes[row])
    return {
        "image": image,
        "class": names[number] if names else number,
        "category_id": categories[number] if categories else number + 1,
        "score": round(float(instances.scores[row]), 6),
        "segmentation": {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")},
    }


class PictureWriter(Callback):
    """Draw what the labels and the predictions look like, into ``pictures/`` in the run's folder.

    ``training.png`` at the end of ``fit``: the last training crops with cues, semantic map, pseudo labels, refined
    labels and prediction of the trained network, and the truth where the data module reads it. ``test.png``: the first
    test images.

    Args:
        count: Images a sheet.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._last: Batch | None = None
        self._tested: list[list[Picture]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch."""
        self._last = batch

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last training batch."""
        if self._last is None or not isinstance(pl_module, BestieModule):
            return
        batch = replace(self._last, original_sizes=self._last.sizes)  # drawn as cropped
        was_training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            size = (batch.images.shape[-2], batch.images.shape[-1])
            refined = (
                pl_module.refine(pl_module.model.enlarge(pl_module(batch.images), size), batch)
                if pl_module.refinement
                else None
            )
            predictions, _ = pl_module.predict_instances(batch)
        pl_module.train(was_training)
        assert batch.semantic is not None and batch.pseudo is not None
        columns = ["image and cues", "semantic map", "pseudo labels", "refined labels", "prediction", "ground truth"]
        rows: list[list[Picture]] = []
        for b in range(min(self.count, len(batch))):
            image = to_picture(batch.images[b])
            mine = batch.cues.image == b
            row = [
                draw_points(image, batch.cues.yx[mine], batch.cues.classes[mine]),
                overlay(image, batch.semantic[b]),
                overlay(image, _from_one(batch.pseudo.ids[b])),
                overlay(image, _from_one(refined.ids[b])) if refined is not None else image,
                _draw_prediction(image, predictions[b]),
                overlay(image, _from_one(batch.truth.ids[b])) if batch.truth is not None else image,
            ]
            rows.append(row)
        keep = [True, True, True, refined is not None, True, batch.truth is not None]
        shown = [[p for p, k in zip(row, keep, strict=True) if k] for row in rows]
        _save(trainer, "training.png", shown, [c for c, k in zip(columns, keep, strict=True) if k])

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier test."""
        self._tested = []

    @rank_zero_only
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw images until there are enough."""
        wanted = min(self.count - len(self._tested), len(batch))
        if wanted <= 0 or not isinstance(pl_module, BestieModule):
            return
        predictions, semantic = pl_module.predict_instances(batch)
        for b in range(wanted):
            height, width = batch.sizes[b]
            image = to_picture(batch.images[b, :, :height, :width])
            if batch.sizes[b] != batch.original_sizes[b]:
                size = batch.original_sizes[b]
                image = to_picture(
                    torch.nn.functional.interpolate(batch.images[b : b + 1, :, :height, :width], size)[0]
                )
            row = [image, overlay(image, semantic[b]), _draw_prediction(image, predictions[b])]
            if batch.references is not None:
                row.append(overlay(image, paint(batch.references[b])))
            self._tested.append(row)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was drawn."""
        if self._tested:
            titles = ["image", "predicted classes", "predicted instances", "ground truth"]
            _save(trainer, "test.png", self._tested, titles[: len(self._tested[0])])


def _from_one(ids: torch.Tensor) -> torch.Tensor:
    """Number the instances of one image from 1, so that their colours do not depend on the rest of the batch."""
    numbers, inverse = torch.unique(ids, return_inverse=True)
    shifted: torch.Tensor = inverse if 0 in numbers else inverse + 1
    return shifted


def _draw_prediction(image: Picture, instances: Instances) -> Picture:
    """All instances, whatever their scores; better ones over worse ones."""
    order = instances.scores.argsort()
    drawn = Instances(
        tuple(instances.masks[i] for i in order.tolist()),
        instances.classes[order],
        instances.scores[order],
        instances.size,
    )
    return overlay(image, paint(drawn))


def _save(trainer: pl.Trainer, name: str, rows: Sequence[Sequence[Picture]], titles: Sequence[str]) -> None:
    path = Path(trainer.default_root_dir, "pictures", name)
    write_picture(path, sheet(rows, titles))
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(f"pictures/{path.stem}", [str(path)])
