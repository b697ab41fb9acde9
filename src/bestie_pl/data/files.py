"""Readers of images, semantic maps, cues and lists, and writers. Errors name file, finding, expectation and remedy.

Nothing here opens ground truth (see ``truth``), and nothing imports Lightning: worker processes start fast.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from bestie_pl.structures import IGNORE, Cues

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
EITHER_CASE = tuple(suffix for lower in IMAGE_SUFFIXES for suffix in (lower, lower.upper()))
GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I")
LABEL_MODES = ("1", "L", "P", *GREY_16_BIT)
SEMANTIC_MAP = "the image's semantic map: 0 background, c + 1 for class c, 255 ignore"


class Packed(Sequence[str]):
    """Strings in one array: worker processes share it, while a list would be copied page by page as it is read."""

    def __init__(self, strings: Iterable[str]) -> None:
        content, ends = bytearray(), array("q")
        for text in strings:
            # file names need not be UTF-8: surrogates stand for bytes that are not
            content += text.encode(errors="surrogateescape")
            ends.append(len(content))
        self._ends = torch.frombuffer(ends, dtype=torch.int64) if ends else torch.zeros(0, dtype=torch.int64)
        self._bytes = torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)

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
        ends = self._ends.numpy()  # to read an element of a tensor takes ten times as long
        start = int(ends[index - 1]) if index else 0
        return self._found(self._bytes.numpy()[start : int(ends[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        content, start = self._bytes.numpy().tobytes(), 0
        for end in self._ends.tolist():
            yield self._found(content[start:end])
            start = end

    def _found(self, code: bytes) -> str:
        return code.decode(errors="surrogateescape")


class ImageFiles(Packed):
    """The image files of a folder, by name without suffix; a file is looked for when it is asked for, not before."""

    def __init__(self, folder: Path, names: Packed) -> None:
        self._ends, self._bytes = names._ends, names._bytes
        self._folder = folder

    def _found(self, code: bytes) -> str:
        return str(find_image(self._folder, super()._found(code)))


def require_folder(path: Path, holds: str) -> Path:
    """The path, if it is a folder; else FileNotFoundError. ``holds`` says what is expected in it, and the remedy."""
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder: {path}; expected {holds}")
    return path


def read_text(path: Path, holds: str) -> str:
    """Content of a UTF-8 file, byte order mark left out. ``holds`` says what is expected in it, and the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected {holds}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error}); expected {holds}") from error


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end: a killed process leaves old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Write a text file in one move. A byte of a file name that is no UTF-8 becomes what JSON calls it, u and dcXX."""
    with in_one_move(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


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
    image = _load(path)
    if image.mode in GREY_16_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(
                f"{path}: values {values.min()}..{values.max()}; expected 8 or 16 bits a channel: convert the image"
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("F", "LAB"):
        holds = "floating-point numbers" if image.mode == "F" else "LAB colours"
        raise ValueError(f"{path}: holds {holds}; expected 8 or 16 bits of grey or RGB: convert the image")
    elif image.has_transparency_data:
        image = image.convert("RGBA")  # else Pillow blends some palettes and not others
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


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
    values = read_label_map(path, SEMANTIC_MAP)
    check_size(path, values.shape, size)
    check_classes(path, values, num_classes)
    return torch.from_numpy(values.astype(np.uint8))


def check_classes(path: Path, values: NDArray[np.int32], num_classes: int) -> None:
    """Raise ValueError unless all values of a semantic map are background, classes or ignore."""
    wrong = (values < 0) | ((values > num_classes) & (values != IGNORE))
    if wrong.any():
        y, x = (int(v[0]) for v in np.nonzero(wrong))
        raise ValueError(
            f"{path}: value {values[y, x]} at y={y}, x={x}; expected 0 (background), 1..{num_classes} (classes) or "
            f"{IGNORE} (ignore): save class numbers, not colours, or give all class names"
        )


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
    return cues_of_rows([parse_cue(line, size, num_classes) for line in cue_lines(path)])


def cues_of_rows(rows: Sequence[tuple[float, float, float, float]]) -> Cues:
    """Cues of one image from rows of y, x, class and confidence."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Cues(torch.zeros(len(rows), dtype=torch.int64), table[:, :2], table[:, 2].long(), table[:, 3])


class Line(NamedTuple):
    """A line of a text file: ``where`` it stands, for messages, and its words."""

    where: str
    fields: list[str]


def cue_lines(path: Path) -> list[Line]:
    """The lines of a file of cues, without empty ones."""
    text = read_text(path, "one line a point, `x y class conf`; an empty file for an image without points")
    lines = (Line(f"{path} line {number}", line.split()) for number, line in enumerate(text.splitlines(), 1))
    return [line for line in lines if line.fields]


def parse_cue(line: Line, size: tuple[int, int], num_classes: int) -> tuple[float, float, float, float]:
    """y, x, class and confidence of one line ``x y class conf``; raises ValueError as ``read_cues`` does."""
    where, fields = line
    try:
        x, y, index, conf = (float(field) for field in fields)
    except ValueError:
        raise ValueError(f"{where}: found {' '.join(fields)!r}; expected four numbers, `x y class conf`") from None
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
    return min(y, size[0] - 1), min(x, size[1] - 1), index, conf


def read_names(path: Path) -> list[str]:
    """Image names: the first word of each line."""
    names = [line.split(None, 1)[0] for line in StringIO(read_text(path, "one image name a line")) if line.strip()]
    if not names:
        raise ValueError(f"{path}: holds no image name; expected one a line")
    check_unique(path, names)
    return names


def check_unique(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError if a name stands twice in a list."""
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    listed = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
    raise ValueError(f"{path}: listed more than once: {listed}; image names must be unique, also without their suffix")


def read_tag_list(path: Path, num_classes: int) -> tuple[list[str], Tensor]:
    """Image names and their tags (N, C) bool, from the release's lists: ``ID class class ...``, classes 0-based."""
    number_of = {str(number): number for number in range(num_classes)}
    names: list[str] = []
    counts: list[int] = []
    numbers: list[int] = []
    for row, line in enumerate(StringIO(read_text(path, "lines of `ID class class ...`")), 1):
        name, *fields = line.split() or [""]
        if not name:
            continue
        try:
            numbers += [number_of[field] for field in fields]
        except KeyError:
            raise ValueError(
                f"{path} line {row}: found {line.strip()!r}; expected `ID class class ...`, classes in "
                f"0..{num_classes - 1}"
            ) from None
        names.append(name)
        counts.append(len(fields))
    tags = torch.zeros(len(names), num_classes, dtype=torch.bool)
    rows = torch.arange(len(names)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    tags[rows, torch.tensor(numbers, dtype=torch.int64)] = True
    return names, tags


def _load(path: Path, *, turn: bool = True) -> Image.Image:
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
