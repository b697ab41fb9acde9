"""The VOC layout: lists, tags from four sources, and objects with their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from bestie_pl.data.voc import VOC_CLASSES, VOCDataModule


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
    with pytest.raises(ValueError, match=r"classes.txt: expected one class name a line, each once"):
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
        FileNotFoundError, match=r"no list of the split 'train_aug': neither .*train_aug.txt nor .*_cls"
    ):
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
