"""A training set's predictions as its labels: choosing them, writing them as a COCO annotation file, reading either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as codec
from torch import Tensor

from bestie_pl.data.coco import read_categories, read_index
from bestie_pl.data.files import Packed, is_set, require_folder
from bestie_pl.data.formats.predictions import REMEDY, read_predictions
from bestie_pl.data.formats.truth import COCOTruth, paint_instances
from bestie_pl.data.samples import IdMap, LabelReader, PointReader
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Cues

FILE_REMEDY = "make the file anew with `bestie-pl labels`, with the same data set and class names"


def choose(
    ids: Tensor, classes: Tensor, scores: Tensor, *, points: Cues | None = None, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The labels that an image keeps: with points those that hold exactly one of their class, and the ``most`` best.

    As no two labels share a pixel, each point then has one label at most, and each label one point.

    Args:
        ids: (H, W) int, 0 where there is none, else 1..N, best score first.
        classes: (N,) int64, 0-based.
        scores: (N,) float32, descending.
        points: Of the image, in its pixels; None where the image has tags only.
        most: Labels that are kept at most.

    Returns:
        The same three of the labels that are kept, numbered anew.

    >>> ids, point = torch.tensor([[1, 1, 2]]), torch.tensor([[0.0, 1.0]])
    >>> points = Cues(torch.tensor([0]), point, torch.tensor([5]), torch.ones(1))
    >>> choose(ids, torch.tensor([5, 5]), torch.tensor([0.9, 0.8]), points=points, most=9)[0].tolist()
    [[1, 1, 0]]
    """
    kept = torch.ones(len(classes), dtype=torch.bool)
    if points is not None:
        y, x = points.yx.round().long().clamp(min=0).minimum(torch.tensor(ids.shape) - 1).unbind(1)
        number = ids[y, x].long()
        number = number[(number > 0) & (points.classes == torch.cat([torch.tensor([-1]), classes])[number])]
        kept = number.bincount(minlength=len(classes) + 1)[1:] == 1
    rows = kept.nonzero()[:most, 0]
    anew = torch.zeros(len(classes) + 1, dtype=torch.int32)
    anew[rows + 1] = torch.arange(1, len(rows) + 1, dtype=torch.int32)
    return anew[ids.long()], classes[rows], scores[rows]


def to_annotations(
    ids: Tensor, classes: Tensor, scores: Tensor, *, image_id: int, first_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """An image's labels as COCO's annotations with a ``score``; arguments as for ``choose``.

    Masks are compressed run-length codes, ``bbox`` is (x, y, width, height), and no annotation is a crowd.
    """
    numbers, codes = encode(ids)
    return [
        {
            "id": first_id + place,
            "image_id": image_id,
            "category_id": category_ids[int(classes[number - 1])],
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
            "area": int(codec.area(code)),
            "bbox": codec.toBbox(code).tolist(),
            "iscrowd": 0,
            "score": round(float(scores[number - 1]), 6),
        }
        for place, (number, code) in enumerate(zip(numbers.tolist(), codes, strict=True))
    ]


def open_labels(
    path: Path,
    names: Packed,
    class_names: Sequence[str],
    *,
    points: PointReader | None = None,
    least_share: float,
    weighted: bool,
) -> LabelReader:
    """Reader of a split's labels.

    Args:
        path: A folder of predictions ``NAME.json``, or a file that ``bestie-pl labels`` wrote.
        names: Of the split's images.
        class_names: In the order of the classes' numbers.
        points: Of the split, if some of its images have points: their predictions are all labels.
        least_share: Predictions in a folder are left out whose score is lower than this share of the best one of their
            class. What the file holds was chosen when it was made.
        weighted: Whether a label's score is its weight.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: The file is broken, lacks an image of the split, or has a category that is no class.
    """
    if path.suffix != ".json":
        require_folder(path, f"predicted instances NAME.json of the training images; {REMEDY}")
        return FolderLabels(path, names, tuple(class_names), points, least_share, weighted)
    categories = read_categories(path)
    index = read_index(path, tuple(categories), keep_masks=True)
    assert index.annotations is not None  # they were asked for
    row_of = {name: row for row, name in enumerate(index.names)}
    if (missing := next((name for name in names if name not in row_of), None)) is not None:
        raise ValueError(f"{path}: no image {missing} of the training split in `images`; {FILE_REMEDY}")
    number_of: Mapping[str, int] = {name: number for number, name in enumerate(class_names)}
    if unknown := [name for name in categories.values() if name not in number_of]:
        raise ValueError(f"{path}: category {unknown[0]!r}; expected one of {', '.join(class_names)}: {FILE_REMEDY}")
    return FileLabels(
        COCOTruth(index.annotations, index.sizes, path),
        torch.tensor([row_of[name] for name in names], dtype=torch.int64),
        torch.tensor([number_of[name] for name in categories.values()]),
        weighted,
    )


@dataclass(frozen=True)
class FolderLabels:
    """Predictions of a split's images, one file each, as labels. See ``LabelReader`` and ``open_labels``."""

    folder: Path
    names: Packed
    class_names: tuple[str, ...]
    points: PointReader | None
    least_share: float
    weighted: bool

    def __call__(self, index: int, size: tuple[int, int], tags: Tensor) -> IdMap:
        """See ``LabelReader``."""
        pointed = self.points is not None and self.points(index, size) is not None
        ids, classes, scores = read_predictions(
            self.folder,
            self.names[index],
            size,
            self.class_names,
            tags=tags,
            least_share=0.0 if pointed else self.least_share,
        )
        return IdMap(ids, classes, scores if self.weighted else None)


@dataclass(frozen=True)
class FileLabels:
    """Labels of a split's images from one annotation file: all of tagged classes. See ``LabelReader``.

    Args:
        source: Of the whole file, with classes numbered by category.
        rows: (N,) int64, entry of the file of each image.
        classes: (K,) int64, class of each category.
        weighted: Whether a label's score is its weight; annotations without a score have 1.
    """

    source: COCOTruth
    rows: Tensor
    classes: Tensor
    weighted: bool

    def __call__(self, index: int, size: tuple[int, int], tags: Tensor) -> IdMap:
        """See ``LabelReader``."""
        row = int(self.rows[index])
        ids, categories = paint_instances(self.source(row, size).instances)
        where = f"{self.source.path}: iscrowd of an annotation"
        annotations = [a for a in loads(self.source.annotations[row]) if not is_set(a.get("iscrowd"), where)]
        scores = torch.tensor([_score(a, self.source.path) for a in annotations], dtype=torch.float32)
        classes = self.classes[categories]
        kept = tags[classes]
        anew = torch.cat([torch.zeros(1, dtype=torch.int32), kept.int().cumsum(0).int() * kept.int()])
        return IdMap(anew[ids.long()], classes[kept], scores[kept] if self.weighted else None)


def _score(annotation: dict[str, Any], path: Path) -> float:
    score = annotation.get("score", 1.0)
    if type(score) not in (int, float) or not 0 <= score <= 1:
        raise ValueError(
            f"{path}: annotation {annotation.get('id')}: score {score!r}; expected a number in [0, 1]: {FILE_REMEDY}"
        )
    return float(score)
