"""Semantic maps grown from points: which pixels look like the object of their point rather than like the background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.ops.components import label_components
from bestie_pl.ops.semantic import pixel_adaptive_refinement
from bestie_pl.ops.transfer import component_of
from bestie_pl.structures import IGNORE, Cues

REACH = 0.5
"""Distance to the point, relative to the spacing of the points, at which being near says neither object nor not; also
the largest spacing, relative to the shorter side of the image, for images with few points."""

NEARNESS = 2.0
"""Log-odds of being object right at the point."""

SEED = 0.15
"""Radius around a point that is object, relative to the spacing; at least ``LEAST_SEED`` pixels."""

LEAST_SEED = 1.5

FAR = 0.2
"""Share of the pixels, those farthest from all points, that is background; more if points lie far apart."""

CONTRAST_WEIGHT = 0.5
"""What the contrast of the cell says counts half of what the colours of the image say."""

CONTRAST_LIMIT, COLOR_LIMIT = 8.0, 4.0
"""Largest log-odds that each of the two may give."""

BINS = 16
"""Of the colour histogram, along each channel."""

ROUNDS = 2
"""How often objects are looked for and their colours measured anew."""

DILATIONS, ITERATIONS = (1, 2, 4), 5
"""Of the refinement: less than for a classifier's maps, since these follow the image already."""

BAND = 0.15
"""Pixels whose probability is this close to one half are undecided."""


@torch.no_grad()
def grow_semantic(points: Cues, image: Tensor, *, band: float = BAND) -> Tensor:
    """A semantic map of an image from one point per object and nothing else.

    Each pixel belongs to the cell of its nearest point and is object or background. Three things speak for object, and
    their log-odds are added up: that it is near the point, relative to the spacing of the points; that its colour is
    nearer to the cell's object than to the background, in units of the colours' spread (two Gaussians with one
    variance); and that its colour is commoner in the image's objects than in its background (two histograms). Objects
    start as discs around the points, background as what is far from all of them; both are then measured anew. The
    probabilities are refined by the colours of the image. Since each object has a point, regions without one are
    background.

    Args:
        points: Of this image, ``image`` 0, in its pixels; their scores do not matter, unless they are 0.
        image: (3, H, W) float RGB in [0, 1].
        band: Pixels with a probability of object closer to one half than this are undecided, in [0, 0.5).

    Returns:
        (H, W) uint8: 0 background, ``c + 1`` class ``c``, 255 undecided. Each point inside the image lies on a pixel of
        its class, unless another point is nearer to that pixel. All 0 without a point.

    Raises:
        ValueError: An image of another shape or type, or ``band`` out of range.

    Source: own. The parts are common: Voronoi cells and colour clusters of point-supervised nuclei segmentation (Qu et
    al., MIDL 2019), colour histograms of interactive segmentation (Boykov and Jolly, ICCV 2001).

    >>> image = torch.full((3, 9, 24), 0.2)
    >>> image[:, 2:7, 3:8] = 0.9
    >>> point = Cues(torch.tensor([0]), torch.tensor([[4.0, 5.0]]), torch.tensor([1]), torch.tensor([1.0]))
    >>> semantic = grow_semantic(point, image)
    >>> semantic.unique().tolist(), int((semantic == 2).sum())
    ([0, 2], 25)
    """
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"expected a floating-point image (3, H, W), got {tuple(image.shape)} {image.dtype}")
    if not 0 <= band < 0.5:
        raise ValueError(f"expected 0 <= band < 0.5, got {band}")
    size = (image.shape[1], image.shape[2])
    limit = image.new_tensor(size)
    inside = (points.scores > 0) & (points.yx.round() >= 0).all(1) & (points.yx.round() < limit).all(1)
    points = points.select(inside)
    if len(points) == 0:
        return torch.zeros(size, dtype=torch.uint8, device=image.device)
    distance, cell = _nearest(points.yx.float(), size)
    spacing = _spacing(points.yx.float(), size)
    seed = distance <= max(LEAST_SEED, SEED * spacing)
    far = (distance >= min(spacing, _quantile(distance, 1 - FAR))) & ~seed
    with torch.autocast(image.device.type, enabled=False):  # half precision cannot count an image's pixels
        probability = _object_probability(image.float(), distance / (REACH * spacing), cell, seed, far, len(points))

    semantic = (points.classes[cell] + 1).byte()
    semantic[probability <= 0.5 + band] = IGNORE
    semantic[probability <= 0.5 - band] = 0
    semantic = torch.where(seed, (points.classes[cell] + 1).byte(), semantic)
    return _keep_pointed(semantic, points)


