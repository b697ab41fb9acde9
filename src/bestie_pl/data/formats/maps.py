"""Semantic maps as files: writing them in the release's format, and reading those of any other source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bestie_pl.data.files import as_it_looks, below, in_one_move
from bestie_pl.data.formats.images import GREY_16_BIT, check_size, load_image, opened
from bestie_pl.data.shards import is_file
from bestie_pl.errors import UserError
from bestie_pl.structures import IGNORE

LABEL_MODES = ("1", "L", "P", *GREY_16_BIT)

SEMANTIC_MAP = "the image's semantic map: 0 background, c + 1 for class c, 255 ignore"


SUFFIXES = (".png", ".npy")


def indexed_image(values: NDArray[np.uint8]) -> Image.Image:
    """Numbers (H, W) as a palette image in VOC's colours."""
    picture = Image.fromarray(values)
    # bits 0, 3, 6 of an index are the top bits of red, 1, 4, 7 those of green, 2 and 5 of blue
    picture.putpalette(
        [
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for index in range(256)
            for channel in range(3)
        ]
    )
    return picture


def write_semantic(path: Path, semantic: Tensor) -> None:
    """Write a semantic map (H, W) uint8 as a palette PNG, in one move: the file is complete or not there."""
    with in_one_move(path) as temporary:
        indexed_image(semantic.cpu().numpy()).save(temporary, format="PNG")


