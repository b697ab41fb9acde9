"""``bestie-pl convert``: a checkpoint of the authors' release -> one of this package, no tensor lost or made up."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bestie_pl.errors import UserError

if TYPE_CHECKING:  # `bestie-pl convert --help` answers without torch
    from torch import Tensor

    from bestie_pl.modules.bestie import BestieModule
    from bestie_pl.modules.peak_attention import PeakAttentionModule

CLASSIFIER = "classifier of ImageNet, which the network does not have"
COARSE = "writes the coarse branches of the last stage, which nothing reads"
ALIAS = "second name of the same values, which are used as features.N"
OPTIMIZER = "state of the optimiser: a new training begins its own"
BESIDE = "stands beside the network and is no part of it"

ALIASES = {
    f"layer{block}_conv{number}": f"features.{place}"
    for block, places in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), 1)
    for number, place in enumerate(places, 1)
}
"""Second names of the convolutions of the release's VGG16 -> their first ones."""

HRNET_UNUSED = {
    **{f"stage4.2.fuse_layers.{branch}.": COARSE for branch in (1, 2, 3)},
    **{f"{name}.": CLASSIFIER for name in ("incre_modules", "downsamp_modules", "final_layer", "classifier")},
    **{f"{name}.": CLASSIFIER for name in ("head", "fc")},
}


class Layout(NamedTuple):
    """A network of the release.

    ``backbone`` and ``decoder``: our names of its parts, without decoder for the classifier. ``mark``: name and shape
    of a tensor that the layouts after it in ``LAYOUTS`` do not have. ``classes``: the tensor with a row for each class.
    ``unused``: why tensors with these prefixes are left out.
    """

    backbone: str
    decoder: Literal["heads", "panoptic_deeplab"] | None
    mark: tuple[str, tuple[int, ...]]
    classes: str
    unused: Mapping[str, str]


LAYOUTS = {
    **{
        f"hrnet_w{width}": Layout(
            f"hrnet_w{width}", "heads", ("transition1.0.0.weight", (width, 256, 3, 3)), "center.2.weight", HRNET_UNUSED
        )
        for width in (48, 32)
    },
    **{
        name: Layout(
            name,
            "panoptic_deeplab",
            (f"backbone.layer3.{last}.conv2.weight", (256, 256, 3, 3)),
            "decoder.instance_head.classifier.center.1.weight",
            {"backbone.fc.": CLASSIFIER},
        )
        for name, last in (("resnet101", 22), ("resnet50", 5))
    },
    "vgg16": Layout(
        "vgg16",
        None,
        ("features.28.weight", (512, 512, 3, 3)),
        "extra_conv4.weight",
        {**{f"{alias}.": ALIAS for alias in ALIASES}, "classifier.": CLASSIFIER},
    ),
}
"""Source: release-weights 2, 3 and 5."""


class Conversion(NamedTuple):
    """What a file became.

    ``network``: key of ``LAYOUTS``. ``used``: names of the file's tensors that fill the module, which are all that it
    has. ``unused``: names of its other tensors and entries, and why each was left out.
    """

    module: BestieModule | PeakAttentionModule
    network: str
    used: tuple[str, ...]
    unused: dict[str, str]


