"""The classifier on the command line: from images and tags to cues that a training reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--data.init_args.crop_size=64",
    "--data.init_args.batch_size=2",
    "--data.init_args.num_workers=0",
    "--model.init_args.backbone_weights=null",
]
SHAPES = [
    f"--data.init_args.{size}"
    for size in ("train_images=16", "val_images=5", "test_images=5", "image_size=64", "clutter=1", "generator_seed=0")
]


def run(*arguments: str) -> None:
    from bestie_pl.cli.lightning import run

    run([str(argument) for argument in arguments])


@pytest.fixture
def root(shapes_folder: Path, tmp_path: Path) -> Path:
    """A copy that cues may be written into."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "shapes"))


def test_fit_test_and_predict_write_cues_that_training_reads(root: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(REPOSITORY / "configs/shapes/classifier.yaml"), *SMALL, *SHAPES]
    arguments += [f"--data.init_args.root={root}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    run("fit", *arguments, "--trainer.max_steps=2")
    run("test", *arguments, "--ckpt_path=last")
    scores = json.loads((tmp_path / "run" / "scores_test.json").read_text())
    assert scores["supervision"] == "tags" and scores["ground_truth_used"] == []
    assert {"test/map", "test/f1"} <= set(scores["scores"])

    run("predict", *arguments, "--ckpt_path=last")
    names = [line.split()[0] for line in (root / "train_cls.txt").read_text().splitlines()]
    assert sorted(path.stem for path in (root / "Peak_points").glob("*.txt")) == sorted(names)
    report = json.loads((tmp_path / "run" / "cue_report.json").read_text())
    assert report["images"] == report["measured_images"] == 16 and report["settings"]["pooling"] == "ngwp"
    assert not (tmp_path / "run" / "predictions").exists()

    points = ["--config", str(REPOSITORY / "configs/shapes/points.yaml"), *SMALL, *SHAPES]
    points += [f"--data.init_args.root={root}", f"--trainer.default_root_dir={tmp_path / 'bestie'}"]
    run("fit", *points, "--data.init_args.supervision=tags", "--trainer.fast_dev_run=true")


@pytest.mark.parametrize("alpha", ["0.0", "0.5"])
def test_the_releases_configuration_runs_on_generated_data(root: Path, tmp_path: Path, alpha: str) -> None:
    """The settings with a small network; cues of the split that it trains on."""
    (root / "train_cls.txt").rename(root / "train_aug_cls.txt")
    arguments = ["--config", str(REPOSITORY / "configs/voc/classifier.yaml"), *SMALL]
    arguments += [f"--data.init_args.root={root}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    arguments += ["--model.init_args.backbone=mobilenetv3_small_100", f"--model.init_args.alpha={alpha}"]
    run("fit", *arguments, "--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1")
    run("predict", *arguments, "--ckpt_path=last")
    assert len(list((root / "Peak_points").glob("*.txt"))) == 16


def test_the_configuration_for_photographs_runs(real_data: Path, tmp_path: Path) -> None:
    """Images of many sizes, of which validation images have no object masks."""
    arguments = ["--config", str(REPOSITORY / "configs/voc_small/classifier.yaml"), *SMALL]
    arguments += [f"--data.init_args.root={real_data / 'voc_small'}", f"--trainer.default_root_dir={tmp_path}"]
    arguments += ["--model.init_args.backbone=mobilenetv3_small_100", "--model.init_args.width=16"]
    run("fit", *arguments, "--trainer.max_steps=1", "--trainer.limit_val_batches=4", "--trainer.val_check_interval=1")
    cues = [
        f"--trainer.callbacks=[{{class_path: CueWriter, init_args: {{output_dir: {tmp_path / 'cues'}}}}}]",
        "--trainer.limit_predict_batches=3",
    ]
    run("predict", *arguments, *cues, "--ckpt_path=last")
    assert len(list((tmp_path / "cues").glob("*.txt"))) == 3
