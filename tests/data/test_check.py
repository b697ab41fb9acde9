"""What ``bestie-pl data check`` finds in one image and the files that belong to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestie_pl.data.check import CheckedImages, ImageFacts
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.voc import VOCDataModule


def voc(root: Path, **settings: object) -> VOCDataModule:
    return VOCDataModule(str(root), **({"train_split": "train", "num_workers": 0} | settings))


def check(data: InstanceDataModule, stage: str = "train", index: int = 0) -> ImageFacts:
    data.setup({"train": "fit", "val": "validate"}.get(stage, stage))
    return CheckedImages(data.datasets[stage], data.class_names, data.geometry.min_area)[index]


def found(facts: ImageFacts) -> list[tuple[str, bool]]:
    return [(problem.kind, problem.error) for problem in facts.problems]


def only(facts: ImageFacts) -> str:
    """The one message that there is."""
    (problem,) = facts.problems
    return problem.message


# ---------------------------------------------------------------- sound files are counted


def test_a_training_image(voc_folder: Path) -> None:
    facts = check(voc(voc_folder))
    assert facts.name == "a0" and facts.path.endswith("JPEGImages/a0.jpg") and facts.size == (40, 60)
    assert facts.problems == [] and facts.tags == [0, 1] and facts.objects == []
    assert facts.cues == facts.used_cues == [0, 0, 1]
    # two touching cats make one region with two points, the dog one with one
    assert facts.components == {(0, 2): 1, (1, 1): 1} and not facts.small_components
    assert check(voc(voc_folder, min_area=201)).small_components == {0: 1, 1: 1}


def test_cues_that_training_uses(voc_folder: Path) -> None:
    """A confidence of 0.7 is not above the threshold of 0.7, in single precision neither."""
    facts = check(voc(voc_folder, supervision="tags"))
    assert facts.cues == [0, 0, 1] and facts.used_cues == [0, 1]
    assert facts.components == {(0, 1): 1, (1, 1): 1} and facts.problems == []


def test_an_evaluated_image(voc_folder: Path) -> None:
    facts = check(voc(voc_folder), "val")
    assert facts.problems == [] and facts.objects == [0, 0, 1] and facts.cues == [0, 0, 1]
    assert facts.used_cues == [] and not facts.components  # training's affair
    (voc_folder / "Center_points" / "a0.txt").unlink()
    assert check(voc(voc_folder), "val").problems == []  # nobody needs points here


def test_tags_alone(voc_folder: Path) -> None:
    facts = check(voc(voc_folder, supervision="tags", semantic_source="none"))
    assert facts.problems == [] and facts.tags == [0, 1] and facts.cues == [] and not facts.components


# ---------------------------------------------------------------- what is wrong


def overwrite(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def tear(path: Path) -> None:
    """As a copy that was interrupted: the size is right, the end is zero."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def map_of_zeros(path: Path, value: int = 0) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[3, 5] = value
    overwrite(path, values)


