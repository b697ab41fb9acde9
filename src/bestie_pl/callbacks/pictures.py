"""Sheets of what labels and predictions look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from bestie_pl.callbacks.run_folder import publish, run_folder
from bestie_pl.drawing import Picture, color_wheel, draw_points, heat, overlay, sheet, to_picture, write_picture
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.ops.masks import paint
from bestie_pl.structures import Batch, Instances


class PictureWriter(Callback):
    """Draw what the labels and the predictions look like, into ``pictures/`` in the run's folder.

    ``training.png`` at the end of ``fit``: the last training crops with cues, semantic map, pseudo labels, and from the
    trained network refined labels, centre heatmap (the largest of all classes), offset field (as a colour
    wheel: the hue says where an offset points, the strength how far) and prediction; and the truth where the data
    module reads it. ``test.png``: the first test images.

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
            maps = pl_module.model.enlarge(pl_module(batch.images), (batch.images.shape[-2], batch.images.shape[-1]))
            refined = pl_module.refine(maps, batch) if pl_module.refinement else None
            predictions, _ = pl_module.predict_instances(batch)
        pl_module.train(was_training)
        assert batch.semantic is not None and batch.pseudo is not None
        rows: list[dict[str, Picture]] = []
        for b in range(min(self.count, len(batch))):
            image = to_picture(batch.images[b])
            mine = batch.cues.image == b
            row = {
                "image and cues": draw_points(image, batch.cues.yx[mine], batch.cues.classes[mine]),
                "semantic map": overlay(image, batch.semantic[b]),
                "pseudo labels": overlay(image, _from_one(batch.pseudo.ids[b])),
            }
            if refined is not None:
                row["refined labels"] = overlay(image, _from_one(refined.ids[b]))
            row["centre heatmap"] = heat(image, maps.center_heatmap[b].amax(0))
            row["offset field"] = color_wheel(_inside(maps.offset_field[b], maps.semantic_logits[b]))
            row["prediction"] = _draw_prediction(image, predictions[b])
            if batch.truth is not None:
                row["ground truth"] = overlay(image, _from_one(batch.truth.ids[b]))
            rows.append(row)
        _save(trainer, "training.png", [list(row.values()) for row in rows], list(rows[0]))

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
        predictions, semantic = outputs
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


def _inside(field: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The offsets (2, H, W) of pixels that are no background; others belong to no object, and nobody teaches them."""
    return field * (logits.argmax(0) > 0)


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
    path = run_folder(trainer) / "pictures" / name
    write_picture(path, sheet(rows, titles))
    publish(trainer, f"pictures/{name}")
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(f"pictures/{path.stem}", [str(path)])
