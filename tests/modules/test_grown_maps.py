from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bestie_pl.modules.grown_maps import GrownMaps
from bestie_pl.structures import IGNORE, Batch, Cues


def batch() -> Batch:
    """A disc of class 1 in the first image; the second, smaller one has a tag and no point; the third nothing."""
    images = torch.full((3, 3, 48, 48), 0.1)
    y, x = torch.arange(48)[:, None], torch.arange(48)
    images[0, :, (y - 20) ** 2 + (x - 24) ** 2 <= 64] = 0.9
    return Batch(
        images=images,
        tags=torch.tensor([[False, True], [True, False], [False, False]]),
        cues=Cues(torch.tensor([0]), torch.tensor([[20.0, 24.0]]), torch.tensor([1]), torch.tensor([1.0])),
        names=("a", "b", "c"),
        sizes=((48, 48), (32, 48), (48, 48)),
        original_sizes=((48, 48), (16, 24), (48, 48)),
    )


def test_maps_of_a_batch() -> None:
    with_disc, undecided, empty = GrownMaps(2).predict_step(batch(), 0).maps
    assert with_disc.shape == (48, 48) and with_disc[20, 24] == 2 and 150 < int((with_disc == 2).sum()) < 250
    assert undecided.shape == (16, 24) and (undecided == IGNORE).all() and not empty.any()


def test_points_of_other_images_and_untagged_classes_do_not_count() -> None:
    given = batch()
    moved = replace(given, cues=replace(given.cues, image=torch.tensor([2])))
    assert not GrownMaps(2).predict_step(moved, 0).maps[2].any()
    tagged = replace(moved, tags=torch.tensor([[True, False], [True, False], [False, True]]))
    maps = GrownMaps(2).predict_step(tagged, 0).maps
    assert (maps[0] == IGNORE).all() and maps[2][20, 24] == 2


def test_maps_have_the_size_of_the_file() -> None:
    """The batch is twice as large, as with ``image_scale: 2``; the point lies between pixels there."""
    small = replace(batch(), original_sizes=((24, 24), (16, 24), (24, 24)))
    semantic = GrownMaps(2).predict_step(small, 0).maps[0]
    assert semantic.shape == (24, 24) and semantic[10, 12] == 2 and 35 < int((semantic == 2).sum()) < 65


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="use `bestie-pl predict`"):
        GrownMaps(2).setup("fit")
    with pytest.raises(ValueError, match="0 <= band < 0.5"):
        GrownMaps(2, band=0.5)
