"""Semantic maps from a classifier's activation maps, and refinement of class scores by the colours of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from kornia.filters import otsu_threshold
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.structures import IGNORE

DILATIONS = (1, 2, 4, 8)
"""Distances in pixels at which a pixel looks at its neighbours."""

CONTRAST = 0.1
"""A colour difference of this many local standard deviations lowers an affinity by a factor e."""

WIDE_DILATIONS = (1, 2, 4, 8, 12)
"""Of the refinement at half the image's size: a pixel looks up to 24 pixels of the image far."""

BACKGROUND = 0.2
"""Activation below which a pixel is background. With ``BAND``, what is below 0.05 or above 0.35 is certain, close to
the published 0.05 and 0.30 (IRNet, CVPR 2019); fixed once, on generated scenes that no reported score is of."""

BAND = 0.15
"""Activations this close to the background threshold decide nothing."""

ITERATIONS = {"activations": 40, "network": 20}
"""Rounds of averaging: a classifier's blurred maps need more than a network's at stride 4."""


@torch.no_grad()
def pixel_adaptive_refinement(
    probabilities: Tensor, image: Tensor, *, dilations: Sequence[int] = DILATIONS, iterations: int = 10
) -> Tensor:
    """Average score maps over neighbours of similar colour, again and again.

    A neighbour's affinity is ``exp(-d)`` where ``d`` is the absolute difference of a colour channel in units of
    ``CONTRAST`` times that channel's standard deviation around the pixel, averaged over the channels; affinities are
    divided by their sum over the eight neighbours at all dilations. The standard deviation (unbiased) is taken over the
    3 x 3 pixels of every dilation together. Beyond the border the image and the maps repeat their outermost pixels.
    Each round replaces every value by a weighted mean of its neighbours' values, so bounds, sums over the maps and
    constant maps are kept.

    One image at a time: its maps stay in the cache, and only those that matter have to be there.

    Args:
        probabilities: (K, H, W) scores of any kind.
        image: (3, H, W) float RGB; its scale does not matter.
        dilations: distances in pixels, positive.
        iterations: rounds; 0 gives the maps as they are.

    Returns:
        (K, H, W) float32.

    Raises:
        ValueError: Sizes differ, an image that is not floating point, a dilation below 1 or negative ``iterations``.

    Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020, section 3.3 (PAMR).

    >>> image = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).expand(3, 1, 6)
    >>> maps = torch.tensor([[[0.0, 0.9, 0.0, 0.0, 0.0, 0.0]]])
    >>> pixel_adaptive_refinement(maps, image, dilations=[1]).gt(0.3).tolist()
    [[[True, True, True, False, False, False]]]
    """
    if probabilities.dim() != 3 or image.shape != (3, *probabilities.shape[1:]) or not image.is_floating_point():
        raise ValueError(
            f"expected maps (K, H, W) and a floating-point image (3, H, W) of the same size, got "
            f"{tuple(probabilities.shape)} and {tuple(image.shape)} {image.dtype}"
        )
    if not dilations or min(dilations) < 1 or iterations < 0:
        raise ValueError(f"dilations {tuple(dilations)} must be at least 1, iterations {iterations} not negative")
    maps = probabilities.float()
    if iterations == 0 or len(maps) == 0:
        return maps.clone()
    weights = _affinities(image.float(), dilations)
    refined = maps
    for _ in range(iterations):
        around = _Neighbors(refined, dilations)
        refined = torch.zeros_like(maps)
        for number, weight in enumerate(weights):
            refined.addcmul_(around[number], weight)
    return refined


@torch.no_grad()
def refine_widely(planes: Tensor, image: Tensor, *, iterations: int) -> Tensor:
    """Refine activation maps by the image's colours over half an object rather than along its outline.

    ``pixel_adaptive_refinement`` at half the image's size, with neighbours up to 12 of its pixels away. That moves
    activations three times as far as the published distances do, for a third of the time. Averaging lowers the largest
    activation, so each plane is divided by it.

    Args:
        planes: (P, H, W) float in [0, 1].
        image: (3, H, W) float RGB.
        iterations: Rounds; 0 gives the planes as they are.

    Returns:
        (P, H, W) float32 in [0, 1].
    """
    if iterations == 0 or len(planes) == 0:
        return planes.float().clone()
    return stretch(_refined_at_half_size(planes, image, iterations=iterations), least=0.0)


