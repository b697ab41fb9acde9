"""The stages of one seed, each a command, and what they differ in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json
from bestie_pl.structures import Supervision
from experiments.runs import ANEW, clear, command

DEV_EVERY = 5
"""Every fifth training photograph by name is in the development split."""
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
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tags": ("tags", ()),
    "tags, foreground predicted": ("tags", ("--model.init_args.foreground=predicted",)),
    "tags, foreground both": ("tags", ("--model.init_args.foreground=both",)),
    "tags, center clustering": ("tags", ("--model.init_args.clustering=true",)),
    "tags, refined labels from 0.1 on": ("tags", ("--model.init_args.refine_threshold=0.1",)),
    "tags, refined by a mean of networks": ("tags", ("--model=experiments.averaged.AveragedRefinement",)),
    "tags, as many steps as another round": ("tags", ("--trainer.max_steps=300",)),
    "points": ("points", ()),
    "points, as many steps as another round": ("points", ("--trainer.max_steps=300",)),
}
"""What was tried on the training of instances, each against the first row of its kind: configuration and options."""
REFINED = "--model.init_args.inference.refine=pamr"
VIEWS = ("--model.init_args.inference.mirror=true", "--model.init_args.inference.scales=[1.0,1.35]")
TESTS: dict[str, tuple[str, ...]] = {
    "": (),
    "_refined": (REFINED,),
    "_views": VIEWS,
    "_views_refined": (*VIEWS, REFINED),
}
"""How each network is tested, by what is added to its stage: as it is, and with what costs time at the test alone."""
SUPERVISIONS: tuple[Supervision, ...] = ("tags", "full", "points")
OWN = "nGWP, alpha 0"
CLASSIFIERS: dict[str, tuple[str, ...]] = {
    OWN: (),
    "nGWP, alpha 0.7": ("--model.init_args.alpha=0.7",),
    "mean, alpha 0": ("--model.init_args.pooling=mean",),
    "mean, alpha 0.3": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0.3"),
    "mean, alpha 0.5": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0.5"),
    "mean, alpha 0.7": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0.7"),
}
"""Poolings, with and without peak attention; the first is behind all else here."""
NEAREST = "--data.init_args.recipe=nearest"
RAMP = "--model.init_args.alpha_ramp_steps=150"
"""Half of the classifier's training."""
NO_GUIDANCE, NO_REFINEMENT, CLUSTERING = (
    f"--model.init_args.{switch}" for switch in ("guidance=false", "refinement=false", "clustering=true")
)
TABLE3: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("alpha 0", (NO_GUIDANCE, NO_REFINEMENT)),
    "PAM": ("alpha 0.7", (NO_GUIDANCE, NO_REFINEMENT)),
    "PAM, IAG": ("alpha 0.7", (NO_REFINEMENT,)),
    "PAM, IAG, refinement": ("alpha 0.7", ()),
    "PAM, IAG, refinement, clustering": ("alpha 0.7", (CLUSTERING,)),
}
"""Rows of the paper's table 3: the classifier that gives the cues, and what is switched."""
POOLINGS = ("nGWP", "mean")
OFTEN = (
    "--trainer.limit_val_batches=1.0",
    "--trainer.check_val_every_n_epoch=1",
    "--data.init_args.label_quality=true",
)
"""For the curves of mAP50 and of the labels over training; the network at its end is what is scored."""
TABLE4 = {
    "CAM": "--data.init_args.semantic_dir={seed}/Plain_maps",
    "spread by affinity, wide PAMR": "--data.init_args.semantic_dir={seed}/CAM_maps",
    "retrained twice, PAMR": "--data.init_args.semantic_dir={seed}/Retrained2_maps",
    "ground truth": "--data.init_args.semantic_source=ground_truth",
}
"""Where the semantic maps come from; all rows start from ImageNet weights."""
PARTS = ("maps", "points", "alone", "round2", "nearest", "second", "variants", "classifiers", "table3", "table4")
"""What is run besides the way from tags and full supervision."""
POINTS = [
    "--data.init_args.supervision=points",
    "--data.init_args.points=points.json",
    "--data.init_args.cues_dir=null",
]
"""For a configuration that is written for tags."""
TRUE = ["--data.init_args.semantic_source=ground_truth"]


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
        self.semantic_rounds([self.cues], "CAM_maps", {"semantic": "Retrained_maps", "semantic2": "Retrained2_maps"})
        self.run("tags", "fit", "tags", [self.cues, *self.start("semantic2", "Retrained2_maps")])
        self.tested("tags", "tags")

    def semantic_rounds(self, labels: Sequence[str], maps: str, rounds: Mapping[str, str]) -> None:
        """Trainings of semantic maps, the first on ``maps``, each later one on those of the one before; by stage."""
        start = [self.maps(maps)]
        for stage, made in rounds.items():
            self.run(stage, "fit", "semantic", [*labels, *start])
            given = [*labels, self.maps(maps), "--trainer.callbacks=SemanticMapWriter", ANEW]
            given += [f"--trainer.callbacks.output_dir={self.below_root(made)}"]
            given += [f"--trainer.callbacks.earlier_dir={self.below_root(maps)}", "--data.init_args.label_quality=true"]
            self.run(f"{stage}_maps", "predict", "semantic", given, reads=stage)
            start, maps = self.start(stage, made), made

    def maps(self, name: str) -> str:
        """The option that reads semantic maps of this seed."""
        return f"--data.init_args.semantic_dir={self.below_root(name)}"

    def start(self, stage: str, maps: str) -> list[str]:
        """Options of a training that starts from the network of a stage, on these maps."""
        return [f"--model.init_args.init_from={self.folder / stage / 'checkpoints/last.ckpt'}", self.maps(maps)]

    def tested(self, name: str, config: str) -> None:
        """Scores, by each of ``TESTS``."""
        cues = [] if config == "points" else [self.cues]
        for suffix, options in TESTS.items():
            self.run(name + suffix, "test", config, [*cues, *options], reads=name)

    def part(self, name: str) -> None:
        """One of ``PARTS``."""
        methods: dict[str, Callable[[], None]] = {
            "maps": self.compare_maps,
            "points": self.points,
            "alone": self.points_alone,
            "round2": self.another_round,
            "nearest": self.nearest,
            "second": self.second_stages,
            "variants": self.variants,
            "classifiers": self.classifiers,
            "table3": self.table3,
            "table4": self.table4,
        }
        methods[name]()

    def compare_maps(self) -> None:
        """What each step of making maps from the classifier gives, on the development split."""
        for name, (option, iterations, wide, threshold) in MAPS.items():
            folder = stage_of(f"dev {name}")
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
        self.place_points()
        self.run("points", "fit", "points", self.start("semantic2", "Retrained2_maps"))
        self.tested("points", "points")

    def points_alone(self) -> None:
        """One point per object and no tags of images: the maps are grown from the points, then retrained as often."""
        self.place_points()
        grow = ["--model=GrownMaps", "--data.init_args.predict_split=train", "--data.init_args.label_quality=true"]
        grow += ["--trainer.callbacks=SemanticMapWriter", ANEW]
        grow += [f"--trainer.callbacks.output_dir={self.below_root('Grown_maps')}"]
        self.run("grown_maps", "predict", "points", grow)
        rounds = {"alone_semantic": "Alone_maps", "alone_semantic2": "Alone2_maps"}
        self.semantic_rounds(POINTS, "Grown_maps", rounds)
        self.run("points_alone", "fit", "points", self.start("alone_semantic2", "Alone2_maps"))
        self.tested("points_alone", "points")

    def place_points(self) -> None:
        """A point in each object of the training photographs."""
        if not (self.root / "points.json").exists():
            source = str(self.root / "instances_train.json")
            command("points", "--from", "coco", source, "--output", str(self.root / "points.json"))

    def variants(self) -> None:
        """What was tried, each in a training of its own from the network and the maps of the semantic rounds."""
        for name, (config, options) in VARIANTS.items():
            if options:
                start = self.start("semantic2", "Retrained2_maps")
                given = [*options, *start, *([self.cues] if config == "tags" else [])]
                self.run(stage_of(name), "fit", config, given)
                self.run(stage_of(name), "test", config, given, reads=stage_of(name))

    def classifiers(self) -> None:
        """Other poolings and peak attention: tags and cues."""
        for name, options in CLASSIFIERS.items():
            if name != OWN:
                self.classifier(name, options)

    def classifier(self, name: str, options: Sequence[str]) -> None:
        """A classifier and its cues; maps are made by the first one alone."""
        stage, cues = stage_of(f"classifier {name}"), self.cues_of(name)
        given = [cues, *options, *([RAMP] if any("alpha=" in option for option in options) else [])]
        self.run(stage, "fit", "classifier", given)
        written = ["--trainer.callbacks=CueWriter", ANEW, "--data.init_args.label_quality=true"]
        self.run(stage, "predict", "classifier", [*given, *written], reads=stage)
        self.run(stage, "test", "classifier", given, reads=stage)

    def cues_of(self, classifier: str) -> str:
        """Where a classifier's cues are."""
        if classifier == OWN:
            return self.cues
        return f"--data.init_args.cues_dir={self.below_root(stage_of(f'cues {classifier}'))}"

    def table3(self) -> None:
        """What each part of the method gives, on cues of both poolings; all on the same maps, from the same start."""
        for pooling in POOLINGS:
            for row, (alpha, switches) in TABLE3.items():
                classifier = f"{pooling}, {alpha}"
                if classifier != OWN:
                    self.classifier(classifier, CLASSIFIERS[classifier])
                given = [self.cues_of(classifier), *switches, *self.start("semantic2", "Retrained2_maps")]
                stage = stage_of(f"table3 {pooling} {row}")
                self.run(stage, "fit", "tags", [*given, *OFTEN])
                self.run(stage, "test", "tags", given, reads=stage)

    def table4(self) -> None:
        """What the semantic maps are worth to the instances."""
        plain = [self.cues, PLAIN, "--trainer.callbacks=SemanticMapWriter", ANEW, "--trainer.callbacks.iterations=0"]
        plain += [f"--trainer.callbacks.output_dir={self.below_root('Plain_maps')}"]
        plain += [text.format(threshold=MAPS["CAM"][-1]) for text in DECIDED]
        self.run("plain_maps", "predict", "classifier", plain, reads="classifier")
        for source, option in TABLE4.items():
            given = [self.cues, option.format(seed=f"seed{self.seed}"), "--model.init_args.init_from=null"]
            stage = stage_of(f"table4 {source}")
            self.run(stage, "fit", "tags", given)
            self.run(stage, "test", "tags", given, reads=stage)

    def another_round(self) -> None:
        """Labels from networks of a first round, trainings on them that go on from these; full supervision as long."""
        self.round_on("tags", "round2", "tags", [self.cues, *self.start("tags", "Retrained2_maps")])
        if (self.folder / "points_alone/checkpoints/last.ckpt").exists():
            self.round_on("points_alone", "points_round2", "points", self.start("points_alone", "Alone2_maps"))
        self.supervised("full_longer", 2)

    def round_on(self, before: str, name: str, config: Supervision, start: Sequence[str]) -> None:
        """A training on what the network of the stage ``before`` says of its training images."""
        given = ["--config", "configs/labels.yaml", f"--model.init_args.oracle={config}", *start]
        self.run(before, "predict", config, given, reads=before)
        labels = f"--data.init_args.labels_from={self.folder / before / 'predictions'}"
        self.run(name, "fit", config, [*start, labels])
        self.tested(name, config)

    def nearest(self) -> None:
        """Trainings in which components with several cues teach too: each pixel belongs to the nearest (P2Seg)."""
        tags = [NEAREST, self.cues, *self.start("semantic2", "Retrained2_maps")]
        self.run("tags_nearest", "fit", "tags", tags)
        self.tested("tags_nearest", "tags")
        start = self.start("tags_nearest", "Retrained2_maps")
        self.round_on("tags_nearest", "round2_nearest", "tags", [NEAREST, self.cues, *start])
        for name, semantic, maps in (
            ("points", "semantic2", "Retrained2_maps"),
            ("points_alone", "alone_semantic2", "Alone2_maps"),
        ):
            if (self.folder / name).exists():
                self.run(f"{name}_nearest", "fit", "points", [NEAREST, *self.start(semantic, maps)])
                self.tested(f"{name}_nearest", "points")

    def second_stages(self) -> None:
        """A second stage for each supervision."""
        for supervision in SUPERVISIONS:
            self.second_stage(supervision)

    def second_stage(self, supervision: Supervision) -> None:
        """A Mask R-CNN on what the network of a stage says of its training images, or on true instances."""
        name, maps = f"{supervision}_second", self.maps("Retrained2_maps")
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

    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        paths = sorted(self.folder.glob("*/*_seconds.json"))
        taken = {
            f"{path.parent.name}, {path.stem.removesuffix('_seconds')}": json.loads(path.read_text()) for path in paths
        }
        return taken


def stage_of(row: str) -> str:
    """The folder of a row."""
    return row.replace(", ", "_").replace(" ", "_")


def photographs(root: Path, split: str) -> list[str]:
    """Files of a split, by name."""
    lines = [line.split(",") for line in (root / "tags.csv").read_text().splitlines()[1:]]
    return sorted(image for image, _, where in lines if where == split)
