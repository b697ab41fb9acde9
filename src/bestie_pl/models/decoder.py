"""From a backbone's feature maps to the three maps of an image at stride 4.

Every decoder says which strides it reads, how its maps are to be enlarged, and which of its parts serve instances
alone; it takes the feature maps in the order of these strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bestie_pl.structures import InstanceMaps

RELEASE_STD = 0.001
"""Standard deviation of the convolutions that the authors' release starts from."""

HEAD_WIDTH = 256
OFFSET_SCALE = 8.0
"""Offsets are tens of pixels, what a small new layer says is around 1."""


class HeadsDecoder(nn.Module):
    """Three heads straight on a stride-4 map that has seen the whole depth of an HRNet.

    Source: the HRNet variant of the authors' release, including its parameter names. The paper speaks of the structure
    of Panoptic-DeepLab, but the release's HRNet has neither ASPP nor decoder.

    Args:
        channels: (of stride 4,).
        num_classes: C, without background.
    """

    strides: ClassVar[tuple[int, ...]] = (4,)
    align_corners: ClassVar[bool] = False
    instance_parts: ClassVar[tuple[str, ...]] = ("center", "offset")

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()

        def head(outputs: int, small: bool = True) -> nn.Sequential:
            hidden = nn.Conv2d(channels[0], HEAD_WIDTH, 3, padding=1)
            return nn.Sequential(hidden, nn.ReLU(inplace=True), OutputConv(HEAD_WIDTH, outputs, small=small))

        self.seg = head(num_classes + 1, small=False)
        self.center = head(num_classes)
        self.offset = head(2)

    def forward(self, features: Sequence[Tensor]) -> InstanceMaps:
        """Feature maps at ``strides`` -> maps at stride 4."""
        (x,) = features
        return InstanceMaps(self.seg(x), self.center(x), self.offset(x))


class PyramidDecoder(nn.Module):
    """A light feature pyramid from stride 32 to 4 and three light heads: for small networks and training on a CPU.

    Not in the paper. Laterals have no activation, so backbones whose blocks end linearly (MobileNet, EfficientNet) lose
    nothing; a convolution follows each sum. The offset head's output counts 8 pixels (``OFFSET_SCALE``).

    Args:
        channels: Of strides 4, 8, 16, 32.
        num_classes: C, without background.
        width: Channels of the pyramid.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    align_corners: ClassVar[bool] = False
    instance_parts: ClassVar[tuple[str, ...]] = ("center", "offset")

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 64) -> None:
        super().__init__()

        def head(outputs: int, small: bool = True) -> nn.Sequential:
            return nn.Sequential(_conv(width, width, 3), OutputConv(width, outputs, small=small))

        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in channels
        )
        self.fuse = nn.ModuleList(_conv(width, width, 3) for _ in channels[:-1])
        self.seg = head(num_classes + 1, small=False)
        self.center = head(num_classes)
        self.offset = head(2)

    def forward(self, features: Sequence[Tensor]) -> InstanceMaps:
        """Feature maps at ``strides`` -> maps at stride 4."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        x = levels.pop()
        for fuse in reversed(self.fuse):
            low = levels.pop()
            x = fuse(low + F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False))
        return InstanceMaps(self.seg(x), self.center(x), self.offset(x) * OFFSET_SCALE)


