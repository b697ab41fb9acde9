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

import numpy as np
from PIL import Image

from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json
from bestie_pl.structures import IGNORE
from experiments.runs import ANEW, ROOT, clear, command

CLASSIFIERS = {
    "nGWP, alpha 0": ("--model.init_args.pooling=ngwp", "--model.init_args.alpha=0"),
    "mean, alpha 0": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0"),
    "mean, alpha 0.7": (
        "--model.init_args.pooling=mean",
        "--model.init_args.alpha=0.7",
        "--model.init_args.alpha_ramp_steps=250",
    ),
}
"""Whose cues are compared; alpha rises over the first half of the training. The first is that of
configs/voc_small/classifier.yaml, which goes on, here with three scales as the others."""
SCALES = "--model.init_args.scales=[0.5, 1.0, 1.5]"

ON_VAL = ("--data.init_args.predict_split=val_instances", "--data.init_args.label_quality=true")
CUES_AND_MAPS = ("--trainer.callbacks=CueWriter", ANEW, "--trainer.callbacks+=SemanticMapWriter", ANEW)
WIDE = ("--trainer.callbacks.wide=true", "--trainer.callbacks.iterations=60")
"""Refinement of the classifier's maps, as in its configuration."""
OTSU = "--trainer.callbacks.background=otsu"
BAND = (OTSU, "--trainer.callbacks.band=0.05")
DECIDED = "--trainer.callbacks.band=0"
MAPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "CAM": (
        "classifier",
        "classifier",
        ("--model.init_args.affinity=false", "--trainer.callbacks.iterations=0", OTSU),
    ),
    "spread by affinity, wide PAMR": ("classifier", "classifier", (*WIDE, OTSU)),
    "retrained": ("semantic", "semantic", ("--model.init_args.refine=null",)),
    "retrained, PAMR": ("semantic", "semantic", ()),
    "retrained twice, PAMR": ("semantic", "semantic2", ()),
}
"""What is compared: configuration, stage and options."""
WAY = ("classifier", "cues_train", "semantic", "maps_train", "semantic2", "maps2_train", "tags")
"""The stages from tags to a trained network; all others measure."""
BORDER = 20
"""Pixels; activation maps are weak there."""
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
    chain = Chain(ROOT / arguments.runs, arguments.root.absolute(), arguments.threads, ROOT / arguments.results)
    classify(chain)
    make_maps(chain)
    learn_instances(chain)
    compare_maps(chain)
    compare_classifiers(chain)


def classify(chain: Chain) -> None:
    """The classifier, the cues and maps that it makes of the training images, and its cues of validation images."""
    chain.run("classifier", "classifier", "fit")
    tags = chain.run("classifier_test", "classifier", "test", reads="classifier", report="scores_test")
    written = [*CUES_AND_MAPS, "--trainer.callbacks.output_dir=CAM_maps", *WIDE, *BAND]
    cues = chain.run("cues_train", "classifier", "predict", written, "classifier", "cue_report")
    writer = ["--trainer.callbacks=CueWriter", f"--trainer.callbacks.output_dir={chain.folder / 'cues_val/cues'}"]
    chain.run("cues_val", "classifier", "predict", [*ON_VAL, *writer], "classifier")
    chain.write("classifier", {"scores": tags["scores"], "cues_of_training_images": cues})


def make_maps(chain: Chain) -> None:
    """Two semantic rounds."""
    chain.run("semantic", "semantic", "fit")
    chain.run("maps_train", "semantic", "predict", retrained("Retrained_maps", "CAM_maps"), "semantic")
    start = ["--data.init_args.semantic_dir=Retrained_maps"]
    given = [*start, f"--model.init_args.init_from={chain.folder / 'semantic/checkpoints/last.ckpt'}"]
    chain.run("semantic2", "semantic", "fit", given)
    written = [*start, *retrained("Retrained2_maps", "Retrained_maps")]
    chain.run("maps2_train", "semantic", "predict", written, "semantic2")


def retrained(made: str, earlier: str) -> list[str]:
    """The writer of a semantic round's maps."""
    writer = ["--trainer.callbacks=SemanticMapWriter", ANEW, f"--trainer.callbacks.output_dir={made}"]
    return [*writer, f"--trainer.callbacks.earlier_dir={earlier}"]


def compare_maps(chain: Chain) -> None:
    """How good the maps of each stage are on validation images whose tags are given; every pixel is decided."""
    rows = []
    for name, (config, stage, options) in MAPS.items():
        folder = f"val_{name.replace(', ', '_').replace(' ', '_')}"
        writer = ["--trainer.callbacks=SemanticMapWriter"]
        writer += [f"--trainer.callbacks.output_dir={chain.folder / folder / 'maps'}"]
        given = [*ON_VAL, *writer, *options, *([DECIDED] if stage == "classifier" else [])]
        report = chain.run(folder, config, "predict", given, stage, "semantic_maps")
        found = found_by_place(chain.folder / folder / "maps", chain.root / "SegmentationClass")
        rows.append({"name": name, "miou": report["miou"], "iou": report["iou"], "object_pixels_found": found})
    chain.write("semantic_maps", {"split": "val_instances, tags given", "rows": rows})


