"""What pictures show."""

from __future__ import annotations

import numpy as np
import torch

from bestie_pl.callbacks.pictures import _draw_prediction
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Instances


def test_all_predicted_instances_are_drawn_the_better_ones_on_top() -> None:
    ids = torch.zeros(3, 8, 8, dtype=torch.int32)
    ids[0, :, :4], ids[1, :, 2:6], ids[2, 6:, 6:] = 1, 1, 1
    masks = tuple(code for one in ids for code in encode(one)[1])
    image = np.full((8, 8, 3), 100, np.uint8)

    def drawn(*scores: float) -> np.ndarray:
        return _draw_prediction(image, Instances(masks, torch.zeros(3).long(), torch.tensor(scores), (8, 8)))

    changed = (drawn(0.9, 0.5, 0.001) != image).any(2)
    # away from outlines, which reach into the neighbouring pixels
    assert changed[:, :6].all() and changed[6:, 6:].all()
    assert not changed[:5, 7:].any()
    first, second = drawn(0.9, 0.5, 0.001), drawn(0.5, 0.9, 0.001)
    overlap, beside = first[4, 3], first[4, 1]
    assert (overlap == beside).all() != (second[4, 3] == second[4, 1]).all()
