"""Readers, samples, batches, samplers and loaders; and what must not be read."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn

from bestie_pl.data.check import CheckedImages
from bestie_pl.data.files import Packed, read_names
from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.images import open_image
from bestie_pl.data.formats.maps import read_semantic
from bestie_pl.data.formats.tags import read_tag_list
from bestie_pl.data.release import MEAN_COLOR
from bestie_pl.data.samplers import (
    EvaluationBatches,
    EvaluationSampler,
    TrainingSampler,
    repeat_factors,
    stored_size,
)
from bestie_pl.data.samples import TrainingSamples, collate
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.structures import Batch

pytestmark = pytest.mark.filterwarnings("ignore:Not weakly supervised")
TRAIN = {"train_split": "train", "num_workers": 0, "batch_size": 3, "crop_size": 48}


def fit_module(root: Path, **settings) -> VOCDataModule:
    data = VOCDataModule(str(root), **(TRAIN | {"min_area": 20} | settings))
    data.setup("fit")
    return data


def first_batch(data: VOCDataModule) -> Batch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


# ---------------------------------------------------------------- files


def test_the_size_of_a_file_is_read_by_the_decoders_of_images_alone(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "image.jpg")
    Image.new("RGB", (7, 5)).save(tmp_path / "other.jpg", format="EPS")
    assert stored_size(tmp_path / "image.jpg") == (5, 7)
    assert stored_size(tmp_path / "other.jpg") == (1, 1) == stored_size(tmp_path / "absent.jpg")


def test_packed_strings_survive_pickling():
    strings = ["a", "", "größer", "b/c"]
    packed = pickle.loads(pickle.dumps(Packed(strings)))
    assert list(packed) == strings and packed[-1] == "b/c" and packed[1:3] == ["", "größer"]
    assert list(Packed([])) == [] and list(Packed([""])) == [""]
    with pytest.raises(IndexError):
        packed[4]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_all_modes_become_rgb(tmp_path, mode):
    grey = np.tile(np.array([0, 128, 255], np.uint8), (4, 2))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "1":
        image = Image.fromarray(grey > 200)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    read = open_image(path)
    assert read.mode == "RGB"
    expected = np.where(grey > 200, 255, 0) if mode == "1" else grey
    assert np.abs(np.array(read).astype(int) - expected[..., None]).max() <= 1


def test_image_is_turned_as_exif_says_but_label_maps_are_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.new("RGB", (30, 20)).save(tmp_path / "image.png", exif=exif)
    Image.new("L", (30, 20)).save(tmp_path / "map.png", exif=exif)
    assert open_image(tmp_path / "image.png").size == (20, 30)
    assert read_semantic(tmp_path / "map.png", (20, 30), 1).shape == (20, 30)


def test_broken_images_are_named(tmp_path, monkeypatch):
    random = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "text.jpg", "empty.png"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image .*restore it"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such image: .*absent.jpg"):
        open_image(tmp_path / "absent.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(ValueError, match="floating-point"):
        open_image(tmp_path / "real.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="whole.jpg: .*exceeds limit"):
        open_image(tmp_path / "whole.jpg")


def test_semantic_map_errors(tmp_path):
    path = tmp_path / "map.png"
    Image.fromarray(np.array([[0, 1, 255], [2, 7, 0]], np.uint8)).save(path)
    assert read_semantic(path, (2, 3), 7).tolist() == [[0, 1, 255], [2, 7, 0]]
    with pytest.raises(ValueError, match=r"map.png: value 7 at y=1, x=1; expected 0 \(background\), 1..2"):
        read_semantic(path, (2, 3), 2)
    with pytest.raises(ValueError, match=r"map.png: is 3 x 2 px .* its image is 4 x 2"):
        read_semantic(path, (2, 4), 7)
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(ValueError, match="colour image .*grey or palette PNG"):
        read_semantic(path, (2, 3), 7)


def test_cues_are_read_in_yx_order(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("3 1 0 1.000\n\n2.5 0 1 0.7\n4.9 1 0 0\n")
    cues = read_cues(path, (2, 5), 2)
    assert cues.yx.tolist() == [[1, 3], [0, 2.5], [1, 4]]  # 4.9 is still the last pixel
    assert cues.classes.tolist() == [0, 1, 0]
    assert cues.scores.tolist() == pytest.approx([1, 0.7, 0])
    path.write_text("")
    assert len(read_cues(path, (2, 5), 2)) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5 1 0 1", r"a.txt line 2: x=5 is outside the 5 px wide image; expected 0 <= x < 5"),
        ("0 -1 0 1", r"line 2: y=-1 is outside the 2 px high image"),
        ("0 nan 0 1", r"line 2: y=nan is outside"),
        ("0 0 2 1", r"line 2: class 2; expected a whole number in 0..1"),
        ("0 0 0.5 1", r"line 2: class 0.5"),
        ("0 0 0 1.5", r"line 2: confidence 1.5"),
        ("0 0 0", r"line 2: found '0 0 0'; expected four numbers"),
        ("0 0 cat 1", r"line 2: found '0 0 cat 1'; expected four numbers"),
    ],
)
def test_cue_errors_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0 0 1\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_cues(path, (2, 5), 2)


def test_list_errors(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a 0 2 \nb\n\n")
    names, tags = read_tag_list(path, 3)
    assert names == ["a", "b"] and tags.tolist() == [[True, False, True], [False] * 3]
    assert read_names(path) == ["a", "b"]
    with pytest.raises(ValueError, match="list.txt line 1: found 'a 0 2'; expected .*0..1"):
        read_tag_list(path, 2)
    path.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="listed more than once: a;"):
        read_names(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no image name"):
        read_names(path)


# ---------------------------------------------------------------- batches


def test_training_batch_on_the_device(voc_folder):
    data = fit_module(voc_folder, scale_range=(1.0, 1.0), color_jitter=0, crop_size=64)  # whole images
    raw = next(iter(data.train_dataloader()))
    assert raw.images.dtype == torch.uint8 and raw.semantic.dtype == torch.uint8
    for image, semantic, (h, w) in zip(raw.images, raw.semantic, raw.sizes, strict=True):
        assert (semantic[h:] == 255).all() and (semantic[:, w:] == 255).all()
        assert (image[:, h:] == torch.tensor(MEAN_COLOR, dtype=torch.uint8).view(3, 1, 1)).all()
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.float32
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert batch.semantic.shape == (3, 64, 64) and batch.semantic.dtype == torch.uint8
    assert batch.truth is None and batch.references is None
    assert sorted(batch.components.classes[1:].tolist()) == [0, 0, 0, 1, 1, 1]
    # two touching cats form a component with two points: rejected; the dog is accepted
    assert torch.equal(batch.pseudo.ids > 0, batch.semantic == 2)
    assert len(batch.pseudo.peaks) == 9


def test_supervision_decides_cues_and_labels(voc_folder):
    tags = fit_module(voc_folder, supervision="tags").datasets["train"][0]
    assert tags.cues.yx.tolist() == [[6, 8], [25, 14]]  # 0.700 is not above the threshold
    data = fit_module(voc_folder, supervision="full", scale_range=(1.0, 1.0))
    assert len(data.datasets["train"][0].cues) == 0
    batch = first_batch(data)
    assert batch.truth is None  # nothing to measure
    labelled = batch.pseudo.ids > 0
    assert torch.equal(labelled, (batch.semantic == 1) | (batch.semantic == 2))
    assert set(batch.pseudo.classes[batch.pseudo.area > 0].tolist()) == {0, 1}


def test_cues_of_untagged_classes_are_left_out(voc_folder):
    (voc_folder / "train_cls.txt").write_text("a0 1\na1\na2 0\n")
    samples = fit_module(voc_folder).datasets["train"]
    assert [samples[n].cues.classes.tolist() for n in range(3)] == [[1], [], [0, 0]]


def test_training_opens_no_ground_truth(voc_folder):
    expected = first_batch(fit_module(voc_folder))
    val = fit_module(voc_folder)
    shutil.rmtree(voc_folder / "SegmentationObject")
    shutil.rmtree(voc_folder / "SegmentationClass")
    for supervision in ("points", "tags"):
        data = VOCDataModule(str(voc_folder), supervision=supervision, **TRAIN)
        data._add("train", lambda data=data: data._training_samples(data.open_split("train")))
        assert data.leak_notes == ()
        assert len(list(data.train_dataloader())) == 2
        if supervision == "points":
            assert torch.equal(first_batch(data).images, expected.images)
    with pytest.raises(FileNotFoundError, match="SegmentationClass"):
        val.datasets["val"][0]
    for settings in ({"supervision": "full"}, {"semantic_source": "ground_truth"}, {"label_quality": True}):
        with pytest.raises(FileNotFoundError, match="no such folder: .*Segmentation(Class|Object)"):
            fit_module(voc_folder, **settings)


def test_leaks_are_told(voc_folder):
    data = VOCDataModule(str(voc_folder), supervision="full", semantic_source="ground_truth", **TRAIN)
    assert len(data.leak_notes) == 2
    with pytest.warns(UserWarning, match="Not weakly supervised: the semantic maps"):
        data.setup("fit")
    assert fit_module(voc_folder, label_quality=True).leak_notes == ()


def test_true_semantic_maps_need_no_true_objects(voc_folder):
    shutil.rmtree(voc_folder / "WSSS_maps")
    with pytest.raises(FileNotFoundError, match="WSSS_maps; expected the training images' semantic maps"):
        fit_module(voc_folder)
    for path in (voc_folder / "SegmentationObject").glob("a[0-5].png"):
        path.unlink()
    sample = fit_module(voc_folder, semantic_source="ground_truth").datasets["train"][0]
    assert sample.semantic.unique().tolist() == [0, 1, 2, 255] and sample.truth is None


def test_label_quality_leaves_images_without_truth_out(voc_folder):
    """VOC shares masks of one training image in seven."""
    (voc_folder / "SegmentationObject" / "a1.png").unlink()
    data = fit_module(voc_folder, label_quality=True, batch_size=6)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert {n for n, known in zip(batch.names, batch.measured.tolist(), strict=True) if not known} <= {"a1"}
    metric = LabelQuality()
    metric.update(batch.truth, batch.truth, batch.measured)
    whole = metric.compute()
    assert whole["precision"] == whole["recall"] == 1 and whole["images"] == int(batch.measured.sum())
    with pytest.raises(FileNotFoundError, match="a1.png"):
        next(iter(fit_module(voc_folder, supervision="full", batch_size=6).train_dataloader()))


def test_label_quality_brings_the_truth_along(voc_folder):
    data = fit_module(voc_folder, label_quality=True, batch_size=6)
    batch = first_batch(data)
    assert batch.truth.ids.shape == (6, 48, 48) and len(batch.truth.classes) == 1 + 6 * 3
    for row in range(1, 19):
        pixels = batch.truth.ids == row
        if batch.truth.area[row] > 0:
            assert pixels.any((1, 2)).nonzero().item() == batch.truth.image[row]
            found = batch.semantic[pixels].unique().tolist()
            assert found == [int(batch.truth.classes[row]) + 1]


def test_image_scale_moves_everything_alike(voc_folder):
    plain = fit_module(voc_folder, label_quality=True).datasets["train"][0]
    double = fit_module(voc_folder, label_quality=True, image_scale=2.0).datasets["train"][0]
    assert double.image.shape == (3, 80, 120) and double.original_size == (40, 60)
    assert torch.equal(double.semantic[::2, ::2], plain.semantic)
    assert torch.equal(double.truth.ids[1::2, 1::2], plain.truth.ids)
    assert torch.equal(double.cues.yx, (plain.cues.yx + 0.5) * 2 - 0.5)
    data = fit_module(voc_folder, image_scale=2.0)
    val = data.datasets["val"][0]
    assert val.references.size == (40, 60) and val.semantic_reference.shape == (40, 60)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch.sizes[0] == (80, 120) and batch.original_sizes[0] == (40, 60)


def test_evaluation_batch(voc_folder):
    data = fit_module(voc_folder, eval_batch_size=4)
    batches = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
    assert [b.names for b in batches] == [("a0", "a1", "a2", "a3"), ("a4",)]
    batch = batches[0]
    assert batch.images.shape == (4, 3, 64, 64) and batch.images.max() <= 1
    assert batch.sizes == batch.original_sizes == ((40, 60), (50, 64), (33, 47), (64, 64))
    assert batch.semantic is None and batch.pseudo is None
    assert [r.classes.tolist() for r in batch.references] == [[0, 0, 1]] * 4
    assert [r.size for r in batch.references] == list(batch.original_sizes)
    assert batches[1].images.shape == (1, 3, 64, 64)  # 45 px padded to a multiple of 32


def test_points_are_optional_in_evaluation(voc_folder):
    (voc_folder / "Center_points" / "a1.txt").unlink()
    data = VOCDataModule(str(voc_folder), num_workers=0)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert torch.bincount(batch.cues.image, minlength=4).tolist() == [3, 0, 3, 3]
    with pytest.raises(FileNotFoundError, match="a1.txt"):
        list(fit_module(voc_folder).train_dataloader())


def test_release_evaluates_one_by_one_at_a_multiple_of_32(voc_folder):
    data = fit_module(voc_folder, recipe="release")
    batch = next(iter(data.val_dataloader()))
    assert batch.images.shape == (1, 3, 64, 64) and batch.sizes == ((64, 64),) and batch.original_sizes == ((40, 60),)
    assert batch.cues.yx[0].tolist() == pytest.approx([6.5 * 64 / 40 - 0.5, 7.5 * 64 / 60 - 0.5])


def test_release_recipe_augments_in_the_worker(voc_folder):
    data = fit_module(voc_folder, recipe="release", label_quality=True)
    samples = data.datasets["train"]
    first, again, next_epoch = samples[2], samples[2], samples[2 + len(samples)]
    assert first.image.shape == (3, 48, 48) and first.image.dtype == torch.uint8
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, next_epoch.image)
    assert torch.equal(first.cues.yx, first.cues.yx.trunc())
    assert not (first.semantic[0] == 255).any() or (first.semantic == 255).float().mean() < 0.2  # padded with 0
    batch = first_batch(data)
    assert batch.images.dtype == torch.float32 and batch.pseudo is not None
    assert ((batch.truth.ids > 0) <= (batch.semantic > 0)).all()


def test_predict_reads_any_folder_of_images(voc_folder, tmp_path):
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    Image.new("L", (20, 30)).save(folder / "x.png")
    Image.new("RGB", (40, 10)).save(tmp_path / "mine" / "y.JPG", format="jpeg")
    data = VOCDataModule(str(voc_folder), predict_images=str(tmp_path / "mine"), num_workers=0)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch.names == ("deep/x", "y") and batch.references is None and not batch.tags.any()
    data = VOCDataModule(str(voc_folder), predict_images=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none; expected images to predict"):
        data.setup("predict")


@pytest.mark.parametrize(
    "settings", [{"scale_range": (2.0, 1.0)}, {"image_scale": 0}, {"batch_size": 0}, {"cue_threshold": 1.0}]
)
def test_bad_settings_are_refused_at_once(voc_folder, settings):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(settings))}"):
        VOCDataModule(str(voc_folder), **settings)


# ---------------------------------------------------------------- samplers and loaders


@pytest.mark.parametrize(("count", "world"), [(5, 2), (7, 3), (1, 4), (6, 1)])
def test_evaluation_visits_each_image_once(count, world):
    parts = [EvaluationSampler(range(count), world, rank) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert [len(part) for part in parts] == [len(list(part)) for part in parts]


def test_training_is_shuffled_anew_and_divided_among_processes():
    orders = {}
    for epoch in (0, 1):
        parts = [TrainingSampler(range(10), 2, rank, seed=3) for rank in range(2)]
        for part in parts:
            part.set_epoch(epoch)
        numbers = [list(part) for part in parts]
        assert sorted(n for part in numbers for n in part) == [epoch * 10 + i for i in range(10)]
        orders[epoch] = [n % 10 for n in numbers[0]]
        assert list(parts[0]) == numbers[0]
    assert orders[0] != orders[1]


def test_images_of_rare_classes_are_shown_as_often_as_they_are_due():
    tags = torch.zeros(40, 3, dtype=torch.bool)
    tags[:, 0] = True
    tags[7, 1] = tags[[7, 8, 9, 10], 2] = True
    repeats = repeat_factors(tags, 0.4)
    # due by their rarest class: 0.4 against 1 and 4 of 40 images
    assert repeats.tolist() == pytest.approx([1] * 7 + [4, 2, 2, 2] + [1] * 29)
    repeats[0] = 1.25
    shown = np.zeros(40)
    for epoch in range(40):
        parts = [TrainingSampler(range(40), 2, rank, seed=3, repeats=repeats) for rank in range(2)]
        for part in parts:
            part.set_epoch(epoch)
        items = [item for part in parts for item in part]
        # the last place of the first process is filled up with a second item
        assert len(items) == 48 and len(set(items)) >= 47
        counts = np.bincount([item % 40 for item in set(items)], minlength=40)
        assert (counts >= 1).all()
        shown += counts
    assert shown / 40 == pytest.approx(repeats.numpy(), abs=0.15)
    assert shown[0] / 40 > 1.1


def test_rare_classes_are_repeated_where_the_settings_say_so(voc_folder):
    lengths = []
    for threshold in (0.0, 0.9):
        data = fit_module(voc_folder, repeat_threshold=threshold)
        tags = data.datasets["train"].split.tags
        tags[1:, 0], tags[:, 1] = False, True
        lengths.append(len(data.train_dataloader().sampler))
    # one of six images, due sqrt(0.9 * 6) times
    assert lengths == [6, 8]


def test_too_few_images_for_a_batch(voc_folder):
    with pytest.raises(ValueError, match="6 training images per process make no batch of 7"):
        fit_module(voc_folder, batch_size=7).train_dataloader()


def test_a_found_batch_size_ends_with_the_images(voc_folder):
    """Lightning's finder doubles it."""
    data = fit_module(voc_folder)
    for size, used in ((4, 4), (8, 6)):
        data.batch_size = size
        assert len(next(iter(data.train_dataloader()))) == used == data.batch_size


