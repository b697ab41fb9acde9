"""Image files, photographs and microscopes' pictures alike: which there are, opening and checking them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bestie_pl.data.files import Packed, as_it_looks, below
from bestie_pl.data.shards import is_file, opened_file
from bestie_pl.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
EITHER_CASE = tuple(suffix for lower in IMAGE_SUFFIXES for suffix in (lower, lower.upper()))
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Of Pillow's decoders only these are let near a file, whatever its suffix."""
GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I")
MOST_PIXELS = 178_956_970
"""Pillow's own limit on an image, and ours on what any file says about the size of one: it bounds all memory."""
DARK = 64
"""A picture of 16 bits without a grey level above this, of 255, holds the values of a camera of fewer bits."""

IMAGE_WIDTH, IMAGE_LENGTH = 256, 257
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, PLANAR_CONFIGURATION = 258, 277, 284  # TIFF's tags
BAND_AFTER_BAND = 2
ORIENTATION = 0x0112
"""EXIF's tag; 5 to 8 are turned by a quarter."""


class ImageFiles(Packed):
    """The image files of a folder, by name with or without suffix; each is looked for when it is asked for."""

    def __init__(self, folder: Path, names: Packed) -> None:
        self._ends, self._bytes = names._ends, names._bytes
        self.folder = folder

    def _found(self, code: bytes) -> str:
        return str(find_image(self.folder, super()._found(code)))


def find_image(folder: Path, name: str) -> Path:
    """The image file of a name, whose suffix may be left out; the first of the known suffixes, even if none exists.

    Raises:
        UserError: The name leads out of the folder.
    """
    exact = below(folder, name)
    suffixes = ("",) if name.lower().endswith(IMAGE_SUFFIXES) else (*EITHER_CASE, "")
    candidates = [exact.with_name(exact.name + suffix) for suffix in suffixes]
    alike = (as_it_looks(path) for path in candidates)
    return next((path for path in chain(candidates, alike) if is_file(path)), candidates[0])


def check_pixels(height: object, width: object, where: str) -> tuple[int, int]:
    """(height, width) that a file states for an image, if it may be one's; ``where`` ends with the names of the fields.

    Raises:
        UserError: They are no positive whole numbers, or more pixels than any image may have.
    """
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise UserError(f"{where}: {height!r:.50}, {width!r:.50}; expected whole numbers of pixels")
    if height * width > MOST_PIXELS:
        raise UserError(f"{where}: {width} x {height} px; expected at most {MOST_PIXELS} pixels: correct the size")
    return height, width


def open_image(path: Path) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says, so that maps and points belong to the turned image.

    - Grey, CMYK and other colour spaces that Pillow knows are converted without colour profiles; palettes are looked
      up. LAB and floating-point images are refused.
    - 16-bit grey is scaled from 0..65535 to 0..255 and rounded; of 16-bit colours Pillow keeps the upper byte. Rescale
      cameras of fewer bits beforehand; ``remarks`` finds them.
    - An alpha channel is dropped: a transparent pixel has the colour that is stored under it.
    - Of several pictures in a file the first counts; ``remarks`` says that there are more.

    Memory: at most 16 bytes a pixel, and ``MOST_PIXELS`` pixels.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not an image, truncated, beyond Pillow's pixel limit, or of a kind that has no defined 8-bit RGB.
    """
    return to_rgb(load_image(path), str(path))


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The 8-bit RGB of an open image, as ``open_image`` says; ``name`` is what errors call it.

    Raises:
        ValueError: The image is of a kind that has no defined 8-bit RGB.
    """
    if image.mode in GREY_16_BIT:
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UserError(
                f"{name}: values {values.min()}..{values.max()}; expected 8 or 16 bits a channel: convert the image"
            )
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("F", "LAB"):
        holds = "floating-point numbers" if image.mode == "F" else "LAB colours"
        raise UserError(f"{name}: holds {holds}; expected 8 or 16 bits of grey or RGB: convert the image")
    elif image.has_transparency_data:
        image = image.convert("RGBA")  # else Pillow blends some palettes and not others
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def check_size(path: Path, found: Sequence[int], size: tuple[int, int]) -> None:
    """Raise UserError unless a map has the (height, width) of its image."""
    if tuple(found) != size:
        raise UserError(
            f"{path}: is {found[1]} x {found[0]} px (width x height) but its image is {size[1]} x {size[0]}; "
            "make the map from the same image, without resizing or turning it"
        )


