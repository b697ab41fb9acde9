"""torchvision's Mask R-CNN: on any timm backbone, with weighted labels, and without compiled operators where needed."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import extension
from torchvision.models import ResNet50_Weights, get_model, list_models
from torchvision.models import detection as architectures
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FeaturePyramidNetwork, boxes, poolers
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from bestie_pl.models import backbone as backbones
from bestie_pl.models.tensor_file import differences, read_file, refuse_infinite, split_content
from bestie_pl.ops.detection import DetectionTarget, box_losses, mask_loss, nms, roi_align

BUILDERS = tuple(list_models(module=architectures, include="maskrcnn_*"))
"""torchvision's own Mask R-CNNs by name; both are on a ResNet-50."""

STRIDES = (4, 8, 16, 32)
"""Of a timm backbone's levels in the pyramid, to which torchvision adds one of stride 64."""

ANCHOR_SIZES = (32, 64, 128, 256, 512)
"""Sides of the anchors of the pyramid's levels, in pixels of the resized image. Source: torchvision."""

WIDTH = 256
"""Channels of the pyramid and of the mask head. Source: torchvision."""

POOLED = 7
"""Cells of a box along each side, as the box head sees it. Source: torchvision."""

FROZEN = ("conv1", "bn1", "layer1")
"""First layers of a ResNet, which keep their ImageNet weights. Source: torchvision, and Detectron's schedules."""

SETTINGS = {
    name: parameter.default
    for name, parameter in inspect.signature(MaskRCNN).parameters.items()
    if type(parameter.default) in (int, float)
}
"""torchvision's arguments of a Mask R-CNN that are numbers, with their defaults."""


def complete_torchvision() -> None:
    """Where torchvision has no compiled operators, let its detection models use the plain ones of ``ops.detection``.

    With compiled operators nothing is touched. Without them, nothing that worked before changes: its ``nms`` raises an
    error there, and its RoIAlign takes about a minute a training step.
    """
    if not extension._has_ops():
        boxes.nms, poolers.roi_align = nms, roi_align


