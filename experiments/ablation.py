"""Ablations that need no classifier, on shapes with point supervision: writes results/shapes/ablation_points.json.

With points, clustering has no part in training, only in finding the centres of test images: that row tests the networks
of the full method. Every finished run is kept in ``runs/ablation``; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.runs import ROOT, fit_and_test, write_table

ROWS = {
    "full method": ("points", ()),
    "without guidance (IAG)": ("points", ("--model.init_args.guidance=false",)),
    "without refinement": ("points", ("--model.init_args.refinement=false",)),
    "without clustering": ("points", ("--model.init_args.clustering=false",)),
    "full supervision": ("full", ()),
}


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
        checkpoint = None
        if name == "without clustering":
            checkpoint = ROOT / arguments.runs / "full_method" / f"seed{seed}" / "checkpoints" / "last.ckpt"
        return fit_and_test(
            f"configs/shapes/{config}.yaml", folder, extra, checkpoint=checkpoint, threads=1, quiet=True
        )

    with ThreadPoolExecutor(arguments.jobs) as pool:
        # seeds first: after a third of the time there is one complete table
        trained = [name for name in ROWS if name != "without clustering"]
        futures = {(name, seed): pool.submit(run, name, seed) for seed in arguments.seeds for name in trained}
        results = {key: future.result() for key, future in futures.items()}
    results |= {("without clustering", seed): run("without clustering", seed) for seed in arguments.seeds}

    settings = {name: {"config": f"configs/shapes/{c}.yaml", "overrides": list(o)} for name, (c, o) in ROWS.items()}
    write_table(ROOT / arguments.output, results, settings, arguments.seeds)


if __name__ == "__main__":
    main()
