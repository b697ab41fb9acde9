"""Inference: the network's maps to scored instances, over the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bestie_pl.ops.components import label_components
from bestie_pl.ops.enlargement import find_spots
from bestie_pl.ops.grouping import Groups, class_probability, group_by_points, group_pixels
from bestie_pl.ops.peaks import Centers, Foreground, find_centers, gather_foreground
from bestie_pl.ops.refinement import group_probability, mark_centers
from bestie_pl.recipe import Rules
from bestie_pl.structures import IGNORE, Components, Cues, Geometry, InstanceMaps, LabeledInstances


@torch.no_grad()
def predict_semantic(logits: Tensor, *, valid: Tensor | None = None, tags: Tensor | None = None) -> Tensor:
    """The most likely class of each pixel, the first of equally likely ones.

    Args:
        logits: (B, C + 1, H, W), channel 0 is background; C at most 254.
        valid: (B, H, W) bool, False in the padding; all if omitted.
        tags: (B, C) bool, the classes that may be predicted beside background; all if omitted.

    Returns:
        (B, H, W) uint8, a semantic map; 255 in the padding.

    >>> predict_semantic(torch.tensor([[[[0.0]], [[1.0]], [[2.0]]]]), tags=torch.tensor([[True, False]])).tolist()
    [[[1]]]
    """
    if tags is not None:
        allowed = torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
        logits = logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    # max gives the first of equal ones too, and four times as fast as argmax over a dimension that is not the last
    semantic = logits.max(1).indices.byte()
    return semantic if valid is None else semantic.masked_fill(~valid, IGNORE)


@torch.no_grad()
def find_instances(
    maps: InstanceMaps,
    *,
    geometry: Geometry,
    rules: Rules,
    threshold: float = 0.1,
    clustering: bool = True,
    keep_without_center: bool = True,
    valid: Tensor | None = None,
    tags: Tensor | None = None,
) -> tuple[LabeledInstances, Tensor]:
    """Instances that the network sees: components of its semantic map, centres in them, pixels grouped by these.

    The score is a centre score times the mean class probability of the instance.

    - ``rules.scored_by`` center: the score of the centre that grouped the pixels, clamped to [0, 1].
    - Group (release section 10): the largest heatmap value of the group; if that is 1 or more, as it is at every
      clustered centre there, the mean probability takes its place: the score is then the probability's square (10.5).

    Differences from the release on purpose: no instance gives an empty result instead of an empty mask of class 0 with
    score 0 (10.7). Masks lie on the grid of ``maps`` and offsets are in its pixels: who wants another size enlarges the
    maps with scaled offsets before, or the masks after; the release scaled offsets alone, which then pointed beside the
    centres (10.2).

    Args:
        maps: (B, ..., H, W), at the resolution that ``geometry`` is in; ``semantic_logits`` may be log-probabilities.
        geometry: Lengths in pixels.
        rules: See above.
        threshold: Centre score, positive; exceeded or reached, by ``rules.strict_peaks``.
        clustering: Whether points where the offsets converge complement the peaks.
        keep_without_center: Whether a component without a centre is one instance, with its largest heatmap value as
            centre score, or nothing.
        valid: (B, H, W) bool, False in the padding; all if omitted.
        tags: (B, C) bool, an oracle: only these classes may be predicted. Probabilities stay those of all classes.

    Returns:
        The instances, ``weight`` being the score (of a group: not clamped from below, a centre score may be negative),
        by component and centre; and the semantic map (B, H, W) uint8, 255 in the padding.

    Raises:
        ValueError: The maps differ in size, or ``threshold`` is not positive.

    Source: paper Eq. (1) and section 3.5 for grouping and clustering; release section 10.
    """
    semantic = predict_semantic(maps.semantic_logits, valid=valid, tags=tags)
    components = label_components(semantic.masked_fill(semantic == IGNORE, 0))
    foreground = gather_foreground(maps, components, min_area=geometry.min_area)
    centers = find_centers(foreground, geometry=geometry, threshold=threshold, rules=rules, clustering=clustering)
    heat = mark_centers(foreground, centers)
    if keep_without_center:
        centers = _with_whole_components(centers, foreground)
    owner = group_pixels(
        foreground.pixel,
        foreground.offset,
        foreground.component,
        centers,
        components=len(components.area),
        size=(semantic.shape[1], semantic.shape[2]),
    )
    groups = Groups.of(foreground.pixel, owner, centers)
    probability = group_probability(maps.semantic_logits, foreground, groups)
    if rules.scored_by == "center":
        center_score = centers.score[groups.center].clamp(0, 1)
    else:
        center_score = groups.maximum(heat)
        center_score = probability.where(center_score >= 1, center_score)
    component = centers.component[groups.center]
    instances = groups.label(
        semantic.shape,
        image=components.image[component],
        classes=components.classes[component],
        center_yx=centers.yx[groups.center],
        weight=center_score * probability,
    )
    return instances, semantic


def _with_whole_components(centers: Centers, foreground: Foreground) -> Centers:
    """The centres, and for each component without one its centroid, scored by its largest heatmap value."""
    components: Components = foreground.components
    _, count = centers.spans(len(components.area))
    # row 0 and components that are too small are among them; they have no pixels in the list, so nothing comes of it
    lonely = (count == 0).nonzero().squeeze(1)
    largest = foreground.heat.new_full((len(count),), -torch.inf)
    largest.scatter_reduce_(0, foreground.component, foreground.heat, "amax")
    return Centers.sorted(
        torch.cat([centers.component, lonely]),
        torch.cat([centers.yx, components.center_yx[lonely]]),
        torch.cat([centers.score, largest[lonely]]),
    )


@torch.no_grad()
def find_instances_from_points(
    maps: InstanceMaps, points: Cues, *, tags: Tensor, valid: Tensor | None = None
) -> tuple[LabeledInstances, Tensor]:
    """Instances of images whose objects' points are given, an oracle: the pixels of a class grouped by its points.

    Only tagged classes may be predicted. No components, no smallest area and no heatmap: every class pixel goes to the
    point that its offset is nearest to, and the score is the mean class probability. A class without points gives
    nothing. Without any instance the result is empty (the release: an empty mask of class 0).

    Args:
        maps: (B, ..., H, W); the heatmap is not read.
        points: In pixels of ``maps``; rows of score 0 are empty slots.
        tags: (B, C) bool.
        valid: (B, H, W) bool, False in the padding; all if omitted.

    Returns:
        The instances, ``weight`` being the score, and the semantic map; see ``find_instances``. ``peaks`` are the
        points as given.

    Raises:
        ValueError: The maps differ in size.

    Source: release 10.8.
    """
    semantic = predict_semantic(maps.semantic_logits, valid=valid, tags=tags)
    class_map = semantic.masked_fill(semantic == IGNORE, 0)
    groups, image, classes, center_yx = group_by_points(maps.offset_field, class_map, points)
    spots = find_spots(groups.pixel, maps.semantic_logits.shape, None)
    probability = class_probability(maps.semantic_logits, spots, class_map.flatten()[groups.pixel].long() - 1)
    instances = groups.label(
        class_map.shape,
        image=image,
        classes=classes,
        center_yx=center_yx,
        weight=groups.mean(probability),
        peaks=points,
    )
    return instances, semantic
