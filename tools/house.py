"""Draw the package as a text tree for docs/structure.md: a sentence a room, from the modules' own docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from experiments.runs import ROOT

PACKAGE = ROOT / "src/bestie_pl"
ROOMS = {
    "ops": "Pure functions on tensors: no state, no files, no Lightning",
    "models": "Networks: they hold weights; images in, maps out",
    "data": "Files to batches: decoding in workers, augmentation and pseudo labels on the device",
    "data/formats": "A file format each: what reads it and what writes it",
    "modules": "LightningModules, and what only they use: they connect, and log",
    "callbacks": "What a run writes beside its checkpoints",
    "cli": "The command line",
}
"""What a folder is for, where its ``__init__.py`` does not say."""


def drawn() -> str:
    """The tree as a Markdown code block.

    Raises:
        ValueError: A module or folder that says nothing of itself.
    """
    rows = list(_rows(PACKAGE, 1))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(["```", "src/bestie_pl/", *(f"{name:<{width}}{purpose}" for name, purpose in rows), "```"])


def _rows(folder: Path, depth: int) -> list[tuple[str, str]]:
    """Modules first, then folders, each with what it is for."""
    rows = []
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py" or folder == PACKAGE:
            rows.append(("  " * depth + path.name, _purpose(path)))
    for room in sorted(path.parent for path in folder.glob("*/__init__.py")):
        rows.append(("  " * depth + room.name + "/", _purpose(room / "__init__.py")))
        rows += _rows(room, depth + 1)
    return rows


def _purpose(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ROOMS.get(
        path.parent.relative_to(PACKAGE).as_posix() if path.name == "__init__.py" else ""
    )
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)}: says nothing of itself; give it a docstring of one line")
    return docstring.splitlines()[0].replace("``", "").rstrip(".")
