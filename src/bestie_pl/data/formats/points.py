"""Points of a data set by class name: one documented file, its check, and the other forms that points come in.

The file is JSON in UTF-8::

    {
      "classes": ["cat", "dog"],
      "images": [
        {
          "file": "sub/one.jpg",
          "width": 640,
          "height": 480,
          "points": [{"x": 31.5, "y": 12, "class": "cat"}, {"x": 70, "y": 200, "class": "dog", "confidence": 0.9}]
        }
      ]
    }

- ``classes``: all class names, in the order of their numbers where a file has numbers.
- ``file``: of the image, below the folder of the images, with ``/`` between folders. Each image stands there once.
- ``width`` and ``height`` in pixels (optional, but both): of the image as it is seen, turned as its EXIF orientation
  says. Where they are given, they must be the image's, which finds points that were made on another version of it.
- ``points``: one for each object. No points mean that somebody looked and found none; an image that is not in the file
  was not looked at.
- ``x``, ``y``: in pixels of that image; (0, 0) is the *centre* of the top-left pixel. ``0 <= x < width``.
- ``class``: one of ``classes``. ``confidence`` in [0, 1]: 1 if it is omitted. Training uses points that are surer than
  the data module's ``cue_threshold``, and of classes that the image is tagged with.

As CSV, the header is ``image,x,y,class`` or ``image,x,y,class,confidence``, a row a point; a row whose last columns are
empty says that the image has no point. Rows may stand in any order. For millions of points this is the smaller form.
"""

from __future__ import annotations

import csv
import json
import math
import posixpath
import unicodedata
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bestie_pl.data.files import (
    Packed,
    below,
    csv_lines,
    plain_problem,
    read_json,
    read_text,
    understood,
    write_text,
)
from bestie_pl.data.formats.classes import check_class_names, class_name
from bestie_pl.data.formats.images import IMAGE_SUFFIXES, MOST_PIXELS, check_pixels
from bestie_pl.errors import UserError, expected_one_of

FORMAT = 'a file of points, {"classes": [...], "images": [{"file": ..., "points": [...]}]}'
HEADER = ("image", "x", "y", "class", "confidence")
IMAGE_FIELDS = {"file", "width", "height", "points"}
POINT_FIELDS = {"x", "y", "class", "confidence"}
NUMBERS = (int, float)
Column = npt.NDArray[Any]
REPORTED = 20
"""How many findings one error message lists."""


@dataclass(frozen=True)
class PointSet:
    """Points of many images as columns, which worker processes share.

    Args:
        path: Where they are from, for messages.
        class_names: In the order of the classes' numbers.
        files: N image files, each once, in the order of the source.
        sizes: (N, 2) int32 height and width of the images, 0 where they are not stated.
        ends: (N,) int64: the points of image ``n`` are the rows ``ends[n - 1]`` to ``ends[n]``.
        yx: (M, 2) float32 pixels, 0 at the centre of the first one.
        classes: (M,) int32, 0-based.
        scores: (M,) float32.
    """

    path: Path
    class_names: tuple[str, ...]
    files: Packed
    sizes: Tensor
    ends: Tensor
    yx: Tensor
    classes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, number: int) -> slice:
        """Rows of an image's points."""
        ends = self.ends.numpy()
        return slice(int(ends[number - 1]) if number else 0, int(ends[number]))

    def renumbered(self, class_names: Sequence[str]) -> PointSet:
        """The same with classes numbered as in ``class_names``.

        Raises:
            UserError: A point has a class that is not among them.
        """
        number_of = {name: number for number, name in enumerate(class_names)}
        counts = self.classes.bincount(minlength=len(self.class_names)).tolist()
        if unknown := [n for n, count in zip(self.class_names, counts, strict=True) if count and n not in number_of]:
            raise UserError(
                f"{self.path}: points of the class {unknown[0]!r}; {expected_one_of(unknown[0], class_names)}: correct "
                "the file, or give all class names"
            )
        table = torch.tensor([number_of.get(name, -1) for name in self.class_names], dtype=torch.int32)
        classes = table[self.classes.long()] if len(table) else self.classes
        return PointSet(self.path, tuple(class_names), self.files, self.sizes, self.ends, self.yx, classes, self.scores)


