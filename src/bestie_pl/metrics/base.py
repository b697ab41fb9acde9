"""What the two average precisions share: one small record an image, whichever process saw it."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from bestie_pl.structures import Instances


# eq=False: torchmetrics hashes the items of a state to tell modules apart; identity is enough and costs nothing
@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What a metric keeps of an image: plain values only, so it pickles into few bytes and lives on no device."""

    name: str

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it can change


Record = TypeVar("Record", bound=ImageRecord)


class ImageMetric(Metric, Generic[Record]):
    """Metric whose state is a list with one record an image; the processes exchange it once, in ``compute``.

    Processes may hold any number of images, also none. An image that several of them saw, because a sampler pads,
    counts once, so names must be unique in the data set. The result does not depend on who saw which image, nor on the
    order.

    Args:
        num_classes: Classes without background.
        kwargs: Of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    records: list[Record]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.add_state("records", [], dist_reduce_fx=None)

    def update(self, predictions: Sequence[Instances], references: Sequence[Instances], names: Sequence[str]) -> None:
        """Add images.

        Args:
            predictions: One ``Instances`` an image, at the size of its references.
            references: The ground truth of the same images.
            names: The images' names, unique in the data set.

        Raises:
            ValueError: If the three differ in length, an image's sizes differ, or a class is not in 0..num_classes - 1.
        """
        if not len(predictions) == len(references) == len(names):
            raise ValueError(f"{len(predictions)} predictions, {len(references)} references and {len(names)} names")
        for name, prediction, reference in zip(names, predictions, references, strict=True):
            if prediction.size != reference.size:
                raise ValueError(
                    f"image {name}: predictions of size {prediction.size}, references of size {reference.size}; "
                    "expected both at the size of the image file"
                )
            for kind, classes in ("predicted", prediction.classes), ("reference", reference.classes):
                if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
                    raise ValueError(
                        f"image {name}: {kind} classes {sorted(set(classes.tolist()))}, "
                        f"expected 0 <= class < {self.num_classes}"
                    )
            self.records.append(self._record(name, prediction, reference))

    @abstractmethod
    def _record(self, name: str, prediction: Instances, reference: Instances) -> Record:
        """What the scores need of one image."""

    def _images(self) -> list[Record]:
        """The records by name, each name once."""
        unique = {record.name: record for record in reversed(self.records)}
        return [unique[name] for name in sorted(unique)]

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        """Exchange all records at once: torchmetrics gathers item by item and fails where their numbers differ."""
        group = process_group or self.process_group
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, self.records, group=group)
        self.records = [record for part in gathered for record in part]

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the metric, not the records, which hold no tensor."""
        return super()._apply(fn, exclude_state=[*exclude_state, "records"])

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
        """Give ``per_class`` its last axis back, which torchmetrics squeezes away where there is one class."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def shaped() -> dict[str, Tensor]:
            result = wrapped()
            per_class = result["per_class"]
            return {**result, "per_class": per_class if per_class.dim() else per_class.reshape(self._per_class_shape)}

        return shaped

    @property
    def _per_class_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)
