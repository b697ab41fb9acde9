"""Touching nuclei from points, beside full supervision: writes results/nuclei/points.json.

Every finished run is kept in ``runs/nuclei``; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.runs import ROOT, fit_and_test, write_table


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the nuclei data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/nuclei"))
    parser.add_argument("--output", type=Path, default=Path("results/nuclei/points.json"))
    arguments = parser.parse_args()
    rows = {"points": "configs/nuclei/points.yaml", "full supervision": "configs/nuclei/full.yaml"}

    def run(name: str, seed: int) -> dict[str, Any]:
        folder = ROOT / arguments.runs / name.replace(" ", "_") / f"seed{seed}"
        overrides = [f"--data.init_args.root={Path(arguments.data).resolve()}", f"--seed_everything={seed}"]
        return fit_and_test(rows[name], folder, overrides, threads=1, quiet=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {(name, seed): pool.submit(run, name, seed) for seed in arguments.seeds for name in rows}
        results = {key: future.result() for key, future in futures.items()}
    settings = {name: {"config": config, "overrides": []} for name, config in rows.items()}
    write_table(ROOT / arguments.output, results, settings, arguments.seeds)
    for name in ("test", "training"):
        picture = ROOT / arguments.runs / "points" / f"seed{arguments.seeds[0]}" / "pictures" / f"{name}.png"
        shutil.copy(picture, ROOT / arguments.output.parent / f"points_{name}.png")


if __name__ == "__main__":
    main()