class PointSetBuilder:
    """Collects images and their points, and what is wrong with them: ``where`` names the file and the place in it.

    Args:
        path: Of all, for messages.
        class_names: The classes that may occur. If omitted, those that do occur, sorted.
    """

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        self.path = path
        self.class_names = None if class_names is None else [class_name(name) for name in class_names]
        self.problems: list[str] = []
        self._rows: dict[str, int] = {}
        self._numbers = {name: number for number, name in enumerate(self.class_names or ())}
        self._sizes = array("i")
        self._image, self._classes = array("q"), array("i")
        self._values = array("d")  # y, x, confidence of each point
        if class_names is not None and len(self._numbers) < len(class_names):
            self.problem(f"{path}: classes", f"a name stands there twice: {', '.join(class_names)}")

    def problem(self, where: str, message: str) -> None:
        """Note a finding. More than enough of them end the reading."""
        self.problems.append(f"{where}: {message}")
        if len(self.problems) >= REPORTED:
            self._fail()

    def image(self, file: object, size: tuple[int, int] | None = None, *, where: str, again: bool = False) -> int:
        """Row of an image, -1 if it is refused. ``size`` is (height, width); ``again``: it may have come before."""
        if isinstance(file, str) and file in self._rows:
            if not again:
                self.problem(where, f"the image {file!r} stands there twice; give all its points once")
            return self._rows[file]
        if not isinstance(file, str) or not file:
            self.problem(where, f"file: {file!r}; expected the name of an image file")
            return -1
        if problem := plain_problem(file):
            self.problem(where, f"file: {file!r:.300} {problem}; expected a plain path below the folder of the images")
            return -1
        if size is not None:
            try:
                check_pixels(*size, "height, width")
            except UserError as error:
                self.problem(where, str(error))
                size = None
        self._sizes.extend(size or (0, 0))
        return self._rows.setdefault(file, len(self._rows))

    def point(self, row: int, x: object, y: object, name: object, confidence: object, where: str) -> None:
        """Add a point to the image ``row``."""
        name = class_name(name) if isinstance(name, str) else name
        number = self._numbers.get(name) if isinstance(name, str) else None
        if number is None and self.class_names is None and isinstance(name, str) and name:
            number = self._numbers[name] = len(self._numbers)
        if row < 0 or number is None:
            if number is None:
                known = "expected a class name" if self.class_names is None else expected_one_of(name, self.class_names)
                self.problem(where, f"class: {name!r:.100}; {known}")
            return
        height, width = self._sizes[2 * row], self._sizes[2 * row + 1]
        if (
            type(x) not in NUMBERS
            or type(y) not in NUMBERS
            or type(confidence) not in NUMBERS
            or not (0 <= x < (width or MOST_PIXELS) and 0 <= y < (height or MOST_PIXELS) and 0 <= confidence <= 1)  # type: ignore[operator]
        ):
            self._explain(where, x, y, confidence, (height, width))
            return
        self._image.append(row)
        self._classes.append(number)
        self._values.extend((y, x, confidence))  # type: ignore[arg-type]

    def finish(self) -> PointSet:
        """The columns.

        Raises:
            UserError: Lists what was found to be wrong.
        """
        if not self._rows:
            self.problem(f"{self.path}: images", f"lists no image; expected {FORMAT}")
        if self.problems:
            self._fail()
        names = list(self._numbers)
        order = sorted(range(len(names)), key=names.__getitem__) if self.class_names is None else range(len(names))
        numbers = np.empty(len(names), np.int32)
        numbers[list(order)] = np.arange(len(names))
        # asarray copies nothing and frombuffer refuses an empty buffer
        image, classes = np.asarray(self._image), np.asarray(self._classes)
        values = np.asarray(self._values).reshape(-1, 3).astype(np.float32)
        rank = self._once(image, classes, values)
        ends = np.cumsum(np.bincount(image[rank], minlength=len(self._rows)))
        return PointSet(
            self.path,
            tuple(names[k] for k in order),
            Packed(self._rows),
            torch.from_numpy(np.asarray(self._sizes).reshape(-1, 2).copy()),
            torch.from_numpy(ends.astype(np.int64)),
            torch.from_numpy(values[rank, :2]),
            torch.from_numpy(numbers[classes[rank]]),
            torch.from_numpy(values[rank, 2]),
        )

    def _once(self, image: Column, classes: Column, values: Column) -> Column:
        """Order of the points by image, without those at the place of another one of their class.

        Two points in one region would mean two objects, of which none gets a label.
        """
        rank = np.lexsort((np.arange(len(image)), values[:, 1], values[:, 0], classes, image))
        table = np.column_stack([image, classes, values[:, 0], values[:, 1]])[rank]
        again = np.zeros(len(rank), bool)
        again[1:] = (table[1:] == table[:-1]).all(1)
        if again.any():
            file = next(name for row, name in enumerate(self._rows) if row == image[rank[again][0]])
            warnings.warn(
                f"{self.path}: {again.sum()} points stand at the place of another one of their class, in {file} first; "
                "each place counts once",
                stacklevel=2,
            )
        kept = np.sort(rank[~again])
        order: Column = kept[np.argsort(image[kept], kind="stable")]
        return order

    def _explain(self, where: str, x: object, y: object, confidence: object, size: tuple[int, int]) -> None:
        for name, value, limit in (("x", x, size[1]), ("y", y, size[0])):
            if type(value) not in NUMBERS or math.isnan(value):  # type: ignore[arg-type]
                self.problem(where, f"{name}: {value!r}; expected a number of pixels")
            elif not 0 <= value < (limit or MOST_PIXELS):  # type: ignore[operator]
                whole = f"the image's {'width' if name == 'x' else 'height'}"
                side = f"< {limit}, {whole}" if limit else f"< {whole}"
                self.problem(where, f"{name}: {value!r}; expected 0 <= {name} {side}")
        if type(confidence) not in NUMBERS or not 0 <= confidence <= 1:  # type: ignore[operator]
            self.problem(where, f"confidence: {confidence!r}; expected a number in 0..1")

    def _fail(self) -> NoReturn:
        more = " (and perhaps more)" if len(self.problems) >= REPORTED else ""
        raise UserError("\n".join(self.problems) + more)


