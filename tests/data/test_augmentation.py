"""Image, semantic map, true instances and cues move together, and exactly."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bestie_pl.data.augmentation import Augmentation, change_colors, similarities, warp_batch
from bestie_pl.data.release import MEAN_COLOR
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.structures import Batch, Cues

NO_TURN = torch.zeros(1, 3, dtype=torch.bool)


def make_batch(images: torch.Tensor, semantic: torch.Tensor, cues: Cues | None = None, ids=None) -> Batch:
    b, h, w = semantic.shape
    truth = None
    if ids is not None:
        n = int(ids.max())
        truth = instances_from_map(ids, torch.zeros(n + 1, dtype=torch.int64), torch.arange(-1, n))
    return Batch(
        images=images,
        tags=torch.ones(b, 2, dtype=torch.bool),
        cues=cues or Cues.empty(),
        names=tuple(map(str, range(b))),
        sizes=((h, w),) * b,
        original_sizes=((h, w),) * b,
        semantic=semantic,
        truth=truth,
    )


def random_batch(size: tuple[int, int], seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return make_batch(
        torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), torch.randint(0, 256, (1, *size), dtype=torch.uint8)
    )


def point_cues(yx: list[tuple[float, float]]) -> Cues:
    n = len(yx)
    return Cues(torch.zeros(n, dtype=torch.int64), torch.tensor(yx), torch.zeros(n, dtype=torch.int64), torch.ones(n))


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def test_identity_returns_the_same_pixels():
    batch = random_batch((416, 416))
    matrix = similarities(torch.ones(1), torch.zeros(1, 2), NO_TURN, 416)
    moved = warp_batch(batch, matrix, 416)
    assert moved.images.dtype == torch.float32
    assert torch.equal(to_bytes(moved.images), batch.images)
    assert torch.equal(moved.semantic, batch.semantic)


def test_every_turn_is_an_exact_rearrangement_of_pixels():
    batch = random_batch((60, 80))
    rows, columns = slice(5, 53), slice(20, 68)
    image, semantic = batch.images[0, :, rows, columns], batch.semantic[0, rows, columns]
    for number in range(8):
        turns = torch.tensor([[number & 1 > 0, number & 2 > 0, number & 4 > 0]])
        moved = warp_batch(batch, similarities(torch.ones(1), torch.tensor([[20.0, 5.0]]), turns, 48), 48)

        for values, result in ((image, to_bytes(moved.images[0])), (semantic, moved.semantic[0])):
            expected = values.flip(-1) if turns[0, 0] else values
            expected = expected.flip(-2) if turns[0, 1] else expected
            expected = expected.transpose(-2, -1) if turns[0, 2] else expected
            assert torch.equal(result, expected)


def test_scaling_keeps_pixel_areas():
    """Twice the size: the usual bilinear enlargement of the whole image; pixels of the map become 2 x 2 blocks."""
    batch = random_batch((24, 24))
    moved = warp_batch(batch, similarities(torch.full((1,), 2.0), torch.zeros(1, 2), NO_TURN, 48), 48)
    expected = F.interpolate(batch.images.float(), scale_factor=2, mode="bilinear", align_corners=False) / 255
    inside = (..., slice(1, -1), slice(1, -1))  # the rim mixes with the colour outside
    assert torch.allclose(moved.images[inside], expected[inside], atol=1e-4)
    assert torch.equal(moved.semantic, batch.semantic.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_mirror_moves_a_point_to_the_mirrored_pixel():
    batch = make_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8))
    batch = Batch(**{**batch.__dict__, "cues": point_cues([(3.0, 0.0), (7.25, 30.5)])})
    matrix = similarities(torch.ones(1), torch.zeros(1, 2), torch.tensor([[True, False, False]]), 32)
    assert warp_batch(batch, matrix, 32).cues.yx.tolist() == [[3.0, 31.0], [7.25, 0.5]]


@given(
    scale=st.floats(1.0, 2.0),
    corner=st.tuples(st.integers(-20, 60), st.integers(-20, 60)),
    turns=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_points_stay_on_their_pixels(scale, corner, turns, seed):
    """Mark single pixels in the maps, and find the marks again where the points went; none is lost inside the crop."""
    torch.manual_seed(seed)
    height, width, crop = 50, 70, 64
    chosen = torch.randperm(height * width)[:20]
    semantic = torch.zeros(1, height, width, dtype=torch.uint8)
    ids = torch.zeros(1, height, width, dtype=torch.int32)
    semantic.view(-1)[chosen] = torch.arange(1, 21, dtype=torch.uint8)
    ids.view(-1)[chosen] = torch.arange(1, 21, dtype=torch.int32)
    cues = point_cues([(float(c // width), float(c % width)) for c in chosen])
    cues = Cues(cues.image, cues.yx, torch.arange(20), cues.scores)
    batch = make_batch(torch.zeros(1, 3, height, width, dtype=torch.uint8), semantic, cues, ids)
    matrix = similarities(torch.tensor([scale]), torch.tensor([corner]).float(), torch.tensor([turns]), crop)
    moved = warp_batch(batch, matrix, crop)
    # a point between two pixels may round either way in float32
    clear = ((moved.cues.yx - moved.cues.yx.floor() - 0.5).abs() > 1e-3).all(1)
    cues = moved.cues.select(clear)
    y, x = cues.yx.round().long().unbind(1)
    assert torch.equal(moved.semantic[0, y, x].long(), cues.classes + 1)
    assert torch.equal(moved.truth.ids[0, y, x].long(), cues.classes + 1)
    assert torch.equal(moved.truth.area[1:], torch.bincount(moved.truth.ids.flatten(), minlength=21)[1:])
    seen = set(moved.truth.ids.unique().tolist()) - {0}
    assert {int(c) + 1 for c in cues.classes} <= seen


def test_points_stay_on_their_objects_when_the_image_shrinks():
    """Objects of a few pixels: the moved point still lies on its object, at every scale of the default range."""
    batch = make_batch(torch.zeros(1, 3, 100, 100, dtype=torch.uint8), torch.zeros(1, 100, 100, dtype=torch.uint8))
    ids = torch.zeros(1, 100, 100, dtype=torch.int32)
    corners = [(y, x) for y in range(5, 90, 12) for x in range(5, 90, 12)]
    for n, (y, x) in enumerate(corners, 1):
        ids[0, y : y + 5, x : x + 5] = n
    cues = point_cues([(y + 2.0, x + 2.0) for y, x in corners])
    truth = instances_from_map(ids, torch.zeros(len(corners) + 1, dtype=torch.int64), torch.arange(-1, len(corners)))
    cues = Cues(cues.image, cues.yx, torch.arange(len(corners)), cues.scores)
    batch = Batch(**{**batch.__dict__, "cues": cues, "truth": truth})
    augment = Augmentation(crop_size=64, dihedral=True, color_jitter=0)
    for seed in range(30):
        moved = augment(batch, torch.Generator().manual_seed(seed))
        y, x = moved.cues.yx.round().long().unbind(1)
        assert len(y) > 0
        assert torch.equal(moved.truth.ids[0, y, x].long(), moved.cues.classes + 1)


def test_outside_is_ignored_and_grey():
    batch = make_batch(
        torch.full((1, 3, 20, 20), 200, dtype=torch.uint8),
        torch.full((1, 20, 20), 255, dtype=torch.uint8),
        point_cues([(0.0, 0.0), (19.0, 19.0)]),
        torch.ones(1, 20, 20, dtype=torch.int32),
    )
    batch.semantic[:, :10] = 1
    moved = warp_batch(batch, similarities(torch.ones(1), torch.tensor([[-6.0, 4.0]]), NO_TURN, 32), 32)
    assert (moved.semantic[0, :, :6] == 255).all() and (moved.semantic[0, :6, 6:26] == 1).all()
    assert (moved.semantic[0, 6:] == 255).all()
    assert (moved.truth.ids[0, :, :6] == 0).all() and (moved.truth.ids[0, :16, 6:26] == 1).all()
    assert moved.truth.center_yx[1].tolist() == [7.5, 15.5]
    assert tuple(to_bytes(moved.images[0, :, 31, 31]).tolist()) == MEAN_COLOR
    assert (to_bytes(moved.images[0, :, :16, 6:26]) == 200).all()
    assert moved.cues.yx.tolist() == [[15.0, 25.0]]  # the first one is above the crop
    assert moved.sizes == ((32, 32),)


def test_draws_are_reproducible_and_stay_in_range():
    augment = Augmentation(crop_size=64, scale_range=(0.5, 2.0))
    sizes = ((100, 50), (64, 64), (30, 200)) * 30
    matrix = augment.draw_matrices(sizes, torch.Generator().manual_seed(1))
    assert torch.equal(matrix, augment.draw_matrices(sizes, torch.Generator().manual_seed(1)))
    assert not torch.equal(matrix, augment.draw_matrices(sizes, torch.Generator().manual_seed(2)))
    assert (matrix[:, 0, 1] == 0).all() and (matrix[:, 1, 1] > 0).all()  # upright unless dihedral
    assert 0.3 < (matrix[:, 0, 0] < 0).float().mean() < 0.7
    scale = matrix[:, 1, 1]
    assert scale.min() >= 0.5 and scale.max() <= 2 and scale.std() > 0.3
    turned = Augmentation(crop_size=64, dihedral=True).draw_matrices(sizes, torch.Generator().manual_seed(1))
    assert 0.3 < (turned[:, 0, 0] == 0).float().mean() < 0.7


def test_images_fill_the_crop_where_they_can():
    """A crop never shows the outside of an image that is larger than the crop."""
    batch = make_batch(torch.zeros(4, 3, 120, 130, dtype=torch.uint8), torch.zeros(4, 120, 130, dtype=torch.uint8))
    augment = Augmentation(crop_size=64, scale_range=(0.6, 1.4), color_jitter=0, dihedral=True)
    for seed in range(20):
        assert (augment(batch, torch.Generator().manual_seed(seed)).semantic == 0).all()


def test_colors_change_moderately_and_stay_in_range():
    images = torch.rand(16, 3, 24, 24)
    augment = Augmentation()
    neutral = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(16, 1)
    assert torch.allclose(change_colors(images, neutral), images, atol=1e-5)
    changed = change_colors(images, augment.draw_colors(16, torch.Generator().manual_seed(0)))
    assert changed.min() >= 0 and changed.max() <= 1
    difference = (changed - images).abs().mean((1, 2, 3))
    assert (difference > 0.001).all() and difference.mean() < 0.2
    one = change_colors(images[3:4], augment.draw_colors(16, torch.Generator().manual_seed(0))[3:4])
    assert torch.allclose(one, changed[3:4], atol=1e-6)  # no image depends on its neighbours


@given(st.integers(0, 2**31), st.sampled_from([(20, 20), (31, 17)]), st.sampled_from([24, 40]))
@settings(max_examples=60, deadline=None)
def test_cues_on_an_image_stay_on_it(seed: int, size: tuple[int, int], crop: int) -> None:
    """Also those at its border, whose nearest pixel of the crop may show the outside."""
    height, width = size
    y, x = (torch.tensor([0.0, side - 1, side // 2]) for side in size)
    yx = torch.cartesian_prod(y, x)
    cues = Cues(torch.zeros(9, dtype=torch.int64), yx, torch.zeros(9, dtype=torch.int64), torch.ones(9))
    batch = Batch(
        images=torch.zeros(1, 3, height, width, dtype=torch.uint8),
        tags=torch.ones(1, 1, dtype=torch.bool),
        cues=cues,
        names=("a",),
        sizes=(size,),
        original_sizes=(size,),
        semantic=torch.ones(1, height, width, dtype=torch.uint8),
    )
    moved = Augmentation(crop, (0.4, 1.3), True, 0.0)(batch, torch.Generator().manual_seed(seed))
    assert moved.semantic is not None
    row, column = moved.cues.yx.round().long().unbind(1)
    assert (moved.semantic[0, row, column] == 1).all()