def _nearest(yx: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Distance (H, W) of each pixel to its nearest point, and which one that is, (H, W) int64."""
    height, width = size
    x = torch.arange(width, device=yx.device)
    distance, cell = yx.new_empty(size), torch.empty(size, dtype=torch.int64, device=yx.device)
    rows = max(1, 2**22 // (width * len(yx)))  # a table of all distances would not fit into memory
    for first in range(0, height, rows):
        y = torch.arange(first, min(first + rows, height), device=yx.device)
        square = (y[:, None, None] - yx[:, 0]).square() + (x[:, None] - yx[:, 1]).square()
        nearest, cell[first : first + rows] = square.min(-1)
        distance[first : first + rows] = nearest.sqrt()
    return distance, cell


def _spacing(yx: Tensor, size: tuple[int, int]) -> float:
    """Median distance of a point to its nearest neighbour, in pixels; half the shorter side if that is less."""
    half = REACH * min(size)
    if len(yx) == 1:
        return half
    between = torch.cdist(yx, yx).fill_diagonal_(torch.inf)
    return max(1.0, min(half, float(between.amin(1).median())))


def _quantile(values: Tensor, share: float) -> float:
    # torch.quantile refuses more than 16 million values
    flat = values.flatten()
    return float(flat.kthvalue(max(1, min(len(flat), round(share * len(flat))))).values)


def _object_probability(image: Tensor, distance: Tensor, cell: Tensor, seed: Tensor, far: Tensor, count: int) -> Tensor:
    """(H, W) probability of each pixel to be object; ``distance`` is 1 where nearness says nothing."""
    smooth = F.avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0]
    colors, cells = smooth.flatten(1).T, cell.flatten()
    bins = _bins(smooth)
    nearness = NEARNESS * (1 - distance)
    is_object, is_background = seed, far
    for _ in range(ROUNDS):
        inner, outer = is_object.flatten().float(), is_background.flatten().float()
        log_odds = (
            nearness.flatten()
            + CONTRAST_WEIGHT * _contrast(colors, cells, inner, outer, count)
            + _likelihood_ratio(bins, inner, outer)
        )
        odds = log_odds.view(image.shape[1:]).sigmoid()
        probability = pixel_adaptive_refinement(odds[None], image, dilations=DILATIONS, iterations=ITERATIONS)[0]
        is_object = ((probability > 0.5) & ~far) | seed
        is_background = (probability <= 0.5) & ~seed
    return probability


def _contrast(colors: Tensor, cells: Tensor, inner: Tensor, outer: Tensor, count: int) -> Tensor:
    """Log-odds (N,) of two Gaussians: the colours of the cell's object and of the image's background."""
    mass = inner.new_zeros(count).index_add_(0, cells, inner)
    mean = inner.new_zeros(count, 3).index_add_(0, cells, colors * inner[:, None]) / mass.clamp(min=1)[:, None]
    background = (colors * outer[:, None]).sum(0) / outer.sum().clamp(min=1)
    axis = (mean - background)[cells]
    gap = axis.square().sum(1).clamp(min=1e-8)
    place = ((colors - background) * axis).sum(1) / gap  # 0 background, 1 object
    spread = (place.clamp(-1, 2) - 1).square() * inner + place.clamp(-1, 2).square() * outer
    variance = (spread * gap).sum() / (inner + outer).sum().clamp(min=1)
    log_odds: Tensor = ((place - 0.5) * gap / variance.clamp(min=1e-8)).clamp(-CONTRAST_LIMIT, CONTRAST_LIMIT)
    return log_odds * (mass > 0)[cells]  # a cell without a pixel of its own says nothing


def _bins(image: Tensor) -> Tensor:
    """(H * W,) bin of each pixel's colour; the square root spreads the dark colours of fluorescence images."""
    low = image.amin()
    high = max(_quantile(channel, 0.995) for channel in image)
    level = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).sqrt()
    r, g, b = (level * (BINS - 1)).round().long().flatten(1).unbind()
    return (r * BINS + g) * BINS + b


def _likelihood_ratio(bins: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Log-odds (N,) of each pixel's bin in the histograms, blurred by one bin, of objects and of background."""
    counts = torch.stack([inner.new_zeros(BINS**3).index_add_(0, bins, weight) for weight in (inner, outer)])
    x = torch.arange(-3, 4, device=counts.device)
    kernel = (-x.square() / 2).exp()
    volume = counts.view(2, 1, BINS, BINS, BINS)
    for shape, padding in (((7, 1, 1), (3, 0, 0)), ((1, 7, 1), (0, 3, 0)), ((1, 1, 7), (0, 0, 3))):
        volume = F.conv3d(volume, kernel.view(1, 1, *shape).to(volume), padding=padding)
    shares = volume.flatten(1) / volume.flatten(1).sum(1, keepdim=True).clamp(min=1e-6) + 1e-6
    ratio: Tensor = (shares[0] / shares[1]).log().clamp(-COLOR_LIMIT, COLOR_LIMIT)
    return ratio[bins]


def _keep_pointed(semantic: Tensor, points: Cues) -> Tensor:
    """The map with regions, undecided pixels included, that hold no point of their class made background."""
    classes = semantic.int()
    components = label_components(torch.where(semantic == IGNORE, 0, classes)[None])
    pointed = torch.zeros(len(components.area), dtype=torch.bool, device=semantic.device)
    pointed[component_of(components, points)] = True
    pointed[0] = True  # background and undecided pixels stay
    kept = torch.where(pointed[components.labels[0].long()], semantic, 0)
    # undecided pixels around what is left out are background too
    filled = label_components((kept > 0).int()[None])
    of_points = points.yx.round().long()
    pointed = torch.zeros(len(filled.area), dtype=torch.bool, device=semantic.device)
    pointed[filled.labels[0, of_points[:, 0], of_points[:, 1]].long()] = True
    return torch.where(pointed[filled.labels[0].long()], kept, 0)
