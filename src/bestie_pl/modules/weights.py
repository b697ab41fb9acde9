"""A network that starts from another training's checkpoint: complete, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bestie_pl.models.bestie import BestieModel
from bestie_pl.models.tensor_file import differences, read_file

PREFIX = "model."
"""Where the modules of this package keep their network."""

NETWORK = ("num_classes", "backbone", "decoder")
"""The settings that decide which tensors a network has."""


def load_network(model: BestieModel, path: str | Path) -> None:
    """Fill every tensor of ``model`` from a checkpoint of a SemanticModule or a BestieModule, or leave it as it was.

    Instance heads come along too: those of a SemanticModule are as fresh as they started, since nothing trains them.

    Args:
        model: The network, with the backbone, decoder and classes that the checkpoint was trained with.
        path: A Lightning checkpoint. Only tensors and plain values are read from it (``weights_only``).

    Raises:
        FileNotFoundError: No such file.
        ValueError: No checkpoint of such a module, or tensors are missing, unknown or of another shape; names them.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; init_from takes that of a SemanticModule or BestieModule")
    content = read_file(Path(path))
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
    model.load_state_dict(found)


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
