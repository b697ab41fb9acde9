from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.metrics import LabelQuality
from bestie_pl.structures import Cues, LabeledInstances


def table(ids, classes, weight=None) -> LabeledInstances:
    """classes and weight without row 0."""
    ids = torch.as_tensor(ids, dtype=torch.int32)
    rows = len(classes) + 1
    return LabeledInstances(
        ids=ids,
        image=torch.zeros(rows, dtype=torch.int64),
        classes=torch.tensor([-1, *classes]),
        center_yx=torch.zeros(rows, 2),
        weight=torch.tensor([0.0, *([1.0] * len(classes) if weight is None else weight)]),
        area=ids.flatten().bincount(minlength=rows).index_fill_(0, torch.tensor(0), 0),
        peaks=Cues.empty(),
    )


def score(labels: LabeledInstances, truth: LabeledInstances) -> dict[str, float]:
    metric = LabelQuality()
    metric.update(labels, truth)
    return {key: value.item() for key, value in metric.compute().items()}


def naive(labels: LabeledInstances, truth: LabeledInstances) -> tuple[int, int, int, float]:
    """True positives, labels, objects and the sum of the true positives' overlaps, one pair at a time."""
    first, second = labels.ids.numpy(), truth.ids.numpy()
    rows = [n for n in range(1, len(labels.image)) if labels.weight[n] > 0 and (first == n).any()]
    objects = [m for m in range(1, len(truth.image)) if (second == m).any()]
    free, hits, total = set(objects), 0, 0.0
    for n in rows:
        for m in sorted(free):
            iou = ((first == n) & (second == m)).sum() / ((first == n) | (second == m)).sum()
            if iou >= 0.5 and labels.classes[n] == truth.classes[m]:
                free.remove(m)
                hits, total = hits + 1, total + iou
                break
    return hits, len(rows), len(objects), total


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_agrees_with_counting_pair_by_pair(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    side = int(rng.integers(1, 4))
    # strips of 1 to 3 pixels, so that overlaps of exactly one half are frequent; ids belong to one image each
    ids = np.repeat(rng.integers(0, 4, (2, images + 1, side, 3)), rng.integers(1, 4, 3), axis=3)
    ids = np.where(rng.random(ids.shape) < 0.1, 0, ids)
    ids = np.where(ids > 0, ids + 3 * np.arange(images + 1)[:, None, None], 0)
    rows = 3 * (images + 1)
    labels = table(ids[0], rng.integers(0, 2, rows).tolist(), rng.choice([0.0, 0.3, 1.0], rows, p=[0.1, 0.4, 0.5]))
    truth = table(ids[1], rng.integers(0, 2, rows).tolist())
    hits, count, objects, total = naive(labels, truth)
    got = score(labels, truth)
    assert (got["true_positives"], got["labels"], got["objects"]) == (hits, count, objects)
    assert got["mean_iou"] == pytest.approx(total / hits, abs=1e-6) if hits else math.isnan(got["mean_iou"])


def test_known_counts() -> None:
    truth = table([[[1, 1, 1, 1, 2, 2, 0, 0, 3, 3]]], [5, 5, 6])
    labels = table([[[1, 1, 1, 0, 2, 2, 0, 3, 3, 4]]], [5, 4, 6, 6])
    result = score(labels, truth)  # 1: three quarters; 2: another class; 3: a third; 4: exactly one half
    assert result == {
        "true_positives": 2,
        "labels": 4,
        "images": 1,
        "objects": 3,
        "precision": 0.5,
        "recall": pytest.approx(2 / 3),
        "mean_iou": pytest.approx(0.625),
    }


@pytest.mark.parametrize(("first", "second"), [([1, 1], [1, 2]), ([1, 2], [1, 1])])
def test_halves_match_once(first, second) -> None:
    result = score(table([[first]], [0] * max(first)), table([[second]], [0] * max(second)))
    assert result["true_positives"] == 1
    assert result["mean_iou"] == 0.5


def test_rows_without_weight_or_pixels_are_no_labels() -> None:
    truth = table([[[1, 1, 2, 2]]], [0, 0])
    result = score(table([[[1, 1, 2, 2]]], [0, 0, 0], [0.1, 0.0, 1.0]), truth)
    assert (result["true_positives"], result["labels"], result["objects"]) == (1, 1, 2)


def test_no_labels_and_no_objects() -> None:
    none, one = table([[[0, 0]]], []), table([[[1, 0]]], [0])
    assert score(none, one)["recall"] == 0
    assert math.isnan(score(none, one)["precision"])
    assert score(one, none)["precision"] == 0
    assert math.isnan(score(none, none)["recall"])


def test_batches_add_up() -> None:
    labels, truth = table([[[1, 0]], [[2, 2]]], [0, 1]), table([[[1, 1]], [[2, 0]]], [0, 1])
    metric = LabelQuality()
    for i in range(2):
        metric.update(*(table(t.ids[i : i + 1], t.classes[1:].tolist()) for t in (labels, truth)))
    assert metric.compute() == {key: pytest.approx(value) for key, value in score(labels, truth).items()}


def test_arguments_are_not_changed() -> None:
    labels, truth = table([[[1, 2]]], [0, 1]), table([[[1, 1]]], [0])
    before = [t.ids.clone() for t in (labels, truth)]
    score(labels, truth)
    assert all(torch.equal(t.ids, ids) for t, ids in zip((labels, truth), before, strict=True))


def test_two_processes_add_up(in_processes) -> None:
    truth = table([[[1, 1, 2, 2]]], [0, 0])

    def work(rank: int):
        metric = LabelQuality()
        for _ in range(3 * rank):  # the first process has none
            metric.update(truth, truth)
        return metric.compute()

    for result in in_processes(work):
        assert result["true_positives"] == 6
        assert result["precision"] == result["mean_iou"] == 1


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2\) of labels and \(1, 1, 3\) of truth"):
        score(table([[[0, 0]]], []), table([[[0, 0, 0]]], []))
