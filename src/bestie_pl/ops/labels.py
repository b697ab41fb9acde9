"""Labels of a batch in which some images have given points and others have tags only."""

from __future__ import annotations

import torch
from torch import Tensor

from bestie_pl.structures import Cues, LabeledInstances


def mix_labels(of_points: LabeledInstances, of_tags: LabeledInstances, pointed: Tensor) -> LabeledInstances:
    """The first labels where an image has points, the second elsewhere: each image's are what it would get alone.

    Args:
        of_points: Labels of the whole batch, made as if all images had points.
        of_tags: Labels of the whole batch, made as if none had.
        pointed: (B,) bool, whose cues are given points.

    Returns:
        The rows of both tables, row 0 once; those of the other images have weight, area and peaks' scores 0.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> ids, classes = torch.tensor([[[1, 1]], [[2, 0]]]), torch.tensor([-1, 4, 4])
    >>> labels = instances_from_map(ids, torch.tensor([0, 0, 1]), classes)
    >>> mixed = mix_labels(labels, labels, torch.tensor([True, False]))
    >>> mixed.ids.tolist(), mixed.area.tolist(), mixed.classes.tolist()
    ([[[1, 1]], [[4, 0]]], [0, 2, 0, 0, 1], [-1, 4, 4, 4, 4])
    """
    before = len(of_points.image) - 1
    below = torch.where(of_tags.ids > 0, of_tags.ids + before, 0)
    kept = torch.cat([pointed[of_points.image], ~pointed[of_tags.image[1:]]])

    def column(name: str) -> Tensor:
        return torch.cat([getattr(of_points, name), getattr(of_tags, name)[1:]])

    first, second = of_points.peaks, of_tags.peaks
    return LabeledInstances(
        ids=torch.where(pointed[:, None, None], of_points.ids, below).int(),
        image=column("image"),
        classes=column("classes"),
        center_yx=column("center_yx"),
        weight=column("weight") * kept,
        area=column("area") * kept,
        peaks=Cues(
            image=torch.cat([first.image, second.image]),
            yx=torch.cat([first.yx, second.yx]),
            classes=torch.cat([first.classes, second.classes]),
            scores=torch.cat([first.scores * pointed[first.image], second.scores * ~pointed[second.image]]),
        ),
    )
