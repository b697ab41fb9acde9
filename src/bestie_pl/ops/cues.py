"""From a classifier's features to cues: peak attention, pooling of class maps, activation maps and their peaks.

A *plane* is one class map of one image; only tagged classes have one, so nothing here grows with the number of classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.structures import Cues

Pooling = Literal["mean", "topk", "ngwp"]

CUE_WINDOW = 15
"""Side in pixels of the window in which a cue must be the maximum (release 12.7)."""
CUE_THRESHOLD = 0.1
"""Least value of a cue (release 12.7)."""
CUE_LIMIT = 25
"""Most cues of a class in an image (release 12.7)."""
TOP_SHARE = 0.04
"""Share of the cells that ``topk`` pooling averages."""
NGWP_BACKGROUND = 1.0
"""Logit of the background in ``ngwp`` pooling."""
EPSILON = 1e-5
"""Added to an activation map's maximum before dividing by it (release 12.5)."""


def peak_attention(features: Tensor, alpha: float) -> Tensor:
    """Rectify, and keep of each channel what is at least ``alpha`` times its maximum over the image.

    Equal values stay, a channel without a positive value stays zero, and the gradient flows through what is kept.

    Args:
        features: (B, C, H, W).
        alpha: In [0, 1]; 0 only rectifies.

    Source: paper section 3.4 ("peak attention module"); with equality, as in release 12.2.

    >>> peak_attention(torch.tensor([[[[-1.0, 0.6, 0.7, 1.0]]]]), 0.7).tolist()
    [[[[0.0, 0.0, 0.699999988079071, 1.0]]]]
    """
    x = features.relu()
    if alpha == 0:
        return x
    return x.masked_fill(x < alpha * x.detach().amax((-2, -1), keepdim=True), 0)


def pool(maps: Tensor, how: Pooling) -> Tensor:
    """Image logits from class maps, in float32.

    ``mean`` of all cells is the paper's; it rewards evidence that is spread over the background. ``topk`` is the mean
    of the largest 4 % of the cells. ``ngwp`` is the mean of a map weighted by its own softmax ``p`` against the other
    maps and a constant background: ``sum(p m) / (1 + sum(p))``.

    Args:
        maps: (B, C, H, W).
        how: Name of the pooling.

    Returns:
        (B, C).

    Source: paper section 3.4 for ``mean``; normalised global weighted pooling is that of the single-stage method of
    Araslanov and Roth, CVPR 2020.
    """
    cells = maps.float().flatten(2)
    if how == "mean":
        return cells.mean(2)
    if how == "topk":
        return cells.topk(math.ceil(TOP_SHARE * cells.shape[2]), dim=2, sorted=False).values.mean(2)
    weights = F.pad(cells, (0, 0, 1, 0), value=NGWP_BACKGROUND).softmax(1)[:, 1:]
    return (weights * cells).sum(2) / (1 + weights.sum(2))


def activation_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Class maps enlarged to ``size``, rectified, and divided by their maximum.

    Args:
        planes: (P, h, w), class maps before rectification.
        size: (H, W) of the result.

    Returns:
        (P, H, W) float32 in [0, 1); a plane without a positive value is 0.

    Source: release 12.5: rectified before it is enlarged; bilinear, corners not aligned.
    """
    large = F.interpolate(planes.float().relu()[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return large / (large.amax((-2, -1), keepdim=True) + EPSILON)


def smooth(planes: Tensor) -> Tensor:
    """3 x 3 mean of planes (P, H, W); zeros beyond the border count, so a maximum at the border moves inwards.

    Source: release 12.6.
    """
    return F.avg_pool2d(planes[:, None], 3, stride=1, padding=1)[:, 0]


@torch.no_grad()
def find_cues(
    planes: Tensor,
    image: Tensor,
    classes: Tensor,
    *,
    window: int = CUE_WINDOW,
    threshold: float = CUE_THRESHOLD,
    limit: int = CUE_LIMIT,
    every_equal: bool = False,
) -> Cues:
    """Local maxima of activation maps.

    Args:
        planes: (P, H, W) float, smoothed activation maps.
        image: (P,) int64, image of each plane.
        classes: (P,) int64, class of each plane.
        window: Side of the window in which a cue is the maximum, in pixels; odd.
        threshold: Least value, positive.
        limit: Most cues of a plane; the largest stay.
        every_equal: As in the release, all equal maxima of a window are cues. Otherwise only the first of them in
            row-major order is, so that a plateau gives one cue: two would cost the object its label.

    Returns:
        Cues in the order of the planes, in each plane by descending score, then in row-major order.

    Raises:
        ValueError: ``threshold`` is not positive, ``window`` not odd or ``limit`` below 1.

    Source: paper section 3.4; release 12.7.

    >>> plane = torch.tensor([[[0.9, 0.2, 0.5, 0.0, 0.8, 0.8]]])
    >>> find_cues(plane, torch.tensor([0]), torch.tensor([3]), window=5).yx.tolist()
    [[0.0, 0.0], [0.0, 4.0]]
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}: an activation map is 0 where nothing is")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    height, width = planes.shape[1:]
    peak = (planes >= threshold) & (planes == _window_maximum(planes, window))
    if not every_equal:
        # two peaks in one window are equal; the one that comes first has the larger rank. float32 ends at 2**24
        rank = torch.arange(height * width, 0, -1, device=planes.device, dtype=torch.float64).view(height, width)
        rank = rank * peak
        peak &= rank == _window_maximum(rank, window)
    plane, y, x = peak.nonzero().unbind(1)
    score = planes[plane, y, x].float()
    order = score.argsort(descending=True, stable=True)
    order = order[plane[order].argsort(stable=True)]
    plane = plane[order]
    place = torch.arange(len(plane), device=plane.device) - torch.searchsorted(plane, plane)
    order, plane = order[place < limit], plane[place < limit]
    return Cues(image[plane], torch.stack([y[order], x[order]], 1).float(), classes[plane], score[order])


def _window_maximum(planes: Tensor, window: int) -> Tensor:
    """Largest value within a square window around each pixel: rows, then columns, which is the same for less."""
    rows = F.max_pool2d(planes[:, None], (window, 1), stride=1, padding=(window // 2, 0))
    return F.max_pool2d(rows, (1, window), stride=1, padding=(0, window // 2))[:, 0]
