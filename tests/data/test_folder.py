"""A data set of one's own: tags, splits, points, mixed supervision and ground truth of a folder of images."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bestie_pl.cli import main as cli
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.samples import collate
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.structures import Batch, InstanceMaps, LabeledInstances

H, W = 48, 64
TAGS = "image,tags,split\nsub/one.png,cat;dog,train\ntwo.jpg,dog,train\ngröße 3.png,,train\nfour.png,cat,val\n"
FILES = ["sub/one.png", "two.jpg", "größe 3.png", "four.png"]
BOXES = {
    # (class, top, left, height, width); the two cats of the first image touch
    "sub/one.png": [("cat", 4, 4, 10, 10), ("cat", 4, 14, 10, 10), ("dog", 24, 30, 12, 20)],
    "two.jpg": [("dog", 10, 10, 12, 12)],
    "größe 3.png": [],
    "four.png": [("cat", 20, 20, 14, 14)],
}
NUMBER = {"cat": 1, "dog": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images with everything that there may be about them; all objects are rectangles."""
    root = tmp_path / "set"
    random = np.random.default_rng(0)
    images, annotations, points = [], [], []
    for number, file in enumerate(FILES):
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (H, W, 3), dtype=np.uint8)).save(path)
        semantic = np.zeros((H, W), np.uint8)
        spots = []
        for name, y, x, h, w in BOXES[file]:
            semantic[y : y + h, x : x + w] = NUMBER[name]
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            category = {"cat": 7, "dog": 3}[name]  # numbered the other way round than the classes
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "iscrowd": 0})
            annotations[-1]["segmentation"] = [corners]
            spots.append({"x": x + w // 2, "y": y + h // 2, "class": name})
        stem = Path(file).with_suffix("")
        for kind in ("maps", "points", "cues"):
            (root / kind / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(semantic).save(root / "maps" / f"{stem}.png")
        lines = [f"{spot['x']} {spot['y']} {NUMBER[spot['class']] - 1} 1.000\n" for spot in spots]
        (root / "points" / f"{stem}.txt").write_text("".join(lines))
        (root / "cues" / f"{stem}.txt").write_text("".join(lines).replace("1.000", "0.900"))
        images.append({"id": number, "file_name": file, "height": H, "width": W})
        points.append({"file": file, "width": W, "height": H, "points": spots})
    categories = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    (root / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (root / "points.json").write_text(json.dumps({"classes": ["dog", "cat"], "images": points}))
    (root / "tags.csv").write_text(TAGS, encoding="utf-8")
    return root


def module(root: Path, **settings: Any) -> FolderDataModule:
    common = {"semantic_dir": "maps", "points": "points.json", "annotations": "truth.json"}
    common |= {"num_workers": 0, "batch_size": 2, "crop_size": 32, "object_scale": 0.3}
    return FolderDataModule(str(root), **(common | settings))


def training_samples(root: Path, **settings: Any) -> Any:
    data = module(root, **settings)
    data.setup("fit")
    return data.datasets["train"]


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- what is read


def test_training_samples_hold_what_the_folder_says(folder: Path) -> None:
    samples = training_samples(folder)
    assert samples.class_names == ("cat", "dog")
    one, two, empty = (samples[n] for n in range(3))
    assert [s.name for s in (one, two, empty)] == ["sub/one", "two", "größe 3"]
    assert [s.tags.tolist() for s in (one, two, empty)] == [[True, True], [False, True], [False, False]]
    assert one.cues.yx.tolist() == [[9.0, 9.0], [9.0, 19.0], [30.0, 40.0]]
    assert one.cues.classes.tolist() == [0, 0, 1] and one.cues.scores.tolist() == [1.0, 1.0, 1.0]
    assert one.semantic.unique().tolist() == [0, 1, 2] and int((one.semantic == 1).sum()) == 200
    assert torch.equal(
        one.image, torch.from_numpy(np.array(Image.open(folder / "images/sub/one.png"))).permute(2, 0, 1)
    )
    assert len(empty.cues) == 0 and empty.truth is None and one.pointed is None


@pytest.mark.parametrize("form", ["points.csv", "points"])
def test_all_forms_of_points_are_the_same(folder: Path, form: str) -> None:
    rows = ["image,x,y,class", "größe 3,,,"]
    for image in json.loads((folder / "points.json").read_text())["images"]:
        rows += [f"{image['file']},{p['x']},{p['y']},{p['class']}" for p in image["points"]]
    (folder / "points.csv").write_text("\n".join(rows))
    expected, found = training_samples(folder), training_samples(folder, points=form)
    for n in range(3):
        assert_same(expected[n], found[n])
    # no point, but somebody looked: the supervision is the same for all images
    assert len(found[2].cues) == 0 and found[2].pointed is None


def test_evaluation_matches_categories_by_name_and_images_by_file(folder: Path) -> None:
    edit(folder / "truth.json", lambda c: c["images"].reverse())
    data = module(folder)
    data.setup("validate")
    (sample,) = (data.datasets["val"][n] for n in range(len(data.datasets["val"])))
    assert sample.name == "four" and sample.references.classes.tolist() == [0]  # cat, the second category
    assert sample.semantic_reference.unique().tolist() == [0, 1]
    assert int((sample.semantic_reference == 1).sum()) == 14 * 14
    assert sample.cues.yx.tolist() == [[27.0, 27.0]]
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch.images.max() <= 1 and batch.pseudo is None


def test_every_split_may_have_its_own_ground_truth(folder: Path) -> None:
    (folder / "truth.json").rename(folder / "instances_val.json")
    (folder / "val.txt").write_text("four\n")
    for split in ("val", "val.txt"):
        data = module(folder, annotations="instances_{split}.json", val_split=split)
        data.setup("validate")
        assert len(data.datasets["val"][0].references) == 1


def test_crowds_and_other_classes_of_the_ground_truth(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 1, "name": "bird"})  # no image has one
        crowd = {"id": 99, "image_id": 3, "category_id": 3, "iscrowd": 1}
        content["annotations"].append(crowd | {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]})

    edit(folder / "truth.json", change)
    data = module(folder)
    data.setup("validate")
    sample = data.datasets["val"][0]
    assert sample.references.classes.tolist() == [0, 1] and sample.references.crowd.tolist() == [False, True]
    assert sample.semantic_reference.unique().tolist() == [0, 1, 255]
    assert sample.tags.tolist() == [True, False]  # the file of tags counts


def test_class_names_give_the_order_and_further_classes(folder: Path) -> None:
    order = ["bird", "dog", "cat"]
    for name in FILES:
        path = folder / "maps" / Path(name).with_suffix(".png")
        values = np.array(Image.open(path))
        Image.fromarray(np.array([0, 3, 2], np.uint8)[values]).save(path)
    samples = training_samples(folder, class_names=order)
    assert samples[0].tags.tolist() == [False, True, True] and samples[0].cues.classes.tolist() == [2, 2, 1]
    data = module(folder, class_names=order)
    data.setup("validate")
    assert data.datasets["val"][0].references.classes.tolist() == [2] and data.num_classes == 3


def test_a_split_may_be_a_text_file(folder: Path) -> None:
    # not in the order of the file of tags, and all of its images
    (folder / "own.txt").write_text("two\nfour.png\n\nsub/one.png\ngröße 3\n", encoding="utf-8")
    samples = training_samples(folder, train_split="own.txt")
    assert list(samples.split.names) == ["two", "four", "sub/one", "größe 3"]
    assert [samples[n].tags.tolist() for n in range(4)] == [[False, True], [True, False], [True, True], [False, False]]
    assert [len(samples[n].cues) for n in range(4)] == [1, 1, 3, 0]


def test_suffixes_may_be_left_out(folder: Path) -> None:
    (folder / "tags.csv").write_text(TAGS.replace(".png", "").replace(".jpg", ""), encoding="utf-8")
    samples = training_samples(folder)
    assert [Path(path).name for path in samples.split.images] == ["one.png", "two.jpg", "größe 3.png"]
    (folder / "images" / "two.png").write_bytes((folder / "images" / "four.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"tags.csv: two may be two.jpg or two.png in .*images; give it with its suffix"
    ):
        training_samples(folder)
    (folder / "images" / "two.png").unlink()
    (folder / "images" / "two.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such image: .*images/two, with any of .jpg, .*tags.csv lists it"):
        training_samples(folder)


def test_tags_only_needs_nothing_but_images_and_tags(folder: Path) -> None:
    data = FolderDataModule(str(folder), supervision="tags", semantic_source="none", num_workers=0, crop_size=32)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert data.datasets["train"][0].semantic is None and data.datasets["val"][0].references is None
    assert data.tag_counts()[0].tolist() == [1, 2]


def test_without_ground_truth_training_has_no_validation(folder: Path) -> None:
    data = module(folder, annotations=None)
    data.setup("fit")
    assert len(data.datasets["train"]) == 3 and len(data.datasets["val"]) == 0
    assert list(data.val_dataloader()) == []
    data.setup("predict")
    assert data.datasets["predict"][0].name == "four"
    for stage in ("validate", "test"):
        with pytest.raises(ValueError, match=f"{stage} needs ground truth; give annotations, a COCO file"):
            module(folder, annotations=None).setup(stage)


def test_predict_takes_another_split_or_another_folder(folder: Path) -> None:
    data = module(folder, predict_split="train")
    data.setup("predict")
    assert list(data.datasets["predict"].split.names) == ["sub/one", "two", "größe 3"]
    data = module(folder, predict_images=str(folder / "images" / "sub"))
    data.setup("predict")
    assert list(data.datasets["predict"].split.names) == ["one"]


def test_semantic_maps_may_be_the_ground_truth(folder: Path) -> None:
    data = module(folder, semantic_dir=None, semantic_source="ground_truth")
    with pytest.warns(UserWarning, match="semantic maps of the training images are the ground truth"):
        data.setup("fit")
    expected = training_samples(folder)
    for n in range(3):
        assert torch.equal(data.datasets["train"][n].semantic, expected[n].semantic)


def test_full_supervision_reads_the_true_instances(folder: Path) -> None:
    only(folder, "four.png")  # it takes no points from training images
    data = module(folder, supervision="full")
    with pytest.warns(UserWarning, match="true instances"):
        data.setup("fit")
    sample = data.datasets["train"][0]
    assert sample.truth.classes.tolist() == [0, 0, 1] and sample.truth.ids.unique().tolist() == [0, 1, 2, 3]


def test_points_lie_in_enlarged_images_too(folder: Path) -> None:
    sample = training_samples(folder, image_scale=2.0)[0]
    assert sample.image.shape[1:] == (2 * H, 2 * W) and sample.cues.yx[0].tolist() == [18.5, 18.5]


# ---------------------------------------------------------------- points and tags together


def only(root: Path, *files: str) -> None:
    """Leave only the points of some images."""
    edit(root / "points.json", lambda c: c.update(images=[i for i in c["images"] if i["file"] in files]))


@pytest.mark.parametrize("form", ["points.json", "points"])
def test_images_without_points_are_taught_by_their_tags(folder: Path, form: str) -> None:
    only(folder, "sub/one.png")
    for name in ("two", "größe 3"):
        (folder / "points" / f"{name}.txt").unlink()
    samples = training_samples(folder, points=form, cues_dir="cues")
    assert [samples[n].pointed for n in range(3)] == [True, False, False]
    assert samples[0].cues.scores.tolist() == [1.0] * 3
    assert samples[1].cues.scores.tolist() == [pytest.approx(0.9)] and samples[1].cues.yx.tolist() == [[16.0, 16.0]]
    without = training_samples(folder, points=form)
    assert [len(without[n].cues) for n in range(3)] == [3, 0, 0] and without[1].pointed is False


def labels_of(labels: LabeledInstances, image: int) -> tuple[list[Any], list[Any]]:
    """The instances and the peaks of one image, whatever rows they stand in."""
    instances = []
    for row in range(1, len(labels.image)):
        mask = labels.ids[image] == row
        assert int(mask.sum()) == (int(labels.area[row]) if int(labels.image[row]) == image else 0)
        if mask.any():
            center = tuple(labels.center_yx[row].tolist())
            instances.append((mask.nonzero().tolist(), int(labels.classes[row]), center, float(labels.weight[row])))
    mine = (labels.peaks.image == image) & (labels.peaks.scores > 0)
    peaks = labels.peaks.select(mine)
    return sorted(instances), sorted(zip(peaks.yx.tolist(), peaks.classes.tolist(), peaks.scores.tolist(), strict=True))


def labelled(data: FolderDataModule, names: list[str]) -> Batch:
    """A batch of some training images as they are, with labels."""
    data.setup("fit")
    samples = data.datasets["train"]
    batch = collate([samples[list(samples.split.names).index(name)] for name in names])
    return data.label(replace(batch, images=batch.images.float() / 255))


def maps_of(batch: Batch, images: slice = slice(None)) -> InstanceMaps:
    """What a network might say: centres in the middle of the second image's dog, offsets anywhere."""
    generator = torch.Generator().manual_seed(0)
    heat = torch.zeros(2, 2, H, W)
    heat[1, 1, 16, 11], heat[1, 1, 16, 20] = 0.9, 0.8
    heat[0, 0, 7, 7], heat[0, 1, 30, 36] = 0.9, 0.7
    logits = torch.randn(2, 3, H, W, generator=generator)
    offsets = 6 * torch.randn(2, 2, H, W, generator=generator)
    return InstanceMaps(logits[images], heat[images], offsets[images])


@pytest.mark.parametrize("cues_dir", ["cues", None])
def test_in_a_mixed_batch_every_image_gets_the_labels_that_it_would_get_alone(
    folder: Path, cues_dir: str | None
) -> None:
    only(folder, "sub/one.png")
    settings: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "decoder": "pyramid", "object_scale": 0.3}
    by_points = BestieModule(2, supervision="points", backbone_weights=None, **settings)
    by_tags = BestieModule(2, supervision="tags", backbone_weights=None, **settings)
    mixed = labelled(module(folder, cues_dir=cues_dir), ["sub/one", "two"])
    assert mixed.pointed.tolist() == [True, False]
    (folder / "one.txt").write_text("sub/one\n")
    with_points = labelled(module(folder, train_split="one.txt"), ["sub/one"])
    (folder / "none").mkdir()
    (folder / "none" / "two.txt").write_text("")
    with_tags = labelled(module(folder, supervision="tags", cues_dir=cues_dir or "none"), ["two"])
    assert with_points.pointed is None and with_tags.pointed is None
    of_points, of_tags = labels_of(mixed.pseudo, 0), labels_of(mixed.pseudo, 1)
    assert of_points == labels_of(with_points.pseudo, 0) and of_tags == labels_of(with_tags.pseudo, 0)
    # the two cats share a component, the dog has one of its own; all three points draw a Gaussian
    assert len(of_points[0]) == 1 and len(of_points[1]) == 3
    assert len(of_tags[0]) == len(of_tags[1]) == (1 if cues_dir else 0)

    refined = by_points.refine(maps_of(mixed), mixed)
    of_points, of_tags = labels_of(refined, 0), labels_of(refined, 1)
    assert of_points == labels_of(by_points.refine(maps_of(mixed, slice(0, 1)), with_points), 0)
    assert of_tags == labels_of(by_tags.refine(maps_of(mixed, slice(1, 2)), with_tags), 0)
    assert len(of_points[0]) == 3 and {weight for *_, weight in of_points[0]} == {1.0}
    assert {round(weight, 3) for *_, weight in of_tags[0]} == {0.9, 0.8}


def test_the_releases_recipe_needs_points_everywhere(folder: Path) -> None:
    only(folder, "sub/one.png", "größe 3.png")
    message = "points.json: no points of the training image two; with recipe: release all training images need points"
    with pytest.raises(ValueError, match=message):
        module(folder, recipe="release").setup("fit")
    (folder / "points" / "two.txt").unlink()
    with pytest.raises(ValueError, match=r"points: no points of the training image two; with recipe: release"):
        module(folder, recipe="release", points="points").setup("fit")
    module(folder, recipe="release", points="points").setup("validate")


# ---------------------------------------------------------------- errors


@pytest.mark.filterwarnings("ignore:Not weakly supervised")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": None}, "training with supervision: points needs points: give points, a .json or .csv file"),
        ({"points": None, "cues_dir": "cues"}, "training with supervision: points needs points"),
        ({"supervision": "tags"}, "training needs a folder of cues .* give cues_dir"),
        ({"semantic_dir": None}, "training needs a folder of semantic maps .* give semantic_dir"),
        ({"annotations": None, "supervision": "full"}, "the split train needs ground truth; give annotations"),
        ({"train_split": "test"}, r"tags.csv: no image of the split 'test'; expected one of train, val: add a column"),
        ({"class_names": ["cat"]}, "tags.csv: line 2: tag 'dog'; expected one of cat: correct it, or give all class_n"),
        ({"class_names": ["cat", "dog", "cat"]}, "class_names: 'cat' stands there twice"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(folder, **settings).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tags": "no.csv"}, r"no such file: .*no.csv; expected a file of tags"),
        ({"images": "pictures"}, r"no such folder: .*pictures; expected the images; give root and images"),
        ({"points": "no.json"}, r"no such file: .*no.json; expected a file of points"),
        ({"points": "nowhere"}, r"no such folder: .*nowhere; expected points NAME.txt; points is a .json or .csv file"),
        ({"semantic_dir": "nowhere"}, r"no such folder: .*nowhere; expected the training images' semantic maps"),
        ({"train_split": "no.txt"}, r"no such file: .*no.txt; expected the images of a split, one a line"),
        ({"annotations": "no.json"}, r"no such file: .*no.json; expected a COCO annotation file"),
    ],
)
def test_missing_files(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        module(folder, **settings).setup("fit")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("two\nfive.png\n", "own.txt: the image five is not in .*tags.csv; expected images of the file of tags"),
        ("\n", "own.txt: names no image; expected images of the file of tags, one a line"),
        ("two\ntwo.jpg\n", "own.txt: listed more than once: two;"),
    ],
)
def test_wrong_lists_of_a_split(folder: Path, lines: str, message: str) -> None:
    (folder / "own.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        module(folder, train_split="own.txt").setup("fit")


def test_points_of_other_images_are_an_error(folder: Path) -> None:
    only(folder, "four.png")
    with pytest.raises(ValueError, match=r"points.json: no points of any training image, such as sub/one; name images"):
        module(folder).setup("fit")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no points of any training image, such as sub/one; name images"):
        module(folder, points="empty").setup("fit")


def test_two_images_of_the_points_with_one_name(folder: Path) -> None:
    edit(folder / "points.json", lambda c: c["images"].append({"file": "two.png", "points": []}))
    with pytest.raises(ValueError, match=r"points.json: listed more than once: two;"):
        module(folder).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(width=H, height=W), r"image 'sub/one.png': 48 x 64 px .* its file is 64 x 48"),
        (lambda c: c["images"][0]["points"][1].update(x=W) or _unsize(c), r"'sub/one.png', point 2: x=64, y=9 is outs"),
        (lambda c: c["images"][0]["points"][0].update({"class": "bird"}), r"point 1: class: 'bird'; expected one of"),
    ],
)
def test_points_that_do_not_fit_their_image(folder: Path, change: Any, message: str) -> None:
    edit(folder / "points.json", change)
    with pytest.raises(ValueError, match=f"points.json: .*{message}"):
        training_samples(folder)[0]


