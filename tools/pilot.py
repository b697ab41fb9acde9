"""Which scales a classifier should see for cues and for maps, tried on scenes of which no score is reported.

Reads a classifier that learnt from the tags of configs/shapes/classifier.yaml, makes scenes from another stream, and
looks at their masks: writes results/shapes/pilot.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from experiment import ROOT, write_json

from bestie_pl.data.samples import collate
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.modules.callbacks import environment
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.semantic import semantic_from_activations
from bestie_pl.ops.transfer import transfer
from bestie_pl.structures import IGNORE, Batch, Cues

PILOT_SEED = 7
"""Of the scenes; the reported ones have 0 and 1."""
SCALES = ((1.0,), (1.0, 1.5), (1.0, 2.0), (1.5,), (2.0,))
CUE_THRESHOLD = 0.2
"""That of configs/shapes/tags.yaml."""


def main() -> None:
    """Try every choice of scales and write what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of configs/shapes/classifier.yaml")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--data", default="data/pilot_shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = ShapesDataModule(
        str(ROOT / arguments.data),
        train_images=arguments.images,
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
    samples = data.datasets["train"]
    classifier = PeakAttentionModule.load_from_checkpoint(arguments.checkpoint, map_location="cpu").eval()
    batches = [collate([samples[i] for i in range(k, k + 16)]) for k in range(0, arguments.images, 16)]
    rows = []
    for scales in SCALES:
        classifier.scales = classifier.cue_scales = scales
        rows.append({"scales": list(scales), **figures(classifier, batches, data)})
        print(rows[-1], flush=True)
    head = {"command": "python tools/pilot.py CHECKPOINT", "scenes": arguments.images, "generator_seed": PILOT_SEED}
    write_json(ROOT / "results/shapes/pilot.json", head | {"environment": environment(), "rows": rows})


def figures(classifier: PeakAttentionModule, batches: list[Batch], data: ShapesDataModule) -> dict[str, float]:
    """Pseudo labels from the cues and true semantic maps, and semantic maps from the activations."""
    labels, maps = LabelQuality(), SemanticIoU(data.num_classes)
    for batch in batches:
        assert batch.semantic is not None and batch.truth is not None
        images = batch.images.float() / 255
        prediction = classifier.predict_step(replace(batch, images=images), 0)
        for number, (planes, tags) in enumerate(zip(prediction.activations, batch.tags, strict=True)):
            activations = torch.zeros(len(tags), *planes.shape[1:])
            activations[tags] = planes
            found = semantic_from_activations(activations, tags, images[number])
            maps.update(found.masked_fill(found == IGNORE, 0), batch.semantic[number])
        cues = _joined(prediction.cues)
        components = label_components(tagged_classes(batch.semantic, batch.tags))
        cues = cues.select(cues.scores > CUE_THRESHOLD)
        labels.update(
            transfer(components, cues, supervision="tags", recipe="paper", geometry=data.geometry), batch.truth
        )
    quality = labels.compute()
    return {
        "label_precision": float(quality["precision"]),
        "label_recall": float(quality["recall"]),
        "maps_miou": float(maps.compute()["miou"]),
    }


def _joined(cues: tuple[Cues, ...]) -> Cues:
    return Cues(
        image=torch.cat([torch.full_like(c.image, number) for number, c in enumerate(cues)]),
        yx=torch.cat([c.yx for c in cues]),
        classes=torch.cat([c.classes for c in cues]),
        scores=torch.cat([c.scores for c in cues]),
    )


if __name__ == "__main__":
    main()
