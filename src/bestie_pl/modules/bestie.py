"""The method as a LightningModule: network, self-refinement, losses; and scored instance masks at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.models.bestie import STRIDE, BestieModel
from bestie_pl.modules.base import NetworkModule, anywhere, plain, settings_of
from bestie_pl.modules.large_images import in_tiles
from bestie_pl.modules.optimization import Optimization
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.instances import find_instances, find_instances_from_points
from bestie_pl.ops.labels import Foreground, pseudo_labels, refined_labels
from bestie_pl.ops.losses import LossWeights, total_loss
from bestie_pl.ops.masks import resize_map, to_instances
from bestie_pl.ops.refinement import MAX_CENTERS
from bestie_pl.ops.semantic import ITERATIONS, refine_logits
from bestie_pl.ops.views import average_maps, check_scales, mirror_maps, see
from bestie_pl.prediction.engine import Predictor
from bestie_pl.prediction.result import Result
from bestie_pl.prediction.sources import Source
from bestie_pl.recipe import RULES, Recipe
from bestie_pl.structures import Batch, Geometry, InstanceMaps, Instances, LabeledInstances, Supervision

LEGEND = {
    "map25, map50, map70, map75": "VOC: area under the precision-recall curve at one overlap, mean over classes",
    "ap25/CLASS, ap50/CLASS": "VOC: the same for one class",
    "coco_ap": "COCO: precision at 101 recalls, mean over the overlaps 0.5, 0.55, ..., 0.95 and over classes",
    "coco_ap25, coco_ap50, coco_ap70, coco_ap75": "COCO: the same at one overlap",
    "coco_ap_small, coco_ap_medium, coco_ap_large": "COCO: coco_ap of objects under 32 x 32 px, up to 96 x 96, above",
    "miou": "IoU of the predicted classes with the true ones, mean over classes and background",
}
"""What the scores are. Published tables mix the precision of VOC and of COCO, which differ at the same overlap."""


@dataclass(frozen=True)
class Inference:
    """How instances are predicted; nothing of it changes a training.

    Args:
        threshold: Least centre score of a predicted instance.
        keep_without_center: Predict a component without any centre as one instance.
        mirror: Average the maps with those of the mirrored image.
        scales: Sizes relative to the image at which it is seen; the maps are averaged.
        average_offsets: Whether mirrored and scaled views count for the offsets too, or only for semantic probabilities
            and centre heatmaps, as in the release. If omitted, they do in recipe ``paper``, not in ``release``.
        refine: ``pamr`` refines the predicted classes by the colours of the image. Needs no labels; every score then
            says so in its name.
        pamr_iterations: Rounds of this refinement.
    """

    threshold: float = 0.1
    keep_without_center: bool = True
    mirror: bool = False
    scales: tuple[float, ...] = (1.0,)
    average_offsets: bool | None = None
    refine: Literal["pamr"] | None = None
    pamr_iterations: int = ITERATIONS["network"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales("scales", self.scales))
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        if self.pamr_iterations < 0:
            raise ValueError(f"pamr_iterations must not be negative, got {self.pamr_iterations}")


class BestieModule(NetworkModule):
    """Weakly-supervised instance segmentation with semantic knowledge transfer and self-refinement (BESTIE, CVPR 2022).

    ``forward`` takes RGB images in [0, 1] and returns the three maps at stride 4; ``predict_instances`` returns scored
    masks. Every row of the paper's table 3 is a switch: ``guidance``, ``refinement``, ``clustering``.

    A training batch needs images, tags, a semantic map and cues or points (see ``Batch``); one that comes without
    pseudo labels, as from a data module of one's own, gets them here.

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
        foreground: Which pixels refined labels can have: those of the ``given`` semantic map, those that the network
            itself has ``predicted``, or where ``both`` agree.
        refine_threshold: Least centre score of a refined label.
        max_centers: Refinement leaves a component with more instances alone.
        oracle: Use the evaluated images' own tags or points. Every score then says so in its name.
        object_scale: Size of the objects relative to VOC's (50 to 400 px); scales the six lengths of ``geometry``
            together.
        geometry: Lengths in pixels at ``object_scale: 1``.
        inference: How instances are predicted.
        loss_weights: Of centre, offset and semantic loss.
        optimization: Optimiser and schedule.
        compile_network: Let torch compile the network when training starts, which takes an HRNet many minutes.
        graph_network: Let one GPU replay the network's kernels as a CUDA graph, where a CPU launches them too slowly:
            the same results, sooner with HRNets and small batches. Not with several GPUs or accumulated gradients.
    """

    model: BestieModel
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
        foreground: Foreground = "given",
        refine_threshold: float = 0.3,
        max_centers: int = MAX_CENTERS,
        oracle: Literal["tags", "points"] | None = None,
        object_scale: float = 1.0,
        geometry: Geometry = Geometry(),
        inference: Inference = Inference(),
        loss_weights: LossWeights = LossWeights(),
        optimization: Optimization = Optimization(),
        compile_network: bool = False,
        graph_network: bool = False,
    ) -> None:
        lengths, weights = settings_of(Geometry, geometry), settings_of(LossWeights, loss_weights)
        predicting, optimizing = settings_of(Inference, inference), settings_of(Optimization, optimization)
        super().__init__(
            num_classes, class_names, backbone_weights=backbone_weights, optimization=optimizing, init_from=init_from
        )
        if not 0 < refine_threshold < 1 or max_centers < 1:
            raise ValueError(
                f"expected 0 < refine_threshold < 1 and max_centers >= 1, got {refine_threshold} and {max_centers}"
            )
        rules = RULES[recipe]
        averaged = rules.average_offsets if predicting.average_offsets is None else predicting.average_offsets
        if not averaged and 1 not in predicting.scales:
            raise ValueError(
                "without average_offsets (recipe release) offsets are those of the image at scale 1, and scales are "
                f"{list(predicting.scales)}; add 1.0 to them, or set average_offsets: true"
            )
        # a checkpoint holds plain types only
        class_names = list(self.class_names)
        geometry, inference, loss_weights, optimization = (  # type: ignore[assignment]
            plain(group) for group in (lengths, predicting, weights, optimizing)
        )
        self.save_hyperparameters()
        self.supervision: Supervision = supervision
        self.recipe: Recipe = recipe
        self.rules = rules
        self.guidance, self.clustering = guidance, clustering
        self.refinement = refinement and supervision != "full"
        self.foreground: Foreground = foreground
        self.refine_threshold, self.max_centers, self.oracle = refine_threshold, max_centers, oracle
        self.geometry, self.loss_weights = lengths.scaled(object_scale), weights
        self.inference = replace(predicting, average_offsets=averaged)
        if compile_network and graph_network:
            raise ValueError("compile_network and graph_network exclude one another; choose one")
        self.compile_network, self.graph_network = compile_network, graph_network

        self.model = BestieModel(num_classes, backbone, decoder, recipe=recipe)
        self.voc_ap = VOCInstanceAP(num_classes)
        self.coco_ap = COCOInstanceAP(num_classes)
        self.semantic_iou = SemanticIoU(num_classes)
        self.pseudo_quality, self.refined_quality = LabelQuality(), LabelQuality()

    @property
    def network(self) -> BestieModel:
        """See ``NetworkModule``."""
        return self.model

    def on_fit_start(self) -> None:
        """Compare the settings with the data's, read the first weights, compile."""
        self._check_data(getattr(self.trainer, "datamodule", None))
        if self.graph_network and (self.device.type != "cuda" or self.trainer.world_size > 1):
            raise ValueError(
                f"graph_network is for a training on one GPU, not on {self.trainer.world_size} x {self.device.type}; "
                "set graph_network: false"
            )
        if self.compile_network:
            self.model.network.compile()  # in place: the names in checkpoints stay
        super().on_fit_start()

    def _check_data(self, data: pl.LightningDataModule | None) -> None:
        """Refuse a data module that makes labels by other settings than this module refines and compares them by."""
        for name, mine in (("supervision", self.supervision), ("recipe", self.recipe)):
            theirs = getattr(data, name, mine)
            if theirs != mine:
                raise ValueError(f"the data module has {name} {theirs!r}, the model {mine!r}; give both the same")
        lengths: Geometry = getattr(data, "geometry", self.geometry)
        if lengths.min_area != self.geometry.min_area:
            raise ValueError(
                f"components need {lengths.min_area} pixels in the data module and {self.geometry.min_area} in the "
                "model; give both the same object_scale and min_area (geometry.min_area of the model)"
            )

    def forward(self, images: Tensor) -> InstanceMaps:
        """Maps at stride 4 of RGB images (B, 3, H, W) in [0, 1]."""
        self.choose_weights()
        maps: InstanceMaps = self.model(images)
        return maps

    # ---------------------------------------------------------------- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Record the network's graph, once its weights are there and the first batch shows the shape of all."""
        if not self.graph_network:
            return
        if self.trainer.accumulate_grad_batches > 1:
            raise ValueError("graph_network does not accumulate gradients; set trainer.accumulate_grad_batches: 1")
        if not self.model.graphed:
            with self.trainer.precision_plugin.forward_context():
                self.model.graph(batch.images)

    def on_fit_end(self) -> None:
        """Keep no graph: copies and exports of the network cannot hold it."""
        super().on_fit_end()
        self.model.drop_graph()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forward, refinement of the labels by the network's own output, losses of Eq. 3 to 6."""
        if batch.pseudo is None or batch.components is None:
            batch = pseudo_labels(batch, supervision=self.supervision, rules=self.rules, geometry=self.geometry)
        assert batch.semantic is not None and batch.pseudo is not None  # or there would have been an error
        maps = self(batch.images)
        enlargement = self.model.enlargement(maps, (batch.images.shape[-2], batch.images.shape[-1]))
        refined = self.refine(maps.detach(), batch, enlargement) if self.refinement else None
        loss, terms = total_loss(
            maps,
            batch.semantic,
            batch.pseudo,
            refined,
            supervision=self.supervision,
            rules=self.rules,
            geometry=self.geometry,
            weights=self.loss_weights,
            guidance=self.guidance,
            enlargement=enlargement,
            mean_over_processes=self.mean_over_processes if self.rules.counts_of == "all" else None,
        )
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        if refined is not None:
            count, weight = refined.count_and_weight()
            self.log_dict({"labels/refined": count, "weight/refined": weight})
        if batch.truth is not None:
            self.pseudo_quality.update(batch.pseudo, batch.truth, batch.measured)
            if refined is not None:
                self.refined_quality.update(refined, batch.truth, batch.measured)
        return loss

    @torch.no_grad()
    def refine(self, maps: InstanceMaps, batch: Batch, enlargement: Enlargement | None = None) -> LabeledInstances:
        """Labels that the network's own maps give for the batch (``ops.labels.refined_labels``).

        ``maps`` at full resolution, or as they leave the network with their ``enlargement``.
        """
        return refined_labels(
            maps,
            batch,
            supervision=self.supervision,
            rules=self.rules,
            geometry=self.geometry,
            threshold=self.refine_threshold,
            max_centers=self.max_centers,
            clustering=self.clustering,
            foreground=self.foreground,
            enlargement=enlargement,
        )

    def on_train_epoch_end(self) -> None:
        """Quality of the labels on this epoch's crops, where true instances were there to measure it (figure 6)."""
        for source, metric in (("pseudo", self.pseudo_quality), ("refined", self.refined_quality)):
            if metric.update_called:
                self.log_dict({f"train/{source}/{name}": value.float() for name, value in metric.compute().items()})
                metric.reset()

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
                rules=self.rules,
                threshold=self.inference.threshold,
                clustering=self.clustering,
                keep_without_center=self.inference.keep_without_center,
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
        scales = sorted(self.inference.scales, key=lambda scale: scale != 1)
        views = (
            self._view(batch.images, grid, scale=scale, mirrored=mirrored)
            for scale in scales
            for mirrored in ((False, True) if self.inference.mirror else (False,))
        )
        if self.inference.mirror or len(scales) > 1:
            maps = average_maps(views, average_offsets=bool(self.inference.average_offsets))
        else:
            (maps,) = views
        if self.inference.refine == "pamr":
            images = batch.images
            if grid != size:
                images = nn.functional.interpolate(images, grid, mode="bilinear", align_corners=False)
            refined = refine_logits(
                maps.semantic_logits, images, sizes=sizes, iterations=self.inference.pamr_iterations
            )
            maps = maps._replace(semantic_logits=refined)
        return maps, sizes

    def _view(self, images: Tensor, grid: tuple[int, int], *, scale: float, mirrored: bool) -> InstanceMaps:
        """Maps on the ``grid``, with offsets in its pixels, of images as seen at another scale, mirrored or not."""
        seen = see(images, scale, mirrored=mirrored, step=STRIDE)
        maps = self(seen)
        height, width = seen.shape[-2:]
        if (height, width) == images.shape[-2:]:
            enlargement = self.model.enlargement(maps, grid)
        else:  # whole cells, so that they cover the image without a rest
            enlargement = Enlargement(grid, grid, self.model.align_corners)
        maps = enlargement.all(maps)
        if (height, width) != grid:
            ratio = torch.tensor([grid[0] / height, grid[1] / width], device=self.device)
            maps = maps._replace(offset_field=maps.offset_field * ratio[:, None, None])
        return mirror_maps(maps) if mirrored else maps

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions with the ground truth."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Compare the predictions with the ground truth; returns them, see ``predict_instances``."""
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Instances, ...]:
        """Scored masks of each image of the batch at its original size."""
        return in_tiles(self.predict_instances, batch)[0]

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _evaluate(self, batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
        if len(batch) == 0:  # of a process without images
            return (), ()
        instances, semantic = in_tiles(self.predict_instances, batch)
        if batch.references is not None:
            self.voc_ap.update(instances, batch.references, batch.names)
            self.coco_ap.update(instances, batch.references, batch.names)
        if batch.semantic_references is not None:
            for predicted, true in zip(semantic, batch.semantic_references, strict=True):
                self.semantic_iou.update(predicted, true.to(predicted.device))
        return instances, semantic

    @property
    def reads_points(self) -> bool:
        """Whether predictions rest on given points."""
        return self.oracle == "points"

    @property
    def reads_tags(self) -> bool:
        """Whether predictions rest on given tags."""
        return self.oracle == "tags"

    @property
    def score_notes(self) -> tuple[str, ...]:
        """What the name of every score must say, in words that follow ``test`` or ``val`` in it."""
        oracle = () if self.oracle is None else (f"oracle_{self.oracle}",)
        return oracle if self.inference.refine is None else (*oracle, self.inference.refine)

    def _log_scores(self, stage: str) -> None:
        prefix = "_".join([stage, *self.score_notes])
        scores: dict[str, Tensor] = {}
        # in every process, or those with images would wait for the others
        if anywhere(self, self.voc_ap.update_called):
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
