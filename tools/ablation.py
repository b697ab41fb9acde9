"""Ablations that need no classifier, on shapes with point supervision: writes results/shapes/ablation_points.json.

Every finished run is kept in ``runs/ablation``; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiment import ROOT, fit_and_test, write_json

ROWS = {
    "full method": ("points", ()),
    "without guidance (IAG)": ("points", ("--model.init_args.guidance=false",)),
    "without refinement": ("points", ("--model.init_args.refinement=false",)),
    "without clustering": ("points", ("--model.init_args.clustering=false",)),
    "full supervision": ("full", ()),
}
METRICS = ("map25", "map50", "map70", "map75", "miou")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the configuration's)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--data", default="data/shapes", help="folder of the generated data set")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=Path("results/shapes/ablation_points.json"))
    arguments = parser.parse_args()

    def run(name: str, seed: int) -> dict[str, Any]:
        config, overrides = ROWS[name]
        folder = ROOT / arguments.runs / name.replace(" ", "_") / f"seed{seed}"
        extra = [f"--seed_everything={seed}", f"--data.init_args.root={arguments.data}", *overrides]
        if arguments.steps:
            extra.append(f"--trainer.max_steps={arguments.steps}")
        return fit_and_test(f"configs/shapes/{config}.yaml", folder, extra, threads=1, quiet=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        # seeds first: after a third of the time there is one complete table
        futures = {(name, seed): pool.submit(run, name, seed) for seed in arguments.seeds for name in ROWS}
        results = {key: future.result() for key, future in futures.items()}

    rows = []
    for name, (config, overrides) in ROWS.items():
        runs = [results[name, seed] for seed in arguments.seeds]
        values = {metric: [run["scores"][f"test/{metric}"] for run in runs] for metric in METRICS}
        rows.append(
            {
                "name": name,
                "seeds": arguments.seeds,
                "values": values["map50"],
                "mean": statistics.mean(values["map50"]),
                "std": statistics.stdev(values["map50"]) if len(runs) > 1 else 0.0,
                "all": values,
                "settings": {"config": f"configs/shapes/{config}.yaml", "overrides": list(overrides)},
                "seconds": [sum(run["seconds"].values()) for run in runs],
            }
        )
    content = {
        "metric": "map50",
        "command": shlex.join(["python", *sys.argv]),
        "steps": arguments.steps,
        "environment": results[next(iter(results))]["environment"],
        "rows": rows,
    }
    write_json(ROOT / arguments.output, content)
    for row in rows:
        print(f"{row['name']:<26}{row['mean']:.3f} ± {row['std']:.3f}   {[round(v, 3) for v in row['values']]}")


if __name__ == "__main__":
    main()
