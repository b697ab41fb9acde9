"""What training minimises: instance-aware guidance of the centre and offset maps, cross-entropy of the semantic logits.

Labels are read as an id map and a table; no target with a channel a class is built. Everything is computed in float32,
and an empty set of pixels gives a loss of 0 with a gradient of 0 for any finite input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.ops import heatmaps
from bestie_pl.structures import IGNORE, Geometry, InstanceMaps, LabeledInstances, Recipe, Supervision

HARD_FRACTION = {"paper": 1.0, "release": 0.2}
"""Part of the pixels, the hardest, that the semantic loss averages over. Source: paper Eq. (5); release 7.1."""


@dataclass(frozen=True)
class LossWeights:
    """Factors of the three kinds of loss. Source: paper Eq. (6), from Panoptic-DeepLab."""

    center: float = 200.0
    offset: float = 0.01
    semantic: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"{field.name} must not be negative, got {getattr(self, field.name)}")


def center_loss(
    center_heatmap: Tensor, labels: LabeledInstances, *, geometry: Geometry, guidance: bool = True
) -> Tensor:
    """Squared error of the centre heatmap, over all class channels, at the labelled pixels.

    The sum over the classes of a pixel's squared errors, times the pixel's weight, summed over the labelled pixels and
    divided by their number (not by the sum of weights, not by the number of classes; pixels of weight 0 do not count).
    Source: paper Eqs. (3), (4); release 7.2, 7.3.

    Args:
        center_heatmap: (B, C, H, W) at the size of the labels, any float type.
        labels: of the same batch; ``labels.peaks`` make the target.
        geometry: gives the shape of a centre's Gaussian.
        guidance: False is the ablation without instance-aware guidance: unlabelled pixels count with weight 1 and the
            sum is divided by the number of all pixels.

    Returns:
        Scalar float32; 0 if nothing is labelled.

    Raises:
        ValueError: The heatmap and the labels differ in size.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 0]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> center_loss(torch.full((1, 2, 1, 3), 0.5), labels, geometry=Geometry())
    tensor(0.5000)
    """
    return _center_losses(center_heatmap, [labels], geometry=geometry, guidance=guidance)[0]


def offset_loss(offset_field: Tensor, labels: LabeledInstances, *, guidance: bool = True) -> Tensor:
    """Absolute error of the offset field, summed over dy and dx, at the labelled pixels.

    Weights and divisor as for ``center_loss``. Source: paper Eqs. (3), (4); release 7.2, 7.3.

    Args:
        offset_field: (B, 2, H, W), (dy, dx) in pixels at the size of the labels, any float type.
        labels: of the same batch.
        guidance: False is the ablation: the target is 0 where nothing is labelled, and all pixels count.

    Returns:
        Scalar float32; 0 if nothing is labelled.

    Raises:
        ValueError: The field and the labels differ in size.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> offset_loss(torch.zeros(1, 2, 1, 3), labels)
    tensor(0.5000)
    """
    _check_size(offset_field, labels)
    error = (offset_field.float() - heatmaps.offset_field(labels)).abs().sum(1)
    weight, count = _pixel_weights(labels, guidance=guidance)
    return _weighted_sum(error, weight) / count


def semantic_loss(semantic_logits: Tensor, semantic: Tensor, *, hard_fraction: float = 1.0) -> Tensor:
    """Cross-entropy of the semantic logits; pixels of value 255 have no part in it.

    With ``hard_fraction`` 1 the mean over the pixels that are not 255 (paper Eq. (5)). Below 1, as in the release
    (7.1), the mean of the largest ``int(hard_fraction * B * H * W)`` pixel losses of the batch, at least one, where 255
    pixels take part with a loss of 0. So the limit of the release's rule for a fraction of 1 is smaller than the
    paper's mean, by the part of 255 pixels.

    Args:
        semantic_logits: (B, C + 1, H, W), any float type; channel 0 is background.
        semantic: (B, H, W) integers of any type, in 0..C or 255.
        hard_fraction: in (0, 1].

    Returns:
        Scalar float32; 0 if every pixel is 255.

    Raises:
        ValueError: ``hard_fraction`` is out of range.

    >>> semantic_loss(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))
    tensor(0.6931)
    """
    if not 0 < hard_fraction <= 1:
        raise ValueError(f"hard_fraction must be in (0, 1], got {hard_fraction}")
    # not reduced there: a plain float32 sum over millions of pixels loses digits, Tensor.sum does not
    loss = F.cross_entropy(semantic_logits.float(), semantic.long(), ignore_index=IGNORE, reduction="none")
    if hard_fraction == 1:
        return loss.sum() / (semantic != IGNORE).sum().clamp(min=1)
    hard = max(1, int(hard_fraction * loss.numel()))
    return loss.flatten().topk(hard, sorted=False).values.mean()


def total_loss(
    maps: InstanceMaps,
    semantic: Tensor,
    pseudo: LabeledInstances,
    refined: LabeledInstances | None,
    *,
    supervision: Supervision,
    recipe: Recipe,
    geometry: Geometry,
    guidance: bool = True,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum that training minimises, and its terms.

    The paper adds the terms of pseudo and of refined labels (Eq. (6)); the release takes their mean (7.5), trains the
    semantic logits on the hardest fifth of the pixels (7.1) and, with points, uses the pseudo labels' centre term in
    place of the refined labels' (7.7). Without refinement the pseudo terms alone count, in full (7.6).

    Args:
        maps: of the network, at the size of the labels.
        semantic: (B, H, W) integers: the semantic map, 255 where unknown.
        pseudo: labels from transfer, or true instances.
        refined: labels from refinement; None without it.
        supervision: of the labels.
        recipe: how the terms are combined.
        geometry: gives the shape of a centre's Gaussian.
        guidance: as for ``center_loss``.
        weights: of the three kinds of loss; the paper's if omitted.

    Returns:
        total: scalar float32.
        terms: ``semantic``, ``center_pseudo``, ``offset_pseudo`` and, with refinement, ``center_refined`` and
            ``offset_refined``; each times its weight, before the release's halving.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> maps = InstanceMaps(torch.zeros(1, 2, 1, 3), torch.zeros(1, 1, 1, 3), torch.zeros(1, 2, 1, 3))
    >>> total, terms = total_loss(maps, torch.tensor([[[0, 1, 1]]]), labels, None, supervision="full", recipe="paper",
    ...                           geometry=Geometry())
    >>> sorted(terms), bool(total == sum(terms.values()))
    (['center_pseudo', 'offset_pseudo', 'semantic'], True)
    """
    weights = weights or LossWeights()
    labels = [pseudo] if refined is None else [pseudo, refined]
    guiding_centers = [pseudo for _ in labels] if recipe == "release" and supervision == "points" else labels
    center = _center_losses(maps.center_heatmap, guiding_centers, geometry=geometry, guidance=guidance)
    offset = [offset_loss(maps.offset_field, one, guidance=guidance) for one in labels]
    instance_terms = {}
    for name, of_centers, of_offsets in zip(("pseudo", "refined"), center, offset, strict=False):
        instance_terms[f"center_{name}"] = weights.center * of_centers
        instance_terms[f"offset_{name}"] = weights.offset * of_offsets
    share = 1 / len(labels) if recipe == "release" else 1.0
    by_semantic = weights.semantic * semantic_loss(maps.semantic_logits, semantic, hard_fraction=HARD_FRACTION[recipe])
    total = by_semantic + share * torch.stack(list(instance_terms.values())).sum()
    return total, {"semantic": by_semantic} | instance_terms


