"""Checkpoints that a network's weights come from: complete and of this network, or one error that says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from bestie_pl.models.bestie import BestieModel
from bestie_pl.models.tensor_file import differences, read_file, refuse_infinite
from bestie_pl.modules.run_folders import find_checkpoint

PREFIX = "model."
"""Where the modules of this package keep their network."""

NETWORK = ("num_classes", "backbone", "decoder")
"""The settings that decide which tensors a network has."""


def load_network(model: BestieModel, path: str | Path, module: pl.LightningModule | None = None) -> None:
    """Fill every tensor of ``model`` from a checkpoint of a SemanticModule or a BestieModule, or leave it as it was.

    Instance heads come along too: those of a SemanticModule are as fresh as they started, since nothing trains them.

    Args:
        model: The network, with the backbone, decoder and classes that the checkpoint was trained with.
        path: A Lightning checkpoint. Only tensors and plain values are read from it (``weights_only``).
            ``ROOT/checkpoints/last.ckpt`` is the newest of the runs in ``ROOT``, as for ``--ckpt_path last``.
        module: Whose network it is, so that the classes are compared by name.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No checkpoint of such a module, or tensors are missing, unknown or of another shape; names them.
            Or the checkpoint's classes have other names.
    """
    path = find_checkpoint(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; init_from takes that of a SemanticModule or BestieModule")
    content = read_file(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path} holds no state_dict; give the checkpoint of a SemanticModule or BestieModule ('bestie-pl convert' "
            "makes one of a file of the authors' release)"
        )
    found: dict[str, Tensor] = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    wanted = model.state_dict()
    if problems := differences(found, wanted, found.keys() - wanted.keys()):
        theirs = content.get("hyper_parameters", {})
        trained = ", ".join(f"{k}={theirs[k]!r}" for k in NETWORK if k in theirs)
        raise ValueError(
            f"{path} does not fit the network: {problems}. Nothing was loaded; use the backbone, decoder and classes "
            f"that it was trained with{f' ({trained})' if trained else ''}"
        )
    if module is not None:
        refuse_other_classes(content, module)
    refuse_infinite(found, path)
    model.load_state_dict(found)


def check_checkpoint(path: Path, module: pl.LightningModule, *, to_train: bool) -> None:
    """Raise one error that says why a checkpoint cannot be loaded into a module, before anything else happens.

    Args:
        path: What ``ckpt_path`` means.
        module: Which takes the weights.
        to_train: Whether a training is to go on, which needs the optimiser's state too.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is something else, damaged, of another network or of other classes, or holds values that are not
            finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; --ckpt_path takes the file of a training, or last")
    content = read_file(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors or "pytorch-lightning_version" not in content:
        raise ValueError(
            f"{path} is no checkpoint of a training with this package; --ckpt_path takes what 'fit' or 'convert' wrote "
            "(init_from and backbone_weights read other files)"
        )
    try:
        module.on_load_checkpoint(dict(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    wanted = module.state_dict()
    if problems := differences(tensors, wanted, tensors.keys() - wanted.keys()):
        kind = str(content.get("hyper_parameters", {}).get("_class_path", "")).rpartition(".")[2]
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {problems}; give the model that it was trained with"
            f"{f' ({kind})' if kind else ''}"
        )
    refuse_infinite(tensors, path)
    if to_train and not {"loops", "optimizer_states", "lr_schedulers"} <= content.keys():
        raise ValueError(f"{path} holds weights only, no state of a training to go on with; start from it by init_from")


def provide_weights(module: pl.LightningModule) -> str | None:
    """Fill a module that is to be evaluated without a checkpoint from where its settings say, and say from where.

    A module of another package, or one without weights (``ImportedMaps``), is left alone.

    Raises:
        ValueError: The weights would be random.
    """
    if not hasattr(module, "backbone_weights"):
        return None
    source = getattr(module, "init_from", None)
    network = getattr(module, "model", None)
    if source is None or not isinstance(network, BestieModel):
        raise ValueError(
            f"{type(module).__name__} has random weights: give --ckpt_path, the checkpoint of a training or last "
            "(backbone_weights fill the backbone alone)"
        )
    load_network(network, source, module)
    return str(source)


def sha256(path: Path) -> str:
    """Hash of a file, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other_classes(checkpoint: Mapping[str, Any], module: pl.LightningModule) -> None:
    """Raise ValueError if a checkpoint's classes have other names than the module's, or the same in another order.

    A module whose ``accept_class_names`` is true takes them by their numbers (``--accept_class_names true``).
    """
    theirs = checkpoint.get("hyper_parameters", {}).get("class_names")
    ours = getattr(module, "class_names", None)
    if theirs is None or ours is None or list(theirs) == list(ours) or getattr(module, "accept_class_names", False):
        return
    different = [f"{c}: {a!r} here {b!r}" for c, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]
    raise ValueError(
        f"the checkpoint's classes are others than the data's ({', '.join(different[:5])}"
        f"{', ...' if len(different) > 5 else ''}); give the data the checkpoint's names in their order, or take them "
        "by their numbers with --accept_class_names true"
    )


def refuse_other_network(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], names: Sequence[str] = NETWORK
) -> None:
    """Raise ValueError if a checkpoint that is being loaded is of another network than ``settings``, by ``names``."""
    theirs = checkpoint.get("hyper_parameters", {})
    for name in names:
        if name in theirs and theirs[name] != settings[name]:
            raise ValueError(
                f"the checkpoint was trained with {name}={theirs[name]!r}, the configuration or the data says "
                f"{settings[name]!r}; use those that it was trained with"
            )
