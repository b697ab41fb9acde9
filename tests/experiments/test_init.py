"""What ``init`` writes beside the defaults: the commands of both sides, and shapes as somebody's own folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bestie_pl.data.annotation_tools.readers import read_marked
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.truth import COCOTruth
from experiments import init


@pytest.mark.parametrize("name", init.TASKS)
def test_both_sides_train_for_as_many_steps(name: str, tmp_path: Path) -> None:
    task = init.TASKS[name]
    steps = {}
    for side in init.SIDES:
        lines = list(init.lines(tmp_path, task, side, steps=100, seed=4))
        words = [word for line in lines for word in line.words]
        steps[side] = sum(int(word.partition("=")[2]) for word in words if word.startswith("--trainer.max_steps="))
        assert lines[-1].verb == "test" and all("--seed_everything=4" in line.words for line in lines)
        fitted = [line.stage for line in lines if line.verb == "fit"]
        assert [line.stage for line in lines if "--ckpt_path=last" in line.words] == fitted
    assert steps["init"] == steps["default"] >= 100


def test_what_ended_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    for link in init.TASKS["nuclei"].links:
        (data / link).mkdir(parents=True)
    calls: list[tuple[str, str]] = []

    def command(verb: str, *words: str, **more: Any) -> None:
        side = next(part for word in words for part in Path(word.rpartition("=")[2]).parts if part in init.SIDES)
        calls.append((verb, side))
        if verb == "fit" and side == "default" and calls.count((verb, side)) == 1:
            raise SystemExit("interrupted")
        if verb == "test":
            scores = {f"test/{metric}": 0.5 for metric in init.METRICS}
            path = tmp_path / "runs/nuclei/seed1" / side / "runs/instances/scores_test.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"scores": scores, "environment": {"device": "none"}}))

    monkeypatch.setattr(init, "command", command)
    output = tmp_path / "init.json"
    options = ["nuclei", str(data), "--jobs", "1", "--runs", str(tmp_path / "runs"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    with pytest.raises(SystemExit, match="interrupted"):
        init.main()
    init.main()
    assert calls == [
        *(("init", "init"), ("fit", "init"), ("test", "init"), ("init", "default"), ("fit", "default")),
        *(("fit", "default"), ("test", "default")),
    ]
    content = json.loads(output.read_text())
    assert content["scores"]["init"]["map50"] == 0.5 and content["steps"] == 100
    assert set(content["seconds"]["default"]) == {"instances, fit", "instances, test"}


def test_shapes_as_a_folder(shapes_folder: Path, tmp_path: Path) -> None:
    root = init.shapes_folder(shapes_folder, tmp_path / "set")
    marked = read_marked([root / "instances_train.json"], "coco")
    for image in marked.images:
        given = (shapes_folder / "Center_points" / f"{Path(image.file).stem}.txt").read_text().split("\n")
        points = {tuple(int(v) for v in line.split()[:3]) for line in given if line}
        names = list(marked.class_names or ())
        assert {(int(x), int(y), names.index(label)) for label, (x, y), _, _ in image.objects} == points
    (root / "tags.csv").write_text("image,tags,split\n" + "".join(f"{i.file},fish;,train\n" for i in marked.images))
    classes = list(marked.class_names or ())
    data = FolderDataModule(str(root), annotations="instances_{split}.json", class_names=classes, val_split="train")
    truth = data.open_split("val").truth
    assert isinstance(truth, COCOTruth)
    found = truth(0, (64, 64))
    assert len(found.instances) == len(marked.images[0].objects) and found.semantic.dtype == torch.uint8
