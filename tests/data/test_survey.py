"""What ``bestie-pl init`` finds in a folder, and the settings that it chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bestie_pl.data.survey import Survey, annotation_files, annotation_source, settings, split_of_file, survey

FOUND = Survey(
    root=Path("set"),
    class_names=("cat",),
    train_images=98,
    size=(256, 256),
    splits=("train", None, None),
    points="points.json",
    semantic_dir=None,
    annotations=None,
    tags_differ=False,
    diameter=140.0,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training images and one for validation, 40 x 60 px, with a bright disc of radius 6 and its point."""
    (tmp_path / "images").mkdir()
    records = []
    for number in range(3):
        image = Image.new("RGB", (60, 40), (20, 20, 20))
        ImageDraw.Draw(image).ellipse((14, 14, 26, 26), fill=(230, 210, 220))
        image.save(tmp_path / "images" / f"i{number}.png")
        records.append({"file": f"i{number}.png", "points": [{"x": 20, "y": 20, "class": "nut"}]})
    (tmp_path / "points.json").write_text(json.dumps({"classes": ["nut"], "images": records}))
    (tmp_path / "tags.csv").write_text("image,tags,split\ni0.png,nut;,train\ni1.png,nut;,train\ni2.png,nut;,val\n")
    return tmp_path


# ---------------------------------------------------------------- what is found


def test_a_folder_with_points(folder: Path) -> None:
    found = survey(folder)
    assert found.diameter == pytest.approx(13, rel=0.15)  # measured on maps grown from the points
    assert replace(found, diameter=None) == Survey(
        root=folder,
        class_names=("nut",),
        train_images=2,
        size=(40, 60),
        splits=("train", "val", None),
        points="points.json",
        semantic_dir=None,
        annotations=None,
        tags_differ=False,
        diameter=None,
    )


def test_given_maps_measure_the_objects(folder: Path) -> None:
    (folder / "semantic").mkdir()
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 10:30] = 1
    for number in range(2):  # of the training images alone
        Image.fromarray(values).save(folder / "semantic" / f"i{number}.png")
    found = survey(folder)
    assert found.semantic_dir == "semantic" and found.diameter == pytest.approx(2 * (400 / np.pi) ** 0.5)


def test_images_without_a_row_are_counted(folder: Path) -> None:
    for name in ("sub/more.png", "another.jpg", ".hidden.png", "notes.txt"):
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / "images" / name).write_bytes(b"")
    assert survey(folder).unlisted == 2


def test_tags_alone(folder: Path) -> None:
    (folder / "points.json").unlink()
    (folder / "tags.csv").write_text("image,tags,split\ni0.png,nut;,train\ni1.png,,train\n")
    found = survey(folder)
    assert found.points is None and found.diameter is None and found.tags_differ


def test_splits_as_text_files(folder: Path) -> None:
    (folder / "tags.csv").write_text("image,tags\ni0.png,nut;\ni1.png,nut;\ni2.png,nut;\n")
    for name, images in (("train", "i0\ni1\n"), ("test", "i2\n")):
        (folder / f"{name}.txt").write_text(images)
    found = survey(folder)
    assert found.splits == ("train.txt", None, "test.txt") and found.train_images == 2


def test_truth_by_its_name(folder: Path) -> None:
    (folder / "instances_val.json").write_text(json.dumps({"images": [{"file_name": "i2.png"}], "categories": []}))
    assert survey(folder).annotations == "instances_{split}.json"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("image,tags,split\ni0.png,nut;,fit\n", "no split `train`; there are fit"),
        ("image,tags\ni0.png,nut;\n", "no split `train`; add a column"),
        ("image,tags,split\nabsent.png,nut;,train\n", "no such image"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, tags: str, message: str) -> None:
    (folder / "tags.csv").write_text(tags)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        survey(folder)


def test_who_wrote_annotations(tmp_path: Path) -> None:
    texts = {
        "a.json": ('{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "labelme"),
        "b.json": ('{"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}', "coco"),
        "c.json": ('[{"id": 1, "annotations": []}]', "labelstudio"),
        "d.xml": ('<?xml version="1.0"?><annotations><image id="0" name="a.jpg"/></annotations>', "cvat"),
        "e.json": ('{"classes": [], "images": [{"file": "a.jpg", "points": []}]}', None),
        "f.xml": ("<annotation><folder/></annotation>", None),
        "h.json": ('{"_via_settings": {}, "_via_img_metadata": {}}', "via"),
        "i.csv": ("filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n", "via"),
        "j.csv": ("image,x,y,class\n", None),
        "g.txt": ('{"shapes": []}', None),
    }
    for name, (text, source) in texts.items():
        (tmp_path / name).write_text(text)
        assert annotation_source(tmp_path / name) == source, name
    expected: dict[str, list[str]] = {}
    for name, (_, source) in texts.items():
        if source is not None:
            expected.setdefault(source, []).append(name)
    found = annotation_files(tmp_path)
    assert {source: [path.name for path in paths] for source, paths in found.items()} == expected


def test_split_of_a_file() -> None:
    names = ("instances_train.json", "val.json", "my-test-1.json", "evaluation.json", "labels/valid/_annotations.json")
    root = Path("val/test")  # what lies above the folder says nothing
    assert [split_of_file(root / name, root) for name in names] == ["train", "val", "test", "train", "valid"]


# ---------------------------------------------------------------- what is chosen


def values(found: Survey, device: str = "cpu") -> dict[str, object]:
    chosen = settings(found, device)  # type: ignore[arg-type]
    assert all(choice.why for choice in chosen.values())
    return {key: choice.value for key, choice in chosen.items()}


def test_objects_like_those_of_voc_need_no_lengths() -> None:
    chosen = values(FOUND)
    assert chosen["object_scale"] == 1.0 and not {"image_scale", "sigma", "min_area"} & set(chosen)


@pytest.mark.parametrize("diameter", [6.0, 14.0, 20.0, 40.0, 300.0])
def test_lengths_follow_the_objects(diameter: float) -> None:
    """Of any size: at least four cells wide, a Gaussian of a cell or more, less than a third of the object."""
    chosen = values(replace(FOUND, diameter=diameter))
    seen = diameter * float(chosen.get("image_scale", 1.0))  # type: ignore[arg-type]
    sigma = float(chosen.get("sigma", 6.0)) * float(chosen["object_scale"])  # type: ignore[arg-type]
    assert seen >= 16 and 3.9 <= sigma < max(seen / 3, 4.1)


def test_small_objects_are_enlarged() -> None:
    assert values(replace(FOUND, diameter=14.0))["image_scale"] == 2.0


def test_batch_crop_and_steps_follow_images_and_machine() -> None:
    few, many = replace(FOUND, train_images=5), replace(FOUND, train_images=100_000, size=(480, 640))
    assert values(few)["batch_size"] == 5 and values(few)["steps"] == 300 and values(few)["crop_size"] == 256
    assert values(many)["crop_size"] == 288 and values(many, "cuda")["crop_size"] == 416
    assert values(many)["steps"] == 600 and values(many, "cuda")["steps"] == 20_000
    assert values(many, "cuda")["batch_size"] == 16 and values(many)["warmup_steps"] == 50


def test_tiny_images_have_tiny_crops() -> None:
    assert values(replace(FOUND, size=(48, 200), diameter=None))["crop_size"] == 64
