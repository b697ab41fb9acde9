"""Figures on cues, counted by hand."""

from __future__ import annotations

import pytest
import torch

from bestie_pl.metrics.cues import CueQuality
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Cues, Instances


def cues_of(*rows: tuple[int, int, int, float]) -> Cues:
    """Cues from y, x, class and score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Cues(torch.zeros(len(rows), dtype=torch.int64), table[:, :2], table[:, 2].long(), table[:, 3])


def tags_of(*classes: int) -> torch.Tensor:
    tags = torch.zeros(3, dtype=torch.bool)
    tags[list(classes)] = True
    return tags


def scene(*, crowd: bool = False) -> Instances:
    """Two objects of class 0, left and right, and one of class 2 between them, which may be a crowd."""
    ids = torch.zeros(6, 9, dtype=torch.int64)
    ids[:, :3], ids[:, 3:6], ids[:, 6:] = 1, 2, 3
    _, masks = encode(ids)
    flags = torch.tensor([False, crowd, False])
    return Instances(masks, torch.tensor([0, 2, 0]), torch.ones(3), (6, 9), flags if crowd else None)


def test_counts_of_cues_and_tags_need_no_truth() -> None:
    quality = CueQuality(3, thresholds=(0.0, 0.5))
    quality.update(cues_of((0, 0, 0, 0.9), (1, 1, 0, 0.4), (2, 2, 2, 0.7)), tags_of(0, 2))
    quality.update(cues_of((0, 0, 1, 0.5)), tags_of(1))
    quality.update(cues_of(), tags_of())
    result = quality.compute()
    assert (int(result["images"]), int(result["tags"]), int(result["measured_images"])) == (3, 3, 0)
    assert result["cues"].tolist() == [4, 2]
    assert result["tags_with_cue"].tolist() == pytest.approx([1, 2 / 3])
    assert result["class_tags_with_cue"].tolist() == [[1, 1, 1], [1, 0, 1]]
    assert result["tags_with_one_cue"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert result["images_with_as_many_cues_as_tags"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert result["cues_per_image_by_tags"][:, :3].tolist() == [[0, 1, 3], [0, 0, 2]]
    assert result["cues_per_image_by_tags"][:, 3].isnan().all() and result["precision"].isnan().all()


def test_a_cue_is_right_inside_an_instance_of_its_class() -> None:
    quality = CueQuality(3, thresholds=(0.0, 0.5))
    # two in the left object, one of a wrong class in the right one, one in the middle
    cues = cues_of((0, 0, 0, 0.9), (5, 2, 0, 0.4), (3, 8, 2, 0.8), (3, 4, 2, 0.6))
    quality.update(cues, tags_of(0, 2), scene())
    result = quality.compute()
    assert int(result["instances"]) == 3 and int(result["measured_images"]) == 1
    assert result["precision"].tolist() == pytest.approx([3 / 4, 2 / 3])
    assert result["recall"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert result["instances_with_one_cue"].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_crowds_count_neither_way() -> None:
    quality = CueQuality(3, thresholds=(0.0,))
    quality.update(cues_of((0, 0, 0, 0.9), (3, 4, 2, 0.6), (3, 4, 0, 0.6)), tags_of(0, 2), scene(crowd=True))
    result = quality.compute()
    assert int(result["instances"]) == 2
    assert float(result["precision"]) == 0.5 and float(result["recall"]) == 0.5


def test_images_without_cues_or_without_instances() -> None:
    quality = CueQuality(3, thresholds=(0.0,))
    quality.update(cues_of(), tags_of(0, 2), scene())
    quality.update(cues_of((1, 1, 0, 0.9)), tags_of(0), Instances((), torch.zeros(0).long(), torch.zeros(0), (6, 9)))
    result = quality.compute()
    assert float(result["recall"]) == 0 and float(result["precision"]) == 0 and int(result["instances"]) == 3
