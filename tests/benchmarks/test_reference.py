"""The benchmarks' slow reference computes what the library computes; nothing is timed here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch

from benchmarks.measure import MemoryMeter, WaitCounter, exponent
from benchmarks.reference import PerComponent, Pooling
from benchmarks.scenes import make_scene
from bestie_pl.ops.heatmaps import center_heatmap, offset_field, weight_map
from bestie_pl.ops.instances import find_instances
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.ops.transfer import transfer
from bestie_pl.recipe import PAPER, RELEASE, RULES, Recipe
from bestie_pl.structures import Geometry

GEOMETRY = Geometry(sigma=2, peak_window=13, min_area=12, cluster_distance=30)


@pytest.mark.parametrize("pooling", ["torch", "opencv"])
@pytest.mark.parametrize("fragments", [2, 20])
@pytest.mark.parametrize("sampled", [False, True])
def test_reference_refines_as_the_release_recipe(pooling: Pooling, fragments: int, sampled: bool) -> None:
    scene = make_scene(6, batch=4, size=120, instances=5, fragments=fragments, seed=3)
    large = scene.large()
    expected = PerComponent(GEOMETRY, 0.3, pooling).refine(large, scene.classes.numpy())
    maps, enlargement = (scene.maps, scene.enlargement) if sampled else (large, None)
    labels = refine_from_tags(
        maps, scene.components(), geometry=GEOMETRY, rules=RELEASE, threshold=0.3, enlargement=enlargement
    )
    assert (labels.area > 0).sum() > 5
    assert np.array_equal(offset_field(labels).numpy(), expected.offset)
    np.testing.assert_allclose(weight_map(labels).numpy(), expected.weight, atol=1e-5)
    heat = center_heatmap(labels.peaks, expected.center.shape, GEOMETRY.sigma, GEOMETRY.gaussian_reach)
    np.testing.assert_allclose(heat.numpy(), expected.center, atol=1e-6)


@pytest.mark.parametrize("fragments", [2, 20])
def test_reference_transfers_as_the_library(fragments: int) -> None:
    scene = make_scene(6, batch=4, size=120, instances=5, fragments=fragments, seed=5)
    expected = PerComponent(GEOMETRY, 0.3).transfer(scene.classes.numpy(), scene.cues, 6)
    labels = transfer(scene.components(), scene.cues, supervision="tags", rules=RELEASE, geometry=GEOMETRY)
    assert 2 < (labels.area > 0).sum() < len(labels.area) - 1
    assert np.array_equal(offset_field(labels).numpy(), expected.offset)
    assert np.array_equal(weight_map(labels).numpy(), expected.weight)
    heat = center_heatmap(labels.peaks, expected.center.shape, GEOMETRY.sigma, GEOMETRY.gaussian_reach)
    np.testing.assert_allclose(heat.numpy(), expected.center, atol=1e-6)


def test_reference_predicts_as_the_release_recipe() -> None:
    scene = make_scene(6, batch=3, size=120, instances=5, seed=4)
    large = scene.large()
    labels, _ = find_instances(large, geometry=GEOMETRY, rules=RELEASE, threshold=0.1)
    expected = PerComponent(GEOMETRY, 0.1).predict(large)
    got = {
        (int(labels.image[n]), int(labels.classes[n]), (labels.ids[labels.image[n]] == n).numpy().tobytes()): float(
            labels.weight[n]
        )
        for n in labels.area.nonzero().flatten().tolist()
    }
    assert len(expected) > 5 and len(got) == len(expected)
    for image, own, mask, score in expected:
        assert got[image, own, mask.tobytes()] == pytest.approx(score, abs=1e-5)


def test_objects_do_not_depend_on_the_number_of_classes() -> None:
    few, many = make_scene(4, batch=2, size=64), make_scene(9, batch=2, size=64)
    assert torch.equal(few.semantic, many.semantic)
    assert torch.equal(few.maps.center_heatmap, many.maps.center_heatmap[:, :4])
    assert torch.equal(few.maps.offset_field, many.maps.offset_field)


def test_memory_of_living_tensors_is_counted() -> None:
    with MemoryMeter() as meter:
        first = torch.zeros(1000)
        second = first + 1
        view = second.view(10, 100)
        del second
        third = view.add_(1)
        del first, view, third
        torch.zeros(500)
    assert (meter.peak, meter.live) == (8000, 0)


def test_operations_that_wait_are_counted() -> None:
    values = torch.arange(4)
    with WaitCounter() as counter:
        values.nonzero()
        values[values > 1]
        values[values.flip(0)]
        values[2] = 5
        int(values.max())
        values.tolist()
    found = {"nonzero": 1, "index by a mask": 1, "lift_fresh": 1, "_local_scalar_dense": 1, "tolist": 1}
    assert dict(+counter.waits) == found
    values.tolist()
    assert dict(+counter.waits) == found


def test_labels_and_refinement_wait_once_each() -> None:
    scene = make_scene(6, batch=4, size=120, instances=5, fragments=20, seed=5)

    def waits(run: Callable[[], object]) -> dict[str, int]:
        with WaitCounter() as counter:
            run()
        return dict(+counter.waits)

    def label() -> None:
        transfer(scene.components(), scene.cues, supervision="tags", rules=PAPER, geometry=GEOMETRY)

    with WaitCounter():
        components = scene.components()
    assert waits(label) == {"tolist": 1}
    for recipe in get_args(Recipe):
        by_tags = partial(refine_from_tags, scene.maps, components, geometry=GEOMETRY, rules=RULES[recipe])
        by_points = partial(refine_from_points, scene.maps.offset_field, scene.classes, scene.cues, rules=RULES[recipe])
        for refine in (by_tags, by_points):
            assert waits(partial(refine, enlargement=scene.enlargement)) == {"tolist": 1}


def test_growth_in_proportion_has_exponent_1() -> None:
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert exponent([1, 10], [5, 5]) == pytest.approx(0)
