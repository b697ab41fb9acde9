"""One generated scene: an image of overlapping, textured objects on a cluttered background, and its true instances.

All lengths are written for images of ``REFERENCE_SIZE`` pixels and scale with the size. NumPy and Pillow only, so that
worker processes start fast.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from bestie_pl.data.generator.drawings import DRAWINGS, SHAPE_CLASSES, Bytes, Floats

REFERENCE_SIZE = 128
SUPERSAMPLING = 3  # odd: the middle sample of a pixel is its centre, which decides whom the pixel belongs to

# the arrangement
CROWDED_SHARE = 0.55  # of the scenes; some lose their contacts to the drop rule: half of all scenes keep one
CLASS_COUNT_ODDS = (0.2, 0.5, 0.3)  # scenes with one, two, three classes
CROWD_CLASS_SHARE = 0.7  # of a crowded scene's objects belong to the crowding class
OBJECT_LENGTH = (20.0, 72.0)
SCENE_LENGTH = (28.0, 62.0)  # objects of a scene are similar: this length times a factor
LENGTH_FACTOR = (0.65, 1.25)
CROWD_DISTANCE = (0.5, 0.9)  # of neighbours in a crowd, in units of their mean length
MIN_VISIBLE = 0.3  # share of the object's own area
MIN_AREA = 60.0


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Args:
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) uint8, 0 background, 1..n the visible part of each object.
        classes: n classes, 0-based.
    """

    image: Bytes
    ids: Bytes
    classes: tuple[int, ...]

    @property
    def semantic(self) -> Bytes:
        """(H, W) uint8: 0 background, ``c + 1`` class ``c``."""
        semantic: Bytes = np.array([0, *(c + 1 for c in self.classes)], np.uint8)[self.ids]
        return semantic


@dataclass(frozen=True)
class _Object:
    """Where and how an object is drawn; ``y, x, length`` in pixels; ``palette`` (3, 3): body, part, marks."""

    kind: int
    y: float
    x: float
    length: float
    angle: float
    mirror: float
    stretch: float
    bend: float
    palette: Floats


@dataclass(frozen=True)
class _Patch:
    """A drawn object, not yet occluded: supersampled ``mask`` (h, w), ``color`` (h, w, 3); corner at top, left."""

    top: int
    left: int
    mask: NDArray[np.bool_]
    color: Floats


def draw_scene(rng: Generator, size: int, clutter: float = 1.0) -> Scene:
    """A scene of one to eight objects of one to three classes on a cluttered background.

    In a crowded scene the objects of one class form a heap. Later objects cover earlier ones, and objects of which too
    little remains visible are left out.

    Args:
        rng: The only source of chance.
        size: Side of the square image in pixels.
        clutter: Strength of textures and share of the things that belong to no class, both in [0, 1].
    """
    light = rng.uniform(0, 2 * math.pi)
    while True:  # until an object is left; a second round is needed once in thousands of scenes
        objects = _arrange(rng, size)
        patches = [_draw_object(o, light, clutter) for o in objects]
        covered = _paint_ids(patches, size)
        visible = np.bincount(covered.ravel(), minlength=len(patches) + 1)[1:]
        whole = np.array([p.mask.sum() / SUPERSAMPLING**2 for p in patches])
        least = np.maximum(MIN_VISIBLE * whole, MIN_AREA * (size / REFERENCE_SIZE) ** 2)
        keep = [i for i in range(len(patches)) if visible[i] >= least[i]]
        if keep:
            break
    patches = [patches[i] for i in keep]
    image = _compose(_background(rng, size, clutter), patches)
    return Scene(_photograph(rng, image), _paint_ids(patches, size), tuple(objects[i].kind for i in keep))


def smooth_noise(rng: Generator, size: int, grain: float) -> Floats:
    """(size, size) in [-1, 1]: random values on a grid of ``grain`` pixels, interpolated."""
    cells = max(2, math.ceil(size / grain) + 1)
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    noise: Floats = np.clip(np.asarray(smooth), -1, 1)  # bicubic weights overshoot
    return noise