def main(args: list[str]) -> int:
    """Convert the file that the command line names, and report on each of its tensors.

    Raises:
        FileNotFoundError: No such file.
        UserError: See ``convert``; or the output is the input or a folder.
    """
    options = _parser().parse_args(args)
    source, output = Path(options.input), Path(options.output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output is the file to convert, {source}; give another path")
    if output.is_dir():
        raise UserError(f"--output is a folder, {output}; give the path of the checkpoint to write in it")
    names = None if options.classes is None else _read_names(Path(options.classes))
    result = convert(source, network=options.network, class_names=names, supervision=options.supervision)
    save(result.module, output)
    print(f"{source}\n{report(result)}\nwritten to {output}")
    return 0


def convert(
    path: Path,
    *,
    network: str | None = None,
    class_names: Iterable[str] | None = None,
    supervision: Literal["tags", "points"] | None = None,
) -> Conversion:
    """Read a checkpoint of the release, of which nothing is executed.

    Args:
        path: What the release wrote: the tensors at the top or under ``model``, with or without ``module.``.
        network: Key of ``LAYOUTS``; recognised from the tensors if omitted.
        class_names: One a class. If omitted, VOC's where there are 20 classes, else ``class0``, ...
        supervision: What the network learnt from, ``tags`` if omitted; the release gives points a mirrored test.

    Raises:
        FileNotFoundError: No such file.
        UserError: No file of tensors, an unknown network, tensors that are missing, unknown, of another shape or
            different under two names, or another number of class names.
    """
    from bestie_pl.models.tensor_file import differences, read_file, split_content

    content = read_file(path)
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        raise UserError(f"{path} is a Lightning checkpoint already; convert is for files of the authors' release")
    tensors, beside = split_content(content, path)
    network = network or _recognize(tensors, path)
    layout = LAYOUTS[network]
    if network == "vgg16":
        _check_aliases(tensors, path)
    module = _make_module(layout, _count_classes(tensors, layout), class_names, supervision, path)

    state = module.model.state_dict()
    ours = {release_name(name, layout): name for name in state}
    used = {name: value for name, value in tensors.items() if name in ours}
    unused = {name: _reason(name, layout.unused) for name in tensors if name not in ours}
    unknown = [name for name, reason in unused.items() if not reason]
    wanted = {name: state[key] for name, key in ours.items()}
    if problems := differences(used, wanted, unknown):
        raise UserError(f"{path} does not fit the release's {network}: {problems}. Nothing was written")
    module.model.load_state_dict({ours[name]: value for name, value in used.items()})
    unused |= {name: OPTIMIZER if name.startswith("optim") else BESIDE for name in beside}
    return Conversion(module, network, tuple(used), {name: _describe(name, unused, beside) for name in unused})


def release_name(name: str, layout: Layout) -> str:
    """Name in the release of a parameter of ours; its HRNet has no level above backbone and heads."""
    name = name.removeprefix("network.")
    return name.split(".", 1)[1] if layout.decoder == "heads" else name


def save(module: BestieModule | PeakAttentionModule, path: Path) -> None:
    """Write a Lightning checkpoint of the network and its settings, in one move."""
    import torch

    from bestie_pl.data.files import in_one_move

    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "state_dict": module.state_dict(),
        module.CHECKPOINT_HYPER_PARAMS_NAME: "kwargs",
        module.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams),
    }
    with in_one_move(path) as temporary:
        torch.save(checkpoint, temporary)


def report(result: Conversion) -> str:
    """Every tensor of the file, in words: used, or why not."""
    hparams = result.module.hparams
    kind = type(result.module).__name__
    settings = {
        name: hparams[name] for name in (("supervision", "recipe") if kind == "BestieModule" else ("recipe", "alpha"))
    }
    if kind == "BestieModule":
        settings["mirror"] = hparams["inference"]["mirror"]
    families = Counter(_family(name) for name in result.used)
    lines = [
        f"{result.network}, {hparams['num_classes']} classes ({', '.join(hparams['class_names'])})",
        f"{kind} with {', '.join(f'{name} {value}' for name, value in settings.items())}",
        f"{len(result.used)} tensors used: {', '.join(f'{name} {count}' for name, count in families.items())}",
    ]
    for reason in dict.fromkeys(result.unused.values()):
        names = [name for name, why in result.unused.items() if why == reason]
        lines.append(f"{len(names)} unused, {reason}: {', '.join(names)}")
    if not result.unused:
        lines.append("none unused")
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="    ", break_on_hyphens=False) for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl convert",
        description="Turn a checkpoint of the authors' release into one that this package reads. Every tensor is used, "
        "or listed with the reason why not; nothing in the file is executed.",
        epilog="What was written is for --ckpt_path of test and predict, and for init_from of a BestieModule.",
    )
    parser.add_argument("input", help="BESTIE_*.pt, best.pt, PAM.pth or the like")
    parser.add_argument("--output", required=True, help="the checkpoint to write")
    parser.add_argument("--network", choices=list(LAYOUTS), help="recognised from the tensors if omitted")
    parser.add_argument("--classes", help="text file, a class name a line; VOC's names for 20 classes if omitted")
    parser.add_argument(
        "--supervision",
        choices=["tags", "points"],
        help="what the network learnt from (default: tags); points also average the maps with those of the mirrored "
        "image, as the release's script for points does",
    )
    return parser


