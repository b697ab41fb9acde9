"""A trained network from a file, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from bestie_pl.errors import UserError
from bestie_pl.exported import read_exported
from bestie_pl.models.exported import FILES
from bestie_pl.models.tensor_file import read_file
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.prediction.engine import OVERLAP, TILE, Predictor

KIND = "the checkpoint of a BestieModule, `checkpoints/last.ckpt` in the folder of its run"

EXPORTED = {Path(name).suffix for name in FILES.values()}


class BestiePredictor(Predictor):
    """Instances of images from any source, by a trained network: ``BestiePredictor.load("last.ckpt")("photos/")``.

    See ``Predictor`` for sources, large images and arguments, and ``Result`` for what comes back.
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        image_scale: float | None = None,
        device: str | torch.device | None = None,
        tile: int = TILE,
        overlap: int = OVERLAP,
    ) -> Self:
        """The predictor of a checkpoint, with the settings of its training. Only tensors and plain values are read.

        Args:
            path: Of a checkpoint; or of the ``model.onnx`` or ``model.pt2`` that ``bestie-pl export`` wrote.
            image_scale: Factor by which images are enlarged; if omitted, what the training's data had, as its
                checkpoint says (1 where it says nothing).
            device: A GPU if there is one, otherwise the CPU, if omitted. Exported networks run on the CPU, or where
                ONNX Runtime prefers.
            tile: See ``Predictor``.
            overlap: See ``Predictor``.

        Raises:
            FileNotFoundError: No such file.
            ValueError: It is not such a checkpoint, or there is no such device.
        """
        if Path(path).suffix in EXPORTED:
            exported, found = read_exported(Path(path))
            return cls(exported, image_scale=found if image_scale is None else image_scale, tile=tile, overlap=overlap)
        place = _place(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        content = read_checkpoint(Path(path))
        module = BestieModule.load_from_checkpoint(path, map_location="cpu", weights_only=True, oracle=None)
        scale = scale_of_training(content) if image_scale is None else image_scale
        return cls(module.to(place).eval(), image_scale=scale, tile=tile, overlap=overlap)


def _place(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for absent ones
        there = f"cpu, cuda or cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        raise UserError(f"device {str(device)!r}: there is no such device here; expected {there}") from error
    return place


def scale_of_training(checkpoint: Mapping[str, Any]) -> float:
    """The ``image_scale`` of the data that a checkpoint was trained on: it stands in the data module's state."""
    for state in checkpoint.values():
        if isinstance(state, Mapping) and isinstance(state.get("image_scale"), (int, float)):
            return float(state["image_scale"])
    return 1.0


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint of a network that finds instances.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is not such a checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; expected {KIND}")
    content: Mapping[str, Any] = read_file(path)
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    if not isinstance(settings, Mapping) or "guidance" not in settings or "state_dict" not in content:
        raise ValueError(f"{path}: holds no network that finds instances; expected {KIND}")
    return content
