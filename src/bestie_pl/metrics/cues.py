"""How many cues an image has, and whether they lie where they should."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric

from bestie_pl.ops.runs import covers
from bestie_pl.structures import Cues, Instances

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Users choose theirs for their data, so a report shows several."""


class CueQuality(Metric):
    """Figures on the cues of images, for several thresholds; those without "true" in their meaning need tags only.

    A cue is right if it lies in an instance of its class. Regions that are crowds do not count, neither do cues in
    them.

    Args:
        num_classes: Classes without background.
        thresholds: Cues count that are surer than this, as in training.
    """

    is_differentiable = False
    full_state_update = False
    images: Tensor
    measured_images: Tensor
    instances: Tensor
    images_by_tags: Tensor
    cues_by_tags: Tensor
    tagged: Tensor
    tags_with_cue: Tensor
    tags_with_one_cue: Tensor
    images_with_as_many: Tensor
    judged: Tensor
    right: Tensor
    found: Tensor
    found_once: Tensor

    def __init__(self, num_classes: int, thresholds: Sequence[float] = THRESHOLDS) -> None:
        super().__init__()
        self.thresholds = tuple(thresholds)
        count = len(self.thresholds)
        for name in ("images", "measured_images", "instances"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("images_by_tags", torch.zeros(num_classes + 1, dtype=torch.int64), "sum")
        self.add_state("cues_by_tags", torch.zeros(count, num_classes + 1, dtype=torch.int64), "sum")
        self.add_state("tagged", torch.zeros(num_classes, dtype=torch.int64), "sum")
        self.add_state("tags_with_cue", torch.zeros(count, num_classes, dtype=torch.int64), "sum")
        for name in ("tags_with_one_cue", "images_with_as_many", "judged", "right"):
            self.add_state(name, torch.zeros(count, dtype=torch.int64), "sum")
        for name in ("found", "found_once"):
            self.add_state(name, torch.zeros(count, dtype=torch.int64), "sum")

    def update(self, cues: Cues, tags: Tensor, instances: Instances | None = None) -> None:
        """Add one image; all on the device of the metric.

        Args:
            cues: Of this image, in pixels of ``instances``; their ``image`` is not looked at.
            tags: (C,) bool.
            instances: The true instances, where they are known.
        """
        sure = cues.scores > cues.scores.new_tensor(self.thresholds)[:, None]  # (T, N)
        # float32 counts exactly, and whole numbers have no matrix product on GPUs
        per_class = sure.float() @ one_hot(cues.classes, len(tags)).float()  # (T, C)
        count, number = per_class.sum(1).long(), int(tags.sum())
        self.images += 1
        self.images_by_tags[number] += 1
        self.cues_by_tags[:, number] += count
        self.tagged += tags
        self.tags_with_cue += (per_class > 0) & tags
        self.tags_with_one_cue += (per_class[:, tags] == 1).sum(1)
        self.images_with_as_many += count == number
        if instances is None:
            return
        crowd = torch.zeros(len(instances), dtype=torch.bool) if instances.crowd is None else instances.crowd
        yx = cues.yx.round().long().cpu()
        inside = torch.zeros(len(instances), len(cues), dtype=torch.bool)
        for row, code in enumerate(instances.masks):
            inside[row] = covers(code, yx)
        inside &= instances.classes[:, None] == cues.classes.cpu()
        inside, crowd = inside.to(sure.device), crowd.to(sure.device)
        right = inside[~crowd].any(0)
        judged = right | ~inside[crowd].any(0)
        hits = sure.float() @ inside[~crowd].float().T  # (T, M)
        self.measured_images += 1
        self.instances += int((~crowd).sum())
        self.judged += (sure & judged).sum(1)
        self.right += (sure & right).sum(1)
        self.found += (hits > 0).sum(1)
        self.found_once += (hits == 1).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """The figures: scalars, and tensors (T, ...) with a row a threshold.

        ``images``, ``tags``, ``measured_images`` and ``instances`` are scalars. A row a threshold have ``cues``;
        ``cues_per_image``; ``cues_per_image_by_tags`` (T, C + 1), among images of 0, 1, ... tags; ``tags_with_cue`` and
        ``tags_with_one_cue``, shares of all tags; ``class_tags_with_cue`` (T, C), shares of a class's tags;
        ``images_with_as_many_cues_as_tags``, share of images; ``precision``, share of right cues; ``recall`` and
        ``instances_with_one_cue``, shares of true instances. NaN where there is nothing to take a share of.
        """
        tags = (self.images_by_tags * torch.arange(len(self.images_by_tags), device=self.images.device)).sum()
        cues = self.cues_by_tags.sum(1)
        return {
            "images": self.images,
            "tags": tags,
            "measured_images": self.measured_images,
            "instances": self.instances,
            "cues": cues,
            "cues_per_image": cues / self.images,
            "cues_per_image_by_tags": self.cues_by_tags / self.images_by_tags,
            "tags_with_cue": self.tags_with_cue.sum(1) / tags,
            "class_tags_with_cue": self.tags_with_cue / self.tagged,
            "tags_with_one_cue": self.tags_with_one_cue / tags,
            "images_with_as_many_cues_as_tags": self.images_with_as_many / self.images,
            "precision": self.right / self.judged,
            "recall": self.found / self.instances,
            "instances_with_one_cue": self.found_once / self.instances,
        }
