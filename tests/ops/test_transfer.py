from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.heatmaps import center_heatmap, offset_field, weight_map
from bestie_pl.ops.transfer import instances_from_map, split_by_cues, transfer
from bestie_pl.recipe import NEAREST, PAPER, RELEASE, RULES, Recipe
from bestie_pl.structures import Cues, Geometry, LabeledInstances

pytestmark = pytest.mark.usefixtures("way")

TINY = Geometry(min_area=3)


def make_cues(rows: list[tuple[int, float, float, int]], scores: list[float] | None = None) -> Cues:
    """Cues from (image, y, x, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    given_scores = torch.ones(len(table)) if scores is None else torch.tensor(scores)
    return Cues(table[:, 0].long(), table[:, 1:3], table[:, 3].long(), given_scores)


@pytest.mark.parametrize("name", ["random", "edge"])
@pytest.mark.parametrize("given_as", ["cls", "point"])
def test_agrees_with_the_release(golden: Callable[[str], dict[str, np.ndarray]], name: str, given_as: str) -> None:
    data = golden(f"a_pseudo_labels_{name}")
    cases = [key.removesuffix("_wsss") for key in data if key.endswith(f"_{given_as}_wsss")]
    assert cases
    supervision: Literal["tags", "points"] = "tags" if given_as == "cls" else "points"
    for case in cases:
        geometry = Geometry(sigma=float(data[f"{case}_sigma"]))
        tags = torch.from_numpy(data[f"{case}_tags"])[None] > 0
        semantic = torch.from_numpy(data[f"{case}_wsss"])[None]
        x_y_class = [row for row in data[f"{case}_points"].tolist() if tags[0, row[2]]]
        cues = make_cues([(0, y, x, c) for x, y, c in x_y_class])

        components = label_components(tagged_classes(semantic, tags))
        labels = transfer(components, cues, supervision=supervision, rules=RELEASE, geometry=geometry)

        shape = (1, tags.shape[1], *semantic.shape[1:])
        heatmap = center_heatmap(labels.peaks, shape, geometry.sigma, geometry.gaussian_reach)
        np.testing.assert_array_equal(offset_field(labels)[0], data[f"{case}_out_offset"], err_msg=case)
        np.testing.assert_array_equal(weight_map(labels), data[f"{case}_out_weight"], err_msg=case)
        np.testing.assert_allclose(heatmap[0], data[f"{case}_out_center"], atol=1e-6, err_msg=case)


def reference_transfer(
    classes: np.ndarray, cues: Cues, min_area: int, use_points: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Accepted region and offset field of one image's class map, one component and cue at a time."""
    accepted, offset = np.zeros(classes.shape, bool), np.zeros((2, *classes.shape), np.float32)
    for category in set(np.unique(classes)) - {0}:
        labelled, count = ndimage.label(classes == category, np.ones((3, 3)))
        for component in range(1, count + 1):
            mask = labelled == component
            inside = []
            for (y, x), of_class, score in zip(cues.yx.numpy(), cues.classes.tolist(), cues.scores, strict=True):
                pixel = int(np.rint(y)), int(np.rint(x))
                on_map = 0 <= pixel[0] < classes.shape[0] and 0 <= pixel[1] < classes.shape[1]
                if score > 0 and of_class == category - 1 and on_map and mask[pixel]:
                    inside.append((y, x))
            if mask.sum() < min_area or len(inside) != 1:
                continue
            pixels = np.argwhere(mask)
            center = np.array(inside[0]) if use_points else pixels.mean(0).astype(int)
            accepted |= mask
            offset[:, mask] = (center - pixels).T
    return accepted, offset


cue_row = st.tuples(st.integers(0, 1), st.floats(-2, 9, width=32), st.floats(-2, 11, width=32), st.integers(0, 2))


