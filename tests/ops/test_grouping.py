"""Pixels to centres (Eq. 1) and measures of the groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.ops.enlargement import find_spots
from bestie_pl.ops.grouping import Groups, class_probability, group_by_points, group_pixels
from bestie_pl.ops.peaks import Centers
from bestie_pl.structures import Cues

pytestmark = pytest.mark.usefixtures("way")

Golden = Callable[[str], dict[str, np.ndarray]]


def all_pixels(offset: np.ndarray, centers_yx: np.ndarray) -> torch.Tensor:
    """Owners of all pixels of one image whose centres are given: (H, W)."""
    height, width = offset.shape[1:]
    count = len(centers_yx)
    owner = group_pixels(
        torch.arange(height * width),
        torch.from_numpy(offset).flatten(1),
        torch.zeros(height * width, dtype=torch.int64),
        Centers.sorted(torch.zeros(count, dtype=torch.int64), torch.from_numpy(centers_yx), torch.ones(count)),
        components=1,
        size=(height, width),
    )
    return owner.view(height, width)


def test_groups_are_those_of_the_release(golden: Golden) -> None:
    data = golden("e_group_pixels")
    for case in (f"g{i}" for i in range(6)):
        owner = all_pixels(data[f"{case}_offset"], data[f"{case}_centres_yx"])
        assert (owner.numpy() + 1 == data[f"{case}_out_ids"][0]).all(), case


def test_equally_near_centres_give_the_pixel_to_the_first() -> None:
    offset = np.zeros((2, 1, 5), np.float32)
    assert all_pixels(offset, np.array([[0, 4], [0, 0], [0, 4]])).tolist() == [[1, 1, 0, 0, 0]]


def reference(
    offset: np.ndarray, component: np.ndarray, groups: np.ndarray, yx: np.ndarray, max_rank: int | None
) -> np.ndarray:
    """Row of the nearest centre of each pixel's component by all distances, -1 where there is none: (B, H, W)."""
    owner = np.full(component.shape, -1)
    for number in np.unique(component):
        rows = np.flatnonzero(groups == number)
        image, y, x = (component == number).nonzero()
        if len(rows) == 0:
            continue
        target = np.stack(
            [y.astype(np.float32) + offset[image, 0, y, x], x.astype(np.float32) + offset[image, 1, y, x]]
        )
        away = np.sqrt(((yx[rows, :, None].astype(np.float32) - target) ** 2).sum(1))
        nearest = away.argmin(0)
        if max_rank is None or nearest.max() < max_rank:
            owner[image, y, x] = rows[nearest]
    return owner


@given(
    seed=st.integers(0, 2**31),
    centers=st.integers(0, 30),
    components=st.integers(1, 6),
    max_rank=st.sampled_from([None, 1, 2, 5]),
)
@settings(max_examples=70, deadline=None)
def test_grouping_agrees_with_all_distances(seed: int, centers: int, components: int, max_rank: int | None) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    component = rng.integers(0, components, shape)
    # quarters make many ties, and squared distances that float32 holds exactly: roots of others may round either way
    offset = rng.integers(-20, 20, (2, 2, *shape[1:])).astype(np.float32) * np.float32(0.25)
    groups = np.sort(rng.integers(0, components, centers))
    yx = np.stack([rng.integers(0, n, centers) for n in shape[1:]], 1)
    found = Centers.sorted(torch.from_numpy(groups), torch.from_numpy(yx), torch.ones(centers))
    image, y, x = (torch.from_numpy(n) for n in component.nonzero())
    owner = group_pixels(
        (image * shape[1] + y) * shape[2] + x,
        torch.from_numpy(offset)[image, :, y, x].T,
        torch.from_numpy(component)[image, y, x],
        found,
        components=components,
        size=shape[1:],
        max_rank=max_rank,
    )
    # component 0 takes no part, as in a list of foreground pixels
    expected = reference(offset, component, groups, yx, max_rank)[component > 0]
    assert owner.tolist() == expected.tolist()


