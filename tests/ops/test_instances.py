"""Inference: maps to scored instances."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bestie_pl.ops.instances import find_instances, find_instances_from_points, predict_semantic
from bestie_pl.ops.views import average_maps, mirror_maps
from bestie_pl.recipe import PAPER, RELEASE, RULES, Recipe
from bestie_pl.structures import Cues, Geometry, InstanceMaps, LabeledInstances

Golden = Callable[[str], dict[str, np.ndarray]]
CASES = [f"s{i}_{kind}" for i in range(3) for kind in ("plain", "ignore", "clean", "flip")] + [
    "t0_target2x",
    "t1_target_anis",
    "t2_beta0",
    "t3_thresh05",
    "t4_empty_placeholder",
    "t5_empty_placeholder_other_target",
    "t6_no_peaks_kept",
    "t7_no_peaks_ignored",
    "t8_scores_ge_one_replaced",
]
POINT_CASES = ["p0", "p0_flip", "p1", "p2", "p3_no_points_placeholder"]


@pytest.fixture(scope="module")
def recorded(golden: Golden) -> dict[str, np.ndarray]:
    """The recorded cases, read once."""
    return golden("g_inference")


def golden_maps(data: dict[str, np.ndarray], case: str) -> InstanceMaps:
    """Maps of a recorded case; image and mirrored image are averaged as the release does."""
    codes = [(data[f"{case}_{name}_q"], data[f"{case}_{name}_scale"]) for name in ("seg", "center", "offset")]
    maps = [torch.from_numpy(code.astype(np.float32) / np.float32(scale)) for code, scale in codes]
    if len(maps[0]) == 2:
        image, mirrored = (InstanceMaps(*(m[i : i + 1] for m in maps)) for i in (0, 1))
        return average_maps([image, mirror_maps(mirrored)], average_offsets=False)
    return InstanceMaps(*maps)


def as_set(masks: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[tuple[bytes, int], float]:
    return {(m.tobytes(), int(c)): float(s) for m, c, s in zip(masks.astype(bool), labels, scores, strict=True)}


def found(instances: LabeledInstances) -> dict[tuple[bytes, int], float]:
    rows = torch.arange(1, len(instances.image))
    masks = (instances.ids == rows[:, None, None]).numpy()
    assert (instances.area[1:].numpy() == masks.sum((1, 2))).all()
    return as_set(masks, instances.classes[1:].numpy(), instances.weight[1:].numpy())


def expected(data: dict[str, np.ndarray], case: str) -> dict[tuple[bytes, int], float]:
    """The recorded instances, without the release's placeholder for "none"."""
    shape = data[f"{case}_out_mask_shape"]
    masks = np.unpackbits(data[f"{case}_out_mask"], axis=-1)[..., : shape[2]]
    there = masks.any((1, 2))
    assert there.all() or data[f"{case}_out_score"].tolist() == [0.0]
    return as_set(masks[there], data[f"{case}_out_label"][there], data[f"{case}_out_score"][there])


@pytest.mark.parametrize("case", CASES)
def test_release_gives_the_recorded_instances(recorded: dict[str, np.ndarray], case: str) -> None:
    data = recorded
    maps = golden_maps(data, case)
    # 10.2: where the target has another size, the release scales the offsets and leaves the masks on this grid
    factor = data[f"{case}_target_size"] / np.array(maps.offset_field.shape[2:])
    maps = maps._replace(offset_field=maps.offset_field * torch.tensor(factor).float()[:, None, None])
    threshold, kernel, beta = data[f"{case}_args"].tolist()
    _, clean, ignore = data[f"{case}_flags_flip_clean_ignore"].tolist()
    instances, semantic = find_instances(
        maps,
        geometry=Geometry(peak_window=int(kernel), cluster_tolerance=beta or 1),
        rules=RELEASE,
        threshold=threshold,
        clustering=beta > 0,
        keep_without_center=not ignore,
        tags=torch.from_numpy(data[f"{case}_tags"]).bool() if clean else None,
    )
    assert (semantic[0].numpy() == data[f"{case}_out_seg_map"]).all()
    ours, theirs = found(instances), expected(data, case)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[key] - theirs[key]) < 1e-4 for key in theirs), (ours.values(), theirs.values())