class _SquaresAndSamples(torch.autograd.Function):
    """Sum over the channels of a map's squares, (B, H, W), and the map's values at some flat indices, (E,).

    Two autograd operations would each build and then add up a dense gradient of the whole map; here there is one.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(values, index)
        return values.square().sum(1), values.flatten()[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        values, index = ctx.saved_tensors
        of_squares, of_samples = gradients
        gradient = (values * (2 * of_squares)[:, None]).flatten()
        return gradient.index_add_(0, index, of_samples).view(values.shape), None


def _center_losses(
    center_heatmap: Tensor, labels: Sequence[LabeledInstances], *, geometry: Geometry, guidance: bool
) -> list[Tensor]:
    """``center_loss`` of one heatmap against several labels, with one pass over the heatmap.

    The target is zero but near the peaks: ``(z - t)^2 = z^2 + t (t - 2 z)``, the second part only where t is not 0.
    """
    for one in labels:
        _check_size(center_heatmap, one)
    sparse = [
        heatmaps.sparse_heatmap(one.peaks, center_heatmap.shape, geometry.sigma, geometry.gaussian_reach)
        for one in labels
    ]
    indices = torch.cat([index for index, _ in sparse])
    squares, samples = _SquaresAndSamples.apply(center_heatmap.float(), indices)  # type: ignore[no-untyped-call]
    _, classes, height, width = center_heatmap.shape
    plane = height * width
    losses = []
    each = samples.split([len(index) for index, _ in sparse])
    for one, (index, target), sample in zip(labels, sparse, each, strict=True):
        pixel = index // (classes * plane) * plane + index % plane
        # added pixel by pixel: the sums of both parts over the image nearly cancel once the network has learned
        error = squares.flatten().index_add(0, pixel, target * (target - 2 * sample)).view_as(squares)
        weight, count = _pixel_weights(one, guidance=guidance)
        losses.append(_weighted_sum(error, weight) / count)
    return losses


def _pixel_weights(labels: LabeledInstances, *, guidance: bool) -> tuple[Tensor, Tensor | int]:
    """Weight of each pixel's error, (B, H, W), and the number of pixels to divide by, at least 1."""
    weight = heatmaps.weight_map(labels)
    if guidance:
        return weight, (weight > 0).sum().clamp(min=1)
    return weight.where(labels.ids > 0, 1.0), weight.numel()


def _weighted_sum(error: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight times error; an error of weight 0 has no part in it even if it overflowed."""
    return (error.where(weight > 0, 0.0) * weight).sum()


def _check_size(values: Tensor, labels: LabeledInstances) -> None:
    batch, height, width = labels.ids.shape
    if (len(values), *values.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"a map of shape {tuple(values.shape)} does not fit labels of {batch} images of {height} x {width} px; "
            "enlarge the network's maps to the size of the labels first (InstanceMaps.resize)"
        )
