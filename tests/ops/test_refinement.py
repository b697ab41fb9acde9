"""Refined labels: against the recorded release, and against a slow reference that follows the description."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.heatmaps import center_heatmap, offset_field, weight_map
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.recipe import PAPER, RELEASE, RULES, Recipe
from bestie_pl.structures import Cues, Geometry, InstanceMaps, LabeledInstances

pytestmark = pytest.mark.usefixtures("way")

Golden = Callable[[str], dict[str, np.ndarray]]


def maps_of(data: dict[str, np.ndarray], case: str) -> InstanceMaps:
    codes = [(data[f"{case}_{name}_q"], data[f"{case}_{name}_scale"]) for name in ("seg", "center", "offset")]
    return InstanceMaps(*(torch.from_numpy(code.astype(np.float32) / np.float32(scale)) for code, scale in codes))


@pytest.mark.parametrize("name", ["random", "edge", "args", "416"])
def test_release_refines_tags_as_recorded(golden: Golden, name: str) -> None:
    data = golden(f"b_refine_tags_{name}")
    for case in sorted({key.split("_")[0] for key in data} - {"names"}):
        maps = maps_of(data, case)
        threshold, kernel, sigma, beta = data[f"{case}_args"].tolist()
        geometry = Geometry(sigma=sigma, peak_window=int(kernel), cluster_tolerance=beta or 1)
        semantic, tags = torch.from_numpy(data[f"{case}_wsss"]), torch.from_numpy(data[f"{case}_tags"]).bool()
        labels = refine_from_tags(
            maps,
            label_components(tagged_classes(semantic, tags)),
            geometry=geometry,
            rules=RELEASE,
            threshold=threshold,
            clustering=beta > 0,
        )
        weight = weight_map(labels)[:, None].numpy()
        heat = center_heatmap(labels.peaks, maps.center_heatmap.shape, sigma, geometry.gaussian_reach).numpy()
        assert (offset_field(labels).numpy() == data[f"{case}_out_offset"]).all(), case
        assert ((weight > 0) == (data[f"{case}_out_weight"] > 0)).all(), case
        assert np.abs(weight - data[f"{case}_out_weight"]).max() < 1e-4, case
        assert np.abs(heat - data[f"{case}_out_center"]).max() < 1e-6, case


def test_release_refines_points_as_recorded(golden: Golden) -> None:
    data = golden("c_refine_points")
    cases = sorted({key.split("_")[0] for key in data} - {"names"})
    assert len(cases) == 11
    for case in cases:
        field = torch.from_numpy(data[f"{case}_offset_q"].astype(np.float32) / np.float32(data[f"{case}_offset_scale"]))
        semantic, tags = torch.from_numpy(data[f"{case}_wsss"]), torch.from_numpy(data[f"{case}_tags"]).bool()
        packed = torch.from_numpy(data[f"{case}_points_yx"])
        image, classes, slot = packed.any(3).nonzero(as_tuple=True)
        points = Cues(image, packed[image, classes, slot].float(), classes, torch.ones(len(image)))
        labels = refine_from_points(field, tagged_classes(semantic, tags), points, rules=RELEASE)
        assert (offset_field(labels).numpy() == data[f"{case}_out_offset"]).all(), case
        assert (weight_map(labels)[:, None].numpy() == data[f"{case}_out_weight"]).all(), case


SMALL = Geometry(sigma=1.0, peak_window=7, min_area=6, cluster_radius=1.5, cluster_tolerance=5.0, cluster_distance=6.0)


def random_scene(seed: int, batch: int = 2) -> tuple[InstanceMaps, torch.Tensor]:
    """Maps of ragged regions of 3 classes with some instances each, and the class map.

    Centres are strong, too weak for a peak, above 1, or missing; offsets point to them up to noise. Values come in few
    steps in some scenes, which makes ties.
    """
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(8, 34, 2))
    field = np.stack(
        [cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), 3) for _ in range(batch)]
    )
    classes = np.digitize(field, np.quantile(field, [0.25, 0.55, 0.85])).astype(np.int32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    heat = rng.uniform(-0.1, 0.25, (batch, 3, height, width)).astype(np.float32)
    offset = np.zeros((batch, 2, height, width), np.float32)
    for image in range(batch):
        points = rng.integers(0, (height, width), (rng.integers(1, 12), 2))
        away = np.hypot(points[:, 0, None, None] - y, points[:, 1, None, None] - x)
        nearest = away.argmin(0)
        offset[image] = np.stack([points[nearest, 0] - y, points[nearest, 1] - x])
        strength = rng.choice([0.0, 0.2, 0.6, 0.9, 1.3], len(points))[:, None, None]
        heat[image] = np.maximum(heat[image], (strength * np.exp(-(away**2) / 4)).max(0))
    offset += rng.normal(0, rng.choice([0.0, 0.4, 3.0]), offset.shape).astype(np.float32)
    steps = np.float32(rng.choice([8, 1024]))
    logits = rng.normal(0, 2, (batch, 4, height, width)).astype(np.float32)
    maps = InstanceMaps(*(torch.from_numpy(np.round(m * steps) / steps) for m in (logits, heat, offset)))
    return maps, torch.from_numpy(classes)


Instance = tuple[int, int, bytes, float, float, float]


def reference(
    maps: InstanceMaps, classes: np.ndarray, recipe: str, threshold: float, clustering: bool, max_centers: int
) -> list[Instance]:
    """Refined instances (image, class, mask, centre y, x, weight), one component at a time, with dense arrays."""
    logits, heats, offsets = (m.numpy() for m in maps)
    exponential = np.exp(logits.astype(np.float64))
    probability = exponential / exponential.sum(1, keepdims=True)
    ys, xs = np.mgrid[: classes.shape[1], : classes.shape[2]].astype(np.float32)
    result: list[Instance] = []
    for image in range(len(classes)):
        dy, dx = offsets[image]
        for own in range(heats.shape[1]):
            count, numbers = cv2.connectedComponents((classes[image] == own + 1).astype(np.uint8), connectivity=8)
            for number in range(1, count):
                mask = numbers == number
                if mask.sum() < SMALL.min_area:
                    continue
                heat = np.where(mask, heats[image, own], np.float32(0))
                centers, scores = component_centers(heat, mask, np.sqrt(dy**2 + dx**2), recipe, threshold, clustering)
                if not centers or (recipe == "paper" and len(centers) > max_centers):
                    continue
                away = np.stack([np.sqrt((y - (ys + dy)) ** 2 + (x - (xs + dx)) ** 2) for y, x in centers])
                owner = np.where(mask, away.argmin(0), -1)
                if owner.max() >= max_centers:
                    continue
                for center in np.unique(owner[mask]):
                    group = owner == center
                    (y, x), weight = centers[center], float(scores[center])
                    if recipe == "release":
                        inside = np.where(group, heat, -np.inf)
                        y, x = np.unravel_index(inside.argmax(), inside.shape)
                        mean = float(probability[image, own + 1][group].mean())
                        weight = float(inside.max()) * mean
                        if inside.max() < np.float32(threshold):
                            y, x = (int(n.mean()) for n in mask.nonzero())
                            weight = mean
                    result.append((image, own, group.tobytes(), float(y), float(x), min(max(weight, 0.0), 1.0)))
    return result


def ranks(heat: np.ndarray) -> np.ndarray:
    """The values' places in ascending order; of equal ones the first, row by row, has the highest."""
    backwards = np.argsort(heat.ravel()[::-1], kind="stable")
    return np.argsort(backwards)[::-1].reshape(heat.shape)


