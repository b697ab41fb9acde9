"""Centres: peaks of the heatmap in each component and points where the offsets converge."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bestie_pl.ops import peaks as peaks_module
from bestie_pl.ops.capacity import attempts
from bestie_pl.ops.components import label_components
from bestie_pl.ops.peaks import Centers, cluster_centers, find_centers, find_peaks, gather_foreground
from bestie_pl.recipe import PAPER, RELEASE
from bestie_pl.structures import Components, Geometry, InstanceMaps

pytestmark = pytest.mark.usefixtures("way")

Golden = Callable[[str], dict[str, np.ndarray]]


def one_component(mask: np.ndarray) -> Components:
    """All of a mask as one component, connected or not."""
    labels = torch.from_numpy(mask.astype(np.int32))[None]
    ys, xs = mask.nonzero()
    area = torch.tensor([0, len(ys)])
    center_yx = torch.tensor([[0, 0], [int(ys.mean()), int(xs.mean())]] if len(ys) else [[0, 0], [0, 0]])
    return Components(labels, torch.zeros(2, dtype=torch.int64), torch.tensor([-1, 0]), area, center_yx)


def maps_of(heat: np.ndarray, offset: np.ndarray) -> InstanceMaps:
    """Maps of one image with one class."""
    height, width = heat.shape
    return InstanceMaps(
        torch.zeros(1, 2, height, width), torch.from_numpy(heat)[None, None], torch.from_numpy(offset)[None]
    )


def peaks_in(plane: torch.Tensor, components: Components, *, threshold: float, window: int, strict: bool) -> Centers:
    """Peaks of a plane, whatever the components' classes are."""
    heat = plane[:, None].expand(-1, max(1, int(components.classes.max()) + 1), -1, -1)
    maps = InstanceMaps(heat, heat, torch.zeros(len(plane), 2, *plane.shape[1:]))
    for capacity in attempts(plane.device):
        foreground = gather_foreground(maps, components, min_area=1, capacity=capacity)
        found = find_peaks(foreground, threshold=threshold, window=window, strict=strict, capacity=capacity)
    return found.cut(capacity.count("peaks"))


def clusters_in(maps: InstanceMaps, components: Components, geometry: Geometry) -> Centers:
    for capacity in attempts(components.labels.device):
        foreground = gather_foreground(maps, components, min_area=1, capacity=capacity)
        found = cluster_centers(foreground, geometry=geometry, capacity=capacity)
    return found.cut(capacity.count("round regions"))


def test_peaks_are_those_of_the_release_in_order(golden: Golden) -> None:
    data = golden("d_peaks")
    for case in (f"f{i:02d}" for i in range(12)):
        heat, (threshold, window) = data[f"{case}_heat"], data[f"{case}_args"].tolist()
        found = peaks_in(
            torch.from_numpy(heat)[None],
            one_component(np.ones(heat.shape, bool)),
            threshold=threshold,
            window=int(window),
            strict=True,
        )
        assert found.yx.tolist() == data[f"{case}_out_yx"].reshape(-1, 2).tolist(), case
        assert found.rank.tolist() == list(range(len(found)))
        y, x = found.yx.unbind(1)
        assert torch.equal(found.score, torch.from_numpy(heat)[y, x])


def test_convergence_points_are_those_of_the_release_in_order(golden: Golden) -> None:
    data = golden("f_cluster_peaks")
    for index, title in enumerate(data["names"]):
        case = f"c{index:02d}"
        height, width = data[f"{case}_shape"]
        mask = np.unpackbits(data[f"{case}_fg"], axis=-1)[:, :width].astype(bool)
        radius, beta = data[f"{case}_args"].tolist()
        geometry = Geometry(cluster_radius=radius, cluster_tolerance=beta)
        maps = maps_of(np.zeros((height, width), np.float32), data[f"{case}_offset"])
        found = clusters_in(maps, one_component(mask), geometry)
        expected = data[f"{case}_out_yx"].reshape(-1, 2).tolist()
        if title == "tiny_image_background_label_area_21_is_returned":
            # the release takes the 21 pixels outside for a convergence point; not copied
            assert expected and not len(found)
            continue
        assert found.yx.tolist() == expected, title


def ranks(heat: np.ndarray) -> np.ndarray:
    """The values' places in ascending order; of equal ones the first, row by row, has the highest."""
    backwards = np.argsort(heat.ravel()[::-1], kind="stable")
    return np.argsort(backwards)[::-1].reshape(heat.shape)


def reference_peaks(
    plane: np.ndarray, labels: np.ndarray, threshold: float, window: int, strict: bool
) -> list[list[int]]:
    """Rows (component, y, x) from a dense maximum for each component."""
    rows = []
    for number in range(1, labels.max() + 1):
        image = int((labels == number).any((1, 2)).argmax())
        masked = np.where(labels[image] == number, plane[image], np.float32(0))
        over = masked > np.float32(threshold) if strict else masked >= np.float32(threshold)
        order = masked if strict else ranks(masked)
        highest = ndimage.maximum_filter(order, size=window, mode="constant", cval=-1)
        rows += [[number, int(y), int(x)] for y, x in np.argwhere(over & (order == highest))]
    return rows