@pytest.mark.parametrize("case", POINT_CASES)
def test_given_points_give_the_recorded_instances(recorded: dict[str, np.ndarray], case: str) -> None:
    data = recorded
    classes, y, x = torch.from_numpy(data[f"{case}_points_cls_y_x"]).long().reshape(-1, 3).unbind(1)
    points = Cues(torch.zeros_like(y), torch.stack([y, x], 1).float(), classes, torch.ones(len(y)))
    tags = torch.from_numpy(data[f"{case}_tags"]).bool()
    instances, semantic = find_instances_from_points(golden_maps(data, case), points, tags=tags)
    assert (semantic[0].numpy() == data[f"{case}_out_seg_map"]).all()
    ours, theirs = found(instances), expected(data, case)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[key] - theirs[key]) < 1e-4 for key in theirs)


SMALL = Geometry(sigma=1.0, peak_window=7, min_area=6, cluster_radius=1.5, cluster_tolerance=5.0, cluster_distance=6.0)


def random_maps(seed: int, batch: int = 2) -> InstanceMaps:
    """Maps with ragged regions of 3 classes, offsets that converge here and there, and heat of any sign."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(8, 30, 2))

    def smooth(channels: int, sigma: float) -> np.ndarray:
        planes = rng.normal(0, 1, (batch * channels, height, width)).astype(np.float32)
        planes = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])
        return planes.reshape(batch, channels, height, width) / planes.std()

    points = rng.integers(0, (height, width), (6, 2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    nearest = np.hypot(points[:, 0, None, None] - y, points[:, 1, None, None] - x).argmin(0)
    offset = np.stack([points[nearest, 0] - y, points[nearest, 1] - x]) + smooth(2, 1.5) * rng.choice([0.1, 2.0])
    heat = smooth(3, 2.0) * np.float32(0.3)
    heat[..., points[:, 0], points[:, 1]] += rng.choice([0.0, 0.1, 0.9], 6).astype(np.float32)
    steps = np.float32(rng.choice([16, 1024]))
    maps = (smooth(4, 3.0) * 2, heat, offset)
    return InstanceMaps(*(torch.from_numpy(np.round(m * steps) / steps).float() for m in maps))


Instance = tuple[int, int, bytes, float]


def ranks(heat: np.ndarray) -> np.ndarray:
    """The values' places in ascending order; of equal ones the first, row by row, has the highest."""
    backwards = np.argsort(heat.ravel()[::-1], kind="stable")
    return np.argsort(backwards)[::-1].reshape(heat.shape)


