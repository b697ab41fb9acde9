"""Batches of images and tags alone: training for a classifier, and prediction over any split."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.samples import Sample, augment_for_classifier
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.structures import Cues


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    defaults: dict[str, Any] = {"supervision": "tags", "semantic_source": "none", "num_workers": 0, "crop_size": 48}
    return ShapesDataModule(str(root), **{**defaults, "batch_size": 4, **settings})


def with_trainer(data: ShapesDataModule, *, training: bool) -> ShapesDataModule:
    loop = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False).fit_loop
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_rank=0, training=training, limit_val_batches=1, fit_loop=loop
    )
    return data


def test_a_training_batch_is_augmented_and_has_no_labels(shapes_folder: Path) -> None:
    data = with_trainer(make_data(shapes_folder, label_quality=True), training=True)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    assert raw.semantic is None and raw.truth is None and len(raw.cues) == 0 and raw.tags.any(1).all()
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.images.shape == (4, 3, 48, 48) and batch.images.is_floating_point()
    assert batch.pseudo is None and batch.components is None and data.batches_augmented == 1
    assert torch.equal(batch.tags, raw.tags)


def test_an_evaluated_batch_is_left_as_it_is(shapes_folder: Path) -> None:
    data = with_trainer(make_data(shapes_folder), training=False)
    data.setup("fit")
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(batch.images, raw.images.float() / 255) and data.batches_augmented == 0
    assert raw.references is None and raw.semantic_references is None


@pytest.mark.parametrize("label_quality", [False, True])
def test_the_training_split_can_be_predicted(shapes_folder: Path, label_quality: bool) -> None:
    """With its tags, and with its truth only where asked to measure."""
    data = make_data(shapes_folder, predict_split="train", label_quality=label_quality)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert sum(len(batch) for batch in batches) == 16
    assert all(batch.tags.any(1).all() and (batch.references is not None) == label_quality for batch in batches)


def test_prediction_can_be_restricted(shapes_folder: Path) -> None:
    data = make_data(shapes_folder, predict_split="train", eval_batch_size=1)
    data.setup("predict")
    names = [batch.names[0] for batch in data.predict_dataloader()]
    data.predict_only(lambda: [2, 5])
    assert [batch.names[0] for batch in data.predict_dataloader()] == [names[2], names[5]]
    data.predict_only(lambda: [])
    assert list(data.predict_dataloader()) == []


def test_tags_are_counted(shapes_folder: Path) -> None:
    data = make_data(shapes_folder)
    data.setup("fit")
    lines = (shapes_folder / "train_cls.txt").read_text().split("\n")
    expected = torch.bincount(torch.tensor([int(c) for line in lines for c in line.split()[1:]]), minlength=5)
    counts, images = data.tag_counts()
    assert torch.equal(counts, expected) and images == 16


def test_other_labels_than_tags_contradict_it(shapes_folder: Path) -> None:
    with pytest.raises(ValueError, match="use supervision tags, not points"):
        make_data(shapes_folder, supervision="points")


def test_evaluation_without_tags_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    for name in ("JPEGImages", "ImageSets"):
        (tmp_path / name).symlink_to(shapes_folder / name)
    settings: dict[str, Any] = {"supervision": "tags", "semantic_source": "none", "test_split": "test"}
    with pytest.raises(FileNotFoundError, match="no tags of the split 'test'"):
        VOCDataModule(str(tmp_path), class_names=list("abcde"), **settings).setup("test")


def test_coco_too(real_data: Path) -> None:
    files = {f"{split}_annotations": f"instances_{split}.json" for split in ("train", "val")}
    folders = {f"{split}_images": "images" for split in ("train", "val")}
    data = COCODataModule(
        str(real_data / "coco_tiny"), supervision="tags", semantic_source="none", num_workers=0, **files, **folders
    )
    data.setup("fit")
    assert data.datasets["train"].split.truth is None and data.datasets["val"].split.truth is None
    assert data.datasets["train"][0].tags.any() and data.datasets["val"][0].tags.any()


def test_the_releases_classifier_sees_squares(shapes_folder: Path) -> None:
    data = with_trainer(make_data(shapes_folder, recipe="release", crop_size=50), training=True)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.images.shape == (4, 3, 50, 50) and 0 <= batch.images.min() <= batch.images.max() <= 1
    first = next(iter(data.val_dataloader()))
    assert first.sizes == ((50, 50),) and first.original_sizes == ((64, 64),)


def test_the_releases_classifier_augmentation() -> None:
    """A picture of a ramp from left to right: resized to 384/321 of the crop, cut, mirrored half of the time."""
    ramp = torch.arange(0, 200, dtype=torch.uint8).repeat(3, 100, 1)
    sample = Sample("a", ramp, torch.ones(1, dtype=torch.bool), Cues.empty(), (100, 200))
    mirrored, slopes, colors = 0, [], []
    for seed in range(40):
        image = augment_for_classifier(sample, 107, np.random.default_rng(seed)).image.float()
        assert image.shape == (3, 107, 107)
        slope = float((image[:, :, 80] - image[:, :, 20]).mean()) / 60
        mirrored += slope < 0
        slopes.append(abs(slope))
        colors.append(float(image.mean()))
    assert 10 < mirrored < 30
    # 200 px on 128, colours within a factor of about 1.3 twice
    assert 200 / 128 / 1.8 < np.median(slopes) < 200 / 128 * 1.8
    assert np.std(colors) > 5
    again = augment_for_classifier(sample, 107, np.random.default_rng(3)).image
    assert torch.equal(again, augment_for_classifier(sample, 107, np.random.default_rng(3)).image)