def _unsize(content: dict[str, Any]) -> None:
    for image in content["images"]:
        del image["width"], image["height"]


def test_points_of_a_class_that_no_image_is_tagged_with(folder: Path) -> None:
    edit(folder / "points.json", lambda c: c["classes"].append("bird"))
    assert training_samples(folder)[0].cues.classes.tolist() == [0, 0, 1]
    edit(folder / "points.json", lambda c: c["images"][0]["points"][0].update({"class": "bird"}))
    with pytest.raises(ValueError, match=r"points.json: points of the class 'bird'; expected one of cat, dog"):
        module(folder).setup("fit")


def test_ground_truth_that_does_not_fit(folder: Path) -> None:
    edit(folder / "truth.json", lambda c: c["categories"][1].update(name="lion"))
    with pytest.raises(ValueError, match=r"truth.json: annotations of the category 'lion'; expected one of cat, dog"):
        module(folder).setup("validate")
    edit(folder / "truth.json", lambda c: c["categories"][1].update(name="cat"))
    edit(folder / "truth.json", lambda c: c["images"][3].update(file_name="images/four.png"))
    with pytest.raises(
        ValueError, match=r"truth.json: no image four of the split val in `images`; annotate it, or lea"
    ):
        module(folder).setup("validate")


def test_a_missing_image_is_named(folder: Path) -> None:
    (folder / "images" / "two.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no such image: .*images/two.jpg; restore it or take it out of the li"
    ):
        training_samples(folder)[1]


