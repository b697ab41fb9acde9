"""Lay out the pages of the documentation site in ``build/pages``, where ``mkdocs.yml`` looks for them.

The README is the first page, the API's pages are listed from the package's public names, and links that lead from
``docs`` to the rest of the repository find it beside the pages.
"""

from __future__ import annotations

import re
import shutil

import bestie_pl
from experiments.runs import ROOT

PAGES = ROOT / "build/pages"
PARTS = {
    "Modules": "modules.",
    "Data": "data.",
    "Structures": "structures",
    "Networks": "models.",
    "Callbacks": "callbacks.",
    "Metrics": "metrics.",
}
"""Headings of the API's page, and the rooms whose public names stand below them."""


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    # the first page stands beside the others, not above them
    (PAGES / "index.md").write_text((ROOT / "README.md").read_text().replace("](docs/", "]("))
    for path in [ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        (PAGES / path.name).write_text(moved(path.read_text()))
    (PAGES / "api.md").write_text(api_page())
    for folder, kind in (("results", "*.png"), ("notebooks", "*.ipynb")):
        for path in sorted((ROOT / folder).rglob(kind)):
            target = PAGES / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def moved(text: str) -> str:
    """A page of ``docs`` whose links know that it now stands beside the rest."""
    return re.sub(r"\]\(\.\./README\.md(?=[)#])", "](index.md", text).replace("](../", "](")


def api_page() -> str:
    """Every public name by its room, for mkdocstrings to fill in."""
    lines = ["# API", "", "Everything that `from bestie_pl import …` finds."]
    left = dict(bestie_pl._HOME)
    for heading, room in PARTS.items():
        names = [name for name, home in left.items() if home.startswith(room)]
        lines += ["", f"## {heading}"]
        for name in names:
            lines += ["", f"::: bestie_pl.{left.pop(name)}.{name}"]
    if left:
        lines += ["", "## More"]
        for name, home in left.items():
            lines += ["", f"::: bestie_pl.{home}.{name}"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
