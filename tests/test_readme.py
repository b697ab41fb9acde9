"""What the README says is what the repository holds and does: its commands and its Python run as printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from bestie_pl.cli.main import main
from bestie_pl.data.shapes import SHAPE_CLASSES

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
SHORT = {
    "fit": ["--trainer.max_steps=2", "--trainer.gradient_clip_val=20", "--model.init_args.backbone_weights=null"],
    "predict": [],
}
"""What is added to the README's commands so that they take seconds."""
SMALL = [
    "--data.init_args.crop_size=64",
    "--data.init_args.batch_size=4",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def test_it_is_short() -> None:
    assert len(README.encode()) < 12_000


def test_tables_show_the_result_files() -> None:
    """Of the README and of all pages in docs."""
    check = [sys.executable, "-m", "tools.tables", "--check"]
    result = subprocess.run(check, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_make_has_the_commands() -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(named) <= set(targets)


@pytest.fixture
def my_set(shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs and LabelMe files of a new user, beside the configurations."""
    for name in (shapes_folder / "ImageSets/Segmentation/train.txt").read_text().split():
        image = (shapes_folder / f"JPEGImages/{name}.jpg").read_bytes()
        for path in (tmp_path / "my_set/images" / f"{name}.jpg", tmp_path / "my_set/labels" / f"{name}.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my_set/images" / f"{name}.jpg").write_bytes(image)
        rows = [line.split() for line in (shapes_folder / f"Center_points/{name}.txt").read_text().splitlines()]
        shapes = [
            {"label": SHAPE_CLASSES[int(number)], "shape_type": "point", "points": [[float(x) + 0.5, float(y) + 0.5]]}
            for x, y, number, _ in rows
        ]
        content = {"imagePath": f"{name}.jpg", "imageHeight": 64, "imageWidth": 64, "shapes": shapes}
        (tmp_path / "my_set/labels" / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_set"


def test_its_commands_for_own_data_and_its_python_run(my_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "my_set" in block)
    for line in block.strip().splitlines():
        program, command, *arguments = shlex.split(line)
        assert program == "bestie-pl"
        short = [*SMALL, *SHORT[command]] if command in SHORT else []
        assert main([command, *arguments, *short]) == 0, line
    images = {path.stem for path in (my_set / "images").iterdir()}
    assert {path.stem for path in (my_set / "found/overlays").glob("*.png")} == images

    (code,) = re.findall(r"```python\n(.*?)\n```", README, re.DOTALL)
    quick: dict[str, Any] = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    monkeypatch.setattr(pl, "Trainer", partial(_quick, pl.Trainer, quick))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["module"].global_step == 1


def _quick(trainer: type[pl.Trainer], quick: dict[str, Any], **given: Any) -> pl.Trainer:
    return trainer(**{**given, **quick}, enable_progress_bar=False, enable_model_summary=False)