class PanopticDeepLabDecoder(nn.Module):
    """Two decoders with atrous spatial pyramid pooling, for the semantic map and for the instances.

    Source: the ResNet variant of the authors' release, including its parameter names; it differs from Panoptic-DeepLab
    by rates 3, 6, 9 on a stride-32 map, low-level features at strides 16, 8 and 4, and a centre map for each class.

    Args:
        channels: Of strides 4, 8, 16, 32.
        num_classes: C, without background.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    align_corners: ClassVar[bool] = True
    instance_parts: ClassVar[tuple[str, ...]] = ("instance_decoder", "instance_head")

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()

        def heads(**classifiers: nn.Sequential) -> nn.ModuleDict:
            return nn.ModuleDict({"classifier": nn.ModuleDict(classifiers)})

        self.semantic_decoder = _BranchDecoder(channels, 256, (128, 64, 32))
        self.semantic_head = heads(seg=_separable_head(256, 256, num_classes + 1, small=False))
        self.instance_decoder = _BranchDecoder(channels, 128, (64, 32, 16))
        self.instance_head = heads(
            center=_separable_head(128, 128, num_classes),
            offset=_separable_head(128, 32, 2),
        )

    def forward(self, features: Sequence[Tensor]) -> InstanceMaps:
        """Feature maps at ``strides`` -> maps at stride 4."""
        semantic = self.semantic_decoder(features)
        instance = self.instance_decoder(features)
        seg = self.semantic_head.get_submodule("classifier.seg")
        center = self.instance_head.get_submodule("classifier.center")
        offset = self.instance_head.get_submodule("classifier.offset")
        return InstanceMaps(seg(semantic), center(instance), offset(instance))


class _BranchDecoder(nn.Module):
    """Pyramid pooling on stride 32, then one step a level: enlarge, join the projected backbone features, mix."""

    def __init__(self, channels: Sequence[int], width: int, low_widths: Sequence[int]) -> None:
        super().__init__()
        low_level = channels[-2::-1]  # strides 16, 8, 4
        self.aspp = _ASPP(channels[-1])
        self.project = nn.ModuleList(_conv(c, low, 1) for c, low in zip(low_level, low_widths, strict=True))
        inputs = [self.aspp.width] + [width] * (len(low_widths) - 1)
        self.fuse = nn.ModuleList(
            nn.Sequential(_separable(x + low, width)) for x, low in zip(inputs, low_widths, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor = self.aspp(features[-1])
        for feature, project, fuse in zip(features[-2::-1], self.project, self.fuse, strict=True):
            low = project(feature)
            x = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=True)
            x = fuse(torch.cat([x, low], 1))
        return x


class _ASPP(nn.Module):
    """Atrous spatial pyramid pooling; the branch with the image's mean has no batch normalisation."""

    width = 256
    rates = (3, 6, 9)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv(channels, self.width, 1)])
        self.convs.extend(_conv(channels, self.width, 3, dilation=rate) for rate in self.rates)
        self.convs.append(_MeanPooling(channels, self.width))
        self.project = nn.Sequential(*_conv(len(self.convs) * self.width, self.width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(torch.cat([conv(x) for conv in self.convs], 1))
        return y


class _MeanPooling(nn.Module):
    """The image's mean feature at every place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, width, 1, bias=False)
        self.aspp_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.aspp_pooling(x)
        return pooled.expand(-1, -1, *x.shape[-2:])


Decoder = HeadsDecoder | PyramidDecoder | PanopticDeepLabDecoder


def _conv(inputs: int, outputs: int, size: int, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (size // 2)
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 5x5, then pointwise convolution."""
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    depthwise = _conv(inputs, inputs, 5, groups=inputs)
    return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _separable_head(inputs: int, hidden: int, outputs: int, *, small: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(_separable(inputs, hidden)), OutputConv(hidden, outputs, small=small))


class OutputConv(nn.Conv2d):
    """Last layer of a head, 1 x 1, in float32 also under mixed precision.

    In half precision an offset of 100 px moves in steps of half a pixel, and neighbouring values of a heatmap become
    equal: each pixel of such a plateau would be a centre.

    Args:
        inputs: Channels of the head.
        outputs: Channels of the map.
        small: Start near 0. So must a centre heatmap, or refinement would take noise for centres; a small start would
            only slow the semantic logits down.
    """

    def __init__(self, inputs: int, outputs: int, *, small: bool) -> None:
        super().__init__(inputs, outputs, 1)
        if small:
            nn.init.normal_(self.weight, std=RELEASE_STD)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Convolve outside of autocast."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())
