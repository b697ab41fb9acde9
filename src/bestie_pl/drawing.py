"""Pictures of labels and predictions: numpy arrays (H, W, 3) uint8, joined into sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as codec
from torch import Tensor

from bestie_pl.data.files import in_one_move
from bestie_pl.ops.runs import paint_codes
from bestie_pl.structures import IGNORE, Instances

Picture = npt.NDArray[np.uint8]

CELL = 192
"""Side in pixels of a picture's place in a sheet."""
FONT_SIZE = 12
OPACITY = 0.55
HEAT_OPACITY = 0.8
GOLDEN_RATIO = 0.618034
"""Steps of the hue between neighbouring numbers: neighbours differ, and no number of colours has to be known."""
HEAT = ((30, 0, 60), (150, 20, 130), (240, 80, 40), (255, 190, 0), (255, 255, 130))
"""Colours of the values from 0 to 1 in equal steps, ever lighter, so that they can be told apart without hues too."""

FILL_OPACITY = 0.4
"""Of a mask under its outline: what lies beneath can still be judged."""
SMALLEST_OVERLAY = 512
"""Images whose longer side is shorter are enlarged before text is written on them."""


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


def draw_instances(image: Picture, instances: Instances, class_names: Sequence[str]) -> Picture:
    """Outline and tint each instance in a colour of its own, and write class and score on those that have room for it.

    Better instances cover worse ones, their text too: a text that would cover another one, or is far wider than its
    object, is shortened to the score or left out. An image with a longer side under 512 px is enlarged by a whole
    factor, since no text could be read on it.

    Args:
        image: (H, W, 3).
        instances: Of this image, best score first.
        class_names: In the order of the classes' numbers.
    """
    factor = max(1, -(-SMALLEST_OVERLAY // max(image.shape[:2])))
    count = len(instances)
    ids = paint_codes(instances.masks[::-1], instances.size).numpy()
    ids = np.where(ids > 0, count + 1 - ids, 0)
    if factor > 1:
        size = (factor * image.shape[1], factor * image.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        ids = ids.repeat(factor, 0).repeat(factor, 1)
    colors = np.asarray([(0, 0, 0), *(color_of(number) for number in range(1, count + 1))], np.uint8)
    thickness = max(2, round(max(image.shape[:2]) / 500))
    outline, halo = _near_another(ids, thickness), _near_another(ids, thickness // 2)
    picture = image.copy()
    inside = ids > 0
    tint = colors[ids[inside]]
    picture[inside] = (picture[inside] * (1 - FILL_OPACITY) + tint * FILL_OPACITY).round().astype(np.uint8)
    picture[outline & inside] = colors[ids[outline & inside]]
    # a dark rim outside separates the line from a background of its colour
    picture[halo & ~inside] = picture[halo & ~inside] // 3
    return _write_labels(picture, ids, instances, class_names, colors)


def _near_another(ids: npt.NDArray[np.int64], reach: int) -> npt.NDArray[np.bool_]:
    """Whether a pixel with another number lies within ``reach`` pixels along an axis or a diagonal step."""
    found = np.zeros(ids.shape, bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for step in range(1, reach + 1 if 0 in (dy, dx) else round(reach / 1.4) + 1):
            down, right = step * dy, step * dx
            first = ids[: ids.shape[0] - down, max(0, -right) : ids.shape[1] - max(0, right)]
            second = ids[down:, max(0, right) : ids.shape[1] - max(0, -right)]
            differ = first != second
            found[: ids.shape[0] - down, max(0, -right) : ids.shape[1] - max(0, right)] |= differ
            found[down:, max(0, right) : ids.shape[1] - max(0, -right)] |= differ
    return found


def _write_labels(
    picture: Picture, ids: npt.NDArray[np.int64], instances: Instances, class_names: Sequence[str], colors: Picture
) -> Picture:
    """Above the highest pixels of each instance that is seen, better ones first."""
    height, width = ids.shape
    font = ImageFont.load_default(min(48, max(13, round(max(height, width) / 50))))
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (FONT_SIZE, 0)
    high = ascent + descent + 2
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    used = np.zeros((height, width), bool)
    boxes = codec.toBbox(list(instances.masks)) * (width / instances.size[1]) if len(instances) else []
    for row, (x, y, w, h) in enumerate(np.asarray(boxes, int)):
        seen = ids[y : y + h, x : x + w] == row + 1
        if not seen.any():
            continue
        highest = seen.any(1).argmax()
        middle, top = x + np.flatnonzero(seen[highest]).mean(), y + highest
        score = f"{float(instances.scores[row]):.2f}"
        for text in (f"{class_names[int(instances.classes[row])]} {score}", score):
            wide = round(font.getlength(text)) + 6
            left = int(min(max(0, middle - wide / 2), max(0, width - wide)))
            upper = int(top - high if top >= high else top)
            place = (slice(upper, upper + high), slice(left, left + wide))
            if wide > 1.5 * w or high > h or used[place].any():
                continue
            used[place] = True
            red, green, blue = (int(value) for value in colors[row + 1])
            pen.rectangle([left, upper, left + wide - 1, upper + high - 1], fill=(red, green, blue))
            light = 0.3 * red + 0.59 * green + 0.11 * blue > 110
            pen.text((left + 3, upper + 1), text, fill="black" if light else "white", font=font)
            break
    return np.asarray(canvas)


def heat(image: Picture, values: Tensor) -> Picture:
    """Lay a map (H, W) of values in [0, 1] over the image in grey: the larger the value, the lighter and denser."""
    strength = values.clamp(0, 1).cpu().numpy()[..., None]
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.concatenate([np.interp(strength, stops, channel) for channel in zip(*HEAT, strict=True)], -1)
    grey = image.mean(-1, keepdims=True)
    opacity = HEAT_OPACITY * np.sqrt(strength)
    picture: Picture = ((1 - opacity) * grey + opacity * colors).round().astype(np.uint8)
    return picture


def color_wheel(field: Tensor, *, longest: float | None = None) -> Picture:
    """An offset field (2, H, W), (dy, dx), as colours: the hue says where an offset points, the strength how far.

    Red points right, yellow-green down, cyan left, violet up; white is a pixel that stays where it is.

    Args:
        field: In pixels.
        longest: Length with full strength; the longest of the field if omitted.
    """
    dy, dx = field.float().cpu().numpy()
    length = np.hypot(dy, dx)
    strength = np.clip(length / max(longest or float(length.max(initial=0)), 1e-6), 0, 1)
    turns = np.arctan2(dy, dx) / (2 * np.pi) % 1
    # each channel is full around its own third of the circle
    shares = [np.clip(np.abs((turns * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    picture: Picture = (255 * (1 - strength[..., None] * (1 - np.stack(shares, -1)))).round().astype(np.uint8)
    return picture


def draw_points(picture: Picture, yx: Tensor, classes: Tensor) -> Picture:
    """Mark points by a cross in the colour of their class."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    reach = _reach(picture)
    for place, number in zip(yx.tolist(), classes.tolist(), strict=True):
        _cross(pen, place, reach, color_of(number + 1))
    return np.asarray(canvas)


def draw_cues(picture: Picture, yx: Tensor, sure: Tensor) -> Picture:
    """Mark the cues of one class on a heat map: a large white cross where ``sure`` (N,), else a small grey one."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    reach = _reach(picture)
    for place, strong in sorted(zip(yx.tolist(), sure.tolist(), strict=True), key=lambda cue: cue[1]):
        _cross(pen, place, *((reach + 2, (255, 255, 255)) if strong else (2, (170, 170, 170))))
    return np.asarray(canvas)


def _reach(picture: Picture) -> int:
    height, width = int(picture.shape[0]), int(picture.shape[1])
    return max(2, min(height, width) // 40)


def _cross(pen: ImageDraw.ImageDraw, yx: Sequence[float], reach: int, color: tuple[int, int, int]) -> None:
    y, x = yx
    for width, shade in ((3, (0, 0, 0)), (1, color)):
        pen.line([(x - reach, y), (x + reach, y)], shade, width)
        pen.line([(x, y - reach), (x, y + reach)], shade, width)


def sheet(
    rows: Sequence[Sequence[Picture]],
    titles: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
    cell: int = CELL,
) -> Image.Image:
    """Join pictures into a table with a title (of any lines) above each column and a caption (of one) above each row.

    Each picture is fitted into a square cell, a row as high as its pictures; text that is too long is cut.
    """
    margin = 4
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + margin
    images = [[Image.fromarray(fitted(picture, cell)) for picture in row] for row in rows]
    head = line * max(title.count("\n") + 1 for title in titles)
    strip = 0 if captions is None else line
    tops = [head + margin]
    for row in images:
        tops.append(tops[-1] + strip + max(image.height for image in row) + margin)
    lefts = [margin + column * (cell + margin) for column in range(len(titles) + 1)]
    canvas = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(canvas)
    for left, title in zip(lefts, titles, strict=False):
        for number, part in enumerate(title.split("\n")):
            pen.text((left, number * line + 2), _shortened(part, font, cell), fill="black", font=font)
    for number, row in enumerate(images):
        if captions is not None:
            pen.text((margin, tops[number]), _shortened(captions[number], font, lefts[-1] - 2 * margin), "black", font)
        for left, image in zip(lefts, row, strict=False):
            canvas.paste(image, (left, tops[number] + strip))
    return canvas


def fitted(picture: Picture, cell: int = CELL) -> Picture:
    """The picture with ``cell`` pixels along its longer side."""
    image = Image.fromarray(picture)
    scale = cell / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR))


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG file, or one of the kind that the suffix names, in one move: it is complete or not there."""
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    with in_one_move(path) as temporary:
        image.save(temporary, format=kind)
