"""A checkpoint as a predictor: the same instances as ``bestie-pl predict``; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl import BestieModule, BestiePredictor, ShapesDataModule
from bestie_pl.structures import Instances


def same(first: Instances, second: Instances) -> None:
    assert first.masks == second.masks and first.classes.tolist() == second.classes.tolist()
    assert torch.allclose(first.scores, second.scores, atol=1e-6)


@pytest.fixture(scope="module")
def predictor(trained_run: Path) -> BestiePredictor:
    return BestiePredictor.load(trained_run / "checkpoints" / "last.ckpt", device="cpu")


def test_the_checkpoint_says_how_large_images_were(predictor: BestiePredictor, trained_run: Path) -> None:
    assert predictor.image_scale == 2 and predictor.class_names == ShapesDataModule("unused").class_names
    assert not predictor.network.training
    assert BestiePredictor.load(trained_run / "checkpoints" / "last.ckpt", image_scale=3).image_scale == 3


def test_results_are_those_of_the_data_module(predictor: BestiePredictor, shapes_folder: Path) -> None:
    """Image files of a folder, as ``predict`` sees them through its loaders."""
    data = ShapesDataModule(
        root=str(shapes_folder), train_images=16, val_images=5, test_images=5, image_size=64, clutter=1,
        generator_seed=0, image_scale=2, num_workers=0, eval_batch_size=1,
    )  # fmt: skip
    data.setup("test")
    found = 0
    for batch in data.test_dataloader():
        batch = data.on_after_batch_transfer(batch, 0)
        (expected,), _ = predictor.network.predict_instances(batch)
        (image,) = (shapes_folder / "JPEGImages").glob(f"{batch.names[0]}.*")
        (result,) = predictor(image)
        same(result.instances, expected)
        found += len(expected)
    assert found > 0


def test_in_one_line_of_a_module(predictor: BestiePredictor) -> None:
    module = predictor.network
    assert isinstance(module, BestieModule)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    module.train()
    (result,) = module.predict(image, image_scale=2)
    assert module.training and len(result) > 0
    module.eval()
    same(result.instances, predictor(image)[0].instances)


def test_a_module_without_a_file() -> None:
    torch.manual_seed(0)
    module = BestieModule(3, ["a", "b", "c"], backbone="hrnet_w18_small", backbone_weights=None)
    results = module.predict([Image.new("RGB", (40, 33)), np.zeros((20, 30), np.uint8)])
    assert [result.instances.size for result in results] == [(33, 40), (20, 30)]


@pytest.mark.parametrize("kind", ["missing", "text", "no network", "classifier"])
def test_what_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.ckpt"
    if kind == "text":
        path.write_text("something else")
    elif kind == "no network":
        torch.save({"state_dict": {}}, path)
    elif kind == "classifier":
        torch.save({"state_dict": {}, "hyper_parameters": {"pooling": "ngwp"}}, path)
    error, message = {
        "missing": (FileNotFoundError, "no such checkpoint: "),
        "text": (ValueError, "is no file of tensors and plain values"),
    }.get(kind, (ValueError, "last.ckpt: holds no network that finds instances; expected the checkpoint of a Bestie"))
    with pytest.raises(error, match=message):
        BestiePredictor.load(path)
