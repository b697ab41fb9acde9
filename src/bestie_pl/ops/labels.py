"""The one home of labels: what a training batch is taught, decided once for tags, points, mixed and full supervision.

``pseudo_labels`` starts from the given maps and cues, ``refined_labels`` from the network's own output. Images whose
objects have points and images that have tags only may share a batch: ``batch.pointed`` says which is which.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bestie_pl.ops.components import class_map, label_components, tagged_classes
from bestie_pl.ops.enlargement import Enlargement, cells_of
from bestie_pl.ops.instances import predict_semantic
from bestie_pl.ops.refinement import MAX_CENTERS, refine_from_points, refine_from_tags
from bestie_pl.ops.transfer import join_labels, transfer
from bestie_pl.recipe import Rules
from bestie_pl.structures import Batch, Components, Geometry, InstanceMaps, LabeledInstances, Supervision

Foreground = Literal["given", "predicted", "both"]
"""Whose semantic map says which pixels refinement labels: the given one, the network's own, or where both agree."""


def pseudo_labels(batch: Batch, *, supervision: Supervision, rules: Rules, geometry: Geometry) -> Batch:
    """The batch with the components of its semantic map, and with the labels that training starts from.

    - ``full``: the true instances (``batch.truth``).
    - ``tags``, ``points``: components that hold exactly one cue (``ops.transfer``). Where an earlier model's
      predictions came along (``batch.predicted``) they are the labels with tags, and the components that points choose
      from with points.

    Args:
        batch: Images, tags and semantic map, and with them what ``supervision`` needs: cues or points, ``predicted``,
            or ``truth``; all as the training crop shows it.
        supervision: Of all images, unless ``batch.pointed`` says which of them have points.
        rules: See ``ops.transfer``.
        geometry: Gives the smallest area of a component.

    Returns:
        The same batch with ``components`` and ``pseudo``.

    Raises:
        ValueError: The batch lacks what labels are made from; the message names it.

    Source: paper section 3.3.
    """
    if batch.semantic is None:
        raise ValueError("labels are made from a semantic map, and the batch has none: fill Batch.semantic")
    components = label_components(tagged_classes(batch.semantic, batch.tags))
    if supervision == "full":
        if batch.truth is None:
            raise ValueError("supervision full needs the true instances, and the batch has none: fill Batch.truth")
        return replace(batch, components=components, pseudo=batch.truth)

    def of(kind: Literal["tags", "points"]) -> LabeledInstances:
        if batch.predicted is None:
            candidates = components
        elif kind == "tags":
            return batch.predicted
        else:  # a point cleans predictions as it does components, and says where their centre is
            candidates = _as_components(batch.predicted)
        return transfer(candidates, batch.cues, supervision=kind, rules=rules, geometry=geometry)

    pseudo = of(supervision) if batch.pointed is None else mix_labels(of("points"), of("tags"), batch.pointed)
    return replace(batch, components=components, pseudo=pseudo)


@torch.no_grad()
def refined_labels(
    maps: InstanceMaps,
    batch: Batch,
    *,
    supervision: Supervision,
    rules: Rules,
    geometry: Geometry,
    threshold: float = 0.3,
    max_centers: int = MAX_CENTERS,
    clustering: bool = True,
    foreground: Foreground = "given",
    enlargement: Enlargement | None = None,
) -> LabeledInstances:
    """Labels that the network's own maps give for the batch; images without points as with ``supervision: tags``.

    Args:
        maps: Of the batch's images: at their size, or as they leave the network with their ``enlargement``.
        batch: With ``components``, and ``cues`` where objects have points; ``pseudo_labels`` made them.
        supervision: As for ``pseudo_labels``.
        rules: See ``ops.refinement``.
        geometry: Lengths in pixels.
        threshold: Least centre score of a refined label; positive.
        max_centers: A component with more instances is left alone.
        clustering: Whether points where the offsets converge complement the peaks.
        foreground: Which pixels are labelled. ``given``: those of the tagged classes in the semantic map, as in the
            release (5.10). ``predicted``: those that the network itself sees of the tagged classes, as the paper's
            section 3.5 can be read ("instance grouping using the network outputs"). ``both``: where the two agree.
        enlargement: How the maps become as large as the images.

    Raises:
        ValueError: The batch has no components, or the maps are of another size.

    Source: paper section 3.5, Eq. (2); release sections 5 and 6.
    """
    components = batch.components
    if components is None:
        raise ValueError("refinement needs the components of the semantic map: complete the batch with pseudo_labels")
    if foreground != "given":
        seen = _seen_classes(maps.semantic_logits, batch.tags, enlargement)
        if foreground == "both":
            seen = seen.where(seen == class_map(components), 0)
        components = label_components(seen)

    def by_tags() -> LabeledInstances:
        return refine_from_tags(
            maps,
            components,
            geometry=geometry,
            rules=rules,
            threshold=threshold,
            clustering=clustering,
            max_centers=max_centers,
            enlargement=enlargement,
        )

    if supervision != "points":
        return by_tags()
    by_points = refine_from_points(
        maps.offset_field, class_map(components), batch.cues, rules=rules, enlargement=enlargement
    )
    return by_points if batch.pointed is None else mix_labels(by_points, by_tags(), batch.pointed)


def _seen_classes(logits: Tensor, tags: Tensor, enlargement: Enlargement | None) -> Tensor:
    """The likeliest of background and tagged classes at each pixel: (B, H, W) int32, ``c + 1`` for class ``c``."""
    if enlargement is None:
        return predict_semantic(logits, tags=tags).int()
    banned = ~torch.cat([torch.ones_like(tags[:, :1]), tags], 1)[:, None, None, :]
    bands = [band.masked_fill(banned, -torch.inf).max(3).indices for _, band in enlargement.bands(cells_of(logits))]
    return torch.cat(bands, 1).int()


def _as_components(instances: LabeledInstances) -> Components:
    """Instances as what ``transfer`` chooses from."""
    return Components(
        instances.ids, instances.image, instances.classes, instances.area, center_yx=instances.center_yx.long()
    )


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

    def of(labels: LabeledInstances, kept: Tensor) -> LabeledInstances:
        """Those of some images; rows of the others stay, empty."""
        rows = kept[labels.image]
        return replace(
            labels,
            ids=labels.ids * kept[:, None, None],
            weight=labels.weight * rows,
            area=labels.area * rows,
            peaks=replace(labels.peaks, scores=labels.peaks.scores * kept[labels.peaks.image]),
        )

    return join_labels(of(of_points, pointed), of(of_tags, ~pointed))
