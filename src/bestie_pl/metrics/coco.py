"""Average precision of masks as COCO counts it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from torch import Tensor

from bestie_pl.metrics.base import ImageMetric, ImageRecord
from bestie_pl.structures import Instances

MAX_DETECTIONS = 100
"""Predictions of a class that count in an image, the surest ones. Source: COCO."""

OVERLAPS = (0.25, *Params("segm").iouThrs.tolist())
"""COCO's 0.5, 0.55, ..., 0.95, after one of the VOC tables. Each is matched apart, so it changes nothing of the others.
"""

SIZES = ("small", "medium", "large")
"""Of objects: under 32 x 32 pixels, up to 96 x 96, and above. Source: COCO."""


@dataclass(frozen=True, eq=False)
class _Coded(ImageRecord):
    """An image's run-length codes: predictions (class, counts, score), references (class, counts, crowd, area)."""

    size: tuple[int, int]
    predictions: tuple[tuple[int, bytes, float], ...]
    references: tuple[tuple[int, bytes, bool, float], ...]


class COCOInstanceAP(ImageMetric[_Coded]):
    """COCO's mask AP: mean precision at 101 recalls, and over the overlaps 0.5, 0.55, ..., 0.95 unless one is named.

    The numbers are ``pycocotools.cocoeval.COCOeval``'s. References flagged ``crowd`` are no objects, and predictions
    inside them do not count. Of equal scores the earlier counts first, images in the order of their names. A class
    without objects has no precision (NaN) and is left out of the mean. How large an object is says its annotation, if
    it does (``Instances.area``), or else its mask.

    At the same overlap it differs from ``VOCInstanceAP``: a prediction whose best object is taken may have the second
    best, the curve is read at 101 places instead of everywhere, and only the surest 100 predictions of a class count.

    The state holds run-length codes; every process computes the result from all of them, one class at a time.

    Args:
        num_classes: Classes without background.
        kwargs: Of ``torchmetrics.Metric``.
    """

    def _record(self, name: str, prediction: Instances, reference: Instances) -> _Coded:
        counts = [mask["counts"] for mask in reference.masks]
        crowd = [False] * len(reference) if reference.crowd is None else reference.crowd.tolist()
        area = [float(codec.area(m)) for m in reference.masks] if reference.area is None else reference.area.tolist()
        found = (mask["counts"] for mask in prediction.masks)
        return _Coded(
            name=name,
            size=prediction.size,
            predictions=tuple(zip(prediction.classes.tolist(), found, prediction.scores.tolist(), strict=True)),
            references=tuple(zip(reference.classes.tolist(), counts, crowd, area, strict=True)),
        )

    def compute(self) -> dict[str, Tensor]:
        """Scores in [0, 1].

        Returns:
            ``ap``; ``ap25``, ``ap50``, ``ap70``, ``ap75`` at single overlaps; ``ap_small``, ``ap_medium``,
            ``ap_large`` for objects of a size: means over the classes that have objects, NaN if none has.
            ``per_class``: (C,), ``ap`` of each class, NaN for a class without objects.
        """
        precision = self._precision()  # (overlaps, recalls, sizes, classes), NaN for classes without such objects
        every = precision[:, :, 0]
        scores = {
            "ap": every[1:].nanmean(),
            **{f"ap{round(100 * t)}": every[OVERLAPS.index(t)].nanmean() for t in (0.25, 0.5, 0.7, 0.75)},
            **{f"ap_{size}": precision[1:, :, i].nanmean() for i, size in enumerate(SIZES, 1)},
            "per_class": every[1:].mean((0, 1)),
        }
        return {name: score.float().to(self.device) for name, score in scores.items()}

    def _precision(self) -> Tensor:
        images = self._images()
        found: list[list[tuple[int, bytes, float]]] = [[] for _ in range(self.num_classes)]
        true: list[list[tuple[int, bytes, bool, float]]] = [[] for _ in range(self.num_classes)]
        for number, image in enumerate(images):
            for c, counts, score in image.predictions:
                found[c].append((number, counts, score))
            for c, counts, crowd, area in image.references:
                true[c].append((number, counts, crowd, area))
        sizes = [image.size for image in images]
        return torch.from_numpy(np.stack([_precision(sizes, *rows) for rows in zip(found, true, strict=True)], -1))


def _precision(
    sizes: Sequence[tuple[int, int]],
    predictions: Sequence[tuple[int, bytes, float]],
    references: Sequence[tuple[int, bytes, bool, float]],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Precision of one class at all overlaps, recalls and sizes of objects; NaN where there is no object.

    COCOeval keeps a table of all pairs of an image and a class, most of which are empty; here it sees the images that
    have the class.
    """
    found: list[dict[str, Any]] = []
    true: list[dict[str, Any]] = []
    for image, counts, score in predictions:
        code = {"size": sizes[image], "counts": counts}
        found.append({"image_id": image, "segmentation": code, "score": score, "area": int(codec.area(code))})
    for image, counts, crowd, area in references:
        code = {"size": sizes[image], "counts": counts}
        true.append({"image_id": image, "segmentation": code, "iscrowd": int(crowd), "area": area})
    images = sorted({annotation["image_id"] for annotation in (*found, *true)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step
        evaluation = COCOeval(_index(images, sizes, true), _index(images, sizes, found), "segm")
        evaluation.params.iouThrs = np.array(OVERLAPS)
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, 0, :, 0]
    return np.where(precision < 0, np.nan, precision)


def _index(images: Sequence[int], sizes: Sequence[tuple[int, int]], annotations: Sequence[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": sizes[i][0], "width": sizes[i][1]} for i in images],
        "categories": [{"id": 0}],
        # from 1: COCOeval reads a match with number 0 as none
        "annotations": [{**annotation, "category_id": 0, "id": i} for i, annotation in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
