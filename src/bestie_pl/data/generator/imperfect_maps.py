"""An imperfect semantic map of a generated scene, as a weakly supervised method would give it.

Lengths are written for images of ``REFERENCE_SIZE`` pixels and scale with the size.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bestie_pl.data.generator.drawings import SHAPE_CLASSES, Bytes, Floats
from bestie_pl.data.generator.scenes import REFERENCE_SIZE, Scene, smooth_noise

MISSED = 0.06  # objects that are absent
BITTEN = 0.25  # objects that lose a disc
BITE = (0.25, 0.45)  # radius of the disc, in units of the square root of the object's area
MERGED = 0.5  # images in which gaps between objects of a class are closed
GAP = 5  # widest such gap
LEAKS = 0.5  # images in which background next to an object is taken for its class, in one or two places
LEAK = (4.0, 9.0)  # radius of the place
WRONG = 0.3  # images with a patch of a wrong class
SOFTNESS = 1.6  # standard deviation of the blur before the threshold
ROUGHNESS = 0.35  # amplitude of the noise added to it: with this softness, outlines move by 1 to 3 px
GRAIN = 5.0  # grid of the noise
BAND = 0.12  # scores this close to the threshold are ignored in the uncertain parts of an image
UNCERTAIN = 0.3  # noise above which a part of an image is uncertain


def imperfect_map(rng: Generator, scene: Scene) -> Bytes:
    """The scene's semantic map as a weakly supervised method would give it.

    Some objects are missing and others bitten; narrow gaps between objects of a class are closed; background leaks in
    beside objects; patches carry a wrong class; outlines are ragged, and ignored (255) in uncertain parts of the image.
    The constants above say how much of each. The mean IoU with the truth is about 0.78 (1,000 scenes of 128 px).

    Returns:
        (H, W) uint8: 0 background, ``c + 1`` class ``c``, 255 ignore.
    """
    size = len(scene.ids)
    unit = size / REFERENCE_SIZE
    classes = scene.semantic.copy()
    for i in range(1, len(scene.classes) + 1):
        own = scene.ids == i
        if rng.random() < MISSED:
            classes[own] = 0
        elif rng.random() < BITTEN:
            radius = rng.uniform(*BITE) * math.sqrt(own.sum())
            classes[own & _disc(rng, own, radius)] = 0
    classes = _disturb_classes(rng, scene, classes, unit)

    values = np.unique(classes[classes > 0])
    if len(values) == 0:
        return classes
    merged = rng.random() < MERGED
    scores = np.stack([_soft_mask(classes == value, unit, merged) for value in values])
    scores += ROUGHNESS * smooth_noise(rng, size, GRAIN * unit)
    score = scores.max(0)
    result = np.where(score > 0.5, values[scores.argmax(0)], np.uint8(0))
    uncertain = smooth_noise(rng, size, 24 * unit) > UNCERTAIN
    result[uncertain & (abs(score - 0.5) < BAND)] = 255
    return result


def _disturb_classes(rng: Generator, scene: Scene, classes: Bytes, unit: float) -> Bytes:
    """Leaks into the background and patches of a wrong class."""
    classes = classes.copy()
    if rng.random() < LEAKS:
        for _ in range(rng.integers(1, 3)):
            kind = scene.classes[rng.integers(len(scene.classes))]
            beside = _grow(scene.semantic == kind + 1, 5 * unit) & (scene.ids == 0)
            if beside.any():
                classes[(classes == 0) & _disc(rng, beside, rng.uniform(*LEAK) * unit)] = kind + 1
    if rng.random() < WRONG and classes.any():
        patch = (classes > 0) & _disc(rng, classes > 0, rng.uniform(*LEAK) * unit)
        classes[patch] = rng.integers(len(SHAPE_CLASSES)) + 1
    return classes


def _disc(rng: Generator, region: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """(H, W): the disc around a random pixel of a region that is not empty."""
    where = np.flatnonzero(region)
    y, x = divmod(int(where[rng.integers(len(where))]), region.shape[1])
    return np.hypot(*np.ogrid[-y : region.shape[0] - y, -x : region.shape[1] - x]) <= radius


def _grow(mask: NDArray[np.bool_], side: float) -> NDArray[np.bool_]:
    """Dilation by a square whose side is about ``side`` pixels, at least 3."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(_odd(side)))) > 0


def _odd(side: float) -> int:
    return 2 * max(1, round((side - 1) / 2)) + 1


def _soft_mask(mask: NDArray[np.bool_], unit: float, merged: bool) -> Floats:
    """The mask blurred, values in [0, 1]; ``merged`` closes its narrow gaps before."""
    picture = Image.fromarray(mask).convert("L")
    if merged:
        side = _odd(GAP * unit)
        picture = picture.filter(ImageFilter.MaxFilter(side)).filter(ImageFilter.MinFilter(side))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(SOFTNESS * unit)), np.float32) / 255
