"""Training by CUDA graphs: what is recorded around them here, and the same training with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from quick import make_trainer
from torch import Tensor, nn

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.models.bestie import BestieModel
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.optimization import Optimization

SMALL: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "decoder": "pyramid", "backbone_weights": None}


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes that were replayed, by a stand-in for torch's recording of graphs on a machine without a GPU."""
    shapes: list[torch.Size] = []

    def record(network: nn.Module, sample: tuple[Tensor], **_: Any) -> None:
        assert not torch.is_autocast_cache_enabled()
        layers: Callable[[Tensor], Any] = network.forward
        layers(*sample)  # rehearsals change the running statistics

        def replay(x: Tensor) -> Any:
            shapes.append(x.shape)
            return layers(x)

        network.forward = replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return shapes


def test_batches_of_its_shape_are_replayed_in_training_only(replays: list[torch.Size]) -> None:
    model = BestieModel(2, "tf_efficientnet_lite0", "pyramid").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.graph(torch.rand(2, 3, 40, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_autocast_cache_enabled()
    maps = model(torch.rand(2, 3, 40, 64))
    assert replays == [(2, 3, 64, 64)]  # filled up, as the network sees it
    assert maps.center_heatmap.shape == (2, 2, 10, 16)
    model(torch.rand(2, 3, 96, 64))
    model(torch.rand(3, 3, 40, 64))
    with torch.no_grad():
        model(torch.rand(2, 3, 40, 64))
    model.eval()(torch.rand(2, 3, 40, 64))
    assert len(replays) == 1
    model.train().double()  # other parameters than those that the graph knows
    model.float()(torch.rand(2, 3, 40, 64))
    assert len(replays) == 1


def test_a_dropped_graph_is_not_replayed(replays: list[torch.Size]) -> None:
    model = BestieModel(2, "tf_efficientnet_lite0", "pyramid").train()
    model.graph(torch.rand(2, 3, 32, 32))
    assert model.graphed
    model.drop_graph()
    model(torch.rand(2, 3, 32, 32))
    assert replays == [] and not model.graphed


def test_one_or_the_other() -> None:
    with pytest.raises(ValueError, match="compile_network and graph_network exclude one another"):
        BestieModule(2, **SMALL, compile_network=True, graph_network=True)


def make_data(root: Path) -> ShapesDataModule:
    settings: dict[str, Any] = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    settings |= {"batch_size": 4, "num_workers": 0, "crop_size": 64, "object_scale": 0.25, "min_area": 200}
    return ShapesDataModule(str(root), **settings)


def make_module(**settings: Any) -> BestieModule:
    settings = {"supervision": "points", "object_scale": 0.25, **SMALL, **settings}
    settings["geometry"] = {"sigma": 16.0, "min_area": 200}
    # whose steps are as small as the differences that a GPU's order of summation makes
    return BestieModule(5, optimization=Optimization("sgd", lr=1e-2), **settings)


def test_a_cpu_has_no_graphs(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"graph_network is for a training on one GPU, not on 1 x cpu; set"):
        make_trainer(tmp_path).fit(make_module(graph_network=True), make_data(shapes_folder))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_graphed_training_is_the_same(shapes_folder: Path, tmp_path: Path, precision: str) -> None:
    weights = []
    for graph_network in (False, True):
        pl.seed_everything(0)
        module = make_module(graph_network=graph_network)
        trainer = make_trainer(tmp_path, accelerator="gpu", precision=precision, max_steps=3, limit_val_batches=0)
        trainer.fit(module, make_data(shapes_folder))
        assert not module.model.graphed
        weights.append({name: value.cpu().float() for name, value in module.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_accumulated_gradients_are_refused(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, accelerator="gpu", accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="accumulate_grad_batches: 1"):
        trainer.fit(make_module(graph_network=True), make_data(shapes_folder))
