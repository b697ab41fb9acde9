"""Predicted instances as files, one an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from bestie_pl.callbacks.resume import ResumableWriter
from bestie_pl.callbacks.semantic_maps import MakesActivations, MakesMaps
from bestie_pl.data.files import write_json
from bestie_pl.structures import Instances


class PredictionWriter(ResumableWriter):
    """Write each image's predicted instances to ``<output_dir>/<image name>.json`` as soon as they are known.

    A file is a list of ``{"image", "class", "category_id", "score", "segmentation"}``, best score first, with masks as
    COCO run-length codes at the image's original size. Files appear complete or not at all; a run that was interrupted
    goes on with the images that are missing. In a distributed run every process writes its own images. Does nothing for
    modules that make maps or cues.

    Args:
        output_dir: Folder for the files; ``predictions`` in the folder of the runs if omitted.
        overwrite: Predict and write all images anew.
    """

    suffix = ".json"

    def __init__(self, output_dir: str | None = None, *, overwrite: bool = False) -> None:
        super().__init__(overwrite)
        self.output_dir = output_dir

    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the predictions go."""
        return Path(self.output_dir or Path(trainer.default_root_dir, "predictions"))

    def applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the module may predict instances."""
        return not isinstance(pl_module, (MakesMaps, MakesActivations))

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
        data = getattr(trainer, "datamodule", None)
        names = getattr(pl_module, "class_names", None)
        categories = getattr(data, "category_ids", None)
        for name, instances in zip(batch.names, prediction, strict=True):
            write_json(
                self._file(trainer, name),
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
