"""A stand-in for a network: its maps are written in the image's colours, so that what is expected is known exactly."""

from __future__ import annotations

import numpy as np
import torch

from bestie_pl.ops.instances import find_instances
from bestie_pl.ops.masks import resize_map, to_instances
from bestie_pl.recipe import PAPER
from bestie_pl.structures import Batch, Geometry, InstanceMaps, Instances

REACH = 127
"""Longest offset along an axis that a byte holds."""


class CodedNetwork:
    """Red says whether a pixel belongs to an object, green and blue where its centre lies; the rest is the method."""

    class_names = ("disc",)
    recipe = "paper"
    oracle = None
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.training = True
        self.seen: list[tuple[int, int]] = []

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def predict_instances(self, batch: Batch) -> tuple[tuple[Instances, ...], tuple[torch.Tensor, ...]]:
        assert not self.training and not batch.tags.any()
        self.seen.append((batch.images.shape[-2], batch.images.shape[-1]))
        values = (batch.images * 255).round()
        inside = values[:, :1] > 200
        offsets = torch.where(inside, values[:, 1:] - 128, 0)
        heat = torch.where(inside, torch.exp(-offsets.square().sum(1, keepdim=True) / 18), 0)
        logits = torch.cat([torch.where(inside, -9.0, 9.0), torch.where(inside, 9.0, -9.0)], 1)
        labels, semantic = find_instances(
            InstanceMaps(logits, heat, offsets), geometry=Geometry(peak_window=7, min_area=9), rules=PAPER
        )
        instances = to_instances(labels, sizes=batch.sizes, original_sizes=batch.original_sizes)
        return instances, tuple(
            resize_map(plane[:h, :w], original)
            for plane, (h, w), original in zip(semantic, batch.sizes, batch.original_sizes, strict=True)
        )


def draw_discs(size: tuple[int, int], centers: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 of discs as ``CodedNetwork`` reads it; later ones lie over earlier ones."""
    picture = np.zeros((*size, 3), np.uint8)
    for (cy, cx), radius in zip(centers.tolist(), radii.tolist(), strict=True):
        top, left = max(0, cy - radius), max(0, cx - radius)
        y, x = np.mgrid[top : min(size[0], cy + radius + 1), left : min(size[1], cx + radius + 1)]
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        dy, dx = ((np.clip(c - v, -REACH, REACH) + 128)[disc] for c, v in ((cy, y), (cx, x)))
        picture[y[disc], x[disc]] = np.stack([np.full_like(dy, 255), dy, dx], 1)
    return picture
