"""How close Otsu's threshold of activations, which needs no mask, comes to the one that masks would choose.

One call a data set; results/thresholds.json keeps the rows of the others. Masks are opened to measure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from bestie_pl import FolderDataModule, PeakAttentionModule, ShapesDataModule, VOCDataModule
from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json
from bestie_pl.data.loaders import collate_evaluated
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import EvaluationSamples
from bestie_pl.ops.semantic import otsu_background, refine_activations
from bestie_pl.progress import progress
from bestie_pl.structures import IGNORE
from experiments.runs import ROOT

IMAGES = 100
"""At most, evenly spread over the split."""
THRESHOLDS = np.round(np.arange(0.02, 0.95, 0.01), 2)


class Kind(NamedTuple):
    """Maps from a classifier: spread by affinity or not, rounds of refinement, wide or not."""

    affinity: bool
    iterations: int
    wide: bool


KINDS = {
    "CAM": Kind(False, 0, False),
    "CAM, PAMR": Kind(False, 40, False),
    "CAM, wide PAMR": Kind(False, 60, True),
    "spread by affinity": Kind(True, 0, False),
    "spread by affinity, wide PAMR": Kind(True, 60, True),
}


def main() -> None:
    """Measure one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=["animals", "shapes", "voc_small"])
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("checkpoint", help="of a classifier trained on it")
    parser.add_argument("--output", type=Path, default=Path("results/thresholds.json"))
    arguments = parser.parse_args()
    module = PeakAttentionModule.load_from_checkpoint(arguments.checkpoint, map_location="cpu").eval()
    data = open_data(arguments.set, arguments.root)
    data.setup("predict")
    rows = measure(module, data)
    path: Path = ROOT / arguments.output
    content = json.loads(path.read_text()) if path.exists() else {"sets": {}}
    content |= {"command": "python -m experiments.thresholds SET ROOT CHECKPOINT", "environment": environment()}
    content["sets"][arguments.set] = rows
    write_json(path, content)


def open_data(name: str, root: str) -> InstanceDataModule:
    """Images with tags and true maps, at the size that the set's classifier was trained at."""
    shared: dict[str, Any] = {"supervision": "tags", "semantic_source": "none", "label_quality": True, "num_workers": 0}
    if name == "animals":  # the development split; experiments.animals writes dev.txt
        train = {"annotations": "instances_train.json", "predict_split": "dev.txt"}
        return FolderDataModule(root, image_scale=0.6, **train, **shared)
    if name == "shapes":
        return ShapesDataModule(root, clutter=0.25, generator_seed=1, predict_split="train", **shared)
    return VOCDataModule(root, train_split="train", predict_split="val_instances", image_scale=0.6, **shared)


@torch.no_grad()
def measure(module: PeakAttentionModule, data: InstanceDataModule) -> list[dict[str, Any]]:
    """For each kind of maps both thresholds, and the IoU of objects' pixels that got the right class with each.

    The IoU is that of all images together.
    """
    images = data.datasets["predict"]
    assert isinstance(images, EvaluationSamples)
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in KINDS}
    right: dict[str, list[torch.Tensor]] = {name: [] for name in KINDS}
    objects: list[torch.Tensor] = []
    chosen = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(int)
    for index in progress(chosen.tolist(), "measuring"):
        batch = data.on_after_batch_transfer(collate_evaluated([images[index]], classes=0, truth=True), 0)
        tags = batch.tags[0].nonzero()[:, 0]
        assert batch.semantic_references is not None
        if not len(tags):
            continue
        height, width = batch.sizes[0]
        true = F.interpolate(batch.semantic_references[0][None, None].float(), (height, width))[0, 0]
        known = true != IGNORE
        objects.append((true > 0)[known])
        planes: dict[bool, torch.Tensor] = {}
        for name, kind in KINDS.items():
            if kind.affinity not in planes:
                module.affinity = kind.affinity
                planes[kind.affinity] = module.predict_step(batch, 0).activations[0]
            image = batch.images[0, :, :height, :width]
            refined = refine_activations(planes[kind.affinity], image, iterations=kind.iterations, wide=kind.wide)
            score, best = refined.max(0)
            scores[name].append(score[known])
            right[name].append((tags[best] + 1 == true)[known])
    there = torch.cat(objects)
    return [{"name": name} | compare(torch.cat(scores[name]), torch.cat(right[name]), there) for name in KINDS]


def compare(score: torch.Tensor, right: torch.Tensor, there: torch.Tensor) -> dict[str, float]:
    """Otsu's threshold beside the best one."""
    otsu = otsu_background(score)

    def iou(threshold: float) -> float:
        found = score > threshold
        return float((found & right & there).sum() / (found | there).sum())

    by_masks = max(THRESHOLDS.tolist(), key=iou)
    figures = {"otsu": otsu, "iou_otsu": iou(otsu), "by_masks": by_masks, "iou_by_masks": iou(by_masks)}
    return figures | {f"iou_{threshold}": iou(threshold) for threshold in (0.2, 0.35)}


if __name__ == "__main__":
    main()
