"""Predicted instances as files, one an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from bestie_pl.data.files import below, write_json
from bestie_pl.structures import Instances


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
                below(folder, f"{name}.json"),
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
