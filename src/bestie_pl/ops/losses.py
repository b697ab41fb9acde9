"""What training minimises: instance-aware guidance of the centre and offset maps, cross-entropy of the semantic logits.

Labels are read as an id map and a table; no target with a channel a class is built. Maps may come at the size of the
labels, or as they leave the network with an ``Enlargement``: the values are the same up to float32 rounding, but no
map with a channel a class is enlarged as a whole. Everything is computed in float32, and an empty set of pixels gives a
loss of 0 with a gradient of 0 for any finite input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.ops import heatmaps
from bestie_pl.ops.enlarged_sums import BandedCrossEntropy, SquaresAndSamples, SquaresAndSamplesOfCells
from bestie_pl.ops.enlargement import Enlargement, PixelSpots, cells_of
from bestie_pl.recipe import Rules
from bestie_pl.structures import IGNORE, Geometry, InstanceMaps, LabeledInstances, Supervision

LEAST_COUNT = 1e-3
"""What a sum is divided by at least: the mean of the counts of very many processes may be under one pixel."""


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
    center_heatmap: Tensor,
    labels: LabeledInstances,
    *,
    geometry: Geometry,
    guidance: bool = True,
    enlargement: Enlargement | None = None,
) -> Tensor:
    """Squared error of the centre heatmap, over all class channels, at the labelled pixels.

    The sum over the classes of a pixel's squared errors, times the pixel's weight, summed over the labelled pixels and
    divided by their number (not by the sum of weights, not by the number of classes; pixels of weight 0 do not count).
    Source: paper Eqs. (3), (4); release 7.2, 7.3.

    Args:
        center_heatmap: (B, C, H, W) at the size of the labels, any float type; or smaller, with ``enlargement``.
        labels: of the same batch; ``labels.peaks`` make the target.
        geometry: gives the shape of a centre's Gaussian.
        guidance: False is the ablation without instance-aware guidance: unlabelled pixels count with weight 1 and the
            sum is divided by the number of all pixels.
        enlargement: How the heatmap becomes as large as the labels. Costs what the labelled pixels cost then.

    Returns:
        Scalar float32; 0 if nothing is labelled.

    Raises:
        ValueError: The heatmap and the labels differ in size.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 0]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> center_loss(torch.full((1, 2, 1, 3), 0.5), labels, geometry=Geometry())
    tensor(0.5000)
    """
    guide = _guide(labels, guidance=guidance)
    (total,) = _center_sums(center_heatmap, [labels], [guide], geometry=geometry, enlargement=enlargement)
    return total / guide.count.clamp(min=1)


def offset_loss(
    offset_field: Tensor, labels: LabeledInstances, *, guidance: bool = True, enlargement: Enlargement | None = None
) -> Tensor:
    """Absolute error of the offset field, summed over dy and dx, at the labelled pixels.

    Weights and divisor as for ``center_loss``. Source: paper Eqs. (3), (4); release 7.2, 7.3.

    Args:
        offset_field: (B, 2, H, W), (dy, dx) in pixels at the size of the labels, any float type; or smaller, with
            ``enlargement``.
        labels: of the same batch.
        guidance: False is the ablation: the target is 0 where nothing is labelled, and all pixels count.
        enlargement: As for ``center_loss``.

    Returns:
        Scalar float32; 0 if nothing is labelled.

    Raises:
        ValueError: The field and the labels differ in size.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> offset_loss(torch.zeros(1, 2, 1, 3), labels)
    tensor(0.5000)
    """
    guide = _guide(labels, guidance=guidance)
    return _offset_sum(offset_field, labels, guide, enlargement=enlargement) / guide.count.clamp(min=1)


def semantic_loss(
    semantic_logits: Tensor,
    semantic: Tensor,
    *,
    hard_fraction: float = 1.0,
    enlargement: Enlargement | None = None,
    mean_over_processes: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of the semantic logits; pixels of value 255 have no part in it.

    With ``hard_fraction`` 1 the mean over the pixels that are not 255 (paper Eq. (5)). Below 1, as in the release
    (7.1), the mean of the largest ``int(hard_fraction * B * H * W)`` pixel losses of the batch, at least one, where 255
    pixels take part with a loss of 0. So the limit of the release's rule for a fraction of 1 is smaller than the
    paper's mean, by the part of 255 pixels.

    Args:
        semantic_logits: (B, C + 1, H, W), any float type; channel 0 is background. Or smaller, with ``enlargement``.
        semantic: (B, H, W) integers of any type, in 0..C or 255.
        hard_fraction: in (0, 1].
        enlargement: How the logits become as large as the semantic map, some rows at a time.
        mean_over_processes: As for ``total_loss``.

    Returns:
        Scalar float32; 0 if every pixel is 255.

    Raises:
        ValueError: ``hard_fraction`` is out of range.

    >>> semantic_loss(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))
    tensor(0.6931)
    """
    if not 0 < hard_fraction <= 1:
        raise ValueError(f"hard_fraction must be in (0, 1], got {hard_fraction}")
    total, count = _semantic_sum(semantic_logits, semantic, hard_fraction=hard_fraction, enlargement=enlargement)
    if mean_over_processes is not None:
        count = mean_over_processes(count)
    return total / count.clamp(min=LEAST_COUNT)


