"""The VOC layout: lists, tags from four sources, and objects with their classes."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from bestie_pl.data.files import Packed
from bestie_pl.data.formats.truth import VOCTruth
from bestie_pl.data.samples import collate
from bestie_pl.data.voc import VOC_CLASSES, VOCDataModule
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.structures import Instances


def tags_of(data: VOCDataModule) -> list[list[int]]:
    data.setup("fit")
    return [row.nonzero().flatten().tolist() for row in data.datasets["train"].split.tags]


def test_classes_are_known_before_setup(voc_folder, tmp_path):
    data = VOCDataModule(str(voc_folder), object_scale=0.5, min_area=80, recipe="release")
    assert data.class_names == ("cat", "dog") and data.num_classes == 2
    assert (data.supervision, data.recipe, data.object_scale, data.min_area) == ("points", "release", 0.5, 80)
    assert data.geometry.min_area == 20
    assert VOCDataModule(str(tmp_path)).class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert VOCDataModule(str(voc_folder), class_names=["a", "b", "c"]).num_classes == 3
    (voc_folder / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match=r"classes.txt: 'cat' stands there twice"):
        VOCDataModule(str(voc_folder))


def test_default_folders_follow_the_supervision(voc_folder):
    assert VOCDataModule(str(voc_folder), supervision="tags").cues_dir == voc_folder / "Peak_points"
    assert VOCDataModule(str(voc_folder), supervision="points").cues_dir == voc_folder / "Center_points"
    assert VOCDataModule(str(voc_folder), cues_dir="mine").cues_dir == voc_folder / "mine"


def test_split_list_of_voc_goes_before_the_release_list(voc_folder):
    folder = voc_folder / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("a3\na1\n")
    data = VOCDataModule(str(voc_folder), train_split="train")
    data.setup("fit")
    assert list(data.datasets["train"].split.names) == ["a3", "a1"]
    (folder / "train.txt").write_text("a3\nb9\n")
    with pytest.raises(ValueError, match="train_cls.txt: the image b9 of the split is missing"):
        VOCDataModule(str(voc_folder), train_split="train").setup("fit")
    with pytest.raises(
        FileNotFoundError, match=r"no list of the split 'mine': neither .*/mine.txt nor .*/mine_cls.txt"
    ):
        VOCDataModule(str(voc_folder), train_split="mine").setup("fit")
    (voc_folder / "train_cls.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither .*/train_aug.txt nor .*/train_aug_cls.txt exists"):
        VOCDataModule(str(voc_folder)).setup("fit")


def test_tags_from_the_four_sources(voc_folder):
    segmentation, main = voc_folder / "ImageSets" / "Segmentation", voc_folder / "ImageSets" / "Main"
    annotations = voc_folder / "Annotations"
    segmentation.mkdir(parents=True)
    (segmentation / "train.txt").write_text("a0\na1\n")
    (voc_folder / "train_cls.txt").write_text("a0 1\na1\n")

    def read() -> list[list[int]]:
        return tags_of(VOCDataModule(str(voc_folder), train_split="train"))

    assert read() == [[1], []]
    (voc_folder / "train_cls.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no tags of the split 'train'"):
        read()
    annotations.mkdir()
    difficult = "<object><name>dog</name><difficult>1</difficult></object>"
    (annotations / "a0.xml").write_text(f"<annotation><object><name>cat</name></object>{difficult}</annotation>")
    (annotations / "a1.xml").write_text("<annotation/>")
    assert read() == [[0, 1], []]  # difficult objects count
    (annotations / "a1.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
    with pytest.raises(ValueError, match=r"a1.xml: unknown class 'cow'; expected one of cat, dog"):
        read()
    (annotations / "a1.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"a1.xml: is no XML"):
        read()
    (annotations / "a1.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"a1.xml"):
        read()
    main.mkdir()
    (main / "cat_train.txt").write_text("a0 -1\na1  0\n")
    (main / "dog_train.txt").write_text("a0  1\na1 -1\n")
    assert read() == [[1], [0]]
    (main / "dog_train.txt").write_text("a0 yes\na1 -1\n")
    with pytest.raises(
        ValueError, match=r"dog_train.txt line 1: found 'a0 yes'; expected an image name and 1, 0 or -1"
    ):
        read()


def test_splits_of_voc_2012_by_their_files(voc_folder):
    """``train`` (1,464 images) and ``val`` (1,449) are VOC's lists, ``train_aug`` (10,582) comes with the release."""
    lists = voc_folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a1\na4\n")
    (lists / "val.txt").write_text("a5\na0\n")
    (voc_folder / "val_cls.txt").write_text("a0 0\na5 1\n")
    (voc_folder / "train_cls.txt").write_text("a4 1\na2 0\na1 0 1\na3\n")

    def split(name: str) -> tuple[list[str], list[list[int]]]:
        opened = VOCDataModule(str(voc_folder), predict_split=name).open_split("predict")
        return list(opened.names), [row.nonzero().flatten().tolist() for row in opened.tags]

    assert split("train") == (["a1", "a4"], [[0, 1], [1]])  # tags from the longer list
    assert split("val") == (["a5", "a0"], [[1], [0]])
    whole = ["a4", "a2", "a1", "a3"], [[1], [0], [0, 1], []]
    assert split("train_aug") == whole
    # who made the list of a split for himself means that one
    (voc_folder / "train_aug_cls.txt").write_text("a3 1\n")
    assert split("train_aug") == (["a3"], [[1]])
    (lists / "train_aug.txt").write_text("a4\na1\n")
    with pytest.raises(ValueError, match="train_aug_cls.txt: the image a4 of the split is missing"):
        split("train_aug")
    (voc_folder / "train_aug_cls.txt").unlink()
    assert split("train_aug") == (["a4", "a1"], [[1], [0, 1]])


