"""Cues of one image as a text file in the release's format: lines ``x y class conf``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bestie_pl.data.files import read_text
from bestie_pl.errors import UserError
from bestie_pl.structures import Cues


def read_cues(path: Path, size: tuple[int, int], num_classes: int) -> Cues:
    """Points of one image, from lines of ``x y class conf``; an empty file means "no point". All have ``image`` 0.

    Source: release-format text files; ``class`` counts from 0, ``conf`` is in [0, 1] (1 for given points).

    Raises:
        FileNotFoundError: No such file.
        UserError: A line that is not four numbers, lies outside the image of ``size``, or has an unknown class.
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
    """y, x, class and confidence of one line ``x y class conf``; raises UserError as ``read_cues`` does."""
    where, fields = line
    try:
        x, y, index, conf = (float(field) for field in fields)
    except ValueError:
        raise UserError(f"{where}: found {' '.join(fields)!r}; expected four numbers, `x y class conf`") from None
    for axis, value, limit, side in (("x", x, size[1], "wide"), ("y", y, size[0], "high")):
        if not 0 <= value < limit:
            raise UserError(
                f"{where}: {axis}={value:g} is outside the {limit} px {side} image; expected 0 <= {axis} < {limit}"
            )
    if not (index.is_integer() and 0 <= index < num_classes):
        raise UserError(f"{where}: class {fields[2]}; expected a whole number in 0..{num_classes - 1}")
    if not 0 <= conf <= 1 or math.isnan(conf):
        raise UserError(f"{where}: confidence {fields[3]}; expected a number in 0..1, 1 for a given point")
    # a fraction past the centre of the last pixel still belongs to that pixel
    return min(y, size[0] - 1), min(x, size[1] - 1), index, conf


def format_cues(cues: Cues) -> str:
    r"""The cues of one image as lines ``x y class conf``.

    >>> import torch
    >>> one = torch.tensor([2])
    >>> format_cues(Cues(one, torch.tensor([[7.0, 30.0]]), one, torch.tensor([0.9994])))
    '30 7 2 0.999\n'
    """
    rows = zip(cues.yx.tolist(), cues.classes.tolist(), cues.scores.tolist(), strict=True)
    return "".join(f"{x:g} {y:g} {number} {score:.3f}\n" for (y, x), number, score in rows)
