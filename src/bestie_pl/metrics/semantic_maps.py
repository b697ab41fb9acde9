"""Figures of semantic maps that need no ground truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bestie_pl.ops.semantic import edge_alignment
from bestie_pl.structures import IGNORE

LEAST_IMAGES = 5
"""A class that fewer images are tagged with says nothing about the order of the classes."""


class SemanticMapFigures(Metric):
    """What can be said of semantic maps without ground truth, over a data set; see ``compute``.

    Args:
        num_classes: Classes without background.
        kwargs: Of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    images: Tensor
    pixels: Tensor
    ignored: Tensor
    tagged: Tensor
    present: Tensor
    both: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        for name in ("images", "pixels", "ignored"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("tagged", "present"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("both", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        # edge alignment, agreement with earlier maps, agreement under mirroring: of the images that have one
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        semantic: Tensor,
        tags: Tensor,
        image: Tensor,
        *,
        earlier: Tensor | None = None,
        mirror_agreement: float | None = None,
    ) -> None:
        """Add one image.

        Args:
            semantic: (H, W) uint8: 0..num_classes or 255.
            tags: (num_classes,) bool.
            image: (3, H, W) float.
            earlier: (H, W) uint8, the map of the round before.
            mirror_agreement: Share of pixels that get the same class from the image and from its mirror image.
        """
        device = self.images.device
        tags = tags.to(device)
        present = semantic.flatten().long().bincount(minlength=IGNORE + 1)[1 : self.num_classes + 1].to(device) > 0
        # not in place: states made in inference mode allow no update outside of it
        self.images = self.images + 1
        self.pixels = self.pixels + semantic.numel()
        self.ignored = self.ignored + (semantic == IGNORE).sum().to(device)
        self.tagged = self.tagged + tags
        self.present = self.present + present
        self.both = self.both + (tags[:, None] & present)
        same = float("nan")
        if earlier is not None:
            decided = (semantic != IGNORE) & (earlier.to(semantic.device) != IGNORE)
            same = float((semantic == earlier.to(semantic.device))[decided].float().mean())
        mirror = float("nan") if mirror_agreement is None else mirror_agreement
        values = self.sums.new_tensor([float(edge_alignment(semantic, image)), same, mirror])
        self.sums = self.sums + values.nan_to_num(0)
        self.counts = self.counts + ~values.isnan()

    def compute(self) -> dict[str, Tensor]:
        """Scalars, but for the last one, NaN where nothing could be measured.

        ``images``; ``ignored``: share of pixels that are 255; ``tag_recall``: share of the images' tags whose class
        owns pixels; ``tag_precision``: share of the classes found in an image that it is tagged with;
        ``edge_alignment``: see ``ops.semantic``, mean over images; ``agreement_with_earlier``: share of equal pixels,
        where both maps decide, mean over images; ``mirror_agreement``: mean over images;
        ``class_tag_recall``: (num_classes,), ``tag_recall`` of each class.
        """
        common = self.both.diag().sum()
        edges, earlier, mirror = self.sums / self.counts
        return {
            "images": self.images,
            "ignored": self.ignored / self.pixels,
            "tag_recall": common / self.tagged.sum(),
            "tag_precision": common / self.present.sum(),
            "edge_alignment": edges,
            "agreement_with_earlier": earlier,
            "mirror_agreement": mirror,
            "class_tag_recall": self.both.diag() / self.tagged,
        }

    def misplaced(self) -> list[tuple[int, int]]:
        """Pairs (c, v): the images tagged with class ``c`` are those whose maps hold class ``v`` instead of ``c``.

        Such pairs mean that the maps count their classes in another order. Overlap of two sets of images is their
        intersection over union; ``v`` must fit the tag ``c`` in half of these images at least, and better than both
        classes fit their own tags. Reads this process's images only.
        """
        union = self.tagged[:, None] + self.present - self.both
        overlap = self.both / union.clamp(min=1)
        own = overlap.diag()
        fits = (overlap >= 0.5) & (overlap > own[:, None]) & (overlap > own) & (self.tagged >= LEAST_IMAGES)[:, None]
        return [(int(c), int(v)) for c, v in fits.nonzero()]
