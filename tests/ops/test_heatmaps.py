from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.ops.heatmaps import center_heatmap, offset_field, sparse_heatmap, weight_map
from bestie_pl.structures import Cues, Geometry, LabeledInstances

SHAPE = (2, 3, 23, 31)


def make_cues(rows: list[tuple[int, float, float, int]], scores: list[float] | None = None) -> Cues:
    """Cues from (image, y, x, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    given_scores = torch.ones(len(table)) if scores is None else torch.tensor(scores)
    return Cues(table[:, 0].long(), table[:, 1:3], table[:, 3].long(), given_scores)


def reference_heatmap(peaks: Cues, shape: tuple[int, int, int, int], sigma: float, reach: int) -> np.ndarray:
    """One pixel and peak at a time, in double precision."""
    dense = np.zeros(shape)
    for image, (y, x), category, score in zip(
        peaks.image.tolist(), np.rint(peaks.yx.numpy()).astype(int), peaks.classes.tolist(), peaks.scores, strict=True
    ):
        if score == 0 or not (0 <= y < shape[2] and 0 <= x < shape[3]):
            continue
        for row in range(max(0, y - reach), min(shape[2], y + reach + 1)):
            for column in range(max(0, x - reach), min(shape[3], x + reach + 1)):
                value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                dense[image, category, row, column] = max(dense[image, category, row, column], value)
    return dense


row = st.tuples(st.integers(0, 1), st.floats(-4, 27, width=32), st.floats(-4, 35, width=32), st.integers(0, 2))


@settings(deadline=None)  # the first call pays for torch's start
@given(st.lists(st.tuples(row, st.sampled_from([0.0, 0.3, 1.0])), max_size=7), st.sampled_from([0.5, 1.0, 2.5]))
def test_agrees_with_a_loop_over_pixels(drawn: list[tuple[tuple[int, float, float, int], float]], sigma: float) -> None:
    peaks = make_cues([r for r, _ in drawn], [score for _, score in drawn])
    reach = Geometry(sigma=sigma).gaussian_reach

    index, value = sparse_heatmap(peaks, SHAPE, sigma, reach)
    expected = reference_heatmap(peaks, SHAPE, sigma, reach)

    np.testing.assert_array_equal(index.numpy(), np.flatnonzero(expected))  # each pixel once, in order
    np.testing.assert_allclose(value.numpy(), expected[expected > 0], atol=1e-6)
    np.testing.assert_allclose(center_heatmap(peaks, SHAPE, sigma, reach).numpy(), expected, atol=1e-6)


def test_window_of_the_release(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    data = golden("a_centre_map")
    for sigma in (4, 6, 8):
        reach = Geometry(sigma=sigma).gaussian_reach
        side = 2 * reach + 1
        drawn = center_heatmap(make_cues([(0, reach, reach, 0)]), (1, 1, side, side), sigma, reach)
        assert data[f"g{sigma}"].shape == (side, side)
        np.testing.assert_allclose(drawn[0, 0].numpy(), data[f"g{sigma}"], atol=1e-6)


@pytest.mark.parametrize("case", [f"p{n}" for n in range(7)])
def test_stamping_of_the_release(golden: Callable[[str], dict[str, np.ndarray]], case: str) -> None:
    data = golden("a_centre_map")
    x, y, sigma = data[f"{case}_xys"].tolist()
    geometry = Geometry(sigma=sigma)
    drawn = center_heatmap(make_cues([(0, y, x, 1)]), (1, 2, 48, 64), geometry.sigma, geometry.gaussian_reach)[0]
    before = np.array([0, 0.25])[:, None, None]  # the file's maps were 0 and 0.25 before the stamp
    np.testing.assert_allclose(np.maximum(drawn.numpy(), before), data[f"{case}_out"], atol=1e-6)


def test_larger_gaussian_counts_within_a_class_only() -> None:
    near = center_heatmap(make_cues([(0, 0, 0, 0), (0, 0, 3, 0), (0, 0, 3, 1)]), (1, 2, 1, 4), 1.0, 4)
    falling = torch.exp(-torch.arange(4.0).square() / 2)
    torch.testing.assert_close(near[0, 0, 0], torch.maximum(falling, falling.flip(0)))
    torch.testing.assert_close(near[0, 1, 0], falling.flip(0))


def test_no_peaks() -> None:
    index, value = sparse_heatmap(Cues.empty(), SHAPE, 6.0, 19)
    assert index.shape == value.shape == (0,)
    assert index.dtype == torch.int64 and value.dtype == torch.float32
    assert not center_heatmap(Cues.empty(), SHAPE, 6.0, 19).any()


def test_empty_slot_may_hold_class_minus_one() -> None:
    index, _ = sparse_heatmap(make_cues([(0, 0, 0, -1)], [0.0]), SHAPE, 6.0, 19)
    assert len(index) == 0


def test_a_half_pixel_outside_is_outside() -> None:
    """A position is rounded before it is compared with the border."""
    drawn = center_heatmap(make_cues([(0, -0.6, 5, 0), (1, 22.4, 30.4, 2)]), SHAPE, 1.0, 0)
    assert drawn.nonzero().tolist() == [[1, 2, 22, 30]]


def labels_of_two() -> LabeledInstances:
    return LabeledInstances(
        ids=torch.tensor([[[0, 1], [1, 1]], [[2, 0], [0, 0]]], dtype=torch.int32),
        image=torch.tensor([0, 0, 1]),
        classes=torch.tensor([-1, 0, 0]),
        center_yx=torch.tensor([[0.0, 0.0], [1.0, 0.5], [5.0, -2.0]]),
        weight=torch.tensor([0.0, 0.25, 1.0]),
        area=torch.tensor([0, 3, 1]),
        peaks=Cues.empty(),
    )


def test_offsets_point_to_the_centre_and_are_zero_elsewhere() -> None:
    assert offset_field(labels_of_two()).tolist() == [
        [[[0, 1], [0, 0]], [[0, -0.5], [0.5, -0.5]]],
        [[[5, 0], [0, 0]], [[-2, 0], [0, 0]]],
    ]


def test_weights_are_those_of_the_rows() -> None:
    assert weight_map(labels_of_two()).tolist() == [[[0, 0.25], [0.25, 0.25]], [[1, 0], [0, 0]]]
