"""Inference: maps to scored instances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bestie_pl.ops.instances import average_mirrored, find_instances, find_instances_from_points
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


def golden_maps(data: dict[str, np.ndarray], case: str) -> InstanceMaps:
    """Maps of a recorded case; image and mirrored image are averaged as the release does."""
    codes = [(data[f"{case}_{name}_q"], data[f"{case}_{name}_scale"]) for name in ("seg", "center", "offset")]
    maps = [torch.from_numpy(code.astype(np.float32) / np.float32(scale)) for code, scale in codes]
    if len(maps[0]) == 2:
        image, mirrored = (InstanceMaps(*(m[i : i + 1] for m in maps)) for i in (0, 1))
        return average_mirrored(image, mirrored, mirror_offsets=False)
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
    return as_set(masks[there], data[f"{case}_out_label"][there], data[f"{case}_out_score"][there])


@pytest.mark.parametrize("case", CASES)
def test_release_gives_the_recorded_instances(golden: Golden, case: str) -> None:
    data = golden("g_inference")
    maps = golden_maps(data, case)
    # 10.2: where the target has another size, the release scales the offsets and leaves the masks on this grid
    factor = data[f"{case}_target_size"] / np.array(maps.offset_field.shape[2:])
    maps = maps._replace(offset_field=maps.offset_field * torch.tensor(factor).float()[:, None, None])
    threshold, kernel, beta = data[f"{case}_args"].tolist()
    _, clean, ignore = data[f"{case}_flags_flip_clean_ignore"].tolist()
    instances, semantic = find_instances(
        maps,
        geometry=Geometry(peak_window=int(kernel), cluster_tolerance=beta or 1),
        recipe="release",
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
def test_given_points_give_the_recorded_instances(golden: Golden, case: str) -> None:
    data = golden("g_inference")
    classes, y, x = torch.from_numpy(data[f"{case}_points_cls_y_x"]).long().reshape(-1, 3).unbind(1)
    points = Cues(torch.zeros_like(y), torch.stack([y, x], 1).float(), classes, torch.ones(len(y)))
    tags = torch.from_numpy(data[f"{case}_tags"]).bool()
    instances, semantic = find_instances_from_points(golden_maps(data, case), points, tags=tags)
    assert (semantic[0].numpy() == data[f"{case}_out_seg_map"]).all()
    ours, theirs = found(instances), expected(data, case)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[key] - theirs[key]) < 1e-4 for key in theirs)
