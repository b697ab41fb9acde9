"""Maps read without enlarging them, against the enlarged ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bestie_pl.ops import enlargement as sampling
from bestie_pl.ops.enlargement import Enlargement, cells_of, find_spots
from bestie_pl.structures import InstanceMaps


@st.composite
def enlargements(draw: st.DrawFn) -> tuple[Enlargement, tuple[int, int]]:
    """Any enlargement or reduction, cut or not, and a size of the cells; down to a single one."""
    cells = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    if draw(st.booleans()):
        grid = (4 * cells[0], 4 * cells[1])
    else:
        grid = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    size = (max(1, grid[0] - draw(st.integers(0, 3))), max(1, grid[1] - draw(st.integers(0, 3))))
    return Enlargement(size, grid, draw(st.booleans())), cells


@settings(deadline=None)
@given(enlargements(), st.integers(0, 10**6))
def test_sampled_pixels_are_those_of_the_enlarged_map(case: tuple[Enlargement, tuple[int, int]], seed: int) -> None:
    enlargement, cells = case
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, *cells, generator=generator)
    large = enlargement(values)
    assert large.shape == (2, 3, *enlargement.size)
    pixel = torch.randint(0, large[:, 0].numel(), (50,), generator=generator)
    channel = torch.randint(0, 3, (50,), generator=generator)
    rows = large.permute(0, 2, 3, 1).reshape(-1, 3)[pixel]
    spots = enlargement.locate(pixel, values.shape)
    torch.testing.assert_close(spots.read_all(values), rows.t(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(torch.cat([*spots.read_rows(values, 7)]), rows, rtol=1e-5, atol=2e-6)
    one = spots.read(values.to(memory_format=torch.channels_last), channel)
    torch.testing.assert_close(one, rows[torch.arange(50), channel], rtol=1e-5, atol=2e-6)
    # the enlarged map itself is read in the same way
    spots = find_spots(pixel, large.shape, None)
    assert torch.equal(spots.read_all(large), rows.t())
    assert torch.equal(torch.cat([*spots.read_rows(large, 7)]), rows)
    assert torch.equal(spots.read(large, channel), rows[torch.arange(50), channel])


@settings(deadline=None)
@given(enlargements(), st.integers(0, 10**6), st.sampled_from([1, 200, 10**6]))
def test_bands_put_together_are_the_enlarged_map(
    case: tuple[Enlargement, tuple[int, int]], seed: int, budget: int
) -> None:
    """And their gradient is that of enlarging."""
    enlargement, cells = case
    values = torch.randn(2, 3, *cells, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    large = enlargement(values)
    weight = torch.randn(large.shape, generator=torch.Generator().manual_seed(seed + 1))
    (expected,) = torch.autograd.grad((large * weight).sum(), values)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(sampling, "CPU_BAND", budget)
        small = cells_of(values)
        gradient = torch.zeros_like(small)
        for band, rows in enlargement.bands(small):
            torch.testing.assert_close(rows.permute(0, 3, 1, 2), large[:, :, band], rtol=1e-5, atol=2e-6)
            enlargement.add_band(gradient, band, weight.permute(0, 2, 3, 1)[:, band])
    gradient = gradient.permute(0, 3, 1, 2)
    for axis, count in ((2, cells[0]), (3, cells[1])):
        if count == 1:  # a single row of cells was doubled
            gradient = gradient.sum(axis, keepdim=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_four_times_as_large_needs_no_rounding_of_the_shares() -> None:
    values = torch.randint(-8, 9, (1, 2, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    enlargement = Enlargement((19, 23), (20, 24))
    pixel = torch.arange(19 * 23)
    expected = F.interpolate(values, (20, 24), mode="bilinear")[..., :19, :23]
    assert torch.equal(enlargement.locate(pixel, values.shape).read_all(values), expected[0].flatten(1))


def test_all_maps_are_enlarged() -> None:
    maps = InstanceMaps(*(torch.randn(1, channels, 2, 3) for channels in (3, 2, 2)))
    large = Enlargement((7, 12), (8, 12)).all(maps)
    assert [tuple(one.shape) for one in large] == [(1, 3, 7, 12), (1, 2, 7, 12), (1, 2, 7, 12)]


def test_a_grid_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="cannot be cut to"):
        Enlargement((9, 8), (8, 8))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_reads_the_same(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    values = torch.randn(2, 5, 9, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    enlargement = Enlargement((35, 43), (36, 44))
    pixel = torch.arange(2 * 35 * 43)
    there = enlargement.locate(pixel.cuda(), values.shape).read_all(values.cuda())
    here = enlargement.locate(pixel, values.shape).read_all(values)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)
    cells = cells_of(values.cuda())
    parts = [rows for _, rows in enlargement.bands(cells)]
    large = enlargement(values).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.cat(parts, 1).cpu(), large, rtol=1e-5, atol=1e-6)
