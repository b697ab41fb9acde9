"""Refined labels: what the network itself sees inside the components of the semantic map (self-refinement)."""

from __future__ import annotations

import torch
from torch import Tensor

from bestie_pl.ops.capacity import EXACT, Capacity, attempts, take
from bestie_pl.ops.enlargement import Enlargement, PixelSpots
from bestie_pl.ops.grouping import USUAL_CENTERS, Groups, class_probability, group_by_points, group_pixels
from bestie_pl.ops.peaks import Centers, Foreground, center_pixels, find_centers, gather_foreground
from bestie_pl.recipe import Rules
from bestie_pl.structures import Components, Cues, Geometry, InstanceMaps, LabeledInstances

MAX_CENTERS = 5
"""A component with more instances is left alone: its grouping is unreliable (release 5.2)."""


@torch.no_grad()
def refine_from_tags(
    maps: InstanceMaps,
    components: Components,
    *,
    geometry: Geometry,
    rules: Rules,
    threshold: float = 0.3,
    clustering: bool = True,
    max_centers: int = MAX_CENTERS,
    enlargement: Enlargement | None = None,
) -> LabeledInstances:
    """Refined labels of a batch whose images have tags.

    Pixels come from the given components, everything else from the network: centres in each component, then its pixels
    grouped by them. Small components, components without a centre and crowded ones stay unlabelled.

    - ``rules.scored_by`` center: the offsets point to the centre that the pixels were grouped by, and the weight is its
      score (Eq. 2). Group (release section 5): the offsets point to the pixel with the largest heatmap value *of the
      group*, and the weight is that value times the mean class probability; if the value is below the threshold, to the
      component's centroid and the weight is the mean probability alone.
    - ``rules.crowded_by`` centers: more than ``max_centers`` centres disqualify a component. Owners: a centre after its
      first ``max_centers`` does if it owns a pixel.

    Args:
        maps: At the resolution of ``components``, or smaller with ``enlargement``; read in float32.
        components: Of the tagged classes of the semantic map.
        geometry: Lengths in pixels.
        rules: See above.
        threshold: Centre score, positive; exceeded or reached, by ``rules.strict_peaks``.
        clustering: Whether points where the offsets converge complement the peaks.
        max_centers: See above.
        enlargement: How the maps become as large as the components. They are read at the components' pixels only.

    Returns:
        Instances numbered by component, then centre; weights clamped to [0, 1]; ``peaks`` are the instances' centres.

    Raises:
        ValueError: The maps have another size than the components, or ``threshold`` is not positive.

    Source: paper section 3.5, Eq. (2).
    """
    for capacity in attempts(components.labels.device):
        foreground = gather_foreground(
            maps, components, min_area=geometry.min_area, enlargement=enlargement, capacity=capacity
        )
        centers = find_centers(
            foreground,
            geometry=geometry,
            threshold=threshold,
            rules=rules,
            clustering=clustering,
            capacity=capacity,
        )
        if rules.crowded_by == "centers":
            centers = centers.without_crowds(max_centers)
        owner = group_pixels(
            foreground.pixel,
            foreground.offset,
            foreground.component,
            centers,
            components=len(components.area),
            size=(components.labels.shape[1], components.labels.shape[2]),
            max_rank=max_centers if rules.crowded_by == "owners" else None,
            usual=max_centers if rules.crowded_by == "centers" else USUAL_CENTERS,
            capacity=capacity,
        )
        groups = Groups.of(foreground.pixel, owner, centers, capacity=capacity)

    pixels = capacity.count("pixels")
    foreground, centers = foreground.cut(pixels), centers.cut(capacity.count("centers"))
    groups = groups.cut(pixels, capacity.count("groups"))
    component = centers.component[groups.center]
    if rules.scored_by == "center":
        center_yx, weight = centers.yx[groups.center], centers.score[groups.center]
    else:
        center_yx, weight = _rescore(maps.semantic_logits, foreground, centers, groups, threshold, capacity)
    return groups.label(
        components.labels.shape,
        image=components.image[component],
        classes=components.classes[component],
        center_yx=center_yx,
        weight=weight.clamp(0, 1),
    )


