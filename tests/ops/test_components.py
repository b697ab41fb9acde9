"""Connected components of a batch, against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.ops.components import label_components, tagged_classes

pytestmark = pytest.mark.usefixtures("way")


def reference(classes: np.ndarray, connectivity: int) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """Labels by first pixel over the batch and rows (image, class, area, int centroid y, x), from OpenCV's labels."""
    found = []
    for image, plane in enumerate(classes):
        for value in np.unique(plane[plane > 0]):
            count, numbers = cv2.connectedComponents((plane == value).astype(np.uint8), connectivity=connectivity)
            found += [(image, int(value) - 1, numbers == n) for n in range(1, count)]
    found.sort(key=lambda one: (one[0], np.flatnonzero(one[2])[0]))
    labels, rows = np.zeros(classes.shape, np.int32), []
    for number, (image, own, mask) in enumerate(found, 1):
        labels[image][mask] = number
        ys, xs = mask.nonzero()
        rows.append((image, own, len(ys), int(ys.sum()) // len(ys), int(xs.sum()) // len(xs)))
    return labels, rows


def check(classes: np.ndarray, connectivity: int) -> None:
    components = label_components(torch.from_numpy(classes), connectivity=connectivity)  # type: ignore[arg-type]
    if connectivity == 8:
        by_kornia = label_components(torch.from_numpy(classes), backend="kornia")
        for name in ("labels", "image", "classes", "area", "center_yx"):
            assert torch.equal(getattr(by_kornia, name), getattr(components, name)), name
    labels, rows = reference(classes, connectivity)
    assert components.labels.dtype == torch.int32
    assert (components.labels.numpy() == labels).all()
    table = torch.stack([components.image, components.classes, components.area, *components.center_yx.unbind(1)], 1)
    assert table.tolist() == [[0, -1, 0, 0, 0], *map(list, rows)]


@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    values=st.integers(1, 4),
    connectivity=st.sampled_from([4, 8]),
)
@settings(max_examples=70, deadline=None)
def test_agrees_with_opencv(seed: int, shape: tuple[int, int, int], values: int, connectivity: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, values + 1, shape) * (rng.random(shape) < rng.choice([0.5, 0.8, 1.0]))
    check(classes.astype(rng.choice([np.uint8, np.int32])), connectivity)


def spiral(size: int) -> np.ndarray:
    """A one pixel wide path that winds from the corner to the middle, one pixel free between its turns."""
    plane = np.zeros((size, size), np.uint8)
    y = x = turned = 0
    dy, dx = 0, 1
    plane[0, 0] = 1
    while turned < 2:
        ahead, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
        free = all(0 <= v < size for v in ahead) and not plane[ahead]
        if free and (not all(0 <= v < size for v in beyond) or not plane[beyond]):
            y, x = ahead
            plane[y, x] = 1
            turned = 0
        else:
            dy, dx, turned = dx, -dy, turned + 1
    return plane


def snake(size: int) -> np.ndarray:
    """Full rows joined at alternating ends."""
    plane = np.zeros((size, size), np.uint8)
    plane[::2] = 1
    plane[1::4, -1] = plane[3::4, 0] = 1
    return plane


@pytest.mark.parametrize("connectivity", [4, 8])
def test_long_winding_components_stay_whole(connectivity: int) -> None:
    winding = np.stack([spiral(61), snake(61), snake(61).T, spiral(61)[::-1, ::-1]])
    assert winding[0].sum() > 1500
    check(winding, connectivity)
    assert len(label_components(torch.from_numpy(winding), connectivity=connectivity).area) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (3, 1, 4)])
def test_empty_single_pixel_and_full_maps(shape: tuple[int, int, int], connectivity: int) -> None:
    check(np.zeros(shape, np.uint8), connectivity)
    check(np.full(shape, 7, np.uint8), connectivity)
    for corner in ((0, 0), (-1, -1)):
        one = np.zeros(shape, np.uint8)
        one[-1][corner] = 3
        check(one, connectivity)


def test_images_do_not_touch_one_another() -> None:
    full = np.ones((3, 4, 5), np.uint8)
    check(full, 8)
    assert label_components(torch.from_numpy(full)).area.tolist() == [0, 20, 20, 20]


@given(seed=st.integers(0, 2**31), connectivity=st.sampled_from([4, 8]))
@settings(max_examples=15, deadline=None)
def test_batch_gives_what_single_images_give(seed: int, connectivity: int) -> None:
    classes = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (4, 9, 11)))
    batch = label_components(classes, connectivity=connectivity)  # type: ignore[arg-type]
    before = 0
    for image, plane in enumerate(classes):
        one = label_components(plane[None], connectivity=connectivity)  # type: ignore[arg-type]
        assert torch.equal(batch.labels[image], one.labels[0] + before * (one.labels[0] > 0))
        rows = slice(before + 1, before + len(one.area))
        assert (batch.image[rows] == image).all()
        assert torch.equal(batch.area[rows], one.area[1:])
        assert torch.equal(batch.classes[rows], one.classes[1:])
        assert torch.equal(batch.center_yx[rows], one.center_yx[1:])
        before += len(one.area) - 1
    assert len(batch.area) == before + 1


def test_kornia_knows_eight_neighbours_only() -> None:
    with pytest.raises(ValueError, match="knows 8 neighbours, not 4"):
        label_components(torch.ones(1, 2, 2, dtype=torch.int32), connectivity=4, backend="kornia")


def test_arguments_are_left_alone() -> None:
    classes = torch.from_numpy(snake(9))[None]
    copy = classes.clone()
    label_components(classes)
    assert torch.equal(classes, copy)


def test_only_tagged_classes_remain() -> None:
    semantic = torch.tensor([[[0, 1, 2, 3, 255]], [[0, 1, 2, 3, 255]]], dtype=torch.uint8)
    tags = torch.tensor([[True, False, True], [False, False, False]])
    kept = tagged_classes(semantic, tags)
    assert kept.dtype == torch.int32
    assert kept.tolist() == [[[0, 1, 0, 3, 0]], [[0, 0, 0, 0, 0]]]
