"""The release's augmentation against recorded inputs, draws and outputs of the release."""

from __future__ import annotations

import numpy as np
import pytest

from bestie_pl.data import release
from bestie_pl.data.release import ColorDraws, GeometryDraws

CROP = 96


def test_photometric_matches_the_release(golden):
    data = golden("m_photometric")
    for name in [key.removesuffix("_out") for key in data if key.endswith("_out")]:
        brightness, first, *rest = (bool(v < 0.5) for v in data[f"{name}_random_draws"])
        contrast, hue = rest if first else reversed(rest)
        values = iter(data[f"{name}_uniform_draws"].tolist())
        order = ["contrast", "hue"] if first else ["hue", "contrast"]
        events = [("brightness", brightness), *((o, contrast if o == "contrast" else hue) for o in order)]
        draws = ColorDraws(**{event: next(values) for event, happens in events if happens}, contrast_first=first)
        out = release.distort_colors(data["in_image"], draws)
        assert out.dtype == np.uint8
        difference = np.abs(out.astype(int) - data[f"{name}_out"])
        assert difference.max() <= 1, name


@pytest.mark.parametrize("crop", [96, 416])
def test_first_resize_sizes_match_the_release(golden, crop):
    data = golden("m_geometry")
    pairs = zip(data[f"resize{crop}_in_hw"].tolist(), data[f"resize{crop}_out_hw"].tolist(), strict=True)
    for size, expected in pairs:
        assert release.resized_size(tuple(size), crop) == tuple(expected)


@pytest.mark.parametrize("case", range(12))
def test_geometry_matches_the_release(golden, case):
    data = {k[4:]: v for k, v in golden("m_geometry").items() if k.startswith(f"g{case:02d}_")}
    draws = GeometryDraws(
        float(data["scale"]), tuple(data["pad_top_left"]), tuple(data["crop_top_left"]), bool(data["flip"])
    )
    size = data["in_seg"].shape
    assert release.scaled_size(release.resized_size(size, CROP), draws.scale) == tuple(data["hw_scaled"])
    assert np.array_equal(release.transform_map(data["in_seg"], CROP, draws), data["out_seg"])
    image = release.transform_image(data["in_image"], CROP, draws)
    expected = data["out_image_u8_before_flip"]
    expected = expected[:, ::-1] if draws.flip else expected
    assert np.abs(image.astype(int) - expected).max() <= 1

    points, kept = release.transform_points(data["in_points"][:, 1::-1], size, CROP, draws)
    assert np.array_equal(points[:, ::-1], data["out_points"][:, :2])
    assert np.array_equal(data["in_points"][kept][:, 2:], data["out_points"][:, 2:])


def test_draws_stay_in_the_release_ranges():
    random = np.random.default_rng(0)
    for size in [(375, 500), (90, 30), (600, 600)]:
        for _ in range(50):
            draws = release.draw_geometry(size, CROP, random)
            height, width = release.scaled_size(release.resized_size(size, CROP), draws.scale)
            for pad, first, side in zip(draws.pad, draws.crop, (height, width), strict=True):
                assert 0 <= pad <= max(CROP - side, 0)
                assert 0 <= first <= max(side - CROP, 0)
    colors = [release.draw_colors(random) for _ in range(400)]
    assert 0.4 < np.mean([c.brightness != 0 for c in colors]) < 0.6
    assert max(abs(c.hue) for c in colors) <= 36
    assert all(0.5 <= c.contrast <= 1.5 for c in colors)


def test_maps_keep_their_type_and_padding_is_background():
    ids = np.full((40, 60), 70000, dtype=np.int32)
    moved = release.transform_map(ids, CROP, GeometryDraws(scale=0.7, pad=(3, 2)))
    assert moved.dtype == np.int32
    assert set(np.unique(moved)) == {0, 70000}
    assert (moved[:3] == 0).all() and (moved[:, :2] == 0).all()
    image = release.transform_image(np.zeros((40, 60, 3), np.uint8), CROP, GeometryDraws(scale=0.7, pad=(3, 2)))
    assert tuple(image[0, 0]) == release.MEAN_COLOR
