"""From predictions to a second stage with the command line: labels, a Mask R-CNN on them, its scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.cli.main import main
from bestie_pl.data.shapes import ShapesDataModule

SIZES = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}


def predict_the_truth(root: Path, folder: Path) -> int:
    """True instances of the training images as predictions, and how many."""
    data = ShapesDataModule(str(root), **SIZES, supervision="full", semantic_source="ground_truth")
    split = data.open_split("train")
    assert split.truth is not None
    trainer: Any = SimpleNamespace(default_root_dir=str(folder))
    module: Any = SimpleNamespace(class_names=data.class_names)
    count = 0
    for index, name in enumerate(split.names):
        truth = split.truth(index, (64, 64)).instances
        count += len(truth)
        batch = SimpleNamespace(names=(name,))
        PredictionWriter(str(folder)).write_on_batch_end(trainer, module, (truth,), None, batch, 0, 0)
    return count


@pytest.mark.parametrize("supervision", ["tags", "points"])
def test_labels_then_a_detector_that_learns_them(supervision: str, shapes_folder: Path, tmp_path: Path) -> None:
    count = predict_the_truth(shapes_folder, tmp_path / "predictions")
    shared = ["--data.init_args.num_workers=0", f"--data.init_args.root={shapes_folder}", "--data.init_args.clutter=1"]
    shared += ["--data.init_args.generator_seed=0", f"--data.init_args.supervision={supervision}"]
    shared += [f"--data.init_args.{name}={size}" for name, size in SIZES.items()]
    shared += ["--data.init_args.semantic_dir=WSSS_maps", "--data.init_args.min_area=1"]
    line = ["labels", "--config", "configs/shapes/points.yaml", *shared, "--data.init_args.label_quality=true"]
    labels = tmp_path / "labels.json"
    assert main([*line, "--predictions", str(tmp_path / "predictions"), "--output", str(labels)]) == 0
    report = json.loads((tmp_path / "labels.report.json").read_text())
    # objects that others cover in part may hide a point, or have none of their own pixels left to hold it
    assert 0.8 * count <= report["labels"] <= count and report["quality"]["precision"] > 0.95
    assert (report["points_without_labels"] is None) == (supervision == "tags")

    fit = ["--config", "configs/shapes/mask_rcnn.yaml", *shared, f"--data.init_args.labels_from={labels}"]
    fit += ["--data.init_args.batch_size=2", "--data.init_args.crop_size=64", "--model.init_args.width=16"]
    fit += ["--model.init_args.settings={min_size: 64, box_batch_size_per_image: 16}"]
    fit += ["--model.init_args.backbone_weights=null", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1"]
    if supervision == "tags":
        fit.append("--data.init_args.label_weights=true")
    assert main(["fit", *fit, "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]) == 0
    assert main(["test", *fit, "--ckpt_path=last"]) == 0
    scores = json.loads((tmp_path / "scores_test.json").read_text())
    assert scores["supervision"] == supervision and scores["ground_truth_used"] == []
    assert "test/map50" in scores["scores"]


def test_predictions_of_which_none_becomes_a_label(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A detector would learn from them that nothing is an object."""
    predict_the_truth(shapes_folder, tmp_path / "predictions")
    for file in (tmp_path / "predictions").glob("*.json"):
        file.write_text("[]")
    line = ["labels", "--config", "configs/shapes/tags.yaml", f"--data.init_args.root={shapes_folder}"]
    line += [
        "--data.init_args.clutter=1",
        "--data.init_args.generator_seed=0",
        "--data.init_args.semantic_dir=WSSS_maps",
    ]
    line += [f"--data.init_args.{name}={size}" for name, size in SIZES.items()]
    line += ["--predictions", str(tmp_path / "predictions"), "--output", str(tmp_path / "labels.json")]
    assert main(line) == 2
    assert "none of the predictions for 16 images becomes a label" in capsys.readouterr().err
    assert not (tmp_path / "labels.json").exists()
