"""What is legal in a training set and will disappoint, each with the setting that helps. Pure functions of facts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import NamedTuple

from torch import Tensor

from bestie_pl.structures import Geometry

CELL = 4
"""Pixels of the network's input for a cell of its maps."""
LEAST_CELLS = 4
"""Objects of fewer cells across are hardly told apart."""
VOC_DIAMETERS = (50.0, 400.0)
"""Of the objects that ``object_scale: 1`` is for."""
TYPICAL = math.sqrt(VOC_DIAMETERS[0] * VOC_DIAMETERS[1])
FAR_OFF = 3.0
"""An ``object_scale`` this many times too large or too small is worth a word."""
LEAST_TAGGED = 20
"""Images of a class from which a classifier may learn to find it; the photographs of animals have some 70."""
LEAST_CROP = 0.75
"""Share of the images' shorter side that a crop should have where only tags say what is in it."""


@dataclass(frozen=True)
class TrainingFacts:
    """What advice is drawn from.

    Args:
        class_names: In the order of the classes' numbers.
        tags: (N, C) bool of the training images.
        sizes: Height and width of each readable image, in pixels of the file.
        areas: Pixels of single objects in the files, as far as regions of the semantic maps tell them apart.
        supervision: Of the data module.
        classifies: Whether the training sees images and tags only.
        batch_size: Images of a batch.
        crop_size: Side of the crops.
        image_scale: Of the data module.
        object_scale: Of the data module.
        sigma: Of the model, before ``object_scale``; None where it is not known.
    """

    class_names: tuple[str, ...]
    tags: Tensor
    sizes: Sequence[tuple[int, int]]
    areas: Sequence[float]
    supervision: str
    classifies: bool
    batch_size: int
    crop_size: int
    image_scale: float
    object_scale: float
    sigma: float | None


class Advice(NamedTuple):
    """A kind of finding, and the finding with its remedy."""

    kind: str
    message: str


def advice(facts: TrainingFacts) -> Iterator[Advice]:
    """All that is worth a word, what matters most first."""
    yield from _of_tags(facts)
    yield from _of_names(facts.class_names)
    yield from _of_batches(facts)
    if not facts.classifies:
        yield from _of_lengths(facts)


def _of_tags(facts: TrainingFacts) -> Iterator[Advice]:
    """Points need no classifier, so nothing has to differ between their images."""
    if facts.supervision != "tags" or len(facts.tags) == 0:
        return
    images, always = len(facts.tags), facts.tags.all(0).tolist()
    named = [name for name, everywhere in zip(facts.class_names, always, strict=True) if everywhere]
    if len(named) == len(facts.class_names):
        kind = "one class only" if len(named) == 1 else "every image has every tag"
        yield Advice(
            kind,
            f"all {images} images have {', '.join(named)}: a classifier learns nothing from that; set points, from "
            "which maps can be grown (`bestie-pl init` writes how), or add images without these classes",
        )
    elif named:
        yield Advice(
            "no negatives",
            f"all {images} images have {', '.join(named)}: a classifier cannot tell that from background; add images "
            "without",
        )
    counts = dict(zip(facts.class_names, facts.tags.sum(0).tolist(), strict=True))
    if facts.classifies and (few := {name: count for name, count in counts.items() if 0 < count < LEAST_TAGGED}):
        listed = ", ".join(f"{name} {count}" for name, count in few.items())
        yield Advice(
            "few images of a class",
            f"{listed:.300}: from tags alone a classifier has to find the objects itself, which takes some dozens of "
            "images a class; add images, or set a point on each object (`bestie-pl points --help`)",
        )


def _of_names(names: Sequence[str]) -> Iterator[Advice]:
    for first, second in combinations(names, 2):
        if (what := _difference(first, second)) is not None:
            message = f"{first!r} and {second!r} differ by {what} only; if they are one class, give them one name"
            yield Advice("class names that look alike", message)


def _difference(first: str, second: str) -> str | None:
    """In what two names differ, if it is as little as a slip of the pen.

    >>> _difference("cat", "Cat"), _difference("dog", "dogs"), _difference("cat", "cow")
    ('case', 'one letter', None)
    """
    if first.casefold() == second.casefold():
        return "case"
    if "".join(first.split()).casefold() == "".join(second.split()).casefold():
        return "blanks"
    shorter, longer = sorted((first.casefold(), second.casefold()), key=len)
    # "car" and "cat" are words of their own, and numbers are meant to differ
    if len(shorter) < 3 or any(c.isdigit() for c in longer):
        return None
    if len(longer) == len(shorter) + 1:
        return "one letter" if any(longer[:k] + longer[k + 1 :] == shorter for k in range(len(longer))) else None
    if len(longer) == len(shorter) and len(shorter) > 4:
        return "one letter" if sum(a != b for a, b in zip(longer, shorter, strict=True)) == 1 else None
    return None


def _of_batches(facts: TrainingFacts) -> Iterator[Advice]:
    images = len(facts.tags)
    if 0 < images < facts.batch_size:
        yield Advice(
            "fewer images than a batch", f"{images} images, batch_size {facts.batch_size}; set batch_size: {images}"
        )
    if facts.sizes and facts.supervision == "tags":
        side = round(median(min(size) for size in facts.sizes) * facts.image_scale)
        if facts.crop_size < LEAST_CROP * side:
            yield Advice(
                "crop smaller than the images",
                f"crop_size {facts.crop_size}, images of about {side} px: a crop without the object teaches its tag "
                f"wrongly; set crop_size: {side}, or image_scale: {facts.crop_size / side * facts.image_scale:.2f}",
            )


def _of_lengths(facts: TrainingFacts) -> Iterator[Advice]:
    if not facts.areas:
        return
    diameter = 2 * math.sqrt(median(facts.areas) / math.pi) * facts.image_scale
    if diameter < LEAST_CELLS * CELL:
        yield Advice(
            "objects of few cells",
            f"a typical object is {diameter:.0f} px wide, {diameter / CELL:.1f} cells of the maps; set image_scale: "
            f"{math.ceil(1.5 * LEAST_CELLS * CELL / diameter * facts.image_scale)}",
        )
    fitting = diameter / TYPICAL
    if not 1 / FAR_OFF < facts.object_scale / fitting < FAR_OFF:
        yield Advice(
            "object_scale far from the objects",
            f"object_scale {facts.object_scale:g} is for objects of {VOC_DIAMETERS[0] * facts.object_scale:.0f} to "
            f"{VOC_DIAMETERS[1] * facts.object_scale:.0f} px; here they are about {diameter:.0f} px wide: set "
            f"object_scale: {fitting:.2g}",
        )
    sigma = (Geometry.sigma if facts.sigma is None else facts.sigma) * facts.object_scale
    if facts.sigma is not None and sigma > diameter / 2:
        yield Advice(
            "sigma far from the objects",
            f"centres are Gaussians of {sigma:.1f} px on objects about {diameter:.0f} px wide, so that neighbours melt "
            f"into one peak; set sigma: {diameter / 4 / facts.object_scale:.1f}",
        )
    elif facts.sigma is not None and sigma < CELL / 2:
        yield Advice(
            "sigma far from the objects",
            f"centres are Gaussians of {sigma:.1f} px, which fall between the cells of the maps; set sigma: "
            f"{CELL / facts.object_scale:.1f}",
        )
