"""What a training starts from: a backbone's file or another training's checkpoint, complete or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from quick import make_trainer
from torch import Tensor

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.weights import check_checkpoint, load_network, provide_weights

HRNET = "hrnet_w18_small"


def start(module: BestieModule, root: Path, folder: Path) -> None:
    """Begin a training and take no step."""
    data = ShapesDataModule(
        str(root), train_images=16, val_images=5, test_images=5, image_size=64, crop_size=64, num_workers=0
    )
    make_trainer(folder, limit_train_batches=0, limit_val_batches=0).fit(module, data)


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


# ---------------------------------------------------------------- checkpoints to go on from and to evaluate


def small(**settings: Any) -> BestieModule:
    return BestieModule(
        2,
        **{
            "class_names": ["cat", "dog"],
            "backbone": HRNET,
            "backbone_weights": None,
            "decoder": "pyramid",
            **settings,
        },
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training writes, as far as a check looks at it."""
    module = small()
    path = tmp_path_factory.mktemp("trained") / "step=1.ckpt"
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": pl.__version__,
        **{"loops": {}, "optimizer_states": [], "lr_schedulers": []},
    }
    torch.save(content, path)
    return path


def test_a_checkpoint_that_fits_passes(trained: Path) -> None:
    check_checkpoint(trained, small(), to_train=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "no file of tensors and plain values only"),
        ("cut", "no file of tensors and plain values only"),
        ({"model.a": torch.zeros(1)}, "no checkpoint of a training"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "no checkpoint of a training"),
        ({"state_dict": {"model.a": torch.zeros(1)}, "pytorch-lightning_version": "2.6"}, "tensors missing: model"),
        ([pl.Trainer], "it needs pytorch_lightning.trainer.trainer.Trainer, which may run code"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_sentence(content: Any, says: str, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if content == "cut":
        content = trained.read_bytes()[:5000]
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"x.ckpt.*{says}") as error:
        check_checkpoint(path, small(), to_train=False)
    assert "weights_only" not in str(error.value) and len(str(error.value).splitlines()) == 1


def changed(trained: Path, path: Path, **parts: Any) -> Path:
    content = torch.load(trained, weights_only=True)
    for name, part in parts.items():
        content[name] = part(content[name]) if callable(part) else part
    torch.save({name: part for name, part in content.items() if part is not None}, path)
    return path


def test_prefixed_and_missing_tensors_are_listed(trained: Path, tmp_path: Path) -> None:
    path = changed(trained, tmp_path / "a.ckpt", state_dict=lambda state: {f"net.{k}": v for k, v in state.items()})
    with pytest.raises(ValueError, match=r"missing: model.*unknown: net\.model"):
        check_checkpoint(path, small(), to_train=False)
    with pytest.raises(FileNotFoundError, match="no such checkpoint.*none.ckpt"):
        check_checkpoint(tmp_path / "none.ckpt", small(), to_train=False)


def test_weights_alone_are_evaluated_and_not_trained_on(trained: Path, tmp_path: Path) -> None:
    path = changed(trained, tmp_path / "a.ckpt", loops=None, optimizer_states=None)
    check_checkpoint(path, small(), to_train=False)
    with pytest.raises(ValueError, match="start from it by init_from"):
        check_checkpoint(path, small(), to_train=True)


def test_values_that_are_not_finite_are_refused(trained: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name, values in state.items() if values.is_floating_point())
        return state | {name: torch.full_like(state[name], torch.nan)}

    path = changed(trained, tmp_path / "a.ckpt", state_dict=spoil)
    with pytest.raises(ValueError, match="not finite, in model"):
        check_checkpoint(path, small(), to_train=False)
    with pytest.raises(ValueError, match="not finite"):
        provide_weights(small(init_from=str(path)))


@pytest.mark.parametrize("names", [["dog", "cat"], ["cat", "hound"]])
def test_classes_of_other_names_are_refused_unless_accepted(trained: Path, names: list[str]) -> None:
    module = small(class_names=names)
    with pytest.raises(ValueError, match="classes are others than the data's.*--accept_class_names"):
        check_checkpoint(trained, module, to_train=False)
    with pytest.raises(ValueError, match="classes are others"):
        load_network(module.model, trained, module)
    module.accept_class_names = True  # type: ignore[assignment]
    check_checkpoint(trained, module, to_train=False)
    load_network(module.model, trained, module)


def test_random_weights_are_not_evaluated(trained: Path) -> None:
    with pytest.raises(ValueError, match="BestieModule has random weights: give --ckpt_path"):
        provide_weights(small())
    with pytest.raises(ValueError, match="random weights"):
        provide_weights(small(backbone_weights="imagenet"))
    module = small(init_from=str(trained))
    assert provide_weights(module) == str(trained)
    state = torch.load(trained, weights_only=True)["state_dict"]
    assert all(torch.equal(values, state[name]) for name, values in module.state_dict().items())
    assert provide_weights(ImportedMaps(2, folder="absent")) is None  # has no weights


def test_init_from_and_last_mean_the_same_file(trained: Path, tmp_path: Path) -> None:
    """Also where the link is missing, or leads to an older run."""
    for number in (0, 1):
        folder = tmp_path / "logs" / f"version_{number}" / "checkpoints"
        folder.mkdir(parents=True)
        changed(trained, folder / "step=1.ckpt", state_dict=lambda s: {k: v * 0 + number for k, v in s.items()})  # noqa: B023
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    for target in (None, "../logs/version_0/checkpoints/step=1.ckpt"):
        if target is not None:
            last.symlink_to(target)
        module = small()
        load_network(module.model, last)
        assert all((values == 1).all() for values in module.model.parameters())


def test_given_weights_are_not_replaced_when_training_starts(
    trained: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    """Neither those of a checkpoint nor those of a first training."""
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "w.pth")  # reading it would fail
    module = small(backbone_weights=str(tmp_path / "w.pth"), supervision="points")
    with pytest.raises(ValueError, match="w.pth"):
        start(module, shapes_folder, tmp_path)
    module.load_state_dict(torch.load(trained, weights_only=True)["state_dict"])
    given = copy_of(module)
    for _ in range(2):
        start(module, shapes_folder, tmp_path)
        assert all(torch.equal(value, given[name]) for name, value in module.model.state_dict().items())


def test_a_classifier_in_another_module_reads_its_weights(tmp_path: Path) -> None:
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "w.pth")
    classifier = PeakAttentionModule(2, backbone="resnet10t", backbone_weights=str(tmp_path / "w.pth"))
    classifier._trainer = SimpleNamespace(state=SimpleNamespace(status=None))  # type: ignore[assignment]
    batch = SimpleNamespace(images=torch.zeros(1, 3, 64, 64), tags=torch.ones(1, 2))
    with pytest.raises(ValueError, match="w.pth"):
        classifier.training_step(batch, 0)  # type: ignore[arg-type]