def reference(
    maps: InstanceMaps, allowed: np.ndarray, recipe: str, threshold: float, keep: bool
) -> tuple[list[Instance], np.ndarray]:
    """Instances (image, class, mask, score) and the semantic map, one component at a time."""
    logits, heats, offsets = (m.numpy() for m in maps)
    exponential = np.exp(logits.astype(np.float64))
    probability = exponential / exponential.sum(1, keepdims=True)
    semantic = np.where(allowed[:, :, None, None], logits, -np.inf).argmax(1)
    ys, xs = np.mgrid[: semantic.shape[1], : semantic.shape[2]].astype(np.float32)
    result: list[Instance] = []
    for image, own in np.ndindex(heats.shape[:2]):
        dy, dx = offsets[image]
        length = np.sqrt(dy**2 + dx**2)
        count, numbers = cv2.connectedComponents((semantic[image] == own + 1).astype(np.uint8), connectivity=8)
        for mask in (numbers == number for number in range(1, count)):
            if mask.sum() < SMALL.min_area:
                continue
            heat = np.where(mask, heats[image, own], np.float32(0))
            over = heat >= np.float32(threshold) if recipe == "paper" else heat > np.float32(threshold)
            order = ranks(heat) if recipe == "paper" else heat
            highest = ndimage.maximum_filter(order, size=SMALL.peak_window, mode="constant", cval=-1)
            peaks = [tuple(p) for p in np.argwhere(over & (order == highest))]
            scores = [float(heat[p]) for p in peaks]
            regions, found = ndimage.label(mask & (length < np.float32(SMALL.cluster_radius)))
            centroids = [np.argwhere(regions == r).sum(0) // (regions == r).sum() for r in range(1, found + 1)]
            clusters = [
                (y, x)
                for r, (y, x) in enumerate(centroids, 1)
                if abs((regions == r).sum() - 9) < SMALL.cluster_tolerance
                and all(np.hypot(y - py, x - px) > SMALL.cluster_distance for py, px in peaks)
                and heat[y, x] > np.float32(0.05)
            ]
            scores += [1.0 if recipe == "release" else float(heat[cluster]) for cluster in clusters]
            for cluster in clusters:
                heat[cluster] = 1
            centers = peaks + clusters
            if not centers and keep:
                centers, scores = [(0, 0)], [float(heat[mask].max())]
            if not centers:
                continue
            away = np.stack([np.sqrt((y - (ys + dy)) ** 2 + (x - (xs + dx)) ** 2) for y, x in centers])
            owner = np.where(mask, away.argmin(0), -1)
            for center in np.unique(owner[mask]):
                group = owner == center
                mean = float(probability[image, own + 1][group].mean())
                score = min(max(scores[center], 0.0), 1.0)
                if recipe == "release":
                    largest = float(heat[group].max())
                    score = mean if largest >= 1 else largest
                result.append((image, own, group.tobytes(), score * mean))
    return result, semantic


def rows_of(labels: LabeledInstances) -> list[Instance]:
    """The instances of a table as the reference gives them."""
    rows = range(1, len(labels.image))
    image, classes, weight = (column.tolist() for column in (labels.image, labels.classes, labels.weight))
    return [(image[r], classes[r], (labels.ids[image[r]] == r).numpy().tobytes(), weight[r]) for r in rows]


def assert_same(ours: list[Instance], theirs: list[Instance]) -> None:
    ours, theirs = sorted(ours), sorted(theirs)
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[3] for row in ours] == pytest.approx([row[3] for row in theirs], abs=1e-5)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([0.125, 0.5]), keep=st.booleans(), oracle=st.booleans())
@settings(max_examples=100, deadline=None)
def test_instances_agree_with_one_component_at_a_time(
    recipe: Recipe, seed: int, threshold: float, keep: bool, oracle: bool
) -> None:
    maps = random_maps(seed)
    tags = np.random.default_rng(seed).random((2, 3)) < (0.5 if oracle else 2)
    labels, semantic = find_instances(
        maps,
        geometry=SMALL,
        rules=RULES[recipe],
        threshold=threshold,
        keep_without_center=keep,
        tags=torch.from_numpy(tags) if oracle else None,
    )
    expected, classes = reference(maps, np.hstack([np.ones((2, 1), bool), tags]), recipe, threshold, keep)
    assert semantic.dtype == torch.uint8
    assert (semantic.numpy() == classes).all()
    assert_same(rows_of(labels), expected)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_batch_gives_what_single_images_give(seed: int) -> None:
    maps = random_maps(seed, batch=3)
    rng = np.random.default_rng(seed)
    yx = torch.from_numpy(rng.uniform(0, 8, (4, 2))).float()
    points = Cues(torch.tensor([2, 0, 0, 1]), yx, torch.tensor([0, 1, 1, 2]), torch.ones(4))
    tags = torch.from_numpy(rng.random((3, 3)) < 0.7)
    whole = [
        find_instances(maps, geometry=SMALL, rules=PAPER),
        find_instances_from_points(maps, points, tags=tags),
    ]
    parts: list[list[Instance]] = [[], []]
    for image in range(3):
        one = InstanceMaps(*(m[image : image + 1] for m in maps))
        own = points.select(points.image == image)
        own = Cues(torch.zeros_like(own.image), own.yx, own.classes, own.scores)
        single = [
            find_instances(one, geometry=SMALL, rules=PAPER),
            find_instances_from_points(one, own, tags=tags[image : image + 1]),
        ]
        for (labels, semantic), rows, (_, all_semantic) in zip(single, parts, whole, strict=True):
            rows += [(image, *row[1:]) for row in rows_of(labels)]
            assert torch.equal(semantic[0], all_semantic[image])
    for (labels, _), rows in zip(whole, parts, strict=True):
        assert rows_of(labels) == rows  # in this order and to the last digit


