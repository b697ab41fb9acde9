"""``bestie-pl init``: look at a folder of images and labels, and write the configurations that fit it."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `bestie-pl init --help` answers without torch
    from bestie_pl.data.survey import Choice, Device, Survey

SEMANTIC_SHARE = 0.4
"""Steps of the semantic round, relative to those of the training that follows."""

BACKBONE: dict[str, Any] = {"backbone": "tf_efficientnet_lite0"}
NETWORK: dict[str, Any] = {**BACKBONE, "decoder": "pyramid"}
YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n", ".nan", ".inf")
"""Strings that YAML would take for something else."""
WIDE: dict[str, Any] = {"wide": True, "iterations": 60, "background": 0.35, "band": 0.05}
"""How a classifier's activations become maps of objects that fill a part of a photograph, as in configs/folder."""
REFINED: dict[str, Any] = {"refine": "wide", "pamr_iterations": 10, "foreground_threshold": 0.3}
"""How the maps that learnt from these are written, as there: they miss parts of the objects."""
OPTIMIZER: dict[str, Any] = {"optimizer": "adamw", "backbone_lr_factor": 0.3, "weight_decay": 0.01}


def main(args: list[str]) -> int:
    """Write ``configs/*.yaml``, one a stage of the way to masks, and print the commands that come next.

    Where there is no file of tags yet, ``tags.csv`` and ``points.json`` are made of the annotation files first.

    Raises:
        FileNotFoundError: No folder, no images, or no labels.
        ValueError: Labels that nothing can be learnt from, or a file that is there already.
    """
    options = _parser().parse_args(args)
    from bestie_pl.data.files import require_folder, write_text
    from bestie_pl.data.survey import survey

    root = require_folder(Path(options.folder), "a folder with images/ and labels")
    require_folder(root / "images", f"the images; move those of {root} into it, and lay the labels beside it")
    if not any((root / name).is_file() for name in ("tags.csv", "tags.json")):
        _convert(root, overwrite=options.overwrite)
    found = survey(root)
    stages = dict(configurations(found, options.device or _device()))
    folder = root / "configs"
    if not options.overwrite and (present := [name for name in stages if (folder / f"{name}.yaml").exists()]):
        raise ValueError(f"{folder / present[0]}.yaml is there already; give --overwrite to replace it")
    for name, text in stages.items():
        write_text(folder / f"{name}.yaml", text)
    print("\n".join(_summary(found)))
    print("Next:\n" + "\n".join(f"  {line}" for line in commands(found, list(stages))))
    return 0


def commands(found: Survey, stages: list[str]) -> Iterator[str]:
    """The command lines of the whole way, in order."""
    config = {name: f"--config {shlex.quote(str(found.root / 'configs' / f'{name}.yaml'))}" for name in stages}
    # the first stage that is trained has all labels that are there by then
    checked = next(name for name in stages if name != "maps")
    for name in stages:
        if name == checked:
            yield f"bestie-pl data check {config[name]}"
        if name != "maps":
            yield f"bestie-pl fit {config[name]}"
        if name != "instances":
            yield f"bestie-pl predict {config[name]}" + (" --ckpt_path last" if name != "maps" else "")
    if found.annotations is not None:
        yield f"bestie-pl test {config['instances']} --ckpt_path last"
    paths = ("images", "runs/instances/checkpoints/last.ckpt", "found")
    images, last, out = (shlex.quote(str(found.root / path)) for path in paths)
    yield f"bestie-pl segment {images} --checkpoint {last} --out {out}"


def configurations(found: Survey, device: Device) -> Iterator[tuple[str, str]]:
    """Name and text of each stage's configuration, in the order in which they run.

    Raises:
        ValueError: Neither points nor tags that differ.
    """
    if found.points is None and not found.tags_differ:
        raise ValueError(
            f"{found.root}: no points, and all training images have the same tags, of which a classifier learns "
            "nothing: set a point on each object (`bestie-pl points --help`), or add images without these classes"
        )
    stages = _Stages(found, device)
    if found.semantic_dir is not None:
        yield "instances", stages.instances(found.semantic_dir, start={})
        return
    if stages.pointed:
        first = "Grown_maps"
        yield "maps", stages.maps(first)
    else:
        first = "CAM_maps"
        yield "classifier", stages.classifier(first)
    yield "semantic", stages.semantic(first)
    yield "instances", stages.instances("Retrained_maps", stages.after_semantic())


