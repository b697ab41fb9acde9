"""Pixel-adaptive refinement against a slow reference, and the maps made with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.ops.instances import find_instances, predict_semantic
from bestie_pl.ops.semantic import (
    pixel_adaptive_refinement,
    refine_logits,
    refine_widely,
    semantic_from_activations,
    stretch,
    with_every_tag,
)
from bestie_pl.recipe import PAPER
from bestie_pl.structures import Geometry, InstanceMaps


def reference(maps: np.ndarray, image: np.ndarray, dilations: list[int], iterations: int) -> np.ndarray:
    """Pixel by pixel, in double precision, with clipped coordinates."""
    _, height, width = maps.shape
    maps, image = maps.astype(np.float64), image.astype(np.float64)
    weights: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    for y in range(height):
        for x in range(width):
            patches, places = [], []
            for d in dilations:
                for dy in (-d, 0, d):
                    for dx in (-d, 0, d):
                        at = (min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1))
                        patches.append(image[:, at[0], at[1]])
                        if (dy, dx) != (0, 0):
                            places.append(at)
            deviation = np.std(np.stack(patches), axis=0, ddof=1)
            logits = [
                -np.mean(np.abs(image[:, v, u] - image[:, y, x]) / (0.1 * deviation + np.finfo(np.float32).eps))
                for v, u in places
            ]
            affinity = np.exp(np.array(logits) - max(logits))
            affinity /= affinity.sum()
            weights[y, x] = [(v, u, w) for (v, u), w in zip(places, affinity, strict=True)]
    for _ in range(iterations):
        maps = np.stack(
            [
                [sum(w * maps[:, v, u] for v, u, w in weights[y, x]) for x in range(width)]  # type: ignore[misc]
                for y in range(height)
            ]
        ).transpose(2, 0, 1)
    return maps


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    dilations=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    iterations=st.integers(0, 3),
    levels=st.sampled_from([2, 4, 256]),
)
def test_refinement_agrees_with_a_slow_reference(
    seed: int, height: int, width: int, dilations: list[int], iterations: int, levels: int
) -> None:
    """Also on flat pictures of few colours, on single rows, and where a dilation reaches beyond the image."""
    random = np.random.default_rng(seed)
    image = (random.integers(0, levels, (3, height, width)) / (levels - 1)).astype(np.float32)
    maps = random.random((3, height, width), dtype=np.float32)
    expected = reference(maps, image, dilations, iterations)
    found = pixel_adaptive_refinement(
        torch.from_numpy(maps), torch.from_numpy(image), dilations=dilations, iterations=iterations
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_refinement_keeps_constants_and_probabilities() -> None:
    image = torch.rand(3, 20, 30)
    constant = torch.tensor([0.2, 0.5])[:, None, None].expand(2, 20, 30)
    assert torch.allclose(pixel_adaptive_refinement(constant, image), constant, atol=1e-6)
    probabilities = torch.rand(4, 20, 30).softmax(0)
    refined = pixel_adaptive_refinement(probabilities, image, iterations=20)
    assert torch.allclose(refined.sum(0), torch.ones(20, 30), atol=1e-5)
    assert refined.min() >= probabilities.min() - 1e-6 and refined.max() <= probabilities.max() + 1e-6


def disc_scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A disc of one colour on another, with a little noise; its mask; and a class score that is off by some pixels."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    disc = (y - 24) ** 2 + (x - 22) ** 2 < 14**2
    colors = torch.tensor([[0.2, 0.3, 0.7], [0.8, 0.6, 0.1]])
    image = colors[disc.long()].permute(2, 0, 1) + 0.02 * torch.randn(3, 48, 48, generator=generator)
    blob = torch.exp(-((y - 27) ** 2 + (x - 25) ** 2) / (2 * 9.0**2))
    return image, disc, blob


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_refinement_follows_the_outlines_of_the_image() -> None:
    image, disc, blob = disc_scene()
    refined = pixel_adaptive_refinement(torch.stack([1 - blob, blob]), image, iterations=30)
    assert overlap(refined[1] > refined[0], disc) > 0.95 > 0.75 > overlap(blob > 0.5, disc)


@pytest.mark.parametrize(
    ("maps", "image", "settings"),
    [
        (torch.zeros(2, 4, 5), torch.zeros(3, 5, 4), {}),
        (torch.zeros(2, 4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8), {}),
        (torch.zeros(2, 4, 5), torch.zeros(3, 4, 5), {"dilations": [0]}),
        (torch.zeros(2, 4, 5), torch.zeros(3, 4, 5), {"iterations": -1}),
    ],
)
def test_wrong_arguments_are_refused(maps: torch.Tensor, image: torch.Tensor, settings: dict) -> None:
    with pytest.raises(ValueError, match="image|dilations"):
        pixel_adaptive_refinement(maps, image, **settings)


def test_activations_give_background_classes_and_an_undecided_band() -> None:
    image, disc, blob = disc_scene()
    tags = torch.tensor([False, False, True])
    activations = torch.stack([torch.ones_like(blob), torch.ones_like(blob), blob])  # the untagged ones must not win
    settings = {"iterations": 2}  # few, so that scores between the thresholds are left
    semantic = semantic_from_activations(activations, tags, image, background=0.4, band=0.2, **settings)
    assert semantic.dtype == torch.uint8 and set(semantic.unique().tolist()) <= {0, 3, 255}
    low, high = (
        semantic_from_activations(activations, tags, image, background=threshold, band=0, **settings)
        for threshold in (0.2, 0.6)
    )
    assert (low != high).any() and torch.equal(semantic == 255, low != high)
    assert torch.equal(semantic[semantic != 255], low[semantic != 255])
    assert overlap(semantic_from_activations(activations, tags, image) == 3, disc) > 0.9


def test_an_image_without_tags_is_background() -> None:
    maps = torch.rand(2, 6, 7)
    assert semantic_from_activations(maps, torch.zeros(2, dtype=torch.bool), torch.rand(3, 6, 7)).sum() == 0


def test_thresholds_outside_of_the_activations_are_refused() -> None:
    for background, band in ((0.1, 0.2), (0.9, 0.1), (0.3, -0.1)):
        with pytest.raises(ValueError, match="background"):
            semantic_from_activations(
                torch.rand(1, 4, 4), torch.tensor([True]), torch.rand(3, 4, 4), background=background, band=band
            )


def test_refined_logits_are_those_of_all_classes_refined_at_full_length() -> None:
    """Leaving out hopeless classes changes neither the map nor the probabilities of the winners."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 9, 24, 32, generator=generator)
    logits[:, [1, 4]] += 3
    logits[0, 3:] -= 6
    images = torch.rand(2, 3, 24, 32, generator=generator)
    sizes = ((24, 32), (17, 21))
    refined = refine_logits(logits, images, sizes=sizes, iterations=5)
    assert torch.allclose(refined.exp().sum(1), torch.ones(2, 24, 32), atol=1e-5)
    for b, (h, w) in enumerate(sizes):
        whole = pixel_adaptive_refinement(logits[b, :, :h, :w].softmax(0), images[b, :, :h, :w], iterations=5)
        best, winner = whole.max(0)
        assert torch.equal(refined[b, :, :h, :w].max(0).indices, winner)
        assert torch.allclose(refined[b, :, :h, :w].max(0).values.exp(), best, atol=1e-5)
    assert torch.allclose(refined[1, :, 17:], logits[1, :, 17:].log_softmax(0), atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4), scale=st.sampled_from([0.5, 4.0, 30.0]))
