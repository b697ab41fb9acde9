from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.ops import heatmaps
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.losses import LossWeights, center_loss, offset_loss, semantic_loss, total_loss
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.recipe import PAPER, RELEASE, RULES, Recipe
from bestie_pl.structures import Cues, Geometry, InstanceMaps, LabeledInstances

Golden = Callable[[str], dict[str, np.ndarray]]
GEOMETRY = Geometry(sigma=1.5)


def random_labels(seed: int, *, batch: int = 2, classes: int = 3, size: tuple[int, int] = (13, 17)) -> LabeledInstances:
    """Labels of five rows, one of them with weight 0 and one without pixels, on about half of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (batch, *size), generator=generator, dtype=torch.int32)
    ids *= torch.rand(ids.shape, generator=generator) < 0.6
    rows = 6
    yx = torch.rand(rows, 2, generator=generator) * torch.tensor(size)
    image = torch.randint(0, batch, (rows,), generator=generator)
    category = torch.randint(0, classes, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator)
    weight[[0, 2]] = 0
    peaks = Cues(image, yx, category, torch.tensor([0.0, 1, 1, 0.5, 1, 1]))
    return LabeledInstances(ids, image, category, yx, weight, torch.bincount(ids.flatten(), minlength=rows), peaks)


def unlabelled(batch: int = 2, size: tuple[int, int] = (13, 17)) -> LabeledInstances:
    nothing = torch.zeros(1, dtype=torch.int64)
    ids = torch.zeros(batch, *size, dtype=torch.int32)
    return LabeledInstances(ids, nothing, nothing - 1, torch.zeros(1, 2), torch.zeros(1), nothing, Cues.empty())


def dense_center_loss(heatmap: Tensor, labels: LabeledInstances, guidance: bool) -> Tensor:
    """The definition, in double precision, with a dense target."""
    target = heatmaps.center_heatmap(labels.peaks, heatmap.shape, GEOMETRY.sigma, GEOMETRY.gaussian_reach).double()
    return dense_mean((heatmap.double() - target).square().sum(1), labels, guidance)


def dense_offset_loss(field: Tensor, labels: LabeledInstances, guidance: bool) -> Tensor:
    return dense_mean((field.double() - heatmaps.offset_field(labels)).abs().sum(1), labels, guidance)


def dense_mean(error: Tensor, labels: LabeledInstances, guidance: bool) -> Tensor:
    weight = labels.weight[labels.ids].double()
    if guidance:
        return (error * weight).sum() / max(1, int((weight > 0).sum()))
    return (error * torch.where(labels.ids > 0, weight, 1.0)).mean()


def value_and_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    variable = at.clone().requires_grad_()
    value = loss(variable)
    (gradient,) = torch.autograd.grad(value, variable)
    return value.detach(), gradient


@settings(deadline=None)  # the first call pays for torch's start
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_centre_loss_agrees_with_its_definition(seed: int, guidance: bool, layout: torch.memory_format) -> None:
    labels = random_labels(seed)
    heatmap = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(seed)).to(memory_format=layout)
    value, gradient = value_and_gradient(
        lambda z: center_loss(z, labels, geometry=GEOMETRY, guidance=guidance), heatmap
    )
    expected, expected_gradient = value_and_gradient(lambda z: dense_center_loss(z, labels, guidance), heatmap)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@settings(deadline=None)  # the first call pays for torch's start
@given(st.integers(0, 10**6), st.booleans())
def test_offset_loss_agrees_with_its_definition(seed: int, guidance: bool) -> None:
    labels = random_labels(seed)
    field = 10 * torch.randn(2, 2, 13, 17, generator=torch.Generator().manual_seed(seed))
    value, gradient = value_and_gradient(lambda o: offset_loss(o, labels, guidance=guidance), field)
    expected, expected_gradient = value_and_gradient(lambda o: dense_offset_loss(o, labels, guidance), field)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_centre_loss_keeps_its_digits_when_the_network_has_nearly_converged() -> None:
    """The loss is then the small difference of two sums 300 times as large."""
    labels = random_labels(0, size=(64, 64))
    geometry = Geometry(sigma=8)
    target = heatmaps.center_heatmap(labels.peaks, (2, 3, 64, 64), geometry.sigma, geometry.gaussian_reach)
    heatmap = target + 0.01 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    weight = labels.weight[labels.ids].double()
    expected = ((heatmap.double() - target).square().sum(1) * weight).sum() / (weight > 0).sum()
    torch.testing.assert_close(center_loss(heatmap, labels, geometry=geometry).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("magnitude", [1.0, 6e4])
def test_nothing_labelled_is_zero_with_zero_gradient(dtype: torch.dtype, magnitude: float) -> None:
    heatmap = torch.full((2, 3, 13, 17), magnitude, dtype=dtype)
    logits = torch.full((2, 4, 13, 17), magnitude, dtype=dtype)
    ignored = torch.full((2, 13, 17), 255, dtype=torch.uint8)
    for loss, maps in (
        (lambda z: center_loss(z, unlabelled(), geometry=GEOMETRY), heatmap),
        (lambda o: offset_loss(o, unlabelled()), heatmap[:, :2]),
        (lambda s: semantic_loss(s, ignored), logits),
        (lambda s: semantic_loss(s, ignored, hard_fraction=0.2), logits),
    ):
        value, gradient = value_and_gradient(loss, maps)
        assert value == 0 and value.dtype == torch.float32
        assert gradient.dtype == dtype and not gradient.any() and not gradient.isnan().any()


def test_errors_outside_the_guidance_region_do_not_reach_the_loss() -> None:
    """Not even those that overflow: squares of large bfloat16 values are infinite in float32."""
    labels = random_labels(1)
    outside = labels.weight[labels.ids] == 0
    heatmap = torch.zeros(2, 3, 13, 17).where(~outside[:, None], 1e30).bfloat16()
    clean = torch.zeros(2, 3, 13, 17)
    value, gradient = value_and_gradient(lambda z: center_loss(z, labels, geometry=GEOMETRY), heatmap)
    torch.testing.assert_close(value, center_loss(clean, labels, geometry=GEOMETRY))
    assert not gradient[outside[:, None].expand_as(gradient)].any()


def test_half_precision_maps_are_compared_in_float32() -> None:
    labels = random_labels(2)
    heatmap = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0)).half()
    single = center_loss(heatmap.float(), labels, geometry=GEOMETRY)
    torch.testing.assert_close(center_loss(heatmap, labels, geometry=GEOMETRY), single, rtol=0, atol=0)


def test_maps_must_be_enlarged_first() -> None:
    for loss in (lambda z: center_loss(z, unlabelled(), geometry=GEOMETRY), lambda z: offset_loss(z, unlabelled())):
        with pytest.raises(ValueError, match=r"13 x 17 px; enlarge them first \(BestieModel.enlarge\)"):
            loss(torch.zeros(2, 2, 3, 4))


# semantic


def test_semantic_loss_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 9, 9, generator=generator)
    semantic = torch.randint(0, 4, (2, 9, 9), generator=generator).to(torch.uint8)
    semantic[0, :3] = 255
    expected, expected_gradient = value_and_gradient(
        lambda s: F.cross_entropy(s, semantic.long(), ignore_index=255), logits
    )
    value, gradient = value_and_gradient(lambda s: semantic_loss(s, semantic), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("case", ["all_ignored", "mostly_ignored", "none"])
def test_hard_pixels_agree_with_the_release(golden: Golden, case: str) -> None:
    data = golden("h_losses")
    logits = torch.from_numpy(data[f"ce_{case}_0.2_logits"])
    semantic = torch.from_numpy(data[f"ce_{case}_0.2_label"])
    hard = semantic_loss(logits, semantic, hard_fraction=0.2)
    np.testing.assert_allclose(hard, data[f"ce_{case}_0.2_out"], rtol=1e-4)
    # with all pixels the release still divides by ignored ones; the paper's mean does not
    mean = semantic_loss(logits, semantic)
    np.testing.assert_allclose(mean * (semantic != 255).float().mean(), data[f"ce_{case}_1.0_out"], rtol=1e-4)


def test_a_fraction_of_less_than_a_pixel_keeps_one() -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])
    loss = semantic_loss(logits, torch.tensor([[[0, 1]]]), hard_fraction=0.2)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="hard_fraction must be in"):
        semantic_loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1), hard_fraction=fraction)


# total


def recorded_labels(heatmap: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> tuple[LabeledInstances, Tensor]:
    """Recorded dense maps as labels: every pixel is an instance of its own, with its own centre and weight."""
    batch, _, height, width = offset.shape
    pixels = batch * height * width
    weights = torch.from_numpy(weight).flatten()
    ids = torch.arange(1, pixels + 1, dtype=torch.int32) * (weights > 0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = (torch.from_numpy(offset) + torch.stack([y, x])).permute(0, 2, 3, 1).reshape(-1, 2)
    rows = torch.zeros(pixels + 1, dtype=torch.int64)
    labels = LabeledInstances(
        ids=ids.view(batch, height, width),
        image=rows,
        classes=rows,
        center_yx=F.pad(centers, (0, 0, 1, 0)),
        weight=F.pad(weights, (1, 0)),
        area=rows,
        peaks=Cues.empty(),
    )
    return labels, torch.from_numpy(heatmap)


CASES = ["cls", "point", "cls_norefine", "cls_empty_pseudo", "cls_empty_refined", "point_both_empty"]


@pytest.mark.parametrize("case", CASES)
def test_total_agrees_with_the_release(golden: Golden, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    data = {key.removeprefix(f"{case}_"): value for key, value in golden("h_losses").items()}
    pseudo, pseudo_target = recorded_labels(data["center_map"], data["offset_map"], data["weight"])
    refined, refined_target = recorded_labels(*(data[f"refined_{name}"] for name in ("center", "offset", "weight")))

    def recorded_heatmap(peaks: Cues, shape: Sequence[int], sigma: float, reach: int) -> tuple[Tensor, Tensor]:
        # the recorded targets are noise, so no peaks draw them; the labels they belong to stand for them
        target = (pseudo_target if peaks is pseudo.peaks else refined_target).flatten()
        index = target.nonzero().squeeze(1)
        return index, target[index]

    monkeypatch.setattr(heatmaps, "sparse_heatmap", recorded_heatmap)
    maps = InstanceMaps(*(torch.from_numpy(data[name]).requires_grad_() for name in ("seg", "center", "offset")))
    total, terms = total_loss(
        maps,
        torch.from_numpy(data["label"]),
        pseudo,
        refined if data["refine"] else None,
        supervision="points" if data["sup"] == "point" else "tags",
        rules=RELEASE,
        geometry=Geometry(),
    )
    total.backward()

    if not data["refine"]:  # the release repeats the pseudo terms in place of the refined ones
        assert "center_refined" not in terms
        terms |= {"center_refined": terms["center_pseudo"], "offset_refined": terms["offset_pseudo"]}
    names = ("semantic", "center_pseudo", "center_refined", "offset_pseudo", "offset_refined")
    values = [terms[name].item() for name in names] + [total.item()]
    np.testing.assert_allclose(values, data["out_seg_c1_c2_o1_o2_total"], rtol=1e-4)
    for got, name in zip(maps, ("seg", "center", "offset"), strict=True):
        expected = data[f"grad_{name}"]
        np.testing.assert_allclose(got.grad, expected, rtol=1e-4, atol=1e-5 * max(abs(expected).max(), 1e-30))


def random_maps() -> tuple[InstanceMaps, Tensor]:
    generator = torch.Generator().manual_seed(3)
    maps = InstanceMaps(*(torch.randn(2, c, 13, 17, generator=generator) for c in (4, 3, 2)))
    return maps, torch.randint(0, 4, (2, 13, 17), generator=generator)


def test_paper_adds_pseudo_and_refined_terms() -> None:
    maps, semantic = random_maps()
    pseudo, refined = random_labels(0), random_labels(1)
    weights = LossWeights(center=3.0, offset=0.5, semantic=2.0)
    for supervision in ("tags", "points"):
        total, terms = total_loss(
            maps, semantic, pseudo, refined, supervision=supervision, rules=PAPER, geometry=GEOMETRY, weights=weights
        )
        expected = {
            "semantic": 2 * semantic_loss(maps.semantic_logits, semantic),
            "center_pseudo": 3 * center_loss(maps.center_heatmap, pseudo, geometry=GEOMETRY),
            "center_refined": 3 * center_loss(maps.center_heatmap, refined, geometry=GEOMETRY),
            "offset_pseudo": 0.5 * offset_loss(maps.offset_field, pseudo),
            "offset_refined": 0.5 * offset_loss(maps.offset_field, refined),
        }
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value)
        torch.testing.assert_close(total, sum(expected.values()))


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_without_refinement_the_pseudo_terms_count_in_full(recipe: str) -> None:
    maps, semantic = random_maps()
    total, terms = total_loss(
        maps, semantic, random_labels(0), None, supervision="full", rules=RULES[recipe], geometry=GEOMETRY
    )
    assert terms.keys() == {"semantic", "center_pseudo", "offset_pseudo"}
    torch.testing.assert_close(total, sum(terms.values()))


def test_gradients_of_pseudo_and_refined_terms_add_up() -> None:
    """Both are taken in one pass over the heatmap, and their windows overlap."""
    maps, semantic = random_maps()
    pseudo, refined = random_labels(0), random_labels(1)

    def total(z: Tensor) -> Tensor:
        both = InstanceMaps(maps.semantic_logits, z, maps.offset_field)
        return total_loss(both, semantic, pseudo, refined, supervision="tags", rules=PAPER, geometry=GEOMETRY)[0]

    def dense(z: Tensor) -> Tensor:
        return 200 * (dense_center_loss(z, pseudo, True) + dense_center_loss(z, refined, True))

    _, gradient = value_and_gradient(total, maps.center_heatmap)
    _, expected = value_and_gradient(dense, maps.center_heatmap)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_guidance_off_reaches_both_kinds_of_loss() -> None:
    maps, semantic = random_maps()
    _, terms = total_loss(
        maps,
        semantic,
        unlabelled(),
        None,
        supervision="tags",
        rules=PAPER,
        geometry=GEOMETRY,
        guidance=False,
        weights=LossWeights(center=1.0, offset=1.0),
    )
    torch.testing.assert_close(terms["center_pseudo"], maps.center_heatmap.square().sum(1).mean())
    torch.testing.assert_close(terms["offset_pseudo"], maps.offset_field.abs().sum(1).mean())


def test_negative_weight() -> None:
    with pytest.raises(ValueError, match="offset must not be negative, got -1"):
        LossWeights(offset=-1)


# maps that are read without enlarging them


ENLARGEMENTS = [
    Enlargement((13, 17), (16, 20)),  # four times as large, and cut
    Enlargement((13, 17), (13, 17)),  # squeezed
    Enlargement((13, 17), (13, 17), align_corners=True),
]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["paper", "release"]), st.sampled_from(ENLARGEMENTS))
def test_losses_of_small_maps_are_those_of_enlarged_ones(
    seed: int, guidance: bool, recipe: Recipe, enlargement: Enlargement
) -> None:
    """Values and gradients, with pixels of weight 0, and with 255 in the semantic map."""
    generator = torch.Generator().manual_seed(seed)
    maps = InstanceMaps(*(torch.randn(2, c, 4, 5, generator=generator).requires_grad_() for c in (4, 3, 2)))
    semantic = torch.randint(0, 5, (2, 13, 17), generator=generator).to(torch.uint8)
    semantic[semantic == 4] = 255
    pseudo, refined = random_labels(seed), random_labels(seed + 1)

    def total(maps: InstanceMaps, enlargement: Enlargement | None) -> tuple[Tensor, dict[str, Tensor]]:
        return total_loss(
            maps,
            semantic,
            pseudo,
            refined,
            supervision="tags",
            rules=RULES[recipe],
            geometry=GEOMETRY,
            guidance=guidance,
            enlargement=enlargement,
        )

    expected, expected_terms = total(enlargement.all(maps), None)
    value, terms = total(maps, enlargement)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected_terms[name], rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(value, maps)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, maps), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_small_maps_keep_their_digits_when_the_network_has_nearly_converged() -> None:
    labels = random_labels(0, size=(64, 64))
    geometry = Geometry(sigma=8)
    enlargement = Enlargement((64, 64), (64, 64))
    target = heatmaps.center_heatmap(labels.peaks, (2, 3, 64, 64), geometry.sigma, geometry.gaussian_reach)
    heatmap = F.interpolate(target, (16, 16), mode="bilinear", antialias=True)
    large = enlargement(heatmap.double().float()).double()
    weight = labels.weight[labels.ids].double()
    expected = ((large - target).square().sum(1) * weight).sum() / (weight > 0).sum()
    value = center_loss(heatmap, labels, geometry=geometry, enlargement=enlargement)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_labelled_is_zero_for_small_maps_too(dtype: torch.dtype) -> None:
    maps = InstanceMaps(*(torch.ones(2, c, 4, 5, dtype=dtype, requires_grad=True) for c in (4, 3, 2)))
    total, _ = total_loss(
        maps,
        torch.full((2, 13, 17), 255, dtype=torch.uint8),
        unlabelled(),
        unlabelled(),
        supervision="tags",
        rules=PAPER,
        geometry=GEOMETRY,
        enlargement=ENLARGEMENTS[0],
    )
    assert total == 0 and total.dtype == torch.float32
    for one, gradient in zip(maps, torch.autograd.grad(total, maps), strict=True):
        assert gradient.dtype == one.dtype and not gradient.any() and not gradient.isnan().any()


def test_enlarging_to_another_size_than_the_labels() -> None:
    enlargement = Enlargement((16, 16), (16, 16))
    small = torch.zeros(2, 2, 4, 4)
    for loss in (
        lambda: center_loss(small, unlabelled(), geometry=GEOMETRY, enlargement=enlargement),
        lambda: offset_loss(small, unlabelled(), enlargement=enlargement),
        lambda: semantic_loss(small, torch.zeros(2, 13, 17), enlargement=enlargement),
    ):
        with pytest.raises(ValueError, match=r"enlarged to \(16, 16\) do not fit labels of shape"):
            loss()


def test_a_batch_on_two_processes_is_one_batch() -> None:
    """Halves that are divided by the mean of both counts: their mean gradient is that of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    maps = InstanceMaps(*(torch.randn(4, c, 8, 8, generator=generator) for c in (4, 3, 2)))
    semantic = torch.randint(0, 4, (4, 8, 8), generator=generator).byte()
    semantic[0, :5] = 255
    ids = torch.zeros(4, 8, 8, dtype=torch.int64)
    ids[0, :2, :3], ids[1, 1:7, 2:8], ids[3, 0, 0] = 1, 2, 3  # nothing in image 2
    image, classes = torch.tensor([0, 0, 1, 3]), torch.tensor([-1, 0, 1, 2])

    def gradient(rows: slice, mean: Callable[[torch.Tensor], torch.Tensor] | None = None) -> list[torch.Tensor]:
        part = InstanceMaps(*(m[rows].clone().requires_grad_() for m in maps))
        first = rows.start or 0
        own = [0, *(i for i in range(1, 4) if int(image[i]) in range(*rows.indices(4)))]
        number = torch.zeros(4, dtype=torch.int64)
        number[own] = torch.arange(len(own))
        labels = instances_from_map(number[ids[rows]], (image[own] - first).clamp(min=0), classes[own])
        total_loss(
            part,
            semantic[rows],
            labels,
            labels,
            supervision="full",
            rules=PAPER,
            geometry=GEOMETRY,
            mean_over_processes=mean,
        )[0].backward()
        return [m.grad for m in part]  # type: ignore[misc]

    for halves in ((slice(0, 2), slice(2, 4)), (slice(0, 1), slice(1, 4))):
        counts: list[torch.Tensor] = []

        def remember(count: torch.Tensor, counts: list[torch.Tensor] = counts) -> torch.Tensor:
            counts.append(count)
            return count

        for half in halves:
            gradient(half, remember)
        mean = torch.stack(counts).mean(0)
        both = [gradient(half, lambda _, mean=mean: mean) for half in halves]
        for whole, one, two in zip(gradient(slice(0, 4)), *both, strict=True):
            torch.testing.assert_close(torch.cat([one, two]) / 2, whole)


def test_padding_counts_nowhere_without_guidance() -> None:
    """Pixels that the semantic map leaves open are no background: whatever the maps say there changes nothing."""
    labels = instances_from_map(torch.tensor([[[0, 1, 0, 0]]]), torch.tensor([0, 0]), torch.tensor([-1, 0]))
    semantic = torch.tensor([[[0, 1, 0, 255]]], dtype=torch.uint8)

    def loss(outside: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        heat, field = torch.zeros(1, 1, 1, 4), torch.zeros(1, 2, 1, 4)
        heat[..., 3] = field[..., 3] = outside
        return total_loss(
            InstanceMaps(torch.zeros(1, 2, 1, 4), heat, field),
            semantic,
            labels,
            None,
            supervision="full",
            rules=PAPER,
            geometry=GEOMETRY,
            guidance=False,
        )

    assert loss(0.0)[0] == loss(7.0)[0]
