"""From image tags to masks on photographs of animals, beside points and full supervision: results/animals/*.json.

For each seed the whole way from tags (classifier, semantic round, instances, another round), points on the same maps,
and full supervision for as many optimiser steps. Every finished stage is kept in ``runs/animals`` and every finished
seed in the results: an interrupted call goes on where it stopped, later calls add seeds.

What was chosen by looking at masks was chosen on the development split, every fifth training photograph by name. Masks
of the other training photographs and of the test photographs are opened to measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from bestie_pl import BestieModule, FolderDataModule, MaskRCNNModule
from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json
from bestie_pl.drawing import overlay, sheet, write_picture
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.ops.masks import paint
from bestie_pl.structures import IGNORE, Instances, Supervision
from experiments.runs import ANEW, METRICS, ROOT, clear, command

RESULTS = Path("results/animals")
DEV_EVERY = 5
"""Every fifth training photograph by name is in the development split."""
PICTURE_EVERY = 14
"""Every 14th test photograph by name is in the pictures."""

PLAIN = "--model.init_args.affinity=false"
DECIDED = ("--trainer.callbacks.background={threshold}", "--trainer.callbacks.band=0")
MAPS = {
    "CAM": (PLAIN, 0, False, 0.4),
    "CAM, PAMR as before": (PLAIN, 40, False, 0.45),
    "CAM, wide PAMR": (PLAIN, 60, True, 0.35),
    "spread by affinity": ("--model.init_args.affinity=true", 0, False, 0.35),
    "spread by affinity, wide PAMR": ("--model.init_args.affinity=true", 60, True, 0.35),
}
"""Maps from the classifier: option, rounds of refinement, whether these are wide, and the best threshold in steps of
0.05 on the development split; all pixels are decided."""
KINDS = {
    "full supervision": ("full", "full"),
    "points": ("points", "full"),
    "tags": ("tags", "full"),
    "full supervision, longer": ("full_longer", "full_longer"),
    "tags, another round": ("round2", "full_longer"),
}
"""What is compared with full supervision, and with which: one that has as many steps in all."""
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tags": ("tags", ()),
    "tags, foreground predicted": ("tags", ("--model.init_args.foreground=predicted",)),
    "tags, foreground both": ("tags", ("--model.init_args.foreground=both",)),
    "tags, center clustering": ("tags", ("--model.init_args.clustering=true",)),
    "tags, refined labels from 0.1 on": ("tags", ("--model.init_args.refine_threshold=0.1",)),
    "tags, nearest cue in crowded components": ("tags", ("--data.init_args.recipe=nearest",)),
    "tags, refined by a mean of networks": ("tags", ("--model=experiments.averaged.AveragedRefinement",)),
    "tags, as many steps as another round": ("tags", ("--trainer.max_steps=300",)),
    "points": ("points", ()),
    "points, nearest point in crowded components": ("points", ("--data.init_args.recipe=nearest",)),
    "points, as many steps as another round": ("points", ("--trainer.max_steps=300",)),
}
"""What was tried on the training of instances, each against the first row of its kind: configuration and options."""
SECOND_STAGE = {
    "tags: BESTIE": "tags",
    "tags: BESTIE †, a Mask R-CNN on its labels": "tags_second",
    "tags: BESTIE, another round on its labels": "round2",
    "points: BESTIE": "points",
    "points: BESTIE †, a Mask R-CNN on its labels": "points_second",
    "full: BESTIE's network on true instances": "full",
    "full: Mask R-CNN on true instances": "full_second",
}
"""The rows of the paper's table 1, and the stage of each."""
WRITTEN = {
    "CAM_maps": "of the classifier",
    "Retrained_maps": "of the semantic round",
    "Retrained2_maps": "of another semantic round",
}
"""The maps that trainings learn from."""
PICTURES = 8
SURE = 0.5
"""Least score of a detector's instances in the pictures."""
SUPERVISIONS: tuple[Supervision, ...] = ("tags", "full", "points")
TRUE = ["--data.init_args.semantic_source=ground_truth"]
CUE_THRESHOLD = 0.2
"""That of configs/animals/tags.yaml."""