def learn_instances(chain: Chain) -> None:
    """The method on these maps and cues, scored without tags."""
    start = [f"--model.init_args.init_from={chain.folder / 'semantic2/checkpoints/last.ckpt'}"]
    start += ["--trainer.callbacks+=PictureWriter", "--trainer.callbacks.count=6"]
    chain.run("tags", "tags", "fit", start)
    counts = images_of_classes(chain.root)
    rows = []
    for name, options in (("plain", []), ("refined at test", ["--model.init_args.inference.refine=pamr"])):
        given = [*start, *options]
        report = chain.run(f"tags_test_{name.split()[0]}", "tags", "test", given, "tags", "scores_test")
        rows.append({"name": name} | instance_scores(report["scores"], counts))
    chain.write("instances", {"split": "val_instances", "seconds": chain.seconds(), "rows": rows})
    shutil.copy(chain.folder / "tags/pictures/training.png", chain.results / "training.png")
    shutil.copy(chain.folder / "tags_test_plain/pictures/test.png", chain.results / "test.png")


def compare_classifiers(chain: Chain) -> None:
    """Cues with and without peak attention, of two poolings, in figures and as pictures."""
    tag_map = chain.run("classifier_test", "classifier", "test", reads="classifier", report="scores_test")["scores"]
    own = chain.run("cues_val", "classifier", "predict", reads="classifier", report="cue_report")
    rows: list[dict[str, Any]] = [{"name": "nGWP, alpha 0, two scales", "tag_map": tag_map["test/map"]} | own]
    checkpoints: list[str] = []
    for name, options in CLASSIFIERS.items():
        stage = "classifier_" + name.replace(", ", "_").replace(" ", "_") if checkpoints else "classifier"
        chain.run(stage, "classifier", "fit", options)
        checkpoints.append(str(chain.folder / stage / "checkpoints/last.ckpt"))
        tags = chain.run(f"{stage}_test", "classifier", "test", options, stage, "scores_test")
        writer = ["--trainer.callbacks=CueWriter", f"--trainer.callbacks.output_dir={chain.folder / stage / 'cues'}"]
        given = [*ON_VAL, *options, SCALES, *writer]
        cues = chain.run(f"{stage}_cues", "classifier", "predict", given, stage, "cue_report")
        rows.append({"name": name, "tag_map": tags["scores"]["test/map"]} | cues)
        chain.write("cues", {"split": "val_instances, tags given", "rows": rows})
    line = ["--config", "configs/voc_small/classifier.yaml", f"--data.init_args.root={chain.root}", "--split", "val"]
    line += ["--checkpoints", *checkpoints, "--labels", *CLASSIFIERS, "--images", "6", "--cue_threshold", "0.7", SCALES]
    command("sheet", *line, "--output", str(chain.results / "activation_maps.png"))


class Chain:
    """Commands that are run once each, in folders of their own."""

    def __init__(self, folder: Path, root: Path, threads: int, results: Path) -> None:
        self.folder, self.root, self.threads, self.results = folder, root, threads, results

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
            clear(folder)
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

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a result file."""
        head = {"command": "python -m experiments.voc_small", "environment": environment()}
        write_json(self.results / f"{name}.json", head | content)

    def seconds(self) -> dict[str, float]:
        """What each stage of the way took, and all of them."""
        taken = {name: json.loads((self.folder / name / "seconds.json").read_text()) for name in WAY}
        return {name: round(value, 1) for name, value in {**taken, "all": sum(taken.values())}.items()}


def found_by_place(maps: Path, truth: Path) -> dict[str, float]:
    """Shares of the objects' pixels that get their class, within ``BORDER`` px of the image's border and elsewhere."""
    found, there = np.zeros(2, int), np.zeros(2, int)
    for path in maps.glob("*.png"):
        predicted, true = (np.asarray(Image.open(folder / path.name)) for folder in (maps, truth))
        middle = np.zeros(true.shape, int)
        middle[BORDER:-BORDER, BORDER:-BORDER] = 1
        known = (true > 0) & (true < IGNORE)
        there += np.bincount(middle[known], minlength=2)
        found += np.bincount(middle[known & (predicted == true)], minlength=2)
    return {f"within {BORDER} px of the border": float(found[0] / there[0]), "elsewhere": float(found[1] / there[1])}


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