def random_scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class maps with touching and ragged components, and a plane with few distinct values, some of them negative."""
    rng = np.random.default_rng(seed)
    shape = (2, int(rng.integers(1, 30)), int(rng.integers(1, 30)))
    noise = np.stack([cv2.GaussianBlur(rng.random(shape[1:]).astype(np.float32), (0, 0), 2) for _ in range(2)])
    classes = np.digitize(noise, np.quantile(noise, [0.3, 0.5, 0.8])).astype(np.int32)
    levels = int(rng.choice([4, 16, 4096]))
    plane = np.round(rng.uniform(-0.2, 1.2, shape) * levels) / levels
    return classes, plane.astype(np.float32)


@given(
    seed=st.integers(0, 2**31),
    window=st.sampled_from([1, 3, 5, 9, 21, 61]),
    strict=st.booleans(),
    budget=st.sampled_from([1, 2000, 2**22]),
)
@settings(max_examples=60, deadline=None)
def test_peaks_agree_with_a_dense_maximum_per_component(seed: int, window: int, strict: bool, budget: int) -> None:
    classes, plane = random_scene(seed)
    components = label_components(torch.from_numpy(classes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peaks_module, "WINDOW_BUDGET", budget)
        found = peaks_in(torch.from_numpy(plane), components, threshold=0.5, window=window, strict=strict)
    rows = torch.cat([found.component[:, None], found.yx], 1).tolist()
    assert rows == reference_peaks(plane, components.labels.numpy(), 0.5, window, strict)
    for number, rank in zip(found.component.tolist(), found.rank.tolist(), strict=True):
        assert rank < (found.component == number).sum()
    assert len({*zip(found.component.tolist(), found.rank.tolist(), strict=True)}) == len(found)


def test_threshold_itself_counts_only_if_not_strict() -> None:
    plane = torch.tensor([[[0.5, 0.0, 0.75]]])
    components = label_components(torch.ones(1, 1, 3, dtype=torch.int32))
    found = {s: peaks_in(plane, components, threshold=0.5, window=1, strict=s).yx.tolist() for s in (True, False)}
    assert found == {True: [[0, 2]], False: [[0, 0], [0, 2]]}


def test_a_large_plateau_is_all_peaks_without_large_memory(way: str) -> None:
    # every window of 41 x 41 at once would be 2 GB; the component's largest value needs none
    side = 400 if way == "exact" else 50
    plane = torch.full((1, side, side), 0.5)
    components = label_components(torch.ones(1, side, side, dtype=torch.int32))
    assert len(peaks_in(plane, components, threshold=0.3, window=41, strict=True)) == side**2
    assert peaks_in(plane, components, threshold=0.3, window=41, strict=False).yx.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("threshold", "window", "message"), [(0.0, 3, "threshold must be positive, got 0"), (0.1, 4, "window must be odd")]
)
def test_unusable_settings_are_refused(threshold: float, window: int, message: str) -> None:
    components = label_components(torch.ones(1, 2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match=message):
        peaks_in(torch.zeros(1, 2, 2), components, threshold=threshold, window=window, strict=True)


def test_no_foreground_has_no_centres() -> None:
    components = label_components(torch.zeros(2, 4, 4, dtype=torch.int32))
    maps = InstanceMaps(torch.zeros(2, 2, 4, 4), torch.ones(2, 1, 4, 4), torch.zeros(2, 2, 4, 4))
    foreground = gather_foreground(maps, components, min_area=1)
    centers = find_centers(foreground, geometry=Geometry(), threshold=0.3, rules=RELEASE, clustering=True)
    assert (len(centers), tuple(centers.yx.shape)) == (0, (0, 2))


def test_maps_of_another_resolution_are_refused() -> None:
    components = label_components(torch.ones(1, 8, 8, dtype=torch.int32))
    maps = InstanceMaps(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"center_heatmap is \(1, 1, 2, 2\), .* 1 maps of 8 x 8; enlarge"):
        gather_foreground(maps, components, min_area=1)


def test_half_precision_and_channels_last_are_read_as_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = InstanceMaps(*(torch.randn(2, c, 9, 7, generator=generator) for c in (4, 3, 2)))
    components = label_components(torch.randint(0, 4, (2, 9, 7), generator=generator))
    half = InstanceMaps(*(m.half().contiguous(memory_format=torch.channels_last) for m in maps))
    foreground = gather_foreground(half, components, min_area=2)
    expected = gather_foreground(InstanceMaps(*(m.half().float() for m in maps)), components, min_area=2)
    assert foreground.heat.dtype == foreground.offset.dtype == torch.float32
    assert torch.equal(foreground.heat, expected.heat)
    assert torch.equal(foreground.offset, expected.offset)
    assert (components.area[foreground.component] >= 2).all()


def converging(height: int, width: int, points: list[tuple[int, int]]) -> np.ndarray:
    """Offsets to the nearest of some points."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    vectors = np.stack([np.stack([py - y, px - x]) for py, px in points])
    nearest = np.hypot(vectors[:, 0], vectors[:, 1]).argmin(0)
    return np.take_along_axis(vectors, nearest[None, None], 0)[0]


