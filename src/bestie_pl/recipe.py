"""Where the paper, its authors' release and later work disagree: sets of named rules, chosen once by their name.

Tensor functions take the ``Rules`` and ask for the rule that they follow; only settings know the recipes' names.
``docs/release-rules.md`` tells what the release does, by the numbers that docstrings cite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Recipe = Literal["paper", "release", "nearest"]


@dataclass(frozen=True)
class Rules:
    """How labels, losses and instances are made, where it can be done in more than one way.

    Args:
        point_labels_end_at: Where the offsets of a component that was accepted by a given point end: at the ``point``
            (paper section 3.6), or at the component's ``centroid`` (release 3.7).
        crowded_components: Components that hold several cues are ``unlabelled`` (paper section 3.3), or each of their
            pixels is labelled with the ``nearest`` cue (P2Seg, ICLR 2024, section 3).
        strict_peaks: A peak must exceed its threshold, and all equal maxima of a window are peaks (release 4.1, 4.2).
            Otherwise it may equal the threshold, and the first of equals is one.
        clustered_score: Centre score of a clustered centre: what the ``heatmap`` says there, as Eq. (2) has it, or
            ``one`` (release 4.9).
        crowded_by: Which components have more instances than can be trusted: those with too many ``centers``, or those
            in which a centre beyond the limit owns a pixel (``owners``, release 5.2).
        scored_by: What the score and the centre of a group of pixels are: those of the ``center`` that grouped them
            (paper Eq. (2)), or of the ``group``'s own best pixel, times the class probability (release 5.3 to 5.5, 10).
        whole_points: Refinement cuts points to integers and loses those of the first row and column (release 6.2).
        mean_of_terms: The terms of pseudo and refined labels are averaged (release 7.5), not added (paper Eq. (6)).
        hard_fraction: Part of the pixels, the hardest, that the semantic loss averages over (paper Eq. (5); release
            7.1).
        pseudo_centers_twice: With points, the pseudo labels' centre term stands in for the refined labels' (release
            7.7).
        counts_of: Whose labelled pixels a loss is divided by: those of ``all`` processes of a distributed training, so
            that a batch is one batch on any number of devices, or each process's ``own`` (release 7.4).
        average_offsets: Views of an image that are averaged at test time count for the offsets too (not in the release,
            10.1).
    """

    point_labels_end_at: Literal["point", "centroid"]
    crowded_components: Literal["unlabelled", "nearest"]
    strict_peaks: bool
    clustered_score: Literal["heatmap", "one"]
    crowded_by: Literal["centers", "owners"]
    scored_by: Literal["center", "group"]
    whole_points: bool
    mean_of_terms: bool
    hard_fraction: float
    pseudo_centers_twice: bool
    counts_of: Literal["all", "own"]
    average_offsets: bool


PAPER = Rules(
    point_labels_end_at="point",
    crowded_components="unlabelled",
    strict_peaks=False,
    clustered_score="heatmap",
    crowded_by="centers",
    scored_by="center",
    whole_points=False,
    mean_of_terms=False,
    hard_fraction=1.0,
    pseudo_centers_twice=False,
    counts_of="all",
    average_offsets=True,
)
RELEASE = Rules(
    point_labels_end_at="centroid",
    crowded_components="unlabelled",
    strict_peaks=True,
    clustered_score="one",
    crowded_by="owners",
    scored_by="group",
    whole_points=True,
    mean_of_terms=True,
    hard_fraction=0.2,
    pseudo_centers_twice=True,
    counts_of="own",
    average_offsets=False,
)
NEAREST = replace(PAPER, crowded_components="nearest")
"""The paper's, and components that hold several cues teach instances too."""

RULES: dict[str, Rules] = {"paper": PAPER, "release": RELEASE, "nearest": NEAREST}
"""By the recipe's name."""
