"""Names of classes: one rule for all files, and how many there may be."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from bestie_pl.errors import UserError

MOST_CLASSES = 254
"""A semantic map has 8 bits: 0 is background, 255 ignore, and ``c + 1`` class ``c``."""


@lru_cache(4096)  # files repeat few names millions of times
def class_name(text: str) -> str:
    """A class name as all readers take it: letters composed, no blanks at its ends, one between words.

    Case counts: ``Cell`` and ``cell`` are two classes, of which ``alike`` tells.

    >>> class_name("  cell   body ")
    'cell body'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_class_names(names: Sequence[object], where: str = "class_names") -> tuple[str, ...]:
    """The names as ``class_name`` writes them.

    Raises:
        UserError: None at all, one that is no text or empty, one twice, or more than maps can tell apart.
    """
    for name in names:
        if not isinstance(name, str) or not class_name(name):
            raise UserError(
                f"{where}: {name!r} is no name; quote it if it is one: YAML takes yes, no, on and off for truth values"
            )
    plain = [class_name(str(name)) for name in names]
    if twice := next((name for n, name in enumerate(plain) if name in plain[:n]), None):
        raise UserError(f"{where}: {twice!r} stands there twice; give each class once")
    if not 1 <= len(plain) <= MOST_CLASSES:
        raise UserError(
            f"{where}: {len(plain)} classes; expected 1..{MOST_CLASSES}: semantic maps have 8 bits, so leave out or "
            "join classes"
        )
    return tuple(plain)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ by no more than case and what stands between words: typing errors, mostly.

    >>> alike(["cell", "Cell", "cell wall", "cell_wall", "dog"])
    [('cell', 'Cell'), ('cell wall', 'cell_wall')]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(filter(str.isalnum, name.casefold())) or name, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