# ---------------------------------------------------------------------------------------------- the arrangement


def _arrange(rng: Generator, size: int) -> list[_Object]:
    """Objects from back to front."""
    unit = size / REFERENCE_SIZE
    kinds = rng.permutation(len(SHAPE_CLASSES))[: rng.choice(3, p=CLASS_COUNT_ODDS) + 1].tolist()
    crowded = rng.random() < CROWDED_SHARE
    scene_length = math.exp(rng.uniform(*np.log(SCENE_LENGTH)))
    objects: list[_Object] = []
    for number in range(rng.integers(3, 9) if crowded else rng.integers(1, 7)):
        # in a crowded scene the first class crowds, and its first two objects come first, so that there is a heap
        of_crowd = crowded and (number < 2 or len(kinds) == 1 or rng.random() < CROWD_CLASS_SHARE)
        kind = kinds[0] if of_crowd else kinds[1 + number % (len(kinds) - 1)] if crowded else kinds[number % len(kinds)]
        length = unit * float(np.clip(scene_length * rng.uniform(*LENGTH_FACTOR), *OBJECT_LENGTH))
        members = [o for o in objects if o.kind == kind] if of_crowd else []
        if members:
            place = _beside(rng, members[rng.integers(len(members))], length, size)
        else:
            place = _free_place(rng, objects, kind, length, size)
        if place is not None:
            objects.append(
                _Object(
                    kind=kind,
                    y=place[0],
                    x=place[1],
                    length=length,
                    angle=rng.uniform(0, 2 * math.pi),
                    mirror=float(rng.choice([-1.0, 1.0])),
                    stretch=rng.uniform(0.85, 1.18),
                    bend=rng.uniform(-0.22, 0.22),
                    palette=_object_palette(rng, objects),
                )
            )
    # the heap is mixed with the others from back to front
    return [objects[i] for i in rng.permutation(len(objects))]


def _beside(rng: Generator, member: _Object, length: float, size: int) -> tuple[float, float] | None:
    """A place that touches or overlaps an object, or None if none is found within the image."""
    for _ in range(10):
        angle = rng.uniform(0, 2 * math.pi)
        distance = rng.uniform(*CROWD_DISTANCE) * (member.length + length) / 2
        y, x = member.y + distance * math.sin(angle), member.x + distance * math.cos(angle)
        if 0.05 * size < y < 0.95 * size and 0.05 * size < x < 0.95 * size:
            return y, x
    return None


def _free_place(
    rng: Generator, objects: list[_Object], kind: int, length: float, size: int
) -> tuple[float, float] | None:
    """A place clear of the objects of the same class, though possibly touching others, or None if none is found."""
    for _ in range(20):
        y, x = rng.uniform(0.1 * size, 0.9 * size, 2)
        # circles around both objects: apart for one class, overlapping somewhat for two
        gaps = [
            math.hypot(o.y - y, o.x - x) - (1.08 if o.kind == kind else 0.7) * (o.length + length) / 2 for o in objects
        ]
        if min(gaps, default=1.0) > 0:
            return float(y), float(x)
    return None


def _random_color(rng: Generator) -> Floats:
    """(3,) RGB in [0, 255]; objects and clutter alike draw from this one distribution."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.4, 1)), np.float32)


def _object_palette(rng: Generator, objects: list[_Object]) -> Floats:
    """(3, 3): a body colour unlike the other objects', a part colour, and marks that stand out from both."""
    candidates = [_random_color(rng) for _ in range(3)]
    others = [o.palette[0] for o in objects]
    body = max(candidates, key=lambda c: min((float(np.abs(c - o).sum()) for o in others), default=0.0))
    part = _random_color(rng)
    mark = np.float32(0.22) * part if (body + part).mean() > 2 * 110 else 255 - np.float32(0.25) * (255 - part)
    return np.stack([body, part, mark])


