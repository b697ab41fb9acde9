"""Figures of semantic maps that need no ground truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bestie_pl.metrics.semantic_maps import SemanticMapFigures
from bestie_pl.ops.semantic import edge_alignment


def test_figures_by_hand() -> None:
    figures = SemanticMapFigures(3)
    image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 2, 4)
    tags = torch.tensor([True, True, False])
    semantic = torch.tensor([[1, 1, 0, 255], [1, 1, 0, 0]], dtype=torch.uint8)
    earlier = torch.tensor([[1, 0, 0, 0], [1, 255, 0, 0]], dtype=torch.uint8)
    figures.update(semantic, tags, image, earlier=earlier, mirror_agreement=0.5)
    figures.update(torch.full((2, 4), 3, dtype=torch.uint8), torch.tensor([False, True, False]), image)
    result = figures.compute()
    by_class = result.pop("class_tag_recall").tolist()
    assert by_class[:2] == [1, 0] and math.isnan(by_class[2])
    found = {name: float(value) for name, value in result.items()}
    assert found["images"] == 2 and found["ignored"] == pytest.approx(1 / 16)
    assert found["tag_recall"] == pytest.approx(1 / 3) and found["tag_precision"] == pytest.approx(1 / 2)
    assert found["agreement_with_earlier"] == pytest.approx(5 / 6) and found["mirror_agreement"] == 0.5
    assert found["edge_alignment"] == pytest.approx(5.0)  # 2 of 10 pairs of neighbours differ in colour


def test_what_cannot_be_measured_is_nan() -> None:
    figures = SemanticMapFigures(2)
    figures.update(torch.zeros(3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.bool), torch.zeros(3, 3, 3))
    found = figures.compute()
    for name in ("tag_recall", "tag_precision", "edge_alignment", "agreement_with_earlier", "mirror_agreement"):
        assert math.isnan(float(found[name])), name


def test_edges_against_a_slow_reference() -> None:
    random = np.random.default_rng(0)
    image, semantic = random.random((3, 9, 7)), random.choice([0, 1, 2, 255], (9, 7))
    across, everywhere = [], []
    for y in range(9):
        for x in range(7):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 9 and u < 7:
                    change = np.abs(image[:, y, x] - image[:, v, u]).mean()
                    everywhere.append(change)
                    if semantic[y, x] % 255 != semantic[v, u] % 255:
                        across.append(change)
    found = edge_alignment(torch.from_numpy(semantic).byte(), torch.from_numpy(image).float())
    assert float(found) == pytest.approx(np.mean(across) / np.mean(everywhere), rel=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3], [3, 0, 1, 2]])
def test_another_order_of_the_classes_is_found_and_a_weak_class_is_none(order: list[int]) -> None:
    """Class 2 is found in a fifth of its images only, and always beside class 3."""
    random = np.random.default_rng(1)
    figures = SemanticMapFigures(4)
    for _ in range(60):
        tags = random.random(4) < 0.4
        tags[3] |= tags[2]
        found = tags & ((np.arange(4) != 2) | (random.random() < 0.2))
        semantic = torch.zeros(2, 4, dtype=torch.uint8)
        for c in np.nonzero(found)[0]:
            semantic[0, c] = order[c] + 1
        figures.update(semantic, torch.from_numpy(tags), torch.rand(3, 2, 4))
    wrong = {(c, v) for c, v in enumerate(order) if c != v and c != 2}
    assert set(figures.misplaced()) >= wrong and (wrong or not figures.misplaced())