ERRORS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing image": (lambda r: (r / "JPEGImages/a0.jpg").unlink(), "unreadable image", "no such image: .*a0.jpg"),
    "truncated image": (lambda r: cut(r / "JPEGImages/a0.jpg", 0.5), "unreadable image", "a0.jpg: cannot be read"),
    "empty image": (lambda r: cut(r / "JPEGImages/a0.jpg", 0), "unreadable image", "a0.jpg: cannot be read"),
    "no image": (
        lambda r: (r / "JPEGImages/a0.jpg").write_text("<html>"),
        "unreadable image",
        "a0.jpg: cannot be read as an image .*restore it or take it out",
    ),
    "missing map": (
        lambda r: (r / "WSSS_maps/a0.png").unlink(),
        "unreadable semantic map",
        "no such file: .*WSSS_maps/a0.png; expected the image's semantic map",
    ),
    "truncated map": (
        lambda r: cut(r / "WSSS_maps/a0.png", 0.7),
        "unreadable semantic map",
        "WSSS_maps/a0.png: cannot be read",
    ),
    "map of another size": (
        lambda r: overwrite(r / "WSSS_maps/a0.png", np.zeros((40, 61), np.uint8)),
        "semantic map of another size",
        r"a0.png: is 61 x 40 px \(width x height\) but its image is 60 x 40",
    ),
    "a value too high": (
        lambda r: map_of_zeros(r / "WSSS_maps/a0.png", 3),
        "semantic map with values that are no class",
        r"a0.png: value 3 at y=3, x=5; expected 0 .*, 1\.\.2",
    ),
    "a map of colours": (
        lambda r: overwrite(r / "WSSS_maps/a0.png", np.zeros((40, 60, 3), np.uint8)),
        "unreadable semantic map",
        "a0.png: is a colour image",
    ),
    "missing points": (
        lambda r: (r / "Center_points/a0.txt").unlink(),
        "unreadable cues",
        "no such file: .*Center_points/a0.txt; .*an empty file for an image without points",
    ),
    "point outside": (
        lambda r: (r / "Center_points/a0.txt").write_text("7 6 0 1\n60 6 0 1\n15 25 1 1\n"),
        "wrong cue",
        "a0.txt line 2: x=60 is outside the 60 px wide image",
    ),
    "point of no class": (
        lambda r: (r / "Center_points/a0.txt").write_text("7 6 0 1\n7 6 2 1\n15 25 1 1\n"),
        "wrong cue",
        r"a0.txt line 2: class 2; expected a whole number in 0\.\.1",
    ),
    "no point": (
        lambda r: (r / "Center_points/a0.txt").write_text("7 6 0 1\nx y class conf\n15 25 1 1\n"),
        "wrong cue",
        "a0.txt line 2: found 'x y class conf'; expected four numbers",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(voc_folder: Path, name: str) -> None:
    spoil, kind, message = ERRORS[name]
    spoil(voc_folder)
    facts = check(voc(voc_folder))
    assert found(facts) == [(kind, True)]
    assert re.search(message, only(facts))
    assert check(voc(voc_folder), index=1).problems == []


def test_every_wrong_line_is_found(voc_folder: Path) -> None:
    (voc_folder / "Center_points/a0.txt").write_text("-1 6 0 1\n7 40 0 1\n7 6 0 1.5\n7 6 0 nan\nnan 6 0 1\n7 6 0.5 1\n")
    messages = [p.message for p in check(voc(voc_folder)).problems if p.kind == "wrong cue"]
    assert [message.split(":")[0].split()[-1] for message in messages] == ["1", "2", "3", "4", "5", "6"]


def test_a_size_and_a_value_are_two_findings(voc_folder: Path) -> None:
    overwrite(voc_folder / "WSSS_maps" / "a0.png", np.full((10, 10), 9, np.uint8))
    assert len(check(voc(voc_folder)).problems) == 2


def test_an_image_that_is_torn(voc_folder: Path) -> None:
    """Decoders show a JPEG without end as half grey, and say nothing."""
    path = voc_folder / "JPEGImages" / "a0.jpg"
    tear(path)
    with Image.open(path) as image:
        image.load()  # no error
    facts = check(voc(voc_folder, supervision="tags", semantic_source="none"))
    assert found(facts) == [("unreadable image", True)]
    assert "bytes are zero and the image has no end: copy it again" in only(facts)


def test_zeros_behind_the_end_of_an_image_are_harmless(voc_folder: Path) -> None:
    path = voc_folder / "JPEGImages" / "a0.jpg"
    path.write_bytes(path.read_bytes() + bytes(100))
    assert check(voc(voc_folder)).problems == []


def test_what_pillow_warns_of_is_told_with_the_name(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # an image of 60 x 40 px is a little beyond
    facts = check(voc(voc_folder, supervision="tags", semantic_source="none"))
    assert found(facts) == [("image that is read with a warning", False)]
    assert re.search(r"a0\.jpg: Image size \(2400 pixels\) exceeds limit", only(facts))


TRUTH_ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing objects": (lambda r: (r / "SegmentationObject/a0.png").unlink(), "SegmentationObject/a0.png"),
    "objects of another size": (
        lambda r: overwrite(r / "SegmentationObject/a0.png", np.zeros((4, 6), np.uint8)),
        r"SegmentationObject/a0.png: is 6 x 4 px .* but its image is 60 x 40",
    ),
    "object on background": (
        lambda r: map_of_zeros(r / "SegmentationClass/a0.png"),
        "SegmentationObject/a0.png: object 1 lies on background alone",
    ),
    "value that is no class": (
        lambda r: map_of_zeros(r / "SegmentationClass/a0.png", 77),
        "SegmentationClass/a0.png: value 77 at y=3, x=5",
    ),
}


@pytest.mark.parametrize("name", TRUTH_ERRORS)
def test_wrong_ground_truth(voc_folder: Path, name: str) -> None:
    spoil, message = TRUTH_ERRORS[name]
    spoil(voc_folder)
    facts = check(voc(voc_folder), "val")
    assert found(facts) == [("wrong ground truth", True)]
    assert re.search(message, only(facts))
    assert check(voc(voc_folder)).problems == []  # training does not look there
    measured = found(check(voc(voc_folder, label_quality=True)))
    assert measured == ([] if name == "missing objects" else [("wrong ground truth", True)])  # most of VOC's are


WARNINGS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cue without tag": (
        lambda r: (r / "train_cls.txt").write_text("a0 0\n"),
        "cue of a class without tag",
        "Center_points/a0.txt: dog; training leaves these cues out",
    ),
    "region without tag": (
        lambda r: (r / "train_cls.txt").write_text("a0 0\n"),
        "class in a semantic map without tag",
        "WSSS_maps/a0.png: dog; gets no label",
    ),
    "tag without cue": (
        lambda r: (r / "Center_points/a0.txt").write_text(""),
        "tag without a cue",
        "Center_points/a0.txt: cat, dog; no object of it gets a label",
    ),
    "tag without region": (
        lambda r: map_of_zeros(r / "WSSS_maps/a0.png"),
        "tag without a region in the semantic map",
        "WSSS_maps/a0.png: cat, dog; no object",
    ),
    "cue beside regions": (
        lambda r: (r / "Center_points/a0.txt").write_text("7 6 0 1\n50 38 0 1\n15 25 1 1\n"),
        "cue beside the regions of its class",
        "Center_points/a0.txt: 1 of 3 cues",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings(voc_folder: Path, name: str) -> None:
    spoil, kind, message = WARNINGS[name]
    spoil(voc_folder)
    facts = check(voc(voc_folder))
    assert (kind, False) in found(facts) and not any(error for _, error in found(facts))
    assert any(problem.kind == kind and message in problem.message for problem in facts.problems)


def test_a_cue_on_the_region_of_another_class_is_beside_its_own(voc_folder: Path) -> None:
    (voc_folder / "Center_points/a0.txt").write_text("7 6 1 1\n")
    facts = check(voc(voc_folder))
    assert ("cue beside the regions of its class", False) in found(facts)
    assert facts.components == {(0, 0): 1, (1, 0): 1}


# ---------------------------------------------------------------- predicted labels


def test_predicted_labels(voc_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    data = voc(voc_folder, labels_from=str(tmp_path / "predictions"))
    facts = check(data)
    assert found(facts) == [("unreadable predicted instances", True)] and "predictions/a0.json" in only(facts)
    (tmp_path / "predictions" / "a0.json").write_text("[]")
    assert check(data).problems == []


# ---------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., COCODataModule]:
    """One image of 30 x 20 px with a box, a crowd, and whatever annotations a test adds."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "one.png")
    box = [[2, 2, 12, 2, 12, 12, 2, 12]]
    crowd = {"size": [20, 30], "counts": [0, 100, 500]}

    def make(*more: dict[str, object], width: int = 30, **settings: object) -> COCODataModule:
        annotations = [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": box, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "segmentation": crowd, "iscrowd": 1},
            *({"id": 10 + k, "image_id": 7, "category_id": 3, **record} for k, record in enumerate(more)),
        ]
        content = {
            "images": [{"id": 7, "file_name": "one.png", "height": 20, "width": width}],
            "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "cup"}],
            "annotations": annotations,
        }
        (tmp_path / "all.json").write_text(json.dumps(content))
        common = {f"{split}_images": "images" for split in ("train", "val")}
        common |= {f"{split}_annotations": "all.json" for split in ("train", "val")}
        return COCODataModule(str(tmp_path), **(common | settings))

    return make


def test_crowds_are_no_objects(coco: Callable[..., COCODataModule]) -> None:
    facts = check(coco(), "val")
    assert facts.objects == [0] and facts.crowds == [1] and facts.tags == [0, 1] and facts.problems == []


def test_objects_without_a_pixel(coco: Callable[..., COCODataModule]) -> None:
    facts = check(coco({"segmentation": [[100, 100, 101, 100, 101, 101]]}), "val")
    assert found(facts) == [("object without a pixel", False)] and "one.png: 1 of 3 objects" in only(facts)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"bbox": [1, 2, 3, 4]}, "annotation 10: no mask; expected polygons"),
        ({"segmentation": {"size": [20, 31], "counts": [620]}}, r"annotation 10: mask of size \[20, 31\]"),
        # the memory behind the code would decide what the mask shows
        ({"segmentation": {"size": [20, 30], "counts": [5, 10]}}, "annotation 10: a broken run-length code"),
        ({"segmentation": {"size": [20, 30], "counts": "5:"}}, "annotation 10: a broken run-length code"),
    ],
)
def test_broken_masks(coco: Callable[..., COCODataModule], record: dict[str, object], message: str) -> None:
    facts = check(coco(record), "val")
    assert found(facts) == [("wrong ground truth", True)]
    assert re.search(message, only(facts))


def test_a_size_that_is_not_the_files(coco: Callable[..., COCODataModule]) -> None:
    facts = check(coco(width=31), "val")
    assert found(facts) == [("wrong ground truth", True)] and "is 31 x 20 px" in only(facts)


def test_regions_of_the_ground_truth_are_counted(coco: Callable[..., COCODataModule], tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "one.txt").write_text("5 5 0 1\n6 6 0 1\n")
    data = coco(semantic_source="ground_truth", cues_dir="points")
    with pytest.warns(UserWarning, match="ground truth"):
        facts = check(data)
    assert facts.components == {(0, 2): 1}


# ---------------------------------------------------------------- a folder of one's own


def folder(root: Path, points: dict[str, list[dict[str, object]]], **settings: object) -> FolderDataModule:
    """Two images of 30 x 20 px; the left half of both maps is a cat."""
    for name in ("images", "maps"):
        (root / name).mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.new("RGB", (30, 20), (ord(name), 0, 0)).save(root / "images" / f"{name}.png")
        overwrite(root / "maps" / f"{name}.png", np.repeat([[1] * 15 + [0] * 15], 20, 0).astype(np.uint8))
    (root / "tags.csv").write_text("image,tags,split\na.png,cat,train\nb.png,cat,train\n")
    images = [{"file": file, "points": rows} for file, rows in points.items()]
    (root / "points.json").write_text(json.dumps({"classes": ["cat"], "images": images}))
    return FolderDataModule(str(root), semantic_dir="maps", points="points.json", **settings)


def test_points_of_a_file(tmp_path: Path) -> None:
    data = folder(
        tmp_path, {"a.png": [{"x": 3, "y": 4, "class": "cat"}, {"x": 25, "y": 4, "class": "cat"}], "b.png": []}
    )
    first, second = check(data), check(data, index=1)
    assert first.cues == [0, 0] and first.components == {(0, 1): 1}
    assert found(first) == [("cue beside the regions of its class", False)]
    assert second.cues == [] and second.components == {(0, 0): 1} and found(second) == [("tag without a cue", False)]
    outside = folder(tmp_path, {"a.png": [{"x": 30, "y": 4, "class": "cat"}], "b.png": []})
    assert found(check(outside)) == [("wrong points", True)]
    assert "points.json: image 'a.png', point 1: x=30, y=4 is outside the 30 x 20 px image" in only(check(outside))


def test_images_with_tags_only(tmp_path: Path) -> None:
    """They may have a classifier's cues; that they have no points is no finding."""
    points = {"a.png": [{"x": 3, "y": 4, "class": "cat"}]}
    facts = check(folder(tmp_path, points), index=1)
    assert facts.problems == [] and facts.cues == [] and not facts.components
    (tmp_path / "cues").mkdir()
    (tmp_path / "cues" / "b.txt").write_text("3 4 0 0.9\n5 6 0 0.8\n")
    data = folder(tmp_path, points, cues_dir="cues")
    assert check(data, index=1).components == {(0, 2): 1} and check(data).components == {(0, 1): 1}
