"""``make demo``: learn instance masks from image tags alone, and compare with full supervision.

Generates a data set of shapes and goes the whole way on it: classifier, cues and semantic maps, semantic round,
instance masks. Trains the same network on the true instances for as many steps in all, tests both, and leaves
everything in ``runs/demo``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json
from experiments.runs import ROOT, command, fit_and_test

SCORES = ("map25", "map50", "map70", "map75", "miou")
STEPS = {"classifier": 300, "semantic": 250, "tags": 300}
"""A quarter less than the configurations' in two of them: slower machines too shall be done in 20 minutes. Full
supervision gets the sum of the two that train its network."""
SCENES = ("--data.init_args.clutter=0.25", "--data.init_args.generator_seed=1")
"""Those of configs/shapes/tags.yaml, which configs/shapes/full.yaml does not ask for by itself."""


def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=None, help="training steps of each stage, for a quick look")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--record", action="store_true", help="also keep summary and pictures in results/shapes")
    arguments = parser.parse_args()
    folder: Path = ROOT / arguments.folder
    if folder.exists():
        shutil.rmtree(folder)
    steps = {stage: arguments.steps or number for stage, number in STEPS.items()}
    data = [f"--data.init_args.root={arguments.folder / 'shapes'}", *SCENES]
    pictures = ["--trainer.callbacks+=PictureWriter", "--trainer.callbacks.count=4"]

    start = time.monotonic()
    for stage in ("classifier", "semantic"):
        given = ["--config", f"configs/shapes/{stage}.yaml", *data, f"--trainer.default_root_dir={folder / stage}"]
        command("fit", *given, f"--trainer.max_steps={steps[stage]}")
        command("predict", *given, "--ckpt_path=last")
    start_from = f"--model.init_args.init_from={folder / 'semantic/checkpoints/last.ckpt'}"
    both = {"tags": steps["tags"], "full": steps["semantic"] + steps["tags"]}
    results: dict[str, dict[str, Any]] = {}
    for kind, number in both.items():
        config = f"configs/shapes/{kind}.yaml"
        extra = [*data, *([start_from] if kind == "tags" else [])]
        fit = [*extra, *pictures, f"--trainer.max_steps={number}"]
        results[kind] = fit_and_test(config, folder / kind, fit)
        checkpoint = folder / kind / "checkpoints/last.ckpt"
        refined = [*extra, "--model.init_args.inference.refine=pamr"]
        results[f"{kind}_refined"] = fit_and_test(config, folder / f"{kind}_refined", refined, checkpoint=checkpoint)
    seconds = round(time.monotonic() - start, 1)

    reference = scores_of(results["full"]) | {"refined_at_test": scores_of(results["full_refined"])}
    summary: dict[str, Any] = {"supervision": "tags", "seconds": seconds, "steps": steps}
    summary |= scores_of(results["tags"]) | {"refined_at_test": scores_of(results["tags_refined"])}
    summary["full_supervision"] = {"steps": both["full"]} | reference
    summary["cues"] = json.loads((folder / "classifier/cue_report.json").read_text())["thresholds"]
    summary["semantic_maps"] = {
        stage: json.loads((folder / stage / "semantic_maps.json").read_text())["miou"]
        for stage in ("classifier", "semantic")
    }
    summary["environment"] = results["tags"]["environment"]
    for kind in both:
        for name in ("training", "test"):
            shutil.copy(folder / kind / "pictures" / f"{name}.png", folder / f"{kind}_{name}.png")
    write_json(folder / "summary.json", summary)

    if arguments.record:
        write_json(ROOT / "results/shapes/demo.json", summary | {"command": "python -m tools.demo --record"})
        for name in ("tags_training", "tags_test"):
            shutil.copy(folder / f"{name}.png", ROOT / f"results/shapes/{name}.png")

    print(f"\n{'supervision':<30}" + "".join(f"{name:>8}" for name in SCORES))
    for label, scores in (("tags", summary), ("full", reference)):
        print(f"{label:<30}" + "".join(f"{scores[name]:8.3f}" for name in SCORES))
        refined = scores["refined_at_test"]
        print(f"{label + ', refined at test':<30}" + "".join(f"{refined[name]:8.3f}" for name in SCORES))
    share = summary["map50"] / max(reference["map50"], 1e-9)
    print(f"tags reach {share:.0%} of the mAP50 of full supervision")
    print(f"{seconds:.0f} s; scores in {arguments.folder}/summary.json, pictures in {arguments.folder}/*.png")


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """The scores of the summary, whatever their notes."""
    return {
        name: round(value, 4)
        for key, value in result["scores"].items()
        for name in SCORES
        if key.split("/", 1)[1] == name
    }


if __name__ == "__main__":
    main()
