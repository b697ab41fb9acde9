"""Nuclei from points and nothing else, beside given foreground maps: writes results/nuclei/points_alone.json.

Semantic maps are grown from the points of the training images (``GrownMaps``) and take the place of the given maps in
``configs/nuclei/points.yaml``. Both trainings have the same points, steps, crops, start and seed. Constants of the
growing were chosen on every fifth training image. Every finished stage is kept in ``runs/points_alone``; an interrupted
call goes on where it stopped.
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
from experiments.runs import ANEW, METRICS, ROOT, command, fit_and_test

CONFIG = "configs/nuclei/points.yaml"


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the nuclei data set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--crop-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/points_alone"))
    parser.add_argument("--output", type=Path, default=Path("results/nuclei/points_alone.json"))
    arguments = parser.parse_args()
    runs = ROOT / arguments.runs
    shared = [
        f"--data.init_args.root={arguments.data.resolve()}",
        f"--seed_everything={arguments.seed}",
        f"--trainer.max_steps={arguments.steps}",
        "--trainer.limit_val_batches=0",  # nothing is chosen by scores
        f"--data.init_args.crop_size={arguments.crop_size}",
        "--data.init_args.num_workers=0",
    ]
    grow(runs / "grown", shared)
    rows = {"given maps": [], "grown maps": [f"--data.init_args.semantic_dir={runs / 'grown' / 'maps'}"]}

    def run(name: str) -> dict[str, Any]:
        folder = runs / name.replace(" ", "_") / f"seed{arguments.seed}"
        return fit_and_test(CONFIG, folder, [*shared, *rows[name]], threads=1, quiet=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(rows, pool.map(run, rows), strict=True))
    scores = {name: {m: run["scores"][f"test/{m}"] for m in METRICS} for name, run in results.items()}
    content = {
        "command": shlex.join(["python", "-m", "experiments.points_alone", *sys.argv[1:]]),
        "environment": results["grown maps"]["environment"],
        "seed": arguments.seed,
        "steps": arguments.steps,
        "crop_size": arguments.crop_size,
        "miou_of_grown_maps": json.loads((runs / "grown" / "semantic_maps.json").read_text())["miou"],
        "scores": scores,
        "share_of_given": {m: scores["grown maps"][m] / scores["given maps"][m] for m in METRICS},
        "seconds": {name: run["seconds"] for name, run in results.items()},
    }
    write_json(ROOT / arguments.output, content)
    print(json.dumps(content, indent=1))


def grow(folder: Path, shared: list[str]) -> None:
    """Maps of the training images from their points in ``folder/maps``, once; truth is read for the report only."""
    if (folder / "semantic_maps.json").exists():
        return
    command(
        *("predict", "--config", CONFIG, "--model=GrownMaps", *shared),
        f"--trainer.default_root_dir={folder}",
        "--trainer.callbacks=SemanticMapWriter",
        f"--trainer.callbacks.output_dir={folder / 'maps'}",
        ANEW,
        "--data.init_args.predict_annotations=instances_train.json",
        "--data.init_args.label_quality=true",
        "--trainer.enable_progress_bar=false",
        threads=1,
        log=folder / "output.txt",
    )


if __name__ == "__main__":
    main()
