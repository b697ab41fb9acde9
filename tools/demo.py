"""What ``make demo`` shows: instance masks learnt from image tags alone, beside full supervision.

The stages of configs/shapes/pipeline.yaml have been run: classifier, cues and semantic maps, semantic round, instance
masks; and the same network on the true instances for as many steps in all. This makes their table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from bestie_pl.data.files import write_json
from experiments.runs import ROOT

SCORES = ("map25", "map50", "map70", "map75", "miou")
TRAINED = ("classifier", "semantic", "tags", "full")
TESTED = ("tags_refined", "full_refined")
COMMAND = (
    "bestie-pl pipeline --config configs/shapes/pipeline.yaml --folder runs/demo --stages tags_refined full_refined"
)


def main() -> None:
    """Print the table, and leave it and the pictures in the folder of the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where the pipeline left its stages")
    parser.add_argument("--record", action="store_true", help="also keep summary and pictures in results/shapes")
    arguments = parser.parse_args()
    folder: Path = ROOT / arguments.folder
    if missing := [stage for stage in (*TRAINED, *TESTED) if not (folder / f"{stage}.done.json").is_file()]:
        raise SystemExit(f"the stage {missing[0]} in {folder} is not done; `make demo` runs it, or: {COMMAND}")
    seconds = sum(_read(folder / f"{stage}.done.json")["seconds"] for stage in (*TRAINED, *TESTED))
    steps = {stage: steps_of(folder / stage) for stage in TRAINED}
    results = {stage: _read(folder / stage / "scores_test.json") for stage in ("tags", "full", *TESTED)}

    reference: dict[str, Any] = scores_of(results["full"]) | {"refined_at_test": scores_of(results["full_refined"])}
    summary: dict[str, Any] = {"supervision": "tags", "seconds": seconds}
    summary["steps"] = {stage: steps[stage] for stage in ("classifier", "semantic", "tags")}
    summary |= scores_of(results["tags"]) | {"refined_at_test": scores_of(results["tags_refined"])}
    summary["full_supervision"] = {"steps": steps["full"]} | reference
    summary["cues"] = _read(folder / "classifier/cue_report.json")["thresholds"]
    summary["semantic_maps"] = {
        stage: _read(folder / stage / "semantic_maps.json")["miou"] for stage in ("classifier", "semantic")
    }
    summary["environment"] = results["tags"]["environment"]
    for kind in ("tags", "full"):
        for name in ("training", "test"):
            shutil.copy(folder / kind / "pictures" / f"{name}.png", folder / f"{kind}_{name}.png")
    write_json(folder / "summary.json", summary)

    if arguments.record:
        command = f"{COMMAND}; python -m tools.demo --record"
        write_json(ROOT / "results/shapes/demo.json", summary | {"command": command})
        for name in ("tags_training", "tags_test"):
            shutil.copy(folder / f"{name}.png", ROOT / f"results/shapes/{name}.png")

    print(f"\n{'supervision':<30}" + "".join(f"{name:>8}" for name in SCORES))
    shown: tuple[tuple[str, dict[str, Any]], ...] = (("tags", summary), ("full", reference))
    for label, scores in shown:
        print(f"{label:<30}" + "".join(f"{scores[name]:8.3f}" for name in SCORES))
        refined = scores["refined_at_test"]
        print(f"{label + ', refined at test':<30}" + "".join(f"{refined[name]:8.3f}" for name in SCORES))
    share = summary["map50"] / max(reference["map50"], 1e-9)
    print(f"tags reach {share:.0%} of the mAP50 of full supervision")
    print(f"{seconds:.0f} s; scores in {arguments.folder}/summary.json, pictures in {arguments.folder}/*.png")


def steps_of(run: Path) -> int:
    """Optimiser steps of a training, as its configuration says."""
    steps: int = yaml.safe_load((run / "logs/version_0/config.yaml").read_text())["trainer"]["max_steps"]
    return steps


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """The scores of the summary, whatever their notes."""
    return {
        name: round(value, 4)
        for key, value in result["scores"].items()
        for name in SCORES
        if key.split("/", 1)[1] == name
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    main()
