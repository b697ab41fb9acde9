from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from bestie_pl.metrics import SemanticIoU


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_agrees_with_sets_of_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    metric, first, second = SemanticIoU(3), [], []
    for shape in ((5, 7), (2, 3, 4)):  # one image, a batch
        prediction, target = rng.choice(rng.integers(0, 4, 3), (2, *shape)).astype(np.uint8)
        target[rng.random(shape) < 0.2] = 255
        metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
        first.append(prediction[target != 255])
        second.append(target[target != 255])
    first, second = np.concatenate(first), np.concatenate(second)
    common, union = (
        np.array([f(first == c, second == c).sum() for c in range(4)]) for f in (np.logical_and, np.logical_or)
    )
    with np.errstate(invalid="ignore"):
        expected = common / union
    result = metric.compute()
    np.testing.assert_allclose(result["per_class"], expected, atol=1e-6, equal_nan=True)
    np.testing.assert_allclose(result["miou"], np.nanmean(expected), atol=1e-6)


def test_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(0, 4, (2, 3, 9, 9), generator=generator, dtype=torch.uint8)
    target[:, :2] = 255
    ours, theirs = SemanticIoU(5), MulticlassJaccardIndex(6, ignore_index=255, average="macro")
    ours.update(prediction, target)
    theirs.update(prediction, target)
    torch.testing.assert_close(ours.compute()["miou"], theirs.compute())


def test_ignored_everywhere() -> None:
    metric = SemanticIoU(1)
    metric.update(torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), 255, dtype=torch.uint8))
    assert math.isnan(metric.compute()["miou"])


def test_two_processes_add_up(in_processes) -> None:
    prediction = torch.tensor([[0, 1], [1, 2]], dtype=torch.uint8)

    def work(rank: int):
        metric = SemanticIoU(2)
        if rank:  # the first process has no image
            metric.update(prediction, prediction.t().clamp(max=1))
        return metric.compute()

    for result in in_processes(work):
        assert result["per_class"].tolist() == [1.0, pytest.approx(2 / 3), 0.0]


@pytest.mark.parametrize(("prediction", "target"), [(3, 0), (0, 3), (255, 0)])
def test_unknown_values_are_refused(prediction: int, target: int) -> None:
    maps = (torch.full((2, 2), value, dtype=torch.uint8) for value in (prediction, target))
    with pytest.raises(ValueError, match=rf"prediction holds \[{prediction}\], the target \[{target}\]; expected 0..2"):
        SemanticIoU(2).update(*maps)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        SemanticIoU(2).update(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
