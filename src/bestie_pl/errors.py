"""What a user can put right: one kind of error, and the words that all such messages share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 20
"""How many names a message lists."""


class UserError(ValueError):
    """Something that the person who runs the program can put right; the command line shows its message alone.

    The message is one sentence that names file or field, what is wrong with it, and what to do. Files that are missing,
    forbidden or full disks raise Python's own ``OSError`` classes. Any other exception is a defect of the program and
    keeps its traceback.
    """


def expected_one_of(name: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: those that are, and which one was probably meant.

    >>> expected_one_of("Cat", ["cat", "dog"])
    "expected one of cat, dog (did you mean 'cat'?)"
    """
    names = list(known)
    folded = {text.casefold(): text for text in reversed(names)}
    close = get_close_matches(str(name).strip().casefold(), folded, n=1, cutoff=0.6)
    meant = f" (did you mean {folded[close[0]]!r}?)" if close else ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"expected one of {', '.join(names[:LISTED])}{more}{meant}"
