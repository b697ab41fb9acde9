"""Readers of ground truth: the only place that opens instance masks.

Training comes here only if its labels or semantic maps are declared to be the ground truth, or to measure labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from bestie_pl.data.files import Packed
from bestie_pl.data.formats.images import check_size
from bestie_pl.data.formats.maps import read_label_map, read_semantic
from bestie_pl.structures import IGNORE, Instances


class Truth(NamedTuple):
    """``instances`` of one image, and its true ``semantic`` map (H, W) uint8; both at the size of the file."""

    instances: Instances
    semantic: Tensor


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
    areas = rle.area(single) if single else np.zeros(0)
    for number in np.argsort(-areas.astype(np.int64), kind="stable"):
        ids[rle.decode(single[number]).view(bool)] = number + 1
    return torch.from_numpy(ids), instances.classes[~torch.tensor(crowd, dtype=torch.bool)]


@dataclass(frozen=True)
class VOCTruth:
    """Reads PASCAL VOC's pair of palette images, ``SegmentationClass`` and ``SegmentationObject``.

    Source: chainercv's reader as the release's evaluation uses it (release 11.1): an object's class is the smallest
    class number under it; objects 0 and 255 do not count.
    """

    names: Packed
    class_dir: Path
    object_dir: Path
    num_classes: int

    def known(self, index: int) -> bool:
        """See ``TruthReader``."""
        return all((folder / f"{self.names[index]}.png").is_file() for folder in (self.class_dir, self.object_dir))

    def __call__(self, index: int, size: tuple[int, int]) -> Truth:
        """See ``TruthReader``."""
        name = self.names[index]
        semantic = read_semantic(self.class_dir / f"{name}.png", size, self.num_classes)
        path = self.object_dir / f"{name}.png"
        objects = read_label_map(path, "the image's object numbers (0 background, 255 ignore); name a split with them")
        check_size(path, objects.shape, size)
        numbers = [int(number) for number in np.unique(objects) if number not in (0, IGNORE)]
        inside = objects[..., None] == np.array(numbers, dtype=np.int32)
        codes = rle.encode(np.asfortranarray(inside)) if numbers else []
        classes = []
        for k, number in enumerate(numbers):
            below = semantic.numpy()[inside[..., k]]
            below = below[(below != 0) & (below != IGNORE)]
            if len(below) == 0:
                raise ValueError(
                    f"{path}: object {number} lies on background alone in {self.class_dir / path.name}; expected the "
                    "number of its class there"
                )
            classes.append(int(below.min()) - 1)
        return Truth(_instances(codes, classes, size), semantic)


@dataclass(frozen=True)
class COCOTruth:
    """Reads the annotations of a COCO file: polygons, and run-length codes of both kinds.

    The semantic map has smaller objects on top; crowd regions outside of all objects are 255, since they hold no single
    object to learn.

    Args:
        annotations: One JSON list an image: the file's annotations with a ``class`` (0-based).
        sizes: (N, 2) height and width according to the file.
        path: The annotation file, for messages.
    """

    annotations: Packed
    sizes: Tensor
    path: Path

    def known(self, index: int) -> bool:
        """See ``TruthReader``."""
        return True

    def __call__(self, index: int, size: tuple[int, int]) -> Truth:
        """See ``TruthReader``."""
        stated = tuple(self.sizes[index].tolist())
        annotations = json.loads(self.annotations[index])
        if stated != size:
            raise ValueError(
                f"{self.path}: entry {index} of `images` is {stated[1]} x {stated[0]} px (width x height) but its file "
                f"is {size[1]} x {size[0]} (after turning it as its EXIF orientation says); annotate the stored image"
            )
        codes = [_run_lengths(a, size, f"{self.path}: annotation {a.get('id')}") for a in annotations]
        crowd = torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool)
        areas = [
            _area(a, code, f"{self.path}: annotation {a.get('id')}") for a, code in zip(annotations, codes, strict=True)
        ]
        instances = _instances(codes, [a["class"] for a in annotations], size, crowd, areas)
        ids, classes = paint_instances(instances)
        semantic = torch.cat([torch.zeros(1, dtype=torch.int64), classes + 1])[ids.long()]
        for code in (code for code, is_crowd in zip(codes, crowd.tolist(), strict=True) if is_crowd):
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
        raise ValueError(f"{where}: area {area!r}; expected a number of pixels, or no area at all")
    return float(area)


def _run_lengths(annotation: dict[str, Any], size: tuple[int, int], where: str) -> dict[str, Any]:
    """One annotation's segmentation as a compressed run-length code."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != list(size):
            found = segmentation.get("size")
            raise ValueError(f"{where}: mask of size {found}; expected {list(size)}, height and width of the image")
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, list)):
            raise ValueError(f"{where}: a run-length code without counts; expected a list or a string")
        try:
            code = {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}
            check_code(code)
            coded: dict[str, Any] = code if isinstance(counts, str) else rle.frPyObjects(segmentation, *size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; restore the file") from error
        return coded
    # pycocotools takes a list of four numbers for a box, and what is no number for 0
    polygons: list[list[float]] = segmentation if isinstance(segmentation, list) else []
    if not polygons or not all(map(_is_polygon, polygons)):
        raise ValueError(
            f"{where}: no mask; expected polygons [[x, y, x, y, x, y, ...], ...] or a run-length code, not just a box"
        )
    merged: dict[str, Any] = rle.merge(rle.frPyObjects(polygons, *size))
    return merged


def _is_polygon(polygon: Any) -> bool:
    """Whether it holds three points or more."""
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(value) in (int, float) and math.isfinite(value) for value in polygon)
    )


def check_code(code: dict[str, Any]) -> None:
    """Raise ValueError unless a run-length code of either kind covers its image.

    pycocotools does not: it fills what a code leaves out with whatever the memory held.
    """
    height, width = code["size"]
    counts = code["counts"]
    runs = read_runs(counts) if isinstance(counts, bytes) else counts
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(
            f"a broken run-length code, whose runs do not add up to the {height} x {width} px of the image"
        )


def read_runs(counts: bytes) -> list[int]:
    """The lengths of the runs of a compressed run-length code; of a broken one, they do not add up.

    Source: pycocotools' ``rleFrString``: five bits a byte, the lowest first; from the fourth run on the difference to
    the run before the last.

    >>> read_runs(rle.encode(np.array([[0, 1], [1, 1]], dtype=np.uint8, order="F"))["counts"])
    [1, 3]
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more follow
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
