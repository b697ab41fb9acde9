"""Touching nuclei from points, beside full supervision: writes results/nuclei/points.json.

Every finished run is kept in ``runs/nuclei``; an interrupted call goes on where it stopped, later calls add rows and
seeds.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from experiments.runs import METRICS, ROOT, add_seed, fit_and_test

NEAREST = ("--data.init_args.recipe=nearest",)
"""The model takes the recipe of the data."""
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "points": ("points", ()),
    "points, nearest point in crowded components": ("points", NEAREST),
    "full supervision": ("full", ()),
}
"""Configuration and options of each row."""


def main() -> None:
    """Run what is missing and write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the nuclei data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/nuclei"))
    parser.add_argument("--output", type=Path, default=Path("results/nuclei/points.json"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.rows:
            config, options = ROWS[name]
            folder = ROOT / arguments.runs / name.replace(", ", "_").replace(" ", "_") / f"seed{seed}"
            given = [f"--data.init_args.root={Path(arguments.data).resolve()}", f"--seed_everything={seed}", *options]
            file = f"configs/nuclei/{config}.yaml"
            scores = fit_and_test(file, folder, given, threads=arguments.threads, quiet=True)["scores"]
            add_seed(
                ROOT / arguments.output,
                seed,
                {row: {m: scores[f"test/{m}"] for m in METRICS} if row == name else None for row in ROWS},
                command="python -m experiments.nuclei ../shared/data/nuclei",
                settings={row: [f"configs/nuclei/{kind}.yaml", *given] for row, (kind, given) in ROWS.items()},
            )
            if name == "points":
                for picture in ("test", "training"):
                    source = folder / "pictures" / f"{picture}.png"
                    shutil.copy(source, ROOT / arguments.output.parent / f"points_{picture}.png")


if __name__ == "__main__":
    main()