# -------------------------------------------------------------------------------------------------- the objects


def _draw_object(shape: _Object, light: float, clutter: float) -> _Patch:
    """The object by itself, bent, stretched and turned, lit from the direction ``light``, with a darker rim."""
    half = 0.5 * shape.length * SUPERSAMPLING
    reach = math.ceil(1.3 * half)
    center_y, center_x = shape.y * SUPERSAMPLING, shape.x * SUPERSAMPLING
    top, left = math.floor(center_y) - reach, math.floor(center_x) - reach
    y = ((np.arange(2 * reach + 1, dtype=np.float32) + top - center_y) / half)[:, None]
    x = ((np.arange(2 * reach + 1, dtype=np.float32) + left - center_x) / half)[None]
    cosine, sine = math.cos(shape.angle), math.sin(shape.angle)
    u = cosine * x + sine * y
    v = shape.mirror * shape.stretch * (cosine * y - sine * x) + shape.bend * (u**2 - 0.4)
    distance, index, texture = DRAWINGS[shape.kind](u, v)

    rim = np.clip(1 + distance * half / (1.3 * SUPERSAMPLING), 0, 1)  # the outermost 1.3 px
    bulge = np.clip(-distance / 0.45, 0, 1)
    slope = 0.22 * (math.sin(light) * y + math.cos(light) * x)
    shade = (0.88 + 0.2 * bulge + slope + clutter * texture * (index == 0)) * (1 - 0.5 * rim)
    return _Patch(top, left, distance <= 0, shape.palette[index] * shade[..., None])


def _overlap(patch: _Patch, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch lies in a square canvas, and the part of the patch that does."""
    height, width = patch.mask.shape
    y0, x0 = max(patch.top, 0), max(patch.left, 0)
    y1, x1 = max(y0, min(patch.top + height, side)), max(x0, min(patch.left + width, side))
    inside = slice(y0 - patch.top, y1 - patch.top), slice(x0 - patch.left, x1 - patch.left)
    return (slice(y0, y1), slice(x0, x1)), inside


def _paint_ids(patches: list[_Patch], size: int) -> Bytes:
    """(size, size): the number, from 1, of the front-most patch at each pixel's centre."""
    ids = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    for number, patch in enumerate(patches, start=1):
        canvas, inside = _overlap(patch, len(ids))
        ids[canvas][patch.mask[inside]] = number
    middle = SUPERSAMPLING // 2
    return np.ascontiguousarray(ids[middle::SUPERSAMPLING, middle::SUPERSAMPLING])


def _compose(background: Floats, patches: list[_Patch]) -> Floats:
    """(H, W, 3): the patches over the background, edges anti-aliased."""
    size = len(background)
    side = size * SUPERSAMPLING
    layer = np.zeros((side, side, 4), np.float32)  # colour and coverage
    for patch in patches:
        canvas, inside = _overlap(patch, side)
        mask = patch.mask[inside]
        layer[canvas][..., :3][mask] = patch.color[inside][mask]
        layer[canvas][..., 3][mask] = 1
    layer = layer.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 4).mean((1, 3))
    image: Floats = background * (1 - layer[..., 3:]) + layer[..., :3]
    return image


# ------------------------------------------------------------------------------------------------ the surroundings


