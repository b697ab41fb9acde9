"""The second stage as a LightningModule: a Mask R-CNN that learns instances, true ones or a first stage's labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.models.mask_rcnn import ANCHOR_SIZES, BUILDERS, WIDTH, MaskRCNNModel
from bestie_pl.modules.base import anywhere, names_of
from bestie_pl.modules.bestie import LEGEND
from bestie_pl.modules.weights import refuse_other_classes, refuse_other_network
from bestie_pl.ops.detection import detection_targets, to_instances
from bestie_pl.structures import Batch, Instances, Supervision

WARMUP_START = 0.001
"""Factor of the learning rate in the first step of a warm-up. Source: Detectron2's and torchvision's schedules."""

DROPS = (2 / 3, 8 / 9)
"""Shares of the training after which the learning rate falls to a tenth: 60,000 and 80,000 of the official 90,000."""

NETWORK = ("num_classes", "backbone", "width", "anchor_sizes")
"""The settings that decide which tensors the network has, and what its boxes mean."""


class MaskRCNNModule(pl.LightningModule):
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
        optimizer: ``sgd`` with momentum 0.9, as in the official schedule, or ``adamw``.
        lr: Learning rate at its highest; 0.02 for 16 images a step in the official schedule.
        backbone_lr_factor: Learning rate of the backbone relative to ``lr``.
        weight_decay: Of the optimiser.
        warmup_steps: Optimiser steps over which the rate rises linearly.
    """

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
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.02,
        backbone_lr_factor: float = 1.0,
        weight_decay: float = 1e-4,
        warmup_steps: int = 1000,
    ) -> None:
        super().__init__()
        # predicting fewer images than there are processes is fine: each process writes its own
        self.allow_zero_length_dataloader_with_multiple_devices = True
        names = names_of(num_classes, class_names)
        class_names, anchor_sizes = list(names), list(anchor_sizes)  # a checkpoint holds plain types only
        self.save_hyperparameters()
        self.class_names = names
        self.supervision: Supervision = supervision
        self.backbone_weights, self.init_from = backbone_weights, init_from
        self.optimizer_name, self.lr, self.backbone_lr_factor = optimizer, lr, backbone_lr_factor
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
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

    def on_fit_start(self) -> None:
        """Read the weights that training starts from, unless a checkpoint has just been restored."""
        if self.trainer.ckpt_path is not None:
            return
        if self.init_from is not None:
            self.model.load_weights(self.init_from)
        elif self.backbone_weights is not None:
            self.model.load_backbone_weights(self.backbone_weights)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Torchvision's detections in RGB images (B, 3, H, W) in [0, 1]; see ``MaskRCNNModel``."""
        found: list[dict[str, Tensor]] = self.model(images)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of torchvision's five losses; those of an object count as much as the weight of its label."""
        if batch.pseudo is None:
            raise ValueError("a training batch needs labels; see Batch for who makes them")
        terms = self.model.losses(batch.images, detection_targets(batch.pseudo))
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD or AdamW; the rate rises linearly and falls to a tenth after 2/3 and 8/9 of the training."""
        groups: list[dict[str, Any]] = [
            {"params": self.model.backbone_parameters(), "lr": self.lr * self.backbone_lr_factor},
            {"params": self.model.head_parameters(), "lr": self.lr},
        ]
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("the learning rate falls towards the end of training: set trainer.max_steps or max_epochs")
        scheduler = LambdaLR(optimizer, step_decay(int(steps), self.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---------------------------------------------------------------- inference and evaluation

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Instances, ...]:
        """Scored masks of each image of the batch at its original size, best score first; they may overlap."""
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network with one clear message."""
        refuse_other_network(checkpoint, self.hparams, NETWORK)
        refuse_other_classes(checkpoint, self)


def step_decay(steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Linear warm-up from 0.001, then 1, 0.1 and 0.01 in thirds and ninths; ``i`` counts finished optimiser steps.

    >>> [round(step_decay(9)(i), 3) for i in (0, 5, 6, 7, 8)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """

    def factor(done: int) -> float:
        progress = min(1.0, done / warmup_steps) if warmup_steps else 1.0
        drops = sum(done >= round(share * steps) for share in DROPS)
        return float((WARMUP_START * (1 - progress) + progress) * 10.0**-drops)

    return factor
