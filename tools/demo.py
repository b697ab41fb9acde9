"""``make demo``: learn instance masks from one point per object, and compare with full supervision.

Generates a data set of shapes, trains the same small network twice for the same number of steps (once from points and
faulty semantic maps, once from the true instances), tests both, and leaves everything in ``runs/demo``.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from experiment import ROOT, fit_and_test, write_json

SCORES = ("map25", "map50", "map70", "map75", "miou")


def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps of each run (default: the configuration's)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--record", action="store_true", help="also keep summary and pictures in results/shapes")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if (ROOT / folder).exists():
        shutil.rmtree(ROOT / folder)
    overrides = [f"--data.init_args.root={folder / 'shapes'}"]
    overrides += ["--trainer.callbacks+=PictureWriter", "--trainer.callbacks.count=4"]
    if arguments.steps:
        overrides.append(f"--trainer.max_steps={arguments.steps}")

    start = time.monotonic()
    results = {
        supervision: fit_and_test(f"configs/shapes/{supervision}.yaml", ROOT / folder / supervision, overrides)
        for supervision in ("points", "full")
    }
    seconds = round(time.monotonic() - start, 1)
    summary: dict[str, Any] = {"supervision": "points", "seconds": seconds} | scores_of(results["points"])
    summary["full_supervision"] = {"seconds": sum(results["full"]["seconds"].values())} | scores_of(results["full"])
    summary["environment"] = results["points"]["environment"]
    for supervision in results:
        for name in ("training", "test"):
            picture = ROOT / folder / supervision / "pictures" / f"{name}.png"
            shutil.copy(picture, ROOT / folder / f"{supervision}_{name}.png")
    write_json(ROOT / folder / "summary.json", summary)

    if arguments.record:
        write_json(ROOT / "results/shapes/demo.json", summary | {"command": "python tools/demo.py --record"})
        for name in ("points_training", "points_test"):
            shutil.copy(ROOT / folder / f"{name}.png", ROOT / f"results/shapes/{name}.png")

    print(f"\n{'supervision':<16}" + "".join(f"{name:>8}" for name in SCORES))
    for label, row in (("points", summary), ("full", summary["full_supervision"])):
        print(f"{label:<16}" + "".join(f"{row[name]:8.3f}" for name in SCORES))
    share = summary["map50"] / max(summary["full_supervision"]["map50"], 1e-9)
    print(f"points reach {share:.0%} of the mAP50 of full supervision")
    print(f"{seconds:.0f} s; scores in {folder}/summary.json, pictures in {folder}/*.png")


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """The scores of the summary."""
    return {name: round(result["scores"][f"test/{name}"], 4) for name in SCORES}


if __name__ == "__main__":
    main()
