"""Show the examples of docstrings as code on the documentation site: an extension of its reader of sources (griffe)."""

from __future__ import annotations

import re
from typing import Any

import griffe


def fenced(docstring: str) -> str:
    """A docstring whose examples, which begin with ``>>>`` and end at an empty line, stand in blocks of code."""
    example = r"^>>> .*?(?=\n[ \t]*\n(?!>>> )|\Z)"
    return re.sub(example, r"```pycon\n\g<0>\n```", docstring, flags=re.DOTALL | re.MULTILINE)


class Doctests(griffe.Extension):
    """Applies ``fenced`` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