def main() -> None:
    """Run what is missing and write the tables, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "root", type=Path, help="folder of the photographs; a copy, as cues and maps are written into it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--skip", nargs="*", default=[], choices=("maps", "points", "round2", "second", "variants"))
    arguments = parser.parse_args()
    truth = true_maps(arguments.root)
    for seed in arguments.seeds:
        chain = Chain(seed, ROOT / arguments.runs, arguments.root.absolute(), arguments.threads)
        chain.from_tags()
        tables = Tables(chain, truth, ROOT / arguments.results)
        if "maps" not in arguments.skip:
            chain.compare_maps()
        tables.maps()
        chain.supervised("full", 1)
        if "points" not in arguments.skip:
            chain.points()
        tables.instances()
        if "round2" not in arguments.skip:
            chain.another_round()
            chain.supervised("full_longer", 2)
        if "second" not in arguments.skip:
            for supervision in SUPERVISIONS:
                chain.second_stage(supervision)
        if "variants" not in arguments.skip:
            chain.variants()
        tables.maps()
        tables.instances()
        draw(chain, ROOT / arguments.results / "test.png")


@dataclass
class Chain:
    """The stages of one seed: each a command, whose end a small file marks."""

    seed: int
    runs: Path
    root: Path
    threads: int

    def __post_init__(self) -> None:
        self.folder = self.runs / f"seed{self.seed}"
        dev = [name for k, name in enumerate(photographs(self.root, "train")) if k % DEV_EVERY == 0]
        (self.root / "dev.txt").write_text("".join(f"{name}\n" for name in dev))

    def below_root(self, name: str) -> str:
        """A folder of this seed below the data set's root."""
        return f"seed{self.seed}/{name}"

    def run(self, name: str, verb: str, config: str, options: Sequence[str] = (), reads: str | None = None) -> None:
        """A stage in its own folder; ``reads`` names the stage whose checkpoint it needs."""
        folder = self.folder / name
        done = folder / f"{verb}_seconds.json"
        if done.exists():
            return
        if verb == "fit":
            clear(folder)
        start = time.monotonic()
        given = ["--config", f"configs/animals/{config}.yaml", f"--data.init_args.root={self.root}"]
        given += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
        given += [f"--seed_everything={self.seed}", *options]
        if reads is not None:
            given.append(f"--ckpt_path={self.folder / reads / 'checkpoints/last.ckpt'}")
        command(verb, *given, threads=self.threads, log=folder / "output.txt")
        write_json(done, round(time.monotonic() - start, 1))

    @property
    def cues(self) -> str:
        """Where the classifier's cues are."""
        return f"--data.init_args.cues_dir={self.below_root('cues')}"

    def from_tags(self) -> None:
        """The way from tags to a tested network."""
        self.run("classifier", "fit", "classifier", [self.cues])
        written = ["--trainer.callbacks=CueWriter", ANEW, "--trainer.callbacks+=SemanticMapWriter", ANEW]
        written += [f"--trainer.callbacks.output_dir={self.below_root('CAM_maps')}"]
        written += ["--trainer.callbacks.wide=true", "--trainer.callbacks.iterations=60"]
        written += ["--trainer.callbacks.background=0.35", "--trainer.callbacks.band=0.05"]
        given = [self.cues, *written, "--data.init_args.label_quality=true"]
        self.run("classifier", "predict", "classifier", given, reads="classifier")
        self.run("classifier", "test", "classifier", [self.cues], reads="classifier")
        learnt = [self.cues, f"--data.init_args.semantic_dir={self.below_root('CAM_maps')}"]
        self.run("semantic", "fit", "semantic", learnt)
        self.write_maps("semantic", "Retrained_maps", "CAM_maps")
        self.run("semantic2", "fit", "semantic", self.start("semantic", "Retrained_maps"))
        self.write_maps("semantic2", "Retrained2_maps", "Retrained_maps")
        self.run("tags", "fit", "tags", self.start("semantic2", "Retrained2_maps"))
        self.tested("tags", "tags")

    def write_maps(self, stage: str, maps: str, before: str) -> None:
        """Semantic maps of the training photographs by the network of a stage; the cues are not read."""
        given = [self.cues, f"--data.init_args.semantic_dir={self.below_root(before)}"]
        given += ["--trainer.callbacks=SemanticMapWriter", ANEW]
        given += [f"--trainer.callbacks.output_dir={self.below_root(maps)}"]
        given += [f"--trainer.callbacks.earlier_dir={self.below_root(before)}", "--data.init_args.label_quality=true"]
        self.run(f"{stage}_maps", "predict", "semantic", given, reads=stage)

    def start(self, stage: str, maps: str) -> list[str]:
        """Options of a training that starts from the network of a stage, on these maps."""
        checkpoint = self.folder / stage / "checkpoints/last.ckpt"
        given = [f"--model.init_args.init_from={checkpoint}"]
        return [*given, self.cues, f"--data.init_args.semantic_dir={self.below_root(maps)}"]

    def tested(self, name: str, config: str) -> None:
        """Scores, plain and refined."""
        self.run(name, "test", config, [self.cues], reads=name)
        given = [self.cues, "--model.init_args.inference.refine=pamr"]
        self.run(f"{name}_refined", "test", config, given, reads=name)

    def compare_maps(self) -> None:
        """What each step of making maps from the classifier gives, on the development split."""
        for name, (option, iterations, wide, threshold) in MAPS.items():
            folder = f"dev_{name.replace(', ', '_').replace(' ', '_')}"
            given = [self.cues, option, "--data.init_args.predict_split=dev.txt"]
            given += ["--data.init_args.annotations=instances_train.json", "--data.init_args.label_quality=true"]
            given += ["--trainer.callbacks=SemanticMapWriter", ANEW]
            given += [f"--trainer.callbacks.output_dir={self.folder / folder / 'maps'}"]
            given += [f"--trainer.callbacks.iterations={iterations}", f"--trainer.callbacks.wide={str(wide).lower()}"]
            given += [text.format(threshold=threshold) for text in DECIDED]
            self.run(folder, "predict", "classifier", given, reads="classifier")

    def supervised(self, name: str, trainings: int) -> None:
        """True instances, for as many steps as two semantic rounds and so many trainings have in all."""
        self.run(name, "fit", "full", [f"--trainer.max_steps={150 * (2 + trainings)}"])
        self.tested(name, "full")

    def points(self) -> None:
        """One point per object, on the maps of the semantic rounds."""
        if not (self.root / "points.json").exists():
            source = str(self.root / "instances_train.json")
            command("points", "--from", "coco", source, "--output", str(self.root / "points.json"))
        given = [option for option in self.start("semantic2", "Retrained2_maps") if option != self.cues]
        self.run("points", "fit", "points", given)
        self.run("points", "test", "points", reads="points")
        self.run("points_refined", "test", "points", ["--model.init_args.inference.refine=pamr"], reads="points")

    def variants(self) -> None:
        """What was tried, each in a training of its own from the network and the maps of the semantic rounds."""
        for name, (config, options) in VARIANTS.items():
            if options:
                start = self.start("semantic2", "Retrained2_maps")
                given = [*options, *(option for option in start if config == "tags" or option != self.cues)]
                self.run(stage_of(name), "fit", config, given)
                self.run(stage_of(name), "test", config, given, reads=stage_of(name))

    def another_round(self) -> None:
        """Labels from the network of ``tags``, and a training on them and the same maps that goes on from it."""
        start = self.start("tags", "Retrained2_maps")
        self.run("tags", "predict", "tags", ["--config", "configs/labels.yaml", *start], reads="tags")
        labels = f"--data.init_args.labels_from={self.folder / 'tags/predictions'}"
        self.run("round2", "fit", "tags", [*start, labels])
        self.tested("round2", "tags")

    def second_stage(self, supervision: Supervision) -> None:
        """A Mask R-CNN on what the network of a stage says of its training images, or on true instances."""
        name, maps = f"{supervision}_second", f"--data.init_args.semantic_dir={self.below_root('Retrained2_maps')}"
        given = {"tags": [self.cues, maps], "points": ["--data.init_args.points=points.json", maps], "full": TRUE}
        options = [*given[supervision], f"--data.init_args.supervision={supervision}"]
        if supervision == "full":
            options.append("--data.init_args.labels_from=null")
        else:
            labels = self.folder / f"{supervision}_labels.json"
            if supervision == "points":
                predicting = ["--config", "configs/labels.yaml", "--model.init_args.oracle=points", maps]
                self.run("points", "predict", "points", predicting, reads="points")
            if not labels.exists():  # those of tags were predicted for another round
                line = ["labels", "--config", f"configs/animals/{supervision}.yaml", *given[supervision]]
                line += [f"--predictions={self.folder / supervision / 'predictions'}", f"--output={labels}"]
                line += [f"--data.init_args.root={self.root}", "--data.init_args.label_quality=true"]
                command(*line, log=self.folder / f"{supervision}_labels.txt")
            options.append(f"--data.init_args.labels_from={labels}")
        if supervision != "tags":
            options.append("--data.init_args.cues_dir=null")
        self.run(name, "fit", "mask_rcnn", options)
        self.run(name, "test", "mask_rcnn", options, reads=name)

    def report(self, stage: str, name: str) -> dict[str, Any] | None:
        """A report that a stage left; None if it was not run."""
        path = self.folder / stage / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def quality_of_labels(self, supervision: Supervision) -> dict[str, float] | None:
        """What the labels of the second stage are worth; None if there are none."""
        path = self.folder / f"{supervision}_labels.report.json"
        return json.loads(path.read_text())["quality"] if path.exists() else None

    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        paths = sorted(self.folder.glob("*/*_seconds.json"))
        taken = {
            f"{path.parent.name}, {path.stem.removesuffix('_seconds')}": json.loads(path.read_text()) for path in paths
        }
        return taken


