"""Box detection in plain torch: non-maximum suppression, RoIAlign, targets and losses of a Mask R-CNN.

The first two are what torchvision has as compiled operators; a torchvision built for another torch lacks them, and its
own RoIAlign without them takes a minute a training step. Boxes are (x1, y1, x2, y2), as everywhere in torchvision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as codec
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.structures import Instances, LabeledInstances

BLOCK = 1024
"""Boxes compared with each other at once: bounds the memory of ``nms``, and changes nothing of its result."""

BOX_BETA = 1 / 9
"""Where the loss of box offsets turns from a square into a line. Source: torchvision, after Detectron."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep each box that no better kept box overlaps by more than a threshold.

    Of equal scores the earlier box counts as better. Blocks of boxes, the best first, are cleared of what earlier
    blocks suppress; inside a block the decisions are repeated until they stand, which takes as many rounds as the
    longest chain of boxes that suppress each other, not as many as there are boxes.

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou_threshold: Overlap (IoU) that is still allowed.

    Returns:
        (K,) int64, kept rows, best score first.

    Source: ``torchvision.ops.nms``, with the same result.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist()
    [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    kept: list[Tensor] = []
    for start in range(0, len(boxes), BLOCK):
        block = boxes[start : start + BLOCK]
        free = torch.ones(len(block), dtype=torch.bool, device=boxes.device)
        for rows in kept:
            free &= ~_overlap(boxes[rows], block, iou_threshold).any(0)
        above = _overlap(block, block, iou_threshold).triu(1)  # by better boxes of the block
        stays = free
        while True:  # the first k decisions are final after k rounds
            suppressed = (above & stays[:, None]).any(0)
            decided = free & ~suppressed
            if torch.equal(decided, stays):
                break
            stays = decided
        kept.append(start + stays.nonzero()[:, 0])
    return order[torch.cat(kept)] if kept else order


def _overlap(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Whether the IoU of each pair of boxes exceeds a threshold: (N, M) bool."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    sides = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    common = sides[..., 0] * sides[..., 1]
    area = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (first, second)]
    # the compiled operator compares with a double: below it lies the largest limit of the boxes' own precision
    limit = torch.tensor(threshold, dtype=common.dtype)
    if limit.double() > threshold:
        limit = limit.nextafter(limit - 1)
    return common / (area[0][:, None] + area[1][None] - common) > limit.item()


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Means of a feature map over the cells of a grid in each box, sampled bilinearly.

    Each cell is a bag of (pixel, weight) pairs, four pixels a sample, and ``embedding_bag`` sums them: one fused pass
    that copies no feature. No gradient reaches the boxes.

    Args:
        input: (B, C, H, W).
        boxes: (K, 5) rows of an image's number and a box, or one (K, 4) an image.
        output_size: Cells a box, (height, width).
        spatial_scale: Pixels of ``input`` in a unit of the boxes.
        sampling_ratio: Samples a cell along each axis; if not positive, as many as the cell is pixels long.
        aligned: Whether a pixel's centre lies at a half, as its box's corners imply, instead of at a whole number.

    Returns:
        (K, C, height, width).

    Source: ``torchvision.ops.roi_align``, whose arguments these are, with the same result.

    >>> roi_align(torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[0.0, 0, 0, 1, 1]]), 1, sampling_ratio=1)
    tensor([[[[1.5000]]]])
    """
    if isinstance(boxes, list):
        numbers = torch.cat([torch.full_like(rows[:, :1], number) for number, rows in enumerate(boxes)])
        boxes = torch.cat([numbers, torch.cat(boxes)], 1)
    size = (output_size, output_size) if isinstance(output_size, int) else (output_size[0], output_size[1])
    channels, height, width = input.shape[1:]
    values = input if input.dtype == torch.float64 else input.float()
    rois = boxes.detach().to(values.dtype)
    sides = [
        _samples(rois[:, first], rois[:, first + 2], cells, length, spatial_scale, sampling_ratio, aligned)
        for first, cells, length in ((2, size[0], height), (1, size[1], width))
    ]
    (row, row_weight), (column, column_weight) = sides
    count = len(rois) * size[0] * size[1]
    if not count or not row.shape[2] or not column.shape[2]:
        return input.new_zeros(len(rois), channels, *size)
    base = rois[:, 0].long()[:, None, None, None, None] * (height * width)
    pixel = base + row[:, :, None, :, None] * width + column[:, None, :, None, :]
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    with torch.autocast(input.device.type, enabled=False):
        pooled = F.embedding_bag(
            pixel.reshape(count, -1),
            values.permute(0, 2, 3, 1).reshape(-1, channels),
            per_sample_weights=weight.reshape(count, -1),
            mode="sum",
        )
    return pooled.view(len(rois), *size, channels).permute(0, 3, 1, 2).to(input.dtype)


def _samples(
    start: Tensor, stop: Tensor, cells: int, length: int, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Along one axis of ``length`` pixels: pixels (K, cells, 2 S) int64 that S samples a cell see, and their weights.

    The weights of a cell's samples are divided by their number, so that both axes together give a mean.
    """
    shift = 0.5 if aligned else 0.0
    start, stop = start * scale - shift, stop * scale - shift
    side = stop - start if aligned else (stop - start).clamp(min=1)
    cell = side / cells
    number = torch.full_like(cell, ratio) if ratio > 0 else cell.ceil()
    most = max(0, int(number.max())) if len(number) else 0
    place = torch.arange(most, device=start.device)
    which = torch.arange(cells, device=start.device)
    step = (cell / number.clamp(min=1))[:, None, None]  # a box without extent has no samples
    at = start[:, None, None] + which[:, None] * cell[:, None, None] + (place + 0.5) * step
    counted = (place < number[:, None, None]) & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.long()
    high = (low + 1).clamp(max=length - 1)
    fraction = at - low
    weight = torch.where(counted, 1 / number.clamp(min=1)[:, None, None], 0)
    return torch.cat([low, high], 2), torch.cat([weight * (1 - fraction), weight * fraction], 2)


