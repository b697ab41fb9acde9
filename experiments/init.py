"""What ``bestie-pl init`` writes for nuclei, beside the defaults for a folder: writes results/nuclei/init.json.

Both trainings have the same points, given foreground maps, steps, batch and crop size; other sizes and lengths are of
``configs/folder/points.yaml`` on one side and those that ``init`` finds on the other. Finished runs are kept in
``runs/init``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json
from experiments.runs import METRICS, ROOT, command, fit_and_test


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the nuclei data set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/init"))
    parser.add_argument("--output", type=Path, default=Path("results/nuclei/init.json"))
    arguments = parser.parse_args()
    runs = ROOT / arguments.runs
    folder = runs / "nuclei"
    if not (folder / "configs").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("images", "semantic", "instances_train.json", "instances_val.json"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to((arguments.data / name).resolve())
        command("init", str(folder), "--device", "cpu", "--overwrite")
    shared = [
        f"--seed_everything={arguments.seed}",
        f"--trainer.max_steps={arguments.steps}",
        "--trainer.limit_val_batches=0",
        "--data.init_args.batch_size=8",  # a step costs the same on both sides
        "--data.init_args.crop_size=128",
        "--data.init_args.num_workers=0",
    ]
    layout = [f"--data.init_args.root={folder}", "--data.init_args.semantic_dir=semantic"]
    layout.append("--data.init_args.annotations=instances_{split}.json")
    rows = {
        "init": (str(folder / "configs" / "instances.yaml"), shared),
        "default": ("configs/folder/points.yaml", [*layout, *shared]),
    }

    def run(name: str) -> dict[str, Any]:
        config, overrides = rows[name]
        return fit_and_test(config, runs / name / f"seed{arguments.seed}", overrides, threads=1, quiet=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(rows, pool.map(run, rows), strict=True))
    content = {
        "command": shlex.join(["python", "-m", "experiments.init", *sys.argv[1:]]),
        "environment": results["init"]["environment"],
        "seed": arguments.seed,
        "steps": arguments.steps,
        "scores": {name: {m: run["scores"][f"test/{m}"] for m in METRICS} for name, run in results.items()},
        "seconds": {name: run["seconds"] for name, run in results.items()},
    }
    write_json(ROOT / arguments.output, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
