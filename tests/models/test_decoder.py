"""The three decoders: shapes, gradients for every parameter, and the first prediction of an untrained head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bestie_pl.models.decoder import Decoder, HeadsDecoder, PanopticDeepLabDecoder, PyramidDecoder

CHANNELS = (8, 12, 20, 24)
KINDS: list[type[Decoder]] = [HeadsDecoder, PyramidDecoder, PanopticDeepLabDecoder]


def features(kind: Any, *, batch: int = 2, height: int = 64, width: int = 96) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    pairs = zip(CHANNELS, kind.strides, strict=False)
    return [torch.randn(batch, c, height // s, width // s, generator=draw) for c, s in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_have_stride_4(kind: Any) -> None:
    maps = kind(CHANNELS[: len(kind.strides)], 3).eval()(features(kind))
    assert [tuple(m.shape) for m in maps] == [(2, 4, 16, 24), (2, 3, 16, 24), (2, 2, 16, 24)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: Any) -> None:
    decoder = kind(CHANNELS[: len(kind.strides)], 3)
    sum(m.square().sum() for m in decoder(features(kind))).backward()
    without = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_heads_find_no_center(kind: Any) -> None:
    _, center, offset = kind(CHANNELS[: len(kind.strides)], 3)(features(kind))
    assert center.abs().max() < 0.1
    assert offset.abs().max() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_see_each_other(kind: Any) -> None:
    decoder = kind(CHANNELS[: len(kind.strides)], 3).eval()
    x = features(kind)
    together = decoder(x)
    for i in range(2):
        alone = decoder([f[i : i + 1] for f in x])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[i : i + 1])


def test_pyramid_offsets_count_8_pixels_and_see_the_coarsest_level() -> None:
    decoder = PyramidDecoder(CHANNELS, 3).eval()
    last = decoder.offset[1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, -2.0]))
    x = features(PyramidDecoder)
    assert decoder(x).offset_field.amax((0, 2, 3)).tolist() == [8.0, -16.0]
    semantic = decoder(x).semantic_logits
    x[3] = x[3] + 1
    assert not torch.allclose(decoder(x).semantic_logits, semantic)


def test_panoptic_deeplab_pools_one_image_while_training() -> None:
    # the branch with the image's mean is a single value: batch normalisation there would fail for one image
    maps = PanopticDeepLabDecoder(CHANNELS, 3).train()(features(PanopticDeepLabDecoder, batch=1))
    assert all(m.isfinite().all() for m in maps)


def test_panoptic_deeplab_sizes_and_rates_of_the_release() -> None:
    decoder = PanopticDeepLabDecoder((256, 512, 1024, 2048), 20)
    shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    assert shapes["semantic_decoder.aspp.convs.4.aspp_pooling.1.weight"] == (256, 2048, 1, 1)
    assert shapes["semantic_decoder.aspp.project.0.weight"] == (256, 1280, 1, 1)
    assert [shapes[f"semantic_decoder.project.{i}.0.weight"][:2] for i in range(3)] == [
        (128, 1024),
        (64, 512),
        (32, 256),
    ]
    assert [shapes[f"instance_decoder.project.{i}.0.weight"][:2] for i in range(3)] == [
        (64, 1024),
        (32, 512),
        (16, 256),
    ]
    assert [shapes[f"semantic_decoder.fuse.{i}.0.0.0.weight"][0] for i in range(3)] == [384, 320, 288]
    assert [shapes[f"instance_decoder.fuse.{i}.0.0.0.weight"][0] for i in range(3)] == [320, 160, 144]
    assert shapes["instance_head.classifier.offset.0.0.1.weight"] == (32, 128, 1, 1)
    assert shapes["instance_head.classifier.offset.1.weight"] == (2, 32, 1, 1)
    convs = decoder.get_submodule("semantic_decoder.aspp.convs")
    assert [m.dilation[0] for m in convs.modules() if isinstance(m, nn.Conv2d)] == [1, 3, 6, 9, 1]