@pytest.mark.parametrize("recipe", ["paper", "release"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing(recipe: Recipe, seed: int) -> None:
    maps = random_maps(seed)
    height, width = maps.offset_field.shape[2:]
    # the padding holds what would be instances
    padded = InstanceMaps(*(torch.nn.functional.pad(m, (0, 5, 0, 4), value=3.0) for m in maps))
    padded.semantic_logits[:, 1:, height:] += 5
    padded.semantic_logits[:, 1, :, width:] += 5
    valid = torch.zeros(2, height + 4, width + 5, dtype=torch.bool)
    valid[:, :height, :width] = True
    found, semantic = find_instances(padded, geometry=SMALL, rules=RULES[recipe], valid=valid)
    expected, expected_semantic = find_instances(maps, geometry=SMALL, rules=RULES[recipe])
    assert torch.equal(found.ids[:, :height, :width], expected.ids)
    assert not found.ids[~valid].any()
    assert torch.equal(semantic[:, :height, :width], expected_semantic)
    assert (semantic[~valid] == 255).all()
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.center_yx, expected.center_yx)


def blob(score: float) -> InstanceMaps:
    """One object of class 1 of 2 in the middle of an image, with one peak."""
    logits = torch.zeros(1, 3, 11, 11)
    logits[0, 2, 3:8, 3:8] = 2.0
    heat = torch.zeros(1, 2, 11, 11)
    heat[0, 1, 5, 5] = score
    return InstanceMaps(logits, heat, torch.full((1, 2, 11, 11), 9.0))


@pytest.mark.parametrize(
    ("recipe", "score", "factor"),
    [("paper", 0.5, 0.5), ("paper", 1.5, 1.0), ("release", 0.5, 0.5), ("release", 1.5, None)],
)
def test_scores_above_one(recipe: Recipe, score: float, factor: float | None) -> None:
    labels, semantic = find_instances(blob(score), geometry=SMALL, rules=RULES[recipe])
    mean = float(np.exp(2) / (np.exp(2) + 2))
    assert labels.weight.tolist() == pytest.approx([0, mean * (mean if factor is None else factor)])
    assert (labels.classes.tolist(), labels.area.tolist()) == ([-1, 1], [0, 25])
    assert labels.center_yx.tolist() == [[0, 0], [5, 5]]
    assert labels.peaks.yx.tolist() == [[5, 5]]
    assert torch.equal(labels.ids[0] > 0, semantic[0] == 2)


def test_component_without_centre_is_one_instance_or_none() -> None:
    whole, _ = find_instances(blob(0.0), geometry=SMALL, rules=PAPER)
    assert (whole.area.tolist(), whole.weight.tolist(), whole.center_yx[1].tolist()) == ([0, 25], [0, 0], [5, 5])
    none, _ = find_instances(blob(0.0), geometry=SMALL, rules=PAPER, keep_without_center=False)
    assert (none.area.tolist(), len(none.peaks), int(none.ids.sum())) == ([0], 0, 0)


def test_an_image_of_background_has_no_instance() -> None:
    maps = blob(1.0)
    maps.semantic_logits[:, 0] = 9.0
    tags = torch.ones(1, 2, dtype=torch.bool)
    for labels, semantic in (
        find_instances(maps, geometry=SMALL, rules=PAPER),
        find_instances_from_points(maps, Cues.empty(), tags=tags),
    ):
        assert (len(labels.image), int(labels.ids.sum()), int(semantic.sum())) == (1, 0, 0)


def test_given_points_beyond_tags_padding_and_slots_count_for_nothing() -> None:
    maps = blob(0.0)._replace(offset_field=torch.zeros(1, 2, 11, 11))
    points = Cues(
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([[5.0, 0.0], [5.0, 9.5], [5.0, 5.0], [5.0, 5.0]]),
        torch.tensor([1, 1, 1, 0]),
        torch.tensor([1.0, 1.0, 0.0, 1.0]),
    )
    valid = torch.ones(1, 11, 11, dtype=torch.bool)
    valid[..., 7:] = False
    tags = torch.tensor([[False, True]])
    labels, semantic = find_instances_from_points(maps, points, tags=tags, valid=valid)
    # columns 3 and 4 are nearer to the point in column 0, 5 and 6 to the one in column 9.5, 7 is padding
    assert labels.ids[0, 5].tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0]
    assert labels.center_yx[1:].tolist() == [[5.0, 0.0], [5.0, 9.5]]
    assert labels.peaks is points
    untagged, _ = find_instances_from_points(maps, points, tags=~tags)
    assert len(untagged.image) == 1


