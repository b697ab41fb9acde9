"""Refinement and grouping one component at a time with dense arrays, the way that the authors' release works.

Written from the description of the release's behaviour, with OpenCV, NumPy and torch's pooling; slow on purpose. What
it computes equals ``recipe: release`` of ``bestie_pl.ops``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.measure import Stages
from bestie_pl.structures import Cues, Geometry, InstanceMaps

Array = NDArray[np.float32]
Pooling = Literal["torch", "opencv"]
"""Who takes the windowed maximum of a component: torch's dense pooling, as in the release, or OpenCV's dilation, whose
cost does not grow with the window: the best that a loop over components could do."""


@dataclass(frozen=True)
class Refined:
    """Dense targets of a batch.

    Args:
        center: (B, C, H, W).
        offset: (B, 2, H, W).
        weight: (B, H, W).
    """

    center: Array
    offset: Array
    weight: Array


@dataclass(frozen=True)
class Component:
    """One component and what was found in it.

    Args:
        mask: (H, W) bool.
        heat: (H, W), the heatmap of its class inside of it, 1 at clustered centres.
        owner: (H, W) int, number of the centre from 1, 0 outside; None without a centre.
    """

    mask: NDArray[np.bool_]
    heat: Array
    owner: NDArray[np.int64] | None


@dataclass
class PerComponent:
    """The loop over images, classes and components.

    Args:
        geometry: Lengths.
        threshold: Of the peaks.
        pooling: Who takes the windowed maximum.
        stages: Clock of the parts.
    """

    geometry: Geometry
    threshold: float
    pooling: Pooling = "torch"
    stages: Stages = field(default_factory=Stages)

    def refine(self, maps: InstanceMaps, classes: NDArray[np.int32]) -> Refined:
        """Refined targets from maps at full size and the map of the tagged classes, 0 outside."""
        with self.stages("planes"):
            probability = maps.semantic_logits.softmax(1).numpy()
            heats, offsets = maps.center_heatmap.numpy(), maps.offset_field.numpy()
        with self.stages("targets"):
            center = np.zeros(heats.shape, np.float32)
            offset = np.zeros(offsets.shape, np.float32)
            weight = np.zeros(classes.shape, np.float32)
        for image in range(len(classes)):
            for own in np.unique(classes[image]):
                if own == 0:
                    continue
                for one in self.components(classes[image] == own, heats[image, own - 1], offsets[image]):
                    with self.stages("targets"):
                        targets = (center[image, own - 1], offset[image], weight[image])
                        self._label(one, probability[image, own], *targets)
        return Refined(center, offset, weight)

    def transfer(self, classes: NDArray[np.int32], cues: Cues, num_classes: int) -> Refined:
        """Pseudo labels from image tags: components with exactly one cue of their class, centred at their centroid."""
        center = np.zeros((len(classes), num_classes, *classes.shape[1:]), np.float32)
        offset = np.zeros((len(classes), 2, *classes.shape[1:]), np.float32)
        weight = np.zeros(classes.shape, np.float32)
        rows, columns = np.mgrid[: classes.shape[1], : classes.shape[2]].astype(np.float32)
        at = cues.yx.round().long().numpy()
        for image in range(len(classes)):
            for own in np.unique(classes[image]):
                if own == 0:
                    continue
                count, numbers = cv2.connectedComponents((classes[image] == own).astype(np.uint8), connectivity=8)
                mine = at[((cues.image == image) & (cues.classes == int(own) - 1)).numpy()]
                for number in range(1, count):
                    mask = numbers == number
                    if mask.sum() < self.geometry.min_area or mask[mine[:, 0], mine[:, 1]].sum() != 1:
                        continue
                    y, x = (int(v.mean()) for v in np.nonzero(mask))
                    _stamp(center[image, own - 1], y, x, self.geometry)
                    weight[image][mask] = 1
                    offset[image, :, mask] = np.stack([y - rows[mask], x - columns[mask]], 1)
        return Refined(center, offset, weight)

    def predict(self, maps: InstanceMaps) -> list[tuple[int, int, NDArray[np.bool_], float]]:
        """Instances (image, class, mask, score) from maps at full size, a component without centre being one."""
        with self.stages("planes"):
            probability = maps.semantic_logits.softmax(1).numpy()
            semantic = probability.argmax(1)
            heats, offsets = maps.center_heatmap.numpy(), maps.offset_field.numpy()
        found = []
        for image in range(len(semantic)):
            for own in np.unique(semantic[image]):
                if own == 0:
                    continue
                for one in self.components(semantic[image] == own, heats[image, own - 1], offsets[image]):
                    owner = one.mask.astype(np.int64) if one.owner is None else one.owner
                    for number in np.unique(owner[owner > 0]):
                        group = owner == number
                        sure = float(probability[image, own][group].mean())
                        score = float(one.heat[group].max())
                        found.append((image, int(own) - 1, group, (sure if score >= 1 else score) * sure))
        return found

    def components(self, mask: NDArray[np.bool_], heat: Array, offset: Array) -> list[Component]:
        """The components of one class in one image, with their centres and groups."""
        with self.stages("components"):
            count, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            masks = [numbers == number for number in range(1, count)]
            masks = [one for one in masks if one.sum() >= self.geometry.min_area]
        found = []
        for one in masks:
            own = np.where(one, heat, np.float32(0))
            with self.stages("peaks"):
                centers = self._peaks(own)
            with self.stages("clustering"):
                centers = self._with_clusters(centers, own, one, offset)
            with self.stages("grouping"):
                owner = _group(centers, one, offset) if centers else None
            found.append(Component(one, own, owner))
        return found

    def _peaks(self, heat: Array) -> list[tuple[int, int]]:
        window = self.geometry.peak_window
        kept = np.where(heat > np.float32(self.threshold), heat, np.float32(-1))
        if self.pooling == "torch":
            pooled = F.max_pool2d(torch.from_numpy(kept)[None, None], window, 1, window // 2)[0, 0].numpy()
        else:
            pooled = cv2.dilate(kept, np.ones((window, window), np.uint8), borderType=cv2.BORDER_REPLICATE)
        return [(int(y), int(x)) for y, x in zip(*np.nonzero((kept == pooled) & (kept > 0)), strict=True)]

    def _with_clusters(
        self, peaks: list[tuple[int, int]], heat: Array, mask: NDArray[np.bool_], offset: Array
    ) -> list[tuple[int, int]]:
        geometry = self.geometry
        weak = (np.sqrt(offset[0] ** 2 + offset[1] ** 2) < np.float32(geometry.cluster_radius)) & mask
        count, numbers, table, centroids = cv2.connectedComponentsWithStats(weak.astype(np.uint8), connectivity=4)
        centers = list(peaks)
        for number in range(1, count):
            area = table[number, cv2.CC_STAT_AREA]
            if abs(area - geometry.cluster_area) >= geometry.cluster_tolerance:
                continue
            y, x = (int(v.mean()) for v in np.nonzero(numbers == number))
            near = peaks and min(np.hypot(y - a, x - b) for a, b in peaks) <= geometry.cluster_distance
            if heat[y, x] > np.float32(0.05) and not near:
                centers.append((y, x))
        for y, x in centers[len(peaks) :]:
            heat[y, x] = 1
        return centers

    def _label(self, one: Component, probability: Array, center: Array, offset: Array, weight: Array) -> None:
        if one.owner is None or one.owner.max() > 5:
            return
        ys, xs = np.mgrid[: len(one.mask), : one.mask.shape[1]].astype(np.float32)
        for number in np.unique(one.owner[one.owner > 0]):
            group = one.owner == number
            inside = np.where(group, one.heat, -np.inf)
            y, x = (int(v) for v in np.unravel_index(inside.argmax(), inside.shape))
            sure = float(probability[group].mean())
            if inside[y, x] >= np.float32(self.threshold):
                sure *= float(inside[y, x])
            else:
                y, x = (int(v.mean()) for v in np.nonzero(one.mask))
            _stamp(center, y, x, self.geometry)
            weight[group] = min(max(sure, 0.0), 1.0)
            offset[0][group], offset[1][group] = (y - ys)[group], (x - xs)[group]


def _group(centers: list[tuple[int, int]], mask: NDArray[np.bool_], offset: Array) -> NDArray[np.int64]:
    ys, xs = np.mgrid[: len(mask), : mask.shape[1]].astype(np.float32)
    y, x = ys + offset[0], xs + offset[1]
    away = np.stack([np.sqrt((np.float32(a) - y) ** 2 + (np.float32(b) - x) ** 2) for a, b in centers])
    return (away.argmin(0) + 1) * mask


def _stamp(plane: Array, y: int, x: int, geometry: Geometry) -> None:
    reach = geometry.gaussian_reach
    step = np.arange(-reach, reach + 1)
    gaussian = np.exp(-(step[:, None] ** 2 + step**2) / (2 * geometry.sigma**2)).astype(np.float32)
    top, left = max(0, y - reach), max(0, x - reach)
    bottom, right = min(len(plane), y + reach + 1), min(plane.shape[1], x + reach + 1)
    part = gaussian[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
    np.maximum(plane[top:bottom, left:right], part, out=plane[top:bottom, left:right])