def test_every_tag_is_as_likely_as_all_else_at_its_likeliest_pixel(seed: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, classes + 1, 5, 6, generator=generator, dtype=torch.float64)
    tags = torch.rand(2, classes, generator=generator) < 0.6
    sizes = ((5, 6), (3, 2))
    found = with_every_tag(logits.float(), tags, sizes=sizes)
    expected = logits.softmax(1).clone()
    for b, (h, w) in enumerate(sizes):
        before = logits[b].softmax(0)
        for c in range(classes):
            best = max(float(before[c + 1, y, x]) for y in range(h) for x in range(w))  # of the padding nothing counts
            if not tags[b, c]:
                expected[b, c + 1] = 0
            elif best < 0.5:
                expected[b, c + 1] *= (1 - best) / best
    expected /= expected.sum(1, keepdim=True)
    assert torch.allclose(found.exp().double(), expected, atol=1e-4)
    images = torch.rand(2, 3, 5, 6, generator=generator)
    refined = predict_semantic(refine_logits(found, images, sizes=sizes, iterations=2))
    for b in range(2):
        assert set(refined[b].unique().tolist()) <= {0, *(tags[b].nonzero()[:, 0] + 1).tolist()}


def test_tags_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="tags"):
        with_every_tag(torch.randn(1, 4, 8, 9), torch.ones(1, 4, dtype=torch.bool), sizes=((8, 9),))