class MaskRCNNModel(nn.Module):
    """Images -> boxes, classes, scores and masks; in training, the losses of their labels.

    ``network`` is torchvision's module, with its parameter names. Starts from random weights; ``load_backbone_weights``
    and ``load_weights`` are calls of their own.

    Args:
        num_classes: C, without background.
        backbone: One of torchvision's builders (``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2``), or a timm
            name, which gets torchvision's pyramid, heads and defaults.
        width: Channels of the pyramid of a timm backbone and of its mask head; four times as many in its box head.
        anchor_sizes: Sides of the anchors of a timm backbone's five levels, in pixels of the resized image.
        settings: Numbers among the arguments of ``torchvision.models.detection.MaskRCNN``, by name.
        frozen_norm: Batch normalisations of the backbone keep their statistics and factors, and a builder's first
            layers their weights, as torchvision has it for a pretrained backbone.

    Raises:
        ValueError: Unknown backbone or setting, or a builder with another width or other anchors than its own.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = BUILDERS[0],
        *,
        width: int = WIDTH,
        anchor_sizes: Sequence[int] = ANCHOR_SIZES,
        settings: Mapping[str, Any] | None = None,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        complete_torchvision()
        settings = dict(settings or {})
        if unknown := sorted(settings.keys() - SETTINGS.keys()):
            raise ValueError(f"settings has {unknown[0]!r}; torchvision's MaskRCNN takes {', '.join(SETTINGS)}")
        self.backbone_name = backbone
        if backbone in BUILDERS:
            if width != WIDTH or tuple(anchor_sizes) != ANCHOR_SIZES:
                raise ValueError(f"{backbone} has its own width and anchors; name a timm backbone, such as resnet50")
            network = get_model(backbone, weights=None, weights_backbone=None, num_classes=num_classes + 1, **settings)
        else:
            network = _on_timm_backbone(num_classes, backbone, width, anchor_sizes, settings)
        network.roi_heads.__class__ = WeightedRoIHeads  # which differs in its losses alone
        # torchvision casts anchors, boxes and targets to the type of what these return: in half precision boxes lie on
        # a grid of several pixels, and NMS, which sets classes apart by shifting boxes, keeps duplicates
        heads = network.roi_heads
        for part in (network.backbone, network.rpn.head, heads.box_predictor, heads.mask_predictor):
            part.register_forward_hook(_in_single_precision)
        self.network = network
        self.frozen_norm = frozen_norm
        if frozen_norm:
            for layer in self._norms():
                layer.requires_grad_(False)
            if backbone in BUILDERS:
                for name in FROZEN:
                    network.backbone.body.get_submodule(name).requires_grad_(False)
        # half the time of a training step on a CPU; states and detections are the same
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Tensor]]:
        """What torchvision detects in RGB images (B, 3, H, W) in [0, 1], of which ``sizes`` are no padding.

        Returns:
            A dictionary an image: ``boxes`` (N, 4), ``labels`` (N,) from 1, ``scores`` (N,), ``masks`` (N, 1, h, w).
        """
        found: list[dict[str, Tensor]] = self.network(_unpadded(images, sizes))
        return found

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """Torchvision's five losses of images (B, 3, H, W) in [0, 1]; an object's own count times its weight.

        The two of the proposal network know no weights: a doubtful object is an object for them.
        """
        found: dict[str, Tensor] = self.network(_unpadded(images, None), [target._asdict() for target in targets])
        return found

    def train(self, mode: bool = True) -> MaskRCNNModel:
        """Frozen normalisations stay as in evaluation."""
        super().train(mode)
        if self.frozen_norm:
            for layer in self._norms():
                layer.eval()
        return self

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those that pretrained weights fill, without frozen ones."""
        return [p for p in self.network.backbone.body.parameters() if p.requires_grad]

    def head_parameters(self) -> list[nn.Parameter]:
        """All others."""
        of_backbone = {id(p) for p in self.network.backbone.body.parameters()}
        return [p for p in self.network.parameters() if id(p) not in of_backbone]

    def load_backbone_weights(self, source: str) -> None:
        """Fill every tensor of the backbone, or raise and leave it as it was.

        Args:
            source: Path of a file of ImageNet weights, or ``imagenet``: torchvision's for one of its builders; see
                ``models.backbone.load_backbone_weights`` for a timm backbone.

        Raises:
            FileNotFoundError: No such file.
            ConnectionError: The weights cannot be downloaded.
            ValueError: Tensors are missing, of another shape, of another network or not finite.
        """
        body = self.network.backbone.body
        if self.backbone_name not in BUILDERS:
            backbones.load_backbone_weights(body, self.backbone_name, source)
            return
        if source == "imagenet":
            try:
                state = dict(ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False))
            except (URLError, OSError) as error:
                raise ConnectionError(
                    f"cannot get torchvision's ImageNet weights of ResNet-50 ({error}); connect to the network, or "
                    "give backbone_weights a local file of them"
                ) from error
        elif not Path(source).is_file():
            raise FileNotFoundError(
                f"no backbone weights at {source}; give a file of torchvision's ResNet-50, or imagenet to download it"
            )
        else:
            state = split_content(read_file(Path(source)), Path(source))[0]
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        _fill(body, state, source, self.backbone_name)

    def load_weights(self, path: str | Path) -> None:
        """Fill every tensor from a file of torchvision, or from a checkpoint of a MaskRCNNModule; else leave it.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Tensors are missing, unknown or of another shape (other classes, backbone or width), or not
                finite.
        """
        state = split_content(read_file(Path(path)), Path(path))[0]
        if all(name.startswith("network.") for name in state):
            state = {name.removeprefix("network."): value for name, value in state.items()}
        _fill(self.network, state, str(path), self.backbone_name)

    def _norms(self) -> list[nn.Module]:
        body = self.network.backbone.body
        return [layer for layer in body.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


class PyramidBackbone(nn.Module):
    """A timm backbone with torchvision's feature pyramid, as torchvision's detectors expect it.

    Args:
        body: Returns a list of feature maps.
        levels: Which of them make the pyramid, finest first.
        channels: Theirs.
        width: Channels of the pyramid.
    """

    def __init__(self, body: nn.Module, levels: Sequence[int], channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.body = body
        self.levels = tuple(levels)
        self.fpn = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelMaxPool())
        self.out_channels = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``0`` to ``3`` at strides 4 to 32, and ``pool`` at 64."""
        features = self.body(x)
        maps: dict[str, Tensor] = self.fpn(
            OrderedDict((str(number), features[level]) for number, level in enumerate(self.levels))
        )
        return maps


class WeightedRoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's second stage, whose losses of an object count as much as its target's ``weights`` say."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Torchvision's detections in evaluation; losses where there are targets."""
        if targets is None:
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = super().forward(
                features, proposals, image_shapes
            )
            return found
        proposals, matched, classes, offsets = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_offsets = self.box_predictor(pooled)
        weights = [_weights(t["weights"], m, c) for t, m, c in zip(targets, matched, classes, strict=True)]
        of_class, of_box = box_losses(
            class_logits, box_offsets, torch.cat(classes), torch.cat(offsets), torch.cat(weights)
        )

        found_rows = [c.nonzero()[:, 0] for c in classes]
        proposals, matched, classes, weights = (
            [column[rows] for column, rows in zip(columns, found_rows, strict=True)]
            for columns in (proposals, matched, classes, weights)
        )
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, proposals, image_shapes)))
        side = logits.shape[-1]
        masks = [
            roi_align(t["masks"][:, None].float(), torch.cat([m[:, None].to(p), p], 1), side)[:, 0]
            for t, m, p in zip(targets, matched, proposals, strict=True)
        ]
        of_mask = mask_loss(logits, torch.cat(classes), torch.cat(masks), torch.cat(weights))
        return [], {"loss_classifier": of_class, "loss_box_reg": of_box, "loss_mask": of_mask}


