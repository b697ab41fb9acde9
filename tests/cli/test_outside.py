"""No command writes beside what it was told to write, whatever names the files hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.cli.main import main
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.errors import UserError
from bestie_pl.structures import Instances

H, W = 24, 32


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """``home`` is the user's; ``theirs`` lies beside it and must not change. ``home/images/out`` links to it."""
    for name in ("home/images/a.png", "theirs/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H)).save(tmp_path / name)
    for name in ("b.json", "b.txt"):
        (tmp_path / "theirs" / name).write_text("precious")
    for folder in ("images", "output", "maps"):
        (tmp_path / "home" / folder).mkdir(exist_ok=True)
        (tmp_path / "home" / folder / "out").symlink_to(tmp_path / "theirs")
    return tmp_path


def state(world: Path, *but: str) -> dict[str, str]:
    """All files and folders but those that were named as output, with the hash of their content."""
    outputs = [world / name for name in but]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in world.rglob("*")
        if not any(path.is_relative_to(output) for output in outputs)
    }


def names(world: Path) -> list[str]:
    return [
        "../../theirs/b.png",
        str(world / "theirs" / "b.png"),
        "out/b.png",
        "..\\..\\theirs\\b.png",
        "images/../../x",
    ]


def coco(world: Path, name: str) -> Path:
    image = {"id": 1, "file_name": name, "height": H, "width": W}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [annotation]}
    (world / "home" / "all.json").write_text(json.dumps(content))
    return world / "home" / "all.json"


def config(world: Path, class_path: str, **settings: Any) -> str:
    path = world / "home" / "c.yaml"
    content = {
        "data": {"class_path": f"bestie_pl.{class_path}", "init_args": {"root": str(world / "home"), **settings}},
        "trainer": {"default_root_dir": str(world / "home" / "run"), "accelerator": "cpu", "logger": False},
        "model": {
            "class_path": "bestie_pl.BestieModule",
            "init_args": {"backbone": "mobilenetv3_small_050", "backbone_weights": None, "decoder": "pyramid"},
        },
    }
    path.write_text(json.dumps(content))
    return str(path)


FILES = {name: "images" for name in ("train_images", "val_images")}
FILES |= {name: "all.json" for name in ("train_annotations", "val_annotations")}


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("output", ["points.json", "output"])
def test_points(which: int, output: str, world: Path) -> None:
    path = coco(world, names(world)[which])
    before = state(world, "home/output", "home/points.json", "home/tags.csv")
    target, tags = world / "home" / output, world / "home" / "tags.csv"
    main(["points", str(path), "--from", "coco", "--output", str(target), "--tags", str(tags)])
    assert state(world, "home/output", "home/points.json", "home/tags.csv") == before


@pytest.mark.parametrize("which", range(5))
def test_coco_results(which: int, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = coco(world, names(world)[which])
    before = state(world, "home/results.json")
    output = str(world / "home" / "results.json")
    assert (
        main(
            [
                "coco-results",
                "--predictions",
                str(world / "home/output"),
                "--annotations",
                str(path),
                "--output",
                output,
            ]
        )
        == 2
    )
    assert "leads out of" in capsys.readouterr().err
    assert state(world, "home/results.json") == before and not (world / "home" / "results.json").exists()


@pytest.mark.parametrize("which", range(5))
def test_data_check(which: int, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(world, names(world)[which])
    given = ["--config", config(world, "COCODataModule", **FILES, semantic_source="ground_truth"), "--workers", "0"]
    before = state(world)
    assert main(["data", "check", *given]) == 1
    assert "leads out of" in capsys.readouterr().out
    assert state(world) == before


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2])
def test_predict(which: int, world: Path) -> None:
    coco(world, names(world)[which])
    given = config(world, "COCODataModule", **FILES, num_workers=0)
    before = state(world, "home/run")
    try:
        assert main(["predict", "--config", given]) != 0
    except SystemExit as stop:
        assert stop.code
    assert state(world, "home/run") == before


@pytest.mark.parametrize("which", range(5))
def test_every_data_module_refuses_such_names(which: int, world: Path) -> None:
    name, root = names(world)[which], world / "home"
    coco(world, name)
    data: Any = COCODataModule(str(root), **FILES)
    with pytest.raises(UserError, match="leads out of"):
        data.setup("validate")
        data.datasets["val"][0]
    (root / "tags.csv").write_text(f"image,tags,split\n{name},cat,train\n")
    with pytest.raises(UserError, match="leads out of"):
        data = FolderDataModule(str(root), predict_split="train")
        data.setup("predict")
        data.datasets["predict"][0]
    (root / "JPEGImages").symlink_to(root / "images")
    (root / "val_cls.txt").write_text(f"{name.removesuffix('.png')} 0\n")
    with pytest.raises(UserError, match="leads out of"):
        data = VOCDataModule(str(root))
        data.setup("predict")
        data.datasets["predict"][0]


@pytest.mark.parametrize("name", ["../theirs/b", "out/b", "a/../../x"])
def test_predictions_stay_in_their_folder(name: str, world: Path) -> None:
    """Whatever a data module of one's own calls its images."""
    before = state(world)
    trainer: Any = SimpleNamespace(default_root_dir=str(world / "home"), datamodule=None)
    writer = PredictionWriter(str(world / "home" / "output"))
    batch = SimpleNamespace(names=(name,))
    none = Instances((), torch.zeros(0, dtype=torch.int64), torch.zeros(0), (H, W))
    with pytest.raises(UserError, match="leads out of"):
        writer.write_on_batch_end(trainer, SimpleNamespace(), [none], None, batch, 0, 0)  # type: ignore[arg-type]
    assert state(world) == before


def test_state_sees_a_change(world: Path) -> None:
    before = state(world, "home/output")
    (world / "theirs" / "b.txt").write_text("changed")
    assert state(world, "home/output") != before
    assert np.asarray(Image.open(world / "theirs" / "b.png")).shape == (H, W, 3)
