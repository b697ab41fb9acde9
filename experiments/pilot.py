"""Scales and thresholds of a training from tags, tried on scenes of which no score is reported.

Reads a classifier, a semantic round and a training that learnt from the tags of configs/shapes, makes scenes from
another stream, and looks at their masks: writes results/shapes/pilot.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json
from bestie_pl.data.samples import collate
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.modules.peak_attention import ActivationPrediction, PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.semantic import semantic_from_activations
from bestie_pl.ops.transfer import transfer
from bestie_pl.recipe import PAPER
from bestie_pl.structures import IGNORE, Batch, Cues
from experiments.runs import METRICS, ROOT, command

PILOT_SEED = 7
"""Of the scenes; the reported ones have 0 and 1."""
CUE_SCALES = ((1.0,), (1.0, 1.5), (1.0, 2.0), (1.5,), (2.0,))
BACKGROUNDS = ((0.3, 0.0), (0.2, 0.0), (0.3, 0.15), (0.25, 0.15), (0.2, 0.15), (0.175, 0.125), (0.15, 0.1))
"""Thresholds and the width of the band on both sides."""
SEMANTIC_SCALES = ((1.0,), (1.5,), (1.0, 1.5), (1.0, 2.0))
LABEL_VIEWS = (
    (False, (1.0,)),
    (True, (1.0,)),
    (True, (0.75, 1.0, 1.25)),
    (True, (1.0, 1.5)),
    (True, (1.0, 1.5, 2.0)),
)
"""Whether mirrored, and the scales."""
CUE_THRESHOLD = 0.2
"""That of configs/shapes/tags.yaml."""


def main() -> None:
    """Try every choice and write what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classifier", type=Path, help="checkpoint of configs/shapes/classifier.yaml")
    parser.add_argument("semantic", type=Path, help="checkpoint of configs/shapes/semantic.yaml")
    parser.add_argument("tags", type=Path, help="checkpoint of configs/shapes/tags.yaml")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--data", default="data/pilot_shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = pilot_scenes(str(ROOT / arguments.data), arguments.images)
    samples = data.datasets["train"]
    batches = [collate([samples[i] for i in range(k, k + 16)]) for k in range(0, arguments.images, 16)]
    batches = [replace(batch, images=batch.images.float() / 255) for batch in batches]
    classifier = PeakAttentionModule.load_from_checkpoint(arguments.classifier, map_location="cpu").eval()
    semantic = SemanticModule.load_from_checkpoint(arguments.semantic, map_location="cpu").eval()
    content = {
        "command": "python -m experiments.pilot CLASSIFIER SEMANTIC TAGS",
        "scenes": arguments.images,
        "generator_seed": PILOT_SEED,
        "environment": environment(),
        "cue_scales": list(try_cue_scales(classifier, batches, data)),
        "backgrounds": list(try_backgrounds(classifier, batches)),
        "semantic_scales": list(try_semantic_scales(semantic, batches)),
        "label_views": list(try_label_views(arguments.tags.absolute(), arguments.data, arguments.images)),
    }
    write_json(ROOT / "results/shapes/pilot.json", content)