def _weights(weights: Tensor, matched: Tensor, classes: Tensor) -> Tensor:
    """Of an image's proposals: that of the object each lies on, 1 for background."""
    if not len(weights):
        return torch.ones_like(classes, dtype=weights.dtype)
    return torch.where(classes > 0, weights[matched], 1.0)


def _on_timm_backbone(
    num_classes: int, backbone: str, width: int, anchor_sizes: Sequence[int], settings: dict[str, Any]
) -> Any:
    """Torchvision's detector with its own heads, as wide as asked for."""
    body, info = backbones.create_backbone(backbone, STRIDES)
    if len(anchor_sizes) != len(STRIDES) + 1:
        raise ValueError(f"anchor_sizes must be {len(STRIDES) + 1} numbers, one a level; got {list(anchor_sizes)}")
    outputs = num_classes + 1
    return MaskRCNN(
        PyramidBackbone(body, info.levels, info.channels, width),
        image_mean=list(info.mean),
        image_std=list(info.std),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(width * POOLED**2, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, outputs),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, outputs),
        **settings,
    )


def _in_single_precision(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook: what a part returns under autocast, a tensor or tensors in lists, tuples and dictionaries."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if isinstance(output, Mapping):
        return OrderedDict((name, _in_single_precision(module, inputs, value)) for name, value in output.items())
    return type(output)(_in_single_precision(module, inputs, value) for value in output)


def _unpadded(images: Tensor, sizes: Sequence[tuple[int, int]] | None) -> list[Tensor]:
    if sizes is None:
        return list(images)
    return [image[:, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)]


def _fill(net: nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> None:
    wanted = net.state_dict()
    # torchvision's files of frozen normalisations lack these counters, which nothing reads
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    found = {**({} if counters.keys() & state.keys() else counters), **state}
    if problems := differences(found, wanted, found.keys() - wanted.keys()):
        raise ValueError(f"{origin} does not fit {name!r}: {problems}. Nothing was loaded")
    refuse_infinite(found, origin)
    net.load_state_dict(found)
