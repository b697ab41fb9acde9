"""Sheets of what labels and predictions look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from bestie_pl.callbacks.loggers import log_picture
from bestie_pl.callbacks.monitoring import TrainingMonitor
from bestie_pl.callbacks.run_folder import publish, run_folder
from bestie_pl.drawing import Picture, color_wheel, draw_points, fitted, heat, overlay, sheet, to_picture, write_picture
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.ops.labels import pseudo_labels
from bestie_pl.ops.masks import paint
from bestie_pl.structures import Batch, Instances

MOMENTS = 4
"""A training is drawn so many times, and after its first step."""
LONGEST_COURSE = 8
"""Rows of ``course.png`` at most; of more, every second one is left out."""


class PictureWriter(Callback):
    """Draw what the labels and the predictions look like, into ``pictures/`` in the run's folder.

    ``training.png``, every so many steps and at the end of ``fit``: the first training crops with cues, semantic map,
    pseudo labels, and from the network refined labels, centre heatmap (the largest of all classes), offset field (as a
    colour wheel: the hue says where an offset points, the strength how far) and prediction; and the truth where the
    data module reads it. ``course.png``: one of these crops at several steps, a row each (paper, figure 5).

    ``test.png``: the first test images. ``best.png``, ``worst.png``: the test images with the highest and lowest mean
    of mAP25, mAP50, mAP70 and mAP75 in the image itself; without ground truth, mean score of what was found.

    Args:
        count: Images a sheet.
        every_n_steps: Steps between two sheets of a training, which loggers get too; a quarter of it if omitted.
    """

    def __init__(self, count: int = 8, every_n_steps: int | None = None) -> None:
        if count < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise ValueError(f"count and every_n_steps must be at least 1, got {count} and {every_n_steps}")
        self.count, self.every_n_steps = count, every_n_steps
        self._interval = 0
        self._kept: Batch | None = None
        self._course: list[tuple[int, dict[str, Picture]]] = []
        self._tested: list[list[Picture]] = []
        self._judged: list[Judged] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the moments."""
        steps = trainer.estimated_stepping_batches
        quarter = -(-int(steps) // MOMENTS) if 0 < steps < float("inf") else 0
        self._interval = quarter if self.every_n_steps is None else self.every_n_steps
        self._kept, self._course = None, []

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch, and draw it after the first step and every so many."""
        if not isinstance(pl_module, BestieModule):
            return
        is_first = self._kept is None
        if is_first:
            self._kept = replace(batch, original_sizes=batch.sizes).to("cpu")  # drawn as cropped
        step, drawn = trainer.global_step, self._course[-1][0] if self._course else 0
        if is_first or (self._interval and step % self._interval == 0 and step != drawn):
            self._draw_training(trainer, pl_module)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TrainingMonitor):
                    callback.skip()

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what the training has come to."""
        if isinstance(pl_module, BestieModule) and self._kept is not None:
            if not self._course or self._course[-1][0] != trainer.global_step:
                self._draw_training(trainer, pl_module)
            if len(self._course) > 1:
                rows = [list(row.values()) for _, row in self._course]
                captions = [f"after {step} step{'s' * (step != 1)}" for step, _ in self._course]
                _save(trainer, "course.png", rows, list(self._course[0][1]), captions)

    def _draw_training(self, trainer: pl.Trainer, module: BestieModule) -> None:
        assert self._kept is not None
        batch = self._kept.to(module.device)
        if batch.pseudo is None or batch.components is None:  # of a data module that leaves labels to the module
            batch = pseudo_labels(batch, supervision=module.supervision, rules=module.rules, geometry=module.geometry)
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        rows = _training_rows(module, batch, self.count)
        for part, training in modes:
            part.training = training
        _save(trainer, "training.png", [list(row.values()) for row in rows], list(rows[0]))
        if not self._course:
            assert batch.pseudo is not None
            labels = batch.pseudo.image[batch.pseudo.area > 0].bincount(minlength=len(batch))
            self._shown = int(labels[: self.count].argmax())
        self._course.append((trainer.global_step, rows[self._shown]))
        if len(self._course) > LONGEST_COURSE:
            del self._course[1::2]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier test."""
        self._tested, self._judged = [], []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images, and those that are among the best or the worst so far."""
        if not isinstance(pl_module, BestieModule):
            return
        predictions, semantic = outputs
        for b in range(len(batch)):
            reference = None if batch.references is None else batch.references[b]
            judged = _judge(batch.names[b], predictions[b], reference, pl_module.num_classes)
            is_first = trainer.is_global_zero and len(self._tested) < self.count
            is_extreme = judged is not None and self._is_extreme(judged.quality)
            if not (is_first or is_extreme):
                continue
            row = _test_row(batch, b, predictions[b], semantic[b])
            if is_first:
                self._tested.append(row)
            if judged is not None and is_extreme:
                self._judged = _extremes([*self._judged, judged._replace(row=row)], self.count)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was drawn, from all processes."""
        judged = self._judged
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, judged)
            judged = _extremes([one for part in parts for one in part], self.count)
        if not trainer.is_global_zero:
            return
        titles = ["image", "predicted classes", "predicted instances", "ground truth"]
        if self._tested:
            _save(trainer, "test.png", self._tested, titles[: len(self._tested[0])])
        middle = -(-len(judged) // 2)
        for name, chosen in (("best.png", judged[:middle]), ("worst.png", judged[middle:][::-1])):
            if chosen:
                rows = [one.row for one in chosen]
                _save(trainer, name, rows, titles[: len(rows[0])], [one.caption for one in chosen])

    def _is_extreme(self, quality: float) -> bool:
        best, worst = self._judged[: self.count], self._judged[-self.count :]
        return len(self._judged) < 2 * self.count or quality > best[-1].quality or quality < worst[0].quality


class Judged(NamedTuple):
    """A test image: how good its prediction is, in numbers and words, and its row of a sheet."""

    quality: float
    name: str
    caption: str
    row: list[Picture]


def _judge(name: str, prediction: Instances, reference: Instances | None, num_classes: int) -> Judged | None:
    """Quality of a prediction in [0, 1]; None for an image that holds no object."""
    found = f"{len(prediction)} found"
    if reference is None:
        quality = float(prediction.scores.mean()) if len(prediction) else 0.0
        return Judged(quality, name, f"{name}: mean score {quality:.2f}, {found}", [])
    objects = len(reference) if reference.crowd is None else int((~reference.crowd).sum())
    if objects == 0:
        return None
    metric = VOCInstanceAP(num_classes, sync_on_compute=False)
    metric.update([prediction], [reference], [name])
    quality = float(metric.compute()["per_class"].nanmean())
    return Judged(quality, name, f"{name}: mean mAP {100 * quality:.0f} %, {objects} objects, {found}", [])


def _extremes(judged: Sequence[Judged], count: int) -> list[Judged]:
    """The best and the worst, at most ``count`` of each, best first; of equal ones by name."""
    order = sorted(judged, key=lambda one: (-one.quality, one.name))
    return order if len(order) <= 2 * count else order[:count] + order[-count:]


@torch.no_grad()
def _training_rows(module: BestieModule, batch: Batch, count: int) -> list[dict[str, Picture]]:
    """A row of pictures by title for each image."""
    maps = module.model.enlarge(module(batch.images), (batch.images.shape[-2], batch.images.shape[-1]))
    refined = module.refine(maps, batch) if module.refinement else None
    predictions, _ = module.predict_instances(batch)
    assert batch.semantic is not None and batch.pseudo is not None
    # one scale for all moments: the offsets of an untrained network are short
    longest = min(batch.images.shape[-2:]) / 4
    rows: list[dict[str, Picture]] = []
    for b in range(min(count, len(batch))):
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
        row["offset field"] = color_wheel(_inside(maps.offset_field[b], maps.semantic_logits[b]), longest=longest)
        row["prediction"] = _draw_prediction(image, predictions[b])
        if batch.truth is not None:
            row["ground truth"] = overlay(image, _from_one(batch.truth.ids[b]))
        rows.append(row)
    return rows


def _test_row(batch: Batch, b: int, prediction: Instances, semantic: torch.Tensor) -> list[Picture]:
    height, width = batch.sizes[b]
    image = to_picture(batch.images[b, :, :height, :width])
    if batch.sizes[b] != batch.original_sizes[b]:
        size = batch.original_sizes[b]
        image = to_picture(torch.nn.functional.interpolate(batch.images[b : b + 1, :, :height, :width], size)[0])
    row = [image, overlay(image, semantic), _draw_prediction(image, prediction)]
    if batch.references is not None:
        row.append(overlay(image, paint(batch.references[b])))
    return [fitted(picture) for picture in row]


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


def _save(
    trainer: pl.Trainer,
    name: str,
    rows: Sequence[Sequence[Picture]],
    titles: Sequence[str],
    captions: Sequence[str] | None = None,
) -> None:
    path = run_folder(trainer) / "pictures" / name
    write_picture(path, sheet(rows, titles, captions=captions))
    publish(trainer, f"pictures/{name}")
    log_picture(trainer, f"pictures/{path.stem}", path)