@dataclass
class Tables:
    """The results of one seed, put beside those of others."""

    chain: Chain
    truth: dict[str, np.ndarray]
    results: Path

    def maps(self) -> None:
        """Mean IoU of maps of training photographs, tags given; undecided pixels count as background."""
        dev = set((self.chain.root / "dev.txt").read_text().split())
        rows: dict[str, dict[str, float] | None] = {}
        for name in MAPS:
            folder = self.chain.folder / f"dev_{name.replace(', ', '_').replace(' ', '_')}" / "maps"
            rows[f"{name} (development split)"] = quality(folder, self.truth, dev)
        for folder_name, name in WRITTEN.items():
            folder = self.chain.root / self.chain.below_root(folder_name)
            for part, names in (("development split", dev), ("others", set(self.truth) - dev)):
                rows[f"{name} ({part})"] = quality(folder, self.truth, names)
        self.write("maps", rows, "miou", {name: [str(part) for part in row] for name, row in MAPS.items()})

    def instances(self) -> None:
        """Scores on the test photographs, nothing given; tags and cues of the classifier."""
        rows: dict[str, dict[str, float] | None] = {}
        for suffix, label in (("", ""), ("_refined", ", refined at test")):
            for name, (stage, reference) in KINDS.items():
                scores = scores_of(self.chain.report(stage + suffix, "scores_test"))
                full = scores_of(self.chain.report(reference + suffix, "scores_test"))
                share = {"share": scores["map50"] / full["map50"]} if scores and full else {}
                rows[name + label] = scores | share if scores else None
        self.write("instances", rows, "map50", {})
        rows = {name: scores_of(self.chain.report(stage, "scores_test")) for name, stage in SECOND_STAGE.items()}
        self.write("table1", rows, "map50", {})
        of_labels = {str(s): self.chain.quality_of_labels(s) for s in SUPERVISIONS if s != "full"}
        self.write("labels", of_labels, "precision", {})
        tried = {name: scores_of(self.chain.report(stage_of(name), "scores_test")) for name in VARIANTS}
        settings = {name: list(options) for name, (_, options) in VARIANTS.items()}
        self.write("variants", tried, "map50", settings)
        tested, cues = (self.chain.report("classifier", name) for name in ("scores_test", "cue_report"))
        if tested and cues:
            lines = [line for line in cues["thresholds"] if abs(line["threshold"] - CUE_THRESHOLD) < 1e-6]
            names = ("precision", "recall", "instances_with_one_cue")
            figures = {"tag_map": tested["scores"]["test/map"]} | {name: lines[0][name] for name in names}
            self.write("classifier", {"nGWP, alpha 0": figures}, "instances_with_one_cue", {})

    def write(
        self, name: str, rows: dict[str, dict[str, float] | None], metric: str, settings: dict[str, list[str]]
    ) -> None:
        """Add this seed to a table, or replace what the table had of it; rows without figures stay as they were."""
        path, seed = self.results / f"{name}.json", self.chain.seed
        stored = json.loads(path.read_text()) if path.exists() else {"rows": [], "seconds": {}}
        known = {row["name"]: dict(zip(row["seeds"], row["by_seed"], strict=True)) for row in stored["rows"]}
        content = []
        for label, added in rows.items():
            by_seed = dict(sorted((known.get(label, {}) | ({seed: added} if added else {})).items()))
            if not by_seed:
                continue
            values = [figures[metric] for figures in by_seed.values()]
            row: dict[str, Any] = {
                "name": label,
                "seeds": list(by_seed),
                "settings": settings.get(label.split(" (")[0], []),
            }
            row |= {"values": values, "mean": statistics.mean(values)}
            row |= {"std": statistics.stdev(values) if len(values) > 1 else None}
            row["all"] = {key: [figures[key] for figures in by_seed.values()] for key in next(iter(by_seed.values()))}
            content.append(row | {"by_seed": list(by_seed.values())})
        head = {"metric": metric, "command": "python -m experiments.animals ROOT", "environment": environment()}
        seconds = stored["seconds"] | {str(seed): self.chain.seconds()}
        write_json(path, head | {"rows": content, "seconds": seconds})


