"""Files of image tags by class name, as columns that worker processes share."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bestie_pl.data.files import Packed, check_unique, read_text
from bestie_pl.data.formats.points import image_name, is_plain

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
        ValueError: Names file, line and field of what is wrong.
    """
    text = read_text(path, TAGS)
    records = _json_records(text, path) if path.suffix.lower() == ".json" else _csv_records(text, path, ignored_columns)
    del text
    number_of: dict[str, int] = {name: number for number, name in enumerate(class_names or ())}
    if class_names is not None and len(number_of) < len(class_names):
        raise ValueError(f"class_names has a name twice: {', '.join(class_names)}")
    if records.columns is not None:
        if class_names is None:
            number_of = {name: number for number, name in enumerate(records.columns)}
        elif unknown := [name for name in records.columns if name not in number_of]:
            raise ValueError(
                f"{path}: the column {unknown[0]!r} is none of class_names ({', '.join(class_names)}); name it in "
                "ignored_columns, or give all class_names"
            )
    split_of: dict[str, int] = {}
    files: list[str] = []
    counts, tag_class, split = array("i"), array("i"), array("h")
    for where, file, tags, part in records.rows:
        if not is_plain(file):
            raise ValueError(f"{path}: {where}: image: {file!r}; expected a plain path below the folder of the images")
        for tag in tags:
            if tag not in number_of:
                if class_names is not None:
                    raise ValueError(
                        f"{path}: {where}: tag {tag!r}; expected one of {', '.join(class_names)}: correct it, or give "
                        "all class_names"
                    )
                number_of[tag] = len(number_of)
            tag_class.append(number_of[tag])
        counts.append(len(tags))
        files.append(file)
        split.append(split_of.setdefault(part, len(split_of)) if part else -1)
    if not files or not number_of:
        raise ValueError(f"{path}: holds no {'tag' if files else 'image'}; expected {TAGS}")
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
    """``rows``: where it stands, file, tags and split of each image; ``columns``: the classes of a table of 0 and 1."""

    rows: Iterable[tuple[str, str, Sequence[str], str]]
    columns: Sequence[str] | None = None


def _json_records(text: str, path: Path) -> _Records:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error}); expected {TAGS}") from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: holds a list; expected {{"image": ["class", ...], ...}}')

    def rows() -> Iterator[tuple[str, str, Sequence[str], str]]:
        for file, value in content.items():
            record = {"tags": value} if isinstance(value, list) else value
            if not isinstance(record, dict) or not record.keys() <= {"tags", "split"} or "tags" not in record:
                raise ValueError(
                    f'{path}: {file}: {value!r:.100}; expected ["class", ...] or {{"tags": [...], "split": ...}}'
                )
            tags, split = record["tags"], record.get("split", "")
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise ValueError(f"{path}: {file}: tags: {tags!r:.100}; expected a list of class names")
            if not isinstance(split, str):
                raise ValueError(f"{path}: {file}: split: {split!r}; expected its name")
            yield file, file, tags, split

    return _Records(rows())


def _csv_records(text: str, path: Path, ignored_columns: Sequence[str]) -> _Records:
    reader = csv.reader(StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if "image" not in header or len(set(header)) < len(header):
        raise ValueError(
            f"{path}: the first line is {','.join(header)!r:.200}; expected names of columns with commas, each once, "
            "one of them `image`"
        )
    if unknown := [name for name in ignored_columns if name not in header]:
        raise ValueError(
            f"{path}: no column {unknown[0]!r}, which ignored_columns names; there are {', '.join(header)}"
        )
    others = [name for name in header if name not in ("image", "split", *ignored_columns)]
    if "tags" in others and len(others) > 1:
        extra = [name for name in others if name != "tags"]
        raise ValueError(f"{path}: columns {', '.join(extra)} beside tags; name them in ignored_columns")
    image = header.index("image")
    split = header.index("split") if "split" in header else None
    columns = [header.index(name) for name in others]
    # of the tags alone: names of files may have semicolons too
    single = others == ["tags"]
    separator = ";" if single and any(";" in row[columns[0]] for _, row in _rows_of(text, header, path)) else None

    def rows() -> Iterator[tuple[str, str, Sequence[str], str]]:
        for line, row in _rows_of(text, header, path):
            where = f"line {line}"
            if single:
                tags = [tag for part in row[columns[0]].split(separator) if (tag := part.strip())]
            else:
                tags = [name for name, k in zip(others, columns, strict=True) if _flag(row[k], path, where, name)]
            yield where, row[image].strip(), tags, row[split].strip() if split is not None else ""

    return _Records(rows(), None if single else others)


def _rows_of(text: str, header: Sequence[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of the rows behind the header."""
    reader = csv.reader(StringIO(text, newline=""))
    next(reader)
    for row in reader:
        if len(row) == len(header):
            yield reader.line_num, row
        elif row:
            raise ValueError(
                f"{path}: line {reader.line_num}: {len(row)} columns; expected {len(header)}: {row!r:.100}"
            )


def _flag(text: str, path: Path, where: str, column: str) -> bool:
    if text in ("0", "1"):
        return text == "1"
    raise ValueError(
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
