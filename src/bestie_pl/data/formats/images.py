"""Image files, photographs and microscopes' pictures alike: which there are, opening and checking them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bestie_pl.data.files import Packed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
EITHER_CASE = tuple(suffix for lower in IMAGE_SUFFIXES for suffix in (lower, lower.upper()))
GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I")


class ImageFiles(Packed):
    """The image files of a folder, by name without suffix; a file is looked for when it is asked for, not before."""

    def __init__(self, folder: Path, names: Packed) -> None:
        self._ends, self._bytes = names._ends, names._bytes
        self._folder = folder

    def _found(self, code: bytes) -> str:
        return str(find_image(self._folder, super()._found(code)))


def find_image(folder: Path, name: str) -> Path:
    """The image file of a name without suffix; the first of the known suffixes, even if none exists."""
    candidates = (folder / (name + suffix) for suffix in EITHER_CASE)
    return next((path for path in candidates if path.is_file()), folder / (name + IMAGE_SUFFIXES[0]))


def open_image(path: Path) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says, so that maps and points belong to the turned image.

    - Grey, CMYK and other colour spaces that Pillow knows are converted without colour profiles; palettes are looked
      up. LAB and floating-point images are refused.
    - 16-bit grey is scaled from 0..65535 to 0..255 and rounded; of 16-bit colours Pillow keeps the upper byte. Rescale
      cameras of fewer bits beforehand.
    - An alpha channel is dropped: a transparent pixel has the colour that is stored under it.
    - Of several pictures in a file the first counts.

    Pillow's limit on the number of pixels stays in force.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, truncated, beyond Pillow's pixel limit, or of a kind that has no defined 8-bit RGB.
    """
    return to_rgb(load_image(path), str(path))


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The 8-bit RGB of an open image, as ``open_image`` says; ``name`` is what errors call it.

    Raises:
        ValueError: The image is of a kind that has no defined 8-bit RGB.
    """
    if image.mode in GREY_16_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(
                f"{name}: values {values.min()}..{values.max()}; expected 8 or 16 bits a channel: convert the image"
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("F", "LAB"):
        holds = "floating-point numbers" if image.mode == "F" else "LAB colours"
        raise ValueError(f"{name}: holds {holds}; expected 8 or 16 bits of grey or RGB: convert the image")
    elif image.has_transparency_data:
        image = image.convert("RGBA")  # else Pillow blends some palettes and not others
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def check_size(path: Path, found: Sequence[int], size: tuple[int, int]) -> None:
    """Raise ValueError unless a map has the (height, width) of its image."""
    if tuple(found) != size:
        raise ValueError(
            f"{path}: is {found[1]} x {found[0]} px (width x height) but its image is {size[1]} x {size[0]}; "
            "make the map from the same image, without resizing or turning it"
        )


def load_image(path: Path, *, turn: bool = True) -> Image.Image:
    """The pixels of an image file as they are stored, turned as EXIF says unless ``turn`` is false."""
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}; restore it or take it out of the list")
    try:
        with Image.open(path) as image:
            image.load()
            if turn:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    # what Pillow raises for files that are broken in different ways
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: cannot be read as an image ({error}); restore it or take it out of the list"
        ) from error
