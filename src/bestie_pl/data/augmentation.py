"""Augmentation of a whole batch on its device: one similarity an image moves image, maps and cues together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from kornia import enhance
from kornia.geometry.conversions import convert_affinematrix_to_homography
from kornia.geometry.linalg import transform_points
from kornia.geometry.transform import warp_affine
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.data.release import MEAN_COLOR
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.structures import IGNORE, Batch, Cues, LabeledInstances

# how far colours may move at strength 1: factors within 1 +- these, the hue in turns
BRIGHTNESS = 0.2
CONTRAST = 0.3
SATURATION = 0.3
HUE = 0.05

TOUCH = 1e-3
"""Pixels of the crop: what lies closer to an image's border than this is taken for outside."""


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, mirror and colours of a batch; nothing is left to chance but what ``generator`` draws.

    Args:
        crop_size: Side of the square result, in pixels.
        scale_range: Least and largest scale of the image, uniform between them.
        dihedral: Also vertical mirrors and quarter turns, for pictures without an up and down.
        color_jitter: Strength of the colour changes; 0 leaves colours alone.
    """

    crop_size: int = 416
    scale_range: tuple[float, float] = (0.7, 1.3)
    dihedral: bool = False
    color_jitter: float = 1.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The augmented batch: images float in [0, 1], all (crop_size, crop_size). ``generator`` lives on the CPU."""
        device = batch.images.device
        matrix = self.draw_matrices(batch.sizes, generator).to(device, non_blocking=True)
        batch = warp_batch(batch, matrix, self.crop_size)
        if self.color_jitter == 0:
            return batch
        factors = self.draw_colors(len(batch), generator).to(device, non_blocking=True)
        return replace(batch, images=change_colors(batch.images, factors))

    def draw_matrices(self, sizes: tuple[tuple[int, int], ...], generator: torch.Generator) -> Tensor:
        """(B, 2, 3) similarities for images of ``sizes``; a crop lies anywhere inside its image, or the image in it."""
        count = len(sizes)
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand(count, generator=generator)
        room = torch.tensor(sizes).flip(1) * scale[:, None] - self.crop_size
        corner = (torch.rand(count, 2, generator=generator) * room).round()
        coins = torch.rand(count, 3, generator=generator) < 0.5
        return similarities(scale, corner, coins & torch.tensor([True, self.dihedral, self.dihedral]), self.crop_size)

    def draw_colors(self, count: int, generator: torch.Generator) -> Tensor:
        """(B, 4): factors of brightness, contrast and saturation, and the change of the hue in radians."""
        reach = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, 2 * torch.pi * HUE]) * self.color_jitter
        change = (2 * torch.rand(count, 4, generator=generator) - 1) * reach
        return change + torch.tensor([1.0, 1.0, 1.0, 0.0])


def similarities(scale: Tensor, corner: Tensor, turns: Tensor, crop_size: int) -> Tensor:
    """Matrices from pixels (x, y) of an image to pixels of its crop: scale, cut out, mirror, swap the axes.

    Args:
        scale: (B,) size of the scaled image relative to the image.
        corner: (B, 2) x and y of the crop's first pixel in the scaled image.
        turns: (B, 3) bool: mirror left-right, mirror up-down, swap x and y.
        crop_size: Side of the crop.

    Returns:
        (B, 2, 3) float32; pixel centres are whole numbers.

    >>> similarities(torch.tensor([2.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([[False, True, False]]), 4).tolist()
    [[[2.0, 0.0, -0.5], [0.0, -2.0, 2.5]]]
    """
    # a pixel's centre p becomes (p + 1/2) scale - 1/2
    shift = (scale[:, None] - 1) / 2 - corner
    mirrored = turns[:, :2]
    sign = 1 - 2 * mirrored.float()
    shift = torch.where(mirrored, crop_size - 1 - shift, shift)
    matrix = torch.cat([torch.diag_embed(scale[:, None] * sign), shift[:, :, None]], 2)
    return torch.where(turns[:, 2, None, None], matrix.flip(1), matrix)