def read_points(path: Path, class_names: Sequence[str] | None = None) -> PointSet:
    """Points from a ``.json`` or ``.csv`` file of the documented form.

    Args:
        path: Of the file.
        class_names: The data set's classes, which number the points' classes then.

    Raises:
        FileNotFoundError: No such file.
        UserError: Names file, image and field of everything that is wrong, up to a limit.
    """
    with understood(path, FORMAT):
        points = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    return points if class_names is None else points.renumbered(class_names)


def _read_json(path: Path) -> PointSet:
    content = read_json(path, FORMAT)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path}: expected {FORMAT}; `bestie-pl points --help` lists formats that can be converted")
    names = content.get("classes")
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: classes: {names!r:.100}; expected a list of class names")
    builder = PointSetBuilder(path, check_class_names(names, f"{path}: classes"))
    for problem in _unknown(content, {"classes", "images"}):
        builder.problem(f"{path}: the file", problem)
    for number, image in enumerate(content["images"]):
        _add_image(builder, image, number)
    return builder.finish()


def _add_image(builder: PointSetBuilder, image: object, number: int) -> None:
    """Add an entry of ``images``; ``number`` stands for one that has no file name."""
    if not isinstance(image, dict):
        builder.problem(f"{builder.path}: images[{number}]", f"{image!r:.100}; expected an object with file and points")
        return
    entry = f"image {image['file']!r}" if isinstance(image.get("file"), str) else f"images[{number}]"
    where = f"{builder.path}: {entry}"
    if not image.keys() <= IMAGE_FIELDS:
        for problem in _unknown(image, IMAGE_FIELDS):
            builder.problem(where, problem)
    size = (image.get("height"), image.get("width"))
    if size != (None, None) and not all(type(side) is int and side > 0 for side in size):
        builder.problem(where, f"width, height: {size[1]!r}, {size[0]!r}; expected both in whole pixels, or neither")
        size = (None, None)
    row = builder.image(image.get("file"), None if size[0] is None else size, where=where)  # type: ignore[arg-type]
    points = image.get("points")
    if not isinstance(points, list):
        builder.problem(where, f"points: {points!r:.100}; expected a list, empty for an image without points")
        return
    for k, point in enumerate(points, 1):
        if not isinstance(point, dict) or not point.keys() <= POINT_FIELDS:
            at = f"{where}, point {k}"
            if not isinstance(point, dict):
                builder.problem(at, f"{point!r:.100}; expected an object with x, y and class")
                continue
            for problem in _unknown(point, POINT_FIELDS):
                builder.problem(at, problem)
        x, y, name = point.get("x"), point.get("y"), point.get("class")
        builder.point(row, x, y, name, point.get("confidence", 1), f"{where}, point {k}")


def _unknown(record: dict[str, Any], fields: set[str]) -> Iterator[str]:
    for name in sorted(record.keys() - fields):
        yield f"{name}: no field of this format; expected {', '.join(sorted(fields))}"


def _read_csv(path: Path) -> PointSet:
    builder, before, row = PointSetBuilder(path), None, -1
    file = str(path)  # once: there may be millions of lines
    for line, fields in csv_rows(path, HEADER, optional=1):
        image, x, y, name, confidence = (field.strip() for field in (*fields, "1")[:5])
        where = f"{file}: line {line}"
        if image != before:  # mostly an image's points stand together
            before, row = image, builder.image(image, where=where, again=True)
        if x or y or name:
            builder.point(row, _number(x), _number(y), name, _number(confidence or "1"), where)
    return builder.finish()


