"""COCO annotation files: categories, polygons, run-length codes, crowds, and training without masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as rle

from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.formats.codes import read_runs
from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.structures import Instances

H, W = 30, 40


def box(y: int, x: int, h: int, w: int) -> np.ndarray:
    values = np.zeros((H, W), np.uint8)
    values[y : y + h, x : x + w] = 1
    return values


def runs(values: np.ndarray) -> list[int]:
    """Uncompressed run-length code: column by column, beginning with zeros."""
    flat = values.T.flatten()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Two images; a large and a small object of different kinds of code, a crowd, and an image without annotations."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("sub/one.png", "two.png"):
        Image.new("RGB", (W, H), (10, 20, 30)).save(tmp_path / "images" / name)
    compressed = rle.encode(np.asfortranarray(box(8, 10, 4, 4)))
    polygon = [[4, 4, 24, 4, 24, 24, 4, 24]]
    annotations = [
        (7, 44, {"size": [H, W], "counts": compressed["counts"].decode()}, 0),
        (8, 3, polygon, 0),
        (9, 44, {"size": [H, W], "counts": runs(box(20, 20, 8, 12))}, 1),
    ]
    content = {
        "images": [
            {"id": 50, "file_name": "sub/one.png", "height": H, "width": W},
            {"id": 20, "file_name": "two.png", "height": H, "width": W},
        ],
        "annotations": [
            {"id": i, "image_id": 50, "category_id": c, "segmentation": s, "iscrowd": crowd}
            for i, c, s, crowd in annotations
        ],
        "categories": [{"id": 44, "name": "cup"}, {"id": 3, "name": "car"}, {"id": 90, "name": "pen"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    (tmp_path / "points" / "sub").mkdir(parents=True)
    (tmp_path / "points" / "sub" / "one.txt").write_text("12 10 1 1.0\n8 14 0 1.0\n")
    (tmp_path / "points" / "two.txt").write_text("")
    (tmp_path / "maps" / "sub").mkdir(parents=True)
    Image.fromarray(box(4, 4, 20, 20)).save(tmp_path / "maps" / "sub" / "one.png")
    Image.fromarray(box(0, 0, 0, 0)).save(tmp_path / "maps" / "two.png")
    return tmp_path


def module(root: Path, **settings) -> COCODataModule:
    common = {name: "images" for name in ("train_images", "val_images")}
    common |= {name: "all.json" for name in ("train_annotations", "val_annotations")}
    common |= {"semantic_dir": "maps", "cues_dir": "points", "num_workers": 0, "batch_size": 2, "crop_size": 32}
    return COCODataModule(str(root), **(common | settings))


def edit(root: Path, change) -> None:
    content = json.loads((root / "all.json").read_text())
    change(content)
    (root / "all.json").write_text(json.dumps(content))


def test_categories_become_classes_in_ascending_order(coco_folder):
    data = module(coco_folder)
    assert data.class_names == ("car", "cup", "pen") and data.category_ids == (3, 44, 90) and data.num_classes == 3
    data.setup("validate")
    assert data.image_ids == {"sub/one": 50, "two": 20}


def test_all_kinds_of_masks_are_read(coco_folder):
    data = module(coco_folder)
    data.setup("validate")
    sample, nothing = data.datasets["val"][0], data.datasets["val"][1]
    masks = rle.decode(list(sample.references.masks))
    assert sample.references.classes.tolist() == [1, 0, 1] and sample.references.crowd.tolist() == [False, False, True]
    assert np.array_equal(masks[..., 0], box(8, 10, 4, 4))
    assert np.array_equal(masks[..., 1], box(4, 4, 20, 20))
    assert np.array_equal(masks[..., 2], box(20, 20, 8, 12))
    semantic = sample.semantic_reference.numpy()
    assert (semantic[8:12, 10:14] == 2).all()  # the smaller object is on top
    assert (semantic == 1).sum() == 400 - 16
    assert (semantic == 255).sum() == 96 - 16  # the crowd, but where it is covered
    assert sample.cues.classes.tolist() == [1, 0]
    assert len(nothing.references) == 0 and nothing.references.size == (H, W) and not nothing.tags.any()


def test_areas_are_those_of_the_file_or_of_the_masks(coco_folder):
    edit(coco_folder, lambda c: [a.update(area=area) for a, area in zip(c["annotations"], (16.5, None), strict=False)])
    data = module(coco_folder)
    data.setup("validate")
    assert data.datasets["val"][0].references.area.tolist() == [16.5, 400, 96]


def test_crowds_are_tagged_but_no_instances(coco_folder):
    edit(coco_folder, lambda content: content["annotations"].pop(0))
    data = module(coco_folder, label_quality=True)
    data.setup("fit")
    sample = data.datasets["train"][0]
    assert sample.tags.tolist() == [True, True, False]
    assert sample.truth.classes.tolist() == [0]
    assert int(sample.truth.ids.max()) == 1 and int((sample.truth.ids == 1).sum()) == 400


def test_training_needs_no_masks(coco_folder):
    def spoil(content) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = "not a mask"

    edit(coco_folder, spoil)
    data = module(coco_folder)
    data.setup("fit")
    assert data.datasets["train"].split.truth is None
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.pseudo is not None and batch.truth is None
    for settings in ({"supervision": "full"}, {"semantic_source": "ground_truth"}, {"label_quality": True}):
        data = module(coco_folder, **settings)
        data._add("train", lambda data=data: data._training_samples(data.open_split("train")))
        with pytest.raises(ValueError, match="all.json: annotation 7: no mask"):
            data.datasets["train"][0]


def test_true_semantic_maps_are_painted(coco_folder):
    data = module(coco_folder, semantic_source="ground_truth", semantic_dir=None)
    with pytest.warns(UserWarning, match="semantic maps of the training images are the ground truth"):
        data.setup("fit")
    assert data.datasets["train"][0].semantic.unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cues_dir": None}, r"needs a folder of points .*cues_dir"),
        ({"cues_dir": None, "supervision": "tags"}, r"needs a folder of cues"),
        ({"semantic_dir": None}, r"needs a folder of semantic maps .*semantic_dir"),
    ],
)
def test_missing_folder_arguments(coco_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        module(coco_folder, **settings).setup("fit")


def test_missing_files(coco_folder):
    with pytest.raises(FileNotFoundError, match="no such file: .*none.json; expected a COCO annotation file"):
        module(coco_folder, val_annotations="none.json")
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere; expected the images of .*all.json"):
        module(coco_folder, val_images="nowhere").setup("validate")
    (coco_folder / "broken.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="broken.json: is no JSON"):
        module(coco_folder, val_annotations="broken.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=99), "annotation 7 has image_id 99 and category_id 44"),
        (lambda c: c["annotations"][1].update(category_id=4), "annotation 8 has image_id 50 and category_id 4"),
        (lambda c: c["images"][0].pop("file_name"), "an entry without 'file_name'"),
        (lambda c: c["images"][1].update(file_name="sub/one.jpg"), "listed more than once: sub/one;"),
        (lambda c: c.update(images=[]), "lists no images"),
        (lambda c: c["images"][0].update(width=W + 1), r"is 41 x 30 px .* but its file is 40 x 30"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
            "annotation 7: a polygon of 2 corners; expected three or",
        ),
        (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 7: no mask"),
        (lambda c: c["annotations"][0]["segmentation"].update(size=[1, 2]), r"annotation 7: mask of size \[1, 2\]"),
        (lambda c: c["annotations"][0]["segmentation"].pop("counts"), "annotation 7: a run-length code without counts"),
        *(
            (
                lambda c, counts=counts: c["annotations"][0]["segmentation"].update(counts=counts),
                f"7: a broken run-l.*{H}",
            )
            for counts in ([5, 10], [5, 10_000], [-5, H * W + 5], [1.5, H * W - 1.5], ["a"], [], "", "5:", "abc", "é")
        ),
        *(
            (
                lambda c, value=value: c["annotations"][1].update(segmentation=[[4, 4, 24, 4, 24, value]]),
                "8: .* numbers x, y",
            )
            for value in (None, "4", float("nan"), [4])
        ),
        *(
            (lambda c, area=area: c["annotations"][1].update(area=area), "annotation 8: area .*; expected a number")
            for area in ("4", -1, float("inf"))
        ),
        (lambda c: c["annotations"][2].update(id=7), "2 annotations have the id 7; expected each once"),
        (lambda c: c["categories"].append({"id": 9, "name": "pen"}), "2 categories have the name 'pen'"),
        (lambda c: c["categories"].append({"id": 90, "name": "box"}), "2 categories have the id 90"),
        (lambda c: c["images"][1].update(id=50), "2 images have the id 50"),
        (lambda c: c["images"][1].update(id="20"), "id is '20'; expected a whole number"),
        (lambda c: c["images"][1].update(width=None), "height, width: 30, None; expected whole numbers"),
        (lambda c: c["images"].append("three.png"), "an entry without 'file_name': 'three.png'"),
        (lambda c: c["annotations"].append(None), "annotation None has image_id None"),
        (lambda c: c["annotations"][0].update(image_id=[50]), r"annotation 7 has image_id \[50\]"),
        (lambda c: c.update(annotations={"7": {}}), r"is no JSON \(Expecting \["),
        (lambda c: c.pop("annotations"), "has no `annotations`; expected true instances"),
    ],
)
def test_broken_annotations_are_named(coco_folder, change, message):
    edit(coco_folder, change)
    with pytest.raises(ValueError, match=rf"all.json: .*{message}|{message}"):
        data = module(coco_folder)
        data.setup("validate")
        data.datasets["val"][0]


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_runs_of_compressed_codes(mask: np.ndarray) -> None:
    values = mask.astype(np.uint8)
    assert read_runs(rle.encode(np.asfortranarray(values))["counts"]) == runs(values)


def test_long_runs_of_compressed_codes() -> None:
    """Runs and their differences of several bytes, also negative ones."""
    values = np.zeros((400, 700), np.uint8)
    for start, length in ((0, 3), (90_000, 40_000), (131_000, 1), (279_000, 1000)):
        values.T.reshape(-1)[start : start + length] = 1
    assert read_runs(rle.encode(np.asfortranarray(values))["counts"]) == runs(values)


def test_training_needs_annotations_and_prediction_does_not(coco_folder):
    edit(coco_folder, lambda content: content.pop("annotations"))
    for settings in ({}, {"supervision": "tags", "semantic_source": "none"}):
        with pytest.raises(ValueError, match="all.json: has no `annotations`; expected them for the images' tags"):
            module(coco_folder, **settings).setup("fit")
    data = module(coco_folder)
    data.setup("predict")
    assert data.datasets["predict"].split.tags is None and not data.datasets["predict"][0].tags.any()


def test_crowds_are_ignored_in_scores_as_pycocotools_does(coco_folder):
    """A mask inside of the crowd is no mistake; the same mask beside it is."""
    data = module(coco_folder)
    data.setup("validate")
    references = data.datasets["val"][0].references

    def ap(*boxes: np.ndarray) -> float:
        codes = tuple(rle.encode(np.asfortranarray(mask)) for mask in boxes)
        scores = torch.linspace(0.9, 0.8, len(codes))
        metric = COCOInstanceAP(3)
        found = Instances(codes, torch.ones(len(codes), dtype=torch.int64), scores, (H, W))
        metric.update([found], [references], ["sub/one"])
        return float(metric.compute()["per_class"][1])

    cup, inside, beside = box(8, 10, 4, 4), box(21, 22, 3, 5), box(0, 30, 3, 5)
    assert ap(inside, cup) == ap(cup) == 1 and ap(beside, cup) == pytest.approx(0.5)


def test_other_categories_in_training_are_refused(coco_folder):
    content = json.loads((coco_folder / "all.json").read_text())
    content["categories"].pop()
    (coco_folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train.json: categories \(3, 44\) differ from \(3, 44, 90\)"):
        module(coco_folder, train_annotations="train.json").setup("fit")


def test_predict_needs_only_images(coco_folder):
    content = json.loads((coco_folder / "all.json").read_text())
    (coco_folder / "list.json").write_text(json.dumps({"images": content["images"]}))
    data = module(coco_folder, predict_annotations="list.json", cues_dir=None, semantic_dir=None)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch.names == ("sub/one", "two") and batch.references is None and data.image_ids["two"] == 20


def test_real_coco(real_data):
    root = real_data / "coco_tiny"
    data = COCODataModule(
        str(root),
        train_images="images",
        val_images="images",
        train_annotations="instances_train.json",
        val_annotations="instances_val.json",
        num_workers=0,
    )
    assert data.num_classes == 80 and data.class_names[:2] == ("person", "bicycle") and data.category_ids[-1] == 90
    data.setup("validate")
    samples = data.datasets["val"]
    references = [samples[n].references for n in range(len(samples))]
    assert sum(len(r) for r in references) == 418 and sum(int(r.crowd.sum()) for r in references) == 3
    stated = {a["id"]: a["area"] for a in json.loads((root / "instances_val.json").read_text())["annotations"]}
    areas = np.concatenate([rle.area(list(r.masks)) for r in references if len(r)])
    assert areas.sum() == pytest.approx(sum(stated.values()), rel=0.02)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch.images.shape[0] == 4 and batch.names[0] == "000000057345"


@pytest.fixture
def nuclei(real_data) -> COCODataModule:
    return COCODataModule(
        str(real_data / "nuclei"),
        train_images="images",
        val_images="images",
        train_annotations="instances_train.json",
        val_annotations="instances_val.json",
        semantic_dir="semantic",
        cues_dir="points",
        image_scale=2.0,
        object_scale=0.3,
        dihedral=True,
        label_quality=True,
        crop_size=256,
        batch_size=4,
        num_workers=0,
    )


def test_real_nuclei(nuclei):
    nuclei.setup("fit")
    assert nuclei.class_names == ("nucleus",)
    batch = nuclei.on_after_batch_transfer(next(iter(nuclei.train_dataloader())), 0)
    assert batch.images.shape == (4, 3, 256, 256)
    assert len(batch.cues) > 20
    y, x = batch.cues.yx.round().long().unbind(1)
    on_semantic = (batch.semantic[batch.cues.image, y, x] == 1).float().mean()
    assert on_semantic > 0.95
    # the semantic map is the union of the instances
    assert ((batch.truth.ids > 0) == (batch.semantic == 1)).float().mean() > 0.999
    # an accepted component is a true nucleus, up to what the crop's border cut off
    accepted = (batch.pseudo.area > 0).nonzero().flatten()
    assert len(accepted) > 10
    found = 0
    for row in accepted.tolist():
        numbers = batch.truth.ids[batch.pseudo.ids == row]
        number = numbers.mode().values
        union = (batch.pseudo.ids == row) | (batch.truth.ids == number)
        found += float((numbers == number).sum()) / float(union.sum()) > 0.5
    assert found / len(accepted) > 0.9
    assert int(batch.truth.area.sum()) == int((batch.truth.ids > 0).sum())


def test_points_lie_on_their_nuclei(nuclei):
    nuclei.setup("fit")
    samples = nuclei.datasets["train"]
    for n in range(0, len(samples), 20):
        sample = samples[n]
        y, x = sample.cues.yx.round().long().unbind(1)
        assert sample.truth.ids[y, x].tolist() == list(range(1, len(sample.truth.classes) + 1))
    assert torch.equal(samples[0].truth.ids > 0, samples[0].semantic == 1)
