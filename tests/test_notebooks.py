"""The notebooks run from top to bottom and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIE_NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("BESTIE_NOTEBOOK_DATA", str(tmp_path / "shapes"))
    _small_data(monkeypatch)
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert cell["outputs"] == [] and cell["execution_count"] is None


def _small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty scenes instead of 1,300."""
    from bestie_pl.data.shapes import ShapesDataModule

    generate = ShapesDataModule.prepare_data

    def prepare_few(self: ShapesDataModule) -> None:
        self.generator |= {"train": 32, "val": 4, "test": 4}
        generate(self)

    monkeypatch.setattr(ShapesDataModule, "prepare_data", prepare_few)