def warp_batch(batch: Batch, matrix: Tensor, crop_size: int) -> Batch:
    """Move images (bilinear), semantic maps and instances (nearest) and cues by the same matrices.

    Outside of an image are the mean colour, 255 in the semantic map and no instance; cues out there are dropped.

    Args:
        batch: Images uint8, padded with ``MEAN_COLOR``.
        matrix: (B, 2, 3) from ``similarities``.
        crop_size: Side of the result.
    """
    crop = (crop_size, crop_size)
    # Kornia fills with 0, so 0 must stand for the outside: the mean colour in images, 255 in the semantic map
    mean = torch.tensor(MEAN_COLOR, device=matrix.device).view(1, 3, 1, 1)
    images = (_warp(batch.images.float() - mean, matrix, crop) + mean) / 255
    semantic = batch.semantic
    if semantic is not None:
        moved = _warp_numbers(semantic.int() + 1, matrix, crop)
        semantic = torch.where(moved == 0, IGNORE, moved - 1).to(torch.uint8)
    return replace(
        batch,
        images=images.clamp(0, 1),
        semantic=semantic,
        cues=move_cues(batch.cues, matrix, crop_size, batch.sizes),
        truth=_warp_instances(batch.truth, matrix, crop),
        predicted=_warp_instances(batch.predicted, matrix, crop),
        sizes=(crop,) * len(batch),
    )


def move_cues(cues: Cues, matrix: Tensor, crop_size: int, sizes: Sequence[tuple[int, int]]) -> Cues:
    """Cues in pixels of the crop, without those whose nearest pixel lies outside of it.

    Cues at the border of their image, of ``sizes`` (H, W), stay on it: the nearest pixel of the crop may show the
    outside, and they are moved to the one beside it then.
    """
    whole = convert_affinematrix_to_homography(matrix)[cues.image]
    ends = torch.tensor(sizes, dtype=matrix.dtype).flip(1) - 0.5
    corners = ends.to(matrix.device, non_blocking=True)[cues.image]
    points = torch.stack([cues.yx.flip(1), torch.full_like(corners, -0.5), corners], 1)
    yx, one, other = transform_points(whole, points).flip(2).unbind(1)
    first, last = (torch.minimum(one, other) + TOUCH).ceil(), (torch.maximum(one, other) - TOUCH).ceil() - 1
    moved = replace(cues, yx=yx.maximum(first).minimum(last))
    return moved.select(((moved.yx > -0.5) & (moved.yx < crop_size - 0.5)).all(1))


def change_colors(images: Tensor, factors: Tensor) -> Tensor:
    """Change colours of images (B, 3, H, W) in [0, 1] by the factors (B, 4) of ``draw_colors``; still in [0, 1]."""
    brightness, contrast, saturation, hue = factors.unbind(1)
    images = enhance.adjust_brightness_accumulative(images, brightness)
    images = enhance.adjust_contrast_with_mean_subtraction(images, contrast)
    images = enhance.adjust_saturation_with_gray_subtraction(images, saturation)
    return enhance.adjust_hue(images, hue).clamp(0, 1)


def _warp_instances(
    instances: LabeledInstances | None, matrix: Tensor, crop: tuple[int, int]
) -> LabeledInstances | None:
    if instances is None:
        return None
    moved = instances_from_map(_warp_numbers(instances.ids, matrix, crop), instances.image, instances.classes)
    return replace(moved, weight=moved.weight * instances.weight)


def _warp_numbers(numbers: Tensor, matrix: Tensor, crop: tuple[int, int]) -> Tensor:
    """Numbers (B, H, W) below 2**24 moved without mixing; 0 outside."""
    return _warp(numbers[:, None].float(), matrix, crop, mode="nearest")[:, 0].int()


def _warp(values: Tensor, matrix: Tensor, crop: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Values (B, C, H, W) moved; 0 outside."""
    # Kornia would stretch what is one pixel wide or high over the whole crop
    room = (0, int(values.shape[3] == 1), 0, int(values.shape[2] == 1))
    return warp_affine(F.pad(values, room), matrix, crop, mode=mode)
