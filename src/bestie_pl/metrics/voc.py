"""Average precision of masks as PASCAL VOC counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestie_pl.metrics.base import ImageMetric, ImageRecord
from bestie_pl.ops.masks import mask_iou
from bestie_pl.structures import Instances


@dataclass(frozen=True, eq=False)
class _Matched(ImageRecord):
    """An image's predictions, the surest first, each with one flag a threshold, and the classes of its objects."""

    classes: tuple[int, ...]
    scores: tuple[float, ...]
    hits: tuple[tuple[bool, ...], ...]
    objects: tuple[int, ...]


class VOCInstanceAP(ImageMetric[_Matched]):
    """Mean average precision of masks at fixed overlaps: area under the precision-recall curve, not the 11-point form.

    Predictions are matched as they arrive, so the state holds no mask: a few numbers a prediction.

    - In an image, predictions of a class choose the object of highest overlap, the surest prediction first; who chooses
      an object that is taken is wrong, there is no second choice. Two empty masks match.
    - A class without objects has no precision (NaN) and is left out of the mean; a class with objects and no
      prediction has 0.
    - Equal scores count as "stable ascending sort, then reversed", within an image and over all images in the order
      of their names.
    - References flagged ``crowd`` are left out as if they were background: VOC has no such regions. Nor has its
      segmentation task ``difficult`` objects: all count. The border around them (255) belongs to none.

    Source: the authors' evaluation (the reference's VOC instance AP), with a defined order among equal scores.

    Args:
        num_classes: Classes without background.
        thresholds: Overlaps in (0, 1]; 0.25, 0.5, 0.7 and 0.75 are the paper's.
        kwargs: Of ``torchmetrics.Metric``.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] = (0.25, 0.5, 0.7, 0.75), **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.thresholds = tuple(thresholds)
        self._keys = tuple(f"map{round(100 * t)}" for t in self.thresholds)
        if not self.thresholds or not all(0 < t <= 1 for t in self.thresholds):
            raise ValueError(f"thresholds must be in (0, 1], got {self.thresholds}")
        if len(set(self._keys)) < len(self._keys):
            raise ValueError(f"thresholds must differ by a hundredth, got {self.thresholds}")

    def _record(self, name: str, prediction: Instances, reference: Instances) -> _Matched:
        order = _surest_first(prediction.scores)
        hits = match(prediction, reference, self.thresholds)[order]
        objects = reference.classes if reference.crowd is None else reference.classes[~reference.crowd]
        return _Matched(
            name=name,
            classes=tuple(prediction.classes[order].tolist()),
            scores=tuple(prediction.scores[order].tolist()),
            hits=tuple(map(tuple, hits.tolist())),
            objects=tuple(objects.tolist()),
        )

    def compute(self) -> dict[str, Tensor]:
        """Scores in [0, 1].

        Returns:
            ``map25``, ``map50``, ...: mean over the classes that have objects, NaN if none has. ``per_class``: (T, C).
        """
        images = self._images()
        classes = torch.tensor([c for image in images for c in image.classes], dtype=torch.int64)
        scores = torch.tensor([s for image in images for s in image.scores], dtype=torch.float32)
        hits = torch.tensor([h for image in images for h in image.hits], dtype=torch.bool)
        hits = hits.view(len(classes), len(self.thresholds))
        objects = torch.tensor([c for image in images for c in image.objects], dtype=torch.int64)
        counts = objects.bincount(minlength=self.num_classes).tolist()
        of_class = ((classes == c, count) for c, count in enumerate(counts))
        per_class = torch.stack([average_precision(hits[own], scores[own], count) for own, count in of_class], 1)
        means = per_class.nanmean(1).float().to(self.device)
        return {**dict(zip(self._keys, means, strict=True)), "per_class": per_class.float().to(self.device)}

    @property
    def _per_class_shape(self) -> tuple[int, ...]:
        return (len(self.thresholds), self.num_classes)


def match(predictions: Instances, references: Instances, thresholds: Sequence[float]) -> Tensor:
    """Which predictions of an image are true positives.

    Args:
        predictions: N instances; their scores decide who chooses first.
        references: M instances; those flagged ``crowd`` are left out.
        thresholds: T overlaps; the overlap itself suffices.

    Returns:
        (N, T) bool, in the order of the predictions.
    """
    kept = torch.ones(len(references), dtype=torch.bool) if references.crowd is None else ~references.crowd
    hits = torch.zeros(len(predictions), len(thresholds), dtype=torch.bool)
    if not len(predictions) or not kept.any():
        return hits
    order = _surest_first(predictions.scores)
    iou = mask_iou(predictions, references)[order][:, kept]
    iou = iou.nan_to_num(nan=torch.inf)  # both empty: nothing fits better
    iou[predictions.classes[order, None] != references.classes[kept]] = -1
    best, choice = iou.max(1).values, iou.argmax(1)
    # single precision: 7 pixels of 10 reach a threshold of 0.7
    claims = best[:, None] >= torch.tensor(thresholds, dtype=torch.float32)
    # the first to claim an object has it
    rank = torch.arange(len(order))[:, None]
    first = torch.full((iou.shape[1], len(thresholds)), len(order))
    first.scatter_reduce_(0, choice[:, None].expand_as(claims), rank.where(claims, len(order)), "amin")
    hits[order] = claims & (first[choice] == rank)
    return hits


def average_precision(hits: Tensor, scores: Tensor, objects: int) -> Tensor:
    """Area under the precision-recall curve, precision made monotone from the right.

    Args:
        hits: (N, T) bool, true positives.
        scores: (N,) of the predictions.
        objects: Number of objects of the class.

    Returns:
        (T,) float64: NaN without objects, 0 without predictions.

    >>> average_precision(torch.tensor([[True], [False], [True]]), torch.tensor([0.9, 0.8, 0.7]), 2)
    tensor([0.8333], dtype=torch.float64)
    """
    if objects == 0:
        return torch.full((hits.shape[1],), torch.nan, dtype=torch.float64)
    sorted_hits = hits[_surest_first(scores)].double()
    rank = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    precision = sorted_hits.cumsum(0) / rank[:, None]
    monotone = precision.flip(0).cummax(0).values.flip(0)
    return (sorted_hits * monotone).sum(0) / objects  # recall rises by 1 / objects at each true positive


def _surest_first(scores: Tensor) -> Tensor:
    """Descending order; the later of equal scores first, as in the reference."""
    return scores.argsort(stable=True).flip(0)