@settings(deadline=None)  # the first call pays for torch's start
@given(
    hnp.arrays(np.int32, (2, 8, 10), elements=st.sampled_from([0, 0, 1, 1, 1, 2, 3])),
    st.lists(st.tuples(cue_row, st.sampled_from([0.0, 0.5, 1.0])), max_size=12),
    st.sampled_from(["tags", "points"]),
    st.sampled_from(["paper", "release"]),
)
def test_agrees_with_a_loop_over_components(
    classes: np.ndarray,
    drawn: list[tuple[tuple[int, float, float, int], float]],
    supervision: Literal["tags", "points"],
    recipe: Recipe,
) -> None:
    cues = make_cues([row for row, _ in drawn], [score for _, score in drawn])
    components = label_components(torch.from_numpy(classes))

    labels = transfer(components, cues, supervision=supervision, rules=RULES[recipe], geometry=TINY)

    for image in range(2):
        own = cues.select(cues.image == image)
        at_points = supervision == "points" and recipe == "paper"
        accepted, offset = reference_transfer(classes[image], own, TINY.min_area, at_points)
        np.testing.assert_array_equal(weight_map(labels)[image], accepted)
        np.testing.assert_allclose(offset_field(labels)[image], offset, atol=1e-6)
    rows = labels.ids.unique()
    rows = rows[rows > 0]
    assert (labels.ids.flatten()[:, None] == rows).sum(0).tolist() == labels.area[rows].tolist()
    assert labels.area.sum() == (labels.ids > 0).sum()
    if supervision == "points":
        assert labels.peaks is cues  # all given points are centres, also those without an instance
    else:
        used = labels.peaks.select(labels.peaks.scores > 0)
        torch.testing.assert_close(used.yx, labels.center_yx[rows])
        assert used.image.tolist() == labels.image[rows].tolist()
        assert used.classes.tolist() == labels.classes[rows].tolist()


MAP = torch.tensor([[[1, 1, 1, 0, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0], [2, 2, 0, 1, 1, 1, 1]]])


def test_by_hand() -> None:
    cues = make_cues(
        [
            (0, 0, 2, 0),  # alone: accepted
            (0, 0, 5, 1),  # two at one pixel: rejected
            (0, 0, 5, 1),
            (0, 2, 0, 1),  # alone, but the component is too small
            (0, 2, 4, 1),  # of another class than the component it lies in
            (0, 1, 4, 0),  # on the background
            (0, 40, 4, 0),  # outside
        ]
    )
    labels = transfer(label_components(MAP), cues, supervision="tags", rules=PAPER, geometry=TINY)
    assert labels.ids.tolist() == [[[1, 1, 1, 0, 0, 0, 0], [0] * 7, [0] * 7]]
    assert labels.weight.tolist() == [0, 1, 0, 0, 0]
    assert labels.center_yx.tolist()[1] == [0, 1]
    assert labels.peaks.scores.tolist() == [0, 1, 0, 0, 0]


def test_paper_points_are_the_centres_where_the_release_takes_the_centroid() -> None:
    cues = make_cues([(0, 0, 2.25, 0)])
    paper, release = (
        transfer(label_components(MAP), cues, supervision="points", rules=RULES[recipe], geometry=TINY)
        for recipe in ("paper", "release")
    )
    assert paper.center_yx[1].tolist() == [0, 2.25]
    assert release.center_yx[1].tolist() == [0, 1]
    assert paper.peaks is cues and release.peaks is cues


def test_a_cue_of_score_zero_is_no_cue() -> None:
    cues = make_cues([(0, 0, 2, 0), (0, 0, 1, 0)], [0.4, 0.0])
    labels = transfer(label_components(MAP), cues, supervision="points", rules=PAPER, geometry=TINY)
    assert labels.center_yx[1].tolist() == [0, 2]


@pytest.mark.parametrize("supervision", ["tags", "points"])
def test_no_cues_and_no_components(supervision: Literal["tags", "points"]) -> None:
    for classes, cues in [(MAP, Cues.empty()), (MAP * 0, make_cues([(0, 0, 0, 0)])), (MAP * 0, Cues.empty())]:
        labels = transfer(label_components(classes), cues, supervision=supervision, rules=PAPER, geometry=TINY)
        assert not labels.ids.any() and not labels.weight.any() and not labels.area.any()
        assert labels.ids.dtype == torch.int32 and labels.ids.shape == classes.shape


def test_arguments_stay_as_they_were() -> None:
    components, cues = label_components(MAP), make_cues([(0, 0, 2, 0)])
    arguments = [t for one in (components, cues) for t in vars(one).values() if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in arguments]
    transfer(components, cues, supervision="points", rules=PAPER, geometry=TINY)
    for then, now in zip(before, arguments, strict=True):
        torch.testing.assert_close(now, then)


