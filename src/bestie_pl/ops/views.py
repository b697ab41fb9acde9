"""Views of an image, scaled or mirrored: the maps of each on a common grid, and their average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.structures import InstanceMaps


def check_scales(name: str, scales: Sequence[float]) -> tuple[float, ...]:
    """The scales of a setting.

    Raises:
        ValueError: There is none, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"{name} must be positive numbers, at least one, got {list(scales)}")
    return tuple(scales)


def see(images: Tensor, scale: float, *, mirrored: bool = False, step: int = 1) -> Tensor:
    """Images (B, 3, H, W) as they look at another scale, in whole ``step`` pixels a side; mirrored or not.

    >>> see(torch.zeros(1, 3, 10, 20), 0.5).shape, see(torch.zeros(1, 3, 10, 20), 0.5, step=4).shape
    (torch.Size([1, 3, 5, 10]), torch.Size([1, 3, 4, 8]))
    """
    if scale != 1:
        size = (images.shape[-2], images.shape[-1])
        seen = tuple(max(1, round(side * scale / step)) * step for side in size)
        if seen != size:
            images = F.interpolate(images, seen, mode="bilinear", antialias=scale < 1)
    return images.flip(-1) if mirrored else images


def mean_probabilities(views: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the views' class probabilities (B, C + 1, H, W), from their logits.

    >>> mean_probabilities([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])]).exp().tolist()
    [[0.5, 0.5]]
    """
    return torch.stack([logits.log_softmax(1) for logits in views]).logsumexp(0) - math.log(len(views))


def mirror_maps(maps: InstanceMaps) -> InstanceMaps:
    """Maps of mirrored images as maps of the images, or the reverse: columns in reverse order, dx with its sign turned.

    >>> zero, offsets = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0, 0]], [[1, 3]]]])
    >>> mirror_maps(InstanceMaps(zero, zero, offsets)).offset_field[0, 1].tolist()
    [[-3, -1]]
    """
    logits, heatmap, offsets = (values.flip(-1) for values in maps)
    return InstanceMaps(logits, heatmap, offsets * offsets.new_tensor([1, -1])[:, None, None])


@torch.no_grad()
def average_maps(views: Iterable[InstanceMaps], *, average_offsets: bool) -> InstanceMaps:
    """One set of maps from several views of the same images: mirrored, at other scales.

    Args:
        views: At least one; all on the same pixels, offsets in these pixels. Taken one at a time.
        average_offsets: Whether offsets are averaged like the rest; False keeps those of the first view (release 10.1).

    Returns:
        ``semantic_logits`` are logarithms of the averaged probabilities: their softmax gives these. All float32.

    >>> zero = torch.zeros(1, 1, 1, 2)
    >>> one = InstanceMaps(zero, torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 2, 1, 2))
    >>> average_maps([one, mirror_maps(one)], average_offsets=False).center_heatmap.tolist()
    [[[[0.5, 0.5]]]]
    """
    count = 0
    for count, view in enumerate(views, 1):
        logits, heatmap, offsets = (values.float() for values in view)
        logits = logits.log_softmax(1)
        if count == 1:
            total = InstanceMaps(logits, heatmap, offsets)
        else:
            total = InstanceMaps(
                torch.logaddexp(total.semantic_logits, logits),
                total.center_heatmap + heatmap,
                total.offset_field + offsets if average_offsets else total.offset_field,
            )
    if not count:
        raise ValueError("no view to average")
    return InstanceMaps(
        total.semantic_logits - math.log(count),
        total.center_heatmap / count,
        total.offset_field / count if average_offsets else total.offset_field,
    )