def total_loss(
    maps: InstanceMaps,
    semantic: Tensor,
    pseudo: LabeledInstances,
    refined: LabeledInstances | None,
    *,
    supervision: Supervision,
    rules: Rules,
    geometry: Geometry,
    guidance: bool = True,
    weights: LossWeights | None = None,
    enlargement: Enlargement | None = None,
    mean_over_processes: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum that training minimises, and its terms.

    The terms of pseudo and of refined labels are added (paper Eq. (6)), or averaged (release 7.5), by
    ``rules.mean_of_terms``; ``rules.hard_fraction`` and ``rules.pseudo_centers_twice`` decide the rest. Without
    refinement the pseudo terms alone count, in full (7.6).

    Args:
        maps: of the network, at the size of the labels; or as they leave it, with ``enlargement``.
        semantic: (B, H, W) integers: the semantic map, 255 where unknown.
        pseudo: labels from transfer, or true instances.
        refined: labels from refinement; None without it.
        supervision: of the labels.
        rules: how the terms are combined.
        geometry: gives the shape of a centre's Gaussian.
        guidance: as for ``center_loss``; without it, pixels that the semantic map leaves open (255), the padding of a
            crop among them, count nowhere.
        weights: of the three kinds of loss; the paper's if omitted.
        enlargement: how the maps become as large as the labels. The better way to train: memory and time then depend
            little on the number of classes.
        mean_over_processes: Mean of a small tensor over all processes of a distributed training. The sums of all
            processes are then divided by their common count of pixels, so that a batch is the same on any number of
            devices (gradients being averaged over them); without it each process divides by its own (release 7.4).

    Returns:
        total: scalar float32.
        terms: ``semantic``, ``center_pseudo``, ``offset_pseudo`` and, with refinement, ``center_refined`` and
            ``offset_refined``; each times its weight, before the release's halving.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> labels = instances_from_map(torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    >>> maps = InstanceMaps(torch.zeros(1, 2, 1, 3), torch.zeros(1, 1, 1, 3), torch.zeros(1, 2, 1, 3))
    >>> from bestie_pl.recipe import PAPER
    >>> total, terms = total_loss(maps, torch.tensor([[[0, 1, 1]]]), labels, None, supervision="full", rules=PAPER,
    ...                           geometry=Geometry())
    >>> sorted(terms), bool(total == sum(terms.values()))
    (['center_pseudo', 'offset_pseudo', 'semantic'], True)
    """
    weights = weights or LossWeights()
    labels = [pseudo] if refined is None else [pseudo, refined]
    known = None if guidance else semantic != IGNORE
    guides = [_guide(one, guidance=guidance, known=known) for one in labels]
    twice = rules.pseudo_centers_twice and supervision == "points"
    of_centers = [0] * len(labels) if twice else list(range(len(labels)))
    by_semantic, pixels = _semantic_sum(
        maps.semantic_logits, semantic, hard_fraction=rules.hard_fraction, enlargement=enlargement
    )
    center = _center_sums(
        maps.center_heatmap,
        [labels[i] for i in of_centers],
        [guides[i] for i in of_centers],
        geometry=geometry,
        enlargement=enlargement,
    )
    offset = [
        _offset_sum(maps.offset_field, one, guide, enlargement=enlargement)
        for one, guide in zip(labels, guides, strict=True)
    ]
    counts = torch.stack([pixels, *(guide.count for guide in guides)])
    if mean_over_processes is not None:
        counts = mean_over_processes(counts)
    pixels, *each = counts.clamp(min=LEAST_COUNT).unbind()

    terms = {"semantic": weights.semantic * (by_semantic / pixels)}
    for name, of_center, count_of_center, of_offset, count in zip(
        ("pseudo", "refined"), center, [each[i] for i in of_centers], offset, each, strict=False
    ):
        terms[f"center_{name}"] = weights.center * (of_center / count_of_center)
        terms[f"offset_{name}"] = weights.offset * (of_offset / count)
    share = 1 / len(labels) if rules.mean_of_terms else 1.0
    instance_terms = [term for name, term in terms.items() if name != "semantic"]
    return terms["semantic"] + share * torch.stack(instance_terms).sum(), terms


def _semantic_sum(
    logits: Tensor, semantic: Tensor, *, hard_fraction: float, enlargement: Enlargement | None
) -> tuple[Tensor, Tensor]:
    """Sum of the pixels' cross-entropies that count, and how many they are; both scalars float32."""
    # not reduced there: a plain float32 sum over millions of pixels loses digits, Tensor.sum does not
    if enlargement is None:
        loss = F.cross_entropy(logits.float(), semantic.long(), ignore_index=IGNORE, reduction="none")
    else:
        _check_enlargement(logits, semantic, enlargement)
        loss = BandedCrossEntropy.apply(cells_of(logits), semantic, enlargement)  # type: ignore[no-untyped-call]
    if hard_fraction == 1:
        return loss.sum(), (semantic != IGNORE).sum().float()
    hard = max(1, int(hard_fraction * loss.numel()))
    return loss.flatten().topk(hard, sorted=False).values.sum(), torch.full_like(loss[0, 0, 0], hard)


@dataclass(frozen=True)
class _Guide:
    """Where a loss of the instance branches looks: weight of each pixel (B, H, W), and the number of pixels, ().

    ``labelled_only``: pixels of weight 0 count nowhere.
    """

    weight: Tensor
    count: Tensor
    labelled_only: bool


def _guide(labels: LabeledInstances, *, guidance: bool, known: Tensor | None = None) -> _Guide:
    """Instance-aware guidance: the labelled pixels; without it all that are ``known`` (B, H, W), all if omitted."""
    weight = heatmaps.weight_map(labels)
    if guidance:
        return _Guide(weight, (weight > 0).sum().float(), labelled_only=True)
    weight = weight.where(labels.ids > 0, 1.0)
    if known is None:
        return _Guide(weight, torch.full_like(weight[0, 0, 0], weight.numel()), labelled_only=False)
    return _Guide(weight * known, known.sum().float(), labelled_only=False)


def _center_sums(
    center_heatmap: Tensor,
    labels: Sequence[LabeledInstances],
    guides: Sequence[_Guide],
    *,
    geometry: Geometry,
    enlargement: Enlargement | None,
) -> list[Tensor]:
    """Weighted sum of squared errors of one heatmap against several labels, with one pass over the heatmap.

    The target is zero but near the peaks: ``(z - t)^2 = z^2 + t (t - 2 z)``, the second part only where t is not 0.
    """
    if enlargement is None:
        for one in labels:
            _check_size(center_heatmap, one)
    else:
        _check_enlargement(center_heatmap, labels[0].ids, enlargement)
    height, width = labels[0].ids.shape[1:]
    shape = (*center_heatmap.shape[:2], height, width)
    classes, plane = shape[1], height * width
    sparse = [heatmaps.sparse_heatmap(one.peaks, shape, geometry.sigma, geometry.gaussian_reach) for one in labels]
    pixels = [index // (classes * plane) * plane + index % plane for index, _ in sparse]
    if enlargement is None:
        squares, samples = SquaresAndSamples.apply(  # type: ignore[no-untyped-call]
            center_heatmap.float(), torch.cat([index for index, _ in sparse])
        )
    else:
        counted = torch.stack([guide.weight for guide in guides]).amax(0).flatten().nonzero().squeeze(1)
        channel = torch.cat([index // plane % classes for index, _ in sparse])
        some, samples = SquaresAndSamplesOfCells.apply(  # type: ignore[no-untyped-call]
            cells_of(center_heatmap), enlargement, counted, torch.cat(pixels), channel
        )
        squares = some.new_zeros(labels[0].ids.numel()).index_put((counted,), some)
    sums = []
    each = samples.split([len(index) for index, _ in sparse])
    for (_, target), pixel, sample, guide in zip(sparse, pixels, each, guides, strict=True):
        # added pixel by pixel: the sums of both parts over the image nearly cancel once the network has learned
        error = squares.flatten().index_add(0, pixel, target * (target - 2 * sample)).view_as(guide.weight)
        sums.append(_weighted_sum(error, guide.weight))
    return sums


def _offset_sum(
    offset_field: Tensor, labels: LabeledInstances, guide: _Guide, *, enlargement: Enlargement | None
) -> Tensor:
    """Weighted sum of absolute errors; with guidance an enlarged field is read at the labelled pixels only."""
    if enlargement is not None and guide.labelled_only:
        _check_enlargement(offset_field, labels.ids, enlargement)
        ids = labels.ids.flatten()
        pixel = (labels.weight > 0).index_select(0, ids).nonzero().squeeze(1)
        row = ids.index_select(0, pixel)
        _, y, x = PixelSpots.of(pixel, enlargement.size)
        offsets = enlargement.locate(pixel, offset_field.shape).read_all(offset_field)
        target_y, target_x = labels.center_yx.index_select(0, row).unbind(1)
        error = (offsets[0] - (target_y - y)).abs() + (offsets[1] - (target_x - x)).abs()
        return (error * labels.weight.index_select(0, row)).sum()
    if enlargement is not None:
        offset_field = enlargement(offset_field)  # two channels only, and every pixel counts
    _check_size(offset_field, labels)
    error = (offset_field.float() - heatmaps.offset_field(labels)).abs().sum(1)
    return _weighted_sum(error, guide.weight)


def _weighted_sum(error: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight times error; an error of weight 0 has no part in it even if it overflowed."""
    return (error.where(weight > 0, 0.0) * weight).sum()


def _check_size(values: Tensor, labels: LabeledInstances) -> None:
    batch, height, width = labels.ids.shape
    if (len(values), *values.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"a map of shape {tuple(values.shape)} does not fit labels of {batch} images of {height} x {width} px; "
            "enlarge them first (BestieModel.enlarge), or give their `enlargement`"
        )


def _check_enlargement(values: Tensor, labels: Tensor, enlargement: Enlargement) -> None:
    if (len(values), *enlargement.size) != tuple(labels.shape):
        raise ValueError(
            f"{len(values)} maps that are enlarged to {enlargement.size} do not fit labels of shape "
            f"{tuple(labels.shape)}; enlarge to the size of the labels"
        )