def test_recipe_nearest_differs_from_the_papers_in_crowded_components_only(voc_folder):
    """The same crops of the same images; both cats of a component are labelled where the paper labels none."""
    found = {}
    for recipe in ("paper", "nearest"):
        data = fit_module(voc_folder, recipe=recipe, supervision="points")
        found[recipe] = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    paper, nearest = found["paper"], found["nearest"]
    assert torch.equal(paper.images, nearest.images) and torch.equal(paper.semantic, nearest.semantic)
    labelled = paper.pseudo.ids > 0
    assert torch.equal(paper.pseudo.ids[labelled], nearest.pseudo.ids[labelled])
    assert int((nearest.pseudo.ids > 0).sum()) > int(labelled.sum())


def test_augmentation_follows_from_the_batch_number(voc_folder):
    data = fit_module(voc_folder)
    raw = next(iter(data.train_dataloader()))
    batches = [data.on_after_batch_transfer(raw, 0).images for _ in range(3)]
    assert not torch.equal(batches[0], batches[1])
    resumed = fit_module(voc_folder)
    resumed.batches_augmented = 2
    assert torch.equal(resumed.on_after_batch_transfer(raw, 0).images, batches[2])


def test_a_training_that_goes_on_with_other_images_says_so(voc_folder):
    data = fit_module(voc_folder)
    state = pickle.loads(pickle.dumps(data.state_dict()))
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.trainer.state.fn = TrainerFn.FITTING
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load_state_dict(state)
    state["images_a_step"] = 2
    with pytest.warns(UserWarning, match="images_a_step was 2, is 3"):
        data.load_state_dict(state)


