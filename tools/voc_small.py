"""The whole way from image tags on small real photographs in VOC layout: writes results/voc_small/*.json.

Every finished stage is kept in ``runs/voc_small``; an interrupted call goes on where it stopped. Masks of the
validation images are opened to measure, never to choose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import ROOT, command, write_json

from bestie_pl.modules.callbacks import environment

CLASSIFIERS = {
    "nGWP, alpha 0": ("--model.init_args.pooling=ngwp", "--model.init_args.alpha=0"),
    "nGWP, alpha 0.7": ("--model.init_args.pooling=ngwp", "--model.init_args.alpha=0.7"),
    "mean, alpha 0": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0"),
    "mean, alpha 0.7": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0.7"),
}
"""Whose cues are compared; the first one's go on, as configs/voc_small/classifier.yaml has it. With peak attention
alpha rises over the first half of the training."""
RAMP = "--model.init_args.alpha_ramp_steps=250"

MANY = 100
"""A class with at least this many training images is among the ones that can be learnt."""


def main() -> None:
    """Run what is missing and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in VOC layout; a copy, as cues and maps are written into it")
    parser.add_argument("--runs", type=Path, default=Path("runs/voc_small"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/voc_small"))
    arguments = parser.parse_args()
    chain = Chain(ROOT / arguments.runs, arguments.root.absolute(), arguments.threads)
    results = ROOT / arguments.results
    head = {"command": "python tools/voc_small.py", "environment": environment()}

    chain.run("classifier", "classifier", "fit")
    tags = chain.run("classifier_test", "classifier", "test", reads="classifier", report="scores_test")
    cues = chain.run("cues_train", "classifier", "predict", reads="classifier", report="cue_report")
    write_json(results / "classifier.json", head | {"scores": tags["scores"], "cues_of_training_images": cues})
    on_val = ["--data.init_args.predict_split=val_instances", "--data.init_args.label_quality=true"]
    maps = {}
    for name, rounds in (("CAM", "0"), ("CAM, PAMR", None)):
        folder = chain.folder / f"val_{name.replace(', ', '_')}"
        writer = ["--trainer.callbacks=SemanticMapWriter", f"--trainer.callbacks.output_dir={folder / 'maps'}"]
        writer += [f"--trainer.callbacks.iterations={rounds}"] if rounds else []
        maps[name] = chain.run(folder.name, "classifier", "predict", [*on_val, *writer], "classifier", "semantic_maps")
    chain.run("semantic", "semantic", "fit")
    chain.run("maps_train", "semantic", "predict", reads="semantic", report="semantic_maps")
    for name, refine in (("retrained", "null"), ("retrained, PAMR", "pamr")):
        folder = chain.folder / f"val_{name.replace(', ', '_')}"
        writer = ["--trainer.callbacks=SemanticMapWriter", f"--trainer.callbacks.output_dir={folder / 'maps'}"]
        given = [*on_val, *writer, f"--model.init_args.refine={refine}"]
        maps[name] = chain.run(folder.name, "semantic", "predict", given, "semantic", "semantic_maps")
    pictures = ["--trainer.callbacks+=PictureWriter", "--trainer.callbacks.count=6"]
    rows = [{"name": name, "miou": report["miou"], "iou": report["iou"]} for name, report in maps.items()]
    write_json(results / "semantic_maps.json", head | {"split": "val_instances, tags given", "rows": rows})

    start = [f"--model.init_args.init_from={chain.folder / 'semantic/checkpoints/last.ckpt'}"]
    chain.run("tags", "tags", "fit", [*start, *pictures])
    counts = images_of_classes(arguments.root)
    rows = []
    for name, refine in (("plain", "null"), ("refined at test", "pamr")):
        given = [*start, *pictures, f"--model.init_args.refine_at_test={refine}"]
        report = chain.run(f"tags_test_{name.split()[0]}", "tags", "test", given, "tags", "scores_test")
        rows.append({"name": name} | instance_scores(report["scores"], counts))
    write_json(results / "instances.json", head | {"split": "val_instances", "seconds": chain.seconds(), "rows": rows})
    shutil.copy(chain.folder / "tags/pictures/training.png", results / "training.png")
    shutil.copy(chain.folder / "tags_test_plain/pictures/test.png", results / "test.png")

    checkpoints, rows = [], []
    for name, options in CLASSIFIERS.items():
        stage = "classifier" if not checkpoints else "classifier_" + name.replace(", ", "_").replace(" ", "_")
        ramp = [] if name.endswith("alpha 0") else [RAMP]
        chain.run(stage, "classifier", "fit", [*options, *ramp])
        checkpoints.append(str(chain.folder / stage / "checkpoints/last.ckpt"))
        tags = chain.run(f"{stage}_test", "classifier", "test", options, stage, "scores_test")
        writer = ["--trainer.callbacks=CueWriter", f"--trainer.callbacks.output_dir={chain.folder / stage / 'cues'}"]
        cues = chain.run(f"{stage}_cues", "classifier", "predict", [*on_val, *options, *writer], stage, "cue_report")
        rows.append({"name": name, "tag_map": tags["scores"]["test/map"]} | cues)
        write_json(results / "cues.json", head | {"split": "val_instances, tags given", "rows": rows})
    sheet = ["--config", "configs/voc_small/classifier.yaml", f"--data.init_args.root={chain.root}"]
    sheet += ["--checkpoints", *checkpoints, "--labels", *CLASSIFIERS, "--images", "6", "--split", "val"]
    command("sheet", *sheet, "--cue_threshold", "0.2", "--output", str(results / "activation_maps.png"))


class Chain:
    """Commands that are run once each, in folders of their own."""

    def __init__(self, folder: Path, root: Path, threads: int) -> None:
        self.folder, self.root, self.threads = folder, root, threads

    def run(
        self,
        name: str,
        config: str,
        verb: str,
        options: Sequence[str] = (),
        reads: str | None = None,
        report: str | None = None,
    ) -> dict[str, Any]:
        """Run one command, with the last checkpoint of the stage ``reads``, and return the report that it leaves."""
        folder = self.folder / name
        done = folder / "seconds.json"
        if not done.exists():
            start = time.monotonic()
            given = ["--config", f"configs/voc_small/{config}.yaml", f"--data.init_args.root={self.root}", *options]
            given += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
            given += ["--seed_everything=1"]
            if reads is not None:
                given.append(f"--ckpt_path={self.folder / reads / 'checkpoints/last.ckpt'}")
            command(verb, *given, threads=self.threads, log=folder / "output.txt")
            write_json(done, time.monotonic() - start)
        if report is None:
            return {}
        content: dict[str, Any] = json.loads((folder / f"{report}.json").read_text())
        content.pop("environment", None)
        return {key: value for key, value in content.items() if key not in ("folder", "checkpoint")}

    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        paths = sorted(self.folder.glob("*/seconds.json"), key=lambda path: path.stat().st_mtime)
        return {path.parent.name: round(json.loads(path.read_text()), 1) for path in paths}


def images_of_classes(root: Path) -> dict[str, int]:
    """Training images that have each class."""
    counts = {}
    for path in (root / "ImageSets/Main").glob("*_train.txt"):
        flags = [line.split()[1] for line in path.read_text().splitlines() if line.strip()]
        counts[path.stem.removesuffix("_train")] = flags.count("1")
    return counts


def instance_scores(scores: dict[str, float], counts: dict[str, int]) -> dict[str, Any]:
    """Means over all classes and over those with many training images, and each class alone."""
    plain = {name.split("/", 1)[1]: value for name, value in scores.items()}
    content: dict[str, Any] = {name: plain[name] for name in ("map25", "map50", "miou")}
    many = sorted(name for name, count in counts.items() if count >= MANY)
    for overlap in ("25", "50"):
        per_class = {name: plain[f"ap{overlap}/{name}"] for name in counts if f"ap{overlap}/{name}" in plain}
        content[f"map{overlap}_many_images"] = sum(per_class[name] for name in many) / len(many)
        content[f"ap{overlap}"] = per_class
    return content | {"classes_with_many_images": many}


if __name__ == "__main__":
    main()
