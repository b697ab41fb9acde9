"""Run-length codes read without unfolding them: the same as pycocotools makes of the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as codec

from bestie_pl.ops.runs import covers, measure, paint_codes, read_runs

masks = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def code_of(mask: np.ndarray) -> dict:
    return codec.encode(np.asfortranarray(mask.astype(np.uint8)))


@settings(max_examples=200, deadline=None)
@given(masks)
def test_runs_are_the_pixels_of_the_mask(mask: np.ndarray) -> None:
    start, length = read_runs(code_of(mask))
    pixels = np.concatenate([[], *(np.arange(s, s + n) for s, n in zip(start.tolist(), length.tolist(), strict=True))])
    assert pixels.tolist() == np.flatnonzero(mask.T).tolist()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_a_mask_covers_its_pixels(mask: np.ndarray) -> None:
    yx = torch.from_numpy(np.indices(mask.shape).reshape(2, -1).T)
    assert covers(code_of(mask), yx).tolist() == mask.astype(bool).ravel().tolist()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_measures_are_those_of_the_mask(mask: np.ndarray) -> None:
    area, center = measure(code_of(mask))
    assert area == mask.sum()
    expected = [axis.mean() if len(axis) else np.nan for axis in np.nonzero(mask)]
    np.testing.assert_allclose(center, expected)


@pytest.mark.parametrize("side", [1, 31, 1025])
def test_long_runs(side: int) -> None:
    """Lengths of several characters, and differences below zero."""
    mask = np.ones((side, side), np.uint8)
    mask[side // 2, side // 3 :] = 0
    assert torch.equal(paint_codes([code_of(mask)], (side, side)), torch.from_numpy(mask).int())


def test_later_codes_cover_earlier_ones() -> None:
    first, second = np.array([[1, 1, 0]]), np.array([[0, 1, 1]])
    assert paint_codes([code_of(first), code_of(second)], (1, 3)).tolist() == [[1, 2, 2]]
    assert paint_codes([], (2, 3)).tolist() == [[0] * 3] * 2
