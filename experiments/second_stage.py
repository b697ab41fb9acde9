"""Table 1: before and after the second stage, from tags and points, beside a Mask R-CNN on true instances.

For each seed the stages of configs/shapes/pipeline.yaml, which are kept: an interrupted call goes on where it stopped.
Writes results/shapes/table1.json, one row for each row of the paper's table (a dagger marks its second stages). The
same on nuclei, which have points alone: ``--pipeline configs/nuclei/pipeline.yaml --runs runs/second_stage_nuclei
--output results/nuclei/table1.json --rows points points_second full full_second``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bestie_pl.cli.main import main as bestie
from bestie_pl.data.files import write_text
from experiments.runs import ROOT, add_seed

METRICS = ("map25", "map50", "map70", "map75")
ROWS = {
    "tags": "tags: BESTIE",
    "tags_second": "tags: BESTIE †, a Mask R-CNN on its labels",
    "tags_itself": "tags: BESTIE, trained on its own labels for as many steps",
    "points": "points: BESTIE",
    "points_second": "points: BESTIE †, a Mask R-CNN on its labels",
    "full": "full: BESTIE's network on true instances",
    "full_second": "full: Mask R-CNN on true instances",
}
LABELS = {"tags_second": "tags_labels", "tags_itself": "tags_labels", "points_second": "points_labels"}
"""Whose labels a row learns from."""


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pipeline", type=Path, default=Path("configs/shapes/pipeline.yaml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/second_stage"))
    parser.add_argument("--steps", type=int, default=None, help="of every training, for a quick look")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("results/shapes/table1.json"))
    arguments = parser.parse_args()
    command = shlex.join(["python", "-m", "experiments.second_stage", *sys.argv[1:]])
    for seed in arguments.seeds:
        folder: Path = ROOT / arguments.runs / f"seed{seed}"
        run(arguments.pipeline, folder, seed, arguments.rows, arguments.steps)
        figures = {ROWS[row]: figures_of(folder, row) if row in arguments.rows else None for row in ROWS}
        show(add_seed(ROOT / arguments.output, seed, figures, command=command))


def run(pipeline: Path, folder: Path, seed: int, stages: list[str], steps: int | None) -> None:
    """The pipeline with another seed, and another number of steps, in a folder of its own."""
    content = yaml.safe_load(pipeline.read_text())
    content["options"].append(f"--seed_everything={seed}")
    if steps is not None:
        for stage in content["stages"].values():
            stage["commands"] = [
                f"{line} --trainer.max_steps={steps}" if line.startswith("fit ") else line for line in stage["commands"]
            ]
    write_text(folder / "pipeline.yaml", yaml.safe_dump(content, sort_keys=False))
    line = ["pipeline", "--config", str(folder / "pipeline.yaml"), "--folder", str(folder), "--stages", *stages]
    if status := bestie(line):
        raise SystemExit(status)


def figures_of(folder: Path, row: str) -> dict[str, Any]:
    """Scores of a stage, its steps, and the quality of the labels that it learnt."""
    scores = json.loads((folder / row / "scores_test.json").read_text())["scores"]
    steps = yaml.safe_load((folder / row / "logs/version_0/config.yaml").read_text())["trainer"]["max_steps"]
    figures: dict[str, Any] = {name: scores[f"test/{name}"] for name in METRICS} | {"steps": steps}
    if row in LABELS:
        report = json.loads((folder / LABELS[row] / "labels.report.json").read_text())
        figures["labels"] = {"number": report["labels"]} | report["quality"]
    return figures | {"seconds": json.loads((folder / f"{row}.done.json").read_text())["seconds"]}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, a row a stage; mAP50 is the row's figure."""
    print(f"{'':<64}" + "".join(f"{name:>8}" for name in METRICS))
    for row in rows:
        means = (statistics.mean(row["all"][name]) for name in METRICS)
        print(f"{row['name']:<64}" + "".join(f"{100 * mean:8.1f}" for mean in means))


if __name__ == "__main__":
    main()
