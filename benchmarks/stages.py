"""From image tags alone: images a second of each stage that makes cues and semantic maps, and of its training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, Settings, busiest, seconds
from bestie_pl.data.samples import collate
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.ops.losses import semantic_loss
from bestie_pl.ops.semantic import semantic_from_activations
from bestie_pl.structures import Batch

BACKBONE = "tf_efficientnet_lite0"


def run(settings: Settings) -> list[Row]:
    """Scenes of two sizes, as in configs/shapes and about as in configs/voc_small, whose crops are 288 px."""
    return [row for size in ((128,) if settings.quick else (128, 288)) for row in _rows(size, settings)]


def _rows(size: int, settings: Settings) -> list[Row]:
    count = 4 if settings.quick else 16
    batch = _batch(size, count).to(settings.device)
    classes = batch.tags.shape[1]
    torch.manual_seed(0)
    classifier = PeakAttentionModule(classes, backbone=BACKBONE, backbone_weights=None, pooling="ngwp", alpha=0.0)
    semantic = SemanticModule(classes, backbone=BACKBONE, decoder="pyramid", backbone_weights=None)
    classifier, semantic = classifier.to(settings.device), semantic.to(settings.device)
    assert batch.semantic is not None
    truth, tags = batch.semantic, batch.tags.float()

    def classify() -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(classifier(batch.images), tags)

    def segment() -> Tensor:
        return semantic_loss(semantic(batch.images), truth)

    def train(module: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-4)

        def step() -> None:
            module.train()
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def predict(module: Any) -> Any:
        return module.eval().predict_step(batch, 0)

    stages: dict[str, Callable[[], Any]] = {
        "classifier: training": train(classifier, classify),
        "classifier: activation maps and cues, with mirror image": lambda: predict(classifier),
        "activation maps to semantic maps (PAMR)": _maps(batch, predict(classifier).activations),
        "semantic round: training": train(semantic, segment),
        "semantic round: maps with mirror image and PAMR": lambda: predict(semantic),
    }
    return [
        Row(f"{size} px: {name}", count / seconds(run, settings), "images/s", limited_by=busiest(run, settings))
        for name, run in stages.items()
    ]


def _maps(batch: Batch, activations: Sequence[Tensor]) -> Callable[[], None]:
    """What ``SemanticMapWriter`` does with a classifier's activations."""
    dense = []
    for planes, tags in zip(activations, batch.tags, strict=True):
        dense.append(planes.new_zeros(len(tags), *planes.shape[1:]))
        dense[-1][tags] = planes

    def make() -> None:
        for maps, tags, image in zip(dense, batch.tags, batch.images, strict=True):
            semantic_from_activations(maps, tags, image)

    return make


def _batch(size: int, count: int) -> Batch:
    """Generated training scenes, not augmented, with their true semantic maps and tags."""
    with tempfile.TemporaryDirectory() as folder:
        data = ShapesDataModule(
            str(Path(folder, "shapes")),
            supervision="points",
            semantic_source="ground_truth",
            train_images=count,
            val_images=1,
            test_images=1,
            image_size=size,
            num_workers=0,
        )
        data.prepare_data()
        data.setup("fit")
        samples = data.datasets["train"]
        batch = collate([samples[index] for index in range(count)])
    return replace(batch, images=batch.images.float() / 255)