def load_image(path: Path, *, turn: bool = True, size: tuple[int, int] | None = None) -> Image.Image:
    """The pixels of an image file as they are stored, turned as EXIF says unless ``turn`` is false.

    With a ``size`` (H, W), that of the image which a map belongs to, another one is an error, before it is decoded.
    """
    with opened(path) as image:
        if size is not None:
            check_size(path, image.size[::-1], size)
        image.load()
        if turn:
            ImageOps.exif_transpose(image, in_place=True)
        return image


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose header is read; what the caller meets while decoding it becomes a UserError too.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not an image of ``FORMATS``, broken, beyond Pillow's limit, or of a kind that Pillow reads wrongly.
    """
    path = as_it_looks(path)
    if not is_file(path):
        raise FileNotFoundError(f"no such image: {path}; restore it or take it out of the list")
    try:
        # not by its path: Pillow 13 maps a TIFF that is turned into memory with its sides exchanged
        with opened_file(path) as file, Image.open(file, formats=FORMATS) as image:
            tags = getattr(image, "tag_v2", {})
            if tags.get(PLANAR_CONFIGURATION) == BAND_AFTER_BAND and max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
                # Pillow 13 takes its bytes for values of 8 bits
                raise UserError(
                    f"{path}: holds 16 bits a channel, band after band; save it pixel by pixel (gdal_translate -co "
                    "INTERLEAVE=PIXEL) or with 8 bits"
                )
            yield image
    except (UserError, PermissionError):
        raise
    except Exception as error:  # Pillow's decoders meet damaged files with a dozen classes, struct.error among them
        raise UserError(
            f"{path}: cannot be read as an image ({error}); restore it or take it out of the list"
        ) from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file, turned as its EXIF orientation says; its pixels are not read.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not an image.
    """
    with opened(path) as image:
        tags = getattr(image, "tag_v2", {})
        stored = (tags.get(IMAGE_WIDTH, image.width), tags.get(IMAGE_LENGTH, image.height))
        # of a TIFF some versions of Pillow state the size as turned already
        turned = image.getexif().get(ORIENTATION, 1) >= 5 and image.size == stored
        return (image.width, image.height) if turned else (image.height, image.width)


def remarks(path: Path, image: Image.Image) -> list[str]:
    """What somebody who knows the file may miss in the ``image`` that ``open_image`` made of it, in sentences.

    Further pictures or bands, which are left out, and values that use a small part of 16 bits.
    """
    said = []
    with opened(path) as file:
        tags = getattr(file, "tag_v2", {})
        # a telephone's second picture is a smaller or a deeper one of the same
        pictures = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        bands = tags.get(SAMPLES_PER_PIXEL, 1)
        used = min(bands, 1 if file.mode in ("L", "LA", "LX", *GREY_16_BIT) else 3)
        if pictures > 1:
            said.append(f"{path}: holds {pictures} pictures (pages of a stack), of which the first is used; split it")
        if bands > used and file.mode != "CMYK":
            said.append(f"{path}: holds {bands} bands, of which {used} of colour or grey are used; choose three or one")
        deep = file.mode in GREY_16_BIT or any("16" in str(tile) for tile in getattr(file, "tile", ()))
        brightest = max(high for _, high in image.getextrema())  # type: ignore[misc]  # of RGB, a pair a band
        if deep and 0 < brightest < DARK:
            span = "{}..{}".format(*file.getextrema()) if file.mode in GREY_16_BIT else f"0..{brightest * 257}"
            said.append(
                f"{path}: 16 bits, but values {span} of 0..65535, so that it is read as nearly black (no grey level "
                f"above {brightest} of 255); rescale pictures of a 12-bit camera and the like to all 16 bits"
            )
    return said