def test_training_goes_on_anywhere_in_an_epoch():
    whole = TrainingSampler(range(10), 2, 1, seed=3)
    whole.set_epoch(4)
    rest = TrainingSampler(range(10), 2, 1, seed=3, position=lambda: (4, 3))
    assert list(rest) == list(whole)[3:] and len(rest) == len(whole) == 5


@given(sizes=st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), max_size=20), batch_size=st.integers(1, 6))
def test_evaluated_batches_hold_each_image_once_and_little_padding(sizes, batch_size):
    batches = list(EvaluationBatches([], batch_size, images=range(len(sizes)), size_of=sizes.__getitem__))
    assert [image for batch in batches for image in batch] == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        height, width = (max(side) for side in zip(*(sizes[image] for image in batch), strict=True))
        area = sum(sizes[image][0] * sizes[image][1] for image in batch)
        assert len(batch) == 1 or height * width * len(batch) <= max(2**20, 1.5 * area)


def test_one_large_image_among_small_ones_is_seen_alone(voc_folder):
    large = voc_folder / "JPEGImages" / "a2.jpg"
    Image.open(large).resize((800, 700)).save(large)
    data = VOCDataModule(str(voc_folder), **(TRAIN | {"eval_batch_size": 6}))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.names for batch in batches] == [("a0", "a1"), ("a2",), ("a3", "a4")]
    assert [batch.images.shape[-1] for batch in batches] == [64, 800, 64]