def csv_rows(path: Path, header: Sequence[str], *, optional: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each row of a CSV file behind its header, of which the last ``optional`` may be missing.

    Raises:
        FileNotFoundError: No such file.
        UserError: Another header, or a row of another length.
    """
    holds = f"a CSV file with the header {','.join(header)}"
    lines = csv_lines(read_text(path, holds), path)
    found = [name.strip() for name in next(lines, (0, []))[1]]
    if found not in [list(header[: len(header) - k]) for k in range(optional + 1)]:
        raise UserError(f"{path}: the first line is {','.join(found)!r:.200}; expected {','.join(header)}")
    for line, fields in lines:
        if len(fields) != len(found):
            raise UserError(f"{path}: line {line}: {len(fields)} columns; expected {len(found)}")
        yield line, fields


def _number(text: str) -> float | str:
    """The number that a text stands for, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def image_name(file: str) -> str:
    """The name of an image: its file without the suffix of an image, so that names with dots stay whole.

    Letters are composed, so that names from a Mac, where files have decomposed ones, are those from elsewhere.

    >>> image_name("sub/slide.1.png"), image_name("slide.1"), image_name("sub/.png")
    ('sub/slide.1', 'slide.1', 'sub/.png')
    """
    file = unicodedata.normalize("NFC", file)
    if not file.lower().endswith(IMAGE_SUFFIXES):
        return file
    stem = file[: file.rindex(".")]
    # a name of dots alone, as in ".jpg", has no suffix
    return stem if stem.rpartition("/")[2].strip(".") else file


def to_json(points: PointSet) -> str:
    """The documented form, an image a line."""
    yx, classes, scores = points.yx.tolist(), points.classes.tolist(), points.scores.tolist()
    lines = []
    for n, (file, (height, width)) in enumerate(zip(points.files, points.sizes.tolist(), strict=True)):
        rows = points.rows(n)
        own = [
            {"x": _short(x), "y": _short(y), "class": points.class_names[c]}
            | ({} if score == 1 else {"confidence": _short(score)})
            for (y, x), c, score in zip(yx[rows], classes[rows], scores[rows], strict=True)
        ]
        size = {"width": width, "height": height} if width else {}
        lines.append(json.dumps({"file": file, **size, "points": own}, ensure_ascii=False))
    names = json.dumps(points.class_names, ensure_ascii=False)
    return f'{{"classes": {names},\n"images": [\n' + ",\n".join(lines) + "\n]}\n"


def write_release(points: PointSet, folder: Path) -> None:
    """A text file an image, ``NAME.txt`` with lines ``x y class conf``: the release's format. Classes are numbers."""
    yx, classes, scores = points.yx.tolist(), points.classes.tolist(), points.scores.tolist()
    names = [image_name(file) for file in points.files]
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise UserError(
            f"{points.path}: two images are named {twice}, but for their suffix; rename one, or write JSON instead"
        )
    for n, name in enumerate(names):
        rows = points.rows(n)
        lines = (
            f"{_short(x)} {_short(y)} {c} {score:.3f}\n"
            for (y, x), c, score in zip(yx[rows], classes[rows], scores[rows], strict=True)
        )
        write_text(below(folder, f"{name}.txt"), "".join(lines))


def tag_csv(points: PointSet, tags: Iterable[Iterable[str]]) -> str:
    """A CSV file ``image,tags,split`` of the images, all in ``train``: names in ``tags`` and the points' classes."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "tags", "split"))
    classes = points.classes.tolist()
    for n, (file, more) in enumerate(zip(points.files, tags, strict=True)):
        names = {points.class_names[c] for c in classes[points.rows(n)]} | set(map(class_name, more))
        if unfit := [name for name in names if ";" in name]:
            raise UserError(f"{points.path}: image {file!r}: the class {unfit[0]!r} has a semicolon; rename it")
        # the last semicolon tells a name with a blank from two names
        writer.writerow((file, "".join(f"{name};" for name in sorted(names)), "train"))
    return text.getvalue()


def _short(value: float) -> float | int:
    """The shortest decimal number that a float32 is read from; whole numbers without a point."""
    shortest = float(str(np.float32(value)))
    return int(shortest) if shortest.is_integer() else shortest


def relative_file(path: str) -> str:
    r"""A path that another program wrote as one below the folder of the images: what leads out of it is left off.

    >>> relative_file("..\\images\\a.jpg"), relative_file("sub/./a.jpg"), relative_file("C:\\data\\a.jpg")
    ('a.jpg', 'sub/a.jpg', 'a.jpg')
    """
    path = posixpath.normpath(path.replace("\\", "/"))
    outside = path.startswith(("/", "../")) or path[1:2] == ":"
    return posixpath.basename(path) if outside else path
