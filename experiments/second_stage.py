"""Table 1 on shapes: before and after the second stage, from tags and points, beside a Mask R-CNN on true instances.

For each seed the stages of configs/shapes/pipeline.yaml, which are kept: an interrupted call goes on where it stopped.
Writes results/shapes/table1.json, one row for each row of the paper's table (a dagger marks its second stages).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from bestie_pl.callbacks.scores import environment
from bestie_pl.cli.main import main as bestie
from bestie_pl.data.files import write_json, write_text
from experiments.runs import ROOT

METRICS = ("map25", "map50", "map70", "map75")
ROWS = {
    "tags": ("tags", "BESTIE"),
    "tags_second": ("tags", "BESTIE †: a Mask R-CNN on its labels"),
    "tags_itself": ("tags", "BESTIE, trained on its own labels for as many steps"),
    "points": ("points", "BESTIE"),
    "points_second": ("points", "BESTIE †: a Mask R-CNN on its labels"),
    "full": ("full", "BESTIE's network on true instances"),
    "full_second": ("full", "Mask R-CNN on true instances"),
}
LABELS = {"tags_second": "tags_labels", "tags_itself": "tags_labels", "points_second": "points_labels"}
"""Whose labels a row learns from."""
PAPER = {
    "tags": {"map25": 53.5, "map50": 41.8, "map70": 28.3, "map75": 24.2},
    "tags_second": {"map25": 61.2, "map50": 51.0, "map70": 31.9, "map75": 26.6},
    "points": {"map25": 58.6, "map50": 46.7, "map70": 33.1, "map75": 26.3},
    "points_second": {"map25": 66.4, "map50": 56.1, "map70": 36.5, "map75": 30.2},
    "full_second": {"map25": 76.7, "map50": 67.9, "map70": 52.5, "map75": 44.9},
}
"""The paper's figures on VOC 2012 val, in per cent. Source: its table 1."""


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
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in arguments.rows}
    for seed in arguments.seeds:
        folder: Path = ROOT / arguments.runs / f"seed{seed}"
        run(arguments.pipeline, folder, seed, arguments.rows, arguments.steps)
        for row in arguments.rows:
            results[row].append(figures_of(folder, row))
    write_table(ROOT / arguments.output, results, arguments.seeds)


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


def write_table(path: Path, results: dict[str, list[dict[str, Any]]], seeds: list[int]) -> None:
    """Write and print one row a stage; mAP50 is the row's figure."""
    rows = []
    print(f"{'supervision':<10}{'row':<54}" + "".join(f"{name:>8}" for name in METRICS))
    for row, runs in results.items():
        supervision, name = ROWS[row]
        means = {metric: statistics.mean(run[metric] for run in runs) for metric in METRICS}
        values = [run["map50"] for run in runs]
        rows.append(
            {
                "name": f"{supervision}: {name}",
                "supervision": supervision,
                "stage": row,
                "seeds": seeds,
                "values": values,
                "mean": means["map50"],
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "means": means,
                "by_seed": runs,
                "paper_voc": PAPER.get(row),
            }
        )
        print(f"{supervision:<10}{name:<54}" + "".join(f"{100 * means[metric]:8.1f}" for metric in METRICS))
    head = {"metric": "map50", "command": " ".join(["python -m experiments.second_stage", *sys.argv[1:]])}
    write_json(path, head | {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
