"""What mirrored and scaled views are worth at test time, on shapes: writes results/shapes/test_time.json.

Tests the checkpoints of ``experiments/tags.py``, as they are, with each way of averaging maps. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bestie_pl.cli.lightning import run
from bestie_pl.data.files import write_json
from experiments.runs import ROOT

MIRROR = "--model.init_args.inference.mirror=true"
SCALES = "--model.init_args.inference.scales=[0.75,1.0,1.25]"
TWO_MAPS = "--model.init_args.inference.average_offsets=false"
ROWS = {
    "plain": (),
    "mirror, three maps": (MIRROR,),
    "mirror, two maps": (MIRROR, TWO_MAPS),
    "scales": (SCALES,),
    "scales and mirror": (SCALES, MIRROR),
}
"""Three maps are the paper's recipe; the release averages two of them and keeps the offsets of the plain image."""
SETTINGS = ("recipe", "inference", "oracle", "ground_truth_used")


def main() -> None:
    """Test each checkpoint in each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["full", "points", "tags"], choices=("full", "points", "tags"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data", default="data/plain_shapes", help="folder of the generated data set")
    parser.add_argument("--runs", type=Path, default=Path("runs/tags"), help="folder of the trainings")
    parser.add_argument("--tests", type=Path, default=Path("runs/test_time"), help="folder for what the tests write")
    parser.add_argument("--output", type=Path, default=Path("results/shapes/test_time.json"))
    arguments = parser.parse_args()
    rows, content = [], {}
    for kind in arguments.kinds:
        for name, options in ROWS.items():
            found, seconds = [], []
            for seed in arguments.seeds:
                checkpoint = ROOT / arguments.runs / f"seed{seed}" / kind / "checkpoints" / "last.ckpt"
                folder = ROOT / arguments.tests / f"seed{seed}" / kind / name.replace(", ", "_").replace(" ", "_")
                start = time.process_time()
                content = test(kind, checkpoint, folder, [f"--data.init_args.root={arguments.data}", *options])
                seconds.append(round(time.process_time() - start, 1))
                found.append({key.removeprefix("test/"): value for key, value in content["scores"].items()})
            values = {key: [scores[key] for scores in found] for key in found[0] if "/" not in key}
            settings = {key: content[key] for key in SETTINGS}
            rows.append(
                {
                    "name": f"{kind}: {name}",
                    "seeds": arguments.seeds,
                    "all": values,
                    "settings": settings,
                    "cpu_seconds": seconds,
                }
            )
            print(f"{rows[-1]['name']:<32}mAP50 {statistics.mean(values['map50']):.3f}   {seconds[0]} s", flush=True)
    command = shlex.join(["python", *sys.argv])
    write_json(ROOT / arguments.output, {"command": command, "environment": content["environment"], "rows": rows})


def test(kind: str, checkpoint: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """What the score file of one test says."""
    # the scenes of configs/shapes/tags.yaml, also for configurations that are written for others
    scenes = ["--data.init_args.clutter=0.25", "--data.init_args.generator_seed=1"]
    trainer = [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    config = ["--config", str(ROOT / f"configs/shapes/{kind}.yaml")]
    run(["test", *config, *scenes, *trainer, *options, f"--ckpt_path={checkpoint}"])
    content: dict[str, Any] = json.loads((folder / "scores_test.json").read_text())
    return content


if __name__ == "__main__":
    main()