def component_centers(
    heat: np.ndarray, mask: np.ndarray, length: np.ndarray, recipe: str, threshold: float, clustering: bool
) -> tuple[list[tuple[int, int]], list[np.float32]]:
    """Centres of one component and their scores; marks clustered ones in ``heat``."""
    over = heat >= np.float32(threshold) if recipe == "paper" else heat > np.float32(threshold)
    order = ranks(heat) if recipe == "paper" else heat
    highest = ndimage.maximum_filter(order, size=SMALL.peak_window, mode="constant", cval=-1)
    peaks = [(int(y), int(x)) for y, x in np.argwhere(over & (order == highest))]
    scores = [heat[peak] for peak in peaks]
    regions, count = ndimage.label(mask & (length < np.float32(SMALL.cluster_radius)))
    clusters = []
    for region in range(1, count + 1) if clustering else ():
        points = np.argwhere(regions == region)
        y, x = points.sum(0) // len(points)
        round_ = abs(len(points) - 9) < SMALL.cluster_tolerance  # 9 pixels are nearer than 1.5 to a pixel's centre
        alone = all(np.hypot(y - py, x - px) > SMALL.cluster_distance for py, px in peaks)
        if round_ and alone and heat[y, x] > np.float32(0.05):
            clusters.append((int(y), int(x)))
    scores += [np.float32(1) if recipe == "release" else heat[cluster] for cluster in clusters]
    for cluster in clusters:
        heat[cluster] = 1
    return peaks + clusters, scores


