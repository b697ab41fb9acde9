"""What is wrong with a configuration is said in one sentence that names the setting, with the nearest right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bestie_pl.cli import main as cli
from bestie_pl.cli.messages import in_a_sentence
from bestie_pl.modules.bestie import BestieModule, Inference
from bestie_pl.modules.optimization import Optimization
from bestie_pl.modules.semantic import SemanticModule

TRAINING: dict[str, Any] = {
    "data": {"class_path": "bestie_pl.FolderDataModule", "init_args": {"root": "nowhere"}},
    "model": {"class_path": "bestie_pl.BestieModule", "init_args": {"optimization": {"lr": 0.1}}},
    "trainer": {"accelerator": "cpu", "max_steps": 2},
}


def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, value: Any) -> str:
    """What `fit` prints when one setting is another one."""
    content = yaml.safe_load(yaml.safe_dump(TRAINING))
    *sections, last = setting.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    content["trainer"].setdefault("default_root_dir", str(tmp_path / "run"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    try:
        status = cli.main(["fit", "--config", str(tmp_path / "c.yaml")])
    except SystemExit as stop:
        status = int(stop.code or 0)
    message = capsys.readouterr().err
    assert status == 2 and "Traceback" not in message
    (line,) = [line for line in message.splitlines() if line.startswith("bestie-pl: error: ")]
    return line.removeprefix("bestie-pl: error: ")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "trainer.max_step",
            3,
            "trainer.max_step: .*; did you mean 'trainer.max_steps'?",
        ),
        ("trainr.accelerator", "cpu", "trainr.accelerator: .*; did you mean 'trainer.accelerator'?"),
        ("data.init_args.batch_sizes", 3, "data.init_args.batch_sizes: FolderDataModule .*did you mean 'batch_size'?"),
        ("model.init_args.lr", 0.1, "model.init_args.lr: BestieModule has no .*; did you mean 'optimization.lr'?"),
        (
            "model.init_args.optimization.lrr",
            1,
            "model.init_args.optim.*; did you mean 'optimization.lr'?",
        ),
        ("model.init_args.decoder", "piramid", "model.init_args.decoder: 'piramid'; .*(did you mean 'pyramid'?)"),
        (
            "model.class_path",
            "bestie_pl.BestyModule",
            "model.class_path: .*; did you mean 'BestieModule'?",
        ),
        ("data.class_path", "FolderDatModule", "data.class_path: no class .*; did you mean 'FolderDataModule'?"),
        ("trainer.callbacks", [{"class_path": "PredictionWritr"}], ".*did you mean 'PredictionWriter'?"),
        ("trainer.logger", {"class_path": "CSVLoger"}, "trainer.logger.class_path: .*did you mean 'CSVLogger'?"),
        ("trainer.max_steps", "many", "trainer.max_steps: 'many'; expected a whole number"),
        ("data.init_args", {}, "data.init_args.root must be given; add it to the configuration .*"),
        (
            "trainer.default_root_dir",
            "/proc/no",
            "/proc/no: the folder of a run .*; give another .*",
        ),
    ],
)
def test_a_sentence_names_the_setting_and_the_nearest_one(
    setting: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(tmp_path, capsys, setting, value)
    start, end = (message.split(".*") + [""])[0], message.rpartition(".*")[2]
    assert found.startswith(start) and found.endswith(end), found


@pytest.mark.parametrize("setting", ["num_workers", "max_unreadable", "crop_size", "batch_size"])
def test_numbers_out_of_range_are_told_before_anything_starts(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bestie_pl.data.shapes import ShapesDataModule

    with pytest.raises(ValueError, match=f"expected {setting} >= ., got -1"):
        ShapesDataModule(str(tmp_path), **{setting: -1})


def test_what_is_of_no_known_kind_stays() -> None:
    message = 'Parser key "a":\n  Errors:\n    - Something else\n    - Wanted a number\n  Given value: 3'
    assert in_a_sentence("something new", ["a"], []) == "something new"
    assert "Something else" in in_a_sentence(message, ["a"], [])
    assert in_a_sentence("unrecognized arguments: --bach 3", ["batch"], []).endswith("did you mean 'batch'?")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimization(lr=-0.1), "lr must be positive, got -0.1"),
        (lambda: Inference(pamr_iterations=-1), "pamr_iterations must not be negative, got -1"),
        (
            lambda: BestieModule(2, refine_threshold=5.0),
            "expected 0 < refine_threshold < 1 .*, got 5.0",
        ),
        (lambda: BestieModule(2, max_centers=0), "max_centers >= 1, got 0.3 and 0"),
        (lambda: SemanticModule(2, pamr_iterations=-1), "pamr_iterations must not be negative, got -1"),
    ],
)
def test_numbers_of_the_model_that_make_no_sense(make: Callable[[], object], message: str) -> None:
    """Before a network is made, not after the training."""
    with pytest.raises(ValueError, match=message):
        make()