def stage_of(variant: str) -> str:
    """The folder of a variant."""
    return variant.replace(", ", "_").replace(" ", "_")


def draw(chain: Chain, path: Path) -> None:
    """What the networks of the first seed find on some test photographs, chosen by their names."""
    stages = {"tags": "tags", "tags, second stage": "tags_second", "points": "points", "full supervision": "full"}
    checkpoints = {title: chain.folder / name / "checkpoints/last.ckpt" for title, name in stages.items()}
    checkpoints = {title: checkpoint for title, checkpoint in checkpoints.items() if checkpoint.exists()}
    if path.exists() or not checkpoints:
        return
    names = photographs(chain.root, "test")[::PICTURE_EVERY][:PICTURES]
    (chain.root / "pictures.txt").write_text("".join(f"{name}\n" for name in names))
    modules = [
        (MaskRCNNModule if "second" in title else BestieModule).load_from_checkpoint(file, map_location="cpu").eval()
        for title, file in checkpoints.items()
    ]
    data = FolderDataModule(
        str(chain.root),
        annotations="instances_test.json",
        test_split="pictures.txt",
        supervision="full",
        image_scale=0.45,
        eval_batch_size=1,
        num_workers=0,
    )
    data.setup("test")
    rows = []
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        assert batch.references is not None
        with Image.open(chain.root / "images" / f"{batch.names[0]}.jpg") as file:
            image = np.asarray(file.convert("RGB"))
        found = [
            sure(module.predict_step(batch, 0)[0])
            if isinstance(module, MaskRCNNModule)
            else module.predict_instances(batch)[0][0]
            for module in modules
        ]
        shown = [*(worst_first(instances) for instances in found), batch.references[0]]
        rows.append([image, *(overlay(image, paint(instances)) for instances in shown)])
    write_picture(path, sheet(rows, ["photograph", *checkpoints, "ground truth"]))


