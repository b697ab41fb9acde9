"""Readers of images, semantic maps, cues and lists. Their errors name file, finding, expectation and remedy.

Nothing here opens ground truth (see ``truth``), and nothing imports Lightning: worker processes start fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from bestie_pl.structures import IGNORE, Cues

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I")
LABEL_MODES = ("1", "L", "P", *GREY_16_BIT)


class Packed(Sequence[str]):
    """Strings in one array: worker processes share it, while a list would be copied page by page as it is read."""

    def __init__(self, strings: Iterable[str]) -> None:
        codes = [text.encode() for text in strings]
        self._ends = torch.tensor([len(code) for code in codes], dtype=torch.int64).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(codes)), dtype=torch.uint8) if any(codes) else torch.empty(0)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].numpy().tobytes().decode()


def require_folder(path: Path, holds: str) -> Path:
    """The path, if it is a folder; else FileNotFoundError. ``holds`` says what is expected in it, and the remedy."""
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder: {path}; expected {holds}")
    return path


def read_text(path: Path, holds: str) -> str:
    """Content of a UTF-8 file. ``holds`` says what is expected in it, and the remedy if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected {holds}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error}); expected {holds}") from error


def find_image(folder: Path, name: str) -> Path:
    """The image file of a name without suffix; the first of the known suffixes, even if none exists."""
    candidates = [folder / (name + suffix) for suffix in IMAGE_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def open_image(path: Path) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says.

    16-bit grey is scaled from 0..65535 to 0..255 (rescale cameras of fewer bits beforehand), an alpha channel is
    dropped, palettes are looked up. Pillow's limit on the number of pixels stays in force.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, truncated, beyond Pillow's pixel limit, or of floating-point numbers.
    """
    image = _load(path)
    if image.mode in GREY_16_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"{path}: values up to {values.max()}; expected 8 or 16 bits a channel: convert the image")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError(f"{path}: holds floating-point numbers; expected 8 or 16 bits a channel: convert the image")
    elif image.has_transparency_data:
        image = image.convert("RGBA")  # else Pillow blends some palettes and not others
    return image.convert("RGB")


def read_label_map(path: Path, holds: str) -> NDArray[np.int32]:
    """A grey or palette image as its numbers, (H, W): class or object numbers. Never turned, never converted."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected {holds}")
    image = _load(path, turn=False)
    if image.mode not in LABEL_MODES:
        raise ValueError(f"{path}: is a colour image (mode {image.mode}); expected {holds}, as a grey or palette PNG")
    return np.asarray(image).astype(np.int32)


def read_semantic(path: Path, size: tuple[int, int], num_classes: int) -> Tensor:
    """A semantic map (H, W) uint8: 0 background, ``c + 1`` class ``c``, 255 ignore.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not of the image's ``size``, or a value that is no class.
    """
    values = read_label_map(path, "the image's semantic map: 0 background, c + 1 for class c, 255 ignore")
    check_size(path, values.shape, size)
    wrong = (values < 0) | ((values > num_classes) & (values != IGNORE))
    if wrong.any():
        y, x = (int(v[0]) for v in np.nonzero(wrong))
        raise ValueError(
            f"{path}: value {values[y, x]} at y={y}, x={x}; expected 0 (background), 1..{num_classes} (classes) or "
            f"{IGNORE} (ignore): save class numbers, not colours, or give all class names"
        )
    return torch.from_numpy(values.astype(np.uint8))


def check_size(path: Path, found: Sequence[int], size: tuple[int, int]) -> None:
    """Raise ValueError unless a map has the (height, width) of its image."""
    if tuple(found) != size:
        raise ValueError(
            f"{path}: is {found[1]} x {found[0]} px (width x height) but its image is {size[1]} x {size[0]}; "
            "make the map from the same image, without resizing or turning it"
        )


def read_cues(path: Path, size: tuple[int, int], num_classes: int) -> Cues:
    """Points of one image, from lines of ``x y class conf``; an empty file means "no point". All have ``image`` 0.

    Source: release-format text files; ``class`` counts from 0, ``conf`` is in [0, 1] (1 for given points).

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line that is not four numbers, lies outside the image of ``size``, or has an unknown class.
    """
    text = read_text(path, "one line a point, `x y class conf`; an empty file for an image without points")
    rows: list[tuple[float, float, float, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path} line {number}"
        try:
            x, y, index, conf = (float(field) for field in fields)
        except ValueError:
            raise ValueError(f"{where}: found {line.strip()!r}; expected four numbers, `x y class conf`") from None
        for axis, value, limit, side in (("x", x, size[1], "wide"), ("y", y, size[0], "high")):
            if not 0 <= value < limit:
                raise ValueError(
                    f"{where}: {axis}={value:g} is outside the {limit} px {side} image; expected 0 <= {axis} < {limit}"
                )
        if not (index.is_integer() and 0 <= index < num_classes):
            raise ValueError(f"{where}: class {fields[2]}; expected a whole number in 0..{num_classes - 1}")
        if not 0 <= conf <= 1 or math.isnan(conf):
            raise ValueError(f"{where}: confidence {fields[3]}; expected a number in 0..1, 1 for a given point")
        # a fraction past the centre of the last pixel still belongs to that pixel
        rows.append((min(y, size[0] - 1), min(x, size[1] - 1), index, conf))
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Cues(torch.zeros(len(rows), dtype=torch.int64), table[:, :2], table[:, 2].long(), table[:, 3])


def read_names(path: Path) -> list[str]:
    """Image names: the first word of each line."""
    lines = read_text(path, "one image name a line").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: holds no image name; expected one a line")
    check_unique(path, names)
    return names


def check_unique(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError if a name stands twice in a list."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path}: the image {name} is listed twice; names must be unique")
        seen.add(name)


def read_tag_list(path: Path, num_classes: int) -> dict[str, Tensor]:
    """Image name -> tags (C,) bool, from the release's lists: a line is ``ID class class ...``, classes 0-based."""
    tags: dict[str, Tensor] = {}
    for number, line in enumerate(read_text(path, "lines of `ID class class ...`").splitlines(), 1):
        name, *fields = line.split() or [""]
        if not name:
            continue
        if not all(field.isdecimal() and int(field) < num_classes for field in fields):
            raise ValueError(
                f"{path} line {number}: found {line.strip()!r}; expected `ID class class ...`, classes in "
                f"0..{num_classes - 1}"
            )
        row = torch.zeros(num_classes, dtype=torch.bool)
        row[[int(field) for field in fields]] = True
        tags[name] = row
    return tags


def _load(path: Path, *, turn: bool = True) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}; restore it or take it out of the list")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image) if turn else image
    # what Pillow raises for files that are broken in different ways
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: cannot be read as an image ({error}); restore it or take it out of the list"
        ) from error
