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