def _refined_at_half_size(planes: Tensor, image: Tensor, *, iterations: int) -> Tensor:
    height, width = planes.shape[1:]
    size = ((height + 1) // 2, (width + 1) // 2)
    small = F.interpolate(image.float()[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    maps = F.interpolate(planes.float()[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    refined = pixel_adaptive_refinement(maps, small, dilations=WIDE_DILATIONS, iterations=iterations)
    return F.interpolate(refined[None], (height, width), mode="bilinear", align_corners=False)[0]


def stretch(planes: Tensor, *, least: float | None = None) -> Tensor:
    """Planes (P, H, W) moved and scaled so that each goes from 0, at ``least`` or its own least value, to 1.

    A plane of one value becomes 0, also where rounding makes its values differ.
    """
    low = planes.amin((1, 2), keepdim=True) if least is None else least
    high = (planes - low).amax((1, 2), keepdim=True)
    return torch.where(high > 1e-4, (planes - low) / high.clamp(min=torch.finfo(planes.dtype).tiny), 0.0)


class _Neighbors:
    """Views of a map (K, H, W) shifted to each neighbour, borders repeated; eight a dilation, in a fixed order."""

    def __init__(self, values: Tensor, dilations: Sequence[int]) -> None:
        self.height, self.width = values.shape[1:]
        self.reach = max(dilations)
        self.shifts = [(d * y, d * x) for d in dilations for y, x in product((-1, 0, 1), repeat=2) if (y, x) != (0, 0)]
        self.padded = F.pad(values[None], (self.reach,) * 4, mode="replicate")[0]

    def __len__(self) -> int:
        return len(self.shifts)

    def __getitem__(self, number: int) -> Tensor:
        y, x = (self.reach + shift for shift in self.shifts[number])
        return self.padded[:, y : y + self.height, x : x + self.width]


def _affinities(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """(N, H, W) weights of the N = 8 x dilations neighbours of each pixel; they sum to 1."""
    around = _Neighbors(image, dilations)
    # differences to the pixel itself have the neighbourhood's variance and, unlike the values, keep their digits
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for number in range(len(around)):
        difference = around[number] - image
        total += difference
        squares.addcmul_(difference, difference)
    count = len(around) + len(dilations)  # the pixel itself is in the 3 x 3 pixels of each dilation
    deviation = ((squares - total.square() / count) / (count - 1)).clamp(min=0).sqrt()
    scale = -1 / (CONTRAST * deviation + torch.finfo(torch.float32).eps)
    logits = image.new_empty(len(around), *image.shape[1:])
    for number in range(len(around)):
        logits[number] = ((around[number] - image).abs_() * scale).mean(0)
    return logits.softmax(0)


@torch.no_grad()
def refine_activations(planes: Tensor, image: Tensor, *, iterations: int, wide: bool) -> Tensor:
    """Activation maps (P, H, W) refined by the image's colours, over their usual distances or ``wide`` ones."""
    refine = refine_widely if wide else pixel_adaptive_refinement
    return refine(planes, image, iterations=iterations)


@torch.no_grad()
def otsu_background(scores: Tensor) -> float:
    """The threshold between two groups of activations: with it the variance between their means is largest.

    Over the pixels of many images together these are objects and background, so it says without any mask where one
    ends and the other begins.

    Args:
        scores: Largest refined activation of pixels, in [0, 1], any shape.

    Raises:
        ValueError: No pixel.

    Source: Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979.

    >>> otsu_background(torch.tensor([0.0, 0.1, 0.1, 0.2, 0.7, 0.8, 0.9])) < 0.7
    True
    """
    if scores.numel() == 0:
        raise ValueError("no pixel to find a threshold for")
    _, threshold = otsu_threshold(scores.float().reshape(1, -1))
    return float(threshold)


@torch.no_grad()
def semantic_from_activations(
    activations: Tensor,
    tags: Tensor,
    image: Tensor,
    *,
    background: float = BACKGROUND,
    band: float = BAND,
    iterations: int = ITERATIONS["activations"],
    wide: bool = False,
) -> Tensor:
    """A semantic map from the activation maps of an image's tagged classes.

    The maps are refined by the image's colours; a pixel goes to the class of the largest refined activation. Background
    is a class of constant activation ``background``, which refinement leaves constant, so it is a threshold afterwards.
    Pixels for which thresholds of ``background - band`` and ``background + band`` give different answers are ignored.

    Args:
        activations: (C, H, W) float in [0, 1], each tagged class divided by its maximum.
        tags: (C,) bool; other classes do not appear in the map.
        image: (3, H, W) float RGB.
        background: threshold in (0, 1).
        band: at least 0; 0 ignores nothing.
        iterations: of ``pixel_adaptive_refinement``; 0 leaves the activations as they are.
        wide: refine over larger distances and stretch the result to a maximum of 1 (``refine_widely``).

    Returns:
        (H, W) uint8: 0 background, ``c + 1`` class ``c``, 255 undecided. All 0 without a tag.

    Raises:
        ValueError: Sizes differ, or the thresholds are not between 0 and 1.

    >>> cam = torch.tensor([[[1.0, 0.5, 0.16, 0.0]], [[1.0, 1.0, 1.0, 1.0]]])
    >>> semantic_from_activations(cam, torch.tensor([True, False]), torch.zeros(3, 1, 4), iterations=0).tolist()
    [[1, 1, 255, 0]]
    """
    if not (band >= 0 and background - band >= 0 and background + band < 1):
        raise ValueError(f"expected 0 <= background - band and background + band < 1, got {background} and {band}")
    classes = tags.nonzero()[:, 0]
    if len(classes) == 0:
        return torch.zeros(activations.shape[1:], dtype=torch.uint8, device=activations.device)
    score, best = refine_activations(activations[classes], image, iterations=iterations, wide=wide).max(0)
    semantic = (classes[best] + 1).byte()
    semantic[score <= background + band] = IGNORE
    semantic[score <= background - band] = 0
    return semantic


@torch.no_grad()
def with_every_tag(logits: Tensor, tags: Tensor, *, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Class probabilities of images whose tags are known: of tagged classes only, and each of them likely somewhere.

    A network that saw few objects of a class can find other classes likelier everywhere, in spite of the tag. The odds
    of such a class are then raised by one factor an image, so that at its likeliest pixel it is as likely as all others
    together, the ones without a tag included. Activation maps have that from being divided by their maximum.

    Args:
        logits: (B, C + 1, H, W), channel 0 is background; log-probabilities will do.
        tags: (B, C) bool.
        sizes: B pairs (h, w), the part that is no padding.

    Returns:
        (B, C + 1, H, W) float32 log-probabilities, minus infinity for classes without a tag.

    Raises:
        ValueError: Numbers of images or classes differ.

    >>> logits = torch.tensor([[[[0.9, 0.99]], [[0.1, 0.01]]]]).log()
    >>> with_every_tag(logits, torch.tensor([[True]]), sizes=[(1, 2)]).exp()[0, 1].round(decimals=3)
    tensor([[0.5000, 0.0830]])
    """
    if tags.shape != (logits.shape[0], logits.shape[1] - 1) or len(sizes) != len(logits):
        raise ValueError(f"{tuple(logits.shape)} logits, {tuple(tags.shape)} tags and {len(sizes)} sizes")
    logits = logits.float().log_softmax(1)
    odds = logits[:, 1:] - (-logits[:, 1:].expm1()).log()
    best = torch.stack([part[:, :h, :w].amax((1, 2)) for part, (h, w) in zip(odds, sizes, strict=True)])
    raised = F.pad((-best).clamp(min=0), (1, 0))
    allowed = F.pad(tags, (1, 0), value=True)
    return (logits + raised[:, :, None, None]).masked_fill(~allowed[:, :, None, None], -torch.inf).log_softmax(1)


@torch.no_grad()
def refine_logits(
    logits: Tensor,
    images: Tensor,
    *,
    sizes: Sequence[tuple[int, int]],
    tags: Tensor | None = None,
    iterations: int = ITERATIONS["network"],
    wide: bool = False,
) -> Tensor:
    """Refine a network's class probabilities by the colours of each image.

    Classes that are nowhere in the image likelier than ``1 / (C + 1)`` cannot win a pixel, since refinement averages.
    They are refined as one and share the result equally, which changes neither the map nor the winners' probabilities.

    Args:
        logits: (B, C + 1, H, W); log-probabilities will do, with minus infinity for classes that are not there.
        images: (B, 3, H, W) float RGB.
        sizes: B pairs (h, w), the part that is no padding; the border of that part is the border for refinement.
        tags: (B, C) bool: only these classes and background are possible, an oracle unless the tags are training
            labels; all if omitted.
        iterations: of ``pixel_adaptive_refinement``.
        wide: over larger distances, at half the size, as ``refine_widely`` does.

    Returns:
        (B, C + 1, H, W) float32 log-probabilities; unrefined in the padding; for a probability of 0, that of
        classes excluded by ``tags``, the logarithm of the smallest positive number.

    Raises:
        ValueError: Sizes differ.
    """
    if logits.shape[0] != len(sizes) or logits.shape[-2:] != images.shape[-2:]:
        raise ValueError(f"{tuple(logits.shape)} logits, {tuple(images.shape)} images and {len(sizes)} sizes")
    if tags is not None:
        allowed = F.pad(tags, (1, 0), value=True)
        logits = logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    probabilities = logits.float().softmax(1)
    for whole, image, (height, width) in zip(probabilities, images, sizes, strict=True):
        part = whole[:, :height, :width]
        possible = part.flatten(1).amax(1) >= (1 - 1e-4) / len(part)
        rest = part[~possible].sum(0, keepdim=True)
        refine = _refined_at_half_size if wide else pixel_adaptive_refinement
        refined = refine(torch.cat([part[possible], rest]), image[:, :height, :width], iterations=iterations)
        part[possible] = refined[:-1]
        part[~possible] = refined[-1:] / (~possible).sum()
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def favour_foreground(logits: Tensor, threshold: float) -> Tensor:
    """Log-probabilities after whose shift a pixel is foreground where its foreground probability was ``threshold``.

    A network that learnt from maps which miss parts of the objects takes these parts for foreground with a probability
    that is too low, but higher than elsewhere.

    Args:
        logits: (B, C + 1, H, W), channel 0 is background; log-probabilities will do.
        threshold: In (0, 1): probability of background against one class at which both become equally likely.

    >>> favour_foreground(torch.tensor([0.7, 0.3]).log().view(1, 2, 1, 1), 0.3).exp().flatten()
    tensor([0.5000, 0.5000])
    """
    shifted = logits.float().clone()
    shifted[:, 0] += math.log(threshold / (1 - threshold))
    return shifted.log_softmax(1)


@torch.no_grad()
def edge_alignment(semantic: Tensor, image: Tensor) -> Tensor:
    """How much stronger the image's colours change across the outlines of a semantic map than elsewhere.

    The mean absolute colour difference of neighbouring pixels of different classes, divided by that of all neighbouring
    pixels: about 1 for outlines drawn at random, larger for outlines that follow those of the image. Needs no truth.

    Args:
        semantic: (H, W) uint8; 255 counts as background.
        image: (3, H, W) float.

    Returns:
        Scalar float32; NaN for a map without outlines or an image of one colour.

    >>> edge_alignment(torch.tensor([[1, 1, 0, 0]]), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 1, 4))
    tensor(3.)
    """
    classes = semantic.masked_fill(semantic == IGNORE, 0)
    change = torch.cat([image.diff(dim=d).abs().float().mean(0).flatten() for d in (1, 2)])
    across = torch.cat([classes.long().diff(dim=d).flatten() != 0 for d in (0, 1)])
    return change[across].mean() / change.mean()  # NaN: 0 / 0
