from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestie_pl.ops.growing import grow_semantic
from bestie_pl.structures import IGNORE, Cues


def points(*rows: tuple[float, float, int]) -> Cues:
    """(y, x, class) of one image."""
    return Cues(
        torch.zeros(len(rows), dtype=torch.int64),
        torch.tensor([row[:2] for row in rows]).reshape(-1, 2),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.ones(len(rows)),
    )


def scene(discs: list[tuple[float, float, float]], colors: list[float], size: tuple[int, int] = (64, 80)) -> Tensor:
    """Noisy discs (y, x, radius) of one brightness each on a dark noisy ground."""
    generator = torch.Generator().manual_seed(0)
    image = 0.1 + 0.02 * torch.randn(3, *size, generator=generator)
    for mask, color in zip(masks(discs, size), colors, strict=True):
        image[:, mask] += color
    return image.clamp(0, 1)


def masks(discs: list[tuple[float, float, float]], size: tuple[int, int] = (64, 80)) -> list[Tensor]:
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    return [(y - cy) ** 2 + (x - cx) ** 2 <= r * r for cy, cx, r in discs]


DISCS = [(16.0, 18.0, 8.0), (40.0, 30.0, 9.0), (20.0, 60.0, 7.0)]


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_bright_and_dim_objects_grow_to_their_outlines() -> None:
    """One threshold for the image would lose the dim one, or swell the bright ones."""
    semantic = grow_semantic(points((15, 19, 0), (42, 28, 1), (20, 61, 0)), scene(DISCS, [0.8, 0.25, 0.5]))
    for mask, value in zip(masks(DISCS), (1, 2, 1), strict=True):
        y, x = mask.nonzero().float().mean(0).long()
        around = slice(max(0, y - 13), y + 14), slice(max(0, x - 13), x + 14)
        assert iou(semantic[around] == value, mask[around]) > 0.85


def test_an_object_without_a_point_is_background() -> None:
    semantic = grow_semantic(points((15, 19, 0), (20, 61, 0)), scene(DISCS, [0.8, 0.8, 0.8]))
    without = masks(DISCS)[1]
    assert (semantic[without] == 0).all() and (semantic[masks(DISCS)[0]] == 1).float().mean() > 0.9


def test_a_dark_object_on_a_bright_ground() -> None:
    image = 1 - scene(DISCS, [0.6, 0.6, 0.6])
    semantic = grow_semantic(points((15, 19, 0), (42, 28, 0), (20, 61, 0)), image)
    assert iou(semantic == 1, torch.stack(masks(DISCS)).any(0)) > 0.85


def test_no_point_no_object() -> None:
    assert not grow_semantic(points(), scene(DISCS, [0.8, 0.8, 0.8])).any()
    beside = points((-3, 5, 0), (5, 80, 0))
    assert not grow_semantic(beside, scene(DISCS, [0.8, 0.8, 0.8])).any()
    unsure = Cues(torch.tensor([0]), torch.tensor([[16.0, 18.0]]), torch.tensor([0]), torch.tensor([0.0]))
    assert not grow_semantic(unsure, scene(DISCS, [0.8, 0.8, 0.8])).any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    count=st.integers(1, 6),
    band=st.sampled_from([0.0, 0.15, 0.45]),
    flat=st.booleans(),
)
def test_whatever_the_image(seed: int, size: tuple[int, int], count: int, band: float, flat: bool) -> None:
    """Values are classes that have a point, each point's pixel has its class, and mirroring mirrors."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((3, *size), 0.5) if flat else torch.rand(3, *size, generator=generator)
    cells = torch.randperm(size[0] * size[1], generator=generator)[:count]
    yx = torch.stack([cells // size[1], cells % size[1]], 1).float()
    classes = torch.randint(3, (len(cells),), generator=generator)
    cues = Cues(torch.zeros(len(cells), dtype=torch.int64), yx, classes, torch.ones(len(cells)))
    before = image.clone()
    semantic = grow_semantic(cues, image, band=band)
    assert semantic.shape == size and semantic.dtype == torch.uint8 and torch.equal(image, before)
    assert set(semantic.unique().tolist()) <= {0, IGNORE, *(classes + 1).tolist()}
    assert torch.equal(semantic[yx[:, 0].long(), yx[:, 1].long()].long(), classes + 1)


def test_mirroring_mirrors() -> None:
    """Points are nobody's rivals here, so that no tie is broken by their order."""
    image = scene(DISCS, [0.8, 0.3, 0.5])
    cues = points((15, 19, 0), (42, 28, 1), (20, 61, 0))
    mirrored = Cues(cues.image, torch.stack([cues.yx[:, 0], 79 - cues.yx[:, 1]], 1), cues.classes, cues.scores)
    there, back = grow_semantic(cues, image), grow_semantic(mirrored, image.flip(-1)).flip(-1)
    assert (there != back).float().mean() < 0.01


def test_a_wider_band_decides_less() -> None:
    cues = points((15, 19, 0), (42, 28, 1), (20, 61, 0))
    image = scene(DISCS, [0.3, 0.1, 0.2])
    undecided = [(grow_semantic(cues, image, band=band) == IGNORE).sum() for band in (0.0, 0.15, 0.45)]
    assert undecided[0] == 0 and undecided[0] <= undecided[1] < undecided[2]


@pytest.mark.parametrize(
    ("image", "band", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), 0.1, "floating-point image"),
        (torch.zeros(1, 4, 4), 0.1, "floating-point image"),
        (torch.zeros(3, 4, 4), 0.5, "0 <= band < 0.5"),
    ],
)
def test_bad_input(image: Tensor, band: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow_semantic(points((1, 1, 0)), image, band=band)


def test_mixed_precision_changes_nothing() -> None:
    """Half precision holds no count above 65,504: large images would become all object."""
    discs = [(40.0 * y + 30, 40.0 * x + 30, 9.0) for y in range(9) for x in range(9)]
    image = scene(discs[::5], [0.7] * 17, size=(400, 400))
    given = points(*((y, x, 0) for y, x, _ in discs[::5]))
    expected = grow_semantic(given, image)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(grow_semantic(given, image), expected)
    assert 0.01 < (expected == 1).float().mean() < 0.1
