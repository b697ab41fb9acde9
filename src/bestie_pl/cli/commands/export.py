"""``bestie-pl export``: a checkpoint -> a folder for other programs: ONNX or torch program, weights, model card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from bestie_pl.data.files import read_text
from bestie_pl.exported import write_exported
from bestie_pl.models.exported import FILES, require_onnx
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.run_folders import CHECKPOINTS, find_checkpoint, runs_of
from bestie_pl.modules.weights import sha256
from bestie_pl.predictor import read_checkpoint, scale_of_training

DATA = ("class_path", "root", "supervision", "semantic_source")
"""What the card says of the data, from the configuration of the run."""


def main(args: list[str]) -> int:
    """Export the network that the command line names, and say what was written.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: No checkpoint of a network that finds instances, or the packages for ONNX are missing.
    """
    options = _parser().parse_args(args)
    if options.format == "onnx":
        require_onnx()
    path = Path(options.checkpoint)
    content = read_checkpoint(path)
    module = BestieModule.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    run = path.parent.parent  # RUN/checkpoints/last.ckpt, or the same of one of its runs
    written = write_exported(
        module,
        Path(options.out),
        options.format,
        image_scale=scale_of_training(content),
        scores=_scores(run, path),
        data=_data(run, path),
    )
    for file in written:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MB")
    return 0


def _scores(run: Path, checkpoint: Path) -> dict[str, Any] | None:
    """The newest test in the folder of a run, if these weights were tested."""
    path = run / "scores_test.json"
    content = yaml.safe_load(read_text(path, "scores")) if path.is_file() else {}
    return content if content.get("sha256") == sha256(find_checkpoint(checkpoint)) else None


def _data(run: Path, checkpoint: Path) -> dict[str, Any]:
    """What the configuration of the training that left a checkpoint says of its data; nothing if there is none."""
    # logs/version_N/checkpoints/step=N.ckpt; where the link to it was copied as a file, the newest training's
    trainings = (folder for folder in runs_of(run) if (folder / CHECKPOINTS).is_dir())
    folders = [find_checkpoint(checkpoint).resolve().parent.parent, *trainings]
    configuration = next((file for folder in folders if (file := folder / "config.yaml").is_file()), None)
    if configuration is None:
        return {}
    content = yaml.safe_load(read_text(configuration, "the configuration of a run"))
    data = content.get("data") or {}
    known = {"class_path": data.get("class_path"), **(data.get("init_args") or {})}
    return {name.replace("_", " "): known[name] for name in DATA if known.get(name) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl export",
        description="Write a trained network for other programs: ONNX or a torch program, its weights as safetensors, "
        "its settings, and a model card to complete.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="RUN/checkpoints/last.ckpt")
    add("--format", choices=list(FILES), default="onnx", help="onnx (needs bestie-pl[onnx]) or torch (default: onnx)")
    add("--out", default="exported", help="folder to write to (default: exported)")
    return parser
