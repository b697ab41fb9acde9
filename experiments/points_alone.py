"""Nuclei from points and nothing else, beside given foreground maps: writes results/nuclei/points_alone.json.

Semantic maps are grown from the points of the training images (``GrownMaps``), a semantic round learns from them and
makes better ones, and these take the place of the given maps in ``configs/nuclei/points.yaml``. Both trainings have the
same points, steps, start and seed. Constants of the growing were chosen on every fifth training image. Every finished
stage is kept in ``runs/points_alone``; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json
from experiments.runs import ANEW, METRICS, ROOT, clear, command, fit_and_test

CONFIG = "configs/nuclei/points.yaml"


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the nuclei data set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="of each of the two trainings")
    parser.add_argument("--round-steps", type=int, default=100, help="of the semantic round")
    parser.add_argument("--crop-size", type=int, default=128, help="a quarter of the configuration's pixels")
    parser.add_argument("--runs", type=Path, default=Path("runs/points_alone"))
    parser.add_argument("--output", type=Path, default=Path("results/nuclei/points_alone.json"))
    arguments = parser.parse_args()
    runs = ROOT / arguments.runs
    shared = [
        f"--data.init_args.root={arguments.data.resolve()}",
        f"--seed_everything={arguments.seed}",
        f"--trainer.max_steps={arguments.steps}",
        "--trainer.limit_val_batches=0",  # nothing is chosen by scores
        "--data.init_args.num_workers=0",
        f"--data.init_args.crop_size={arguments.crop_size}",
    ]
    given = fit_and_test(CONFIG, runs / "given" / f"seed{arguments.seed}", shared, threads=1, quiet=True)
    grown, retrained = runs / "grown", runs / f"round_seed{arguments.seed}"
    grow(grown, shared)
    semantic_round(retrained, grown / "maps", [*shared, f"--trainer.max_steps={arguments.round_steps}"])
    alone = fit_and_test(
        CONFIG,
        runs / "alone" / f"seed{arguments.seed}",
        [*shared, f"--data.init_args.semantic_dir={retrained / 'maps'}"],
        threads=1,
        quiet=True,
    )
    rows = {"given maps": given, "points alone": alone}
    scores = {name: {m: run["scores"][f"test/{m}"] for m in METRICS} for name, run in rows.items()}
    content: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "environment": alone["environment"],
        "seed": arguments.seed,
        "steps": arguments.steps,
        "round_steps": arguments.round_steps,
        "crop_size": arguments.crop_size,
        "map_miou": {"grown": report(grown)["miou"], "retrained": report(retrained)["miou"]},
        "scores": scores,
        "share_of_given": {m: scores["points alone"][m] / scores["given maps"][m] for m in METRICS},
        "seconds": {name: run["seconds"] for name, run in rows.items()},
    }
    write_json(ROOT / arguments.output, content)
    print(json.dumps(content, indent=1))


def grow(folder: Path, shared: list[str]) -> None:
    """Maps of the training images from their points, in ``folder/maps``."""
    write_maps(folder, ["--model=GrownMaps"], shared)


def semantic_round(folder: Path, maps: Path, shared: list[str]) -> None:
    """Train a network's semantic branch on ``maps``; write its maps of the same images to ``folder/maps``."""
    model = [
        "--model=SemanticModule",
        "--model.init_args.backbone=tf_efficientnet_lite0",
        "--model.init_args.decoder=pyramid",
        "--model.init_args.optimizer=adamw",
        "--model.init_args.lr=0.004",
        "--model.init_args.backbone_lr_factor=0.3",
        "--model.init_args.weight_decay=0.01",
        "--model.init_args.warmup_steps=20",
    ]
    if not (folder / "checkpoints" / "done").exists():
        clear(folder)
        data = [f"--data.init_args.semantic_dir={maps}", f"--trainer.default_root_dir={folder}"]
        quiet = "--trainer.enable_progress_bar=false"
        command("fit", "--config", CONFIG, *model, *shared, *data, quiet, threads=1, log=folder / "output.txt")
        (folder / "checkpoints" / "done").touch()
    write_maps(folder, model, [*shared, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"])


def write_maps(folder: Path, model: list[str], shared: list[str]) -> None:
    """Let a module predict the maps of the training images, once; truth is read for the report only."""
    if (folder / "semantic_maps.json").exists():
        return
    command(
        "predict",
        *("--config", CONFIG, *model, *shared),
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


def report(folder: Path) -> dict[str, Any]:
    """What SemanticMapWriter says of the maps in a folder."""
    content: dict[str, Any] = json.loads((folder / "semantic_maps.json").read_text())
    return content


if __name__ == "__main__":
    main()
