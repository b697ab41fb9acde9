"""Activation maps spread over the cells of an image whose features are alike: a random walk that needs no training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.ops.semantic import stretch

AFFINITY_POWER = 4
"""Exponent of the cosine similarity: the larger, the fewer cells a cell exchanges with."""
AFFINITY_STEPS = 2
"""Steps of the walk; more lose small objects."""
MOST_CELLS = 64
"""Cells along an axis above which features are averaged first: affinities are a matrix of all pairs of cells."""


@torch.no_grad()
def spread_activations(
    planes: Tensor, features: Tensor, *, power: float = AFFINITY_POWER, steps: int = AFFINITY_STEPS
) -> Tensor:
    """Spread activation maps over the image by the likeness of a backbone's features, and bring them back to [0, 1].

    The features are centred over the image. The affinity of two cells, however far apart, is the positive part of the
    cosine of their features to the power ``power``; each cell's affinities are divided by their sum. ``steps`` times, a
    cell's activation is replaced by the mean of all cells' activations with these weights. The result, from its least
    to its largest value, is stretched to [0, 1] and multiplied by the square root of the activation it came from: what
    looks like the object but lies where the classifier saw nothing at all stays background.

    Classifiers light the middle of an object in a blurred blob; features of stride 8 know where its outline is.

    Args:
        planes: (P, H, W) float in [0, 1], activation maps of one image.
        features: (F, h, w) float, of the same image, any size that covers the same part of it.
        power: Positive.
        steps: At least 0; 0 gives the planes as they are.

    Returns:
        (P, H, W) float32 in [0, 1]; a plane that is 0 everywhere stays 0.

    Raises:
        ValueError: ``power`` is not positive, ``steps`` negative or a tensor has another number of axes.

    Source: the walk is that of AffinityNet (Ahn and Kwak, CVPR 2018), with affinities that are not learnt, as the image
    prototypes of SIPE (Chen et al., CVPR 2022) are not.

    >>> features = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
    >>> spread_activations(torch.tensor([[[1.0, 0.25, 0.25, 0.0]]]), features).tolist()
    [[[1.0, 0.5, 0.0, 0.0]]]
    """
    if planes.dim() != 3 or features.dim() != 3:
        raise ValueError(f"expected planes (P, H, W) and features (F, h, w), got {planes.shape} and {features.shape}")
    if not power > 0 or steps < 0:
        raise ValueError(f"power must be positive and steps not negative, got {power} and {steps}")
    planes = planes.float()
    if steps == 0 or len(planes) == 0:
        return planes.clone()
    size = (min(features.shape[1], MOST_CELLS), min(features.shape[2], MOST_CELLS))
    if size != tuple(features.shape[1:]):
        features = F.adaptive_avg_pool2d(features, size)
    cells = features.float().flatten(1)
    unit = F.normalize(cells - cells.mean(1, keepdim=True), dim=0)
    walked = F.adaptive_avg_pool2d(planes, size).flatten(1)
    with torch.autocast(planes.device.type, enabled=False):
        weights = (unit.T @ unit).clamp(min=0) ** power
        weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        for _ in range(steps):
            walked = walked @ weights.T
    large = F.interpolate(walked.view(1, -1, *size), planes.shape[1:], mode="bilinear", align_corners=False)[0]
    return stretch(stretch(large) * planes.clamp(min=0).sqrt(), least=0.0)
