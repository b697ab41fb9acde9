"""Refined labels: against the recorded release, and against a slow reference that follows the description."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.heatmaps import center_heatmap, offset_field, weight_map
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.structures import Cues, Geometry, InstanceMaps

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
            recipe="release",
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
        labels = refine_from_points(
            field, tagged_classes(semantic, tags), points, recipe="release", geometry=Geometry()
        )
        assert (offset_field(labels).numpy() == data[f"{case}_out_offset"]).all(), case
        assert (weight_map(labels)[:, None].numpy() == data[f"{case}_out_weight"]).all(), case
