"""Training on the predictions of an earlier round (``labels_from``): what becomes a label, and where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as codec

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.structures import Batch, Instances

Box = tuple[int, float, int, int, int, int]
"""Class, score, top, left, bottom, right."""
TRUE_BOXES: list[Box] = [(0, 0.9, 2, 2, 12, 12), (0, 0.8, 2, 12, 12, 22), (1, 0.7, 20, 5, 30, 25)]
"""The objects of the images of ``voc_folder``: cat, cat, dog."""


def write(folder: Path, name: str, size: tuple[int, int], boxes: list[Box], classes: tuple[str, ...]) -> None:
    """As ``predict`` does."""
    masks = []
    for _, _, top, left, bottom, right in boxes:
        mask = np.zeros(size, np.uint8, order="F")
        mask[top:bottom, left:right] = 1
        masks.append(codec.encode(mask))
    numbers = torch.tensor([box[0] for box in boxes], dtype=torch.int64)
    found = Instances(tuple(masks), numbers, torch.tensor([box[1] for box in boxes]), size)
    trainer: Any = SimpleNamespace(default_root_dir=str(folder.parent))
    module: Any = SimpleNamespace(class_names=classes)
    PredictionWriter(str(folder)).write_on_batch_end(
        trainer, module, (found,), None, SimpleNamespace(names=(name,)), 0, 0
    )


def predict_all(voc_folder: Path, boxes: list[Box]) -> Path:
    """The same predictions for each image."""
    folder = voc_folder / "run" / "predictions"
    data = VOCDataModule(str(voc_folder), num_workers=0, predict_split="train")
    data.setup("predict")
    for batch in data.predict_dataloader():
        for name, size in zip(batch.names, batch.original_sizes, strict=True):
            write(folder, name, size, boxes, data.class_names)
    return folder


def fit_module(voc_folder: Path, labels_from: Path, **settings: Any) -> VOCDataModule:
    """Whole images, unless the settings say otherwise."""
    defaults: dict[str, Any] = {"train_split": "train", "num_workers": 0, "batch_size": 6, "crop_size": 64}
    defaults |= {"scale_range": (1.0, 1.0), "color_jitter": 0, "min_area": 20, "supervision": "tags"}
    data = VOCDataModule(str(voc_folder), labels_from=str(labels_from), **(defaults | settings))
    data.setup("fit")
    return data


def first_batch(data: VOCDataModule) -> Batch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("image_scale", [1.0, 1.5])
def test_predictions_move_like_the_truth(voc_folder: Path, recipe: str, image_scale: float) -> None:
    folder = predict_all(voc_folder, TRUE_BOXES)
    settings = {"recipe": recipe, "image_scale": image_scale, "scale_range": (0.7, 1.3), "dihedral": True}
    data = fit_module(voc_folder, folder, label_quality=True, crop_size=48, **settings)
    batch = first_batch(data)
    assert batch.predicted is None, "it is the pseudo label now"
    assert batch.pseudo is not None and batch.truth is not None and int((batch.truth.area > 0).sum()) > 6
    for name in ("ids", "image", "classes", "center_yx", "weight", "area"):
        assert torch.equal(getattr(batch.pseudo, name), getattr(batch.truth, name)), name
    moved = [first_batch(data).pseudo.ids for _ in range(2)]  # type: ignore[union-attr]
    assert recipe == "release" or not torch.equal(*moved)


def test_components_are_still_those_of_the_semantic_map(voc_folder: Path) -> None:
    """Refinement reads them; the labels are the predictions, also where no component says so."""
    folder = predict_all(voc_folder, [(1, 0.9, 13, 2, 19, 12)])
    batch = first_batch(fit_module(voc_folder, folder))
    assert batch.components is not None and batch.pseudo is not None and batch.semantic is not None
    assert sorted(batch.components.classes[1:].tolist()) == [0] * 6 + [1] * 6
    labelled = batch.pseudo.ids > 0
    assert labelled.flatten(1).sum(1).tolist() == [60] * 6 and (batch.semantic[labelled] == 0).all()
    assert (batch.pseudo.peaks.classes[1:] == 1).all() and len(batch.pseudo.peaks) == 7


def test_unsure_and_untagged_predictions_are_no_labels(voc_folder: Path) -> None:
    folder = predict_all(voc_folder, [(0, 0.9, 2, 2, 12, 12), (0, 0.44, 2, 12, 12, 22), (1, 0.1, 20, 5, 30, 25)])
    (voc_folder / "train_cls.txt").write_text("a0 0\na1 0 1\na2\n" + "".join(f"a{n} 1\n" for n in (3, 4, 5)))
    samples = fit_module(voc_folder, folder, scale_range=(1.0, 1.0)).datasets["train"]
    found = [samples[n].predicted.classes.tolist() for n in range(4)]  # type: ignore[attr-defined]
    assert found == [[0], [0, 1], [], [1]]
    samples = fit_module(voc_folder, folder, label_threshold=0.2).datasets["train"]
    assert samples[1].predicted.classes.tolist() == [0, 0, 1]  # type: ignore[attr-defined]


def test_tags_need_no_cues_and_no_truth_then(voc_folder: Path) -> None:
    folder = predict_all(voc_folder, TRUE_BOXES)
    for name in ("Peak_points", "Center_points", "SegmentationClass", "SegmentationObject"):
        shutil.rmtree(voc_folder / name)
    data = VOCDataModule(str(voc_folder), train_split="train", labels_from=str(folder), supervision="tags")
    samples = data._training_samples(data.open_split("train"))
    assert data.leak_notes == () and len(samples[0].cues) == 0
    assert samples[0].predicted is not None and samples[0].truth is None
    data = VOCDataModule(str(voc_folder), train_split="train", labels_from=str(folder), supervision="points")
    with pytest.raises(FileNotFoundError, match="Center_points; expected the training images' points"):
        data._training_samples(data.open_split("train"))


@pytest.mark.parametrize(("recipe", "centers"), [("paper", [[6, 7], [25, 15]]), ("release", [[6, 8], [24, 12]])])
def test_a_point_accepts_a_prediction(voc_folder: Path, recipe: str, centers: list[list[float]]) -> None:
    """Points of the cats at (6, 7) and (6, 17), of the dog at (25, 15). The release's offsets point to the centroid."""
    two_points, no_point, other_class = (0, 0.9, 2, 2, 12, 22), (0, 0.8, 14, 2, 19, 22), (0, 0.8, 20, 5, 30, 25)
    folder = predict_all(voc_folder, [two_points, no_point, other_class])
    batch = next(iter(fit_module(voc_folder, folder, supervision="points").train_dataloader()))
    data = fit_module(voc_folder, folder, supervision="points", recipe=recipe)
    assert int(batch.predicted.ids.max()) == 18 and int(data.label(batch).pseudo.ids.max()) == 0  # type: ignore[union-attr]
    predict_all(voc_folder, [(0, 0.9, 2, 2, 12, 16), (1, 0.5, 21, 5, 28, 20), no_point])
    batch = next(iter(fit_module(voc_folder, folder, supervision="points").train_dataloader()))
    pseudo = data.label(batch).pseudo
    assert pseudo is not None
    kept = pseudo.area > 0
    assert pseudo.classes[kept].tolist() == [0, 1] * 6 and pseudo.area[kept].tolist() == [140, 105] * 6
    assert pseudo.center_yx[kept].tolist() == centers * 6
    assert len(pseudo.peaks) == 18, "every point draws its Gaussian"