def rows_of(labels: LabeledInstances) -> list[Instance]:
    """The instances of a table as the reference gives them."""
    rows = range(1, len(labels.image))
    masks = [(labels.ids[labels.image[row]] == row).numpy() for row in rows]
    assert labels.area.tolist() == [0, *(int(mask.sum()) for mask in masks)]
    assert sum(int(mask.sum()) for mask in masks) == int((labels.ids > 0).sum())
    centers, weights = labels.center_yx.tolist(), labels.weight.tolist()
    images, classes = labels.image.tolist(), labels.classes.tolist()
    return [
        (images[r], classes[r], mask.tobytes(), *centers[r], weights[r]) for r, mask in zip(rows, masks, strict=True)
    ]


def assert_same(ours: list[Instance], theirs: list[Instance], tolerance: float = 1e-5) -> None:
    ours, theirs = sorted(ours), sorted(theirs)
    assert [row[:5] for row in ours] == [row[:5] for row in theirs]
    assert [row[5] for row in ours] == pytest.approx([row[5] for row in theirs], abs=tolerance)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@given(
    seed=st.integers(0, 2**31),
    threshold=st.sampled_from([0.25, 0.5]),
    clustering=st.booleans(),
    max_centers=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=60, deadline=None)
def test_refinement_agrees_with_one_component_at_a_time(
    recipe: Recipe, seed: int, threshold: float, clustering: bool, max_centers: int
) -> None:
    maps, classes = random_scene(seed)
    labels = refine_from_tags(
        maps,
        label_components(classes),
        geometry=SMALL,
        rules=RULES[recipe],
        threshold=threshold,
        clustering=clustering,
        max_centers=max_centers,
    )
    assert_same(rows_of(labels), reference(maps, classes.numpy(), recipe, threshold, clustering, max_centers))
    assert (labels.peaks.scores == 1).all()
    assert torch.equal(labels.peaks.yx, labels.center_yx[1:])
    assert torch.equal(labels.peaks.classes, labels.classes[1:])
    assert torch.equal(labels.peaks.image, labels.image[1:])


