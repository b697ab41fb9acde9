"""What people hand to a predictor, as images with names: files, folders, patterns, arrays, tensors, lists of these."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from bestie_pl.data.files import check_unique, files_below, is_hidden
from bestie_pl.data.formats.images import IMAGE_SUFFIXES, open_image, to_rgb
from bestie_pl.drawing import Picture

Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor
"""One image, or with a folder, a pattern or a tensor (B, 3, H, W) several."""

EXPECTED = "expected a path, a folder, a pattern like 'images/*.jpg', a Pillow image, an array, a tensor, or a list"


class NamedPicture(NamedTuple):
    """An image of a source: its name without suffix, 8-bit RGB (H, W, 3), and its file if it has one."""

    name: str
    picture: Picture
    path: Path | None = None


def open_source(source: Source | Sequence[Source]) -> Iterator[NamedPicture]:
    """The images of a source, each opened when it is its turn.

    - A path: an image file; a folder: all images in it and below, sorted; a pattern with ``*``, ``?`` or ``[``.
    - A Pillow image is turned as its EXIF orientation says, and made RGB, as a file is.
    - An array (H, W, 3), (H, W, 4) or (H, W), a tensor (3, H, W), (1, H, W) or (H, W), or (B, 3, H, W) for several:
      8 bits, or floating-point numbers in [0, 1]; grey arrays also 16 bits. An alpha channel is dropped.

    Files are named as they stand below the folder, without suffix, others ``image_0``, ``image_1``, ...

    Raises:
        FileNotFoundError: No such file, or no image in a folder or for a pattern. Raised at once.
        ValueError: No image, or a kind of array that is not listed above; or two files of a folder have one name.
    """
    given = list(source) if isinstance(source, (list, tuple)) else [source]
    files = [find_files(item) if isinstance(item, (str, os.PathLike)) else item for item in given]
    return _opened(files)


def _opened(items: Sequence[list[tuple[str, Path]] | Any]) -> Iterator[NamedPicture]:
    number = 0
    for item in items:
        if isinstance(item, list):
            for name, path in item:
                yield NamedPicture(name, np.asarray(open_image(path)), path)
            continue
        for picture in _pictures(item, f"image_{number}"):
            yield NamedPicture(f"image_{number}", picture)
            number += 1


def find_files(source: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """Names and paths of the image files that a path, a folder or a pattern means; see ``open_source``."""
    text, path = os.fspath(source), Path(source)
    if path.is_dir():
        base, paths = path, [p for p in files_below(path) if _is_image(p, path)]
    elif not path.exists() and glob.has_magic(text):
        base = Path(*_before_magic(path))
        paths = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if _is_image(p, base))
    elif path.is_file():
        return [(path.stem, path)]
    else:
        raise FileNotFoundError(f"no such image, folder or pattern: {text}; {EXPECTED}")
    if not paths:
        raise FileNotFoundError(f"{text}: no image there; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    names = [p.relative_to(base).with_suffix("").as_posix() for p in paths]
    check_unique(base, names)
    return list(zip(names, paths, strict=True))


def _is_image(path: Path, base: Path) -> bool:
    """Whether a name below ``base`` is that of an image; hidden files and folders are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, base) and not path.is_dir()


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _pictures(item: Any, name: str) -> Iterator[Picture]:
    if isinstance(item, Image.Image):
        yield np.asarray(to_rgb(ImageOps.exif_transpose(item), name))
    elif isinstance(item, np.ndarray):
        yield _of_array(item, name)
    elif isinstance(item, Tensor) and item.dim() == 4:
        for image in item:
            yield _of_tensor(image, name)
    elif isinstance(item, Tensor):
        yield _of_tensor(item, name)
    else:
        raise ValueError(f"{name}: cannot make an image of a {type(item).__name__}; {EXPECTED}")


def _of_array(values: npt.NDArray[Any], name: str) -> Picture:
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.size:
        values = values[..., :3]
    elif values.ndim != 2 or not values.size:
        raise ValueError(f"{name}: an array of shape {values.shape}; expected (H, W, 3), (H, W, 4) or (H, W)")
    if values.dtype == np.uint16 and values.ndim == 2:
        return np.asarray(to_rgb(Image.fromarray(values), name))
    if np.issubdtype(values.dtype, np.floating):
        values = _to_bytes(values, name)
    if values.dtype != np.uint8:
        raise ValueError(f"{name}: an array of {values.dtype}; expected uint8, or floating point in [0, 1]")
    return np.ascontiguousarray(values if values.ndim == 3 else np.repeat(values[..., None], 3, 2))


def _to_bytes(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 1):  # NaN as well
        raise ValueError(f"{name}: floating-point values {least:g}..{most:g}; expected [0, 1], or uint8 up to 255")
    return (values * 255).round().astype(np.uint8)


def _of_tensor(values: Tensor, name: str) -> Picture:
    planes = values[None] if values.dim() == 2 else values
    if planes.dim() != 3 or planes.shape[0] not in (1, 3) or not planes.numel():
        raise ValueError(
            f"{name}: a tensor of shape {tuple(values.shape)}; expected (3, H, W), (1, H, W), (H, W) or (B, 3, H, W), "
            "channels first (an array has them last)"
        )
    planes = planes.cpu().float() if planes.is_floating_point() else planes.cpu()  # NumPy has no bfloat16
    return _of_array(planes[0].numpy() if len(planes) == 1 else planes.permute(1, 2, 0).numpy(), name)
