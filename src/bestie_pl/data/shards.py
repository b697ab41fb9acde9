"""Tar files in the place of folders: images, and the label files beside them, in few large files.

The layout is WebDataset's: the files of an image have its name, ``sub/one.jpg``, ``sub/one.semantic_maps.png``,
``sub/one.Peak_points.txt``. A pattern of tar files stands wherever a folder of images or labels does: below
``shards/*.tar`` lies ``sub/one.jpg``, and below ``shards/*.tar/semantic_maps`` what belongs to it, ``sub/one.png``.

Members are found by an index of their places and read where they lie, so images keep their numbers: shuffling, repeated
classes, several processes and going on after an interruption are those of a folder. The ``webdataset`` library streams
shards from the first member to the last and knows no numbers; it reads these shards, and is not needed for it.

Nothing here trusts a tar file: links, devices and sparse files are refused, names stay plain paths, and a member's size
is no more than the file has.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from bestie_pl.data.files import Packed, check_unique, in_one_move, plain_problem, understood
from bestie_pl.errors import UserError

HOLDS = "an uncompressed tar file of images, as `bestie-pl data shards` writes it"
_SHARDS = re.compile(r"(?P<pattern>.*?\.tar)(?:/(?P<member>.+))?", re.DOTALL)


@dataclass(frozen=True)
class Index:
    """Where the members of some tar files are, sorted by name; in columns, which worker processes share.

    ``names``: N of them, unique; ``shard``: (N,) which of ``paths``; ``offset``, ``size``: (N,) in bytes. ``signature``
    changes with the files.
    """

    paths: tuple[str, ...]
    signature: tuple[tuple[str, int, int], ...]
    names: Packed
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def find(self, name: str) -> int:
        """The number of a member, -1 if there is none of this name."""
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else -1


_indexes: dict[str, Index] = {}
"""By pattern. Made where a data set is opened, so that worker processes which are forked inherit it."""


def open_shards(folder: Path) -> Index | None:
    """The index of the tar files that a path stands for, up to date; None if it stands for none that exist.

    Raises:
        UserError: A file is no tar file, or holds what no shard may; a name stands in the shards twice.
    """
    if (match := _SHARDS.fullmatch(folder.as_posix())) is None:
        return None
    pattern = match["pattern"]
    paths = sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
    if not paths:
        return None
    signature = tuple((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths)
    known = _indexes.get(pattern)
    if known is None or known.signature != signature:
        known = _indexes[pattern] = _read_index(signature)
    return known


def is_file(path: Path) -> bool:
    """Whether there is such a file, in a folder or in shards."""
    return path.is_file() or _place(path) is not None


def opened_file(path: Path) -> BinaryIO:
    """An open file, or an open member of a shard as a file of its own."""
    place = _place(path)
    return path.open("rb") if place is None else io.BufferedReader(_Member(*place))


def read_bytes(path: Path) -> bytes:
    """The content of a file, in a folder or in shards."""
    with opened_file(path) as file:
        return file.read()


def _place(path: Path) -> tuple[str, int, int] | None:
    """Shard, offset and size of a member; None if the path leads to none."""
    text = path.as_posix()
    if ".tar/" not in text:  # nearly all
        return None
    match = _SHARDS.fullmatch(text)
    if match is None or not match["member"] or os.path.isdir(match["pattern"]):
        return None
    index = _indexes.get(match["pattern"]) or open_shards(Path(match["pattern"]))
    if index is None:
        return None
    names = (match["member"], _beside(match["member"]))
    row = next((row for name in names if name and (row := index.find(name)) >= 0), -1)
    return None if row < 0 else (index.paths[index.shard[row]], int(index.offset[row]), int(index.size[row]))


def _beside(path: str) -> str:
    """The member that stands for a file of a folder of labels.

    >>> _beside("semantic_maps/sub/one.png")
    'sub/one.semantic_maps.png'
    """
    folder, slash, file = path.partition("/")
    stem, suffix = posixpath.splitext(file)
    return f"{stem}.{folder}{suffix}" if slash else ""


def _read_index(signature: Sequence[tuple[str, int, int]]) -> Index:
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, (path, length, _) in enumerate(signature):
        for name, offset, size in _members(Path(path), length):
            names.append(name)
            places.append((number, offset, size))
    first = Path(signature[0][0])
    check_unique(first.parent if len(signature) > 1 else first, names)
    order = sorted(range(len(names)), key=names.__getitem__)
    table = np.array([places[k] for k in order], dtype=np.int64).reshape(-1, 3)
    return Index(
        paths=tuple(path for path, _, _ in signature),
        signature=tuple(signature),
        names=Packed(names[k] for k in order),
        shard=table[:, 0].astype(np.int32),
        offset=table[:, 1].copy(),
        size=table[:, 2].copy(),
    )


def _members(path: Path, length: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar file of ``length`` bytes."""
    before = -1
    with understood(path, HOLDS):
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    archive.members.clear()  # type: ignore[attr-defined]  # kept by the library, a kilobyte each
                    where = f"{path}: {member.name!r:.300}"
                    # sizes below 0 lead back, round and round
                    if member.offset <= before or member.size < 0 or member.offset_data + member.size > length:
                        raise UserError(f"{where}: ends after the file does; copy or write it again")
                    before = member.offset
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        raise UserError(f"{where} is a link, a device or a sparse file; expected files alone")
                    name = member.name.removeprefix("./")
                    if problem := plain_problem(name):
                        raise UserError(f"{where} {problem}; expected plain paths below a folder")
                    yield name, member.offset_data, member.size
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path}: cannot be read as a tar file ({error}); expected {HOLDS}") from error


class _Member(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__()
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed with this file
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"seek to {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        read = self._file.readinto(memoryview(buffer)[:count])
        self._at += read
        return read

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def write_shards(
    images: Path, files: Iterable[str], labels: Sequence[Path], out: Path, *, shard_bytes: int
) -> Iterator[tuple[Path, int]]:
    """Write images and the labels beside them to ``out/000000.tar`` and so on; yields each and how many it has.

    A shard is complete or not there. Two runs on the same files write the same bytes.

    Args:
        images: Folder of the images.
        files: The images, below it.
        labels: Folders of files ``NAME.png`` or ``NAME.txt``; images without one are none the worse.
        out: Made if it is not there.
        shard_bytes: A shard is full when it has so many.

    Raises:
        UserError: Two members would have one name.
    """
    waiting: list[tuple[str, Path]] = []
    held, count, number, seen = 0, 0, 0, set[str]()
    for file in files:
        members = [(file, images / file)]
        stem = posixpath.splitext(file)[0]
        for folder in labels:
            beside = (folder / f"{stem}{suffix}" for suffix in (".png", ".npy", ".txt"))
            members += [(f"{stem}.{folder.name}{path.suffix}", path) for path in beside if path.is_file()]
        for name, path in members:
            if name in seen:
                raise UserError(f"{path}: a shard would have two files {name}; rename the image or the folder")
            seen.add(name)
            held += path.stat().st_size
        waiting += members
        count += 1
        if held >= shard_bytes:
            yield _write_shard(out / f"{number:06d}.tar", waiting), count
            waiting, held, count, number = [], 0, 0, number + 1
    if waiting:
        yield _write_shard(out / f"{number:06d}.tar", waiting), count


def _write_shard(path: Path, members: Iterable[tuple[str, Path]]) -> Path:
    with in_one_move(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, source in members:
            info = tarfile.TarInfo(name)  # neither owner nor time, so that equal files make equal shards
            info.size, info.mode = source.stat().st_size, 0o644
            with source.open("rb") as file:
                archive.addfile(info, file)
    return path
