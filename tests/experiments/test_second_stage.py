"""Table 1 on shapes: what the experiment runs, and what it writes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from bestie_pl import BestieModule
from experiments import both_modules, second_stage, test_time
from experiments.runs import add_seed


def test_the_table_has_a_row_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[list[str]] = []

    def pipeline(line: list[str]) -> int:
        lines.append(line)
        folder = Path(line[line.index("--folder") + 1])
        content = yaml.safe_load((folder / "pipeline.yaml").read_text())
        seed = int(content["options"][-1].removeprefix("--seed_everything="))
        fits = [word for stage in content["stages"].values() for word in stage["commands"] if word.startswith("fit ")]
        assert fits and all(word.endswith(" --trainer.max_steps=7") for word in fits)
        for stage in ("tags", "tags_second"):
            (folder / stage / "logs/version_0").mkdir(parents=True)
            (folder / stage / "logs/version_0/config.yaml").write_text("trainer:\n  max_steps: 7\n")
            scores = {f"test/{metric}": 0.1 * seed + (stage == "tags_second") * 0.2 for metric in second_stage.METRICS}
            (folder / stage / "scores_test.json").write_text(json.dumps({"scores": scores}))
            (folder / f"{stage}.done.json").write_text('{"seconds": 3}')
        (folder / "tags_labels").mkdir()
        (folder / "tags_labels/labels.report.json").write_text('{"labels": 9, "quality": {"precision": 0.5}}')
        return 0

    monkeypatch.setattr(second_stage, "bestie", pipeline)
    output = tmp_path / "table1.json"
    options = ["--seeds", "1", "2", "--rows", "tags", "tags_second", "--steps", "7"]
    monkeypatch.setattr(sys, "argv", ["x", *options, "--runs", str(tmp_path / "runs"), "--output", str(output)])
    second_stage.main()
    assert [line[-2:] for line in lines] == [["tags", "tags_second"]] * 2
    content = json.loads(output.read_text())
    before, after = content["rows"]
    assert before["values"] == pytest.approx([0.1, 0.2]) and after["values"] == pytest.approx([0.3, 0.4])
    assert after["all"]["map75"] == pytest.approx([0.3, 0.4]) and after["mean"] == pytest.approx(0.35)
    assert after["by_seed"][0]["labels"] == {"number": 9, "precision": 0.5} and "labels" not in before["by_seed"][0]
    assert "--steps 7" in content["command"] and content["environment"]["torch"]


def test_its_rows_are_stages_of_the_pipeline() -> None:
    stages = yaml.safe_load((second_stage.ROOT / "configs/shapes/pipeline.yaml").read_text())["stages"]
    assert {*second_stage.ROWS, *second_stage.LABELS.values()} <= stages.keys()


def test_a_table_grows_by_seeds_and_keeps_the_rows_of_other_calls(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    add_seed(table, 2, {"a": {"map50": 0.4}, "b": {"map50": 0.1}}, command="x", seconds={"fit": 2.0})
    add_seed(table, 1, {"a": {"map50": 0.2}, "b": None, "c": None}, command="x", seconds={"fit": 1.0})
    rows = add_seed(table, 2, {"a": {"map50": 0.6}, "b": None}, command="x", settings={"a": ["--option"]})
    assert json.loads(table.read_text())["rows"] == rows
    assert [(row["name"], row["seeds"], row["values"]) for row in rows] == [
        ("a", [1, 2], [0.2, 0.6]),
        ("b", [2], [0.1]),
    ]
    assert rows[0]["mean"] == pytest.approx(0.4) and rows[0]["std"] == pytest.approx(0.2828427)
    assert rows[1]["std"] is None and rows[0]["settings"] == ["--option"]


def test_studies_give_settings_that_there_are() -> None:
    module = BestieModule(1, **both_modules.MODEL, backbone_weights=None)
    assert module.geometry.sigma == 16 and module.lr == 0.008
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=BestieModule)
    given = ["--model=bestie_pl.BestieModule", "--model.num_classes=1"]
    for options in test_time.ROWS.values():
        read = parser.parse_args([*given, *options]).model.init_args.inference
        assert read.average_offsets is (False if test_time.TWO_MAPS in options else None)