class _Stages:
    """Each stage's configuration for one folder."""

    def __init__(self, found: Survey, device: Device) -> None:
        from bestie_pl.data.survey import Choice, settings

        self.found, self.pointed = found, found.points is not None
        self.chosen = chosen = settings(found, device)
        self.steps: int = chosen["steps"].value
        self.sizes: dict[str, Any] = {
            key: chosen[key] for key in ("image_scale", "crop_size", "batch_size") if key in chosen
        }
        self.lengths: dict[str, Any] = {key: chosen[key] for key in ("object_scale", "min_area") if key in chosen}
        self.labels: dict[str, Any] = {"supervision": "points" if self.pointed else "tags"}
        if self.pointed:
            self.labels["points"] = found.points
        else:
            why = "a map is divided by its image's maximum, so small objects have weak cues"
            self.labels |= {"cues_dir": "Peak_points", "cue_threshold": Choice(0.2, why)}

    def maps(self, output: str) -> str:
        """Semantic maps from points."""
        return _text(
            f"Semantic maps grown from the points alone, in {output}; nothing is trained.",
            {"callbacks": _writers(output)},
            self.found,
            {**self.labels, "predict_split": self.found.splits[0], **self.sizes, **self.lengths},
            ("GrownMaps", {}),
        )

    def classifier(self, output: str) -> str:
        """Cues and semantic maps from tags."""
        from bestie_pl.data.survey import Choice

        validation = {"limit_val_batches": Choice(0, "nothing is chosen by scores")}
        data = {
            **self.labels,
            "semantic_source": Choice("none", "images and tags are all that it sees"),
            "predict_split": self.found.splits[0],
            **self.sizes,
            "eval_batch_size": Choice(1, "images of different sizes are seen one by one anyway"),
            "scale_range": Choice([0.7, 1.1], "a crop without the tagged object would teach the wrong thing"),
        }
        model = {
            **BACKBONE,
            **{"width": 128, "pam_layers": 2, "alpha": 0.0, "pooling": "ngwp", "scales": [1.0, 1.5]},
            "affinity": Choice(True, "spread over what looks alike: a classifier lights middles only"),
            **_optimizer(0.001, self.chosen),
        }
        return _text(
            f"A classifier of the tags; predict writes its cues to Peak_points and its maps to {output}.",
            {
                **_fit(self.chosen, self.steps),
                **validation,
                "callbacks": [*_writers(output, **WIDE), {"class_path": "CueWriter"}],
            },
            self.found,
            data,
            ("PeakAttentionModule", model),
        )

    def semantic(self, learnt: str) -> str:
        """The semantic round on the maps in ``learnt``."""
        steps = max(1, round(SEMANTIC_SHARE * self.steps))
        return _text(
            f"The semantic branch learns {learnt}; predict writes its own, better maps to Retrained_maps.",
            {**_fit(self.chosen, steps), **_no_validation(), "callbacks": _writers("Retrained_maps")},
            self.found,
            {
                **self.labels,
                "semantic_dir": learnt,
                "predict_split": self.found.splits[0],
                **self.sizes,
                **self.lengths,
            },
            ("SemanticModule", {**NETWORK, **({} if self.pointed else REFINED), **_optimizer(0.004, self.chosen)}),
        )

    def after_semantic(self) -> dict[str, Any]:
        """Where the training of instances starts, after that round."""
        from bestie_pl.data.survey import Choice

        checkpoint = str(self.found.root / "runs" / "semantic" / "checkpoints" / "last.ckpt")
        return {"init_from": Choice(checkpoint, "the network of the semantic round")}

    def instances(self, semantic_dir: str, start: dict[str, Any]) -> str:
        """Masks of single objects, learnt from the maps in ``semantic_dir``."""
        model = {
            **NETWORK,
            **start,
            **self._heatmap(),
            **_optimizer(0.008 if self.pointed else 0.004, self.chosen),
            **self._center(),
        }
        return _text(
            "Masks of single objects.",
            {**_fit(self.chosen, self.steps), **self._validation()},
            self.found,
            {**self.labels, "semantic_dir": semantic_dir, **self.sizes, **self.lengths},
            ("BestieModule", model),
        )

    def _heatmap(self) -> dict[str, Any]:
        from bestie_pl.data.survey import Choice

        if self.pointed:
            return {"geometry": {"sigma": self.chosen["sigma"]}} if "sigma" in self.chosen else {}
        sigma = Choice(25.0, "a short training knows a centre only roughly, and narrower peaks stay flat then")
        window = Choice(129, "half of a typical object: a narrower one finds several centres in it")
        return {"geometry": {"sigma": sigma, "peak_window": window}, "clustering": False}

    def _center(self) -> dict[str, Any]:
        from bestie_pl.data.survey import Choice

        if self.steps > 2000:
            return {}
        why = "the paper's 200 leaves the semantic branch behind in a training this short"
        return {"loss_weights": {"center": Choice(20 if self.pointed else 12.5, why)}}

    def _validation(self) -> dict[str, Any]:
        from bestie_pl.data.survey import Choice

        if self.found.annotations is None or self.found.splits[1] is None:
            return _no_validation()
        every = max(1, self.steps // 4 * self.chosen["batch_size"].value // self.found.train_images)
        return {"check_val_every_n_epoch": Choice(every, "four times")}


def _fit(chosen: dict[str, Choice], steps: int) -> dict[str, Any]:
    max_steps = chosen["steps"]._replace(value=steps)
    return {"max_steps": max_steps if steps == chosen["steps"].value else steps, "gradient_clip_val": 20}


def _no_validation() -> dict[str, Any]:
    from bestie_pl.data.survey import Choice

    return {"limit_val_batches": Choice(0, "needs no true masks")}


def _optimizer(lr: float, chosen: dict[str, Choice]) -> dict[str, Any]:
    return {"optimization": {**OPTIMIZER, "lr": lr, "warmup_steps": chosen["warmup_steps"]}}


def _writers(folder: str, **settings: Any) -> list[dict[str, Any]]:
    return [{"class_path": "SemanticMapWriter", "init_args": {"output_dir": folder, **settings}}]


def _text(
    purpose: str, trainer: dict[str, Any], found: Survey, data: dict[str, Any], model: tuple[str, dict[str, Any]]
) -> str:
    """The configuration as YAML: the one place that knows the keys' nesting."""
    train, val, test = found.splits
    splits = {"train_split": train, "val_split": val, "test_split": test}
    defaults = {"train_split": "train", "val_split": "val", "test_split": None}
    own = {key: value for key, value in splits.items() if value is not None and value != defaults[key]}
    truth = {} if found.annotations is None else {"annotations": found.annotations}
    name = {"GrownMaps": "maps", "PeakAttentionModule": "classifier", "SemanticModule": "semantic"}.get(
        model[0], "instances"
    )
    tags = {} if (found.root / "tags.csv").is_file() else {"tags": "tags.json"}
    content = {
        "trainer": {**trainer, "default_root_dir": str(found.root / "runs" / name)},
        "data": {
            "class_path": "bestie_pl.FolderDataModule",
            "init_args": {"root": str(found.root), **tags, **own, **truth, **data},
        },
        "model": {"class_path": f"bestie_pl.{model[0]}", "init_args": model[1]},
    }
    if not model[1]:
        del content["model"]["init_args"]
    return f"# {purpose} Written by `bestie-pl init`.\n" + "\n".join(_yaml(content)) + "\n"


def _yaml(content: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Nested settings a line each, with the reason of a choice as comment. JSON values are YAML."""
    from bestie_pl.data.survey import Choice

    for key, value in content.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")
        elif isinstance(value, Choice):
            yield f"{indent}{key}: {_scalar(value.value)}  # {value.why}"
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./{}-]*", value) and value.lower() not in YAML_WORDS
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _convert(root: Path, *, overwrite: bool) -> None:
    """Make ``tags.csv`` and ``points.json`` of the annotation files in the folder."""
    from bestie_pl.cli.commands import points
    from bestie_pl.data.files import write_text
    from bestie_pl.data.survey import annotation_files, split_of_file

    found = annotation_files(root)
    if len(found) != 1:
        what = f"annotations of {' and '.join(found)}" if found else "neither tags.csv nor annotation files"
        raise FileNotFoundError(
            f"{root}: {what}; expected what one annotation program wrote (`bestie-pl points --help` lists them), or "
            "tags.csv: first the line `image,tags,split`, then a line an image, such as `one.jpg,cat;dog,train`"
        )
    ((source, files),) = found.items()
    output = root / "points.json"
    if output in files:
        raise ValueError(f"{output}: is what {source} wrote, and points would take its place; give it another name")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already, without tags.csv; give --overwrite to make both anew")
    groups: dict[str, list[Path]] = {}
    for path in files:
        # only a COCO file is a whole split; others are an image or all images each
        groups.setdefault(split_of_file(path, root) if source == "coco" else "train", []).append(path)
    lines = ["image,tags,split"]
    with tempfile.TemporaryDirectory() as folder:
        for split, paths in groups.items():
            made = Path(folder, split)
            given = _folders(root, paths) if source == "labelme" else paths
            inputs = [*map(str, given), "--from", source, "--images", str(root / "images")]
            with redirect_stdout(StringIO()):  # it names the file, which is gone soon
                points.main([*inputs, "--output", f"{made}.json", "--tags", f"{made}.csv"])
            rows = Path(f"{made}.csv").read_text(encoding="utf-8").splitlines()[1:]
            lines += [row.removesuffix("train") + split for row in rows]
        if "train" in groups:
            write_text(output, Path(folder, "train.json").read_text(encoding="utf-8"))
    write_text(root / "tags.csv", "\n".join(lines) + "\n")
    print(f"wrote {output} and {root / 'tags.csv'}")


def _folders(root: Path, files: Sequence[Path]) -> list[Path]:
    """Folders below ``root`` with LabelMe's files and no others: where these lie says which images they mean."""
    tops = dict.fromkeys(root / file.relative_to(root).parts[0] for file in files)
    own = set(files)
    whole = [top for top in tops if top.is_dir() and own.issuperset(top.rglob("*.json"))]
    return whole + [file for file in files if not any(file.is_relative_to(top) for top in whole)]


def _device() -> Device:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _summary(found: Survey) -> Iterator[str]:
    from bestie_pl.errors import expected_one_of

    height, width = found.size
    images = f"{found.train_images} training images of about {width} x {height} px"
    yield f"{found.root}: {images}; classes: {', '.join(found.class_names)}"
    if found.unlisted:
        yield f"  {found.unlisted} images in images/ have no labels, and no training sees them"
    for split, count in found.unused.items():
        named = f"the split {split!r}" if split else "no split"
        known = expected_one_of(split, [name for name in found.splits if name])
        yield f"  {count} images are of {named}, and no stage sees them: {known}"
    labels = {"points": found.points, "semantic maps": found.semantic_dir, "truth": found.annotations}
    yield "  " + "; ".join(f"{what}: {where or 'none'}" for what, where in labels.items())
    if found.diameter is not None:
        yield f"  objects are about {found.diameter:.0f} px wide"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl init",
        description="Look at FOLDER, with images/ and tags.csv, points.json or annotation files, and write "
        "FOLDER/configs/*.yaml: a configuration for each stage of the training, with the reasons of its settings.",
    )
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="what will train; found out if omitted")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    return parser
