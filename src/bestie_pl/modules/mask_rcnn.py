"""The second stage as a LightningModule: a Mask R-CNN that learns instances, true ones or a first stage's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.models.mask_rcnn import ANCHOR_SIZES, BUILDERS, WIDTH, MaskRCNNModel
from bestie_pl.models.tensor_file import read_file
from bestie_pl.modules.base import NetworkModule, anywhere, plain, settings_of
from bestie_pl.modules.bestie import LEGEND
from bestie_pl.modules.large_images import refuse_large
from bestie_pl.modules.optimization import Optimization, configure_detector
from bestie_pl.modules.run_folders import find_checkpoint
from bestie_pl.modules.weights import refuse_other_classes
from bestie_pl.ops.detection import detection_targets, to_instances
from bestie_pl.structures import Batch, Instances, Supervision


class MaskRCNNModule(NetworkModule):
    """Mask R-CNN trained on the labels of the batch: true instances, or the predictions of a first stage.

    The paper's best rows are such a second stage (marked with a dagger in its tables), trained on what BESTIE predicts
    for its training images. ``data.labels_from`` gives it these labels; with ``supervision: full`` it learns from the
    true instances, as the reference. Semantic maps and cues of the batch are not looked at.

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names for the scores of single classes; ``class0``, ... if omitted.
        backbone: One of torchvision's builders (``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2``), or the name
            of a timm model with features at strides 4, 8, 16 and 32, which gets the same pyramid and heads.
        width: Channels of the pyramid and mask head of a timm backbone.
        anchor_sizes: Sides of the anchors of a timm backbone's five levels, in pixels of the resized image.
        settings: Numbers among the arguments of ``torchvision.models.detection.MaskRCNN``, such as ``min_size``, to
            whose length an image's shorter side is resized (800), or ``box_batch_size_per_image``.
        backbone_weights: ``imagenet``, the path of a local file, or null for random weights. Unless null, the batch
            normalisations of the backbone stay as they are, as in torchvision.
        init_from: File of a whole Mask R-CNN, torchvision's or a checkpoint of this module with as many classes, to
            start from in place of ``backbone_weights``.
        supervision: What the labels rest on, for the files of scores. The command line takes it from the data.
        optimization: Optimiser and schedule: ``sgd`` with momentum 0.9, as in the official schedule, or ``adamw``. The
            rate rises linearly over ``warmup_steps`` and falls to a tenth after 2/3 and 8/9 of the training.
    """

    model: MaskRCNNModel
    network_settings = ("num_classes", "backbone", "width", "anchor_sizes")
    legend = {name: text for name, text in LEGEND.items() if name != "miou"}

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        backbone: str = BUILDERS[0],
        width: int = WIDTH,
        anchor_sizes: Sequence[int] = ANCHOR_SIZES,
        settings: dict[str, Any] | None = None,
        backbone_weights: str | None = "imagenet",
        init_from: str | None = None,
        supervision: Supervision = "tags",
        optimization: Optimization = Optimization("sgd", lr=0.02, weight_decay=1e-4, warmup_steps=1000),
    ) -> None:
        optimizing = settings_of(Optimization, optimization)
        super().__init__(
            num_classes, class_names, backbone_weights=backbone_weights, optimization=optimizing, init_from=init_from
        )
        # a checkpoint holds plain types only
        class_names, anchor_sizes = list(self.class_names), list(anchor_sizes)
        optimization = plain(optimizing)  # type: ignore[assignment]
        self.save_hyperparameters()
        self.supervision: Supervision = supervision
        self.model = MaskRCNNModel(
            num_classes,
            backbone,
            width=width,
            anchor_sizes=anchor_sizes,
            settings=settings,
            frozen_norm=backbone_weights is not None,
        )
        self.voc_ap = VOCInstanceAP(num_classes)
        self.coco_ap = COCOInstanceAP(num_classes)

    @property
    def network(self) -> MaskRCNNModel:
        """See ``NetworkModule``."""
        return self.model

    def load_first_weights(self) -> None:
        """Read a whole Mask R-CNN, or those of the backbone alone."""
        if self.init_from is None:
            super().load_first_weights()
            return
        path = find_checkpoint(Path(self.init_from))
        content = read_file(path)
        if isinstance(content, Mapping):
            refuse_other_classes(content, self)
        self.model.load_weights(path)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Torchvision's detections in RGB images (B, 3, H, W) in [0, 1]; see ``MaskRCNNModel``."""
        found: list[dict[str, Tensor]] = self.model(images)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of torchvision's five losses; those of an object count as much as the weight of its label."""
        if batch.pseudo is None:
            raise ValueError("a training batch needs labels; see Batch for who makes them")
        self.choose_weights()
        terms = self.model.losses(batch.images, detection_targets(batch.pseudo))
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two groups of parameters, backbone and heads, that follow one schedule at their own rates."""
        return configure_detector(
            self, self.model.backbone_parameters(), self.model.head_parameters(), self.optimization
        )

    # ---------------------------------------------------------------- inference and evaluation

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Instances, ...]:
        """Scored masks of each image of the batch at its original size, best score first; they may overlap."""
        refuse_large(batch, "MaskRCNNModule")
        found = self.model(batch.images, batch.sizes)
        return tuple(
            to_instances(detections, original) for detections, original in zip(found, batch.original_sizes, strict=True)
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions with the ground truth."""
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions with the ground truth."""
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _evaluate(self, batch: Batch, batch_idx: int) -> None:
        if batch.references:  # none in the batch of a process without images
            instances = self.predict_step(batch, batch_idx)
            self.voc_ap.update(instances, batch.references, batch.names)
            self.coco_ap.update(instances, batch.references, batch.names)

    def _log_scores(self, stage: str) -> None:
        if anywhere(self, self.voc_ap.update_called):
            voc, coco = self.voc_ap.compute(), self.coco_ap.compute()
            scores = {name: value for name, value in voc.items() if name != "per_class"}
            scores |= {f"coco_{name}": value for name, value in coco.items() if name != "per_class"}
            for threshold in (0.25, 0.5):
                per_class = voc["per_class"][self.voc_ap.thresholds.index(threshold)]
                scores |= {
                    f"ap{100 * threshold:.0f}/{name}": value
                    for name, value in zip(self.class_names, per_class, strict=True)
                }
            self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items() if not value.isnan()})
        self.voc_ap.reset()
        self.coco_ap.reset()
