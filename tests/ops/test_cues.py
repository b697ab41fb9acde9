"""Peak attention, poolings, activation maps and cues: recorded cases of the release, and slow plain references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestie_pl.ops.cues import activation_planes, find_cues, peak_attention, pool, smooth
from bestie_pl.structures import Cues

Golden = Callable[[str], dict[str, np.ndarray]]


def one_plane(values: Tensor, **settings: object) -> Cues:
    nothing = torch.zeros(1, dtype=torch.int64)
    return find_cues(values[None], nothing, nothing, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.7])
def test_peak_attention_is_the_releases(golden: Golden, alpha: float) -> None:
    case = golden("j_pam")
    result = peak_attention(torch.from_numpy(case["pam_in"]), alpha)
    assert np.array_equal(result.numpy(), case[f"pam_out_alpha{alpha}"])


def test_peak_attention_passes_gradients_through_what_it_keeps() -> None:
    x = torch.tensor([[[[2.0, 1.4, 1.3, -1.0]], [[-1.0, -2.0, -3.0, -4.0]]]], requires_grad=True)
    peak_attention(x, 0.7).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[[[1, 1, 0, 0]], [[0, 0, 0, 0]]]]


def test_alpha_0_only_rectifies() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(peak_attention(x, 0), x.relu())


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_poolings_agree_with_their_formulas(seed: int, classes: int, cells: int) -> None:
    m = np.random.default_rng(seed).normal(0, 5, (2, classes, 1, cells)).astype(np.float32)
    flat = m.reshape(2, classes, -1).astype(np.float64)
    k = -(-cells // 25)
    e = np.exp(np.concatenate([np.ones((2, 1, cells)), flat], 1))
    p = (e / e.sum(1, keepdims=True))[:, 1:]
    expected = {
        "mean": flat.mean(2),
        "topk": np.sort(flat, 2)[:, :, -k:].mean(2),
        "ngwp": (p * flat).sum(2) / (1 + p.sum(2)),
    }
    for how, value in expected.items():
        assert np.allclose(pool(torch.from_numpy(m), how), value, rtol=1e-4, atol=1e-4), how  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["mean", "topk", "ngwp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_poolings_stay_finite_with_large_values(how: str, dtype: torch.dtype) -> None:
    maps = (torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]])).to(dtype).requires_grad_()
    logits = pool(maps, how)  # type: ignore[arg-type]
    logits.sum().backward()
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert maps.grad is not None and maps.grad.isfinite().all()


@pytest.mark.parametrize("case", ["cam0", "cam1", "cam2"])
def test_cues_are_the_releases(golden: Golden, case: str) -> None:
    """The whole way from class maps of an image and its mirror image to the lines of the file."""
    data = golden("j_pam")
    maps, size = torch.from_numpy(data[f"{case}_logits_map"]), tuple(data[f"{case}_size"].tolist())
    assert np.allclose(pool(maps, "mean"), data[f"{case}_image_logits"], atol=1e-6)
    classes = torch.from_numpy(data[f"{case}_tags"][0]).nonzero().flatten()
    plain, mirrored = (activation_planes(m[classes], size) for m in maps)
    planes = smooth((plain + mirrored.flip(-1)) / 2)
    assert np.allclose(planes, data[f"{case}_out_avg_smoothed"][0], atol=1e-5)

    cues = find_cues(planes, torch.zeros_like(classes), classes, every_equal=True)
    expected = data[f"{case}_out_points_x_y_cls_conf"]
    found = np.column_stack([cues.yx.flip(1), cues.classes, cues.scores])
    assert sorted(map(tuple, found[:, :3])) == sorted(map(tuple, expected[:, :3]))
    assert np.allclose(found[:, 3], expected[:, 3], atol=1e-4)
    lines = [f"{x:.0f} {y:.0f} {c} {s:.3f}" for (y, x), c, s in zip(cues.yx, cues.classes, cues.scores, strict=True)]
    assert sorted(lines) == sorted(data[f"{case}_out_lines"].tolist())


def test_a_plateau_gives_the_release_several_cues_and_us_one(golden: Golden) -> None:
    data = golden("j_pam")
    plane = smooth(torch.from_numpy(data["plateau_in"][0]))[0]
    theirs = one_plane(plane, every_equal=True)
    expected = data["plateau_out_x_y_conf"]
    assert sorted(theirs.yx.flip(1).tolist()) == sorted(expected[:, :2].tolist()) and len(expected) == 4
    assert np.allclose(theirs.scores, expected[:, 2], atol=1e-4)
    assert one_plane(plane).yx.tolist() == [[11, 11]]


def test_the_largest_25_are_kept(golden: Golden) -> None:
    data = golden("j_pam")
    planes = torch.from_numpy(data["many_in"][0])
    cues = find_cues(planes, torch.zeros(2, dtype=torch.int64), torch.arange(2), window=5, every_equal=True)
    for c in range(2):
        mine = cues.select(cues.classes == c)
        conf, y, x = (data[f"many_out_{name}"][c] for name in ("conf", "y", "x"))
        assert np.allclose(mine.scores, conf, atol=1e-6)
        # which of those that equal the last one are kept is nobody's business
        sure = conf > conf[-1]
        expected = set(zip(y[sure].tolist(), x[sure].tolist(), strict=True))
        assert {(int(v), int(u)) for v, u in mine.yx[mine.scores > mine.scores[-1]]} == expected


@given(st.integers(0, 2**31), st.sampled_from([1, 3, 5, 7]), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_cues_agree_with_a_search_of_every_window(seed: int, window: int, limit: int, every_equal: bool) -> None:
    """Few different values, so that plateaus and equal peaks are common."""
    planes = np.random.default_rng(seed).integers(0, 5, (3, 9, 11)).astype(np.float32) / 4
    reach = window // 2
    expected = []
    for number, plane in enumerate(planes):
        peaks = {
            (y, x): plane[y, x]
            for y, x in np.ndindex(plane.shape)
            if plane[y, x] >= 0.1
            and plane[y, x] == plane[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].max()
        }
        if not every_equal:
            peaks = {
                a: value
                for a, value in peaks.items()
                if not any(b < a and max(abs(b[0] - a[0]), abs(b[1] - a[1])) <= reach for b in peaks)
            }
        ranked = sorted(peaks.items(), key=lambda item: (-item[1], item[0]))[:limit]
        expected += [(number + 4, number, *yx, value) for yx, value in ranked]
    cues = find_cues(
        torch.from_numpy(planes),
        torch.arange(3) + 4,
        torch.arange(3),
        window=window,
        limit=limit,
        every_equal=every_equal,
    )
    rows = zip(cues.image, cues.classes, *cues.yx.unbind(1), cues.scores, strict=True)
    assert [tuple(float(v) for v in row) for row in rows] == [tuple(map(float, row)) for row in expected]


def test_nothing_gives_no_cue() -> None:
    assert len(one_plane(torch.zeros(20, 20))) == 0
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(find_cues(torch.zeros(0, 20, 20), nothing, nothing)) == 0
    assert activation_planes(torch.full((1, 3, 3), -1.0), (9, 9)).sum() == 0


def test_a_constant_plane_gives_one_cue() -> None:
    assert len(one_plane(torch.full((30, 40), 0.5))) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 0.0}, "threshold"), ({"window": 4}, "window must be odd"), ({"limit": 0}, "limit")],
)
def test_wrong_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_plane(torch.rand(5, 5), **settings)