def test_a_component_is_given_up_only_if_a_late_centre_owns_a_pixel() -> None:
    def owners(yx: list[list[int]], max_rank: int) -> list[int]:
        centers = Centers.sorted(torch.zeros(len(yx), dtype=torch.int64), torch.tensor(yx), torch.ones(len(yx)))
        pixel = torch.arange(4)
        return group_pixels(
            pixel, torch.zeros(2, 4), torch.zeros_like(pixel), centers, components=1, size=(1, 4), max_rank=max_rank
        ).tolist()

    assert owners([[0, 0], [0, 3]], 2) == [0, 0, 1, 1]
    assert owners([[0, 0], [0, 3], [0, 2]], 2) == [-1] * 4
    assert owners([[0, 0], [0, 3], [0, 9]], 2) == [0, 0, 1, 1]  # three centres, the last without a pixel
    assert owners([[0, 9], [0, 0], [0, 3]], 2) == [-1] * 4  # three centres, the first without a pixel


def test_groups_are_numbered_by_owned_centres() -> None:
    centers = Centers.sorted(torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2), torch.ones(4))
    groups = Groups.of(torch.tensor([3, 5, 6, 7, 9]), torch.tensor([3, -1, 1, 3, 3]), centers)
    assert groups.ids.tolist() == [2, 0, 1, 2, 2]
    assert groups.center.tolist() == [1, 3]
    assert groups.area.tolist() == [0, 1, 3]
    values = torch.tensor([0.25, 1.0, 0.5, 0.75, 0.75])
    assert groups.mean(values).tolist() == pytest.approx([0.5, 1.75 / 3])
    assert groups.maximum(values).tolist() == [0.5, 0.75]
    assert groups.first(torch.tensor([False, True, True, True, True])).tolist() == [6, 7]


def test_mean_of_a_large_group_keeps_its_digits() -> None:
    # in float32 the sum of so many equal numbers drifts by some thousandths
    centers = Centers.sorted(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2), torch.ones(1))
    pixel = torch.arange(500_000)
    mean = Groups.of(pixel, torch.zeros_like(pixel), centers).mean(torch.full((500_000,), 0.9))
    assert mean.item() == pytest.approx(0.9, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_class_probability_is_a_softmax(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, 6, 7, generator=generator) * 20).to(dtype)
    pixel = torch.randperm(84, generator=generator)[:50]
    classes = torch.randint(0, 4, (50,), generator=generator)
    expected = logits.float().softmax(1)[pixel // 42, classes + 1, pixel // 7 % 6, pixel % 7]
    for layout in (torch.contiguous_format, torch.channels_last):
        spots = find_spots(pixel, logits.shape, None)
        assert torch.allclose(
            class_probability(logits.contiguous(memory_format=layout), spots, classes), expected, atol=1e-6
        )
    assert class_probability(logits, spots.select(slice(0)), classes[:0]).tolist() == []


def test_points_group_their_own_class_and_image_only() -> None:
    classes = torch.tensor([[[1, 1, 1, 2, 2, 0]], [[1, 0, 2, 2, 2, 2]]], dtype=torch.int32)
    points = Cues(
        image=torch.tensor([1, 0, 0, 0, 1]),
        yx=torch.tensor([[0.0, 5.5], [0.0, 2.0], [0.0, 0.0], [0.0, 4.0], [0.0, 2.0]]),
        classes=torch.tensor([1, 0, 0, 1, 1]),
        scores=torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]),
    )
    groups, image, own, center_yx = group_by_points(torch.zeros(2, 2, 1, 6), classes, points)
    labels = groups.label(classes.shape, image=image, classes=own, center_yx=center_yx, weight=center_yx[:, 0])
    # class 1 of the first image has an empty slot only, class 0 of the second no point at all
    assert labels.ids.tolist() == [[[2, 1, 1, 0, 0, 0]], [[0, 0, 4, 4, 3, 3]]]
    assert labels.image.tolist() == [0, 0, 0, 1, 1]
    assert labels.classes.tolist() == [-1, 0, 0, 1, 1]
    assert labels.center_yx[1:].tolist() == [[0.0, 2.0], [0.0, 0.0], [0.0, 5.5], [0.0, 2.0]]
    assert labels.area.tolist() == [0, 2, 1, 2, 2]


def test_field_of_another_resolution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offset_field is \(1, 2, 2, 2\).* enlarge the maps first"):
        group_by_points(torch.zeros(1, 2, 2, 2), torch.zeros(1, 8, 8, dtype=torch.int32), Cues.empty())