@dataclass(frozen=True)
class MapFolder:
    """Semantic maps or class scores that another program made: ``NAME.png`` or ``NAME.npy``, one an image.

    A PNG or an array (H, W) of whole numbers holds classes: 0 background, ``c + 1`` class ``c``, 255 ignore. An array
    (K, H, W) of floating-point numbers holds scores, background first where ``background`` says so.

    Args:
        folder: Of the files.
        class_names: The data set's classes.
        source_classes: The same names in the order in which the source counts them; the data set's order if omitted.
        background: Whether scores have a channel for background, the first one.

    Raises:
        UserError: ``source_classes`` are not the data set's classes.
    """

    folder: Path
    class_names: tuple[str, ...]
    source_classes: tuple[str, ...] | None = None
    background: bool = True

    def __post_init__(self) -> None:
        if self.source_classes is not None and sorted(self.source_classes) != sorted(self.class_names):
            different = sorted(set(self.source_classes) ^ set(self.class_names))
            raise UserError(
                f"source_classes must be the classes of the data set in the order of {self.folder}; different: "
                f"{', '.join(different) or 'a name given twice'}. The data set has {', '.join(self.class_names)}"
            )

    @property
    def order(self) -> Tensor:
        """(C,) int64: where the source has each of the data set's classes."""
        source = self.source_classes or self.class_names
        return torch.tensor([source.index(name) for name in self.class_names])

    def file_of(self, name: str) -> Path | None:
        """The file of an image; None if there is none."""
        paths = (as_it_looks(below(self.folder, f"{name}{suffix}")) for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def read(self, name: str, size: tuple[int, int]) -> Tensor:
        """Classes (H, W) uint8 or scores (K, H, W) float32 of an image, in the order of the data set's classes.

        Raises:
            FileNotFoundError: There is neither ``NAME.png`` nor ``NAME.npy``.
            UserError: Not of the image's ``size`` (H, W), a value that is no class, another number of channels, or a
                score that is no number.
        """
        path = self.file_of(name)
        if path is None:
            png, npy = (Path(self.folder, f"{name}{suffix}") for suffix in SUFFIXES)
            raise FileNotFoundError(f"no semantic map of the image {name}: neither {png} nor {npy} exists")
        if path.suffix == ".png":
            return self._classes(path, read_label_map(path, SEMANTIC_MAP, size), size)
        values = read_array(path)
        if values.ndim == 2 and np.issubdtype(values.dtype, np.integer):
            return self._classes(path, values, size)
        if values.ndim == 3 and np.issubdtype(values.dtype, np.floating):
            return self._scores(path, values, size)
        raise UserError(
            f"{path}: an array of shape {values.shape} and type {values.dtype}; expected whole numbers (H, W) or "
            "floating-point scores (classes, H, W)"
        )

    def _classes(self, path: Path, values: NDArray[np.integer], size: tuple[int, int]) -> Tensor:
        check_size(path, values.shape, size)
        count = len(self.class_names)
        wrong = (values < 0) | ((values > count) & (values != IGNORE))
        if wrong.any():
            y, x = (int(v[0]) for v in np.nonzero(wrong))
            raise UserError(
                f"{path}: value {values[y, x]} at y={y}, x={x}; expected 0 (background), 1..{count} (classes) or "
                f"{IGNORE} (ignore)"
            )
        table = torch.full((IGNORE + 1,), IGNORE, dtype=torch.uint8)
        table[0] = 0
        table[self.order + 1] = torch.arange(1, count + 1, dtype=torch.uint8)
        return table[torch.from_numpy(values.astype(np.int64))]

    def _scores(self, path: Path, values: NDArray[np.floating], size: tuple[int, int]) -> Tensor:
        channels = len(self.class_names) + self.background
        if len(values) != channels:
            kind = "background and then one a class" if self.background else "one a class, none for background"
            raise UserError(f"{path}: {len(values)} channels; expected {channels}: {kind}")
        check_size(path, values.shape[1:], size)
        scores = torch.from_numpy(values.astype(np.float32))
        if not scores.isfinite().all():
            raise UserError(f"{path}: holds scores that are infinite or no numbers; make the file again")
        first = torch.arange(int(self.background))
        return scores[torch.cat([first, self.order + int(self.background)])]


def read_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file, mapped rather than read: its header may claim any shape, the file has its length.

    Raises:
        UserError: No such array, or objects, which only running code could make.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # numpy meets damaged headers with a dozen classes, tokenize.TokenError among them
        raise UserError(f"{path}: is no array of numbers ({error!s:.200}); make the file again") from error
    if not isinstance(values, np.memmap):
        raise UserError(f"{path}: is an archive of arrays; expected one array, as numpy.save writes it")
    return values


def read_if_present(folder: Path | None, name: str, size: tuple[int, int], class_names: Sequence[str]) -> Tensor | None:
    """The map ``NAME.png`` of a folder, None if there is no folder or no such file in it."""
    if folder is None or not as_it_looks(below(folder, f"{name}.png")).is_file():
        return None
    return MapFolder(folder, tuple(class_names)).read(name, size)


def read_label_map(path: Path, holds: str, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """A grey or palette image as its numbers, (H, W): class or object numbers. Never turned, never converted.

    Raises:
        FileNotFoundError: No such file.
        UserError: No image, a colour image, or not of the ``size`` (H, W) of its image.
    """
    path = as_it_looks(path)
    if not is_file(path):
        raise FileNotFoundError(f"no such file: {path}; expected {holds}")
    image = load_image(path, turn=False, size=size)
    if image.mode not in LABEL_MODES:
        raise UserError(f"{path}: is a colour image (mode {image.mode}); expected {holds}, as a grey or palette PNG")
    return np.asarray(image).astype(np.int32)


def holds_16_bits(path: Path) -> bool:
    """Whether a map has more than 8 bits, so that 255 is a number like any other."""
    with opened(path) as image:
        return image.mode in GREY_16_BIT


def read_semantic(path: Path, size: tuple[int, int], num_classes: int) -> Tensor:
    """A semantic map (H, W) uint8: 0 background, ``c + 1`` class ``c``, 255 ignore.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not of the image's ``size``, or a value that is no class.
    """
    values = read_label_map(path, SEMANTIC_MAP, size)
    check_classes(path, values, num_classes)
    return torch.from_numpy(values.astype(np.uint8))


def check_classes(path: Path, values: NDArray[np.int32], num_classes: int) -> None:
    """Raise UserError unless all values of a semantic map are background, classes or ignore."""
    wrong = (values < 0) | ((values > num_classes) & (values != IGNORE))
    if wrong.any():
        y, x = (int(v[0]) for v in np.nonzero(wrong))
        raise UserError(
            f"{path}: value {values[y, x]} at y={y}, x={x}; expected 0 (background), 1..{num_classes} (classes) or "
            f"{IGNORE} (ignore): save class numbers, not colours, or give all class names"
        )