class DetectionTarget(NamedTuple):
    """The instances of one image.

    ``boxes``: (N, 4) float. ``labels``: (N,) int64 from 1. ``masks``: (N, H, W) bool. ``weights``: (N,) float, how much
    each counts in the losses.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    weights: Tensor


def detection_targets(instances: LabeledInstances) -> tuple[DetectionTarget, ...]:
    """What a detector learns from the instances of a batch: one target an image, in the order of the table.

    A box reaches from the outer edge of its mask's first pixel to that of the last one. Rows without a pixel or of
    weight 0 are no instances.

    >>> from bestie_pl.ops.transfer import instances_from_map
    >>> ids = torch.tensor([[[0, 2, 2], [0, 2, 0]]])
    >>> (target,) = detection_targets(instances_from_map(ids, torch.tensor([0, 0, 0]), torch.tensor([-1, 0, 4])))
    >>> target.boxes.tolist(), target.labels.tolist()
    ([[1.0, 0.0, 3.0, 2.0]], [5])
    """
    ids = instances.ids
    real = (instances.weight > 0) & (instances.area > 0)
    real[:1] = False
    targets = []
    for number, plane in enumerate(ids):
        rows = (real & (instances.image == number)).nonzero()[:, 0]
        masks = plane == rows[:, None, None]
        sides = [_extent(masks.any(axis)) for axis in (1, 2)]
        boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], 1)
        targets.append(DetectionTarget(boxes.float(), instances.classes[rows] + 1, masks, instances.weight[rows]))
    return tuple(targets)


def _extent(used: Tensor) -> tuple[Tensor, Tensor]:
    """First used place of each row of (N, L) bool, and the place after the last one; no row is empty."""
    first, last = used.int().argmax(1), used.flip(1).int().argmax(1)  # the first of equal ones
    return first, used.shape[1] - last


def box_losses(
    class_logits: Tensor, box_offsets: Tensor, labels: Tensor, offset_targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of N proposals: cross-entropy of their classes, and smooth L1 of the offsets of those on an object.

    Both are sums over the proposals, each times its weight, divided by N.

    Args:
        class_logits: (N, C + 1), channel 0 is background.
        box_offsets: (N, 4 (C + 1)), four a class.
        labels: (N,) int64, 0 for background.
        offset_targets: (N, 4).
        weights: (N,) of the objects that the proposals lie on; 1 for background.

    Source: Fast R-CNN's, as torchvision computes it; equal to it where all weights are 1.
    """
    of_class = F.cross_entropy(class_logits, labels, reduction="none")
    found = labels.nonzero()[:, 0]
    own = box_offsets.reshape(len(labels), -1, 4)[found, labels[found]]
    of_box = F.smooth_l1_loss(own, offset_targets[found], beta=BOX_BETA, reduction="none").sum(1)
    count = max(1, len(labels))
    return (of_class * weights).sum() / count, (of_box * weights[found]).sum() / count


def mask_loss(mask_logits: Tensor, labels: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of the masks of N proposals in the plane of their class, times their weights; the mean.

    Args:
        mask_logits: (N, C + 1, M, M).
        labels: (N,) int64, from 1.
        targets: (N, M, M) in [0, 1].
        weights: (N,).

    Source: Mask R-CNN's, as torchvision computes it; equal to it where all weights are 1.
    """
    if not len(labels):
        return mask_logits.sum() * 0  # no mask, but a gradient of every parameter
    own = mask_logits[torch.arange(len(labels), device=labels.device), labels]
    losses = F.binary_cross_entropy_with_logits(own, targets, reduction="none").mean((1, 2))
    return (losses * weights).mean()


def to_instances(detections: dict[str, Tensor], original_size: tuple[int, int]) -> Instances:
    """What a Mask R-CNN detects in one image, as instances at the size of the image's file.

    Args:
        detections: torchvision's: ``labels`` (N,) from 1, ``scores`` (N,), best first, and ``masks`` (N, 1, H, W), each
            pixel's probability.
        original_size: (H, W) of the file; probabilities are enlarged or reduced to it bilinearly.

    Returns:
        Instances whose masks may overlap; those without a pixel of probability 1/2 are left out.
    """
    probability = detections["masks"]
    if len(probability) and probability.shape[-2:] != original_size:
        probability = F.interpolate(probability, original_size, mode="bilinear", align_corners=False)
    inside = (probability[:, 0] >= 0.5).cpu()
    rows = inside.flatten(1).any(1).nonzero()[:, 0]
    codes = codec.encode(np.asfortranarray(inside[rows].permute(1, 2, 0).byte().numpy())) if len(rows) else []
    labels, scores = detections["labels"].cpu(), detections["scores"].float().cpu()
    return Instances(tuple(codes), labels[rows] - 1, scores[rows], original_size)