def test_a_process_without_images_has_a_batch_of_none(voc_folder):
    data = VOCDataModule(str(voc_folder), **TRAIN)
    data.setup("validate")
    data.trainer = SimpleNamespace(world_size=7, global_rank=6, training=False)
    (batch,) = data.val_dataloader()
    assert len(batch) == 0 and batch.references == () and batch.semantic_references == ()
    assert len(data.on_after_batch_transfer(batch, 0)) == 0
    data.setup("predict")
    assert list(data.predict_dataloader()) == []  # nobody waits for anybody


class Recorder(pl.LightningModule):
    """Remembers the names that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[str]] = {"fit": [], "val": [], "predict": []}

    def training_step(self, batch: Batch) -> torch.Tensor:
        assert batch.pseudo is not None and batch.images.dtype == torch.float32
        self.seen["fit"] += [f"{self.current_epoch}:{name}" for name in batch.names]
        return self.weight.sum()

    def validation_step(self, batch: Batch) -> None:
        assert batch.references is not None and batch.images.max() <= 1
        self.seen["val"] += batch.names

    def predict_step(self, batch: Batch) -> None:
        assert batch.references is None
        self.seen["predict"] += batch.names

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_runs_with_worker_processes(voc_folder, tmp_path):
    data = VOCDataModule(str(voc_folder), **(TRAIN | {"num_workers": 1}))
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    trainer.predict(module, data)
    epochs = [[n[2:] for n in module.seen["fit"] if n[0] == str(e)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [f"a{n}" for n in range(6)] and epochs[0] != epochs[1]
    assert module.seen["val"] == [f"a{n}" for n in range(5)] * 2
    assert module.seen["predict"] == [f"a{n}" for n in range(5)]
    assert data.batches_augmented == 4


@pytest.mark.parametrize("stage", ["train", "val"])
def test_datasets_can_be_sent_to_other_processes(voc_folder, stage):
    dataset = fit_module(voc_folder, label_quality=True).datasets[stage]
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[4].image, dataset[4].image) and sent[4].name == "a4"


def test_workers_need_neither_lightning_nor_kornia():
    code = "import sys, bestie_pl.data.samples; print([m for m in ('pytorch_lightning', 'kornia') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_batch_can_be_split_across_images(voc_folder):
    """Images of one batch do not influence each other's labels."""
    data = fit_module(voc_folder, recipe="release", label_quality=True)
    samples = [data.datasets["train"][n] for n in range(3)]
    together = data.on_after_batch_transfer(collate(samples), 0)
    for n, sample in enumerate(samples):
        alone = data.on_after_batch_transfer(collate([sample]), 0)
        assert torch.equal(alone.images[0], together.images[n])
        assert torch.equal(alone.pseudo.ids[0] > 0, together.pseudo.ids[n] > 0)
        assert torch.equal(alone.truth.area[1:], together.truth.area[together.truth.image == n][n == 0 :])


