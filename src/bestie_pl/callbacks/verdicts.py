"""One line at the end of a stage: whether the next one can work, as far as tags alone can tell, and what to turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

GOOD = "good: "
"""How a verdict begins that asks for nothing."""
FOUND = 0.5
"""A class of whose tags fewer than this have a cue (or pixels) is learnt from a minority of its images."""
MANY_CUES = 4.0
"""More cues for a tag than this are rarely objects: a component with several cues teaches no instance."""
UNDECIDED = 0.2
"""Pixels without a class are never learnt, and most of them lie along outlines."""
REPEATS, DIFFERS = 0.98, 0.75
"""Agreement with the maps of the round before at which a round has added nothing, or has not learnt them."""


def of_cues(names: Sequence[str], shares: Sequence[float | None], cues_per_tag: float, threshold: float) -> str:
    """The verdict on a classifier's cues.

    Args:
        names: Of the classes.
        shares: Of each class's tags that have a cue; None or NaN where no image has the tag.
        cues_per_tag: Mean number of cues for a tag.
        threshold: Cues counted that are surer.

    >>> of_cues(["cat", "dog"], [0.9, 0.3], 1.2, 0.7)
    'most images tagged dog have no cue above 0.7 (30 % have one): lower cue_threshold, or repeat_threshold: 0.1'
    >>> of_cues(["cat"], [0.9], 1.2, 0.7)
    'good: every class has a cue above 0.7 in most of its images (least: cat, 90 %), 1.2 cues a tag'
    """
    known = _known(names, shares)
    if not known:
        return "no image has a tag: give the images' tags"
    if lost := _listed(known):
        remedy = "lower cue_threshold, or repeat_threshold: 0.1"
        return f"most images tagged {lost[0]} have no cue above {threshold:g} ({lost[1]} have one): {remedy}"
    if cues_per_tag > MANY_CUES:
        return f"{cues_per_tag:.1f} cues a tag above {threshold:g}: raise cue_threshold, or the classifier's cue_window"
    most = f"every class has a cue above {threshold:g} in most of its images"
    return f"{GOOD}{most} ({_least(known)}), {cues_per_tag:.1f} cues a tag"


def of_maps(names: Sequence[str], shares: Sequence[float | None], figures: Mapping[str, float | None]) -> str:
    """The verdict on semantic maps.

    Args:
        names: Of the classes.
        shares: Of each class's tags whose class owns pixels; None or NaN where no image has the tag.
        figures: ``ignored`` and ``agreement_with_earlier`` of ``SemanticMapFigures``.

    >>> of_maps(["cat"], [1.0], {"ignored": 0.4, "agreement_with_earlier": None})
    '40 % of the pixels are undecided and will not be learnt: a smaller band'
    >>> of_maps(["cat"], [1.0], {"ignored": 0.0, "agreement_with_earlier": 0.9})
    'good: every class has pixels in most of its images (least: cat, 100 %), 0 % undecided'
    """
    known = _known(names, shares)
    if not known:
        return "no image has a tag: give the images' tags"
    if lost := _listed(known):
        remedy = "more steps, or repeat_threshold: 0.1"
        return f"most images tagged {lost[0]} have no pixel of it ({lost[1]} have one): {remedy}"
    undecided, agreement = figures.get("ignored") or 0.0, figures.get("agreement_with_earlier")
    if undecided > UNDECIDED:
        return f"{100 * undecided:.0f} % of the pixels are undecided and will not be learnt: a smaller band"
    if agreement is not None and agreement > REPEATS:
        return f"{100 * agreement:.0f} % of the pixels are as before: this round repeats its teacher, leave it out"
    if agreement is not None and agreement < DIFFERS:
        return f"only {100 * agreement:.0f} % of the pixels are as before: the network has not learnt them, more steps"
    return f"{GOOD}every class has pixels in most of its images ({_least(known)}), {100 * undecided:.0f} % undecided"


def _known(names: Sequence[str], shares: Sequence[float | None]) -> dict[str, float]:
    pairs = zip(names, shares, strict=True)
    return {name: share for name, share in pairs if share is not None and not math.isnan(share)}


def _least(shares: Mapping[str, float]) -> str:
    share, name = min((share, name) for name, share in shares.items())
    return f"least: {name}, {100 * share:.0f} %"


def _listed(shares: Mapping[str, float]) -> tuple[str, str] | None:
    """The classes that are lost in most of their images, worst first, and their shares; three of them at most."""
    lost = sorted((share, name) for name, share in shares.items() if share < FOUND)
    if not lost:
        return None
    more = f" and {len(lost) - 3} more classes" if len(lost) > 3 else ""
    shown = ", ".join(f"{100 * share:.0f} %" for share, _ in lost[:3])
    return ", ".join(name for _, name in lost[:3]) + more, shown
