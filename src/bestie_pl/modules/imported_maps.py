"""Semantic maps of any other source, checked and written in the release's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.data.files import require_folder
from bestie_pl.data.formats.maps import MapFolder
from bestie_pl.metrics.semantic_maps import LEAST_IMAGES, SemanticMapFigures
from bestie_pl.modules.base import names_of
from bestie_pl.modules.semantic import SemanticPrediction
from bestie_pl.ops.instances import predict_semantic
from bestie_pl.ops.semantic import BACKGROUND, BAND, ITERATIONS, refine_logits, semantic_from_activations
from bestie_pl.structures import IGNORE, Batch


class ImportedMaps(pl.LightningModule):
    """Reads maps or scores of another program for ``predict``; SemanticMapWriter writes and reports on them.

    A network without weights: ``bestie-pl predict --model ImportedMaps`` needs no checkpoint. Size, values and order of
    the classes are checked; the order by the images' tags, as soon as enough images have been read.

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names of the classes, which errors use.
        folder: Of the files, ``NAME.png`` or ``NAME.npy``: classes (H, W), 0 for background and 255 for unknown; or
            scores, floating-point arrays (K, H, W) of the image's size.
        source_classes: The class names in the order in which the folder counts them, if it is not the data set's.
        scores: What floating-point arrays hold: ``logits`` or ``probabilities`` with background first; or
            ``activations`` in [0, 1], a channel a class and none for background.
        use_tags: Keep only the tagged classes of each image; other pixels become unknown (255), scores of other classes
            do not count.
        refine: ``pamr`` refines scores by the colours of the image; null leaves them as they are. Maps of classes are
            never changed.
        pamr_iterations: Rounds of this refinement.
        background: Activation below which a pixel is background.
        band: Activations this close to it are ignored.
    """

    makes_semantic_maps = True

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        folder: str,
        source_classes: Sequence[str] | None = None,
        scores: Literal["logits", "probabilities", "activations"] = "logits",
        use_tags: bool = True,
        refine: Literal["pamr"] | None = None,
        pamr_iterations: int = ITERATIONS["network"],
        background: float = BACKGROUND,
        band: float = BAND,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        names = names_of(num_classes, class_names)
        self.num_classes, self.class_names = num_classes, names
        self.source = MapFolder(
            Path(folder),
            names,
            None if source_classes is None else tuple(source_classes),
            background=scores != "activations",
        )
        self.scores: Literal["logits", "probabilities", "activations"] = scores
        self.use_tags, self.refine, self.pamr_iterations = use_tags, refine, pamr_iterations
        self.background, self.band = background, band
        self.order = SemanticMapFigures(num_classes)

    def setup(self, stage: str) -> None:
        """Only ``predict`` makes sense."""
        if stage != "predict":
            raise ValueError("ImportedMaps has nothing to train or to score: use `bestie-pl predict`")
        require_folder(self.source.folder, "semantic maps or scores NAME.png or NAME.npy to import")

    @property
    def reads_tags(self) -> bool:
        """Whether the maps rest on given tags."""
        return self.use_tags

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> SemanticPrediction:
        """Read, check and clean the maps of a batch; on the CPU."""
        maps = []
        for b, (name, size) in enumerate(zip(batch.names, batch.original_sizes, strict=True)):
            values = self.source.read(name, size)
            height, width = batch.sizes[b]
            image = batch.images[b : b + 1, :, :height, :width].cpu().float()
            if (height, width) != size:
                image = F.interpolate(image, size, mode="bilinear", align_corners=False)
            tags = batch.tags[b].cpu()
            self._check_order(self._semantic(values, image, torch.ones_like(tags), refine=False), tags, image[0])
            maps.append(self._semantic(values, image, tags if self.use_tags else torch.ones_like(tags), refine=True))
        return SemanticPrediction(tuple(maps))

    def _semantic(self, values: Tensor, image: Tensor, tags: Tensor, *, refine: bool) -> Tensor:
        """The map (H, W) of an image (1, 3, H, W) whose classes are among ``tags``."""
        if values.dim() == 2:
            allowed = torch.full((IGNORE + 1,), IGNORE, dtype=torch.uint8)
            allowed[0] = 0
            kept = tags.nonzero()[:, 0] + 1
            allowed[kept] = kept.byte()
            return allowed[values.long()]
        iterations = self.pamr_iterations if refine and self.refine == "pamr" else 0
        if self.scores == "activations":
            return semantic_from_activations(
                values, tags, image[0], background=self.background, band=self.band, iterations=iterations
            )
        logits = values.clamp(min=torch.finfo(torch.float32).tiny).log() if self.scores == "probabilities" else values
        size = (values.shape[1], values.shape[2])
        refined = refine_logits(logits[None], image, sizes=(size,), tags=tags[None], iterations=iterations)
        return predict_semantic(refined)[0]

    def _check_order(self, semantic: Tensor, tags: Tensor, image: Tensor) -> None:
        """Raise ValueError if, by the tags, the folder counts its classes in another order."""
        self.order.update(semantic, tags, image)
        if int(self.order.images) < 4 * LEAST_IMAGES:
            return
        wrong = self.order.misplaced()
        if wrong:
            pairs = ", ".join(f"what it calls {self.class_names[v]} is {self.class_names[c]}" for c, v in wrong)
            raise ValueError(
                f"{self.source.folder}: by the images' tags its classes stand in another order than the data set's "
                f"({pairs}); give them as source_classes in the folder's order"
            )