def test_a_second_training_reads_what_it_needs(voc_folder: Path) -> None:
    """The first learns no instances, and reads no cues."""
    data = VOCDataModule(str(voc_folder), train_split="train", num_workers=0, supervision="points")
    for reads in (False, True):
        module = SimpleNamespace(reads_instances=reads)
        data.trainer = SimpleNamespace(lightning_module=module, limit_val_batches=0)  # type: ignore[assignment]
        data.setup("fit")
        samples = data.datasets["train"]
        assert isinstance(samples, TrainingSamples) and samples.read_cues is reads
        assert bool(len(samples[0].cues)) is reads


def test_images_without_truth_are_left_out_of_the_measure(voc_folder: Path) -> None:
    (voc_folder / "SegmentationObject/a1.png").unlink()
    given: dict[str, Any] = {"train_split": "train", "num_workers": 0, "predict_split": "train", "eval_batch_size": 3}
    data = VOCDataModule(str(voc_folder), **given, label_quality=True, supervision="points")
    data.setup("predict")
    batches = list(data.predict_dataloader())
    measured = {
        name: batch.measured is None or bool(batch.measured[b])
        for batch in batches
        for b, name in enumerate(batch.names)
    }
    assert measured == {f"a{n}": n != 1 for n in range(6)}
    for batch in batches:
        assert len(batch.references) == len(batch) == len(batch.semantic_references)
    data.setup("fit")
    for stage in ("train", "predict"):
        facts = CheckedImages(data.datasets[stage], data.class_names, data.geometry.min_area)[1]
        assert facts.problems == []
    data = VOCDataModule(str(voc_folder), **given, val_split="train")
    data.setup("validate")
    with pytest.raises(FileNotFoundError, match="a1.png"):
        list(data.val_dataloader())


def test_older_checkpoints_say_less(voc_folder: Path) -> None:
    VOCDataModule(str(voc_folder)).load_state_dict({"images_a_step": 8, "seed": 0})