def test_difficult_objects_are_objects(voc_folder):
    """VOC's detection task leaves them out; the segmentation task has no such flag."""
    objects = "".join(f"<object><name>{name}</name><difficult>1</difficult></object>" for name in ("cat", "cat", "dog"))
    (voc_folder / "Annotations").mkdir()
    for n in range(5):
        (voc_folder / "Annotations" / f"a{n}.xml").write_text(f"<annotation>{objects}</annotation>")
    (voc_folder / "val_cls.txt").rename(voc_folder / "val.txt")
    (voc_folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc_folder / "val.txt").rename(voc_folder / "ImageSets" / "Segmentation" / "val.txt")
    data = VOCDataModule(str(voc_folder))
    data.setup("validate")
    sample = data.datasets["val"][0]
    assert sample.tags.tolist() == [True, True]
    assert sample.references.classes.tolist() == [0, 0, 1] and sample.references.crowd is None


def test_borders_belong_to_no_object(voc_folder):
    """A mask that covers the border around a cat of 10 x 10 px has 12 x 12, and the overlap 100 / 144."""
    size = (40, 60)
    objects, inside = np.full(size, 0, np.uint8), np.full(size, 0, np.uint8)
    objects[4:16, 4:16] = 255
    objects[5:15, 5:15] = inside[5:15, 5:15] = 1
    for folder in ("SegmentationObject", "SegmentationClass"):
        Image.fromarray(objects).save(voc_folder / folder / "a0.png")
    data = VOCDataModule(str(voc_folder))
    data.setup("validate")
    sample = data.datasets["val"][0]

    def scores(mask: np.ndarray) -> dict[str, float]:
        found = Instances((rle.encode(np.asfortranarray(mask)),), torch.tensor([0]), torch.tensor([0.9]), size)
        metric = VOCInstanceAP(2)
        metric.update([found], [sample.references], ["a0"])
        result = metric.compute()
        return {name: float(result[name]) for name in ("map50", "map70")}

    assert scores(inside) == {"map50": 1, "map70": 1}
    assert scores((objects > 0).astype(np.uint8)) == {"map50": 1, "map70": 0}

    # mean IoU does not see the border
    semantic = SemanticIoU(2)
    semantic.update(torch.from_numpy((objects > 0).astype(np.uint8)), sample.semantic_reference)
    assert semantic.compute()["per_class"][:2].tolist() == [1, 1]


def test_borders_teach_nothing_and_separate_regions(voc_folder):
    values = np.zeros((40, 60), np.uint8)
    values[5:25, 5:16] = 1
    values[5:25, 10] = 255
    Image.fromarray(values).save(voc_folder / "WSSS_maps" / "a0.png")
    (voc_folder / "Center_points" / "a0.txt").write_text("7 10 0 1\n13 10 0 1\n")
    (voc_folder / "train_cls.txt").write_text("a0 0\n")
    data = VOCDataModule(str(voc_folder), train_split="train", crop_size=200, scale_range=(1, 1), num_workers=0)
    data.setup("fit")
    batch = data.on_after_batch_transfer(collate([data.datasets["train"][0]]), 0)
    assert sorted(batch.pseudo.area[batch.pseudo.area > 0].tolist()) == [100, 100]
    assert int((batch.semantic != 255).sum()) == 40 * 60 - 20