def test_batches_are_the_same_with_worker_processes(voc_folder: Path) -> None:
    folder = predict_all(voc_folder, TRUE_BOXES)
    alone = next(iter(fit_module(voc_folder, folder).train_dataloader()))
    helped = next(iter(fit_module(voc_folder, folder, num_workers=1).train_dataloader()))
    assert torch.equal(alone.predicted.ids, helped.predicted.ids) and int(alone.predicted.ids.max()) == 18


def test_coco_training_images_are_predicted_and_read_again(real_data: Path, tmp_path: Path) -> None:
    """``predict_annotations`` names the training images; their tags are known, their masks are not read."""
    common: dict[str, Any] = {f"{split}_annotations": f"instances_{split}.json" for split in ("train", "val")}
    common |= {f"{split}_images": "images" for split in ("train", "val")} | {"num_workers": 0, "supervision": "tags"}
    root = str(real_data / "coco_tiny")
    data = COCODataModule(root, predict_annotations="instances_train.json", **common)
    data.setup("predict")
    samples = data.datasets["predict"]
    for n in range(3):
        sample = samples[n]
        assert sample.tags.any() and sample.references is None
        number = int(sample.tags.nonzero()[0])
        boxes: list[Box] = [(number, 0.5, 0, 0, 30, 30), (int((~sample.tags).nonzero()[0]), 0.9, 30, 30, 60, 60)]
        write(tmp_path / "predictions", sample.name, sample.original_size, boxes, data.class_names)
    again = COCODataModule(
        root, labels_from=str(tmp_path / "predictions"), semantic_source="ground_truth", label_quality=False, **common
    )
    labels = again._training_samples(again.open_split("train"))
    for n in range(3):
        predicted = labels[n].predicted
        assert predicted is not None and predicted.classes.tolist() == [int(samples[n].tags.nonzero()[0])]
        assert int((predicted.ids == 1).sum()) == 900 and labels[n].truth is None


def test_what_is_missing_or_contradicts_is_said(voc_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*none; expected predicted instances NAME\.json"):
        fit_module(voc_folder, voc_folder / "none")
    folder = predict_all(voc_folder, TRUE_BOXES)
    (folder / "a3.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a3\.json; expected .*predict the training images"):
        first_batch(fit_module(voc_folder, folder))
    for settings in ({"supervision": "full"}, {"supervision": "tags", "semantic_source": "none"}):
        with pytest.raises(ValueError, match="labels_from gives labels for"):
            VOCDataModule(str(voc_folder), labels_from=str(folder), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 <= label_threshold <= 1, got 2"):
        VOCDataModule(str(voc_folder), labels_from=str(folder), label_threshold=2)
