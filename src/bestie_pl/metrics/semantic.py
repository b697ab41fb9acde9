"""Mean intersection over union of semantic maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bestie_pl.structures import IGNORE


class SemanticIoU(Metric):
    """Intersection over union of semantic maps, background included, pooled over all pixels of the data set (VOC).

    Args:
        num_classes: Classes without background.
        kwargs: Of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= num_classes < IGNORE:
            raise ValueError(f"num_classes must be in 1..{IGNORE - 1}, got {num_classes}")
        self.num_classes = num_classes
        count = num_classes + 1
        self.add_state("confusion", torch.zeros(count, count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add an image or a batch.

        Args:
            prediction: (H, W) or (B, H, W) uint8 in 0..num_classes; may be on another device than the target.
            target: Same shape, 0..num_classes or 255 for pixels that do not count.

        Raises:
            ValueError: If the shapes differ or a map holds another value.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
        pairs = target.to(prediction.device).long() * (IGNORE + 1) + prediction
        joint = pairs.flatten().bincount(minlength=(IGNORE + 1) ** 2).view(IGNORE + 1, IGNORE + 1)
        count = self.num_classes + 1
        if joint[:IGNORE].sum() != joint[:count, :count].sum():
            held = [sorted(set(values.flatten().tolist())) for values in (prediction, target)]
            raise ValueError(
                f"the prediction holds {held[0]}, the target {held[1]}; "
                f"expected 0..{self.num_classes}, and {IGNORE} in the target only"
            )
        # not in place: states made in inference mode allow no update outside of it
        self.confusion = self.confusion + joint[:count, :count].to(self.confusion.device)

    def compute(self) -> dict[str, Tensor]:
        """``per_class``: (C + 1,), background first, NaN for classes in neither map; ``miou``: mean of the others."""
        common = self.confusion.diag()
        union = self.confusion.sum(0) + self.confusion.sum(1) - common
        per_class = common / union  # 0 / 0 is NaN
        return {"miou": per_class.nanmean(), "per_class": per_class}
