"""What pictures show: colours of offsets, outlines and texts of instances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.drawing import FILL_OPACITY, color_of, color_wheel, draw_instances
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Instances


@pytest.mark.parametrize(
    ("offset", "color"),
    [
        ((0, 5), (255, 0, 0)),  # right
        ((5, 0), (128, 255, 0)),  # down
        ((0, -5), (0, 255, 255)),  # left
        ((-5, 0), (128, 0, 255)),  # up
        ((0, 0), (255, 255, 255)),
        ((0, 2.5), (255, 128, 128)),  # half as far, half as strong
    ],
)
def test_the_hue_says_where_an_offset_points(offset: tuple[float, float], color: tuple[int, int, int]) -> None:
    field = torch.tensor(offset, dtype=torch.float32)[:, None, None]
    assert np.abs(color_wheel(field, longest=5)[0, 0].astype(int) - color).max() <= 1


def test_the_longest_offset_has_full_strength() -> None:
    field = torch.zeros(2, 1, 3)
    field[1, 0] = torch.tensor([0.0, 3.0, 6.0])
    assert color_wheel(field)[0].tolist() == [[255, 255, 255], [255, 128, 128], [255, 0, 0]]
    assert (color_wheel(torch.zeros(2, 4, 5)) == 255).all()


def found(ids: torch.Tensor, scores: list[float]) -> Instances:
    _, codes = encode(ids)
    return Instances(codes, torch.zeros(len(codes), dtype=torch.int64), torch.tensor(scores), tuple(ids.shape))


def test_masks_are_outlined_and_tinted() -> None:
    ids = torch.zeros(600, 700, dtype=torch.int32)
    ids[100:300, 100:400] = 1
    image = np.full((600, 700, 3), 90, np.uint8)
    picture = draw_instances(image, found(ids, [0.5]), ["object"])
    color = np.asarray(color_of(1))
    assert picture.shape == image.shape and (image == 90).all()
    assert (picture[250, 100] == color).all() and (picture[299, 250] == color).all()
    expected = (90 * (1 - FILL_OPACITY) + color * FILL_OPACITY).round()
    assert (picture[250, 250] == expected).all()
    assert (picture[250, 99] == 30).all(), "a dark rim outside"
    assert (picture[400:] == 90).all() and (picture[:, 500:] == 90).all()


def test_text_stands_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both on a large object, the score on a smaller one, nothing on a tiny one, nothing over another text."""
    from PIL import ImageDraw

    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **_: written.append(text))
    ids = torch.zeros(800, 800, dtype=torch.int32)
    ids[100:300, 100:400] = 1
    ids[500:540, 500:535] = 2
    ids[700:704, 700:704] = 3
    ids[301:500, 100:400] = 4  # its place is free: above it lies the first object, not its text
    draw_instances(np.zeros((800, 800, 3), np.uint8), found(ids, [0.9, 0.8, 0.7, 0.6]), ["hazelnut"])
    assert written == ["hazelnut 0.90", "0.80", "hazelnut 0.60"]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), st.integers(0, 999))
def test_any_size_and_number(height: int, width: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.integers(0, count + 1, (height, width)).astype(np.int32))
    instances = found(ids, torch.linspace(1, 0, len(ids.unique()[ids.unique() > 0])).tolist())
    picture = draw_instances(np.zeros((height, width, 3), np.uint8), instances, ["a"])
    assert picture.shape[0] % height == 0 and max(picture.shape) >= 512
