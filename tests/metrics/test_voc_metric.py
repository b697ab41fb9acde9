from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from bestie_pl.metrics import VOCInstanceAP
from bestie_pl.ops.masks import decode

THRESHOLDS = (0.25, 0.5, 0.7, 0.75)
CASES = (
    [f"r{i}" for i in range(6)]
    + [f"exact_iou_{t}" for t in (25, 50, 70, 75)]
    + [
        "duplicate_on_one_gt",
        "best_gt_taken_even_if_already_matched",
        "empty_pred_mask_placeholder",
        "placeholder_hurts_when_scores_zero",
        "no_predictions_at_all",
        "class_predicted_but_absent",
        "empty_gt_mask_and_empty_pred_is_a_match_nan_iou",
        "fp_between_tps",
        "tie_tp_and_fp_across_images",
        "tie_within_image",
    ]
)


def filled(metric, images):
    for name, (predictions, references) in images.items():
        metric.update([predictions], [references], [name])
    return metric


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True)


def one(instances, predicted, truth, scores):
    """Score of one image of 1 x 10 pixels; masks as lists of columns."""
    rows = [np.array([[[x in columns for x in range(10)]] for columns in side]) for side in (predicted, truth)]
    metric = VOCInstanceAP(1, (0.5,))
    metric.update([instances(rows[0], [0] * len(predicted), scores)], [instances(rows[1], [0] * len(truth))], ["a"])
    return metric.compute()["map50"].item()


def golden_images(data, case, instances):
    """Name -> (predictions, references) of a recorded case."""
    images = {}
    for i in range(int(data[f"{case}_n_images"])):
        height, width = data[f"{case}_hw"][i]
        sides = []
        for side in ("pred", "gt"):
            packed = data[f"{case}_i{i}_{side}_masks"]
            masks = np.unpackbits(packed, axis=-1)[..., :width].reshape(len(packed), height, width)
            sides.append((masks, data[f"{case}_i{i}_{side}_labels"]))
        images[f"{i:04}"] = instances(*sides[0], data[f"{case}_i{i}_pred_scores"]), instances(*sides[1])
    return images


def test_the_list_of_golden_cases_is_complete(golden) -> None:
    assert set(CASES) == {key.removesuffix("_n_images") for key in golden("i_voc_ap") if key.endswith("_n_images")}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_authors_evaluation(golden, instances, case) -> None:
    data = golden("i_voc_ap")
    expected = data[f"{case}_ap"]
    result = filled(VOCInstanceAP(expected.shape[1], THRESHOLDS), golden_images(data, case, instances)).compute()
    np.testing.assert_allclose(result["per_class"], expected, rtol=0, atol=1e-6, equal_nan=True)
    np.testing.assert_allclose([result[f"map{round(100 * t)}"] for t in THRESHOLDS], data[f"{case}_map"], atol=1e-6)


def plain_scores(images, classes, threshold) -> list[float]:
    """AP of each class in plain loops over masks, from the words of release 11.2 to 11.4."""
    result = []
    for c in range(classes):
        hits, scores, objects = [], [], 0
        for name in sorted(images):
            predictions, references = images[name]
            true = decode(references).numpy()[references.classes.numpy() == c]
            own = predictions.classes.numpy() == c
            found, sure = decode(predictions).numpy()[own], predictions.scores.numpy()[own]
            taken = [False] * len(true)
            for i in np.argsort(sure, kind="stable")[::-1]:
                hit = False
                if len(true):
                    with np.errstate(invalid="ignore"):
                        overlap = ((found[i] & true).sum((1, 2)) / (found[i] | true).sum((1, 2))).astype(np.float32)
                    best = int(overlap.argmax())  # of two empty masks it is NaN, which argmax prefers
                    if not overlap[best] < np.float32(threshold):
                        hit, taken[best] = not taken[best], True
                hits.append(hit)
                scores.append(sure[i])
            objects += len(true)
        if objects == 0:
            result.append(math.nan)
            continue
        precision, right = [], 0
        ordered = [hits[i] for i in np.argsort(np.array(scores), kind="stable")[::-1]]
        for place, hit in enumerate(ordered, 1):
            right += hit
            precision.append(right / place)
        area = sum(max(precision[place:]) for place, hit in enumerate(ordered) if hit)
        result.append(area / objects)
    return result


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_plain_loops_on_hard_images(hard_images, seed) -> None:
    images = hard_images(seed)
    result = filled(VOCInstanceAP(5, THRESHOLDS), images).compute()
    expected = [plain_scores(images, 5, threshold) for threshold in THRESHOLDS]
    np.testing.assert_allclose(result["per_class"], expected, rtol=0, atol=1e-6, equal_nan=True)
    means = [result[f"map{round(100 * t)}"] for t in THRESHOLDS]
    np.testing.assert_allclose(means, np.nanmean(expected, 1), rtol=0, atol=1e-6)
    assert 0 < means[-1] < means[0] < 1
    assert result["per_class"][:, 3:].isnan().all()


