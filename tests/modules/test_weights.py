"""What a training starts from: a backbone's file or another training's checkpoint, complete or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.weights import load_network

HRNET = "hrnet_w18_small"


def start(module: BestieModule, root: Path, folder: Path) -> None:
    """Begin a training and take no step."""
    data = ShapesDataModule(
        str(root), train_images=16, val_images=5, test_images=5, image_size=64, crop_size=64, num_workers=0
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        limit_train_batches=0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)


def copy_of(module: BestieModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def test_a_training_starts_from_a_local_file_of_the_backbone(shapes_folder: Path, tmp_path: Path) -> None:
    state = timm.create_model(HRNET).state_dict()
    torch.save(state | {"head.0.0.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(9)}, tmp_path / "w.pth")
    module = BestieModule(5, backbone=HRNET, supervision="points", backbone_weights=str(tmp_path / "w.pth"))
    before = copy_of(module)
    start(module, shapes_folder, tmp_path)
    for name, value in module.model.state_dict().items():
        part, _, inner = name.removeprefix("network.").partition(".")
        assert torch.equal(value, state[inner] if part == "backbone" else before[name]), name

    del state["stage4.0.branches.0.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    module = BestieModule(5, backbone=HRNET, supervision="points", backbone_weights=str(tmp_path / "w.pth"))
    before = copy_of(module)
    with pytest.raises(ValueError, match=r"w\.pth does not fit .*1 tensors missing: stage4\.0\.branches\.0\.0\.conv1"):
        start(module, shapes_folder, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_of_a_checkpoint_to_start_from_is_executed(tmp_path: Path) -> None:
    module, sprung = BestieModule(5, backbone=HRNET, supervision="points"), tmp_path / "sprung"
    before = copy_of(module)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": Trap(sprung)}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt .* nothing else is loaded"):
        load_network(module.model, tmp_path / "x.ckpt")
    assert not sprung.exists()
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