def test_first_of_equally_likely_classes_is_predicted() -> None:
    logits = torch.tensor([1.0, 1.0, 0.0, 1.0]).view(1, 4, 1, 1).repeat(1, 1, 2, 600)
    assert not predict_semantic(logits).any()
    logits[:, 0] = 0
    assert (predict_semantic(logits) == 1).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_mirrored_twin_changes_nothing(seed: int) -> None:
    maps = random_maps(seed)
    twin = InstanceMaps(*(m.flip(-1) for m in maps))
    twin.offset_field[:, 1] *= -1
    for average_offsets in (False, True):
        average = average_maps([maps, mirror_maps(twin)], average_offsets=average_offsets)
        assert torch.allclose(average.semantic_logits.exp(), maps.semantic_logits.softmax(1), atol=1e-6)
        assert torch.equal(average.center_heatmap, maps.center_heatmap)
        assert torch.equal(average.offset_field, maps.offset_field)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_views_are_averaged_as_probabilities(seed: int, count: int) -> None:
    first = random_maps(seed)
    views = [InstanceMaps(*(m.roll(shift, -1) for m in first)) for shift in range(count)]
    average = average_maps(iter(views), average_offsets=True)
    probabilities = sum(view.semantic_logits.softmax(1) for view in views) / count
    assert torch.allclose(average.semantic_logits.exp(), probabilities, atol=1e-5)
    assert torch.allclose(average.semantic_logits.softmax(1), probabilities, atol=1e-5)
    for ours, theirs in zip(average[1:], zip(*(view[1:] for view in views), strict=True), strict=True):
        assert torch.allclose(ours, sum(theirs) / count, atol=1e-5)
    own = average_maps(iter(views), average_offsets=False)
    assert torch.equal(own.offset_field, first.offset_field)
    assert torch.equal(own.center_heatmap, average.center_heatmap)


def test_views_are_averaged_in_single_precision() -> None:
    views = [InstanceMaps(*(m.bfloat16() for m in random_maps(3)))] * 3
    average = average_maps(views, average_offsets=True)
    assert all(values.dtype == torch.float32 for values in average)
    assert torch.allclose(average.offset_field, views[0].offset_field.float())


def test_nothing_to_average() -> None:
    with pytest.raises(ValueError, match="no view"):
        average_maps([], average_offsets=True)
