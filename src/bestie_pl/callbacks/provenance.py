"""What made the files of a folder: the weights, the settings, the version. Files of different makings never mix."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

import bestie_pl
from bestie_pl.data.files import write_text
from bestie_pl.data.formats.images import ImageFiles
from bestie_pl.modules.run_folders import find_checkpoint
from bestie_pl.modules.weights import sha256

FILE = "made_by.yaml"
"""In each folder of predictions, cues or maps, whose files end in json, txt or png."""

OF_TRAINING = {
    *("optimization", "optimizer", "lr", "backbone_lr_factor", "weight_decay", "warmup_steps"),
    *("loss_weights", "center_weight", "offset_weight", "semantic_weight"),
    *("backbone_weights", "init_from", "compile_network", "graph_network", "alpha_ramp_steps", "balance"),
}
"""Settings of modules that change no prediction of given weights."""

OF_DATA = ("image_scale", "recipe")
"""Settings of data modules that change what a network is shown."""


def weights_of(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Where a module's weights came from: file, hash and step of a checkpoint; or the hash of what is in memory."""
    source = trainer.ckpt_path or getattr(module, "weights_from", None)
    path = find_checkpoint(Path(source)) if source else None
    if path is not None and path.is_file():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {"checkpoint": str(path), "sha256": sha256(path), "step": content.get("global_step")}
    digest = hashlib.sha256()
    for name, values in module.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"checkpoint": None, "sha256": digest.hexdigest(), "step": None}


def provenance(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    folder: Path,
    settings: Mapping[str, Any],
    regardless_of: Set[str] = frozenset(),
) -> dict[str, Any]:
    """What makes the files of ``folder`` in this run.

    Args:
        trainer: That predicts.
        module: The network.
        folder: Of the files; images are named relative to it, so that both may move together.
        settings: Of the writer.
        regardless_of: Settings of the module that change nothing in these files.
    """
    data: Any = getattr(trainer, "datamodule", None)
    images = _images(data)
    shown = {name: getattr(data, name) for name in OF_DATA if hasattr(data, name)}
    if shown.get("recipe") == "release" and getattr(data, "tags_only", False):
        shown["crop_size"] = data.crop_size  # the size that the release's classifier sees
    own = {name: value for name, value in plain_settings(module).items() if name not in OF_TRAINING | regardless_of}
    content = {
        **weights_of(trainer, module),
        "model": type(module).__name__,
        "version": bestie_pl.__version__,
        "images": None if images is None else os.path.relpath(images.resolve(), folder.resolve()),
        "settings": {
            "model": own,
            "data": shown,
            "writer": dict(settings),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(content, default=_plain))
    return plain


def _images(data: Any) -> Path | None:
    """The folder of the images that are predicted; the root of the data where another kind of data hides it."""
    splits = getattr(data, "datasets", {})
    files = splits["predict"].split.images if "predict" in splits else None
    folder = files.folder if isinstance(files, ImageFiles) else getattr(data, "root", None)
    return None if folder is None else Path(folder)


def plain_settings(module: pl.LightningModule) -> dict[str, Any]:
    """The arguments that a module was made with, as JSON knows them."""
    given = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(given, default=_plain))
    return plain


def claim(folder: Path, mine: dict[str, Any], suffix: str, files: Iterable[Path] | None, *, overwrite: bool) -> None:
    """Say in a folder what makes its files; refuse one with files of another making.

    The path of the checkpoint may differ, its hash decides. Files of other images count too: they would pass for this
    run's. Nothing is removed but what this run makes anew.

    Args:
        folder: May be absent.
        mine: See ``provenance``.
        suffix: What the names of its files end in.
        files: Of the images that this run is about, whether they exist or not; None where these are not known.
        overwrite: Remove these files where their making is another or unknown, so that none of them stays.

    Raises:
        ValueError: There are files of another or unknown making which this run does not make anew; says what differs.
    """
    path = folder / FILE
    there = _read(path)
    if there is not None and _compared(there) == _compared(mine):
        return
    own = [file for file in files or () if file.is_file()]
    known = {file.resolve() for file in own}
    others = [file for file in sorted(folder.rglob(f"*{suffix}")) if file.resolve() not in known]
    how = "do not say what made them" if there is None else f"were made with other {_differences(there, mine)}"
    if files is not None and others and overwrite:
        raise ValueError(
            f"{folder}: files of images that are not predicted now ({_some(others)}) {how}; give this run another "
            "output_dir, or remove them"
        )
    if not overwrite and (own or others):
        raise ValueError(
            f"{folder}: its files ({_some([*own, *others])}) {how}; give this run another output_dir, or make them "
            "anew with the writer's overwrite: true"
        )
    for file in own:
        file.unlink(missing_ok=True)
    write_text(path, yaml.safe_dump(mine, sort_keys=False, allow_unicode=True))


def _some(files: Sequence[Path]) -> str:
    return f"{files[0].name}{' and others' if len(files) > 1 else ''}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in ("checkpoint", "step")}


def _differences(there: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """The settings that differ, with both values; long ones by name alone."""
    one, two = _flat(_compared(there)), _flat(_compared(mine))
    names = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    shown = []
    for name in names[:6]:
        values = f" ({one.get(name)} there, {two.get(name)} now)" if name != "sha256" else ""
        shown.append({"sha256": "weights"}.get(name, name.removeprefix("settings.")) + values)
    return ", ".join(shown) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _plain(value: Any) -> Any:
    """For JSON: dataclasses as what they hold, everything else as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, (tuple, set)) else str(value)
