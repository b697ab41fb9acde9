"""The few structures that travel between the parts of the library.

Conventions, everywhere: coordinates are ``(y, x)`` in pixels, the origin is the centre of the top-left pixel; a
semantic map holds 0 for background, ``c + 1`` for class ``c`` and 255 for "ignore"; classes count from 0 everywhere
else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

IGNORE = 255
"""Value of a semantic map's pixels that no loss and no label may use."""

Supervision = Literal["tags", "points", "full"]


def _move(value: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Apply ``Tensor.to`` or ``Tensor.pin_memory`` to a tensor or to one of our structures; leave the rest alone."""
    if isinstance(value, (Tensor, _Movable)):
        return getattr(value, method)(*args, **kwargs)
    return value


class _Movable:
    """What Lightning's batch mover and the pinning thread of a DataLoader call on a structure."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Copy with every tensor on ``device``."""
        return self._each("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Copy with every tensor in page-locked memory."""
        return self._each("pin_memory")

    def _each(self, method: str, *args: Any, **kwargs: Any) -> Self:
        moved = {name: _move(value, method, *args, **kwargs) for name, value in vars(self).items()}
        return type(self)(**moved)


@dataclass(frozen=True)
class Geometry:
    """Lengths that depend on how large the objects are, in pixels of the network's input.

    The defaults are the paper's for VOC photographs (objects of 50 to 400 px). ``scaled`` adapts all of them at once.

    Args:
        sigma: Standard deviation of a centre's Gaussian.
        peak_window: Side of the window in which a centre must be the maximum; odd.
        min_area: Components with fewer pixels are ignored.
        cluster_radius: Offsets shorter than this belong to a convergence point (center clustering).
        cluster_tolerance: By how many pixels the area of a convergence point may differ from that of a disc of
            ``cluster_radius`` (the paper's beta).
        cluster_distance: A clustered centre is added to a component that has peaks only if it is farther than this from
            all of them.
    """

    sigma: float = 6.0
    peak_window: int = 41
    min_area: int = 50
    cluster_radius: float = 2.5
    cluster_tolerance: float = 3.0
    cluster_distance: float = 100.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")
        if self.peak_window % 2 == 0:
            raise ValueError(f"peak_window must be odd, got {self.peak_window}")

    @property
    def cluster_area(self) -> int:
        """Pixels closer than ``cluster_radius`` to a pixel centre: 21 for the paper's 2.5."""
        reach = range(-math.ceil(self.cluster_radius), math.ceil(self.cluster_radius) + 1)
        return sum(math.hypot(y, x) < self.cluster_radius for y in reach for x in reach)

    @property
    def gaussian_reach(self) -> int:
        """Half side of the square in which a centre's Gaussian is drawn (release: 3 sigma + 1)."""
        return round(3 * self.sigma) + 1

    def scaled(self, object_scale: float) -> Geometry:
        """The same for objects ``object_scale`` times as large as VOC's: lengths scale with it, areas with its square.

        A convergence point keeps a radius of at least 2.5 px (21 pixels): around any centre offsets grow by one a
        pixel, however large the object, and smaller discs are drowned by the field's noise.
        """
        if not object_scale > 0:
            raise ValueError(f"object_scale must be positive, got {object_scale}")
        radius = max(self.cluster_radius * object_scale, min(self.cluster_radius, Geometry.cluster_radius))
        return Geometry(
            sigma=self.sigma * object_scale,
            peak_window=2 * round((self.peak_window - 1) / 2 * object_scale) + 1,
            min_area=max(1, round(self.min_area * object_scale**2)),
            cluster_radius=radius,
            cluster_tolerance=self.cluster_tolerance * (radius / self.cluster_radius) ** 2,
            cluster_distance=self.cluster_distance * object_scale,
        )


@dataclass(frozen=True)
class Cues(_Movable):
    """Points with a class in a batch of images: given points, cues of a classifier, or centres of a heatmap.

    Args:
        image: (N,) int64, index of the image in the batch.
        yx: (N, 2) float32, pixels; need not be integers.
        classes: (N,) int64, 0-based.
        scores: (N,) float32; 1 for given points. A row with score 0 is an empty slot.
    """

    image: Tensor
    yx: Tensor
    classes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        n = len(self.image)
        shapes = [tuple(t.shape) for t in (self.image, self.yx, self.classes, self.scores)]
        if shapes != [(n,), (n, 2), (n,), (n,)]:
            raise ValueError(f"cues need shapes (N,), (N, 2), (N,), (N,); got {shapes}")

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def empty(cls, device: torch.device | str | None = None) -> Cues:
        """No cue at all."""
        whole = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(whole, torch.zeros(0, 2, device=device), whole, torch.zeros(0, device=device))

    def select(self, rows: Tensor) -> Cues:
        """The cues of a boolean mask or an index tensor."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)  # one wait for a device, instead of one a column
        return Cues(self.image[rows], self.yx[rows], self.classes[rows], self.scores[rows])


@dataclass(frozen=True)
class Components(_Movable):
    """Connected components of a batch of class maps, and a table with one row a component. Row 0 is "no component".

    Args:
        labels: (B, H, W) int32, 0 outside; components are numbered 1..K over the whole batch, by their first pixel
            in row-major order.
        image: (K + 1,) int64.
        classes: (K + 1,) int64, 0-based; -1 in row 0.
        area: (K + 1,) int64, pixels; 0 in row 0.
        center_yx: (K + 1, 2) int64, centroid with its fraction cut off.
        pixels: How many pixels of ``labels`` are not 0, where the host knows it without asking the device again.
    """

    labels: Tensor
    image: Tensor
    classes: Tensor
    area: Tensor
    center_yx: Tensor
    pixels: int | None = None


@dataclass(frozen=True)
class LabeledInstances(_Movable):
    """Instances of a batch (pseudo labels, refined labels, ground truth, predictions): a label map and a table.

    Row 0 of the table is "nothing" and rows of area 0 are empty slots, so everything dense follows by a gather:
    offset target ``center_yx[ids] - coordinate``, weights ``weight[ids]``, guidance region ``ids > 0``.

    Args:
        ids: (B, H, W) int32, 0 where nothing is labelled, otherwise a row of the table.
        image: (N + 1,) int64.
        classes: (N + 1,) int64, 0-based; -1 in row 0.
        center_yx: (N + 1, 2) float32, where the instance's offsets point.
        weight: (N + 1,) float32 in [0, 1]: how sure the label is; the score of a prediction; 0 in row 0.
        area: (N + 1,) int64 pixels; 0 in row 0.
        peaks: where the centre heatmap has its Gaussians. The instances' centres, unless points were given.
    """

    ids: Tensor
    image: Tensor
    classes: Tensor
    center_yx: Tensor
    weight: Tensor
    area: Tensor
    peaks: Cues

    def __post_init__(self) -> None:
        n = len(self.image)
        shapes = [tuple(t.shape) for t in (self.classes, self.center_yx, self.weight, self.area)]
        if shapes != [(n,), (n, 2), (n,), (n,)] or self.ids.dim() != 3:
            raise ValueError(
                f"expected ids (B, H, W) and columns of {n} rows, got {tuple(self.ids.shape)} and {shapes}"
            )

    def count_and_weight(self) -> tuple[Tensor, Tensor]:
        """How many labels an image has, and their mean weight (0 without any): two scalars on the device.

        A label is a row with a pixel and a weight; others teach nothing.
        """
        is_label = (self.area > 0) & (self.weight > 0)
        count = is_label.sum()
        return count / len(self.ids), (self.weight * is_label).sum() / count.clamp(min=1)


class InstanceMaps(NamedTuple):
    """What the network says of a batch, at any resolution; ``h, w`` is a quarter of the image where it leaves it.

    ``semantic_logits``: (B, C + 1, h, w), channel 0 is background. ``center_heatmap``: (B, C, h, w), one channel a
    class, linear. ``offset_field``: (B, 2, h, w), (dy, dx) in pixels of the network's *input*, to the centre.
    """

    semantic_logits: Tensor
    center_heatmap: Tensor
    offset_field: Tensor

    def detach(self) -> InstanceMaps:
        """The same values outside the graph."""
        return InstanceMaps(*(m.detach() for m in self))


@dataclass(frozen=True)
class Instances(_Movable):
    """The instances of one image at its original size; there may be none.

    Args:
        masks: N run-length codes as pycocotools makes them: ``{"size": [H, W], "counts": bytes}``.
        classes: (N,) int64, 0-based, on the CPU.
        scores: (N,) float32 on the CPU; 1 for ground truth.
        size: (H, W).
        crowd: (N,) bool: regions of ground truth that count neither for nor against a prediction; none if omitted.
        area: (N,) float64: how large an annotation file says that objects are, by which COCO tells small from large
            ones; the pixels of the masks if omitted.
    """

    masks: tuple[dict[str, Any], ...]
    classes: Tensor
    scores: Tensor
    size: tuple[int, int]
    crowd: Tensor | None = None
    area: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.masks) == len(self.classes) == len(self.scores):
            raise ValueError(f"{len(self.masks)} masks, {len(self.classes)} classes and {len(self.scores)} scores")
        if self.crowd is not None and len(self.crowd) != len(self.masks):
            raise ValueError(f"{len(self.masks)} masks and {len(self.crowd)} crowd flags")
        if self.area is not None and len(self.area) != len(self.masks):
            raise ValueError(f"{len(self.masks)} masks and {len(self.area)} areas")

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True)
class Batch(_Movable):
    """A batch as it leaves the data module.

    Args:
        images: (B, 3, H, W): uint8 from the workers, float RGB in [0, 1] for the module; smaller images are padded at
            the bottom and right. Normalisation belongs to the network.
        tags: (B, C) bool, the classes that an image is known to hold.
        cues: given points or a classifier's cues, in pixels of ``images``.
        names: B image names, unique in the data set.
        sizes: B pairs (H, W): the part of ``images`` that is no padding.
        original_sizes: B pairs (H, W): of the image files, where predictions belong.
        pointed: (B,) bool: whose ``cues`` are given points; the other images have tags only, and perhaps a classifier's
            cues. None where the supervision is the same for all images.
        semantic: (B, H, W) uint8 or None: the semantic map that labels are made from; 255 in the padding.
        components: of the tagged classes in ``semantic``, shared by transfer and refinement; made on the device.
        pseudo: the labels that training starts from (true instances where the supervision is ``full``).
        truth: true instances of the training crop, for measuring label quality; never used by a loss.
        measured: (B,) bool: of which images ``truth``, or the references, are known; None where they are of all.
        predicted: instances of the training crop that an earlier model predicted, until they are the pseudo labels.
        references: ground truth at the original size, for evaluation; no instance where it is not known.
        semantic_references: B maps (H, W) uint8 at the original size, for evaluation; 255 where it is not known.
    """

    images: Tensor
    tags: Tensor
    cues: Cues
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    pointed: Tensor | None = None
    semantic: Tensor | None = None
    components: Components | None = None
    pseudo: LabeledInstances | None = None
    truth: LabeledInstances | None = None
    measured: Tensor | None = None
    predicted: LabeledInstances | None = None
    references: tuple[Instances, ...] | None = None
    semantic_references: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        b = len(self.images)
        if not b == len(self.tags) == len(self.names) == len(self.sizes) == len(self.original_sizes):
            raise ValueError(f"a batch of {b} images has {len(self.tags)} tags and {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.images)
