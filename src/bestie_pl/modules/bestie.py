"""The method as a LightningModule: network, self-refinement, losses; and scored instance masks at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.models.bestie import STRIDE, BestieModel
from bestie_pl.modules.optimization import adam_with_decay
from bestie_pl.modules.weights import load_network, refuse_other_network
from bestie_pl.ops.components import tagged_classes
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.instances import find_instances, find_instances_from_points
from bestie_pl.ops.labels import mix_labels
from bestie_pl.ops.losses import LossWeights, total_loss
from bestie_pl.ops.masks import resize_map, to_instances
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.ops.semantic import ITERATIONS, refine_logits
from bestie_pl.ops.views import average_maps, mirror_maps
from bestie_pl.prediction.engine import Predictor
from bestie_pl.prediction.result import Result
from bestie_pl.prediction.sources import Source
from bestie_pl.structures import Batch, Geometry, InstanceMaps, Instances, LabeledInstances, Recipe, Supervision

LEGEND = {
    "map25, map50, map70, map75": "VOC: area under the precision-recall curve at one overlap, mean over classes",
    "ap25/CLASS, ap50/CLASS": "VOC: the same for one class",
    "coco_ap": "COCO: precision at 101 recalls, mean over the overlaps 0.5, 0.55, ..., 0.95 and over classes",
    "coco_ap25, coco_ap50, coco_ap70, coco_ap75": "COCO: the same at one overlap",
    "coco_ap_small, coco_ap_medium, coco_ap_large": "COCO: coco_ap of objects under 32 x 32 px, up to 96 x 96, above",
    "miou": "IoU of the predicted classes with the true ones, mean over classes and background",
}
"""What the scores are. Published tables mix the precision of VOC and of COCO, which differ at the same overlap."""


class BestieModule(pl.LightningModule):
    """Weakly-supervised instance segmentation with semantic knowledge transfer and self-refinement (BESTIE, CVPR 2022).

    ``forward`` takes RGB images in [0, 1] and returns the three maps at stride 4; ``predict_instances`` returns scored
    masks. Every row of the paper's table 3 is a switch: ``guidance``, ``refinement``, ``clustering``.

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names for the scores of single classes; ``class0``, ... if omitted.
        backbone: Name of a timm model. HRNets go with ``decoder: heads``.
        decoder: ``heads`` on the stride-4 branch of an HRNet (the paper's network), a light feature ``pyramid`` with
            three heads, or the two decoders of ``panoptic_deeplab``.
        backbone_weights: ``imagenet``, the path of a local file, or null for random weights. Read when training starts,
            never when a checkpoint is loaded.
        init_from: Checkpoint of a SemanticModule (or BestieModule) with the same network, to start from in place of
            ``backbone_weights``. Read when training starts, neither when it resumes nor when a checkpoint is loaded.
        supervision: What labels are made from: image ``tags`` (with cues), one ``points`` per object, or ``full``: the
            true instances, as a reference.
        recipe: Where paper and authors' release disagree, whom to follow.
        guidance: Instance-aware guidance: centre and offset losses only where an instance is labelled.
        refinement: Refined labels from the network's own output in every step. Has no effect with ``full`` supervision.
        clustering: Centres from the convergence of the offset field beside the heatmap's peaks.
        object_scale: Size of the objects relative to VOC's (50 to 400 px); scales the six lengths below together.
        sigma: Standard deviation of a centre's Gaussian, in pixels at ``object_scale: 1`` as all lengths here.
        peak_window: Side of the window in which a centre must be the maximum.
        min_area: Components with fewer pixels are ignored.
        cluster_radius: Offsets shorter than this belong to a convergence point.
        cluster_tolerance: Tolerance of a convergence point's area, in pixels (beta).
        cluster_distance: A clustered centre must be this far from the peaks of its component.
        refine_threshold: Least centre score of a refined label.
        test_threshold: Least centre score of a predicted instance.
        keep_without_center: Predict a component without any centre as one instance.
        mirror: Average the maps with those of the mirrored image when predicting.
        test_scales: Sizes relative to the image at which it is seen when predicting; the maps are averaged.
        average_offsets: Whether mirrored and scaled views count for the offsets too, or only for semantic probabilities
            and centre heatmaps, as in the release. If omitted, they do in recipe ``paper``, not in ``release``.
        refine_at_test: ``pamr`` refines the predicted classes by the colours of the image. Needs no labels; every score
            then says so in its name.
        pamr_iterations: Rounds of this refinement.
        oracle: Use the evaluated images' own tags or points. Every score then says so in its name.
        center_weight: Weight of the centre loss.
        offset_weight: Weight of the offset loss.
        semantic_weight: Weight of the semantic loss.
        optimizer: ``adam`` as in the paper, or ``adamw``.
        lr: Learning rate at its highest.
        backbone_lr_factor: Learning rate of the backbone relative to ``lr``.
        weight_decay: Of the optimiser.
        warmup_steps: Optimiser steps over which the rate rises linearly (release: 2000).
        compile_network: Let torch compile the network when training starts: takes minutes, then steps are faster.
    """

    legend = LEGEND

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        backbone: str = "hrnet_w48",
        decoder: Literal["heads", "pyramid", "panoptic_deeplab"] = "heads",
        backbone_weights: str | None = "imagenet",
        init_from: str | None = None,
        supervision: Supervision = "tags",
        recipe: Recipe = "paper",
        guidance: bool = True,
        refinement: bool = True,
        clustering: bool = True,
        object_scale: float = 1.0,
        sigma: float = Geometry.sigma,
        peak_window: int = Geometry.peak_window,
        min_area: int = Geometry.min_area,
        cluster_radius: float = Geometry.cluster_radius,
        cluster_tolerance: float = Geometry.cluster_tolerance,
        cluster_distance: float = Geometry.cluster_distance,
        refine_threshold: float = 0.3,
        test_threshold: float = 0.1,
        keep_without_center: bool = True,
        mirror: bool = False,
        test_scales: Sequence[float] = (1.0,),
        average_offsets: bool | None = None,
        refine_at_test: Literal["pamr"] | None = None,
        pamr_iterations: int = ITERATIONS["network"],
        oracle: Literal["tags", "points"] | None = None,
        center_weight: float = LossWeights.center,
        offset_weight: float = LossWeights.offset,
        semantic_weight: float = LossWeights.semantic,
        optimizer: Literal["adam", "adamw"] = "adam",
        lr: float = 5e-5,
        backbone_lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        # predicting fewer images than there are processes is fine: each process writes its own
        self.allow_zero_length_dataloader_with_multiple_devices = True
        names = tuple(class_names) if class_names is not None else tuple(f"class{c}" for c in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"class_names has {len(names)} names for num_classes={num_classes}; give one name a class")
        if not test_scales or min(test_scales) <= 0:
            raise ValueError(f"test_scales must be positive numbers, at least one, got {list(test_scales)}")
        averaged = recipe == "paper" if average_offsets is None else average_offsets
        if not averaged and 1 not in test_scales:
            raise ValueError(
                f"without average_offsets (recipe release) offsets are those of the image at scale 1, and test_scales "
                f"are {list(test_scales)}; add 1.0 to them, or set average_offsets: true"
            )
        class_names, test_scales = list(names), list(test_scales)  # a checkpoint holds plain types only
        self.save_hyperparameters()
        self.class_names = names
        self.supervision: Supervision = supervision
        self.recipe: Recipe = recipe
        self.guidance, self.clustering = guidance, clustering
        self.refinement = refinement and supervision != "full"
        self.geometry = Geometry(
            sigma, peak_window, min_area, cluster_radius, cluster_tolerance, cluster_distance
        ).scaled(object_scale)
        self.refine_threshold, self.test_threshold = refine_threshold, test_threshold
        self.keep_without_center, self.oracle = keep_without_center, oracle
        self.mirror, self.test_scales, self.average_offsets = mirror, tuple(test_scales), averaged
        self.loss_weights = LossWeights(center_weight, offset_weight, semantic_weight)
        self.refine_at_test, self.pamr_iterations = refine_at_test, pamr_iterations
        self.backbone_weights, self.init_from = backbone_weights, init_from
        self.optimizer_name, self.lr, self.backbone_lr_factor = optimizer, lr, backbone_lr_factor
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        self.compile_network = compile_network

        self.model = BestieModel(num_classes, backbone, decoder, recipe=recipe)
        self.voc_ap = VOCInstanceAP(num_classes)
        self.coco_ap = COCOInstanceAP(num_classes)
        self.semantic_iou = SemanticIoU(num_classes)
        self.pseudo_quality, self.refined_quality = LabelQuality(), LabelQuality()

    def on_fit_start(self) -> None:
        """Read the weights that training starts from, unless a checkpoint has just been restored; compile."""
        if self.compile_network:
            self.model.network.compile()  # in place: the names in checkpoints stay
        if self.trainer.ckpt_path is not None:  # not known in ``setup`` yet
            return
        if self.init_from is not None:
            load_network(self.model, self.init_from)
        elif self.backbone_weights is not None:
            self.model.load_backbone_weights(self.backbone_weights)

    def forward(self, images: Tensor) -> InstanceMaps:
        """Maps at stride 4 of RGB images (B, 3, H, W) in [0, 1]."""
        maps: InstanceMaps = self.model(images)
        return maps

    # ---------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forward, refinement of the labels by the network's own output, losses of Eq. 3 to 6."""
        if batch.semantic is None or batch.pseudo is None:
            raise ValueError("a training batch needs a semantic map and pseudo labels; see Batch for who makes them")
        maps = self(batch.images)
        enlargement = self.model.enlargement(maps, (batch.images.shape[-2], batch.images.shape[-1]))
        refined = self.refine(maps.detach(), batch, enlargement) if self.refinement else None
        loss, terms = total_loss(
            maps,
            batch.semantic,
            batch.pseudo,
            refined,
            supervision=self.supervision,
            recipe=self.recipe,
            geometry=self.geometry,
            weights=self.loss_weights,
            guidance=self.guidance,
            enlargement=enlargement,
        )
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        if batch.truth is not None:
            self.pseudo_quality.update(batch.pseudo, batch.truth)
            if refined is not None:
                self.refined_quality.update(refined, batch.truth)
        return loss

    @torch.no_grad()
    def refine(self, maps: InstanceMaps, batch: Batch, enlargement: Enlargement | None = None) -> LabeledInstances:
        """Labels that the network's own maps give for the batch (paper section 3.5).

        Images without points in a batch that has some are refined as with ``supervision: tags``.
        ``maps`` at full resolution, or as they leave the network with their ``enlargement``.
        """
        if batch.components is None or batch.semantic is None:
            raise ValueError("refinement needs the semantic map and its components in the batch")
        by_tags = partial(
            refine_from_tags,
            maps,
            batch.components,
            geometry=self.geometry,
            recipe=self.recipe,
            threshold=self.refine_threshold,
            clustering=self.clustering,
            enlargement=enlargement,
        )
        if self.supervision != "points":
            return by_tags()
        of_points = refine_from_points(
            maps.offset_field,
            tagged_classes(batch.semantic, batch.tags),
            batch.cues,
            recipe=self.recipe,
            enlargement=enlargement,
        )
        return of_points if batch.pointed is None else mix_labels(of_points, by_tags(), batch.pointed)

    def on_train_epoch_end(self) -> None:
        """Quality of the labels on this epoch's crops, where true instances were there to measure it (figure 6)."""
        for source, metric in (("pseudo", self.pseudo_quality), ("refined", self.refined_quality)):
            if metric.update_called:
                self.log_dict({f"train/{source}/{name}": value.float() for name, value in metric.compute().items()})
                metric.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with polynomial decay (power 0.9) of the rate after a linear warm-up."""
        groups = [
            {"params": list(self.model.backbone_parameters()), "lr": self.lr * self.backbone_lr_factor},
            {"params": list(self.model.head_parameters()), "lr": self.lr},
        ]
        return adam_with_decay(
            self,
            groups,
            kind=self.optimizer_name,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
        )

    # ---------------------------------------------------------------- inference and evaluation

    def predict(self, source: Source | Sequence[Source], *, image_scale: float = 1.0) -> list[Result]:
        """Results for files, folders, patterns, Pillow images, arrays or tensors; see ``Predictor`` for more."""
        return Predictor(self, image_scale=image_scale)(source)

    @torch.no_grad()
    def predict_instances(self, batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
        """Scored masks and semantic maps of each image, at the original size.

        Returns:
            B Instances, best score first, and B semantic maps (H, W) uint8.
        """
        maps, sizes = self._inference_maps(batch)
        cues = batch.cues
        if sizes is not batch.sizes:
            scale = cues.yx.new_tensor(sizes) / cues.yx.new_tensor(batch.sizes)
            cues = replace(cues, yx=(cues.yx + 0.5) * scale[cues.image] - 0.5)
        height, width = maps.offset_field.shape[-2:]
        rows = torch.arange(height, device=maps.offset_field.device)[None, :, None]
        columns = torch.arange(width, device=maps.offset_field.device)[None, None, :]
        limits = torch.tensor(sizes, device=maps.offset_field.device)[:, :, None, None]
        valid = (rows < limits[:, 0]) & (columns < limits[:, 1])
        if self.oracle == "points":
            labels, semantic = find_instances_from_points(maps, cues, tags=batch.tags, valid=valid)
        else:
            labels, semantic = find_instances(
                maps,
                geometry=self.geometry,
                recipe=self.recipe,
                threshold=self.test_threshold,
                clustering=self.clustering,
                keep_without_center=self.keep_without_center,
                valid=valid,
                tags=batch.tags if self.oracle == "tags" else None,
            )
        instances = to_instances(labels, sizes=sizes, original_sizes=batch.original_sizes)
        return instances, tuple(
            resize_map(plane[:h, :w], original)
            for plane, (h, w), original in zip(semantic, sizes, batch.original_sizes, strict=True)
        )

    def _inference_maps(self, batch: Batch) -> tuple[InstanceMaps, tuple[tuple[int, int], ...]]:
        """Maps at the resolution where instances are looked for, and how much of each image's map is no padding.

        That is the network's input, whose pixels the geometry is measured in. The release enlarges to the original size
        instead (it resizes each image a little to evaluate it alone); offsets then change their unit with it.
        """
        size = (batch.images.shape[-2], batch.images.shape[-1])
        sizes = batch.sizes
        if self.recipe == "release" and len(batch) == 1 and sizes[0] == size:
            sizes = batch.original_sizes
        grid = sizes[0] if sizes is not batch.sizes else size
        # the image itself first: its offsets are kept where they are not averaged
        scales = sorted(self.test_scales, key=lambda scale: scale != 1)
        views = (
            self._view(batch.images, grid, scale=scale, mirrored=mirrored)
            for scale in scales
            for mirrored in ((False, True) if self.mirror else (False,))
        )
        if self.mirror or len(scales) > 1:
            maps = average_maps(views, average_offsets=self.average_offsets)
        else:
            (maps,) = views
        if self.refine_at_test == "pamr":
            images = batch.images
            if grid != size:
                images = nn.functional.interpolate(images, grid, mode="bilinear", align_corners=False)
            refined = refine_logits(maps.semantic_logits, images, sizes=sizes, iterations=self.pamr_iterations)
            maps = maps._replace(semantic_logits=refined)
        return maps, sizes

    def _view(self, images: Tensor, grid: tuple[int, int], *, scale: float, mirrored: bool) -> InstanceMaps:
        """Maps on the ``grid``, with offsets in its pixels, of images as seen at another scale, mirrored or not."""
        if mirrored:
            return mirror_maps(self._view(images.flip(-1), grid, scale=scale, mirrored=False))
        size = (images.shape[-2], images.shape[-1])
        # whole cells, so that they cover the image without a rest
        seen = size if scale == 1 else tuple(max(1, round(side * scale / STRIDE)) * STRIDE for side in size)
        if seen == size:
            maps = self(images)
            enlargement = self.model.enlargement(maps, grid)
        else:
            maps = self(nn.functional.interpolate(images, seen, mode="bilinear", antialias=scale < 1))
            enlargement = Enlargement(grid, grid, self.model.align_corners)
        maps = enlargement.all(maps)
        if seen != grid:
            ratio = torch.tensor([grid[0] / seen[0], grid[1] / seen[1]], device=self.device)
            maps = maps._replace(offset_field=maps.offset_field * ratio[:, None, None])
        return maps

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions with the ground truth."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions with the ground truth."""
        self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Instances, ...]:
        """Scored masks of each image of the batch at its original size."""
        return self.predict_instances(batch)[0]

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _evaluate(self, batch: Batch) -> None:
        instances, semantic = self.predict_instances(batch)
        if batch.references is not None:
            self.voc_ap.update(instances, batch.references, batch.names)
            self.coco_ap.update(instances, batch.references, batch.names)
        if batch.semantic_references is not None:
            for predicted, true in zip(semantic, batch.semantic_references, strict=True):
                self.semantic_iou.update(predicted, true.to(predicted.device))

    @property
    def score_notes(self) -> tuple[str, ...]:
        """What the name of every score must say, in words that follow ``test`` or ``val`` in it."""
        oracle = () if self.oracle is None else (f"oracle_{self.oracle}",)
        return oracle if self.refine_at_test is None else (*oracle, self.refine_at_test)

    def _log_scores(self, stage: str) -> None:
        prefix = "_".join([stage, *self.score_notes])
        scores: dict[str, Tensor] = {}
        if self.voc_ap.update_called:
            voc, coco, semantic = self.voc_ap.compute(), self.coco_ap.compute(), self.semantic_iou.compute()
            scores |= {name: value for name, value in voc.items() if name != "per_class"}
            scores |= {f"coco_{name}": value for name, value in coco.items() if name != "per_class"}
            scores["miou"] = semantic["miou"]
            for threshold in (0.25, 0.5):
                per_class = voc["per_class"][self.voc_ap.thresholds.index(threshold)]
                scores |= {
                    f"ap{100 * threshold:.0f}/{name}": value
                    for name, value in zip(self.class_names, per_class, strict=True)
                }
            self.log_dict(
                {f"{prefix}/{name}": value.float() for name, value in scores.items() if not value.isnan()},
                sync_dist=False,
            )
        for metric in (self.voc_ap, self.coco_ap, self.semantic_iou):
            metric.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network with one clear message."""
        refuse_other_network(checkpoint, self.hparams)