@pytest.mark.parametrize(
    ("heat_at", "peak_at", "expected"),
    [
        (0.06, None, [[20, 20, 1.0]]),  # no peak: the cluster is the centre
        (0.05, None, []),  # the heatmap there must be above 0.05
        (0.06, (20, 120), [[20, 120, 0.75]]),  # a peak 100 px away suppresses it
        (0.06, (20, 121), [[20, 121, 0.75], [20, 20, 1.0]]),  # one 101 px away does not
    ],
)
def test_convergence_points_complement_distant_peaks(
    heat_at: float, peak_at: tuple[int, int] | None, expected: list[list[float]]
) -> None:
    heat = np.zeros((41, 140), np.float32)
    heat[20, 20] = heat_at
    if peak_at is not None:
        heat[peak_at] = 0.75
    components = label_components(torch.ones(1, 41, 140, dtype=torch.int32))
    foreground = gather_foreground(maps_of(heat, converging(41, 140, [(20, 20)])), components, min_area=50)
    centers = find_centers(foreground, geometry=Geometry(), threshold=0.3, rules=RELEASE, clustering=True)
    assert torch.cat([centers.yx, centers.score[:, None]], 1).tolist() == expected
    assert centers.rank.tolist() == list(range(len(expected)))
    without = find_centers(foreground, geometry=Geometry(), threshold=0.3, rules=RELEASE, clustering=False)
    assert len(without) == (peak_at is not None)
    # Eq. 2: as sure as the heatmap is there, and no surer
    paper = find_centers(foreground, geometry=Geometry(), threshold=0.3, rules=PAPER, clustering=True)
    assert paper.score.tolist() == pytest.approx([heat_at if score == 1 else score for _, _, score in expected])


def test_a_peak_of_another_component_suppresses_nothing() -> None:
    classes = torch.ones(1, 41, 140, dtype=torch.int32)
    classes[..., 60] = 0
    heat = np.full((41, 140), 0.06, np.float32)
    heat[20, 100] = 0.75
    foreground = gather_foreground(
        maps_of(heat, converging(41, 140, [(20, 20)])), label_components(classes), min_area=50
    )
    centers = find_centers(foreground, geometry=Geometry(), threshold=0.3, rules=RELEASE, clustering=True)
    assert centers.component.tolist() == [1, 2]
    assert centers.yx.tolist() == [[20, 20], [20, 100]]
    assert centers.rank.tolist() == [0, 0]


def reference_clusters(offset: np.ndarray, labels: np.ndarray, geometry: Geometry) -> list[list[int]]:
    """Rows (component, y, x) from SciPy's regions of each component; 4 neighbours are its default."""
    rows = []
    short = np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2) < np.float32(geometry.cluster_radius)
    for number in range(1, labels.max() + 1):
        image = int((labels == number).any((1, 2)).argmax())
        regions, count = ndimage.label((labels[image] == number) & short[image])
        for region in range(1, count + 1):
            ys, xs = (regions == region).nonzero()
            if abs(len(ys) - geometry.cluster_area) < geometry.cluster_tolerance:
                rows.append([number, int(ys.sum()) // len(ys), int(xs.sum()) // len(xs)])
    return rows


@given(seed=st.integers(0, 2**31), tolerance=st.sampled_from([3.0, 8.0]))
@settings(max_examples=40, deadline=None)
def test_convergence_points_agree_with_labelled_regions(seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    classes, _ = random_scene(seed)
    geometry = Geometry(cluster_radius=1.5, cluster_tolerance=tolerance)
    offset = np.round(rng.normal(0, rng.choice([0.5, 1.2, 2.5]), (2, 2, *classes.shape[1:])) * 4).astype(np.float32) / 4
    components = label_components(torch.from_numpy(classes))
    maps = InstanceMaps(
        torch.zeros(2, 4, *classes.shape[1:]), torch.zeros(2, 3, *classes.shape[1:]), torch.from_numpy(offset)
    )
    found = clusters_in(maps, components, geometry)
    rows = torch.cat([found.component[:, None], found.yx], 1).tolist()
    assert rows == reference_clusters(offset, components.labels.numpy(), geometry)


def test_columns_of_unequal_length_are_refused() -> None:
    whole = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"centers need shapes"):
        Centers(whole, whole, whole.float(), whole)
