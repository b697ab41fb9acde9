"""The tables of a training from image tags alone, on shapes: writes results/shapes/table3.json and its siblings.

For each seed: four classifiers (two poolings, with and without peak attention), one semantic round, and a training for
each row of the paper's tables 3, 4 and 5 and of the comparison with full supervision. Every finished stage is kept in
``runs/tags`` and every finished seed in the results, so an interrupted call goes on where it stopped, and later calls
add seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json
from experiments.runs import ANEW, METRICS, ROOT, add_seed, clear, command, curves_of, fit_and_test

RESULTS = Path("results/shapes")
POOLINGS = {"mean": "mean pooling", "ngwp": "nGWP pooling"}
NO_GUIDANCE, NO_REFINEMENT, NO_CLUSTERING = (
    f"--model.init_args.{name}=false" for name in ("guidance", "refinement", "clustering")
)
ROWS = {
    "none": ("cam", NO_GUIDANCE, NO_REFINEMENT, NO_CLUSTERING),
    "PAM": ("pam", NO_GUIDANCE, NO_REFINEMENT, NO_CLUSTERING),
    "PAM, IAG": ("pam", NO_REFINEMENT, NO_CLUSTERING),
    "PAM, IAG, refinement": ("pam", NO_CLUSTERING),
    "PAM, IAG, refinement, clustering": ("pam",),
}
"""Table 3: whose cues, and what is switched off. Clustering works in refinement and when predicting."""
FOREGROUND = ("given", "predicted", "both")
"""Whose pixels refined labels have; the first is the last row of table 3 with nGWP."""
OFTEN = "--trainer.check_val_every_n_epoch=1"
"""For the curves of mAP50 over training."""
CLASSIFIERS = {
    "mean_cam": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0"),
    "mean_pam": ("--model.init_args.pooling=mean", "--model.init_args.alpha=0.7"),
    "ngwp_cam": ("--model.init_args.pooling=ngwp", "--model.init_args.alpha=0"),
    "ngwp_pam": ("--model.init_args.pooling=ngwp", "--model.init_args.alpha=0.7"),
}
"""All train for the same steps; alpha is the paper's, approached in the first half of the training."""
SOURCES = {
    "CAM": "--data.init_args.semantic_dir={seed}/CAM",
    "CAM, PAMR": "--data.init_args.semantic_dir={seed}/ngwp_cam/CAM_maps",
    "retrained, PAMR": "--data.init_args.semantic_dir={seed}/Retrained_maps",
    "ground truth": "--data.init_args.semantic_source=ground_truth",
}
"""Table 4: where the semantic maps come from. All start from ImageNet: the semantic round learnt from one of them."""

DATA = ("--data.init_args.clutter=0.25", "--data.init_args.generator_seed=1")
"""The scenes of configs/shapes/tags.yaml, for configurations that are written for others."""
METRIC_OF = {"classifiers": "instances_with_one_cue", "curves": None}
"""What a row's mean is of, where it is not mAP50."""
KINDS = {
    "full": ("full supervision", "full"),
    "points": ("points", "full"),
    "tags": ("tags", "full"),
    "full_longer": ("full supervision, longer", "full_longer"),
    "iteration1": ("tags, another round", "full_longer"),
}
"""What is compared with full supervision, and with which: one that has as many steps in all."""
CUE_THRESHOLD = 0.2
"""That of configs/shapes/tags.yaml."""


@dataclass(frozen=True)
class Stage:
    """Something to run once after others."""

    run: Callable[[], dict[str, Any]]
    after: tuple[str, ...] = ()


