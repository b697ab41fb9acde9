"""Average precision of masks as COCO counts it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from bestie_pl.metrics.base import ImageMetric, ImageRecord
from bestie_pl.structures import Instances

MAX_DETECTIONS = 100
"""Predictions of a class that count in an image, the surest ones. Source: COCO."""


@dataclass(frozen=True, eq=False)
class _Coded(ImageRecord):
    """An image's run-length codes: (counts, class, score) of predictions, (counts, class, crowd) of references."""

    size: tuple[int, int]
    predictions: tuple[tuple[bytes, int, float], ...]
    references: tuple[tuple[bytes, int, bool], ...]


class COCOInstanceAP(ImageMetric[_Coded]):
    """COCO's mask AP over the overlaps 0.5, 0.55, ..., 0.95, and at 0.5 and 0.75, for objects of all sizes.

    The numbers are ``pycocotools.cocoeval.COCOeval``'s. References flagged ``crowd`` are no objects, and predictions
    inside them do not count. Of equal scores the earlier counts first, images in the order of their names. A class
    without objects has no precision (NaN) and is left out of the mean.

    The state holds run-length codes; every process computes the result from all of them.

    Args:
        num_classes: Classes without background.
        kwargs: Of ``torchmetrics.Metric``.
    """

    def _record(self, name: str, prediction: Instances, reference: Instances) -> _Coded:
        crowd = [False] * len(reference) if reference.crowd is None else reference.crowd.tolist()
        return _Coded(
            name=name,
            size=prediction.size,
            predictions=_rows(prediction, prediction.scores.tolist()),
            references=_rows(reference, crowd),
        )

    def compute(self) -> dict[str, Tensor]:
        """Scores in [0, 1].

        Returns:
            ``ap``, ``ap50``, ``ap75``: mean over the classes that have objects, NaN if none has. ``per_class``: (C,),
            ``ap`` of each class, NaN for a class without objects.
        """
        precision = self._precision()  # (overlaps, recalls, classes), NaN for classes without objects
        return {
            "ap": precision.nanmean().float().to(self.device),
            "ap50": precision[0].nanmean().float().to(self.device),
            "ap75": precision[5].nanmean().float().to(self.device),
            "per_class": precision.mean((0, 1)).float().to(self.device),
        }

    def _precision(self) -> Tensor:
        images = self._images()
        truth = (
            {**_annotation(i, image.size, code, c), "iscrowd": int(crowd)}
            for i, image in enumerate(images)
            for code, c, crowd in image.references
        )
        found = (
            {**_annotation(i, image.size, code, c), "score": score}
            for i, image in enumerate(images)
            for code, c, score in image.predictions
        )
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step
            evaluation = COCOeval(self._index(images, truth), self._index(images, found), "segm")
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0, 0]
        return torch.from_numpy(np.where(precision < 0, np.nan, precision))

    def _index(self, images: list[_Coded], annotations: Iterable[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": image.size[0], "width": image.size[1]} for i, image in enumerate(images)],
            "categories": [{"id": c} for c in range(self.num_classes)],
            # from 1: COCOeval reads a match with number 0 as none
            "annotations": [{**annotation, "id": i} for i, annotation in enumerate(annotations, 1)],
        }
        coco.createIndex()
        return coco


def _rows(instances: Instances, last: list[Any]) -> tuple[tuple[bytes, int, Any], ...]:
    counts = (mask["counts"] for mask in instances.masks)
    return tuple(zip(counts, instances.classes.tolist(), last, strict=True))


def _annotation(image: int, size: tuple[int, int], counts: bytes, category: int) -> dict[str, Any]:
    code = {"size": list(size), "counts": counts}
    return {"image_id": image, "category_id": category, "segmentation": code, "area": int(codec.area(code))}
