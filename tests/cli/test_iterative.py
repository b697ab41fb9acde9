"""Iterative training on the command line: train, predict the training images, train on what was predicted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from bestie_pl.data.generator.dataset import SHAPE_CLASSES

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = ("--config", str(REPOSITORY / "configs/labels.yaml"))


def run(*arguments: str) -> None:
    from bestie_pl.cli.lightning import run

    run(list(arguments))


def arguments(config: str, root: Path, folder: Path, *more: str) -> list[str]:
    sizes = ["train_images=16", "val_images=5", "test_images=5", "image_size=64", "clutter=1", "generator_seed=0"]
    data = [*sizes, "crop_size=64", "batch_size=4", "num_workers=0", f"root={root}", "supervision=tags", *more]
    trainer = ["accelerator=cpu", "devices=1", "limit_val_batches=0", f"default_root_dir={folder}"]
    return [
        *("--config", str(REPOSITORY / f"configs/shapes/{config}.yaml"), "--model.init_args.backbone_weights=null"),
        *(f"--data.init_args.{d}" for d in data),
        *(f"--trainer.{t}" for t in trainer),
    ]


def first_losses(folder: Path) -> dict[str, float]:
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["train/loss"])
    return {name: float(value) for name, value in row.items() if value}


def test_predictions_are_the_labels_of_the_next_round(shapes_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    shutil.copytree(shapes_folder, root)
    shutil.copytree(root / "Center_points", root / "Peak_points")
    first = arguments("points", root, tmp_path / "first")
    run("fit", *first, "--trainer.max_steps=2")
    run("predict", *first, *LABELS, "--model.init_args.inference.threshold=1e-6", "--ckpt_path=last")
    folder = tmp_path / "first" / "predictions"
    tags = {line.split()[0]: set(map(int, line.split()[1:])) for line in (root / "train_cls.txt").open()}
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert sorted(found) == sorted(tags) and any(found.values()), "two steps leave it unsure, but not of everything"
    for name, records in found.items():
        assert {SHAPE_CLASSES.index(record["class"]) for record in records} <= tags[name]

    # the maps come from the same network
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    writer = ["--trainer.callbacks=SemanticMapWriter", "--trainer.callbacks.output_dir=Next_maps"]
    maps = arguments("semantic", root, tmp_path / "first", "semantic_dir=WSSS_maps")
    run("predict", *maps, *writer, f"--ckpt_path={checkpoint}")
    assert sorted(path.stem for path in (root / "Next_maps").glob("*.png")) == sorted(tags)

    # neither cues, truth nor the maps of the first round are there for the second
    for gone in ("Peak_points", "Center_points", "SegmentationObject", "SegmentationClass", "WSSS_maps"):
        shutil.rmtree(root / gone)
    plain = ["label_quality=false", f"labels_from={folder}", "semantic_dir=Next_maps"]
    start = f"--model.init_args.init_from={checkpoint}"
    log = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1", "--model.init_args.refinement=false"]
    for name, threshold in (("all", 0.0), ("surest", 1.0)):
        run("fit", *arguments("points", root, tmp_path / name, *plain, f"label_threshold={threshold}"), start, *log)
        assert (tmp_path / name / "checkpoints" / "last.ckpt").exists()
    every, surest = first_losses(tmp_path / "all"), first_losses(tmp_path / "surest")
    assert every["train/offset_pseudo"] > 0 and surest["train/offset_pseudo"] > 0
    assert every["train/offset_pseudo"] != surest["train/offset_pseudo"]
    assert every["train/semantic"] == surest["train/semantic"]