@dataclass
class Seed:
    """All stages of one seed, and the command lines they need."""

    number: int
    folder: Path
    root: str
    steps: dict[str, int | None]
    stages: dict[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._classifier("ngwp_cam")
        self.stages["semantic"] = Stage(self._semantic_round, ("ngwp_cam",))
        self._training("tags", [self._cues("ngwp_cam"), *self._retrained])
        self._full("full", 1)
        self._training("points", self._retrained, config="points")
        for name, config in (("tags", "tags"), ("full", "full"), ("points", "points")):
            self._tested_refined(name, config)
        for pooling in reversed(POOLINGS):
            for kind in ("cam", "pam"):
                self._classifier(f"{pooling}_{kind}")
            for row, (kind, *switches) in ROWS.items():
                given = [self._cues(f"{pooling}_{kind}"), *self._retrained, *switches, OFTEN]
                self._training(f"table3/{pooling}/{row}", given, after=(f"{pooling}_{kind}",))
        for foreground in FOREGROUND[1:]:
            given = [self._cues("ngwp_pam"), *self._retrained, f"--model.init_args.foreground={foreground}"]
            self._training(f"foreground/{foreground}", given, after=("ngwp_pam",))
        self.stages["CAM"] = Stage(self._plain_maps, ("ngwp_cam",))
        for source, option in SOURCES.items():
            given = [self._cues("ngwp_cam"), option.format(seed=self.name), "--model.init_args.init_from=null"]
            self._training(f"table4/{source}", given, after=("CAM",))
        for number in (1, 2):
            self._iteration(number)
        self._full("full_longer", 2)
        for name, config in (("full_longer", "full"), ("iteration1", "tags")):
            self._tested_refined(name, config)

    @property
    def name(self) -> str:
        """Of the folder below the data set's root."""
        return f"seed{self.number}"

    @property
    def _retrained(self) -> list[str]:
        return [
            f"--data.init_args.semantic_dir={self.name}/Retrained_maps",
            f"--model.init_args.init_from={self.folder / 'semantic/checkpoints/last.ckpt'}",
        ]

    def _cues(self, classifier: str) -> str:
        return f"--data.init_args.cues_dir={self.name}/{classifier}/cues"

    def _shared(self, folder: Path, steps: int | None) -> list[str]:
        options = [
            f"--seed_everything={self.number}",
            f"--data.init_args.root={self.root}",
            *DATA,
            f"--trainer.default_root_dir={folder}",
            "--trainer.enable_progress_bar=false",
        ]
        return [*options, *([f"--trainer.max_steps={steps}"] if steps else [])]

    def _classifier(self, name: str) -> None:
        folder, overrides = self.folder / name, CLASSIFIERS[name]
        maps = ["--trainer.callbacks=CueWriter", ANEW, "--trainer.callbacks+=SemanticMapWriter", ANEW]
        maps.append(f"--trainer.callbacks.output_dir={self.name}/{name}/CAM_maps")
        given = ["--config", "configs/shapes/classifier.yaml", *overrides, self._cues(name)]
        given += self._shared(folder, self.steps["classifier"])
        if name.endswith("pam"):
            given.append(f"--model.init_args.alpha_ramp_steps={(self.steps['classifier'] or 400) // 2}")
        self.stages[name] = Stage(
            lambda: self._once(
                folder,
                [["fit", *given], ["predict", *given, *maps, "--ckpt_path=last"], ["test", *given, "--ckpt_path=last"]],
            )
        )

    def _plain_maps(self) -> dict[str, Any]:
        folder = self.folder / "CAM"
        given = ["--config", "configs/shapes/classifier.yaml", *CLASSIFIERS["ngwp_cam"], *self._shared(folder, None)]
        given.append(f"--ckpt_path={self.folder / 'ngwp_cam/checkpoints/last.ckpt'}")
        given += ["--trainer.callbacks=SemanticMapWriter", ANEW, f"--trainer.callbacks.output_dir={self.name}/CAM"]
        return self._once(folder, [["predict", *given, "--trainer.callbacks.iterations=0"]])

    def _semantic_round(self) -> dict[str, Any]:
        folder, before = self.folder / "semantic", f"{self.name}/ngwp_cam/CAM_maps"
        given = ["--config", "configs/shapes/semantic.yaml", f"--data.init_args.semantic_dir={before}"]
        given += [self._cues("ngwp_cam"), *self._shared(folder, self.steps["semantic"])]
        maps = ["--trainer.callbacks=SemanticMapWriter", ANEW, f"--trainer.callbacks.earlier_dir={before}"]
        maps.append(f"--trainer.callbacks.output_dir={self.name}/Retrained_maps")
        return self._once(folder, [["fit", *given], ["predict", *given, *maps, "--ckpt_path=last"]])

    def _full(self, name: str, trainings: int) -> None:
        """True instances, for as many steps as the semantic round and so many trainings from tags have in all."""
        steps = (self.steps["semantic"] or 250) + trainings * (self.steps["masks"] or 400)
        self.stages[name] = Stage(lambda: self._fit(name, "full", [], steps=steps))

    def _training(self, name: str, overrides: Sequence[str], after: Sequence[str] = (), config: str = "tags") -> None:
        self.stages[name] = Stage(lambda: self._fit(name, config, overrides), (*after, "semantic"))

    def _iteration(self, number: int) -> None:
        """A training on the labels and maps that the round before makes of its training images, from where it ended."""
        name, before = f"iteration{number}", f"iteration{number - 1}" if number > 1 else "tags"
        maps, maps_before = (f"{self.name}/{n}_maps" for n in (name, before if number > 1 else "Retrained"))
        folder, log = self.folder / before, self.folder / before / "output.txt"
        checkpoint = folder / "checkpoints/last.ckpt"
        given = [*self._shared(folder, None), self._cues("ngwp_cam"), f"--data.init_args.semantic_dir={maps_before}"]
        labels = ["--config", "configs/shapes/tags.yaml", "--config", "configs/labels.yaml"]
        # the same network, of which this module has all but the instance branch
        writer = ["--config", "configs/shapes/semantic.yaml", "--trainer.callbacks=SemanticMapWriter", ANEW]
        writer += [f"--trainer.callbacks.output_dir={maps}", f"--trainer.callbacks.earlier_dir={maps_before}"]

        def run() -> dict[str, Any]:
            if not (self.folder / name / "result.json").exists():
                for options in (labels, writer):
                    command("predict", *options, *given, f"--ckpt_path={checkpoint}", threads=1, log=log)
            start = [
                f"--data.init_args.labels_from={folder / 'predictions'}",
                f"--model.init_args.init_from={checkpoint}",
            ]
            return self._fit(name, "tags", [*start, f"--data.init_args.semantic_dir={maps}"])

        self.stages[name] = Stage(run, (before,))

    def _tested_refined(self, name: str, config: str) -> None:
        checkpoint = self.folder / name / "checkpoints/last.ckpt"
        given = ["--model.init_args.inference.refine=pamr"]
        self.stages[f"{name}_refined"] = Stage(
            lambda: self._fit(f"{name}_refined", config, given, checkpoint=checkpoint), (name,)
        )

    def _fit(
        self,
        name: str,
        config: str,
        overrides: Sequence[str],
        *,
        steps: int | None = None,
        checkpoint: Path | None = None,
    ) -> dict[str, Any]:
        folder = self.folder / name.replace(", ", "_").replace(" ", "_")
        extra = [f"--seed_everything={self.number}", f"--data.init_args.root={self.root}", *DATA]
        if steps := steps or self.steps["masks"]:
            extra.append(f"--trainer.max_steps={steps}")
        return fit_and_test(
            f"configs/shapes/{config}.yaml", folder, [*extra, *overrides], checkpoint=checkpoint, threads=1, quiet=True
        )

    def _once(self, folder: Path, commands: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Run commands unless they were run, and gather the reports that they left."""
        done = folder / "result.json"
        if not done.exists():
            clear(folder)
            for arguments in commands:
                command(*arguments, threads=1, log=folder / "output.txt")
            names = ("cue_report", "semantic_maps", "scores_test")
            found = {name: folder / f"{name}.json" for name in names}
            write_json(done, {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()})
        content: dict[str, Any] = json.loads(done.read_text())
        return content


def with_needed(stages: dict[str, Stage], names: Sequence[str]) -> dict[str, Stage]:
    """The stages whose names start with one of these, and all that come before them."""
    wanted = {stage for stage in stages if stage.startswith(tuple(names))}
    while missing := {before for stage in wanted for before in stages[stage].after} - wanted:
        wanted |= missing
    return {name: stage for name, stage in stages.items() if name in wanted}


def run_all(stages: dict[str, Stage], jobs: int, then: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """Run all stages, each when those before it are done; ``then`` gets all results after each of them."""
    results: dict[str, dict[str, Any]] = {}
    waiting = dict(stages)
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[dict[str, Any]], str] = {}
        while waiting or running:
            for name, stage in list(waiting.items()):
                if len(running) < jobs and all(other in results for other in stage.after):
                    running[pool.submit(stage.run)] = name
                    del waiting[name]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                results[name] = future.result()
                print(f"finished {name}", flush=True)
                then(results)


def main() -> None:
    """Run what is missing and write the tables, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--data", default="data/plain_shapes", help="folder of the generated data set")
    parser.add_argument("--runs", type=Path, default=Path("runs/tags"))
    for stage in ("classifier", "semantic", "masks"):
        parser.add_argument(f"--{stage}-steps", type=int, default=None, help="default: the configuration's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", default=[""], help="starts of stages' names, such as table3/ngwp")
    arguments = parser.parse_args()
    steps = {stage: getattr(arguments, f"{stage}_steps") for stage in ("classifier", "semantic", "masks")}
    for number in arguments.seeds:
        seed = Seed(number, ROOT / arguments.runs / f"seed{number}", arguments.data, steps)
        run_all(
            with_needed(seed.stages, arguments.only),
            arguments.jobs,
            partial(write_tables, ROOT / arguments.results, number),
        )


def write_tables(folder: Path, seed: int, results: dict[str, dict[str, Any]]) -> None:
    """Put what one seed gave so far into the tables; a row needs all that it is made of."""
    tables: dict[str, dict[str, dict[str, Any] | None]] = {}

    def add(table: str, row: str, make: Callable[..., dict[str, Any]], *stages: str) -> None:
        ready = all(stage in results for stage in stages)
        tables.setdefault(table, {})[row] = make(*(results[stage] for stage in stages)) if ready else None

    for pooling, label in POOLINGS.items():
        for row in ROWS:
            add("table3", f"{label}: {row}", scores_of, f"table3/{pooling}/{row}")
            add("curves", f"{label}: {row}", curves_of_result, f"table3/{pooling}/{row}")
    for foreground in FOREGROUND:
        stage = "table3/ngwp/PAM, IAG, refinement, clustering" if foreground == "given" else f"foreground/{foreground}"
        add("foreground", foreground, scores_of, stage)
    for source, maps in zip(SOURCES, ("CAM", "ngwp_cam", "semantic"), strict=False):
        add("table4", source, scores_with_maps, f"table4/{source}", maps)
    add("table4", "ground truth", scores_of, "table4/ground truth")
    for number in range(3):
        add("table5", f"iteration {number}", scores_of, f"iteration{number}" if number else "tags")
    for suffix, label in (("", ""), ("_refined", ", refined at test")):
        for kind, (name, reference) in KINDS.items():
            add("shares", f"{name}{label}", shares_of, f"{kind}{suffix}", f"{reference}{suffix}")
    for name in CLASSIFIERS:
        add("classifiers", name, figures_of_classifier, name)
    switches = {f"{label}: {row}": ROWS[row] for label in POOLINGS.values() for row in ROWS}
    settings = switches | {source: (option,) for source, option in SOURCES.items()} | CLASSIFIERS
    for name, rows in tables.items():
        add_seed(
            folder / f"{name}.json",
            seed,
            rows,
            command="python -m experiments.tags",
            metric=METRIC_OF.get(name, "map50"),
            settings=settings,
        )


def curves_of_result(result: dict[str, Any]) -> dict[str, Any]:
    """See ``curves_of``."""
    return curves_of(ROOT / result["folder"]) or {}


def scores_with_maps(result: dict[str, Any], maker: dict[str, Any]) -> dict[str, float]:
    """Scores, and the mean IoU of the semantic maps that were learnt from."""
    return scores_of(result) | {"maps_miou": maker["semantic_maps"]["miou"]}


def shares_of(result: dict[str, Any], full: dict[str, Any]) -> dict[str, float]:
    """Scores, and mAP50 as a share of full supervision's."""
    return scores_of(result) | {"share": scores_of(result)["map50"] / scores_of(full)["map50"]}


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """Scores on the test images, whatever their notes."""
    return {m: v for name, v in result["scores"].items() for m in METRICS if name.split("/", 1)[1] == m}


def figures_of_classifier(result: dict[str, Any]) -> dict[str, float]:
    """What a classifier's tags, cues and maps are worth; cues above the threshold that training uses."""
    cues = [row for row in result["cue_report"]["thresholds"] if abs(row["threshold"] - CUE_THRESHOLD) < 1e-6]
    names = ("precision", "recall", "instances_with_one_cue", "tags_with_cue")
    figures = {name: cues[0][name] for name in names}
    return figures | {
        "tag_map": result["scores_test"]["scores"]["test/map"],
        "maps_miou": result["semantic_maps"]["miou"],
    }


if __name__ == "__main__":
    main()
