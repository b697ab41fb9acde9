"""Predictions of a trained model as the labels of the next round (iterative training, paper table 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as rle
from torch import Tensor

from bestie_pl.data.files import as_it_looks, below, read_json, understood
from bestie_pl.data.formats.codes import encode_runs
from bestie_pl.data.formats.images import check_size
from bestie_pl.errors import UserError, expected_one_of

LABEL_THRESHOLD = 0.5
"""Least score of a label, relative to the surest of its class in the image.

A training image's tags are given, so the surest instance of each tagged class is a label whatever its score: how high
scores rise depends on the length of a training and on its loss weights (after a short one on photographs 3 % of the
tags had an instance above 0.3, the least score of a refined label). Neither paper nor release say how they chose.
"""

REMEDY = "predict the training images first, with the same class names, and give labels_from the folder `predictions`"


def read_predictions(
    folder: Path,
    name: str,
    size: tuple[int, int],
    class_names: Sequence[str],
    *,
    tags: Tensor | None = None,
    least_share: float = 0.0,
    min_area: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The instances that ``<folder>/<name>.json`` holds, as a label map; better ones cover worse ones.

    Args:
        folder: What PredictionWriter wrote.
        name: Of the image.
        size: (H, W) of the image.
        class_names: In the order of the classes' numbers.
        tags: (C,) bool; predictions of other classes are left out. All are kept if omitted.
        least_share: Instances are left out whose score is lower than this share of the best one of their class.
        min_area: Instances that keep fewer pixels are left out. What they would have covered stays unlabelled.

    Returns:
        ids: (H, W) int32, 0 where there is none, else 1..N, best score first.
        classes: (N,) int64, 0-based.
        scores: (N,) float32.

    Raises:
        FileNotFoundError: No such file.
        UserError: The file is broken, of an image of another size, or has a class that is not in ``class_names``.
    """
    path = as_it_looks(below(folder, f"{name}.json"))
    numbers = {name: number for number, name in enumerate(class_names)}
    kept: list[tuple[float, int, dict[str, Any]]] = []
    for label, score, code in read_rows(path, size, REMEDY):
        if label not in numbers:
            raise UserError(f"{path}: unknown class {label!r}; {expected_one_of(label, class_names)}: {REMEDY}")
        if tags is None or bool(tags[numbers[label]]):
            kept.append((score, numbers[label], code))
    kept.sort(key=lambda row: -row[0])
    best: dict[int, float] = {}
    kept = [row for row in kept if row[0] >= least_share * best.setdefault(row[1], row[0])]
    scores = torch.tensor([score for score, _, _ in kept], dtype=torch.float32)
    classes = torch.tensor([number for _, number, _ in kept], dtype=torch.int64)
    count = len(kept)
    ids = torch.zeros(size, dtype=torch.int32)
    for number in range(count, 0, -1):  # the best mask last, over the others
        ids[torch.from_numpy(rle.decode(kept[number - 1][2])).bool()] = number
    area = ids.flatten().long().bincount(minlength=count + 1)[1:]
    rows_kept = (area >= min_area).nonzero()[:, 0]
    renumbered = torch.zeros(count + 1, dtype=torch.int32)
    renumbered[rows_kept + 1] = torch.arange(1, len(rows_kept) + 1, dtype=torch.int32)
    return renumbered[ids.long()], classes[rows_kept], scores[rows_kept]


def read_rows(path: Path, size: tuple[int, int], remedy: str) -> list[tuple[str, float, dict[str, Any]]]:
    """Class name, score and run-length code of each instance in a file that PredictionWriter wrote, best score first.

    Args:
        path: Of the file ``NAME.json``.
        size: (H, W) of the image.
        remedy: What to do if the file is missing or broken.

    Raises:
        FileNotFoundError: No such file.
        UserError: The file is broken, or of an image of another size.
    """
    holds = f"predicted instances of the image; {remedy}"
    content = read_json(path, holds)
    with understood(path, holds):
        return [_row(record, size, path) for record in content]


def _row(record: dict[str, Any], size: tuple[int, int], path: Path) -> tuple[str, float, dict[str, Any]]:
    segmentation = record["segmentation"]
    check_size(path, [int(side) for side in segmentation["size"]], size)
    score = float(record["score"])
    if not math.isfinite(score):
        raise UserError(f"{path}: score {score}; expected a number")
    return str(record["class"]), score, encode_runs(str(segmentation["counts"]), size, str(path))