def _background(rng: Generator, size: int, clutter: float) -> Floats:
    """(H, W, 3): two colours blended by smooth noise, a texture, and clutter that belongs to no class."""
    unit = size / REFERENCE_SIZE
    first, second = _random_color(rng), _random_color(rng)
    second = first + rng.uniform(0.3, 1) * (second - first)
    blend = 0.5 + 0.5 * smooth_noise(rng, size, unit * float(rng.choice([24.0, 48.0, 96.0])))
    image = first + blend[..., None] * (second - first)
    kind = rng.integers(4)
    if kind == 1:
        image = image * (1 + clutter * rng.uniform(0.08, 0.25) * _waves(rng, size))[..., None]
    elif kind == 2:
        grain = clutter * rng.uniform(0.08, 0.3) * smooth_noise(rng, size, unit * rng.uniform(1.5, 4))
        image = image * (1 + grain)[..., None]
    elif kind == 3:
        image = image * (1 + clutter * rng.uniform(0.08, 0.2) * _hard(_waves(rng, size) * _waves(rng, size)))[..., None]
    for _ in range(round(clutter * rng.integers(1, 7))):
        alpha, rim = _clutter(rng, size)
        color = _random_color(rng) * np.ones((size, size, 1), np.float32)
        if rng.random() < 0.35:  # patterns alone must not give the objects away
            color = color * (1 + 0.5 * _hard(_waves(rng, size)))[..., None]
        if rng.random() < 0.6:  # nor rims
            color = color * (1 - 0.45 * rim[..., None])
        image = image + alpha[..., None] * (color - image)
    return image.astype(np.float32)


def _waves(rng: Generator, size: int) -> Floats:
    """(size, size) in [-1, 1]: a plane wave of random direction and a period of 4 to 16 px."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 16) * size / REFERENCE_SIZE
    y, x = np.ogrid[:size, :size]
    wave = np.sin(2 * math.pi / period * (math.sin(angle) * y + math.cos(angle) * x) + rng.uniform(0, 6))
    return wave.astype(np.float32)


def _hard(waves: Floats) -> Floats:
    """Waves made into stripes, with edges of about a pixel."""
    return np.clip(3 * waves, -1, 1)


def _clutter(rng: Generator, size: int) -> tuple[Floats, Floats]:
    """Coverage of a random polygon, blob or bar and of its rim, both (size, size) in [0, 1]."""
    side = size * SUPERSAMPLING
    y, x = rng.uniform(0, side, 2)
    kind = rng.integers(3)
    if kind == 0:  # polygon
        angle = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 8)))
        radius = rng.uniform(0.05, 0.22) * rng.uniform(0.6, 1.4, len(angle))
    elif kind == 1:  # blob
        angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        waves = [rng.uniform(0, 0.3) / k * np.cos(k * angle + rng.uniform(0, 6)) for k in (1, 2, 3, 4, 5)]
        radius = rng.uniform(0.05, 0.2) * (1 + np.sum(waves, 0))
    else:  # bar: the corners of a long rectangle
        half = rng.uniform(0.04, 0.2)
        angle = rng.uniform(0, math.pi) + np.array([-half, half, math.pi - half, math.pi + half])
        radius = np.full(4, rng.uniform(0.15, 0.5))
    corners = [
        (float(x + side * r * math.cos(a)), float(y + side * r * math.sin(a)))
        for a, r in zip(angle, radius, strict=True)
    ]
    shape, rim = Image.new("L", (side, side)), Image.new("L", (side, side))
    ImageDraw.Draw(shape).polygon(corners, fill=255)
    ImageDraw.Draw(rim).line([*corners, corners[0]], fill=255, width=max(1, round(0.02 * side)), joint="curve")
    alpha, edge = (np.asarray(i.reduce(SUPERSAMPLING), np.float32) / 255 for i in (shape, rim))
    return alpha, edge


def _photograph(rng: Generator, image: Floats) -> Bytes:
    """Uneven light, a slight blur and noise of the sensor."""
    size = len(image)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3)
    y, x = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lit = image * (1 + strength * (math.sin(angle) * y + math.cos(angle) * x))[..., None]
    picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7) * size / REFERENCE_SIZE)))
    noisy = np.rint(blurred + rng.uniform(1, 7) * rng.standard_normal(image.shape, np.float32))
    photograph: Bytes = np.clip(noisy, 0, 255).astype(np.uint8)
    return photograph
