"""Semantic maps grown from given points, for data sets that have no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.modules.base import names_of
from bestie_pl.modules.semantic import SemanticPrediction
from bestie_pl.ops.growing import BAND, grow_semantic
from bestie_pl.structures import IGNORE, Batch


class GrownMaps(pl.LightningModule):
    """Grows maps from one point per object for ``predict``; SemanticMapWriter writes and reports on them.

    Where all images have the same tags, as with a single class, a classifier learns nothing, and maps cannot be made
    from tags. A network without weights: ``bestie-pl predict --model GrownMaps`` needs no checkpoint. What it writes is
    a start for ``SemanticModule``, whose network learns from all images together what single ones do not show.

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names of the classes.
        band: Pixels whose probability of being object is closer to one half than this are undecided (255).
    """

    makes_semantic_maps = True
    reads_points = reads_tags = True

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None, *, band: float = BAND) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if not 0 <= band < 0.5:
            raise ValueError(f"expected 0 <= band < 0.5, got {band}")
        self.num_classes, self.class_names, self.band = num_classes, names_of(num_classes, class_names), band

    def setup(self, stage: str) -> None:
        """Only ``predict`` makes sense."""
        if stage != "predict":
            raise ValueError("GrownMaps has nothing to train or to score: use `bestie-pl predict`")

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> SemanticPrediction:
        """Grow the maps of a batch, on its device; all of an image with tags and without points is undecided."""
        cues = batch.cues
        if len(cues):
            cues = cues.select((cues.scores > 0) & batch.tags[cues.image, cues.classes])
        maps: list[Tensor] = []
        for b, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
            points = cues.select(cues.image == b)
            if len(points) == 0:
                value = IGNORE if bool(batch.tags[b].any()) else 0
                maps.append(torch.full(original, value, dtype=torch.uint8, device=batch.images.device))
                continue
            image = batch.images[b : b + 1, :, : size[0], : size[1]].float()
            if size != original:
                image = F.interpolate(image, original, mode="bilinear", antialias=True)
            scale = points.yx.new_tensor(original) / points.yx.new_tensor(size)
            moved = replace(points, image=points.image * 0, yx=(points.yx + 0.5) * scale - 0.5)
            maps.append(grow_semantic(moved, image[0], band=self.band))
        return SemanticPrediction(tuple(maps))
