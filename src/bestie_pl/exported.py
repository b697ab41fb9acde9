"""A trained network as a folder for other programs: ONNX or torch program, weights, settings and a model card."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from bestie_pl.data.files import in_one_move, read_text, write_json, write_text
from bestie_pl.models.bestie import SIZE_STEP, STRIDE, BestieModel
from bestie_pl.models.exported import (
    FILES,
    INPUT,
    LEAST_SIDE,
    OPSET,
    OUTPUTS,
    ExportedModel,
    ExportFormat,
    write_onnx,
    write_program,
)
from bestie_pl.modules.bestie import BestieModule

SETTINGS = "settings.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"


def write_exported(
    module: BestieModule,
    folder: Path,
    kind: ExportFormat,
    *,
    image_scale: float,
    scores: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the network's program, its weights, its settings and a model card into a folder.

    Args:
        module: The trained network.
        folder: Made if it is not there.
        kind: ``onnx`` or ``torch``.
        image_scale: Factor by which images have to be enlarged for it.
        scores: What ``scores_test.json`` of its run says, for the card.
        data: What the configuration of its run says of the data, for the card.

    Returns:
        The files that were written.

    Raises:
        ValueError: The packages for ONNX are not installed.
    """
    program = folder / FILES[kind]
    with in_one_move(program) as temporary:
        (write_onnx if kind == "onnx" else write_program)(module.model, temporary)
    with in_one_move(folder / WEIGHTS) as temporary:
        state = {name: value.contiguous() for name, value in module.model.state_dict().items()}
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    settings = {"file": program.name, "image_scale": image_scale, "hyper_parameters": _plain(module.hparams)}
    write_json(folder / SETTINGS, settings)
    write_text(folder / CARD, model_card(module, kind, image_scale=image_scale, scores=scores, data=data))
    return [program, folder / WEIGHTS, folder / SETTINGS, folder / CARD]


def read_exported(path: Path) -> tuple[BestieModule, float]:
    """A module that runs an exported program in the place of its network, and the ``image_scale`` that it needs.

    Args:
        path: Of ``model.onnx`` or ``model.pt2``, with ``settings.json`` beside it.

    Raises:
        FileNotFoundError: No such file, or no settings beside it.
        ValueError: The program or the settings are damaged, or ONNX Runtime is not installed.
    """
    beside = path.parent / SETTINGS
    text = read_text(beside, "what `bestie-pl export` wrote beside the network; keep its files together")
    try:
        settings = json.loads(text)
        scale, arguments = float(settings["image_scale"]), dict(settings["hyper_parameters"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{beside}: holds no settings of a network ({error!r}); export it again") from error
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected what `bestie-pl export` wrote")
    # as a checkpoint without weights, so that settings are read in one way
    checkpoint = BytesIO()
    torch.save({"state_dict": {}, "hyper_parameters": arguments, "pytorch-lightning_version": "2.6.0"}, checkpoint)
    checkpoint.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning lists every weight that is not there
        module = BestieModule.load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True, strict=False, oracle=None
        )
    module.model = cast(BestieModel, ExportedModel(path, module.model))
    return module.eval(), scale


def model_card(
    module: BestieModule,
    kind: ExportFormat,
    *,
    image_scale: float,
    scores: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> str:
    """What the network is, what it was trained on, how good it is, and how to run it, as Markdown."""
    settings = module.hparams
    described = [f"- {name}: {value}" for name, value in (data or {}).items()]
    measured = [
        f"| {name} | {100 * float(value):.1f} |" for name, value in ((scores or {}).get("scores") or {}).items()
    ]
    used = [f"- Not weakly supervised: {note}." for note in (scores or {}).get("ground_truth_used") or ()]
    steps = f"opset {OPSET}" if kind == "onnx" else f"torch {torch.__version__}"
    lines = [
        "# Instance segmentation with BESTIE",
        "",
        f"A network that gives each object a mask, a class and a score, trained with {module.supervision} as "
        f"supervision (recipe {module.recipe}). Method: Beyond Semantic to Instance Segmentation (CVPR 2022), as in "
        "bestie-pl.",
        "",
        f"- Network: {settings.get('backbone')} with decoder {settings.get('decoder')}",
        f"- Classes: {', '.join(module.class_names)}",
        f"- Images are enlarged by {image_scale:g} before anything else",
        "",
        "## Training data",
        "",
        *(described or ["Not known from the checkpoint: say here what it was trained on."]),
        *used,
        "",
        "## Scores",
        "",
        *(["| score | per cent |", "| --- | --- |", *measured] if measured else ["Not measured."]),
        "",
        "## Use",
        "",
        "```python",
        "from bestie_pl import BestiePredictor",
        f'results = BestiePredictor.load("{FILES[kind]}")("photos/")',
        "```",
        "",
        f"Without this package: `{FILES[kind]}` ({steps}) takes `{INPUT}` (batch, 3, height, width), float32 RGB in "
        f"[0, 1], both sides multiples of {SIZE_STEP} and at least {LEAST_SIDE} (fill up at the bottom and right), and "
        f"gives {', '.join(f'`{name}`' for name in OUTPUTS)} at a stride of {STRIDE}: logits with background first, a "
        "centre heatmap for each class, and offsets (dy, dx) to the centre in pixels of the input. Normalisation is "
        "inside.",
        "",
        "## Licence",
        "",
        "The weights have the licence that their maker gives them: state it here. They started from "
        f"{settings.get('init_from') or settings.get('backbone_weights') or 'random numbers'}; mind the terms of those "
        "weights and of the images.",
        "",
    ]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Settings as JSON takes them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
