"""Readers of ground truth: the only place that opens instance masks.

Training comes here only if its labels or semantic maps are declared to be the ground truth, or to measure labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from bestie_pl.data.files import JSON, Packed, as_it_looks, below, is_set, understood
from bestie_pl.data.formats.codes import encode_polygons, encode_runs
from bestie_pl.data.formats.maps import holds_16_bits, read_label_map, read_semantic
from bestie_pl.errors import UserError
from bestie_pl.ops.masks import encode
from bestie_pl.structures import IGNORE, Instances


class Truth(NamedTuple):
    """``instances`` of one image, and its true ``semantic`` map (H, W) uint8; both at the size of the file."""

    instances: Instances
    semantic: Tensor

    @classmethod
    def unknown(cls, size: tuple[int, int]) -> Truth:
        """Of an image that has none: no instance, and a map of 255."""
        none = Instances((), torch.zeros(0, dtype=torch.int64), torch.zeros(0), size)
        return cls(none, torch.full(size, IGNORE, dtype=torch.uint8))


class TruthReader(Protocol):
    """Reads the ground truth of the ``index``-th image of a split, whose file is ``size`` (H, W) large."""

    def __call__(self, index: int, size: tuple[int, int]) -> Truth:
        """Instances and semantic map at the size of the file."""

    def known(self, index: int) -> bool:
        """Whether the image has ground truth; VOC shares true objects of a part of its training images only."""


def paint_instances(instances: Instances) -> tuple[Tensor, Tensor]:
    """Number map of true instances, smaller ones on top; crowd regions are left out.

    Returns:
        (H, W) int32, 0 or the number 1..N of an instance; and (N,) int64, the class of each number.
    """
    ids = np.zeros(instances.size, dtype=np.int32)
    crowd = instances.crowd.tolist() if instances.crowd is not None else [False] * len(instances)
    single = [code for code, is_crowd in zip(instances.masks, crowd, strict=True) if not is_crowd]
    areas = np.array([int(rle.area(code)) for code in single])  # of a list, pycocotools 2.0.11 takes 255 at most
    for number in np.argsort(-areas, kind="stable"):
        ids[rle.decode(single[number]).view(bool)] = number + 1
    return torch.from_numpy(ids), instances.classes[~torch.tensor(crowd, dtype=torch.bool)]


OBJECTS = "the image's object numbers (0 background, 255 VOC's borders); name a split with them"


@dataclass(frozen=True)
class VOCTruth:
    """Reads PASCAL VOC's pair of palette images, ``SegmentationClass`` and ``SegmentationObject``.

    Object maps of other programs may have 16 bits. In these 255 is an object like any other, while in VOC's 8 bits it
    is the border around objects.

    Source: chainercv's reader as the release's evaluation uses it (release 11.1): an object's class is the smallest
    class number under it; objects 0 and 255 do not count.
    """

    names: Packed
    class_dir: Path
    object_dir: Path
    num_classes: int

    def known(self, index: int) -> bool:
        """See ``TruthReader``."""
        file = f"{self.names[index]}.png"
        return all(as_it_looks(folder / file).is_file() for folder in (self.class_dir, self.object_dir))

    def __call__(self, index: int, size: tuple[int, int]) -> Truth:
        """See ``TruthReader``."""
        name = self.names[index]
        semantic = read_semantic(below(self.class_dir, f"{name}.png"), size, self.num_classes)
        path = as_it_looks(below(self.object_dir, f"{name}.png"))
        objects = torch.from_numpy(read_label_map(path, OBJECTS, size))
        if not holds_16_bits(path):
            objects = objects.masked_fill(objects == IGNORE, 0)
        if (objects < 0).any():
            raise UserError(f"{path}: object {int(objects.min())}; expected 0 (background) or numbers above")
        numbers, codes = encode(objects)
        # the smallest class below each object; background and ignore count as none
        below_it = semantic.long().masked_fill((semantic == 0) | (semantic == IGNORE), IGNORE)
        row = torch.searchsorted(numbers, objects.flatten().long())
        inside = objects.flatten() > 0
        least = torch.full((len(numbers),), IGNORE).scatter_reduce(
            0, row[inside], below_it.flatten()[inside], reduce="amin"
        )
        if (least == IGNORE).any():
            number = int(numbers[(least == IGNORE).nonzero()[0, 0]])
            border = "; in a map of 16 bits 255 is an object, so save VOC's borders as 0" if number == IGNORE else ""
            raise UserError(
                f"{path}: object {number} lies on background alone in {self.class_dir / path.name}; expected the "
                f"number of its class there{border}"
            )
        return Truth(_instances(codes, (least - 1).tolist(), size), semantic)


@dataclass(frozen=True)
class COCOTruth:
    """Reads the annotations of a COCO file: polygons, and run-length codes of both kinds.

    The semantic map has smaller objects on top; crowd regions outside of all objects are 255, since they hold no single
    object to learn.

    Args:
        annotations: One JSON list an image: the file's annotations with a ``class`` (0-based).
        sizes: (N, 2) height and width according to the file.
        path: The annotation file, for messages.
        rows: (M,) int64, entry of the file of each image of the split, where it has some of the file's images.
        classes: (K,) int64, the data set's class of each of the file's categories, where these differ.
    """

    annotations: Packed
    sizes: Tensor
    path: Path
    rows: Tensor | None = None
    classes: Tensor | None = None

    def known(self, index: int) -> bool:
        """See ``TruthReader``."""
        return self.rows is None or int(self.rows[index]) >= 0

    def __call__(self, index: int, size: tuple[int, int]) -> Truth:
        """See ``TruthReader``."""
        entry = index if self.rows is None else int(self.rows[index])
        stated = tuple(self.sizes[entry].tolist())
        if stated != size:
            raise UserError(
                f"{self.path}: entry {entry} of `images` is {stated[1]} x {stated[0]} px (width x height) but its file "
                f"is {size[1]} x {size[0]} (after turning it as its EXIF orientation says); annotate the stored image"
            )
        with understood(f"{self.path}: entry {entry} of `images`", "COCO annotations"):
            return self._truth(JSON.decode(self.annotations[entry]), size)

    def _truth(self, annotations: list[dict[str, Any]], size: tuple[int, int]) -> Truth:
        places = [f"{self.path}: annotation {a.get('id')!r:.50}" for a in annotations]
        codes = [_run_lengths(a, size, where) for a, where in zip(annotations, places, strict=True)]
        crowd = [is_set(a.get("iscrowd"), f"{where}: iscrowd") for a, where in zip(annotations, places, strict=True)]
        areas = [_area(a, code, where) for a, code, where in zip(annotations, codes, places, strict=True)]
        classes = torch.tensor([a["class"] for a in annotations], dtype=torch.int64)
        if self.classes is not None:
            classes = self.classes[classes]
        instances = _instances(codes, classes.tolist(), size, torch.tensor(crowd, dtype=torch.bool), areas)
        ids, classes = paint_instances(instances)
        semantic = torch.cat([torch.zeros(1, dtype=torch.int64), classes + 1])[ids.long()]
        for code in (code for code, is_crowd in zip(codes, crowd, strict=True) if is_crowd):
            semantic[torch.from_numpy(rle.decode(code)).bool() & (ids == 0)] = IGNORE
        return Truth(instances, semantic.to(torch.uint8))


def _instances(
    codes: Sequence[dict[str, Any]],
    classes: list[int],
    size: tuple[int, int],
    crowd: Tensor | None = None,
    areas: list[float] | None = None,
) -> Instances:
    return Instances(
        masks=tuple(codes),
        classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.ones(len(classes)),
        size=size,
        crowd=crowd,
        area=None if areas is None else torch.tensor(areas, dtype=torch.float64),
    )


def _area(annotation: dict[str, Any], code: dict[str, Any], where: str) -> float:
    """How large the file says that an object is (polygons cover fractions of pixels), or else the mask's pixels."""
    area = annotation.get("area")
    if area is None:
        return float(rle.area(code))
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        raise UserError(f"{where}: area {area!r:.50}; expected a number of pixels, or no area at all")
    return float(area)


def _run_lengths(annotation: dict[str, Any], size: tuple[int, int], where: str) -> dict[str, Any]:
    """One annotation's segmentation as a compressed run-length code."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        found = segmentation.get("size")
        if found != list(size):
            raise UserError(
                f"{where}: mask of size {found!r:.50}; expected {list(size)}, height and width of the image"
            )
        return encode_runs(segmentation.get("counts"), size, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{where}: no mask; expected polygons [[x, y, x, y, ...]] or a run-length code, not just a box")
    merged: dict[str, Any] = rle.merge(encode_polygons(segmentation, size, where))
    return merged
