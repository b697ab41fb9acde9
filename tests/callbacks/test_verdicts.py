from __future__ import annotations

import math

import pytest

from bestie_pl.callbacks.verdicts import GOOD, of_cues, of_maps

NAMES = ["cat", "dog", "otter", "seal", "hare"]


@pytest.mark.parametrize(
    ("shares", "cues", "says"),
    [
        ([1.0, 0.9, None, 0.8, math.nan], 1.5, f"{GOOD}every class has a cue above 0.7 in most of its images"),
        ([1.0, 0.4, 0.9, 0.2, 1.0], 1.5, "most images tagged seal, dog have no cue above 0.7 (20 %, 40 % have one)"),
        ([0.1, 0.1, 0.1, 0.1, 0.0], 1.5, "most images tagged hare, cat, dog and 2 more classes have no cue"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 6.0, "6.0 cues a tag above 0.7: raise cue_threshold"),
        ([None] * 5, 0.0, "no image has a tag"),
    ],
)
def test_of_cues(shares: list[float | None], cues: float, says: str) -> None:
    assert says in of_cues(NAMES, shares, cues, 0.7)


@pytest.mark.parametrize(
    ("shares", "figures", "says"),
    [
        ([1.0] * 5, {"ignored": 0.05, "agreement_with_earlier": 0.93}, f"{GOOD}every class has pixels"),
        ([1.0] * 5, {"ignored": 0.05, "agreement_with_earlier": None}, GOOD),
        ([1.0] * 5, {"ignored": 0.3, "agreement_with_earlier": 0.93}, "30 % of the pixels are undecided"),
        ([1.0] * 5, {"ignored": 0.0, "agreement_with_earlier": 0.99}, "repeats its teacher"),
        ([1.0] * 5, {"ignored": 0.0, "agreement_with_earlier": 0.6}, "has not learnt them, more steps"),
        ([1.0, 0.3, 1.0, 1.0, 1.0], {"ignored": 0.0}, "most images tagged dog have no pixel of it (30 % have one)"),
        ([math.nan] * 5, {}, "no image has a tag"),
    ],
)
def test_of_maps(shares: list[float | None], figures: dict[str, float | None], says: str) -> None:
    assert says in of_maps(NAMES, shares, figures)