@pytest.mark.parametrize("recipe", ["paper", "release"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_batch_gives_what_single_images_give(recipe: Recipe, seed: int) -> None:
    maps, classes = random_scene(seed, batch=3)
    points = random_points(seed, classes)

    def refine(maps: InstanceMaps, classes: torch.Tensor, points: Cues) -> list[LabeledInstances]:
        tags = refine_from_tags(maps, label_components(classes), geometry=SMALL, rules=RULES[recipe], threshold=0.25)
        return [tags, refine_from_points(maps.offset_field, classes, points, rules=RULES[recipe])]

    batch = refine(maps, classes, points)
    single: list[list[Instance]] = [[], []]
    for image in range(3):
        rows = (points.image == image).nonzero().squeeze(1)
        one = points.select(rows)
        one = Cues(torch.zeros_like(one.image), one.yx, one.classes, one.scores)
        for found, labels in zip(
            single,
            refine(InstanceMaps(*(m[image : image + 1] for m in maps)), classes[image : image + 1], one),
            strict=True,
        ):
            found += [(image, *row[1:]) for row in rows_of(labels)]
    for found, labels in zip(single, batch, strict=True):
        assert rows_of(labels) == found  # in this order and to the last digit


def random_points(seed: int, classes: torch.Tensor) -> Cues:
    """Points inside their class or not, on borders too, with fractions; a few empty slots."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 30))
    yx = rng.uniform(0, 1, (count, 2)) * (np.array(classes.shape[1:]) - 1)
    yx = np.where(rng.random((count, 2)) < 0.15, 0, np.round(yx * 2) / 2)
    return Cues(
        torch.from_numpy(rng.integers(0, len(classes), count)),
        torch.from_numpy(yx).float(),
        torch.from_numpy(rng.integers(0, 3, count)),
        torch.from_numpy(rng.random(count) < 0.9).float(),
    )


@pytest.mark.parametrize("recipe", ["paper", "release"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_refinement_from_points_agrees_with_one_class_at_a_time(recipe: Recipe, seed: int) -> None:
    maps, classes = random_scene(seed)
    points = random_points(seed, classes)
    labels = refine_from_points(maps.offset_field, classes, points, rules=RULES[recipe])
    expected: list[Instance] = []
    ys, xs = np.mgrid[: classes.shape[1], : classes.shape[2]].astype(np.float32)
    for image in range(2):
        dy, dx = maps.offset_field[image].numpy()
        for own in range(3):
            given_ = points.select((points.image == image) & (points.classes == own) & (points.scores > 0)).yx.numpy()
            if recipe == "release":
                given_ = np.trunc(given_)
                given_ = given_[(given_ != 0).all(1)]
            if not len(given_):
                continue
            away = np.stack([np.sqrt((y - (ys + dy)) ** 2 + (x - (xs + dx)) ** 2) for y, x in given_])
            owner = np.where(classes[image].numpy() == own + 1, away.argmin(0), -1)
            for point in np.unique(owner[owner >= 0]):
                expected.append((image, own, (owner == point).tobytes(), *map(float, given_[point]), 1.0))
    assert_same(rows_of(labels), expected)
    assert labels.peaks is points


def test_paper_leaves_a_component_alone_by_the_number_of_its_centres() -> None:
    heat = torch.zeros(1, 1, 8, 80)
    heat[0, 0, 4, 4::12] = 0.75  # seven peaks
    classes = torch.ones(1, 8, 80, dtype=torch.int32)
    classes[..., 63] = 0  # five of them in one component, two in the other
    maps = InstanceMaps(torch.zeros(1, 2, 8, 80), heat, torch.zeros(1, 2, 8, 80))
    components = label_components(classes)

    def weights(limit: int) -> list[float]:
        return refine_from_tags(maps, components, geometry=SMALL, rules=PAPER, max_centers=limit).weight.tolist()

    assert weights(5) == [0.0] + [0.75] * 7
    assert weights(4) == [0.0] + [0.75] * 2
    assert weights(1) == [0.0]


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_nothing_to_refine_gives_no_instance(recipe: Recipe) -> None:
    maps = InstanceMaps(torch.zeros(2, 4, 9, 9), torch.ones(2, 3, 9, 9), torch.zeros(2, 2, 9, 9))
    empty = torch.zeros(2, 9, 9, dtype=torch.int32)
    small = empty.clone()
    small[0, 0, :5] = 1  # one pixel less than the smallest area
    flat = maps._replace(center_heatmap=torch.zeros(2, 3, 9, 9))
    for one, classes in ((maps, empty), (maps, small), (flat, empty + 1)):
        labels = refine_from_tags(one, label_components(classes), geometry=SMALL, rules=RULES[recipe])
        assert not labels.ids.any()
        assert (labels.ids.dtype, len(labels.image), len(labels.peaks)) == (torch.int32, 1, 0)
    labels = refine_from_points(maps.offset_field, empty + 1, Cues.empty(), rules=RULES[recipe])
    assert (int(labels.ids.sum()), len(labels.image)) == (0, 1)


def test_half_precision_is_refined_in_float32_without_a_graph() -> None:
    maps, classes = random_scene(3)
    half = InstanceMaps(*(m.half() for m in maps))
    components = label_components(classes)
    with_gradient = InstanceMaps(*(m.requires_grad_() for m in half))
    found = refine_from_tags(with_gradient, components, geometry=SMALL, rules=RELEASE, threshold=0.25)
    single = InstanceMaps(*(m.detach().float() for m in half))
    expected = refine_from_tags(single, components, geometry=SMALL, rules=RELEASE, threshold=0.25)
    assert len(expected.image) > 1
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.weight, expected.weight)
    assert found.weight.dtype == torch.float32
    assert not found.weight.requires_grad


def test_arguments_are_left_alone() -> None:
    maps, classes = random_scene(5)
    components = label_components(classes)
    before = [m.clone() for m in (*maps, components.labels)]
    refine_from_tags(maps, components, geometry=SMALL, rules=RELEASE, threshold=0.25)
    assert all(torch.equal(old, new) for old, new in zip(before, (*maps, components.labels), strict=True))


def test_maps_of_another_resolution_are_refused() -> None:
    maps, classes = random_scene(0)
    quarter = maps._replace(offset_field=maps.offset_field[..., :2, :2])
    with pytest.raises(ValueError, match=r"offset_field is .* enlarge the maps first"):
        refine_from_tags(quarter, label_components(classes), geometry=SMALL, rules=PAPER)
