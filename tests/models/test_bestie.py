"""The whole network: sizes, normalisation, agreement with the authors' release, export, precision, initialisation."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bestie_pl.models.bestie import BestieModel
from bestie_pl.structures import InstanceMaps

SMALL = [("hrnet_w18_small", "heads"), ("tf_efficientnet_lite0", "pyramid"), ("resnet18", "panoptic_deeplab")]


@pytest.fixture(scope="module")
def hrnet() -> BestieModel:
    torch.manual_seed(0)
    return BestieModel(4, "hrnet_w18_small").eval()


def largest_difference(a: InstanceMaps, b: InstanceMaps) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


# the authors' release


def release_name(name: str, decoder: str) -> str:
    """Our parameter name -> the release's: the same for its ResNet variant; its HRNet has no level above the parts."""
    return name if decoder == "panoptic_deeplab" else name.split(".", 1)[1]


def release_tensor(name: str, shape: torch.Size) -> Tensor:
    """Value of a tensor of the recorded networks: a function of its name in the release."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    z = draw.standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if len(shape) == 4:
        value = z * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 0.8 + 0.4 * draw.uniform(size=shape)
    elif name.endswith("running_mean"):
        value = 0.1 * z
    elif name.endswith("weight"):
        value = 0.5 + 0.05 * z
    else:
        value = 0.1 * z
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


# entries of the release's HRNet by first component: the whole list of its names
HRNET_ENTRIES = {
    "conv1": 1, "bn1": 5, "conv2": 1, "bn2": 5, "layer1": 78, "transition1": 12, "stage2": 108, "transition2": 6,
    "stage3": 744, "transition3": 6, "stage4": 786, "seg": 4, "center": 4, "offset": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "backbone", "decoder"),
    [
        ("hrnet32", "hrnet_w32", "heads"),
        ("hrnet48", "hrnet_w48", "heads"),
        ("resnet50", "resnet50", "panoptic_deeplab"),
        ("resnet101", "resnet101", "panoptic_deeplab"),
    ],
)
def test_agrees_with_the_release(
    golden: Callable[[str], dict[str, np.ndarray]], case: str, backbone: str, decoder: Any
) -> None:
    recorded = golden("k_network_parity")
    model = BestieModel(4, backbone, decoder, recipe="release").eval()
    state = model.network.state_dict()
    names = {release_name(key, decoder): key for key in state}

    # every tensor of the release, and no other
    assert len(names) == len(state) == recorded[f"{case}_n_tensors"]
    assert sum(p.numel() for p in model.parameters()) == recorded[f"{case}_n_params"]
    if decoder == "heads":
        assert Counter(name.split(".")[0] for name in names) == HRNET_ENTRIES
    else:
        assert Counter(name.split(".")[0] for name in names)["backbone"] == {"resnet50": 318, "resnet101": 624}[case]

    model.network.load_state_dict({key: release_tensor(name, state[key].shape) for name, key in names.items()})
    x = torch.from_numpy(recorded[f"{case}_x"])
    with torch.no_grad():
        if decoder == "heads":
            branch = model.network.backbone(x)[model.network.levels[0]][:, :8].numpy()
            expected = recorded[f"{case}_stage4_first8"]
            np.testing.assert_allclose(branch, expected, rtol=0, atol=1e-4 * expected.std())
        height, width = recorded[f"{case}_target_shape"].tolist()
        maps = model.enlarge(model.network(x), (height, width))
    for ours, key in zip(maps, ("seg", "center", "offset"), strict=True):
        expected = recorded[f"{case}_out_{key}"]
        np.testing.assert_allclose(ours[:, :3].numpy(), expected, rtol=0, atol=1e-4 * expected.std())


# sizes


@pytest.mark.parametrize(("backbone", "decoder"), SMALL)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 33), (1, 7)])
def test_maps_are_a_quarter_of_any_size(backbone: str, decoder: Any, height: int, width: int) -> None:
    model = BestieModel(4, backbone, decoder).eval()
    with torch.no_grad():
        maps = model(torch.rand(2, 3, height, width))
        full = model.enlarge(maps, (height, width))
    h, w = -(-height // 4), -(-width // 4)
    assert isinstance(maps, InstanceMaps)
    assert [tuple(m.shape) for m in maps] == [(2, 5, h, w), (2, 4, h, w), (2, 2, h, w)]
    assert [tuple(m.shape) for m in full] == [(2, c, height, width) for c in (5, 4, 2)]


def test_padding_is_the_mean_colour(hrnet: BestieModel) -> None:
    image = torch.rand(1, 3, 50, 70)
    canvas = hrnet.mean.expand(1, 3, 64, 96).clone()
    canvas[..., :50, :70] = image
    with torch.no_grad():
        alone, padded = hrnet(image), hrnet(canvas)
    for a, b in zip(alone, padded, strict=True):
        torch.testing.assert_close(a, b[..., :13, :18])


def test_enlarging_keeps_cells_in_place_at_any_size(hrnet: BestieModel) -> None:
    # a ramp of 4 pixels a cell: cell j is centred on pixel 4 j + 1.5
    cells = torch.arange(18.0).mul(4).add(1.5).expand(1, 1, 13, 18)
    maps = InstanceMaps(cells, cells, cells)
    row = hrnet.enlarge(maps, (50, 70)).center_heatmap[0, 0, 20]
    assert row.shape == (70,)
    torch.testing.assert_close(row[2:-2], torch.arange(70.0)[2:-2])


def test_enlarging_to_another_size_stretches_the_whole_map(hrnet: BestieModel) -> None:
    maps = InstanceMaps(*(torch.rand(1, c, 16, 24) for c in (5, 4, 2)))
    stretched = InstanceMaps(
        *(nn.functional.interpolate(m, (70, 100), mode="bilinear", align_corners=False) for m in maps)
    )
    assert largest_difference(hrnet.enlarge(maps, (70, 100)), stretched) == 0


def test_panoptic_deeplab_enlarges_from_corner_to_corner() -> None:
    model = BestieModel(1, "resnet18", "panoptic_deeplab")
    maps = InstanceMaps(*(torch.rand(1, c, 16, 24) for c in (2, 1, 2)))
    full = model.enlarge(maps, (64, 96)).offset_field
    torch.testing.assert_close(
        full[..., [0, 0, 63, 63], [0, 95, 0, 95]], maps.offset_field[..., [0, 0, 15, 15], [0, 23] * 2]
    )


# inputs


def test_normalises_with_the_backbones_statistics() -> None:
    model = BestieModel(2, "tf_efficientnet_lite0", "pyramid").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert largest_difference(model(image), model.network(2 * image - 1)) < 1e-5


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64)])
def test_refuses_other_shapes(hrnet: BestieModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) float"):
        hrnet(torch.rand(shape))


def test_refuses_bytes(hrnet: BestieModel) -> None:
    with pytest.raises(ValueError, match=r"float in \[0, 1\], got .* torch.uint8"):
        hrnet(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        BestieModel(0, "hrnet_w18_small")
    with pytest.raises(ValueError, match="'heads' reads stride 4 only.*'resnet18'.*choose"):
        BestieModel(2, "resnet18")
    with pytest.raises(ValueError, match="decoder must be one of heads, pyramid, panoptic_deeplab; got 'fpn'"):
        BestieModel(2, "hrnet_w18_small", "fpn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recipe must be one of paper, release, nearest; got 'mine'"):
        BestieModel(2, "hrnet_w18_small", recipe="mine")  # type: ignore[arg-type]


# training


@pytest.mark.parametrize(("backbone", "decoder"), [*SMALL, ("hrnet_w18_small", "pyramid")])
def test_every_parameter_gets_a_gradient(backbone: str, decoder: Any) -> None:
    model = BestieModel(3, backbone, decoder)
    sum(m.square().sum() for m in model(torch.rand(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("backbone", "decoder"), SMALL)
def test_parameter_groups_cover_everything_once(backbone: str, decoder: Any) -> None:
    model = BestieModel(3, backbone, decoder)
    grouped = [id(p) for p in [*model.backbone_parameters(), *model.head_parameters()]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in model.backbone_parameters()} == {id(p) for p in model.network.backbone.parameters()}


@pytest.mark.parametrize(("backbone", "decoder"), SMALL)
def test_a_few_steps_learn_one_image(backbone: str, decoder: Any) -> None:
    torch.manual_seed(0)
    model = BestieModel(1, backbone, decoder)
    groups = [{"params": model.backbone_parameters(), "lr": 1e-3}, {"params": model.head_parameters(), "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups)
    image = torch.rand(2, 3, 64, 64)
    image[:, :, 16:48, 16:48] *= 0.2
    semantic = torch.zeros(2, 16, 16, dtype=torch.int64)
    semantic[:, 4:12, 4:12] = 1
    losses = []
    for _ in range(8):
        maps = model(image)
        loss = nn.functional.cross_entropy(maps.semantic_logits, semantic)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("backbone", "decoder"), SMALL)
def test_bfloat16_and_channels_last_say_the_same(backbone: str, decoder: Any) -> None:
    torch.manual_seed(0)
    model = BestieModel(3, backbone, decoder).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)
        last = model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
        full = model.enlarge(half, (64, 64))
    # half precision would move offsets in steps and make plateaus of peaks
    assert all(m.dtype == torch.float32 for m in (*half, *full))
    for a, b, c in zip(plain, half, last, strict=True):
        assert (a - b).abs().max() < 0.2 * a.std() + 0.01
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)


def test_trains_under_bfloat16() -> None:
    model = BestieModel(3, "tf_efficientnet_lite0", "pyramid")
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(torch.rand(2, 3, 64, 64))
    sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("backbone", "decoder"), SMALL)
def test_exports(backbone: str, decoder: Any) -> None:
    model = BestieModel(3, backbone, decoder).eval()
    exported = torch.export.export(model, (torch.rand(1, 3, 64, 70),))
    image = torch.rand(1, 3, 64, 70)
    with torch.no_grad():
        assert largest_difference(InstanceMaps(*exported.module()(image)), model(image)) < 1e-5


# weights


def test_only_the_last_layers_start_small() -> None:
    torch.manual_seed(0)
    model = BestieModel(3, "hrnet_w18_small")
    assert model.network.state_dict()["decoder.seg.0.weight"].std() > 0.01
    maps = model(torch.rand(2, 3, 64, 64))
    assert maps.center_heatmap.abs().max() < 0.1


def test_release_recipe_starts_from_tiny_convolutions() -> None:
    torch.manual_seed(0)
    hrnet = BestieModel(3, "hrnet_w18_small", recipe="release")
    for module in hrnet.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            assert module.weight.std().item() == pytest.approx(0.001, rel=0.15)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1 and module.weight.eq(1).all() and not module.bias.any()
    resnet = BestieModel(3, "resnet18", "panoptic_deeplab", recipe="release")
    state = resnet.network.state_dict()
    assert state["backbone.conv1.weight"].std() > 0.01
    assert state["decoder.instance_decoder.aspp.convs.2.0.weight"].std().item() == pytest.approx(0.001, rel=0.1)
    assert state["decoder.instance_head.classifier.offset.1.bias"].abs().min() > 0
    assert {m.momentum for m in resnet.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


def test_checkpoints_hold_the_network_only_and_load_again(hrnet: BestieModel) -> None:
    state = hrnet.state_dict()
    assert {key.split(".")[0] for key in state} == {"network"}
    other = BestieModel(4, "hrnet_w18_small").eval()
    other.load_state_dict(state)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert largest_difference(other(image), hrnet(image)) == 0


def test_backbone_weights_change_the_backbone_only(tmp_path: Path) -> None:
    model = BestieModel(2, "hrnet_w18_small")
    heads = [p.clone() for p in model.head_parameters()]
    weights = {k: torch.rand_like(v, dtype=torch.float) for k, v in model.network.backbone.state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    model.load_backbone_weights(tmp_path / "w.pth")
    assert torch.equal(model.network.state_dict()["backbone.conv1.weight"], weights["conv1.weight"])
    assert all(torch.equal(a, b) for a, b in zip(heads, model.head_parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="gone"):
        model.load_backbone_weights(tmp_path / "gone.pth")
