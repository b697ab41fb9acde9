"""Pictures of labels and predictions: numpy arrays (H, W, 3) uint8, joined into sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bestie_pl.structures import IGNORE

Picture = npt.NDArray[np.uint8]

OPACITY = 0.55
GOLDEN_RATIO = 0.618034
"""Steps of the hue between neighbouring numbers: neighbours differ, and no number of colours has to be known."""


def color_of(number: int) -> tuple[int, int, int]:
    """A colour for a positive number, light enough for dark images; grey for the ignore value."""
    if number == IGNORE:
        return (190, 190, 190)
    red, green, blue = colorsys.hsv_to_rgb((number * GOLDEN_RATIO) % 1.0, 0.85, 1.0)
    return (round(255 * red), round(255 * green), round(255 * blue))


def to_picture(image: Tensor) -> Picture:
    """A (3, H, W) image, uint8 or float in [0, 1], as a picture."""
    values = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)
    picture: Picture = values.permute(1, 2, 0).contiguous().cpu().numpy()
    return picture


def overlay(image: Picture, numbers: Tensor) -> Picture:
    """Colour the image by a map of numbers (H, W), 0 transparent, with an outline around each region."""
    ids = numbers.cpu().numpy().astype(np.int64)
    picture = image.astype(np.float32)
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    for number in np.unique(ids[ids > 0]):
        region, color = ids == number, np.asarray(color_of(int(number)), np.float32)
        picture[region] = (1 - OPACITY) * picture[region] + OPACITY * color
        picture[region & edge] = color
    result: Picture = picture.round().astype(np.uint8)
    return result


def draw_points(picture: Picture, yx: Tensor, classes: Tensor) -> Picture:
    """Mark points by a cross in the colour of their class."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    reach = max(2, min(picture.shape[:2]) // 40)
    for (y, x), number in zip(yx.tolist(), classes.tolist(), strict=True):
        for width, color in ((3, (0, 0, 0)), (1, color_of(number + 1))):
            pen.line([(x - reach, y), (x + reach, y)], color, width)
            pen.line([(x, y - reach), (x, y + reach)], color, width)
    return np.asarray(canvas)


def sheet(rows: Sequence[Sequence[Picture]], titles: Sequence[str], *, cell: int = 192) -> Image.Image:
    """Join pictures into a table with a title above each column; each picture is fitted into a square cell."""
    margin, head = 4, 18
    width = len(titles) * (cell + margin) + margin
    canvas = Image.new("RGB", (width, head + len(rows) * (cell + margin) + margin), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((margin + column * (cell + margin), 3), title, fill="black")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            scale = cell / max(image.size)
            small = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(small, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
            canvas.paste(image, (margin + column * (cell + margin), head + margin + row * (cell + margin)))
    return canvas