def _read_names(path: Path) -> list[str]:
    from bestie_pl.data.files import read_text
    from bestie_pl.data.formats.classes import check_class_names

    lines = [line for line in read_text(path, "a class name a line").splitlines() if line.strip()]
    return list(check_class_names(lines, str(path)))


def _recognize(tensors: Mapping[str, Tensor], path: Path) -> str:
    for network, layout in LAYOUTS.items():
        name, shape = layout.mark
        if name in tensors and tensors[name].shape == shape:
            return network
    raise UserError(
        f"{path}: its {len(tensors)} tensors ({', '.join(list(tensors)[:4])}, ...) are those of no network of the "
        f"release; give --network ({', '.join(LAYOUTS)}) to see what is missing"
    )


def _count_classes(tensors: Mapping[str, Tensor], layout: Layout) -> int:
    """Rows of the last layer; where there is none it will be reported as missing."""
    last = tensors.get(layout.classes)
    return 1 if last is None or not last.numel() or not last.dim() else len(last)


def _make_module(
    layout: Layout,
    num_classes: int,
    class_names: Iterable[str] | None,
    supervision: Literal["tags", "points"] | None,
    path: Path,
) -> BestieModule | PeakAttentionModule:
    """The module with the release's settings, in random weights."""
    from bestie_pl.data.voc import VOC_CLASSES
    from bestie_pl.modules.bestie import BestieModule, Inference
    from bestie_pl.modules.optimization import Optimization
    from bestie_pl.modules.peak_attention import PeakAttentionModule

    names = None if class_names is None else list(class_names)
    if names is None and num_classes == len(VOC_CLASSES):
        names = list(VOC_CLASSES)
    if names is not None and len(names) != num_classes:
        raise UserError(f"{path} has {num_classes} classes, and {len(names)} class names were given: one a class")
    # without backbone_weights: a training that goes on from here would overwrite what was converted
    if layout.decoder is not None:
        return BestieModule(
            num_classes,
            names,
            backbone=layout.backbone,
            decoder=layout.decoder,
            backbone_weights=None,
            supervision=supervision or "tags",
            recipe="release",
            inference=Inference(mirror=supervision == "points"),
            optimization=Optimization(warmup_steps=2000),
        )
    if supervision == "points":
        raise UserError(f"{path} is the classifier, which learns from tags; leave out --supervision points")
    return PeakAttentionModule(
        num_classes,
        names,
        backbone=layout.backbone,
        backbone_weights=None,
        recipe="release",
        optimization=Optimization("sgd", lr=0.01, backbone_lr_factor=0.1, weight_decay=5e-4),
    )


def _check_aliases(tensors: Mapping[str, Tensor], path: Path) -> None:
    """The release's classifier has its trunk under two names; if they differ, it is not known which one was trained."""
    for alias, name in ALIASES.items():
        for kind in ("weight", "bias"):
            first, second = tensors.get(f"{name}.{kind}"), tensors.get(f"{alias}.{kind}")
            if first is not None and second is not None and not first.equal(second):
                raise UserError(
                    f"{path}: {alias}.{kind} and {name}.{kind} are two names of one tensor, but differ; take out one"
                )


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    return next((reason for prefix, reason in reasons.items() if name.startswith(prefix)), "")


def _describe(name: str, reasons: Mapping[str, str], beside: Mapping[str, Any]) -> str:
    """The reason, with the number of tensors in an entry that holds some."""
    count = _count_tensors(beside.get(name))
    return f"{count} tensors, {reasons[name]}" if count else reasons[name]


def _count_tensors(content: Any) -> int:
    from torch import Tensor

    if isinstance(content, Tensor):
        return 1
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, (list, tuple)) else ()
    return sum(_count_tensors(value) for value in values)


def _family(name: str) -> str:
    """First part of a name that says which part of the network it is in."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("backbone", "decoder") else parts[0]