def test_tags_restrict_refined_logits() -> None:
    tags = torch.tensor([[False, True, False]])
    refined = refine_logits(torch.randn(1, 4, 8, 9), torch.rand(1, 3, 8, 9), sizes=((8, 9),), tags=tags)
    assert set(predict_semantic(refined).unique().tolist()) <= {0, 2}
    assert torch.allclose(refined[:, [0, 2]].exp().sum(1), torch.ones(1, 8, 9), atol=1e-5)


def test_log_probabilities_serve_find_instances() -> None:
    """The score holds the refined probability of the class."""
    image, disc, blob = disc_scene()
    logits = torch.stack([1 - blob, blob]).clamp(1e-3, 1).log()[None]
    refined = refine_logits(logits, image[None], sizes=((48, 48),), iterations=30)
    heat = torch.zeros(1, 1, 48, 48)
    heat[0, 0, 24, 22] = 1
    maps = InstanceMaps(refined, heat, torch.zeros(1, 2, 48, 48))
    labels, semantic = find_instances(maps, geometry=Geometry(), rules=PAPER, clustering=False)
    assert overlap(semantic[0] == 1, disc) > 0.95
    assert float(labels.weight.max()) == pytest.approx(float(refined[0, 1].exp()[semantic[0] == 1].mean()), abs=1e-4)


def square_on_ground() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of a square of 40 px in another colour than the ground, and where it is."""
    inside = torch.zeros(80, 80, dtype=torch.bool)
    inside[20:60, 20:60] = True
    return torch.where(inside, 0.8, 0.2).expand(3, 80, 80) + 0.01 * torch.rand(3, 80, 80), inside


def test_wide_refinement_fills_an_object_from_its_middle() -> None:
    torch.manual_seed(0)
    image, inside = square_on_ground()
    blob = torch.zeros(1, 80, 80)
    blob[0, 32:48, 32:48] = 1  # a sixth of the square
    wide = refine_widely(blob, image, iterations=60)[0]
    assert wide[22:58, 22:58].min() > 0.35 > wide[~inside].quantile(0.99)
    assert pixel_adaptive_refinement(blob, image, iterations=40)[0, 22:58, 22:58].min() < 0.35


def test_wide_refinement_ends_at_one_and_needs_no_rounds() -> None:
    planes, image = torch.rand(2, 21, 14) / 2, torch.rand(3, 21, 14)
    refined = refine_widely(planes, image, iterations=3)
    assert refined.shape == planes.shape and refined.dtype == torch.float32
    torch.testing.assert_close(refined.amax((1, 2)), torch.ones(2))
    assert refine_widely(planes, image, iterations=0).equal(planes)
    assert refine_widely(planes[:0], image, iterations=3).shape == (0, 21, 14)


def test_stretching() -> None:
    planes = torch.tensor([[[0.2, 0.6, 1.0]], [[0.5, 0.5, 0.5]]])
    torch.testing.assert_close(stretch(planes), torch.tensor([[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]))
    torch.testing.assert_close(stretch(planes, least=0.0)[0], planes[0])


def test_a_map_is_refined_widely_where_asked_to() -> None:
    torch.manual_seed(0)
    image, inside = square_on_ground()
    blob = torch.zeros(2, 80, 80)
    blob[1, 32:48, 32:48] = 1
    semantic = semantic_from_activations(
        blob, torch.tensor([False, True]), image, background=0.35, band=0.0, iterations=60, wide=True
    )
    assert ((semantic == 2) == inside).float().mean() > 0.95