# ---------------------------------------------------------------- the same as the COCO module


def assert_same(one: Any, other: Any) -> None:
    """Equal, tensor by tensor and bit by bit, whatever structures they are in."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def both_modules(
    data: Path, work: Path, images: str = "images", **settings: Any
) -> tuple[COCODataModule, FolderDataModule]:
    """A COCO data set through its own module, and through the folder module from files that our command writes."""
    annotations = [str(data / f"instances_{split}.json") for split in ("train", "val")]
    points = str(work / "points.json")
    tags = ["--tags", str(work / "tags.csv")]
    assert cli.main(["points", *annotations, "--from", "coco", "--output", points, *tags]) == 0
    assert cli.main(["points", points, "--from", "json", "--output", str(work / "points")]) == 0
    for split in ("train", "val"):
        names = [image["file_name"] for image in json.loads((data / f"instances_{split}.json").read_text())["images"]]
        (work / f"{split}.txt").write_text("\n".join(names))
    settings |= {"num_workers": 0}
    coco = COCODataModule(
        str(data),
        train_images=images,
        val_images=images,
        train_annotations="instances_train.json",
        val_annotations="instances_val.json",
        cues_dir=str(work / "points"),
        **settings,
    )
    if "semantic_dir" in settings:
        settings["semantic_dir"] = str(data / settings["semantic_dir"])
    folder = FolderDataModule(
        str(work),
        images=str(data / images),
        class_names=coco.class_names,
        train_split="train.txt",
        val_split="val.txt",
        points="points.json",
        annotations=str(data / "instances_{split}.json"),
        **settings,
    )
    return coco, folder


CASES = {
    "nuclei": {"semantic_dir": "semantic", "object_scale": 0.25, "min_area": 250, "image_scale": 2.0, "dihedral": True},
    "coco_tiny": {"semantic_source": "ground_truth"},
}


@pytest.mark.filterwarnings("ignore:Not weakly supervised")
@pytest.mark.parametrize("name", CASES)
def test_the_folder_module_gives_what_the_coco_module_gives(real_data: Path, tmp_path: Path, name: str) -> None:
    """The same samples, labels and references bit by bit, so that training and scores are the same too."""
    settings = {"batch_size": 8, "crop_size": 160, "label_quality": True}
    coco, folder = both_modules(real_data / name, tmp_path, **CASES[name], **settings)
    for stage in ("fit", "test"):
        coco.setup(stage)
        folder.setup(stage)
    for stage in ("train", "test"):
        one, other = coco.datasets[stage], folder.datasets[stage]
        assert list(one.split.names) == list(other.split.names) and torch.equal(one.split.tags, other.split.tags)
        for n in range(0, len(one), 8):
            assert_same(one[n], other[n])
    loaders = [iter(data.train_dataloader()) for data in (coco, folder)]
    for _ in range(2):
        batches = [
            data.on_after_batch_transfer(next(loader), 0) for data, loader in zip((coco, folder), loaders, strict=True)
        ]
        assert_same(*batches)
        assert len(batches[0].cues) > 0 and int((batches[0].pseudo.area > 0).sum()) > 0
    evaluated = [next(iter(data.test_dataloader())) for data in (coco, folder)]
    assert_same(*evaluated)
    assert evaluated[0].references and evaluated[0].semantic_references


def test_points_of_the_nuclei_are_those_of_the_set(real_data: Path, tmp_path: Path) -> None:
    """The converter's points are those that came with the set, which were made by the same rule by others."""
    data = real_data / "nuclei"
    annotations = str(data / "instances_val.json")
    assert cli.main(["points", annotations, "--from", "coco", "--output", str(tmp_path)]) == 0
    for path in sorted(tmp_path.glob("*.txt")):
        assert path.read_text() == (data / "points" / path.name).read_text()


def test_points_of_images_that_nobody_lists_are_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "tags.csv").write_text("image,tags,split\na.png,cat;,train\nb.png,cat;,train\n")
    (tmp_path / "points.csv").write_text("image,x,y,class\na.png,3,4,cat\nbb.png,3,4,cat\n")
    data = FolderDataModule(str(tmp_path), supervision="points", points="points.csv", semantic_dir="maps")
    with pytest.warns(UserWarning, match="1 of its images are not in .*tags.csv, such as bb, and nothing is learnt"):
        data.open_split("train")
