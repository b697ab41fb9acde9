"""The semantic round: the network's semantic branch, trained on given maps, makes better maps of the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.models.bestie import BestieModel
from bestie_pl.modules.initial_weights import load_network, refuse_other_network
from bestie_pl.modules.schedule import adam_with_decay
from bestie_pl.ops.instances import predict_semantic
from bestie_pl.ops.losses import HARD_FRACTION, semantic_loss
from bestie_pl.ops.masks import resize_map
from bestie_pl.ops.semantic import ITERATIONS, favour_foreground, refine_logits, with_every_tag
from bestie_pl.structures import Batch, InstanceMaps, Recipe


class SemanticPrediction(NamedTuple):
    """B semantic maps (H, W) uint8 at the original sizes, 255 where undecided; and how much mirroring changes them.

    ``mirror_agreement``: B shares of pixels, in [0, 1], that get the same class from the image and from its mirror
    image, before refinement; None where the mirror image was not looked at.
    """

    maps: tuple[Tensor, ...]
    mirror_agreement: tuple[float, ...] | None = None


class SemanticModule(pl.LightningModule):
    """Trains backbone, decoder and semantic head of a ``BestieModel`` on semantic maps; predicts maps of its own.

    The raw output of a short training can be worse than the maps it learnt from; refined by the image's colours
    it is far better, so ``predict`` does that unless told otherwise. A checkpoint is what ``BestieModule(init_from)``
    starts from. Centre and offset heads are left as they are.

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names for the scores of single classes; ``class0``, ... if omitted.
        backbone: Name of a timm model. HRNets go with ``decoder: heads``.
        decoder: As for ``BestieModule``.
        backbone_weights: ``imagenet``, the path of a local file, or null for random weights. Read when training starts,
            never when a checkpoint is loaded.
        init_from: Checkpoint of a SemanticModule or BestieModule with the same network, to go on from in another round.
            Read when training starts, neither when it resumes nor when a checkpoint is loaded.
        recipe: ``release`` trains on the hardest fifth of the pixels.
        use_tags: ``predict`` allows an image its tagged classes only, and lets each be likely somewhere
            (``ops.semantic.with_every_tag``). That is what cleans the maps of training images; switch it off for images
            without tags. Validation and test never look at tags.
        mirror: ``predict`` averages the probabilities with those of the mirrored image.
        scales: Sizes relative to the image at which ``predict`` sees it; the probabilities are averaged.
        refine: ``pamr`` refines the probabilities by the colours of the image, ``wide`` does so over larger distances,
            for objects of a quarter of the image; null leaves them as they are. Scores of refined maps are logged
            beside the others and say so in their names.
        pamr_iterations: Rounds of this refinement.
        foreground_threshold: Probability of the tagged classes above which ``predict`` takes a pixel for one of them.
            Maps from a classifier miss parts of the objects; below 0.5 they come back.
        optimizer: ``adam`` as in the paper, or ``adamw``.
        lr: Learning rate at its highest.
        backbone_lr_factor: Learning rate of the backbone relative to ``lr``.
        weight_decay: Of the optimiser.
        warmup_steps: Optimiser steps over which the rate rises linearly.
    """

    makes_semantic_maps = True

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        backbone: str = "hrnet_w48",
        decoder: Literal["heads", "pyramid", "panoptic_deeplab"] = "heads",
        backbone_weights: str | None = "imagenet",
        init_from: str | None = None,
        recipe: Recipe = "paper",
        use_tags: bool = True,
        mirror: bool = True,
        scales: Sequence[float] = (1.0,),
        refine: Literal["pamr", "wide"] | None = "pamr",
        pamr_iterations: int = ITERATIONS["network"],
        foreground_threshold: float = 0.5,
        optimizer: Literal["adam", "adamw"] = "adam",
        lr: float = 5e-5,
        backbone_lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        # predicting fewer images than there are processes is fine: each process writes its own
        self.allow_zero_length_dataloader_with_multiple_devices = True
        names = tuple(class_names) if class_names is not None else tuple(f"class{c}" for c in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"class_names has {len(names)} names for num_classes={num_classes}; give one name a class")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive numbers, at least one, got {list(scales)}")
        if not 0 < foreground_threshold < 1:
            raise ValueError(f"foreground_threshold must be between 0 and 1, got {foreground_threshold}")
        class_names, scales = list(names), list(scales)  # a checkpoint holds plain types only
        self.save_hyperparameters()
        self.num_classes, self.class_names = num_classes, names
        self.recipe: Recipe = recipe
        self.use_tags, self.mirror, self.scales = use_tags, mirror, tuple(scales)
        self.refine, self.pamr_iterations = refine, pamr_iterations
        self.foreground_threshold = foreground_threshold
        self.backbone_weights, self.init_from = backbone_weights, init_from
        self.optimizer_name, self.lr, self.backbone_lr_factor = optimizer, lr, backbone_lr_factor
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps

        self.model = BestieModel(num_classes, backbone, decoder, recipe=recipe)
        # no loss reaches them, and DDP refuses to wait for gradients that never come
        for parameter in self.model.instance_parameters():
            parameter.requires_grad_(False)
        self.plain_iou, self.refined_iou = SemanticIoU(num_classes), SemanticIoU(num_classes)

    def on_fit_start(self) -> None:
        """Read the weights that training starts from, unless a checkpoint has just been restored."""
        if self.trainer.ckpt_path is not None:
            return
        if self.init_from is not None:
            load_network(self.model, self.init_from)
        elif self.backbone_weights is not None:
            self.model.load_backbone_weights(self.backbone_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Semantic logits (B, C + 1, H, W) float32 of RGB images (B, 3, H, W) in [0, 1], at their size."""
        logits = self.model(images).semantic_logits
        one = logits[:, :1]  # in the place of centre and offset maps, which nobody wants here
        size = (images.shape[-2], images.shape[-1])
        return self.model.enlarge(InstanceMaps(logits, one, one), size).semantic_logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy against the maps (paper Eq. 5)."""
        if batch.semantic is None:
            raise ValueError("a training batch needs a semantic map; see Batch")
        loss = semantic_loss(self(batch.images), batch.semantic, hard_fraction=HARD_FRACTION[self.recipe])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with polynomial decay (power 0.9) of the rate after a linear warm-up."""
        backbone = self.model.backbone_parameters()
        heads = [parameter for parameter in self.model.head_parameters() if parameter.requires_grad]
        return adam_with_decay(
            self,
            [{"params": backbone, "lr": self.lr * self.backbone_lr_factor}, {"params": heads, "lr": self.lr}],
            kind=self.optimizer_name,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
        )

    # ---------------------------------------------------------------- inference and evaluation

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> SemanticPrediction:
        """Maps of a batch at the original sizes, with tags, mirror image, scales and refinement as configured."""
        tags = batch.tags if self.use_tags else None
        logits = self._at_scales(batch.images)
        agreement = None
        if self.mirror:
            mirrored = self._at_scales(batch.images.flip(-1)).flip(-1)
            same = predict_semantic(logits, tags=tags) == predict_semantic(mirrored, tags=tags)
            agreement = tuple(float(s[:h, :w].float().mean()) for s, (h, w) in zip(same, batch.sizes, strict=True))
            logits = _mean_probabilities([logits, mirrored])
        if tags is not None:
            logits = with_every_tag(logits, tags, sizes=batch.sizes)
        if self.refine is not None:
            logits = self._refined(logits, batch)
        if self.foreground_threshold != 0.5:
            logits = favour_foreground(logits, self.foreground_threshold)
        return SemanticPrediction(_maps(logits, batch), agreement)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the maps of images without their tags with the ground truth."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the maps of images without their tags with the ground truth."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _at_scales(self, images: Tensor) -> Tensor:
        """Logarithms (B, C + 1, H, W) of the class probabilities, averaged over the scales."""
        size = (images.shape[-2], images.shape[-1])
        views = []
        for scale in self.scales:
            seen = tuple(max(1, round(side * scale)) for side in size)
            if seen == size:
                views.append(self(images))
            else:
                logits = self(F.interpolate(images, seen, mode="bilinear", antialias=scale < 1))
                views.append(F.interpolate(logits, size, mode="bilinear", antialias=scale > 1))
        return _mean_probabilities(views)

    def _refined(self, logits: Tensor, batch: Batch) -> Tensor:
        wide = self.refine == "wide"
        return refine_logits(logits, batch.images, sizes=batch.sizes, iterations=self.pamr_iterations, wide=wide)

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> None:
        if batch.semantic_references is None:
            return
        logits = self(batch.images)
        found = [(self.plain_iou, _maps(logits, batch))]
        if self.refine is not None:
            found.append((self.refined_iou, _maps(self._refined(logits, batch), batch)))
        for metric, maps in found:
            for predicted, true in zip(maps, batch.semantic_references, strict=True):
                metric.update(predicted, true.to(predicted.device))

    def _log_scores(self, stage: str) -> None:
        for prefix, metric in ((stage, self.plain_iou), (f"{stage}_{self.refine}", self.refined_iou)):
            if metric.update_called:
                result = metric.compute()
                names = ("background", *self.class_names)
                scores = {f"iou/{name}": value for name, value in zip(names, result["per_class"], strict=True)}
                scores["miou"] = result["miou"]
                self.log_dict(
                    {f"{prefix}/{name}": value.float() for name, value in scores.items() if not value.isnan()}
                )
            metric.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network with one clear message."""
        refuse_other_network(checkpoint, self.hparams)


def _mean_probabilities(views: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the views' class probabilities, from their logits."""
    return torch.stack([logits.log_softmax(1) for logits in views]).logsumexp(0) - math.log(len(views))


def _maps(logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """The likeliest class of each pixel, (H, W) uint8 at the original sizes."""
    planes = predict_semantic(logits)
    return tuple(
        resize_map(plane[:h, :w], original)
        for plane, (h, w), original in zip(planes, batch.sizes, batch.original_sizes, strict=True)
    )
