"""The semantic round, imported maps and what starts from them, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = ["train_images=16", "val_images=5", "test_images=5", "image_size=64", "clutter=1", "generator_seed=0"]


def run(*arguments: str) -> None:
    from bestie_pl.cli.lightning import run

    run(list(arguments))


def arguments(root: Path, folder: Path, *more: str) -> list[str]:
    data = [*SIZES, "crop_size=64", "batch_size=2", "num_workers=0", f"root={root}", *more]
    trainer = ["accelerator=cpu", "devices=1", f"default_root_dir={folder}"]
    return [*(f"--data.init_args.{d}" for d in data), *(f"--trainer.{t}" for t in trainer)]


@pytest.fixture
def root(shapes_folder: Path, tmp_path: Path) -> Path:
    """The scenes, and maps and cues as a classifier would have left them."""
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_folder, folder)
    shutil.copytree(folder / "WSSS_maps", folder / "CAM_maps")
    shutil.copytree(folder / "Center_points", folder / "Peak_points")
    return folder


def test_the_semantic_round_and_a_training_that_starts_from_it(root: Path, tmp_path: Path) -> None:
    semantic = ["--config", "configs/shapes/semantic.yaml", *arguments(root, tmp_path / "semantic")]
    weights = "--model.init_args.backbone_weights=null"
    run("fit", *semantic, weights, "--trainer.max_steps=2")
    run("predict", *semantic, "--ckpt_path=last")
    maps = sorted(path.name for path in (root / "Retrained_maps").glob("*.png"))
    assert maps == [f"train_{n:06}.png" for n in range(16)]
    assert not (tmp_path / "semantic" / "predictions").exists()
    report = json.loads((tmp_path / "semantic" / "semantic_maps.json").read_text())
    assert report["figures"]["tag_precision"] == 1 and 0 <= report["figures"]["agreement_with_earlier"] <= 1
    assert 0 < report["miou"] < 1 and report["settings"]["refine"] == "pamr"
    run("test", *semantic, "--ckpt_path=last")
    scores = json.loads((tmp_path / "semantic" / "scores_test.json").read_text())["scores"]
    assert {"test/miou", "test_pamr/miou"} <= set(scores)

    made = ["semantic_dir=Retrained_maps", "cues_dir=Peak_points", "supervision=tags"]
    bestie = ["--config", "configs/shapes/points.yaml", *arguments(root, tmp_path / "bestie", *made)]
    first = str((tmp_path / "semantic" / "checkpoints" / "last.ckpt").resolve())
    run("fit", *bestie, f"--model.init_args.init_from={first}", "--trainer.max_steps=2")
    run("test", *bestie, "--ckpt_path=last", "--model.init_args.inference.refine=pamr")
    content = json.loads((tmp_path / "bestie" / "scores_test.json").read_text())
    assert content["inference"]["refine"] == "pamr"
    assert content["scores"] and all(name.startswith("test_pamr/") for name in content["scores"])


def test_maps_of_another_source_are_imported(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = ["moon", "fish", "lock", "beetle", "kite"]
    table = np.array([0, 2, 3, 4, 5, 1], np.uint8)
    for path in (root / "SegmentationClass").glob("train_*.png"):
        values = np.asarray(Image.open(path))
        np.save(source / f"{path.stem}.npy", np.eye(6, dtype=np.float32)[table[values]].transpose(2, 0, 1))
    run(
        *("predict", "--data", "ShapesDataModule", "--model", "ImportedMaps"),
        *(f"--model.init_args.folder={source}", f"--model.init_args.source_classes={json.dumps(names)}"),
        "--model.init_args.scores=probabilities",
        *arguments(root, tmp_path / "run", "predict_split=train", "supervision=tags", "label_quality=true"),
    )
    assert json.loads((tmp_path / "run" / "semantic_maps.json").read_text())["miou"] == 1


def test_the_configuration_for_photographs_runs(real_data: Path, tmp_path: Path) -> None:
    """On maps of background: photographs come with tags only."""
    made = tmp_path / "maps"
    made.mkdir()
    cues = tmp_path / "cues"
    cues.mkdir()
    for path in (real_data / "voc_small" / "JPEGImages").iterdir():
        Image.new("L", Image.open(path).size).save(made / f"{path.stem}.png")
        (cues / f"{path.stem}.txt").write_text("")
    run(
        *("fit", "--config", "configs/voc_small/semantic.yaml", f"--data.init_args.root={real_data / 'voc_small'}"),
        *(f"--data.init_args.semantic_dir={made}", f"--data.init_args.cues_dir={cues}"),
        *("--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--data.init_args.crop_size=64"),
        *("--model.init_args.backbone_weights=null", f"--trainer.default_root_dir={tmp_path}"),
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.fast_dev_run=true"),
    )
