from __future__ import annotations

import contextlib
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from bestie_pl.metrics import COCOInstanceAP, VOCInstanceAP
from bestie_pl.ops.masks import decode
from bestie_pl.structures import Instances


def filled(metric, images):
    for name, (predictions, references) in images.items():
        metric.update([predictions], [references], [name])
    return metric


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True)


def reference_scores(truth: dict, found: list[dict]) -> dict:
    """pycocotools as everybody calls it, and again at the two overlaps that it leaves out; AP of each category."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        predictions = coco.loadRes(found)
        evaluation = COCOeval(coco, predictions, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        others = COCOeval(coco, predictions, "segm")
        others.params.iouThrs = np.array([0.25, 0.7])
        others.evaluate()
        others.accumulate()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    scores = {name: mean_of([value]) for name, value in zip(names, evaluation.stats[:6], strict=True)}
    for i, name in enumerate(("ap25", "ap70")):
        scores[name] = mean_of(others.eval["precision"][i, :, :, 0, -1])
    return scores | {"per_class": [mean_of(p) for p in evaluation.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1)]}


def mean_of(precision) -> float:
    """Of what is not -1, which stands for nothing."""
    there = np.asarray(precision)
    return float(there[there > -1].mean()) if (there > -1).any() else math.nan


def assert_agrees(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(result[key], value, rtol=0, atol=1e-6, equal_nan=True, err_msg=key)


def coco_form(images: dict[str, tuple[Instances, Instances]], classes: int) -> tuple[dict, list[dict]]:
    rows, annotations, found = [], [], []
    for number, (predictions, references) in enumerate(images.values(), 1):
        rows.append({"id": number, "height": references.size[0], "width": references.size[1]})
        for i, mask in enumerate(references.masks):
            crowd = references.crowd is not None and bool(references.crowd[i])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(references.classes[i]) + 1,
                    "segmentation": mask,
                    "area": int(decode(references)[i].sum()),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(crowd),
                }
            )
        for i, mask in enumerate(predictions.masks):
            category, score = int(predictions.classes[i]) + 1, float(predictions.scores[i])
            found.append({"image_id": number, "category_id": category, "segmentation": dict(mask), "score": score})
    categories = [{"id": c} for c in range(1, classes + 1)]
    return {"images": rows, "annotations": annotations, "categories": categories}, found


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pycocotools_on_random_images(random_images, seed, crowd) -> None:
    images = random_images(seed, 20, crowd=crowd)
    expected = reference_scores(*coco_form(images, 4))
    result = filled(COCOInstanceAP(4), images).compute()
    assert_agrees(result, expected)
    assert 0 < result["ap"] < 1
    assert math.isnan(result["per_class"][3])  # a class that no image holds


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_pycocotools_on_hard_images(hard_images, seed, crowd) -> None:
    images = hard_images(seed, crowd=crowd)
    expected = reference_scores(*coco_form(images, 5))
    result = filled(COCOInstanceAP(5), images).compute()
    assert_agrees(result, expected)
    assert 0 < expected["ap"] < expected["ap25"] < 1
    # with crowds, all large objects may be some
    assert crowd or not any(math.isnan(expected[f"ap_{size}"]) for size in ("small", "medium", "large"))
    assert result["per_class"][3:].isnan().all()


def test_another_overlap_than_voc(instances) -> None:
    """Two objects that overlap, and two predictions of the first of them: COCO allows a second choice, VOC does not."""
    row = np.arange(10)
    first, second = row < 6, (row >= 3) & (row < 9)
    predictions = instances(np.array([[first], [first]]), [0, 0], [0.9, 0.8])
    references = instances(np.array([[first], [second]]), [0, 0])
    scores = []
    for metric in (COCOInstanceAP(1), VOCInstanceAP(1)):
        metric.update([predictions], [references], ["a"])
        scores.append(metric.compute())
    assert scores[0]["ap25"] == 1 and scores[1]["map25"] == 0.5
    # half of the recalls 0, 0.01, ..., 1 are reached: 51 of 101
    assert scores[0]["ap50"] == pytest.approx(51 / 101) and scores[1]["map50"] == 0.5


def test_agrees_with_pycocotools_on_photographs(real_data, instances) -> None:
    truth = json.loads((real_data / "coco_tiny/instances_val.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    categories = sorted(coco.cats)
    rng = np.random.default_rng(0)
    images, found, crowds = {}, [], 0
    for number in sorted(coco.imgs):
        annotations = coco.imgToAnns[number]
        size = (coco.imgs[number]["height"], coco.imgs[number]["width"])
        masks = np.array([coco.annToMask(a) for a in annotations]).reshape(-1, *size)
        labels = np.array([categories.index(a["category_id"]) for a in annotations], dtype=int)
        crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
        crowds += crowd.sum()
        chosen = np.flatnonzero(rng.random(len(masks)) < 0.8)
        moved = np.array([np.roll(masks[i], rng.integers(-4, 5, 2), (0, 1)) for i in chosen]).reshape(-1, *size)
        guess = np.where(rng.random(len(chosen)) < 0.9, labels[chosen], rng.integers(0, 80, len(chosen)))
        predictions = instances(moved, guess, rng.integers(0, 32, len(chosen)) / 32)
        area = [a["area"] for a in annotations]  # of the polygons: not always the pixels of the mask
        images[f"{number:012}"] = (predictions, instances(masks, labels, crowd=crowd, area=area))
        found += [
            {"image_id": number, "category_id": categories[c], "segmentation": dict(mask), "score": score}
            for c, mask, score in zip(guess, predictions.masks, predictions.scores.tolist(), strict=True)
        ]
    assert crowds == 3
    result = filled(COCOInstanceAP(80), images).compute()
    assert_agrees(result, reference_scores(truth, found))
    assert result["ap"] > 0.2
    assert result["per_class"].isnan().sum() == 80 - 74


def test_only_the_surest_hundred_count(instances) -> None:
    masks = np.zeros((101, 4, 26))
    for i, mask in enumerate(masks):
        mask[i % 4, i // 4] = 1
    metric = COCOInstanceAP(1)
    metric.update([instances(masks, [0] * 101, np.linspace(1, 0.5, 101))], [instances(masks[100:], [0])], ["a"])
    assert metric.compute()["ap"] == 0


def test_the_annotation_says_how_large_an_object_is(instances) -> None:
    """A mask of 1023 pixels is small; COCO's polygon may say a little more."""
    mask = np.ones((1, 31, 33))
    for area, small, medium in ((None, 1, math.nan), ([1024.5], math.nan, 1)):
        metric = COCOInstanceAP(1)
        metric.update([instances(mask, [0], [0.5])], [instances(mask, [0], area=area)], ["a"])
        scores = metric.compute()
        np.testing.assert_equal([float(scores["ap_small"]), float(scores["ap_medium"])], [small, medium])


