"""``bestie-pl export``: the same maps and instances as the checkpoint, on photographs of several sizes."""

from __future__ import annotations

import json
import shutil
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.layers.conv2d_same import Conv2dSame

from bestie_pl import BestieModule, BestiePredictor
from bestie_pl.cli.main import main
from bestie_pl.models import exported
from bestie_pl.modules.run_folders import link_last
from bestie_pl.modules.weights import sha256
from bestie_pl.ops.masks import mask_iou


def trained(folder: Path, backbone: str, decoder: str) -> Path:
    """A checkpoint with weights that are random but fixed, as a training leaves it."""
    torch.manual_seed(0)
    names = ["person", "car", "dining table"]
    module = BestieModule(3, names, backbone=backbone, decoder=decoder, backbone_weights=None).eval()
    path = folder / "logs/version_0/checkpoints/step=1.ckpt"
    path.parent.mkdir(parents=True)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    content |= {"pytorch-lightning_version": "2.6.0", "COCODataModule": {"image_scale": 0.5}}
    torch.save(content, path)
    link_last(folder)
    return folder / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network, with scores and a configuration."""
    run = tmp_path_factory.mktemp("exports") / "run"
    path = trained(run, "resnet10t", "pyramid")
    (run / "scores_test.json").write_text(
        json.dumps(
            {"scores": {"test/map50": 0.125}, "ground_truth_used": ["the maps are true"], "sha256": sha256(path)}
        )
    )
    other = run / "logs/version_1"  # a prediction of other images
    other.mkdir()
    (other / "config.yaml").write_text("data: {class_path: x, init_args: {root: elsewhere}}\n")
    (run / "logs" / "version_0" / "config.yaml").write_text(
        "data: {class_path: bestie_pl.COCODataModule, init_args: {root: photos, supervision: points}}\n"
    )
    return path


@pytest.fixture(scope="module", params=["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def program(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    kind = request.param
    out = checkpoint.parents[2] / kind
    assert main(["export", "--checkpoint", str(checkpoint), "--format", kind, "--out", str(out)]) == 0
    return out / exported.FILES[kind]


def test_maps_agree_at_any_size_and_number(program: Path, checkpoint: Path) -> None:
    agree(program, checkpoint)


def agree(program: Path, checkpoint: Path) -> None:
    """Same maps to 1e-3."""
    module = BestieModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    other = exported.ExportedModel(program, module.model)
    for shape in ((1, 3, 64, 64), (1, 3, 50, 97), (3, 3, 128, 64)):
        images = torch.rand(shape)
        with torch.no_grad():
            for mine, theirs in zip(module(images), other(images), strict=True):
                assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-3


def test_instances_agree_on_photographs(program: Path, checkpoint: Path, real_data: Path) -> None:
    same_instances(program, checkpoint, real_data)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 1), (3, 1, 2), (1, 1, 1), (1, 2, 1)]
)
def test_tensorflows_padding_becomes_constant(kernel: int, stride: int, dilation: int, tmp_path: Path) -> None:
    """As computed anew for every size, no program could be stored."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(Conv2dSame(3, 4, kernel, stride, dilation=dilation), torch.nn.ReLU())
    fixed = deepcopy(layers)
    exported.fix_padding(fixed)
    assert not any(isinstance(layer, Conv2dSame) for layer in fixed.modules())
    for size in ((2, 2), (6, 10), (64, 32)):
        images = torch.rand(1, 3, *size)
        torch.testing.assert_close(fixed(images), layers(images))
    sides = {2: 32 * torch.export.Dim("rows", min=2, max=64), 3: 32 * torch.export.Dim("columns", min=2, max=64)}
    program = torch.export.export(fixed, (torch.rand(1, 3, 96, 64),), dynamic_shapes=({**sides},))
    torch.export.save(program, tmp_path / "p.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize(("backbone", "decoder"), [("tf_efficientnet_lite0", "pyramid"), ("hrnet_w18_small", "heads")])
def test_networks_of_the_configurations(
    kind: str, backbone: str, decoder: str, tmp_path: Path, real_data: Path
) -> None:
    """TensorFlow's padding depends on the size of each image; HRNet has branches of several sizes."""
    checkpoint = trained(tmp_path / "run", backbone, decoder)
    assert main(["export", "--checkpoint", str(checkpoint), "--format", kind, "--out", str(tmp_path / "out")]) == 0
    program = tmp_path / "out" / exported.FILES[kind]  # type: ignore[index]
    agree(program, checkpoint)
    same_instances(program, checkpoint, real_data)


def same_instances(program: Path, checkpoint: Path, real_data: Path) -> None:
    """On photographs of COCO; there are some."""
    photographs = sorted((real_data / "coco_tiny" / "images").glob("*.jpg"))[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a list of all weights that a program has inside
        first, second = (BestiePredictor.load(path, device="cpu") for path in (checkpoint, program))
    assert second.image_scale == first.image_scale == 0.5 and second.class_names == first.class_names
    found = 0
    for mine, theirs in zip(first(photographs), second(photographs), strict=True):
        assert len(mine) == len(theirs)
        best = mask_iou(mine.instances, theirs.instances)
        assert not len(mine) or float((best.amax(1) > 0.95).float().mean()) > 0.95
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-3)
        found += len(mine)
    assert found > 0


def test_weights_settings_and_card(program: Path, checkpoint: Path) -> None:
    folder = program.parent
    assert {path.name for path in folder.iterdir()} == {program.name, "model.safetensors", "settings.json", "README.md"}
    weights = load_file(folder / "model.safetensors")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert weights and all(torch.equal(value, state[f"model.{name}"]) for name, value in weights.items())
    card = (folder / "README.md").read_text()
    for text in ("person, car, dining table", "| test/map50 | 12.5 |", "Not weakly supervised: the maps are true.",
                 "root: photos", "enlarged by 0.5", program.name, "Licence"):  # fmt: skip
        assert text in card, text


def test_scores_of_other_weights_stay_off_the_card(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], run, symlinks=True)
    scores = json.loads((run / "scores_test.json").read_text())
    (run / "scores_test.json").write_text(json.dumps(scores | {"sha256": "0" * 64}))
    line = ["export", "--checkpoint", str(run / "checkpoints/last.ckpt"), "--format", "torch"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "Not measured." in card and "12.5" not in card and "root: photos" in card


def test_packages_that_are_missing_are_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert "ONNX needs onnx, onnxscript, onnxruntime: pip install 'bestie-pl[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "settings.json; expected what `bestie-pl export` wrote beside the network"),
        ({"settings.json": "{"}, ValueError, "settings.json: holds no settings of a network"),
        ({"settings.json": "[]"}, ValueError, "settings.json: holds no settings of a network"),
        ({"settings.json": '{"image_scale": 1, "hyper_parameters": {}}'}, FileNotFoundError, "no such file: "),
    ],
)
def test_what_is_no_exported_network(
    tmp_path: Path, files: dict[str, str], error: type[Exception], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        BestiePredictor.load(tmp_path / "model.pt2")


def test_a_damaged_program(tmp_path: Path, checkpoint: Path) -> None:
    settings = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    (tmp_path / "settings.json").write_text(json.dumps({"image_scale": 1, "hyper_parameters": settings}))
    (tmp_path / "model.pt2").write_bytes(b"something else")
    with pytest.raises(ValueError, match="model.pt2: cannot be read as a torch program"):
        BestiePredictor.load(tmp_path / "model.pt2")
