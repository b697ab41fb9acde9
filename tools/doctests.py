"""Show the examples of docstrings as code on the documentation site: an extension of its reader of sources (griffe)."""

from __future__ import annotations

import re
from typing import Any

import griffe


def fenced(docstring: str) -> str:
    """A docstring whose examples, which begin with ``>>>`` and end at an empty line, stand in blocks of code.

    >>> print(fenced("What it does.\\n\\n>>> 1 + 1\\n2").replace("`", "'"))
    What it does.
    <BLANKLINE>
    '''pycon
    >>> 1 + 1
    2
    '''
    """
    return re.sub(r"^>>> .*?(?=\n[ \t]*\n(?!>>> )|\Z)", r"```pycon\n\g<0>\n```", docstring, flags=re.DOTALL | re.MULTILINE)


class Doctests(griffe.Extension):
    """Applies ``fenced`` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
