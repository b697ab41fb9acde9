"""Files -> samples -> batches: what worker processes do. Decoding only, in bytes; labels are made on the device.

No Lightning and no Kornia here, so that worker processes start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from bestie_pl.data import release
from bestie_pl.data.files import Packed, as_it_looks, below
from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.images import open_image
from bestie_pl.data.formats.maps import read_semantic
from bestie_pl.data.formats.truth import Truth, TruthReader, paint_instances
from bestie_pl.data.shards import is_file
from bestie_pl.data.unreadable import Unreadable
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.structures import IGNORE, Batch, Cues, Instances, LabeledInstances

STRIDE = 32
"""Evaluated images are a multiple of this, the largest stride of the networks."""

CLASSIFIER_RESIZE = 384 / 321
"""Side of the squares from which the release's classifier cuts its crops, relative to the crop (release 12.4)."""
CLASSIFIER_JITTER = 0.3
"""By how much brightness, contrast and saturation vary for its classifier (release 12.4)."""
CLASSIFIER_HUE = 0.1
"""The same of the hue, in turns (release 12.4)."""


class PointReader(Protocol):
    """Reads the points of the ``index``-th image of a split, whose file is ``size`` (H, W) large."""

    def __call__(self, index: int, size: tuple[int, int]) -> Cues | None:
        """All with ``image`` 0, in pixels of the file; None if nobody set points on this image: it has tags only."""

    def file(self, index: int) -> Path:
        """Where the image's points stand."""

    def pointed(self) -> list[bool]:
        """Of each image, whether it has points, or is known to have none."""


@dataclass(frozen=True)
class Split:
    """The files of one split.

    Args:
        names: Unique image names; semantic maps and cues are ``semantic_dir/NAME.png`` and ``cues_dir/NAME.txt``.
        images: Image paths, in the same order.
        tags: (N, C) bool, or None where they are unknown.
        tags_file: What states them, where that is one file; there may be no such file.
        semantic_dir: None where there is none.
        cues_dir: None where there is none.
        truth: Reader of the ground truth, None where there is none.
        points: Reader of given points, where they are not in ``cues_dir``.
        mixed: Whether some of the images have tags only; ``cues_dir`` then has a classifier's cues of these.
    """

    names: Packed
    images: Packed
    tags: Tensor | None = None
    tags_file: Path | None = None
    semantic_dir: Path | None = None
    cues_dir: Path | None = None
    truth: TruthReader | None = None
    points: PointReader | None = None
    mixed: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def cue_file(self, index: int) -> Path | None:
        """Where an image's points or cues stand; there may be no such file. None where the split has none."""
        if self.points is not None and not self.mixed:
            return self.points.file(index)
        return None if self.cues_dir is None else below(self.cues_dir, f"{self.names[index]}.txt")

    def pointed(self) -> list[bool]:
        """Of each image, whether the file of its points or cues is there."""
        if self.points is not None:
            return self.points.pointed()
        if self.cues_dir is None:
            return [False] * len(self)
        return [is_file(as_it_looks(below(self.cues_dir, f"{name}.txt"))) for name in self.names]

    def read_cues(self, index: int, size: tuple[int, int], num_classes: int) -> tuple[Cues, bool | None]:
        """An image's points or cues; and whether they are given points, None where that is the same for all images."""
        cues = None if self.points is None else self.points(index, size)
        pointed = cues is not None if self.mixed else None
        if cues is None and self.cues_dir is not None:
            cues = read_cues(below(self.cues_dir, f"{self.names[index]}.txt"), size, num_classes)
        return cues if cues is not None else Cues.empty(), pointed


class IdMap(NamedTuple):
    """Instances of one image: ``ids`` (H, W) int32, 0 or a number in 1..N, and their ``classes`` (N,) int64.

    ``weights``: (N,) float32, how much each counts as a label; 1 if omitted.
    """

    ids: Tensor
    classes: Tensor
    weights: Tensor | None = None


