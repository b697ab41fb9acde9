"""The release's augmentation, step by step (``recipe: release``). Runs in the workers, on 8-bit images.

Every function takes its random draws as arguments, so that recorded ones reproduce the release; ``draw_*`` draw them.
Source: release 2.1 to 2.7 (docs/release-rules.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Reals = NDArray[np.float64]
T = TypeVar("T", bound=np.generic)

MEAN_COLOR = (123, 116, 103)
"""Colour of pixels outside an image: ImageNet's mean, cut off to integers."""

RESIZE_MARGIN = 64  # the longer side becomes the largest 32 k + 1 that is not above crop size + 64: 449 for 416
GRID = 32
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
BRIGHTNESS = 16.0
CONTRAST = (0.5, 1.5)
HUE = 36.0  # degrees


@dataclass(frozen=True)
class ColorDraws:
    """Photometric draws; the defaults change nothing."""

    brightness: float = 0.0
    contrast: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True


@dataclass(frozen=True)
class GeometryDraws:
    """Geometric draws: scale, padding at the top and left, first row and column of the crop, mirrored or not."""

    scale: float = 1.0
    pad: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    flip: bool = False


def draw_colors(random: np.random.Generator) -> ColorDraws:
    """Each change happens with probability 1/2."""
    coins = random.random(4) < 0.5
    return ColorDraws(
        brightness=random.uniform(-BRIGHTNESS, BRIGHTNESS) if coins[0] else 0.0,
        contrast=random.uniform(*CONTRAST) if coins[1] else 1.0,
        hue=random.uniform(-HUE, HUE) if coins[2] else 0.0,
        contrast_first=bool(coins[3]),
    )


def draw_geometry(size: tuple[int, int], crop_size: int, random: np.random.Generator) -> GeometryDraws:
    """Draws for an image of ``size`` (H, W)."""
    scale = float(random.choice(SCALES))
    scaled = scaled_size(resized_size(size, crop_size), scale)
    top, left = (int(random.integers(0, max(crop_size - side, 0) + 1)) for side in scaled)
    row, column = (int(random.integers(0, max(side - crop_size, 0) + 1)) for side in scaled)
    return GeometryDraws(scale, (top, left), (row, column), bool(random.random() < 0.5))


def distort_colors(image: Bytes, draws: ColorDraws) -> Bytes:
    """Brightness, contrast and hue of an RGB image (H, W, 3), in floats, cut off to integers at the end (2.1)."""
    values = image.astype(np.float32)
    if draws.brightness:
        values = (values + np.float32(draws.brightness)).clip(0, 255)
    if draws.contrast_first:
        values = (values * np.float32(draws.contrast)).clip(0, 255)
    if draws.hue:  # without it, the way to HSV and back would only cut off rounding errors
        values = rotate_hue(values, draws.hue)
    if not draws.contrast_first:
        values = values * np.float32(draws.contrast)
    return values.clip(0, 255).astype(np.uint8)