def sure(instances: Instances) -> Instances:
    """Those that a detector means, whose others overlap them."""
    kept = (instances.scores >= SURE).nonzero()[:, 0]
    masks = tuple(instances.masks[number] for number in kept.tolist())
    return Instances(masks, instances.classes[kept], instances.scores[kept], instances.size)


def worst_first(instances: Instances) -> Instances:
    """The order in which better ones are painted over worse ones."""
    order = instances.scores.argsort()
    masks = tuple(instances.masks[number] for number in order.tolist())
    return Instances(masks, instances.classes[order], instances.scores[order], instances.size)


def photographs(root: Path, split: str) -> list[str]:
    """Files of a split, by name."""
    lines = [line.split(",") for line in (root / "tags.csv").read_text().splitlines()[1:]]
    return sorted(image for image, _, where in lines if where == split)


def true_maps(root: Path) -> dict[str, np.ndarray]:
    """The true semantic map of each training photograph, by its file name; classes in the order of their names."""
    content = json.loads((root / "instances_train.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    used = sorted({names[annotation["category_id"]] for annotation in content["annotations"]})
    maps = {i["file_name"]: np.zeros((i["height"], i["width"]), np.uint8) for i in images.values()}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        runs = rle.merge(rle.frPyObjects(annotation["segmentation"], image["height"], image["width"]))
        number = used.index(names[annotation["category_id"]]) + 1
        maps[image["file_name"]][rle.decode(runs).astype(bool)] = number
    return maps


def quality(folder: Path, truth: dict[str, np.ndarray], names: set[str]) -> dict[str, float] | None:
    """Figures of the maps of some photographs; None if one is missing."""
    paths = {name: folder / f"{Path(name).stem}.png" for name in names}
    if not names or not all(path.exists() for path in paths.values()):
        return None
    metric = SemanticIoU(max(int(true.max()) for true in truth.values()))
    undecided = pixels = 0
    for name, path in paths.items():
        semantic = torch.from_numpy(np.array(Image.open(path)))
        undecided += int((semantic == IGNORE).sum())
        pixels += semantic.numel()
        metric.update(semantic.masked_fill(semantic == IGNORE, 0), torch.from_numpy(truth[name]))
    result = metric.compute()
    background = float(result["per_class"][0])
    return {"miou": float(result["miou"]), "background": background, "undecided": undecided / pixels}


def scores_of(report: dict[str, Any] | None) -> dict[str, float] | None:
    """Scores on the test photographs, whatever their notes; None without a report."""
    if report is None:
        return None
    scores = report["scores"]
    return {m: value for name, value in scores.items() for m in METRICS if name.split("/", 1)[1] == m}


if __name__ == "__main__":
    main()
