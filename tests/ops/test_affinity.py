"""Spreading of activation maps by the likeness of features."""

import pytest
import torch

from bestie_pl.ops.affinity import spread_activations

torch.manual_seed(0)
TWO_SIDES = torch.cat([torch.ones(1, 6, 5), -torch.ones(1, 6, 5)], 2)
"""Features of an image whose left half is one thing and whose right half another."""


def test_a_blob_is_drawn_to_the_outline_of_its_side() -> None:
    plane = torch.zeros(1, 6, 10)
    plane[0, 1:5, 1:7] = 1  # reaches two columns into the other side
    plane[0, :, :5] = plane[0, :, :5].clamp(min=0.3)
    spread = spread_activations(plane, TWO_SIDES)[0]
    assert spread[:, :4].min() > spread[:, 6:].max()
    assert (spread[:, 6:] < 0.35).all()


def test_what_looks_alike_but_has_no_activation_stays_background() -> None:
    plane = torch.zeros(1, 6, 10)
    plane[0, :3, :5] = 1
    spread = spread_activations(plane, TWO_SIDES)[0]
    assert (spread[4:, :4] == 0).all()


def test_values_and_shape() -> None:
    planes = torch.rand(3, 13, 9)
    spread = spread_activations(planes, torch.randn(8, 4, 3))
    assert spread.shape == planes.shape and spread.dtype == torch.float32
    assert spread.min() >= 0
    torch.testing.assert_close(spread.amax((1, 2)), torch.ones(3))


def test_planes_do_not_mix_and_the_order_of_features_does_not_matter() -> None:
    planes, features = torch.rand(2, 8, 8), torch.randn(5, 4, 4)
    both = spread_activations(planes, features)
    for number in range(2):
        torch.testing.assert_close(spread_activations(planes[number : number + 1], features)[0], both[number])
    torch.testing.assert_close(spread_activations(planes, features.flip(0)), both)


def test_the_mean_of_the_features_does_not_matter() -> None:
    planes, features = torch.rand(1, 8, 8), torch.randn(5, 4, 4)
    torch.testing.assert_close(spread_activations(planes, features + 7), spread_activations(planes, features))


def test_arguments_are_not_written_to() -> None:
    planes, features = torch.rand(1, 8, 8), torch.randn(5, 4, 4)
    copies = planes.clone(), features.clone()
    spread_activations(planes, features)
    assert planes.equal(copies[0]) and features.equal(copies[1])


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_plane_of_one_value_becomes_zero(value: float) -> None:
    assert spread_activations(torch.full((1, 8, 8), value), torch.randn(5, 4, 4)).equal(torch.zeros(1, 8, 8))


def test_features_that_tell_nothing_apart_are_harmless() -> None:
    spread = spread_activations(torch.rand(1, 8, 8), torch.ones(5, 4, 4))
    assert spread.isfinite().all()


def test_no_planes_and_no_steps() -> None:
    assert spread_activations(torch.zeros(0, 8, 8), torch.randn(5, 4, 4)).shape == (0, 8, 8)
    planes = torch.rand(2, 8, 8)
    assert spread_activations(planes, torch.randn(5, 4, 4), steps=0).equal(planes)


def test_many_cells_are_averaged_first() -> None:
    features = torch.randn(3, 5, 5)
    large = features.repeat_interleave(64, 1).repeat_interleave(64, 2)  # a matrix of all pairs would take 40 GB
    assert spread_activations(torch.rand(1, 50, 50), large).isfinite().all()


def test_errors() -> None:
    planes, features = torch.rand(1, 8, 8), torch.randn(5, 4, 4)
    with pytest.raises(ValueError, match="expected planes"):
        spread_activations(planes[0], features)
    with pytest.raises(ValueError, match="power must be positive"):
        spread_activations(planes, features, power=0)
    with pytest.raises(ValueError, match="steps not negative"):
        spread_activations(planes, features, steps=-1)


def test_mixed_precision_changes_nothing() -> None:
    planes, features = torch.rand(2, 8, 8), torch.randn(5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = spread_activations(planes, features)
    assert torch.equal(inside, spread_activations(planes, features))
