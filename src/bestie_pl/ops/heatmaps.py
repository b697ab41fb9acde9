"""The dense maps that a label map and its table stand for: centre heatmap, offset field, weights.

Losses read the table and never build a heatmap with all classes; the dense forms are for pictures and comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from kornia.filters import get_gaussian_kernel2d
from kornia.geometry import create_meshgrid
from torch import Tensor

from bestie_pl.structures import Cues, LabeledInstances


def sparse_heatmap(peaks: Cues, shape: Sequence[int], sigma: float, reach: int) -> tuple[Tensor, Tensor]:
    """The pixels of a centre heatmap that are not zero, each once, and their values.

    A peak draws a Gaussian of height 1 in a square around its pixel (its rounded position), cut off at the square's and
    the image's border; where two squares of one class overlap, the larger value counts. Peaks outside the image and
    peaks of score 0 draw nothing. Source: paper section 3.2; release 3.1 and 3.2.

    Args:
        peaks: N peaks; ``image`` in 0..B-1 and ``classes`` in 0..C-1 where the score is not 0.
        shape: of the heatmap, (B, C, H, W).
        sigma: Standard deviation in pixels.
        reach: Half side of the square in pixels; see ``Geometry.gaussian_reach``.

    Returns:
        index: (E,) int64, sorted, into the flattened heatmap; E is 0 if nothing is drawn.
        value: (E,) float32 in (0, 1].

    >>> peak = Cues(torch.tensor([0]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([1.0]))
    >>> index, value = sparse_heatmap(peak, (1, 1, 2, 3), sigma=1.0, reach=1)
    >>> index.tolist()
    [0, 1, 2, 3, 4, 5]
    >>> [round(v, 3) for v in value.tolist()]
    [0.607, 1.0, 0.607, 0.368, 0.607, 0.368]
    """
    _, classes, height, width = shape
    step = torch.arange(-reach, reach + 1, device=peaks.yx.device)
    kernel = get_gaussian_kernel2d(2 * reach + 1, (sigma, sigma), device=step.device)[0]
    gaussian = kernel / kernel.max()  # Kornia's sums to 1
    y, x = peaks.yx.round().long()[:, :, None, None].unbind(1)  # two times (N, 1, 1)
    drawn = (peaks.scores > 0)[:, None, None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y + step[:, None], x + step
    drawn = drawn & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = ((peaks.image * classes + peaks.classes)[:, None, None] * height + y) * width + x
    entry = drawn.flatten().nonzero().squeeze(1)
    index, slot = torch.unique(index.flatten().index_select(0, entry), return_inverse=True)
    value = torch.zeros(len(index), device=index.device)
    return index, value.scatter_reduce_(0, slot, gaussian.flatten()[entry % gaussian.numel()], "amax")


def center_heatmap(peaks: Cues, shape: Sequence[int], sigma: float, reach: int) -> Tensor:
    """The centre heatmap of the peaks, (B, C, H, W) float32 in [0, 1]; 0 where nothing is drawn.

    Arguments and source as for ``sparse_heatmap``. 14 MB an image of 416 x 416 with 20 classes: for looking, not for
    training.

    >>> peak = Cues(torch.tensor([0]), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), torch.tensor([1.0]))
    >>> center_heatmap(peak, (1, 2, 1, 3), sigma=1.0, reach=0).tolist()
    [[[[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]]
    """
    index, value = sparse_heatmap(peaks, shape, sigma, reach)
    dense = torch.zeros(math.prod(shape), device=value.device)
    return dense.scatter_(0, index, value).view(*shape)


def offset_field(labels: LabeledInstances) -> Tensor:
    """From each labelled pixel to its instance's centre: (B, 2, H, W) float32, (dy, dx) in pixels; 0 where unlabelled.

    Source: paper section 3.2.

    >>> t = torch.tensor
    >>> labels = LabeledInstances(t([[[0, 1, 1]]]).int(), t([0, 0]), t([-1, 0]), t([[0.0, 0.0], [0.0, 1.5]]),
    ...                           t([0.0, 1.0]), t([0, 2]), Cues.empty())
    >>> offset_field(labels).tolist()
    [[[[0.0, 0.0, 0.0]], [[0.0, 0.5, -0.5]]]]
    """
    height, width = labels.ids.shape[1:]
    x, y = create_meshgrid(height, width, normalized_coordinates=False, device=labels.ids.device)[0].unbind(-1)
    labelled = labels.ids > 0
    center_y, center_x = labels.center_yx.unbind(1)
    return torch.stack([(center_y[labels.ids] - y) * labelled, (center_x[labels.ids] - x) * labelled], 1)


def weight_map(labels: LabeledInstances) -> Tensor:
    """How sure the label of each pixel is: (B, H, W) float32 in [0, 1]; 0 where unlabelled. Source: paper Eq. (2).

    >>> t = torch.tensor
    >>> labels = LabeledInstances(t([[[0, 1, 1]]]).int(), t([0, 0]), t([-1, 0]), t([[0.0, 0.0], [0.0, 1.5]]),
    ...                           t([0.0, 0.5]), t([0, 2]), Cues.empty())
    >>> weight_map(labels).tolist()
    [[[0.0, 0.5, 0.5]]]
    """
    return labels.weight.index_select(0, labels.ids.flatten()).view(labels.ids.shape)