class LabelReader(Protocol):
    """Reads the labels of the ``index``-th image of a split, whose file is ``size`` (H, W) large."""

    def __call__(self, index: int, size: tuple[int, int], tags: Tensor) -> IdMap:
        """Those of the image's tagged classes; ``tags`` is (C,) bool."""


@dataclass(frozen=True)
class Sample:
    """One image and what is read with it; all but the references in pixels of ``image``.

    ``image`` (3, H, W) uint8; ``tags`` (C,) bool; ``cues`` with image 0; ``semantic`` (H, W) uint8; ``truth``: true
    instances, none of which are known unless ``measured``; ``predicted``: those that an earlier model predicted;
    ``pointed``: see ``Split.read_cues``.
    """

    name: str
    image: Tensor
    tags: Tensor
    cues: Cues
    original_size: tuple[int, int]
    semantic: Tensor | None = None
    truth: IdMap | None = None
    predicted: IdMap | None = None
    references: Instances | None = None
    semantic_reference: Tensor | None = None
    pointed: bool | None = None
    measured: bool = True


@dataclass(frozen=True)
class TrainingSamples(Dataset[Sample]):
    """Training samples, whole images; with ``release_crop`` cropped and augmented as in the release.

    An item's number is ``epoch * len(self) + index``. The release's random draws follow from it and from ``seed``
    alone: they depend neither on the number of workers nor of processes, and are the same after an interruption.

    Args:
        split: Needs tags, what the arguments below ask for, and a ``semantic_dir`` or else the truth.
        class_names: In the order of the classes' numbers.
        read_cues: Read points or cues; none otherwise.
        read_instances: Read the true instances.
        truth_optional: Images without ground truth are no error; nothing is known of their instances then.
        labels: Reader of an earlier model's predictions, of which tagged classes are read.
        cue_threshold: Cues must be surer than this (strictly, release 1.4).
        image_scale: Factor by which images are enlarged.
        release_crop: Side of the release's crops; None leaves augmentation to the device. Images without a semantic map
            are augmented as for the release's classifier.
        seed: Of the release's random draws.
        unreadable: Opens the images, others in the place of those that cannot be read; an error otherwise.
    """

    split: Split
    class_names: tuple[str, ...]
    read_cues: bool = True
    read_instances: bool = False
    truth_optional: bool = False
    labels: LabelReader | None = None
    cue_threshold: float = 0.7
    image_scale: float = 1.0
    release_crop: int | None = None
    seed: int = 0
    unreadable: Unreadable | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> Sample:
        split, index = self.split, number % len(self)
        if split.tags is None:
            raise ValueError("a training split needs tags")
        if self.unreadable is None:
            image = open_image(Path(split.images[index]))
        else:
            index, image = self.unreadable.open(index)
        name, tags = split.names[index], split.tags[index]
        size = (image.height, image.width)
        num_classes = len(self.class_names)
        cues, pointed, semantic, true_instances, predicted = Cues.empty(), None, None, None, None
        if self.read_cues:
            cues, pointed = split.read_cues(index, size, num_classes)
            cues = cues.select((cues.scores > self.cue_threshold) & tags[cues.classes])
        measured = not self.truth_optional or (split.truth is not None and split.truth.known(index))
        if split.truth is not None and measured:
            truth = split.truth(index, size)
            semantic = truth.semantic
            if self.read_instances:
                true_instances = IdMap(*paint_instances(truth.instances))
        elif self.read_instances:
            true_instances = IdMap(torch.zeros(size, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
        if split.semantic_dir is not None:
            semantic = read_semantic(below(split.semantic_dir, f"{name}.png"), size, num_classes)
        if self.labels is not None:
            predicted = self.labels(index, size, tags)
        sample = Sample(
            name,
            to_tensor(image),
            tags,
            cues,
            size,
            semantic,
            true_instances,
            predicted,
            pointed=pointed,
            measured=measured,
        )
        if self.image_scale != 1:
            sample = resize_sample(sample, scaled(size, self.image_scale))
        if self.release_crop is not None:
            random = np.random.default_rng([self.seed, number])
            augment = augment_for_classifier if sample.semantic is None else augment_as_release
            sample = augment(sample, self.release_crop, random)
        return sample


@dataclass(frozen=True)
class EvaluationSamples(Dataset[Sample]):
    """Images with their ground truth, if the split has any. Cues are read where a file exists; none is dropped.

    Tags that the split does not state are taken from the ground truth; without that, they are empty.

    Args:
        split: What to read.
        num_classes: Classes without background.
        image_scale: Factor by which images are enlarged; references stay at the size of the file.
        truth_optional: Images without ground truth are no error where the split has some.
        fit_stride: Resize each image to the next multiple of 32, as in release 1.9.
        square: Resize each image to a square of this side, as in release 12.5.
    """

    split: Split
    num_classes: int
    image_scale: float = 1.0
    truth_optional: bool = False
    fit_stride: bool = False
    square: int | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        split, name = self.split, self.split.names[index]
        image = open_image(Path(split.images[index]))
        size = (image.height, image.width)
        truth, known = None, True
        if split.truth is not None:
            known = not self.truth_optional or split.truth.known(index)
            truth = split.truth(index, size) if known else Truth.unknown(size)
        tags = torch.zeros(self.num_classes, dtype=torch.bool)
        if split.tags is not None:
            tags = split.tags[index]
        elif truth is not None:
            tags[truth.instances.classes] = True
        cues = split.points(index, size) if split.points is not None else None
        if split.cues_dir is not None and is_file(path := as_it_looks(below(split.cues_dir, f"{name}.txt"))):
            cues = read_cues(path, size, self.num_classes)
        sample = Sample(
            name,
            to_tensor(image),
            tags,
            cues if cues is not None else Cues.empty(),
            size,
            references=truth.instances if truth else None,
            semantic_reference=truth.semantic if truth else None,
            measured=known,
        )
        target = scaled(size, self.image_scale)
        if self.fit_stride:
            target = (-(-target[0] // STRIDE) * STRIDE, -(-target[1] // STRIDE) * STRIDE)
        if self.square is not None:
            target = (self.square, self.square)
        return sample if target == size else resize_sample(sample, target)


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB image."""
    # plane by plane takes half the time of an array whose axes are then exchanged
    planes = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, image.height, image.width)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """A size times a factor, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at another size: image bilinear, maps nearest, cues with pixel centres kept; references stay."""
    height, width = sample.image.shape[1:]
    ratio = torch.tensor([size[0] / height, size[1] / width])
    image = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return replace(
        _move_maps(sample, lambda values: _nearest(values, size)),
        image=to_tensor(image),
        cues=replace(sample.cues, yx=(sample.cues.yx + 0.5) * ratio - 0.5),
    )


def augment_as_release(sample: Sample, crop_size: int, random: np.random.Generator) -> Sample:
    """The release's whole augmentation of one sample (release 2.1 to 2.7, without normalisation)."""
    size = (sample.image.shape[1], sample.image.shape[2])
    image = release.distort_colors(sample.image.permute(1, 2, 0).numpy(), release.draw_colors(random))
    draws = release.draw_geometry(size, crop_size, random)
    yx, kept = release.transform_points(sample.cues.yx.double().numpy(), size, crop_size, draws)
    image = release.transform_image(image, crop_size, draws)
    return replace(
        _move_maps(sample, lambda m: torch.from_numpy(release.transform_map(m.numpy(), crop_size, draws))),
        image=torch.from_numpy(image).permute(2, 0, 1).contiguous(),
        cues=replace(sample.cues.select(torch.from_numpy(kept)), yx=torch.from_numpy(yx).float()),
    )


def augment_for_classifier(sample: Sample, crop_size: int, random: np.random.Generator) -> Sample:
    """What the release's classifier does with a training image (release 12.4): square, mirror, colours, crop.

    The sample has an image and tags, and nothing that would have to move with the image.
    """
    side = round(crop_size * CLASSIFIER_RESIZE)
    image = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
    for number in random.permutation(len(enhancers)):
        enhancer = enhancers[number]
        if enhancer is not None:
            image = enhancer(image).enhance(random.uniform(1 - CLASSIFIER_JITTER, 1 + CLASSIFIER_JITTER))
        else:
            image = _turn_hue(image, random.uniform(-CLASSIFIER_HUE, CLASSIFIER_HUE))
    top, left = random.integers(0, side - crop_size, 2, endpoint=True)
    return replace(sample, image=to_tensor(image.crop((left, top, left + crop_size, top + crop_size))))


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turns * 255)
    return Image.merge("HSV", (hue.point(lambda h: (h + shift) % 256), saturation, value)).convert("RGB")


def _move_maps(sample: Sample, move: Callable[[Tensor], Tensor]) -> Sample:
    """The sample with each map (H, W) moved by the same function; image and cues stay."""
    return replace(
        sample,
        semantic=None if sample.semantic is None else move(sample.semantic),
        truth=None if sample.truth is None else sample.truth._replace(ids=move(sample.truth.ids)),
        predicted=None if sample.predicted is None else sample.predicted._replace(ids=move(sample.predicted.ids)),
    )


def collate(samples: Sequence[Sample], *, multiple: int = 1) -> Batch:
    """Pad to the largest image of the batch, rounded up to ``multiple``: mean colour, semantic 255, no instance."""
    sizes = tuple((sample.image.shape[1], sample.image.shape[2]) for sample in samples)
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    images = torch.tensor(release.MEAN_COLOR, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(samples), 1, height, width)
    for image, sample, (h, w) in zip(images, samples, sizes, strict=True):
        image[:, :h, :w] = sample.image
    references = tuple(s.references for s in samples if s.references is not None)
    semantic_references = tuple(s.semantic_reference for s in samples if s.semantic_reference is not None)
    pointed = [s.pointed for s in samples if s.pointed is not None]
    return Batch(
        images=images,
        tags=torch.stack([sample.tags for sample in samples]),
        cues=Cues(
            image=torch.cat([torch.full((len(s.cues),), i, dtype=torch.int64) for i, s in enumerate(samples)]),
            yx=torch.cat([s.cues.yx for s in samples]),
            classes=torch.cat([s.cues.classes for s in samples]),
            scores=torch.cat([s.cues.scores for s in samples]),
        ),
        names=tuple(sample.name for sample in samples),
        sizes=sizes,
        original_sizes=tuple(sample.original_size for sample in samples),
        pointed=torch.tensor(pointed) if pointed else None,
        measured=None if all(s.measured for s in samples) else torch.tensor([s.measured for s in samples]),
        semantic=_stack([s.semantic for s in samples], (height, width), IGNORE),
        truth=_collate_instances([s.truth for s in samples], (height, width)),
        predicted=_collate_instances([s.predicted for s in samples], (height, width)),
        references=references or None,
        semantic_references=semantic_references or None,
    )


def _collate_instances(maps: Sequence[IdMap | None], size: tuple[int, int]) -> LabeledInstances | None:
    ids = _stack([m.ids if m is not None else None for m in maps], size, 0)
    if ids is None:
        return None
    classes = [m.classes for m in maps if m is not None]
    counts = torch.tensor([len(c) for c in classes])
    before = (counts.cumsum(0) - counts).int()[:, None, None]
    instances = instances_from_map(
        ids + before * (ids > 0),  # unique in the batch
        torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(len(maps)).repeat_interleave(counts)]),
        torch.cat([torch.tensor([-1]), *classes]),
    )
    weights = [m.weights for m in maps if m is not None and m.weights is not None]
    if len(weights) < len(maps):
        return instances
    return replace(instances, weight=instances.weight * torch.cat([torch.zeros(1), *weights]))


def _stack(maps: Sequence[Tensor | None], size: tuple[int, int], outside: int) -> Tensor | None:
    """The maps padded with ``outside``; None unless all are there."""
    given = [values for values in maps if values is not None]
    if len(given) < len(maps):
        return None
    return torch.stack([F.pad(m, (0, size[1] - m.shape[1], 0, size[0] - m.shape[0]), value=outside) for m in given])


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (H, W) at another size: each pixel takes the value under its centre. Any dtype."""
    rows, columns = (((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip(size, values.shape, strict=True))
    return values[rows][:, columns]