def rotate_hue(image: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Turn the hue of an RGB image (H, W, 3); value and saturation stay."""
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    safe = np.where(chroma > 0, chroma, 1)
    sixth = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    sixth = np.where(chroma > 0, sixth, 0) + degrees / 60
    # a channel is at its value within one sixth of its hue, at the least beyond two, and linear between
    away = np.stack([(sixth + n) % 6 for n in (5, 3, 1)], -1)
    share = np.minimum(away, 4 - away).clip(0, 1)
    turned: NDArray[np.float32] = (value[..., None] - chroma[..., None] * share).astype(np.float32)
    return turned


def resized_size(size: tuple[int, int], crop_size: int) -> tuple[int, int]:
    """Size after the first resize (2.2): longer side 449 for crops of 416, the shorter one rounded up to 32 k + 1."""
    longest = crop_size + RESIZE_MARGIN
    longest -= (longest - 1) % GRID
    height, width = (side * longest // max(size) for side in size)
    return height + (1 - height) % GRID, width + (1 - width) % GRID


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Size after the random scale (2.3)."""
    return round(size[0] * scale), round(size[1] * scale)


def resize_image(image: Bytes, size: tuple[int, int], step: tuple[float, float]) -> Bytes:
    """Bilinear without antialiasing, in doubles, cut off to integers. ``step``: source pixels per new pixel."""
    values: Reals = image.astype(np.float64)
    for axis in (0, 1):
        last = values.shape[axis] - 1
        at = ((np.arange(size[axis]) + 0.5) * step[axis] - 0.5).clip(0, last)
        low = np.floor(at).astype(np.intp)
        share = (at - low)[:, None, None] if axis == 0 else (at - low)[None, :, None]
        below, above = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
        values = below * (1 - share) + above * share
    return values.astype(np.uint8)


def resize_map(values: NDArray[T], size: tuple[int, int], step: tuple[float, float]) -> NDArray[T]:
    """Nearest as the release's resize has it: the source pixel at the *corner* of each new pixel."""
    rows, columns = (
        np.floor(np.arange(new) * step_).astype(np.intp).clip(0, old - 1)
        for new, step_, old in zip(size, step, values.shape, strict=True)
    )
    resized: NDArray[T] = values[rows][:, columns]
    return resized


def transform_image(image: Bytes, crop_size: int, draws: GeometryDraws) -> Bytes:
    """Resize, scale, pad with the mean colour, crop and mirror an image (H, W, 3)."""
    resized = resized_size((image.shape[0], image.shape[1]), crop_size)
    image = resize_image(image, resized, (image.shape[0] / resized[0], image.shape[1] / resized[1]))
    # the release hands the factor, not the rounded size, to its resize function
    image = resize_image(image, scaled_size(resized, draws.scale), (1 / draws.scale, 1 / draws.scale))
    return _place(image, np.array(MEAN_COLOR, dtype=np.uint8), crop_size, draws)


def transform_map(values: NDArray[T], crop_size: int, draws: GeometryDraws) -> NDArray[T]:
    """The same for a semantic map or a map of object numbers (H, W). The padding becomes 0: background, as there."""
    resized = resized_size((values.shape[0], values.shape[1]), crop_size)
    values = resize_map(values, resized, (values.shape[0] / resized[0], values.shape[1] / resized[1]))
    values = resize_map(values, scaled_size(resized, draws.scale), (1 / draws.scale, 1 / draws.scale))
    return _place(values, values.dtype.type(0), crop_size, draws)


def transform_points(
    yx: Reals, size: tuple[int, int], crop_size: int, draws: GeometryDraws
) -> tuple[Reals, NDArray[np.bool_]]:
    """The same for points (N, 2) of an image of ``size``.

    Returns:
        The points that are left, as whole numbers (cut off, so mirrored ones may lie one pixel left of their pixel),
        and which of the N rows they are, (N,) bool.
    """
    resized = resized_size(size, crop_size)
    moved = np.floor(yx / size * resized) * draws.scale
    moved = moved + draws.pad - np.array(draws.crop)
    inside = ((moved >= 0) & (moved < crop_size)).all(1)
    moved = moved[inside]
    if draws.flip:
        moved = np.stack([moved[:, 0], crop_size - moved[:, 1] - 1], 1)
    return np.trunc(moved), inside


def _place(values: NDArray[T], outside: NDArray[T] | T, crop_size: int, draws: GeometryDraws) -> NDArray[T]:
    """Pad to the crop size where smaller, crop, mirror."""
    height, width = values.shape[:2]
    padded: NDArray[T] = np.empty(
        (max(height, crop_size), max(width, crop_size), *values.shape[2:]), dtype=values.dtype
    )
    padded[...] = outside
    padded[draws.pad[0] : draws.pad[0] + height, draws.pad[1] : draws.pad[1] + width] = values
    crop = padded[draws.crop[0] : draws.crop[0] + crop_size, draws.crop[1] : draws.crop[1] + crop_size]
    return np.ascontiguousarray(crop[:, ::-1] if draws.flip else crop)
