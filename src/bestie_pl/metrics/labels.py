"""How good training labels are, measured against the true instances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bestie_pl.structures import LabeledInstances


class LabelQuality(Metric):
    """Counts how many labels (pseudo or refined) are true.

    A label is true if it overlaps an object of its class by at least one half (IoU). An object makes at most one label
    true, and a label counts once. Source: figure 6 of the paper, which plots the true positives over training.

    Objects of a few pixels, of which no labels are made, count too.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    true_positives: Tensor
    labels: Tensor
    objects: Tensor
    images: Tensor
    iou_sum: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("true_positives", "labels", "objects", "images"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, labels: LabeledInstances, truth: LabeledInstances, measured: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            labels: Of B images; rows with weight 0 or without a pixel are no labels.
            truth: The true instances of the same crops.
            measured: (B,) bool, images whose truth is known; all if omitted. Of others no label is counted.

        Raises:
            ValueError: If the two maps differ in shape.
        """
        if labels.ids.shape != truth.ids.shape:
            raise ValueError(f"maps {tuple(labels.ids.shape)} of labels and {tuple(truth.ids.shape)} of truth differ")
        label, object_, common = _overlaps(labels.ids, truth.ids)
        label_area = common.new_zeros(len(labels.image)).index_add_(0, label, common)
        object_area = common.new_zeros(len(truth.image)).index_add_(0, object_, common)
        is_label = (label_area > 0) & (labels.weight > 0)
        is_object = object_area > 0
        if measured is not None:
            is_label &= measured[labels.image]
            is_object &= measured[truth.image]
        is_label[0] = is_object[0] = False  # row 0 is "nothing"

        union = label_area[label] + object_area[object_] - common
        matched = is_label[label] & is_object[object_] & (2 * common >= union)
        matched &= labels.classes[label] == truth.classes[object_]
        label, object_, common, union = (t[matched] for t in (label, object_, common, union))
        # Above one half, an overlap is unique. At exactly one half, a label may be split into two objects or an object
        # into two labels, never both at once: the first pair of its label and of its object is the match.
        once = _is_first(label, len(labels.image)) & _is_first(object_, len(truth.image))
        # not in place: states made in inference mode allow no update outside of it
        images = torch.tensor(len(labels.ids)) if measured is None else measured.sum()
        self.images = self.images + images.to(self.device)
        self.true_positives = self.true_positives + once.sum().to(self.device)
        self.labels = self.labels + is_label.sum().to(self.device)
        self.objects = self.objects + is_object.sum().to(self.device)
        self.iou_sum = self.iou_sum + (common / union)[once].sum().to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Counts and shares.

        Returns:
            ``true_positives``, ``labels``, ``objects``, ``images``: counts. ``precision``: share of the true labels.
            ``recall``: share of the objects that have a true label. ``mean_iou``: overlap of the true labels. NaN where
            there is nothing to divide by.
        """
        return {
            "true_positives": self.true_positives,
            "labels": self.labels,
            "objects": self.objects,
            "images": self.images,
            "precision": self.true_positives / self.labels,
            "recall": self.true_positives / self.objects,
            "mean_iou": self.iou_sum / self.true_positives,
        }


def _overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of values that two maps take at the same pixels, and the number of pixels of each."""
    base = int(second.max()) + 1
    # runs of equal pairs first: there are a few thousand of them, and millions of pixels to sort otherwise
    runs, length = torch.unique_consecutive(first.flatten().long() * base + second.flatten(), return_counts=True)
    pairs, run_pair = runs.unique(return_inverse=True)
    return pairs // base, pairs % base, length.new_zeros(len(pairs)).index_add_(0, run_pair, length)


def _is_first(values: Tensor, count: int) -> Tensor:
    """Which places hold their value (in 0..count - 1) for the first time."""
    place = torch.arange(len(values), device=values.device)
    first = torch.full((count,), len(values), device=values.device).scatter_reduce_(0, values, place, "amin")
    return first[values] == place
