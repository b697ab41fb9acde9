"""From names to paths, from files to text, JSON, CSV and XML, and back: what all readers and writers share.

Nothing here trusts a file: names stay below the folder that the user named, nesting, numbers and fields are bounded,
and memory follows the size of a file, not what it claims. Nothing imports Lightning: worker processes start fast.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote
from xml.etree import ElementTree

import torch

from bestie_pl.errors import UserError

LONGEST_NAME = 255
"""Bytes that file systems allow a name in a folder."""

Where = Path | str


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


_SUSPICIOUS = re.compile(r"[\x00-\x1f\\]|(?:^|/)\.{0,2}(?:/|$)|^.:", re.DOTALL)
"""What only names hold that may be no plain paths."""


def plain_problem(name: str) -> str:
    """Why a name is no plain path below a folder; empty if it is one, written in the one way that such names have.

    >>> plain_problem("sub/one.jpg"), plain_problem("../one.jpg")
    ('', 'leads out of the folder')
    """
    if len(name) <= LONGEST_NAME // 4 and not _SUSPICIOUS.search(name):  # nearly all; there may be millions
        return ""
    parts = name.split("/")
    if ".." in parts or parts[0] == "" or "\\" in name or (os.name == "nt" and name[1:2] == ":"):
        return "leads out of the folder" if name else "is empty"
    if not {"", "."}.isdisjoint(parts):
        return "is no plain path"
    if any(ord(letter) < 32 for letter in name):
        return "holds a control character"
    if any(len(part.encode(errors="surrogatepass")) > LONGEST_NAME for part in parts):
        return f"is longer than the {LONGEST_NAME} bytes that a file's name may have"
    return ""


def below(folder: Path, name: str) -> Path:
    """The path of a name that a file holds, always below the folder that the user named.

    No other way leads from names to paths, neither for readers nor for writers.

    Links count: a folder in it that is a link and leads out is refused. A *file* that is a link is read as the file it
    links to (caches of data sets keep all their files so); writers replace the link.

    Raises:
        UserError: The name is absolute, climbs (``..``), is not plain or too long, or leads out through a link.
    """
    if problem := plain_problem(name):
        raise UserError(f"{name!r:.300} {problem}; expected the name of a file below {folder}")
    path = folder / name
    home, parent = os.path.realpath(folder), os.path.realpath(path.parent)
    if parent != home and not parent.startswith(os.path.join(home, "")):
        raise UserError(
            f"{path}: leads out of {folder} through a link, to {parent}; name the folder that holds the files, or copy "
            "them"
        )
    return path


def as_it_looks(path: Path) -> Path:
    """The path, or if there is no such file the one whose name looks the same.

    That is: composed or decomposed letters (a Mac writes the latter), and characters that a web address spells ``%20``.
    Neither leads to another folder. The path as it is if there is none of them.
    """
    if os.path.lexists(path):
        return path
    text, name = str(path), unquote(path.name)
    decoded = str(path.with_name(name)) if not plain_problem(name) and "/" not in name else text
    forms = [unicodedata.normalize(form, spelt) for spelt in (text, decoded) for form in ("NFC", "NFD")]
    return next((Path(form) for form in (decoded, *forms) if os.path.lexists(form)), path)


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below a folder is hidden, or in a hidden folder: what a Mac or a notebook left there, no data."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and its subfolders, sorted, without hidden ones; folders that are links are entered once."""
    found, entered = [], set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def require_folder(path: Path, holds: str) -> Path:
    """The path, if it is a folder or stands for shards; else FileNotFoundError. ``holds``: what is expected in it."""
    from bestie_pl.data import shards  # which is made of what is here

    if not path.is_dir() and shards.open_shards(path) is None:
        what = "is no folder" if path.exists() else "no such folder"
        raise FileNotFoundError(f"{what}: {path}; expected {holds}")
    return path


def read_text(path: Path, holds: str) -> str:
    """Content of a UTF-8 file, byte order mark left out. ``holds`` says what is expected in it, and the remedy."""
    from bestie_pl.data import shards  # which is made of what is here

    path = as_it_looks(path)
    if not shards.is_file(path):
        raise FileNotFoundError(f"no such file: {path}; expected {holds}")
    try:
        return StringIO(shards.read_bytes(path).decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error}): save it as UTF-8; expected {holds}") from error


def read_json(path: Path, holds: str) -> Any:
    """The content of a JSON file; see ``JSON`` for its numbers. ``holds`` as for ``read_text``."""
    text = read_text(path, holds)
    with understood(path, holds):
        return JSON.decode(text)


JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))
"""Decodes JSON whose whole numbers fit into 64 bits; longer ones become floating-point numbers.

No count, size or id of a file is as long, and Python's numbers without end would overflow all that they meet.
"""


@contextmanager
def understood(path: Where, holds: str) -> Iterator[None]:
    """What the reading of a file's content raises because it is not what the format says becomes a UserError.

    A net under the readers' own checks, which say more: nobody can foresee all that a damaged file holds.
    """
    try:
        yield
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is no JSON ({error}); expected {holds}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply; expected {holds}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be understood ({error!r:.200}); expected {holds}") from error


def csv_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row of a CSV text that is not empty, the header among them.

    Raises:
        UserError: A field of more characters than ``csv`` allows, or a broken quotation.
    """
    reader = csv.reader(StringIO(text, newline=""))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; close its quotation marks, or restore it") from error


def read_xml(path: Path, holds: str) -> ElementTree.Element:
    """The root of an XML file. Entities, which can stand for any amount of text, are refused."""
    text = read_text(path, holds)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: declares a document type or entities, which no annotation needs; expected {holds}")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: is no XML ({error}); expected {holds}") from error


def is_set(value: object, where: str) -> bool:
    """Whether a yes-or-no field is set; texts such as ``"0"``, as scripts that make JSON of tables write them, too.

    >>> is_set("0", ""), is_set(1, ""), is_set(None, "")
    (False, True, False)
    """
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    text = "" if value is None else value.strip().lower() if isinstance(value, str) else None
    if text in ("", "0", "false", "no"):
        return False
    if text in ("1", "true", "yes"):
        return True
    raise UserError(f"{where}: {value!r:.100}; expected 0 or 1")


UNFINISHED = ".part-"
"""In the name of a hidden file that is being written; what a killed process left is swept by it."""


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end: a killed process leaves old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a part of the name: all of it and more would be too long where the name itself just fits
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}{UNFINISHED}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are private
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say what was being written
        raise


def write_text(path: Path, content: str) -> None:
    """Write a text file in one move. A byte of a file name that is no UTF-8 becomes what JSON calls it, u and dcXX."""
    with in_one_move(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_names(path: Path) -> list[str]:
    """Image names: the first word of each line, plain paths without suffix."""
    names = [line.split(None, 1)[0] for line in StringIO(read_text(path, "one image name a line")) if line.strip()]
    if not names:
        raise UserError(f"{path}: holds no image name; expected one a line")
    check_plain(path, names)
    check_unique(path, names)
    return names


def check_plain(path: Path, names: Iterable[str]) -> None:
    """Raise UserError unless all names of a list are plain paths below a folder."""
    for name in names:
        if problem := plain_problem(name):
            raise UserError(f"{path}: {name!r:.300} {problem}; expected plain paths below the folder of the images")


def check_unique(path: Path, names: Sequence[str]) -> None:
    """Raise UserError if a name stands twice in a list."""
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    listed = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
    raise UserError(f"{path}: listed more than once: {listed}; image names must be unique, also without their suffix")