def pilot_scenes(root: str, count: int) -> ShapesDataModule:
    """Scenes like those of configs/shapes/tags.yaml, with their true maps and instances."""
    data = ShapesDataModule(
        root,
        train_images=count,
        val_images=1,
        test_images=1,
        generator_seed=PILOT_SEED,
        clutter=0.25,
        semantic_source="ground_truth",
        label_quality=True,
        object_scale=0.32,
        min_area=250,
        num_workers=0,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def try_cue_scales(
    classifier: PeakAttentionModule, batches: list[Batch], data: ShapesDataModule
) -> Iterable[dict[str, Any]]:
    """Pseudo labels from the cues and true semantic maps, and maps from activations at the same scales."""
    for scales in CUE_SCALES:
        classifier.scales = classifier.cue_scales = scales
        labels, maps = LabelQuality(), SemanticIoU(data.num_classes)
        for batch in batches:
            assert batch.semantic is not None and batch.truth is not None
            prediction = classifier.predict_step(batch, 0)
            for found, true in zip(_maps(prediction, batch), batch.semantic, strict=True):
                maps.update(found.masked_fill(found == IGNORE, 0), true)
            cues = _joined(prediction.cues)
            cues = cues.select(cues.scores > CUE_THRESHOLD)
            components = label_components(tagged_classes(batch.semantic, batch.tags))
            pseudo = transfer(components, cues, supervision="tags", rules=PAPER, geometry=data.geometry)
            labels.update(pseudo, batch.truth)
        quality = labels.compute()
        row = {
            "scales": list(scales),
            "label_precision": float(quality["precision"]),
            "label_recall": float(quality["recall"]),
            "maps_miou": float(maps.compute()["miou"]),
        }
        print(row, flush=True)
        yield row


def try_backgrounds(classifier: PeakAttentionModule, batches: list[Batch]) -> Iterable[dict[str, Any]]:
    """Maps from activations: mean IoU of decided pixels, and of all with undecided ones as background."""
    classifier.scales = (1.0,)
    predictions = [classifier.predict_step(batch, 0) for batch in batches]
    for background, band in BACKGROUNDS:
        decided, whole = (SemanticIoU(len(batches[0].tags[0])) for _ in range(2))
        ignored, pixels = 0, 0
        for prediction, batch in zip(predictions, batches, strict=True):
            assert batch.semantic is not None
            for found, true in zip(_maps(prediction, batch, background, band), batch.semantic, strict=True):
                undecided = found == IGNORE
                decided.update(found.masked_fill(undecided, 0), true.masked_fill(undecided, IGNORE))
                whole.update(found.masked_fill(undecided, 0), true)
                ignored, pixels = ignored + int(undecided.sum()), pixels + undecided.numel()
        row = {
            "background": background,
            "band": band,
            "decided_miou": float(decided.compute()["miou"]),
            "miou": float(whole.compute()["miou"]),
            "ignored": ignored / pixels,
        }
        print(row, flush=True)
        yield row


def try_semantic_scales(module: SemanticModule, batches: list[Batch]) -> Iterable[dict[str, Any]]:
    """Maps of the semantic round."""
    for scales in SEMANTIC_SCALES:
        module.scales = scales
        iou = SemanticIoU(module.num_classes)
        for batch in batches:
            assert batch.semantic is not None
            for found, true in zip(module.predict_step(batch, 0).maps, batch.semantic, strict=True):
                iou.update(found, true)
        row = {"scales": list(scales), "miou": float(iou.compute()["miou"])}
        print(row, flush=True)
        yield row


def try_label_views(checkpoint: Path, root: str, count: int) -> Iterable[dict[str, Any]]:
    """Predictions as labels of another round, on scenes whose tags are given: scores as in a test."""
    sizes = {"train_images": 1, "val_images": 1, "test_images": count, "generator_seed": PILOT_SEED}
    true = {"supervision": "full", "semantic_source": "ground_truth"}  # for the scores: neither cues nor maps are made
    data = {"root": f"{root}_labels", **sizes, **true}
    given = ["--config", "configs/shapes/tags.yaml", "--config", "configs/labels.yaml", f"--ckpt_path={checkpoint}"]
    given += [f"--data.init_args.{name}={value}" for name, value in data.items()]
    folder = ROOT / "runs/pilot/labels"
    for mirror, scales in LABEL_VIEWS:
        view = [
            f"--model.init_args.inference.mirror={str(mirror).lower()}",
            f"--model.init_args.inference.scales={list(scales)}",
        ]
        log = folder / "output.txt"
        command("test", *given, *view, f"--trainer.default_root_dir={folder}", threads=1, log=log)
        scores = json.loads((folder / "scores_test.json").read_text())["scores"]
        figures = {name.split("/", 1)[1]: value for name, value in scores.items()}
        row = {"mirror": mirror, "scales": list(scales)} | {name: figures[name] for name in METRICS}
        print(row, flush=True)
        yield row


def _maps(prediction: ActivationPrediction, batch: Batch, *thresholds: float) -> Iterable[Tensor]:
    settings = dict(zip(("background", "band"), thresholds, strict=False))
    for planes, tags, image in zip(prediction.activations, batch.tags, batch.images, strict=True):
        activations = torch.zeros(len(tags), *planes.shape[1:])
        activations[tags] = planes
        yield semantic_from_activations(activations, tags, image, **settings)


def _joined(cues: tuple[Cues, ...]) -> Cues:
    return Cues(
        image=torch.cat([torch.full_like(c.image, number) for number, c in enumerate(cues)]),
        yx=torch.cat([c.yx for c in cues]),
        classes=torch.cat([c.classes for c in cues]),
        scores=torch.cat([c.scores for c in cues]),
    )


if __name__ == "__main__":
    main()
