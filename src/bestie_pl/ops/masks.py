"""Run-length codes: from a label map to the instances of each image, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pycocotools import mask as codec
from torch import Tensor

from bestie_pl.ops.runs import paint_codes
from bestie_pl.structures import Instances, LabeledInstances


def encode(ids: Tensor) -> tuple[Tensor, tuple[dict[str, Any], ...]]:
    """Run-length codes of all regions of a label map, the same bytes as pycocotools makes of their masks.

    Reads the map once, however many instances it holds; no stack of masks is built.

    Args:
        ids: (H, W) integers, 0 where there is nothing.

    Returns:
        numbers: (N,) int64 on the CPU, the values of the map in ascending order.
        codes: N codes ``{"size": [H, W], "counts": bytes}``.

    >>> encode(torch.tensor([[0, 7], [3, 7]]))[0].tolist()
    [3, 7]
    """
    height, width = ids.shape
    # codes run down the columns: the lengths of nothing and mask in turn, beginning with nothing
    value, length = torch.unique_consecutive(ids.t().flatten(), return_counts=True)
    value, length = value.cpu().long(), length.cpu()
    end = length.cumsum(0)
    start = end - length
    order = value.argsort(stable=True)[(value == 0).sum() :]
    value, start, end = value[order], start[order], end[order]
    numbers, runs = torch.unique_consecutive(value, return_counts=True)
    stop = runs.cumsum(0)
    previous = end.roll(1)
    previous[stop - runs] = 0
    counts = torch.stack([start - previous, end - start], 1).flatten().tolist()
    rest = (height * width - end[stop - 1]).tolist()
    bounds = [0, *(2 * stop).tolist()]
    parts = [counts[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    plain = [
        {"size": [height, width], "counts": part + [tail] if tail else part}
        for part, tail in zip(parts, rest, strict=True)
    ]
    return numbers, tuple(codec.frPyObjects(plain, height, width)) if plain else ()


def to_instances(
    labels: LabeledInstances, *, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
) -> tuple[Instances, ...]:
    """Cut a batch of label maps into the instances of each image, at the size of the image's file.

    Args:
        labels: Of B images; ``weight`` is the score.
        sizes: B pairs (H, W), the part of the map that is no padding.
        original_sizes: B pairs (H, W). Where it differs from the size, each pixel takes the value at its own centre
            (nearest, pixel centres aligned).

    Returns:
        B ``Instances`` on the CPU by descending score, equal scores in the order of the table. Rows without a pixel are
        left out; an image without instances gives a result of length 0.

    Raises:
        ValueError: If the number of sizes is not the number of maps.
    """
    if not len(labels.ids) == len(sizes) == len(original_sizes):
        raise ValueError(f"{len(labels.ids)} maps, {len(sizes)} sizes and {len(original_sizes)} original sizes")
    classes, weight = labels.classes.cpu(), labels.weight.float().cpu()
    results = []
    for ids, (height, width), original in zip(labels.ids, sizes, original_sizes, strict=True):
        rows, codes = encode(resize_map(ids[:height, :width], original))
        order = weight[rows].argsort(descending=True, stable=True)
        masks = tuple(codes[i] for i in order.tolist())
        results.append(Instances(masks, classes[rows[order]], weight[rows[order]], original))
    return tuple(results)


def resize_map(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (H, W) of numbers at another size, by nearest neighbour: pixel i of n shows what lies at (i + 1/2) / n.

    >>> resize_map(torch.tensor([[1, 2, 3]]), (2, 2)).tolist()
    [[1, 3], [1, 3]]
    """
    if numbers.shape == size:
        return numbers
    y, x = (
        (2 * torch.arange(new, device=numbers.device) + 1) * old // (2 * new)
        for old, new in zip(numbers.shape, size, strict=True)
    )
    return numbers[y][:, x]


def mask_iou(predictions: Instances, references: Instances) -> Tensor:
    """Intersection over union of every prediction with every reference.

    Classes and crowd flags are not looked at.

    Returns:
        (N, M) float32 in [0, 1]: quotients of whole numbers in single precision, as in the authors' evaluation, so that
        7 / 10 equals float32(0.7). NaN where both masks are empty.

    Raises:
        ValueError: If the sizes differ.
    """
    if predictions.size != references.size:
        raise ValueError(f"masks of sizes {predictions.size} and {references.size} cannot be compared")
    if not len(predictions) or not len(references):
        return torch.zeros(len(predictions), len(references))
    first, second = list(predictions.masks), list(references.masks)
    iou = torch.from_numpy(codec.iou(first, second, [0] * len(second))).float()
    # one by one: pycocotools 2.0.11 counts the masks of a list in 8 bits
    empty = [torch.tensor([int(codec.area(code)) == 0 for code in codes]) for codes in (first, second)]
    return iou.masked_fill(empty[0][:, None] & empty[1], torch.nan)


def decode(instances: Instances) -> Tensor:
    """The masks: (N, H, W) bool on the CPU; (0, H, W) if there are none."""
    if not len(instances):
        return torch.zeros(0, *instances.size, dtype=torch.bool)
    stack = torch.from_numpy(codec.decode(list(instances.masks)))  # (H, W, N), columns first in memory
    return stack.permute(2, 0, 1).bool().contiguous()


def paint(instances: Instances) -> Tensor:
    """A label map of instances: (H, W) int32, 0 for nothing, ``i + 1`` for instance i; later ones cover earlier ones.

    >>> numbers, masks = encode(torch.tensor([[0, 7], [3, 7]]))
    >>> paint(Instances(masks, numbers, numbers.float(), (2, 2))).tolist()
    [[0, 2], [1, 2]]
    """
    return paint_codes(instances.masks, instances.size)