def test_plain_loops_agree_with_the_authors_evaluation(golden, instances) -> None:
    """The reference above is worth something."""
    data = golden("i_voc_ap")
    for case in CASES:
        images, expected = golden_images(data, case, instances), data[f"{case}_ap"]
        ours = [plain_scores(images, expected.shape[1], threshold) for threshold in THRESHOLDS]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_known_scores(instances) -> None:
    left, right = range(0, 5), range(5, 10)
    assert one(instances, [left, right], [left, right], [0.9, 0.8]) == 1
    assert one(instances, [left], [left, right], [0.9]) == 0.5
    assert one(instances, [left, left], [left, right], [0.9, 0.8]) == 0.5  # a second time is wrong
    assert one(instances, [left, right], [right], [0.9, 0.8]) == 0.5  # a wrong one is surer
    assert one(instances, [left, right], [right], [0.8, 0.9]) == 1  # ... is less sure


def test_one_class_keeps_its_axis(instances) -> None:
    metric = VOCInstanceAP(1, (0.5,))
    metric.update([instances(np.ones((1, 2, 2)), [0], [0.5])], [instances(np.ones((1, 2, 2)), [0])], ["a"])
    assert metric.compute()["per_class"].tolist() == [[1.0]]
    assert metric.compute()["per_class"].shape == (1, 1)  # also from the cache


def test_nothing_at_all(instances) -> None:
    none = instances(np.zeros((0, 3, 4)), [])
    metric = VOCInstanceAP(2)
    metric.update([none], [none], ["a"])
    assert metric.compute()["per_class"].isnan().all()
    assert math.isnan(metric.compute()["map50"])


def test_crowds_are_no_objects(instances) -> None:
    full = np.ones((1, 2, 2))
    metric = VOCInstanceAP(2)
    metric.update([instances(full, [0], [0.5])], [instances(full, [0], crowd=[True])], ["a"])
    metric.update([instances(full, [1], [0.5])], [instances(full, [1], crowd=[False])], ["b"])
    np.testing.assert_array_equal(metric.compute()["per_class"][1], [np.nan, 1])


def test_order_of_the_images_does_not_matter(random_images) -> None:
    images = random_images(0, 30)
    shuffled = list(images.items())
    random.Random(0).shuffle(shuffled)
    assert_same(filled(VOCInstanceAP(4), images).compute(), filled(VOCInstanceAP(4), dict(shuffled)).compute())


def test_an_image_counts_once(random_images) -> None:
    images = random_images(1, 5)
    twice = filled(filled(VOCInstanceAP(4), images), images)
    assert_same(twice.compute(), filled(VOCInstanceAP(4), images).compute())


@pytest.mark.parametrize("shares", [("012", "3"), ("012", "30"), ("0123", ""), ("", "0123"), ("1", "", "023")])
def test_processes_give_the_result_of_one(random_images, in_processes, shares) -> None:
    images = random_images(2, 4)
    names = list(images)
    parts = [{names[int(i)]: images[names[int(i)]] for i in share} for share in shares]

    def work(rank: int):
        metric = filled(VOCInstanceAP(4), parts[rank])
        return metric.compute(), len(metric.records)

    expected = filled(VOCInstanceAP(4), images).compute()
    for rank, (result, kept) in enumerate(in_processes(work, len(shares))):
        assert_same(result, expected)
        assert kept == len(parts[rank])  # its own again after the exchange


def test_pickle_clone_reset_and_move(random_images) -> None:
    images = random_images(3, 6)
    metric = filled(VOCInstanceAP(4), images)
    expected = metric.compute()
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), nn.ModuleList([metric]).to("cpu").double()[0]):
        assert_same(copy.compute(), expected)
    metric.reset()
    assert metric.records == []
    assert_same(filled(metric, images).compute(), expected)


def test_forward_scores_the_batch_and_keeps_it(random_images) -> None:
    images = random_images(4, 6)
    metric = VOCInstanceAP(4)
    for name, (predictions, references) in images.items():
        alone = filled(VOCInstanceAP(4), {name: (predictions, references)}).compute()
        assert_same(metric([predictions], [references], [name]), alone)
    assert_same(metric.compute(), filled(VOCInstanceAP(4), images).compute())


def test_errors_name_the_image(instances) -> None:
    metric = VOCInstanceAP(2)
    small, large = instances(np.ones((1, 2, 2)), [0], [1]), instances(np.ones((1, 3, 4)), [0], [1])
    with pytest.raises(ValueError, match=r"image a: predictions of size \(2, 2\), references of size \(3, 4\)"):
        metric.update([small], [large], ["a"])
    with pytest.raises(ValueError, match=r"image b: predicted classes \[2\], expected 0 <= class < 2"):
        metric.update([instances(np.ones((1, 2, 2)), [2], [1])], [small], ["b"])
    with pytest.raises(ValueError, match="1 predictions, 1 references and 2 names"):
        metric.update([small], [small], ["a", "b"])


@pytest.mark.parametrize("thresholds", [(), (0.0,), (1.5,), (0.5, 0.501)])
def test_thresholds_are_checked(thresholds) -> None:
    with pytest.raises(ValueError, match="thresholds must"):
        VOCInstanceAP(2, thresholds)