def test_objects_and_their_classes(voc_folder):
    data = VOCDataModule(str(voc_folder))
    data.setup("validate")
    sample = data.datasets["val"][0]
    assert sample.references.classes.tolist() == [0, 0, 1] and sample.references.scores.tolist() == [1, 1, 1]
    masks = rle.decode(list(sample.references.masks))
    assert masks.shape == (40, 60, 3) and masks.sum((0, 1)).tolist() == [100, 100, 200]
    assert masks[2:12, 12:22, 1].all()
    assert (sample.semantic_reference[30] == 255).all()
    assert sample.tags.tolist() == [True, True]

    # an object over several classes has the smallest, void and background do not count
    path = voc_folder / "SegmentationObject" / "a0.png"
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(path)
    assert data.datasets["val"][0].references.classes.tolist() == [0]
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(path)
    nothing = data.datasets["val"][0].references
    assert len(nothing) == 0 and nothing.size == (40, 60)
    below = np.zeros((40, 60), np.uint8)
    below[35:38] = 4
    Image.fromarray(below).save(path)
    with pytest.raises(ValueError, match=r"a0.png: object 4 lies on background alone in .*SegmentationClass"):
        data.datasets["val"][0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"SegmentationObject/a0.png"):
        data.datasets["val"][0]


def test_truth_in_files_whose_names_look_the_same_is_known(tmp_path):
    """A Mac decomposes letters."""
    stored, listed = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    for folder in ("classes", "objects"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / folder / f"{stored}.png")
    truth = VOCTruth(Packed([listed, "other"]), tmp_path / "classes", tmp_path / "objects", 1)
    assert truth.known(0) and not truth.known(1) and len(truth(0, (4, 4)).instances) == 1


def test_missing_folders_are_named(voc_folder, tmp_path):
    (tmp_path / "x_cls.txt").write_text("a 0\n")
    with pytest.raises(
        FileNotFoundError, match="no such folder: .*JPEGImages; .*root is the folder that holds JPEGImages"
    ):
        VOCDataModule(str(tmp_path), val_split="x").setup("validate")
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere; .*semantic maps"):
        VOCDataModule(str(voc_folder), train_split="train", semantic_dir="nowhere").setup("fit")
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere; .*points"):
        VOCDataModule(str(voc_folder), train_split="train", cues_dir="nowhere").setup("fit")


def test_predict_split_needs_only_images(voc_folder):
    data = VOCDataModule(str(voc_folder), predict_split="train", num_workers=0)
    for folder in ("SegmentationClass", "SegmentationObject", "WSSS_maps", "Center_points"):
        (voc_folder / folder).rename(voc_folder / f"no_{folder}")
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [name for batch in batches for name in batch.names] == [f"a{n}" for n in range(6)]
    assert all(batch.references is None and len(batch.cues) == 0 for batch in batches)


def test_real_photographs(real_data):
    data = VOCDataModule(str(real_data / "voc_small"), val_split="val_instances", num_workers=0, eval_batch_size=2)
    data.setup("validate")
    samples = data.datasets["val"]
    assert len(samples) == 220 and samples.split.tags.shape == (220, 20)
    for n in range(0, 220, 15):
        sample = samples[n]
        assert len(sample.references) > 0
        # tags (of the annotation files) are the classes of the objects
        assert set(sample.references.classes.tolist()) <= set(sample.tags.nonzero().flatten().tolist())
        assert sample.references.size == tuple(sample.image.shape[1:]) == tuple(sample.semantic_reference.shape)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert all(side % 32 == 0 for side in batch.images.shape[2:])


def test_tags_of_real_photographs_agree_between_sources(real_data):
    root = real_data / "voc_small"
    data = VOCDataModule(str(root), predict_split="train")
    listed = data.open_split("predict").tags
    assert listed.shape == (800, 20)
    columns = [(root / "ImageSets" / "Main" / f"{name}_train.txt").read_text().split()[1::2] for name in VOC_CLASSES]
    assert torch.equal(listed, torch.tensor([[flag != "-1" for flag in column] for column in columns]).T)
