"""The one home of labels: what a batch lacks is named, whose foreground counts, and mixed kinds of supervision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.ops.components import class_map
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.labels import Foreground, mix_labels, pseudo_labels, refined_labels
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.recipe import PAPER
from bestie_pl.structures import Batch, Cues, Geometry, InstanceMaps, LabeledInstances

B, H, W = 3, 2, 3


def labels(data: st.DataObject) -> LabeledInstances:
    """Instances anywhere, each in an image of its own table row; weights, centres and peaks of any kind."""
    rows = data.draw(st.integers(0, 5), label="instances")
    image = torch.tensor([0, *data.draw(st.lists(st.integers(0, B - 1), min_size=rows, max_size=rows))])
    ids = torch.zeros(B, H, W, dtype=torch.int32)
    for b in range(B):
        own = [0, *(row for row in range(1, rows + 1) if int(image[row]) == b)]
        numbers = data.draw(st.lists(st.sampled_from(own), min_size=H * W, max_size=H * W))
        ids[b] = torch.tensor(numbers, dtype=torch.int32).view(H, W)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    classes = torch.cat([torch.tensor([-1]), torch.randint(0, 4, (rows,), generator=generator)])
    made = instances_from_map(ids, image, classes)
    count = data.draw(st.integers(0, 4), label="peaks")
    peaks = Cues(
        torch.randint(0, B, (count,), generator=generator),
        torch.rand(count, 2, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
        torch.rand(count, generator=generator) + 0.1,
    )
    weight = torch.rand(rows + 1, generator=generator) * (made.area > 0)
    return LabeledInstances(ids, image, classes, made.center_yx, weight, made.area, peaks)


def content(of: LabeledInstances, image: int) -> tuple[list[object], list[object]]:
    """What the labels say of one image: its instances by pixel, and its peaks."""
    pixels: list[object] = []
    for row in of.ids[image].flatten().tolist():
        entry = (int(of.classes[row]), of.center_yx[row].tolist(), float(of.weight[row]), int(of.area[row]))
        pixels.append(entry if row else None)
    peaks = of.peaks.select((of.peaks.image == image) & (of.peaks.scores > 0))
    return pixels, list(zip(peaks.yx.tolist(), peaks.classes.tolist(), peaks.scores.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(st.booleans(), min_size=B, max_size=B))
def test_every_image_keeps_the_labels_of_its_kind(data: st.DataObject, pointed: list[bool]) -> None:
    of_points, of_tags = labels(data), labels(data)
    before = [t.clone() for t in (of_points.ids, of_points.weight, of_tags.ids, of_tags.peaks.scores)]
    mixed = mix_labels(of_points, of_tags, torch.tensor(pointed))
    for image, has_points in enumerate(pointed):
        assert content(mixed, image) == content(of_points if has_points else of_tags, image)
    # a table as any other: row 0 is nothing, every other row owns its area in its image, or none
    assert mixed.ids.dtype == torch.int32 and int(mixed.classes[0]) == -1
    area = torch.bincount(mixed.ids.flatten(), minlength=len(mixed.image))
    assert mixed.area.tolist() == [0, *area[1:].tolist()]
    assert not mixed.weight[mixed.area == 0].any()
    for row in range(1, len(mixed.image)):
        assert set((mixed.ids == row).nonzero()[:, 0].tolist()) <= {int(mixed.image[row])}
    # the arguments are left alone
    after = (of_points.ids, of_points.weight, of_tags.ids, of_tags.peaks.scores)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_instances() -> None:
    empty = instances_from_map(torch.zeros(2, 3, 3), torch.zeros(1, dtype=torch.int64), torch.tensor([-1]))
    mixed = mix_labels(empty, empty, torch.tensor([True, False]))
    assert not mixed.ids.any() and len(mixed.image) == 1 and not mixed.peaks.scores.any()


GEOMETRY = Geometry(min_area=1, peak_window=3)
GIVEN = torch.tensor([[[1, 1, 1, 0, 0, 255, 2, 2]]], dtype=torch.uint8)
SEEN = torch.tensor([[[0, 1, 1, 1, 0, 1, 0, 0]]])
"""What the network takes for the classes."""


def batch_of(**settings: object) -> Batch:
    cues = Cues(torch.tensor([0]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([0.9]))
    batch = Batch(
        images=torch.zeros(1, 3, 1, 8),
        tags=torch.tensor([[True, False]]),
        cues=cues,
        names=("a",),
        sizes=((1, 8),),
        original_sizes=((1, 8),),
        semantic=GIVEN,
    )
    return replace(batch, **settings)  # type: ignore[arg-type]


def maps_of() -> InstanceMaps:
    """Sure of ``SEEN``, one peak of class 0 at pixel 2, offsets to there."""
    logits = torch.nn.functional.one_hot(SEEN, 3).permute(0, 3, 1, 2).float() * 9
    heat = torch.zeros(1, 2, 1, 8)
    heat[0, 0, 0, 2] = 0.8
    heat[0, 0, 0, 5] = 0.6
    return InstanceMaps(logits, heat, torch.stack([torch.zeros(1, 8), torch.zeros(1, 8)])[None])


@pytest.mark.parametrize(
    ("foreground", "labelled"),
    [("given", [1, 1, 1, 0, 0, 0, 0, 0]), ("predicted", [0, 1, 1, 1, 0, 1, 0, 0]), ("both", [0, 1, 1, 0, 0, 0, 0, 0])],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_whose_pixels_are_refined(foreground: Foreground, labelled: list[int], sampled: bool) -> None:
    """Class 1 is not tagged, so neither its given nor its seen pixels count; 255 is whatever the network sees there."""
    batch = pseudo_labels(batch_of(), supervision="tags", rules=PAPER, geometry=GEOMETRY)
    assert batch.components is not None
    assert class_map(batch.components).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0]]]
    labels = refined_labels(
        maps_of(),
        batch,
        supervision="tags",
        rules=PAPER,
        geometry=GEOMETRY,
        clustering=False,
        foreground=foreground,
        enlargement=Enlargement((1, 8), (1, 8), align_corners=True) if sampled else None,
    )
    assert (labels.ids > 0).int().tolist() == [[labelled]]


def test_a_network_that_sees_nothing_refines_nothing_of_its_own() -> None:
    batch = pseudo_labels(batch_of(), supervision="tags", rules=PAPER, geometry=GEOMETRY)
    blind = maps_of()._replace(semantic_logits=torch.tensor([9.0, 0, 0])[None, :, None, None].expand(1, 3, 1, 8))
    count = {}
    for foreground in ("given", "predicted", "both"):
        labels = refined_labels(
            blind, batch, supervision="tags", rules=PAPER, geometry=GEOMETRY, foreground=foreground, clustering=False
        )
        count[foreground] = int((labels.ids > 0).sum())
    assert count == {"given": 3, "predicted": 0, "both": 0}


def test_what_a_batch_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="has none: fill Batch.semantic"):
        pseudo_labels(batch_of(semantic=None), supervision="tags", rules=PAPER, geometry=GEOMETRY)
    with pytest.raises(ValueError, match="has none: fill Batch.truth"):
        pseudo_labels(batch_of(), supervision="full", rules=PAPER, geometry=GEOMETRY)
    with pytest.raises(ValueError, match="complete the batch with pseudo_labels"):
        refined_labels(maps_of(), batch_of(), supervision="tags", rules=PAPER, geometry=GEOMETRY)