def test_one_class_keeps_its_axis(instances) -> None:
    full = np.ones((1, 2, 2))
    metric = COCOInstanceAP(1)
    metric.update([instances(full, [0], [0.5])], [instances(full, [0])], ["a"])
    assert metric.compute()["per_class"].tolist() == [1.0]


def test_images_without_predictions_or_objects(instances) -> None:
    none, full = instances(np.zeros((0, 2, 2)), []), instances(np.ones((1, 2, 2)), [0], [0.5])
    metric = COCOInstanceAP(2)
    metric.update([none], [none], ["a"])
    assert math.isnan(metric.compute()["ap"])
    assert metric.compute()["per_class"].isnan().all()
    metric.update([none], [full], ["b"])
    assert metric.compute()["ap"] == 0
    metric.update([full], [none], ["c"])
    np.testing.assert_array_equal(metric.compute()["per_class"], [0, np.nan])


def test_before_any_image() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(COCOInstanceAP(2).compute()["ap50"])


def test_says_nothing(random_images, capsys) -> None:
    filled(COCOInstanceAP(4), random_images(0, 3)).compute()
    assert capsys.readouterr().out == ""


def test_an_image_counts_once(random_images) -> None:
    images = random_images(1, 5)
    twice = filled(filled(COCOInstanceAP(4), images), dict(reversed(images.items())))
    assert_same(twice.compute(), filled(COCOInstanceAP(4), images).compute())


@pytest.mark.parametrize("shares", [("012", "30"), ("", "0123"), ("1", "", "023")])
def test_processes_give_the_result_of_one(random_images, in_processes, shares) -> None:
    images = random_images(2, 4, crowd=True)
    names = list(images)
    parts = [{names[int(i)]: images[names[int(i)]] for i in share} for share in shares]
    expected = filled(COCOInstanceAP(4), images).compute()
    for result in in_processes(lambda rank: filled(COCOInstanceAP(4), parts[rank]).compute(), len(parts)):
        assert_same(result, expected)


def test_pickle_clone_reset_and_move(random_images) -> None:
    images = random_images(3, 6)
    metric = filled(COCOInstanceAP(4), images)
    expected = metric.compute()
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), nn.ModuleList([metric]).to("cpu")[0]):
        assert_same(copy.compute(), expected)
    metric.reset()
    assert metric.records == []
    assert_same(filled(metric, images).compute(), expected)
