"""Fixtures shared by all tests; golden and real data come from folders named by environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY / default))
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}; set {variable} to the folder that holds this data")
    return folder


@pytest.fixture(autouse=True)
def _no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """``seed_everything`` leaves its seed to the process, and the order of training images follows from it."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Read one file of recorded inputs and outputs of the authors' release: golden("d_peaks")["f00_heat"]."""
    folder = _folder("BESTIE_GOLDEN", "../shared/data/golden")

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the small real data sets (nuclei, coco_tiny, voc_small)."""
    return _folder("BESTIE_DATA", "../shared/data")


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data set: 16 training, 5 validation and 5 test scenes of 64 px."""
    from bestie_pl.data.generator.dataset import generate_shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(root, train=16, val=5, test=5, size=64, workers=1)
    return root


@pytest.fixture(scope="session")
def trained_run(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps on images that were enlarged by 2; its network predicts whatever it finds."""
    from bestie_pl.cli.lightning import run

    folder = tmp_path_factory.mktemp("runs") / "shapes"
    data = {"root": shapes_folder, "train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    data |= {"clutter": 1, "generator_seed": 0, "crop_size": 64, "batch_size": 2, "num_workers": 0, "image_scale": 2}
    model = {"backbone_weights": "null"}
    trainer = {"default_root_dir": folder, "max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
    trainer["log_every_n_steps"] = 1
    settings = {"data.init_args": data, "model.init_args": model, "trainer": trainer}
    given = [f"--{part}.{name}={value}" for part, values in settings.items() for name, value in values.items()]
    run(["fit", "--config", str(REPOSITORY / "configs" / "shapes" / "points.yaml"), *given])
    run(["test", "--config", str(REPOSITORY / "configs" / "shapes" / "points.yaml"), *given, "--ckpt_path=last"])
    return folder
