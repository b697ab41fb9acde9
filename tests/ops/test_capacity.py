"""Tables of guessed sizes give what tables of known sizes give, however bad the guesses are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestie_pl.ops import capacity
from bestie_pl.ops.capacity import attempts
from bestie_pl.ops.components import label_components
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.instances import find_instances
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.ops.transfer import transfer
from bestie_pl.recipe import PAPER, RULES
from bestie_pl.structures import Cues, Geometry, InstanceMaps

Go = Callable[[str], AbstractContextManager[None]]
GEOMETRY = Geometry(sigma=1.0, peak_window=5, min_area=3, cluster_radius=1.5, cluster_tolerance=6.0, cluster_distance=4)


def everything(maps: InstanceMaps, classes: Tensor, points: Cues) -> list[Any]:
    """What each operation makes of a batch; of components not their ``pixels``, which a CPU need not know."""
    cells = classes.shape[1:]
    enlargement = Enlargement((cells[0], cells[1]), (4 * maps.offset_field.shape[2], 4 * maps.offset_field.shape[3]))
    large = enlargement.all(maps)
    components = label_components(classes)
    found: list[Any] = [replace(components, pixels=None), label_components(classes, connectivity=4).labels]
    found.append(transfer(components, points, supervision="tags", rules=PAPER, geometry=GEOMETRY))
    for recipe in ("paper", "release"):
        settings_: dict[str, Any] = {"geometry": GEOMETRY, "rules": RULES[recipe], "threshold": 0.25}
        for max_centers in (1, 5):
            found.append(refine_from_tags(large, components, max_centers=max_centers, **settings_))
        found.append(refine_from_tags(maps, components, enlargement=enlargement, **settings_))
        found.append(refine_from_points(large.offset_field, classes, points, rules=RULES[recipe]))  # type: ignore[arg-type]
        found.append(find_instances(large, **settings_))
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """All of them, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)
    elif hasattr(value, "__dict__"):
        for one in vars(value).values():
            yield from tensors(one)


def assert_same_in_all_ways(go: Go, maps: InstanceMaps, classes: Tensor, points: Cues) -> None:
    expected = everything(maps, classes, points)
    for way in ("guessed", "scarce"):
        with go(way):
            found = everything(maps, classes, points)
        for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), way


def scene(
    seed: int, size: tuple[int, int], noise: float, holes: float, batch: int = 2
) -> tuple[InstanceMaps, Tensor, Cues]:
    """Maps at stride 4, a ragged class map and points; much noise makes many small components and centres."""
    rng = np.random.default_rng(seed)
    height, width = size
    cells = (-(-height // 4), -(-width // 4))
    coarse = rng.integers(0, 4, (batch, *cells)).repeat(4, 1).repeat(4, 2)[:, :height, :width]
    classes = np.where(rng.random(coarse.shape) < holes, rng.integers(0, 4, coarse.shape), coarse)
    channels, spread = (4, 3, 2), (2, noise, 3)
    drawn = [rng.normal(0, s, (batch, k, *cells)).astype(np.float32) for k, s in zip(channels, spread, strict=True)]
    maps = InstanceMaps(*map(torch.from_numpy, drawn))
    count = int(rng.integers(0, 20)) if batch else 0
    points = Cues(
        torch.from_numpy(rng.integers(0, max(1, batch), count)),
        torch.from_numpy((rng.random((count, 2)) * (height, width)).astype(np.float32)),
        torch.from_numpy(rng.integers(0, 3, count)),
        torch.from_numpy(rng.integers(0, 2, count)).float(),
    )
    return maps, torch.from_numpy(classes.astype(np.int32)), points


@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    noise=st.sampled_from([0.1, 0.5, 2.0]),
    holes=st.sampled_from([0.0, 0.1, 0.9]),
)
@settings(max_examples=20, deadline=None)
def test_guesses_change_nothing(go: Go, seed: int, size: tuple[int, int], noise: float, holes: float) -> None:
    assert_same_in_all_ways(go, *scene(seed, size, noise, holes))


@pytest.mark.parametrize("case", ["nothing", "one pixel", "one component", "checkerboard", "no image"])
def test_extreme_maps(go: Go, case: str) -> None:
    maps, classes, points = scene(3, (21, 30), 1.0, 0.1, batch=0 if case == "no image" else 2)
    y, x = torch.arange(21)[:, None], torch.arange(30)
    if case == "nothing":
        classes = torch.zeros_like(classes)
    elif case == "one pixel":
        classes = torch.zeros_like(classes)
        classes[1, 20, 29] = 2
    elif case == "one component":
        classes = torch.ones_like(classes)
    elif case == "checkerboard":
        classes = ((y + x) % 2 + 1).int().expand(2, -1, -1).contiguous()
    assert_same_in_all_ways(go, maps, classes, points)


def test_centres_crowd_a_component(go: Go) -> None:
    classes = torch.ones(1, 40, 40, dtype=torch.int32)
    heat = torch.zeros(1, 3, 10, 10)
    heat[0, 0, ::3, ::3] = 1.0  # sixteen peaks
    maps = InstanceMaps(torch.zeros(1, 4, 10, 10), heat, torch.zeros(1, 2, 10, 10))
    assert_same_in_all_ways(go, maps, classes, Cues.empty())


def test_too_small_tables_are_made_again_until_all_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "HOSTS", frozenset())
    monkeypatch.setattr(capacity, "LEAST_ROOM", 1)
    values = torch.tensor([5, 0, 7, 6, 0, 9])
    tried = 0
    for table in attempts(values.device):
        tried += 1
        rows = table.pick("filled", values > 0, room=2)
        large = table.pick("large", rows.clear(values[rows.at]) > 5, room=1)
    # the second look finds three large values where the first found one among two rows
    assert tried == 3
    assert (table.count("filled"), table.count("large")) == (4, 3)
    assert values[rows.at[large.at]].tolist() == [7, 6, 9]


def test_large_enough_tables_are_made_once_and_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "HOSTS", frozenset())
    monkeypatch.setattr(capacity, "LEAST_ROOM", 1)
    mask = torch.tensor([[False, True], [True, False]])
    tables = []
    for table in attempts(mask.device):
        rows = table.pick("true", mask, room=4)
        tables.append(table)
    assert [table.count("true") for table in tables] == [2]
    assert rows.at[:2].tolist() == [1, 2]
    assert rows.clear(torch.ones(4), -1).tolist() == [1, 1, -1, -1]
