"""The same data through COCODataModule and FolderDataModule, 200 steps and a test each: writes results/own_data.json.

The folder's tags and points are what ``bestie-pl points`` makes of the COCO files. Scores that differ in any digit are
an error. Every finished run is kept in ``runs/own_data``; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bestie_pl.callbacks.scores import environment
from bestie_pl.data.coco import read_categories
from bestie_pl.data.files import write_json
from experiments.runs import ROOT, command, fit_and_test

STEPS = 200
COMMON = {"supervision": "points", "batch_size": 8, "crop_size": 128, "num_workers": 0}
SETS: dict[str, dict[str, Any]] = {
    # as configs/nuclei/points.yaml
    "nuclei": {"semantic_dir": "semantic", "image_scale": 2.0, "object_scale": 0.25, "min_area": 250, "dihedral": True},
    # no semantic maps come with these photographs: they are made from the ground truth, and the scores say so
    "coco_tiny": {"semantic_source": "ground_truth", "image_scale": 0.5, "object_scale": 0.5},
}
MODEL = {
    "backbone": "tf_efficientnet_lite0",
    "decoder": "pyramid",
    "geometry": {"sigma": 16.0},
    "optimization": {
        "optimizer": "adamw",
        "lr": 0.008,
        "backbone_lr_factor": 0.3,
        "weight_decay": 0.01,
        "warmup_steps": 50,
    },
}


def main() -> None:
    """Run what is missing, compare, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data sets nuclei and coco_tiny")
    parser.add_argument("--runs", type=Path, default=Path("runs/own_data"))
    parser.add_argument("--output", type=Path, default=Path("results/own_data.json"))
    arguments = parser.parse_args()
    sets = {}
    for name, settings in SETS.items():
        data, work = (arguments.data / name).resolve(), ROOT / arguments.runs / name
        convert(data, work)
        results = {
            kind: run(work / kind, class_path, COMMON | settings | own)
            for kind, class_path, own in (
                ("coco", "COCODataModule", coco_arguments(data, work)),
                ("folder", "FolderDataModule", folder_arguments(data, work, settings)),
            )
        }
        scores = {kind: result["scores"] for kind, result in results.items()}
        if scores["coco"] != scores["folder"]:
            different = [k for k in scores["coco"] if scores["coco"][k] != scores["folder"].get(k)]
            raise SystemExit(f"{name}: the two modules give different scores: {', '.join(different)}; see {work}")
        sets[name] = {
            "ground_truth_used": results["coco"]["ground_truth_used"],
            "data": COMMON | settings,
            "scores": scores,
        }
    content = {
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(),
        "steps": STEPS,
        "model": MODEL,
        "sets": sets,
    }
    write_json(ROOT / arguments.output, content)


def convert(data: Path, work: Path) -> None:
    """Tags and points of the COCO files, JSON for the folder module and text for the other; and lists of the splits."""
    annotations = [str(data / f"instances_{split}.json") for split in ("train", "val")]
    points = str(work / "points.json")
    command("points", *annotations, "--from", "coco", "--output", points, "--tags", str(work / "tags.csv"))
    command("points", points, "--from", "json", "--output", str(work / "points"))
    for split, path in zip(("train", "val"), annotations, strict=True):
        files = [image["file_name"] for image in json.loads(Path(path).read_text())["images"]]
        (work / f"{split}.txt").write_text("\n".join(files) + "\n")


def coco_arguments(data: Path, work: Path) -> dict[str, Any]:
    """What COCODataModule is told."""
    splits = ("train", "val")
    images = {f"{split}_images": "images" for split in splits}
    annotations = {f"{split}_annotations": f"instances_{split}.json" for split in splits}
    return {"root": str(data), **images, **annotations, "cues_dir": str(work / "points")}


def folder_arguments(data: Path, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What FolderDataModule is told: classes in the order of COCO's categories, which semantic maps count in."""
    maps = {"semantic_dir": str(data / settings["semantic_dir"])} if "semantic_dir" in settings else {}
    return {
        "root": str(work),
        "images": str(data / "images"),
        "class_names": list(read_categories(data / "instances_val.json").values()),
        "train_split": "train.txt",
        "val_split": "val.txt",
        "points": "points.json",
        "annotations": str(data / "instances_{split}.json"),
        **maps,
    }


def run(folder: Path, class_path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and test one configuration."""
    config = folder.parent / f"{folder.name}.json"  # JSON is YAML too; the folder is emptied before a training
    content = {
        "trainer": {"max_steps": STEPS, "gradient_clip_val": 20, "limit_val_batches": 0, "accelerator": "cpu"},
        "data": {"class_path": f"bestie_pl.{class_path}", "init_args": settings},
        "model": {"class_path": "bestie_pl.BestieModule", "init_args": MODEL},
    }
    write_json(config, content)
    return fit_and_test(str(config), folder, threads=1, quiet=True)


if __name__ == "__main__":
    main()