def _rescore(
    logits: Tensor,
    foreground: Foreground,
    centers: Centers,
    groups: Groups,
    threshold: float,
    capacity: Capacity,
) -> tuple[Tensor, Tensor]:
    """Centre (N, 2) and weight (N,) that the release gives to a group (5.3 to 5.5)."""
    components = foreground.components
    heat = mark_centers(foreground, centers)
    score = groups.maximum(heat)
    best = groups.first(heat == torch.cat([score.new_full((1,), torch.nan), score]).index_select(0, groups.ids))
    _, y, x = PixelSpots.of(best, (components.labels.shape[1], components.labels.shape[2]))
    probability = group_probability(logits, foreground, groups, capacity=capacity)
    sure = score >= threshold
    centroid = components.center_yx[centers.component[groups.center]]
    return (
        torch.stack([y, x], 1).where(sure[:, None], centroid),
        (score * probability).where(sure, probability),
    )


def mark_centers(foreground: Foreground, centers: Centers) -> Tensor:
    """The heatmap at the foreground's pixels, 1 where a clustered centre lies (release 4.9): (P,) float32."""
    where = torch.searchsorted(foreground.pixel, center_pixels(centers, foreground.components))
    # at a peak this writes what is there already
    return foreground.heat.index_put((where,), centers.score)


def group_probability(logits: Tensor, foreground: Foreground, groups: Groups, *, capacity: Capacity = EXACT) -> Tensor:
    """Mean probability of its component's class over each group: (N,) float32."""
    inside = capacity.narrow(groups.ids > 0)
    classes = foreground.components.classes.index_select(0, take(foreground.component, inside))
    spots = foreground.spots if inside is None else foreground.spots.select(inside)
    probability = class_probability(logits, spots, classes)
    if inside is not None:
        probability = torch.zeros_like(foreground.heat).index_copy_(0, inside, probability)
    return groups.mean(probability)


@torch.no_grad()
def refine_from_points(
    offset_field: Tensor,
    classes: Tensor,
    points: Cues,
    *,
    rules: Rules,
    enlargement: Enlargement | None = None,
) -> LabeledInstances:
    """Refined labels of a batch whose objects have points: pixels of each class grouped by the class's points.

    The whole class map takes part: no components, no smallest area; a point may lie outside its class, and points of
    other classes do not compete. Classes without a point stay unlabelled. With ``rules.whole_points`` they are cut to
    integers, and those in the first row or column are lost (release 6.2); otherwise all of them stay as they are.

    Args:
        offset_field: (B, 2, H, W), (dy, dx) in pixels, or smaller with ``enlargement``; read in float32.
        classes: (B, H, W) int32, the tagged classes of the semantic map: 0 outside, ``c + 1`` for class ``c``.
        points: One point an object, of tagged classes; rows of score 0 are empty slots.
        rules: See above.
        enlargement: How the field becomes as large as the class map. It is read at pixels of classes only.

    Returns:
        Instances of weight 1, sorted by image and class, then in the order of ``points``, whose offsets point to the
        point. ``peaks`` are the points as given.

    Raises:
        ValueError: ``offset_field`` and ``classes`` differ in size.

    Source: paper section 3.5; release section 6.
    """
    used = points
    if rules.whole_points:
        whole = points.yx.trunc()
        used = Cues(points.image, whole, points.classes, points.scores * (whole != 0).all(1))
    groups, image, own, center_yx = group_by_points(offset_field, classes, used, enlargement=enlargement)
    weight = torch.ones_like(center_yx[:, 0])
    return groups.label(classes.shape, image=image, classes=own, center_yx=center_yx, weight=weight, peaks=points)
