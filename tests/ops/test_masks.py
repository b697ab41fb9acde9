from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as codec

from bestie_pl.ops.masks import decode, encode, mask_iou, paint, to_instances
from bestie_pl.structures import Cues, Instances, LabeledInstances

maps = arrays.arrays(
    np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 9])
)


def labels_of(ids: torch.Tensor, weight: list[float]) -> LabeledInstances:
    rows = len(weight)
    return LabeledInstances(
        ids=ids.int(),
        image=torch.zeros(rows, dtype=torch.int64),
        classes=torch.arange(rows) + 9,
        center_yx=torch.zeros(rows, 2),
        weight=torch.tensor(weight),
        area=ids.flatten().bincount(minlength=rows),
        peaks=Cues.empty(),
    )


def instances_of(masks: np.ndarray) -> Instances:
    codes = codec.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))) if len(masks) else []
    return Instances(tuple(codes), torch.zeros(len(masks), dtype=torch.int64), torch.ones(len(masks)), masks.shape[1:])


@settings(max_examples=200, deadline=None)
@given(maps)
def test_codes_are_those_of_pycocotools(ids: np.ndarray) -> None:
    numbers, codes = encode(torch.from_numpy(ids))
    expected = np.unique(ids[ids > 0])
    assert numbers.tolist() == expected.tolist()
    assert list(codes) == [codec.encode(np.asfortranarray(ids == n)) for n in expected]


def test_a_label_map_may_be_a_view() -> None:
    ids = torch.arange(6).view(2, 3).expand(4, 2, 3)[1].t()
    assert encode(ids)[1] == encode(ids.contiguous())[1]


@settings(max_examples=50, deadline=None)
@given(maps)
def test_paint_inverts_encode(ids: np.ndarray) -> None:
    numbers, codes = encode(torch.from_numpy(ids))
    painted = paint(Instances(codes, numbers, torch.ones(len(codes)), ids.shape))
    assert painted.dtype == torch.int32
    lookup = np.array([0, *numbers.tolist()])
    assert (lookup[painted.numpy()] == ids).all()


def test_later_instances_cover_earlier_ones() -> None:
    masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 0]]])
    assert paint(instances_of(masks)).tolist() == [[1, 2, 2, 0]]


def test_decode_gives_the_masks_back() -> None:
    masks = np.random.default_rng(0).random((5, 7, 4)) < 0.5
    assert (decode(instances_of(masks)).numpy() == masks).all()


def test_no_instances() -> None:
    none = instances_of(np.zeros((0, 3, 5), bool))
    assert decode(none).shape == (0, 3, 5)
    assert paint(none).tolist() == [[0] * 5] * 3
    assert mask_iou(none, none).shape == (0, 0)
    assert mask_iou(instances_of(np.ones((2, 3, 5), bool)), none).shape == (2, 0)


def test_instances_are_cropped_and_sorted_by_score() -> None:
    ids = torch.tensor([[[1, 1, 9], [2, 2, 9], [9, 9, 9]], [[3, 4, 5], [3, 4, 5], [3, 4, 5]]])
    weight = [0.0, 0.25, 0.5, 0.75, 0.75, 1.0, 0.9, 0.0, 0.0, 0.0]  # row 6 has no pixel, row 9 only padding
    first, second = to_instances(labels_of(ids, weight), sizes=[(2, 2), (3, 3)], original_sizes=[(2, 2), (3, 3)])
    assert first.size == (2, 2)
    assert first.classes.tolist() == [11, 10]
    assert first.scores.tolist() == [0.5, 0.25]
    assert decode(first).tolist() == [[[False, False], [True, True]], [[True, True], [False, False]]]
    assert second.classes.tolist() == [14, 12, 13]  # equal scores in the order of the table


def test_an_image_without_instances() -> None:
    ids = torch.tensor([[[0, 0], [0, 0]], [[1, 0], [0, 0]]])
    empty, one = to_instances(labels_of(ids, [0.0, 1.0]), sizes=[(2, 2)] * 2, original_sizes=[(4, 4), (2, 2)])
    assert len(empty) == 0
    assert empty.size == (4, 4)
    assert len(one) == 1


@settings(max_examples=100, deadline=None)
@given(maps, st.integers(1, 20), st.integers(1, 20))
def test_enlarging_takes_the_nearest_pixel_centre(ids: np.ndarray, height: int, width: int) -> None:
    labels = labels_of(torch.from_numpy(ids)[None].long(), [0.0] + [1 - i / 16 for i in range(9)])
    (result,) = to_instances(labels, sizes=[ids.shape], original_sizes=[(height, width)])
    y, x = ((np.arange(new) + 0.5) * old / new for old, new in zip(ids.shape, (height, width), strict=True))
    expected = ids[np.floor(y + 1e-9).astype(int)][:, np.floor(x + 1e-9).astype(int)]
    lookup = np.array([0, *(result.classes - 9).tolist()])
    assert (lookup[paint(result).numpy()] == expected).all()


def test_sizes_must_match_the_maps() -> None:
    with pytest.raises(ValueError, match="1 maps, 2 sizes and 1 original sizes"):
        to_instances(labels_of(torch.zeros(1, 2, 2).long(), [0.0]), sizes=[(2, 2)] * 2, original_sizes=[(2, 2)])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_iou_is_that_of_the_masks(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.random((k, 5, 6)) < rng.choice([0, 0.2, 0.8], (k, 1, 1)) for k in (n, m))
    common = (first[:, None] & second).sum((2, 3))
    union = (first[:, None] | second).sum((2, 3))
    with np.errstate(invalid="ignore"):
        expected = (common / union).astype(np.float32)
    got = mask_iou(instances_of(first), instances_of(second))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), expected)  # NaN where both are empty


def test_iou_of_different_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        mask_iou(instances_of(np.ones((1, 2, 3))), instances_of(np.ones((1, 3, 2))))


def test_hundreds_of_masks_can_be_compared() -> None:
    """pycocotools' area fails for a list of more than 255 masks; untrained networks predict as many."""
    numbers, codes = encode(torch.arange(1, 401).view(20, 20))
    many = Instances(codes, numbers, torch.ones(400), (20, 20))
    assert torch.equal(mask_iou(many, many), torch.eye(400))
