"""``make demo``: the table of what the pipeline left."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tools import demo


def leave_stages(folder: Path) -> None:
    """What the pipeline leaves, as far as the table needs it."""
    scores = {"tags": ("test", 0.4), "full": ("test", 0.8), "tags_refined": ("test_pamr", 0.5)}
    scores["full_refined"] = ("test_pamr", 0.9)
    for stage in (*demo.TRAINED, *demo.TESTED):
        (folder / stage / "logs/version_0").mkdir(parents=True)
        (folder / stage / "logs/version_0/config.yaml").write_text("trainer:\n  max_steps: 30\n")
        (folder / f"{stage}.done.json").write_text('{"seconds": 10}')
        if stage in scores:
            prefix, value = scores[stage]
            content = {f"{prefix}/{name}": value for name in demo.SCORES} | {f"{prefix}/ap50/fish": 0.1}
            (folder / stage / "scores_test.json").write_text(json.dumps({"scores": content, "environment": {}}))
    (folder / "classifier/cue_report.json").write_text('{"thresholds": [{"threshold": 0.5}]}')
    for stage in ("classifier", "semantic"):
        (folder / stage / "semantic_maps.json").write_text('{"miou": 0.7}')
    for stage in ("tags", "full"):
        (folder / stage / "pictures").mkdir()
        for name in ("training", "test"):
            (folder / stage / "pictures" / f"{name}.png").write_bytes(b"picture")


def test_the_table_and_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_stages(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path)])
    demo.main()
    printed = capsys.readouterr().out
    assert "tags reach 50% of the mAP50 of full supervision" in printed and "60 s; scores in" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["map50"] == 0.4 and summary["refined_at_test"]["miou"] == 0.5
    assert summary["full_supervision"]["refined_at_test"]["map75"] == 0.9
    assert summary["steps"] == {"classifier": 30, "semantic": 30, "tags": 30}
    assert (tmp_path / "full_training.png").read_bytes() == b"picture"

    (tmp_path / "semantic.done.json").unlink()
    with pytest.raises(SystemExit, match=r"the stage semantic in .* is not done; `make demo` runs it"):
        demo.main()


def test_make_demo_runs_the_stages_that_the_table_needs() -> None:
    line = next(line for line in (demo.ROOT / "Makefile").read_text().splitlines() if "bestie-pl pipeline" in line)
    assert line.strip().endswith(demo.COMMAND)
    stages = yaml.safe_load((demo.ROOT / "configs/shapes/pipeline.yaml").read_text())["stages"]
    assert {*demo.TRAINED, *demo.TESTED} <= stages.keys()
