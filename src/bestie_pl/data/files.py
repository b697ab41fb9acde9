"""Readers of images, semantic maps, cues and lists, and writers. Errors name file, finding, expectation and remedy.

Nothing here opens ground truth (see ``truth``), and nothing imports Lightning: worker processes start fast.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, overload

import torch


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
