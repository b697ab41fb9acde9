"""What a run says on the screen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

UNWANTED = re.compile(r"GPU|TPU|HPU|FLOP|num_workers|workers|Tip|LabelQuality|InstanceAP|0%|it/s|Warning")
"""Devices that are absent, parts without parameters, advertisements, and bars where no terminal draws them."""


def command(verb: str, shapes: Path, folder: Path, *more: str) -> list[str]:
    data = {"root": shapes, "train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64, "clutter": 1}
    data |= {"generator_seed": 0, "crop_size": 64, "batch_size": 4}
    given = [f"--data.init_args.{name}={value}" for name, value in data.items()]
    given += [f"--trainer.default_root_dir={folder}", "--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=1"]
    given += ["--model.init_args.backbone_weights=null", "--trainer.accelerator=cpu", *more]
    configuration = REPOSITORY / "configs" / "shapes" / "points.yaml"
    return [sys.executable, "-m", "bestie_pl", verb, "--config", str(configuration), *given]


@pytest.fixture(scope="module")
def said(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folder of the runs, and all lines of a short training, of both streams."""
    folder = tmp_path_factory.mktemp("screen") / "runs"
    done = subprocess.run(
        command("fit", shapes_folder, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout
    return folder, done.stdout.splitlines()


def test_a_short_training_says_little_and_what_matters(said: tuple[Path, list[str]]) -> None:
    folder, lines = said
    assert 4 <= len(lines) <= 10, lines
    assert not [line for line in lines if UNWANTED.search(line)]
    assert lines[0].startswith("BestieModule: 3.2 M parameters on cpu, 6 steps")
    (validation,) = (line for line in lines if line.startswith("validation after 4 steps: map50 0."))
    assert re.search(r", miou 0\.\d{3}", validation)


def test_it_ends_with_scores_and_paths(said: tuple[Path, list[str]]) -> None:
    folder, lines = said
    outcome, checkpoint, run = lines[-3:]
    assert re.match(r"trained 6 steps in [\d.]+ s; loss [\d.]+; validation after 4 steps: map50 0\.", outcome)
    assert checkpoint.split() == ["checkpoint", str(folder / "checkpoints" / "last.ckpt")]
    assert Path(checkpoint.split()[1]).is_file()
    assert Path(run.split()[2]) == folder / "logs" / "version_0" and (folder / "logs" / "version_0").is_dir()
    assert f"`bestie-pl report {folder}`" in run


def test_a_test_ends_with_where_its_scores_are(said: tuple[Path, list[str]], shapes_folder: Path) -> None:
    folder, _ = said
    words = command("test", shapes_folder, folder, "--ckpt_path=last")
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
    scores = done.stdout.splitlines()[-1].removeprefix("scores in ")
    assert Path(scores).name == "scores_test.json" and Path(scores).is_file()
    assert "GPU" not in done.stdout and "Testing" not in done.stdout
