"""The notebooks run from top to bottom, with fewer images and steps, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SHAPES = "16"
PHOTOGRAPHS = "8"
"""How many images, of scenes of 128 px and of larger ones."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    real = any("BESTIE_DATA" in line for cell in cells for line in cell["source"])
    if real:
        monkeypatch.setenv("BESTIE_DATA", str(request.getfixturevalue("real_data")))
    monkeypatch.setenv("BESTIE_NOTEBOOK_IMAGES", PHOTOGRAPHS if real else SHAPES)
    monkeypatch.setenv("BESTIE_NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("BESTIE_NOTEBOOK_FOLDER", str(tmp_path))
    monkeypatch.chdir(REPOSITORY / "notebooks")
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        assert cell["outputs"] == [] and cell["execution_count"] is None
