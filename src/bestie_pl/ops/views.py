"""Views of an image, scaled or mirrored: the maps of each on a common grid, and their average."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from bestie_pl.structures import InstanceMaps


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
