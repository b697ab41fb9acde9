"""The classifier with peak attention: images in, class maps and image logits out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bestie_pl.models import backbone as backbones
from bestie_pl.ops.cues import Pooling, peak_attention, pool

VGG16 = "vgg16"
"""The backbone whose name asks for the network of the authors' release."""

VGG16_TRUNK = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "flat", 512, 512, 512)
"""Channels of the 3 x 3 convolutions; ``flat`` is a pooling of stride 1, after which convolutions are dilated."""

POOLINGS: tuple[Pooling, ...] = ("mean", "topk", "ngwp")


class PyramidClassifier(nn.Module):
    """Feature pyramid to the finest of the wanted strides, convolutions with peak attention, class maps.

    Laterals have no activation, so backbones whose blocks end linearly (EfficientNet, MobileNet) lose nothing, and
    peak attention always follows a layer made for it.

    Args:
        backbone: Returns a list of feature maps.
        levels: Which of them to read, from fine to coarse.
        channels: Theirs.
        num_classes: Channels of the class maps.
        pam_layers: Number of convolutions that peak attention follows.
        width: Channels of the pyramid and of these convolutions.
        bias: Whether the class maps have one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        *,
        pam_layers: int,
        width: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = tuple(levels)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in channels
        )
        self.fuse = nn.ModuleList(_conv(width) for _ in channels[:-1])
        self.extra = nn.ModuleList(_conv(width) for _ in range(pam_layers))
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=bias)

    def forward(self, x: Tensor, alpha: float) -> Tensor:
        """(B, 3, H, W) normalised images whose sizes all strides divide -> class maps (B, C, h, w)."""
        features = self.backbone(x)
        maps = [lateral(features[level]) for lateral, level in zip(self.lateral, self.levels, strict=True)]
        x = maps.pop()
        for fuse in reversed(self.fuse):
            fine = maps.pop()
            x = fuse(fine + F.interpolate(x, fine.shape[-2:], mode="bilinear", align_corners=False))
        for extra in self.extra:
            x = peak_attention(extra(x), alpha)
        return _in_float32(self.classifier, x)

    def trunk_parameters(self) -> list[nn.Parameter]:
        """What ImageNet weights fill and the class maps depend on."""
        return [p for p in self.backbone.parameters() if p.requires_grad]


class VGG16Classifier(nn.Module):
    """The authors' released classifier: VGG16 at stride 8, and convolutions with peak attention.

    Source: release 12.1 to 12.3, including its parameter names (``features.N``, ``extra_convN``); its number of classes
    is fixed at 20.

    Args:
        num_classes: Channels of the class maps.
        pam_layers: Number of convolutions that peak attention follows; 3 in the release.
        bias: Whether the class maps have one; the release's do.
    """

    def __init__(self, num_classes: int, *, pam_layers: int = 3, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, dilation = 3, 1
        for item in VGG16_TRUNK:
            if isinstance(item, int):
                layers += [nn.Conv2d(channels, item, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
                channels = item
            elif item == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(nn.MaxPool2d(3, stride=1, padding=1))
                dilation = 2
        self.features = nn.Sequential(*layers)
        self.pam_layers = pam_layers
        for number in range(1, pam_layers + 1):
            self.add_module(f"extra_conv{number}", nn.Conv2d(channels, channels, 3, padding=1))
        self.add_module(f"extra_conv{pam_layers + 1}", nn.Conv2d(channels, num_classes, 1, bias=bias))
        for name, module in self.named_children():
            if isinstance(module, nn.Conv2d) and name.startswith("extra_conv"):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, alpha: float) -> Tensor:
        """(B, 3, H, W) normalised images -> class maps (B, C, H // 8, W // 8)."""
        x = self.features(x)
        for number in range(1, self.pam_layers + 1):
            x = peak_attention(self.get_submodule(f"extra_conv{number}")(x), alpha)
        return _in_float32(self.get_submodule(f"extra_conv{self.pam_layers + 1}"), x)

    def trunk_parameters(self) -> list[nn.Parameter]:
        """What ImageNet weights fill."""
        return list(self.features.parameters())


class PeakAttentionModel(nn.Module):
    """Images -> class maps -> logits.

    Starts from random weights; ``load_backbone_weights`` is a call of its own, since a checkpoint brings its own.

    Args:
        num_classes: C, without background.
        backbone: A timm name; ``vgg16`` gives the network of the authors' release, to which ``strides`` and ``width``
            do not apply.
        strides: Stages of the backbone that the pyramid reads, ascending; class maps have the first.
        pam_layers: Convolutions that peak attention follows.
        width: Channels of the pyramid and of these convolutions.
        alpha: Of peak attention, in [0, 1]; 0 for a plain classifier.
        pooling: See ``ops.cues.pool``.

    Raises:
        ValueError: Unknown backbone or pooling, or a number out of its range.

    >>> model = PeakAttentionModel(2, "resnet18", strides=(8, 16)).eval()
    >>> maps = model(torch.rand(1, 3, 50, 64))
    >>> tuple(maps.shape), tuple(model.logits(maps).shape)
    ((1, 2, 7, 8), (1, 2))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str = "tf_efficientnet_lite0",
        *,
        strides: Sequence[int] = (8, 16, 32),
        pam_layers: int = 3,
        width: int = 128,
        alpha: float = 0.7,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        if min(num_classes, width) < 1 or pam_layers < 0:
            raise ValueError(
                f"expected num_classes >= 1, width >= 1 and pam_layers >= 0, got {num_classes}, {width}, {pam_layers}"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides must ascend, got {list(strides)}")
        self.backbone_name, self.alpha, self.pooling = backbone, alpha, pooling
        # the bias of nGWP belongs to the logit: in the map it would compete with the background's constant
        bias = pooling != "ngwp"
        self.network: PyramidClassifier | VGG16Classifier
        self.is_release = backbone.split(".")[0] == VGG16
        self.strides = (4, 8, 16) if self.is_release else tuple(strides)  # those of the whole VGG16, for its weights
        # the release's network is our own: of timm's, whose classifier has 100 million weights, it needs the statistics
        with torch.device("meta") if self.is_release else nullcontext():
            net, info = backbones.create_backbone(backbone, self.strides)
        if self.is_release:
            self.network = VGG16Classifier(num_classes, pam_layers=pam_layers, bias=bias)
        else:
            _leave_out_unused(net, info.levels)
            self.network = PyramidClassifier(
                net, info.levels, info.channels, num_classes, pam_layers=pam_layers, width=width, bias=bias
            )
        self.bias = None if bias else nn.Parameter(torch.zeros(num_classes))
        # not in the state dict: they follow from the backbone's name
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, alpha: float | None = None) -> Tensor:
        """Class maps before rectification.

        A size that the coarsest stride does not divide is filled up at the bottom and right with the backbone's mean
        colour, and the maps are cut again: cell (i, j) covers the same pixels at any size. The released VGG16 takes
        images as they are and leaves out the last pixels that fill no cell.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1].
            alpha: Instead of the model's own, where training approaches it.

        Returns:
            (B, C, h, w) float32, h and w being H and W divided by the first stride and rounded up.

        Raises:
            ValueError: Another shape, or not floating point.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be (B, 3, H, W) float in [0, 1], got {tuple(images.shape)} {images.dtype}")
        alpha = self.alpha if alpha is None else alpha
        x = (images - self.mean) / self.std
        if self.is_release:
            released: Tensor = self.network(x.contiguous(memory_format=torch.channels_last), alpha)
            return released
        height, width = images.shape[-2:]
        fine, coarse = self.strides[0], self.strides[-1]
        x = F.pad(x, (0, -width % coarse, 0, -height % coarse)).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.network(x, alpha)
        return maps[..., : -(-height // fine), : -(-width // fine)]

    def fine_features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, F, h, w) at the stride and of the size of the class maps."""
        if isinstance(self.network, VGG16Classifier):
            raise ValueError("the released VGG16 has no features at the stride of its class maps")
        height, width = images.shape[-2:]
        fine, coarse = self.strides[0], self.strides[-1]
        x = F.pad((images - self.mean) / self.std, (0, -width % coarse, 0, -height % coarse))
        features: Tensor = self.network.backbone(x.contiguous(memory_format=torch.channels_last))[
            self.network.levels[0]
        ]
        return features[..., : -(-height // fine), : -(-width // fine)]

    def logits(self, maps: Tensor) -> Tensor:
        """Logits (B, C) of images from their class maps."""
        logits = pool(maps, self.pooling)
        return logits if self.bias is None else logits + self.bias

    def align(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """Class maps (P, h, w) of images of ``size``, rectified, in a form whose borders are the image's.

        Cells that reach over the image's end would be squeezed into it when the maps are enlarged; maps with such cells
        are returned at ``size``, enlarged exactly and cut, others as they are. The release squeezes.
        """
        h, w = planes.shape[-2:]
        fine = self.strides[0]
        if self.is_release or (h * fine, w * fine) == size:
            return planes
        planes = planes.float().relu()
        large = F.interpolate(planes[:, None], scale_factor=fine, mode="bilinear", align_corners=False)
        return large[:, 0, : size[0], : size[1]]

    def load_backbone_weights(self, source: str | Path) -> None:
        """Fill the backbone with ImageNet weights, all of it, or raise and leave it as it was.

        Args:
            source: ``imagenet`` or the path of a state dict; see ``backbone.load_backbone_weights``.

        Raises:
            FileNotFoundError: No such file.
            ConnectionError: The model hub cannot be reached.
            ValueError: Tensors are missing, have another shape or belong to another network; the message names them.
        """
        # into the whole backbone first: ours may lack its last stages
        whole, _ = backbones.create_backbone(self.backbone_name, self.strides)
        backbones.load_backbone_weights(whole, self.backbone_name, source)
        state = whole.state_dict()
        if isinstance(self.network, VGG16Classifier):
            self.network.features.load_state_dict({k.removeprefix("features_"): v for k, v in state.items()})
        else:
            own = self.network.backbone.state_dict().keys()
            self.network.backbone.load_state_dict({k: v for k, v in state.items() if k in own})

    def backbone_parameters(self) -> list[nn.Parameter]:
        """What ImageNet weights can fill; usually trained with a smaller learning rate."""
        return self.network.trunk_parameters()

    def head_parameters(self) -> list[nn.Parameter]:
        """Everything else that is trained."""
        trunk = {id(p) for p in self.network.trunk_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in trunk]


def _conv(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _in_float32(conv: nn.Module, x: Tensor) -> Tensor:
    """The last layer outside of autocast: in half precision neighbouring values become equal, and each a cue."""
    with torch.autocast(x.device.type, enabled=False):
        maps: Tensor = conv(x.float())
    return maps


def _leave_out_unused(net: nn.Module, levels: Sequence[int]) -> None:
    """Remove the stages of a backbone behind the last feature map that is read, or at least do not train them.

    They would be computed for nothing, and DDP refuses parameters without a gradient.
    """
    info: list[str] = net.feature_info.module_name()  # type: ignore[operator, union-attr]
    parent, _, last = info[max(levels)].rpartition(".")
    stages = getattr(net, parent, None) if parent else None
    if isinstance(stages, nn.Sequential):
        setattr(net, parent, stages[: int(last) + 1])
    probe = copy.deepcopy(net).to("meta")  # shapes only: costs no computation
    features = probe(torch.empty(2, 3, 64, 64, device="meta"))
    total = torch.stack([features[level].sum() for level in levels]).sum()
    gradients = torch.autograd.grad(total, list(probe.parameters()), allow_unused=True)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
