"""Semantic knowledge transfer: components of a semantic map that hold exactly one cue become labelled instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bestie_pl.ops.capacity import attempts
from bestie_pl.ops.grouping import Groups, group_pixels
from bestie_pl.ops.peaks import NO_COMPONENT, Centers
from bestie_pl.recipe import Rules
from bestie_pl.structures import Components, Cues, Geometry, LabeledInstances


def transfer(
    components: Components, cues: Cues, *, supervision: Literal["tags", "points"], rules: Rules, geometry: Geometry
) -> LabeledInstances:
    """Pseudo labels: a component with exactly one cue of its class is an instance.

    Components without a cue stay unlabelled. So do those with several, unless ``rules.crowded_components`` is
    ``nearest``; see ``split_by_cues``.

    A cue belongs to the component at its rounded position if the classes agree; cues outside the image, beside the
    components or of score 0 count nowhere, and two cues at one pixel count as two. Components under
    ``geometry.min_area`` are dropped. Where the labels point to and where the heatmap has its Gaussians:

    - tags: both at the component's centroid, its fraction cut off.
    - points: Gaussians at the given points, all of them, also those whose component was rejected; offsets to the point
      or to the centroid, by ``rules.point_labels_end_at``.

    Source: paper section 3.3; release 3.3 to 3.8.

    Args:
        components: K components of the tagged classes, of the augmented crop.
        cues: N cues of the tagged classes that are confident enough.
        supervision: what the cues are: a classifier's peaks, or given points.
        rules: decide the centre of a component that was accepted by a given point, and what several cues in one are.
        geometry: gives the minimum area.

    Returns:
        Labels whose rows are those of ``components``; rejected ones have weight and area 0, as all have without cues.
        Rows of split components come behind them.

    >>> from bestie_pl.ops.components import label_components
    >>> components = label_components(torch.tensor([[[1, 1, 1, 0, 2, 2]]]))
    >>> cue = Cues(torch.tensor([0]), torch.tensor([[0.0, 2.0]]), torch.tensor([0]), torch.tensor([0.9]))
    >>> from bestie_pl.recipe import PAPER
    >>> geometry = Geometry(min_area=2)
    >>> labels = transfer(components, cue, supervision="tags", rules=PAPER, geometry=geometry)
    >>> labels.ids.tolist(), labels.weight.tolist(), labels.center_yx[1].tolist()
    ([[[1, 1, 1, 0, 0, 0]]], [0.0, 1.0, 0.0], [0.0, 1.0])
    """
    rows = len(components.area)
    component = component_of(components, cues)
    count = torch.zeros_like(components.area).index_add_(0, component, torch.ones_like(component))
    # row 0 collects the cues that belong to no component; its area of 0 is under any minimum
    accepted = (count == 1) & (components.area >= geometry.min_area)
    center_yx = components.center_yx.float()
    if supervision == "points" and rules.point_labels_end_at == "point":
        # with one cue a row the sum is that cue's position; other rows are not used
        center_yx = torch.zeros_like(center_yx).index_add_(0, component, cues.yx.float())
    center_yx = center_yx * accepted[:, None]
    weight = accepted.float()
    numbers = torch.arange(rows, dtype=torch.int32, device=accepted.device) * accepted
    labels = LabeledInstances(
        ids=numbers.index_select(0, components.labels.flatten()).view(components.labels.shape),
        image=components.image,
        classes=components.classes,
        center_yx=center_yx,
        weight=weight,
        area=components.area * accepted,
        peaks=cues if supervision == "points" else Cues(components.image, center_yx, components.classes, weight),
    )
    if rules.crowded_components == "unlabelled":
        return labels
    crowded = (count > 1) & (components.area >= geometry.min_area)
    parts = split_by_cues(components, replace(cues, scores=cues.scores * crowded[component]))
    if supervision == "points":  # the peaks of all points are there already
        nothing = torch.zeros_like(parts.peaks.scores)
        parts = replace(parts, weight=(parts.weight > 0).float(), peaks=replace(parts.peaks, scores=nothing))
    return join_labels(labels, parts)


@torch.no_grad()
def split_by_cues(components: Components, cues: Cues) -> LabeledInstances:
    """Components whose pixels are shared out: each belongs to the nearest of the cues in its component.

    Args:
        components: Of the tagged classes.
        cues: Rows of score 0 are empty slots; components without another stay unlabelled.

    Returns:
        One instance a cue that is the nearest of some pixel: centre and peak at the cue, weight its score.

    Source: P2Seg (ICLR 2024), section 3: components with several points.

    >>> from bestie_pl.ops.components import label_components
    >>> components = label_components(torch.tensor([[[1, 1, 1, 1, 1, 0, 1]]]))
    >>> yx = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    >>> cues = Cues(torch.zeros(2).long(), yx, torch.zeros(2).long(), torch.tensor([0.9, 0.5]))
    >>> parts = split_by_cues(components, cues)
    >>> parts.ids.tolist(), [round(weight, 2) for weight in parts.weight.tolist()]
    ([[[1, 1, 1, 2, 2, 0, 0]]], [0.0, 0.9, 0.5])
    """
    labels, rows = components.labels.flatten(), len(components.area)
    component = component_of(components, cues)
    centers = Centers.sorted(component.where(component > 0, NO_COMPONENT), cues.yx.float(), cues.scores)
    _, count = centers.spans(rows)
    for capacity in attempts(labels.device):
        split = capacity.pick("pixels", (count > 0).index_select(0, labels), room=len(labels))
        owner = group_pixels(
            split.at,
            cues.yx.new_zeros(2, len(split.at), dtype=torch.float32),
            split.clear(labels.index_select(0, split.at)).long(),
            centers,
            components=rows,
            size=(components.labels.shape[1], components.labels.shape[2]),
            capacity=capacity,
        )
        groups = Groups.of(split.at, owner, centers, capacity=capacity)
    groups = groups.cut(capacity.count("pixels"), capacity.count("groups"))
    own, weight = centers.component[groups.center], centers.score[groups.center]
    own = own.where(own != NO_COMPONENT, 0)
    parts = groups.label(
        components.labels.shape,
        image=components.image[own],
        classes=components.classes[own],
        center_yx=centers.yx[groups.center],
        weight=weight,
    )
    peaks = Cues(components.image[own], centers.yx[groups.center], components.classes[own], weight)
    return replace(parts, peaks=peaks)


def join_labels(first: LabeledInstances, second: LabeledInstances) -> LabeledInstances:
    """Labels of the same batch in one table: rows of the first, then those of the second; no pixel has both."""
    before = len(first.image) - 1

    def column(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)[1:]])

    return LabeledInstances(
        ids=torch.where(second.ids > 0, second.ids + before, first.ids).int(),
        peaks=Cues(
            *(
                torch.cat([getattr(first.peaks, name), getattr(second.peaks, name)])
                for name in ("image", "yx", "classes", "scores")
            )
        ),
        **{name: column(name) for name in ("image", "classes", "center_yx", "weight", "area")},
    )


def component_of(components: Components, cues: Cues) -> Tensor:
    """Row of the component that each cue belongs to, (N,) int64; 0 for none."""
    height, width = components.labels.shape[1:]
    y, x = cues.yx.round().long().unbind(1)
    inside = (cues.scores > 0) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixel = ((cues.image * height + y) * width + x).where(inside, 0)
    component = components.labels.flatten()[pixel].long()
    return component.where(inside & (components.classes[component] == cues.classes), 0)


def instances_from_map(ids: Tensor, image: Tensor, classes: Tensor) -> LabeledInstances:
    """True instances as labels: weight 1, centre at the centroid (with its fraction), one peak an instance.

    Source: paper section 3.2; this is what full supervision trains with.

    Args:
        ids: (B, H, W) integers in 0..N, 0 where there is no instance.
        image: (N + 1,) int64, index in the batch; row 0 is "nothing".
        classes: (N + 1,) int64, 0-based; -1 in row 0.

    Returns:
        Labels with the given rows; rows that own no pixel (an object outside the crop) have weight and area 0.

    >>> labels = instances_from_map(torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 0, 0]), torch.tensor([-1, 4, 2]))
    >>> labels.area.tolist(), labels.weight.tolist(), labels.center_yx[1].tolist()
    ([0, 2, 0], [0.0, 1.0, 0.0], [0.0, 1.5])
    """
    height, width = ids.shape[1:]
    flat = ids.flatten().long()
    area = torch.zeros_like(image).index_add_(0, flat, torch.ones_like(flat))
    area[:1].zero_()
    at = torch.arange(len(flat), device=flat.device)
    # integer sums: exact, and the same in any order
    y = torch.zeros_like(area).index_add_(0, flat, at // width % height)
    x = torch.zeros_like(area).index_add_(0, flat, at % width)
    weight = (area > 0).float()
    center_yx = (torch.stack([y, x], 1) / area.clamp(min=1)[:, None]) * weight[:, None]
    return LabeledInstances(
        ids=ids.int(),
        image=image,
        classes=classes,
        center_yx=center_yx,
        weight=weight,
        area=area,
        peaks=Cues(image, center_yx, classes, weight),
    )
