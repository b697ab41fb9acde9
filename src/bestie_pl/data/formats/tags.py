"""Files of image tags by class name, as columns that worker processes share."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bestie_pl.data.files import Packed, check_plain, check_unique, csv_lines, plain_problem, read_json, read_text
from bestie_pl.data.formats.classes import check_class_names, class_name
from bestie_pl.data.formats.points import image_name
from bestie_pl.errors import UserError, expected_one_of

MOST_SPLITS = 1000
TAGS = "a file of tags, CSV or JSON; see FolderDataModule"


@dataclass(frozen=True)
class TagTable:
    """A file of tags as columns, a row an image.

    Args:
        path: Of the file, for messages.
        class_names: In the order of the classes' numbers.
        files: N image files, with or without suffix.
        tag_row: (T,) int32, image of each tag.
        tag_class: (T,) int32, its class.
        splits: Names of the splits; none if the file does not say.
        split: (N,) int16, number in ``splits``, -1 where the file does not say.
    """

    path: Path
    class_names: tuple[str, ...]
    files: Packed
    tag_row: Tensor
    tag_class: Tensor
    splits: tuple[str, ...]
    split: Tensor

    def outside(self, used: Iterable[str]) -> dict[str, int]:
        """How many images are in each split that is none of ``used``, and by ``""`` in none; {} in a file without any.

        >>> split = torch.tensor([0, 0, 1, -1], dtype=torch.int16)
        >>> none = torch.tensor([], dtype=torch.int32)
        >>> TagTable(Path("tags.csv"), ("cat",), Packed(list("abcd")), none, none, ("train", "trian"), split).outside(
        ...     ["train"]
        ... )
        {'trian': 1, '': 1}
        """
        if not self.splits:
            return {}
        others, used = (*self.splits, ""), set(used)
        counts = Counter(others[number] for number in self.split.tolist())  # -1 is the last one
        return {name: counts[name] for name in others if counts[name] and name not in used}

    def dense(self, rows: Tensor) -> Tensor:
        """(N, C) bool of some rows."""
        place = torch.full((len(self.files),), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        at = place[self.tag_row.long()]
        tags = torch.zeros(len(rows), len(self.class_names), dtype=torch.bool)
        tags[at[at >= 0], self.tag_class[at >= 0].long()] = True
        return tags


def read_tags(path: Path, class_names: Sequence[str] | None = None, ignored_columns: Sequence[str] = ()) -> TagTable:
    """Read a file of tags; see ``FolderDataModule`` for its forms.

    Raises:
        FileNotFoundError: No such file.
        UserError: Names file, line and field of what is wrong.
    """
    records = _json_records(path) if path.suffix.lower() == ".json" else _csv_records(path, ignored_columns)
    if class_names is not None:
        class_names = check_class_names(class_names)
    number_of: dict[str, int] = {name: number for number, name in enumerate(class_names or ())}
    if records.columns is not None:
        if class_names is None:
            number_of = {name: number for number, name in enumerate(records.columns)}
        elif unknown := [name for name in records.columns if name not in number_of]:
            raise UserError(
                f"{path}: the column {unknown[0]!r} is no class; {expected_one_of(unknown[0], class_names)}, or name "
                "it in ignored_columns, or give all class_names"
            )
    split_of: dict[str, int] = {}
    files: list[str] = []
    counts, tag_class, split = array("i"), array("i"), array("h")
    for where, file, tags, part in records.rows:
        if problem := plain_problem(file):
            raise UserError(
                f"{path}: {where}: image: {file!r:.300} {problem}; expected a plain path below the folder of the images"
            )
        own = dict.fromkeys(map(class_name, tags))  # once each
        for tag in own:
            if tag not in number_of:
                if class_names is not None:
                    raise UserError(
                        f"{path}: {where}: tag {tag!r}; {expected_one_of(tag, class_names)}: correct it, or give all "
                        "class_names"
                    )
                number_of[tag] = len(number_of)
            tag_class.append(number_of[tag])
        counts.append(len(own))
        files.append(file)
        split.append(split_of.setdefault(part, len(split_of)) if part else -1)
        if len(split_of) > MOST_SPLITS:
            raise UserError(f"{path}: {where}: more than {MOST_SPLITS} splits; is the column `split` another one's?")
    if class_names is None:
        _check_parted(path, number_of, records.missed)
    if not files or not number_of:
        raise UserError(f"{path}: holds no {'tag' if files else 'image'}; expected {TAGS}")
    check_unique(path, [image_name(file) for file in files])
    names = list(number_of) if class_names is not None else sorted(number_of)
    order = {name: number for number, name in enumerate(names)}
    numbers = np.array([order[name] for name in number_of], dtype=np.int32)
    return TagTable(
        path,
        tuple(names),
        Packed(files),
        torch.from_numpy(np.repeat(np.arange(len(files), dtype=np.int32), counts)),
        torch.from_numpy(numbers[np.array(tag_class, dtype=np.int32)]),
        tuple(split_of),
        torch.from_numpy(np.array(split, dtype=np.int16)),
    )


@dataclass(frozen=True)
class _Records:
    """``rows``: where it stands, file, tags and split of each image; ``columns``: the classes of a table of 0 and 1.

    ``missed``: marks that may stand between tags, and part none, as another mark does, or none.
    """

    rows: Iterable[tuple[str, str, Sequence[str], str]]
    columns: Sequence[str] | None = None
    missed: str = ""


def _json_records(path: Path) -> _Records:
    content = read_json(path, TAGS)
    if not isinstance(content, dict):
        raise UserError(f'{path}: holds a list; expected {{"image": ["class", ...], ...}}')

    def rows() -> Iterator[tuple[str, str, Sequence[str], str]]:
        for file, value in content.items():
            record = {"tags": value} if isinstance(value, list) else value
            if not isinstance(record, dict) or not record.keys() <= {"tags", "split"} or "tags" not in record:
                raise UserError(
                    f'{path}: {file}: {value!r:.100}; expected ["class", ...] or {{"tags": [...], "split": ...}}'
                )
            tags, split = record["tags"], record.get("split", "")
            if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
                raise UserError(f"{path}: {file}: tags: {tags!r:.100}; expected a list of class names")
            if not isinstance(split, str):
                raise UserError(f"{path}: {file}: split: {split!r}; expected its name")
            yield file, file, tags, split

    return _Records(rows())


def _csv_records(path: Path, ignored_columns: Sequence[str]) -> _Records:
    text = read_text(path, TAGS)
    header = [class_name(name) for name in next(csv_lines(text, path), (0, []))[1]]
    if "" in header[1:]:
        raise UserError(
            f"{path}: the first line has no name for column {header.index('', 1) + 1}; name it, or delete it"
        )
    if "image" not in header or len(set(header)) < len(header):
        raise UserError(
            f"{path}: the first line is {','.join(header)!r:.200}; expected names of columns with commas, each once, "
            "one of them `image`"
        )
    if unknown := [name for name in ignored_columns if name not in header]:
        raise UserError(f"{path}: no column {unknown[0]!r}, which ignored_columns names; there are {', '.join(header)}")
    others = [name for name in header if name not in ("image", "split", *ignored_columns)]
    if "tags" in others and len(others) > 1:
        extra = [name for name in others if name != "tags"]
        raise UserError(f"{path}: columns {', '.join(extra)} beside tags; name them in ignored_columns")
    image = header.index("image")
    split = header.index("split") if "split" in header else None
    columns = [header.index(name) for name in others]
    # of the tags alone: names of files may have semicolons too
    single = others == ["tags"]
    found = (
        {mark for _, row in _rows_of(text, header, path) for mark in ";," if mark in row[columns[0]]} if single else ()
    )
    separator = next((mark for mark in ";," if mark in found), None)

    def rows() -> Iterator[tuple[str, str, Sequence[str], str]]:
        for line, row in _rows_of(text, header, path):
            where = f"line {line}"
            if single:
                parts = row[columns[0]].split(separator) if separator else [row[columns[0]]]
                tags = [tag for part in parts if (tag := part.strip())]
            else:
                tags = [name for name, k in zip(others, columns, strict=True) if _flag(row[k], path, where, name)]
            yield where, row[image].strip(), tags, row[split].strip() if split is not None else ""

    missed = {None: " ", ",": "", ";": ","}[separator]
    return _Records(rows(), None if single else others, missed if single else "")


def _check_parted(path: Path, names: Iterable[str], marks: str) -> None:
    """Raise UserError if a class is called by the names of others, with one of the marks between them."""
    known = set(names)
    for name, mark in itertools.product(known, marks):
        words = [word.strip() for word in name.split(mark) if word.strip()]
        if len(words) > 1 and known.issuperset(words):
            raise UserError(
                f"{path}: the tag {name!r}, where {' and '.join(words)} are tags too: separate tags by semicolons "
                f"({';'.join(words)}), or give class_names if it is a class"
            )


def _rows_of(text: str, header: Sequence[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of the rows behind the header."""
    lines = csv_lines(text, path)
    next(lines)
    for line, row in lines:
        if len(row) != len(header):
            more = ": several tags stand between semicolons, cat;dog" if "tags" in header else ""
            raise UserError(f"{path}: line {line}: {len(row)} columns; expected {len(header)}: {row!r:.100}{more}")
        yield line, row


def _flag(text: str, path: Path, where: str, column: str) -> bool:
    if text in ("0", "1"):
        return text == "1"
    raise UserError(
        f"{path}: {where}: {column}: {text!r}; expected 1 if the image holds this class, else 0; a column that is no "
        "class has to be named in ignored_columns"
    )


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
            raise UserError(
                f"{path} line {row}: found {line.strip()!r}; expected `ID class class ...`, classes in "
                f"0..{num_classes - 1}"
            ) from None
        names.append(name)
        counts.append(len(fields))
    check_plain(path, names)
    tags = torch.zeros(len(names), num_classes, dtype=torch.bool)
    rows = torch.arange(len(names)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    tags[rows, torch.tensor(numbers, dtype=torch.int64)] = True
    return names, tags