def test_points_of_nuclei_find_the_nuclei_that_stand_alone(real_data: Path) -> None:
    """A nucleus that is a component of its own is labelled as the mask it is; touching nuclei stay unlabelled."""
    name = (real_data / "nuclei" / "train.txt").read_text().split()[0]
    semantic = cv2.imread(str(real_data / "nuclei" / "semantic" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(real_data / "nuclei" / "instances" / f"{name}.png"), cv2.IMREAD_UNCHANGED).astype(int)
    points = np.loadtxt(real_data / "nuclei" / "points" / f"{name}.txt", ndmin=2)
    components, _ = ndimage.label(semantic, np.ones((3, 3)))

    labels = transfer(
        label_components(torch.from_numpy(semantic.astype(np.int32))[None]),
        make_cues([(0, y, x, 0) for x, y, *_ in points.tolist()]),
        supervision="points",
        rules=PAPER,
        geometry=Geometry(min_area=1),
    )

    nuclei_in = [len(np.unique(truth[components == c])) for c in range(components.max() + 1)]
    alone = np.array(nuclei_in) == 1
    alone[0] = False
    assert alone.any() and not alone[1:].all()
    np.testing.assert_array_equal(labels.ids[0] > 0, alone[components])


def row_sums(labels: LabeledInstances) -> list[int]:
    return torch.bincount(labels.ids.flatten().long(), minlength=len(labels.area))[1:].tolist()


@settings(deadline=None)  # the first call pays for torch's start
@given(hnp.arrays(np.int32, (2, 5, 7), elements=st.integers(0, 4)))
def test_true_instances(drawn: np.ndarray) -> None:
    """Ids 1 and 2 stand for objects of the first image, 3 and 4 for objects of the second."""
    ids = np.stack([np.where(drawn[0] > 2, 0, drawn[0]), np.where(drawn[1] < 3, 0, drawn[1])])
    image, classes = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([-1, 5, 3, 5, 0])

    labels = instances_from_map(torch.from_numpy(ids), image, classes)

    assert row_sums(labels) == labels.area[1:].tolist()
    assert labels.area[0] == 0 and labels.weight[0] == 0
    assert labels.weight[1:].tolist() == [float((ids == n).any()) for n in range(1, 5)]
    for n in range(1, 5):
        expected = np.argwhere(ids == n)[:, 1:].mean(0) if (ids == n).any() else np.zeros(2)
        np.testing.assert_allclose(labels.center_yx[n], expected, atol=1e-6)
    assert labels.ids.dtype == torch.int32
    assert labels.peaks.scores.tolist() == labels.weight.tolist()
    torch.testing.assert_close(labels.peaks.yx, labels.center_yx)


def test_the_nearest_cue_of_a_crowded_component_takes_each_pixel() -> None:
    """Two components of one class: the first holds two cues, the second one; a third cue lies beside both."""
    semantic = torch.tensor([[[1, 1, 1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]]])
    cues = make_cues([(0, 0, 0, 0), (0, 1, 5, 0), (0, 0, 8, 0), (0, 0, 6, 0)], [0.9, 0.6, 0.8, 0.7])
    components = label_components(semantic)
    plain = transfer(components, cues, supervision="tags", rules=PAPER, geometry=TINY)
    labels = transfer(components, cues, supervision="tags", rules=NEAREST, geometry=TINY)
    assert plain.ids[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 2, 2]
    number = labels.ids[0, 0].tolist()
    assert number[:3] == [number[0]] * 3 and number[3:6] == [number[5]] * 3 and number[7:] == [2, 2, 2]
    assert labels.center_yx[number[0]].tolist() == [0, 0] and labels.center_yx[number[5]].tolist() == [1, 5]
    assert labels.weight[[number[0], number[5], 2]].tolist() == pytest.approx([0.9, 0.6, 1.0])
    assert labels.area[[number[0], number[5], 2]].tolist() == [6, 6, 6]
    of_points = transfer(components, cues, supervision="points", rules=NEAREST, geometry=TINY)
    assert set(of_points.weight[of_points.area > 0].tolist()) == {1.0}
    drawn = of_points.peaks.scores > 0
    assert sorted(of_points.peaks.yx[drawn].tolist()) == sorted(cues.yx.tolist())


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, (2, 9, 11), elements=st.integers(0, 2)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 10), st.integers(0, 1)), max_size=12),
)
def test_splitting_equals_a_plain_reference(classes: np.ndarray, rows: list[tuple[int, float, float, int]]) -> None:
    components = label_components(torch.from_numpy(classes))
    cues = make_cues(rows)
    parts = split_by_cues(components, cues)
    table = components.labels.numpy()
    for image, y, x in np.ndindex(table.shape):
        own = table[image, y, x]
        inside = [
            (float(np.hypot(cy - y, cx - x)), number)
            for number, (i, cy, cx, c) in enumerate(rows)
            if own and i == image and table[i, cy, cx] == own and c == components.classes[own]
        ]
        row = int(parts.ids[image, y, x])
        assert (row > 0) == bool(inside)
        if inside:
            nearest = rows[min(inside)[1]]
            assert parts.center_yx[row].tolist() == [nearest[1], nearest[2]]
            assert (int(parts.image[row]), int(parts.classes[row])) == (image, nearest[3])
    assert parts.area.tolist() == [0, *(int((parts.ids == row).sum()) for row in range(1, len(parts.area)))]
