"""The classifier with peak attention as a LightningModule: learns tags, and tells where it sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from bestie_pl.models.peak_attention import PeakAttentionModel
from bestie_pl.modules.base import NetworkModule, anywhere, settings_of
from bestie_pl.modules.large_images import refuse_large
from bestie_pl.modules.optimization import Optimization
from bestie_pl.ops.affinity import spread_activations
from bestie_pl.ops.cues import CUE_LIMIT, CUE_THRESHOLD, CUE_WINDOW, Pooling, activation_planes, find_cues, smooth
from bestie_pl.ops.views import check_scales, see
from bestie_pl.recipe import Recipe
from bestie_pl.structures import Batch, Cues

MOST_WEIGHT = 10.0
"""Largest weight of a rare class's images, when classes are balanced."""


class ActivationPrediction(NamedTuple):
    """What a classifier sees in a batch, for writers of cues and of semantic maps: both from one look at each image.

    ``cues``: B ``Cues`` with ``image`` 0, in pixels of the image's file, classes ascending, in each class the surest
    first. ``activations``: B maps (T, h, w) float32 in [0, 1] of the T tagged classes of the image, ascending, at the
    size that the network saw, without padding.
    """

    cues: tuple[Cues, ...]
    activations: tuple[Tensor, ...]


class PeakAttentionModule(NetworkModule):
    """Multi-label classifier whose peak attention keeps the strongest places of every feature channel.

    ``predict_step`` gives cues and the activation maps that they are the peaks of. Needs images and their tags only
    (``semantic_source: none`` of the data modules).

    Args:
        num_classes: Classes without background. The command line takes it from the data.
        class_names: Names for the scores of single classes; ``class0``, ... if omitted.
        backbone: Name of a timm model; ``vgg16`` gives the network of the authors' release, with its first weights.
        backbone_weights: ``imagenet``, the path of a local file, or null for random weights. Read when training starts,
            never when a checkpoint is loaded.
        strides: Stages of the backbone that a pyramid joins, ascending; maps have the first. Not for ``vgg16``.
        width: Channels of the pyramid and of the layers before the class maps. Not for ``vgg16``.
        pam_layers: Convolutions that peak attention follows, before the class maps.
        alpha: Peak attention drops what is less than ``alpha`` times the channel's maximum; 0 for a plain classifier.
        alpha_ramp_steps: Optimiser steps over which training approaches ``alpha`` from 0. Evaluation and prediction
            always use ``alpha``.
        pooling: From class maps to logits: ``mean`` (paper), ``topk`` (the largest 4 % of the cells) or ``ngwp``
            (weighted by the map's own softmax against a background). Decides how far maps leak over the background.
        balance: Weigh a class's positive images by the number of negative ones that come to each, 10 at most.
        recipe: ``release`` makes every pixel of a plateau a cue, ``paper`` one of them.
        mirror: Average activation maps with those of the mirrored image.
        scales: Sizes relative to the image at which activation maps are made and averaged.
        cue_scales: The same for the maps whose peaks are the cues; ``scales`` if omitted. Enlarged images tell objects
            apart that touch, but their maps cover less of large objects.
        affinity: Spread the activation maps over what looks alike (``ops.affinity.spread_activations``), by the
            backbone's features of the largest of ``scales``. The cues stay those of the maps before. Not for ``vgg16``.
        cue_window: Side of the window in which a cue must be the maximum, in pixels of the image file; odd.
        cue_threshold: Least activation of a cue that is found; training thresholds again.
        optimization: Optimiser and schedule.
    """

    model: PeakAttentionModel
    reads_tags = True
    network_settings = ("num_classes", "backbone", "strides", "pam_layers", "width", "pooling")
    pos_weight: Tensor | None
    supervision = "tags"
    makes_activations = True

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        backbone: str = "tf_efficientnet_lite0",
        backbone_weights: str | None = "imagenet",
        strides: Sequence[int] = (8, 16, 32),
        width: int = 128,
        pam_layers: int = 3,
        alpha: float = 0.7,
        alpha_ramp_steps: int = 0,
        pooling: Pooling = "mean",
        balance: bool = False,
        recipe: Recipe = "paper",
        mirror: bool = True,
        scales: Sequence[float] = (1.0,),
        cue_scales: Sequence[float] | None = None,
        affinity: bool = False,
        cue_window: int = CUE_WINDOW,
        cue_threshold: float = CUE_THRESHOLD,
        optimization: Optimization = Optimization("adamw", lr=2e-3, backbone_lr_factor=0.3, weight_decay=0.01),
    ) -> None:
        optimizing = settings_of(Optimization, optimization)
        super().__init__(num_classes, class_names, backbone_weights=backbone_weights, optimization=optimizing)
        if cue_window < 1 or cue_window % 2 == 0:
            raise ValueError(f"cue_window must be odd, got {cue_window}")
        if not 0 < cue_threshold < 1:
            raise ValueError(f"cue_threshold must be between 0 and 1, got {cue_threshold}")
        cue_scales = scales if cue_scales is None else cue_scales
        # a checkpoint holds plain types only
        class_names, strides = list(self.class_names), list(strides)
        scales, cue_scales = list(check_scales("scales", scales)), list(check_scales("cue_scales", cue_scales))
        optimization = asdict(optimizing)  # type: ignore[assignment]
        self.save_hyperparameters()
        self.recipe: Recipe = recipe
        self.alpha, self.alpha_ramp_steps = alpha, alpha_ramp_steps
        self.balance, self.mirror = balance, mirror
        self.scales, self.cue_scales = tuple(scales), tuple(cue_scales)
        self.affinity = affinity
        self.cue_window, self.cue_threshold = cue_window, cue_threshold

        self.model = PeakAttentionModel(
            num_classes, backbone, strides=strides, pam_layers=pam_layers, width=width, alpha=alpha, pooling=pooling
        )
        self.register_buffer("pos_weight", None, persistent=False)
        # torchmetrics has no multi-label metric of a single label
        self.labels = max(2, num_classes)
        self.average_precision = MultilabelAveragePrecision(self.labels, average=None)
        self.counts = MultilabelStatScores(self.labels, average=None)

    @property
    def network(self) -> PeakAttentionModel:
        """See ``NetworkModule``."""
        return self.model

    def on_fit_start(self) -> None:
        """Read the first weights; weigh the classes."""
        super().on_fit_start()
        if self.balance:
            data: Any = getattr(self.trainer, "datamodule", None)
            if not hasattr(data, "tag_counts"):
                raise ValueError("balance needs a data module with tag_counts(), as those of this package have")
            positive, images = data.tag_counts()
            weight = (images - positive) / positive.clamp(min=1)
            self.pos_weight = weight.clamp(1, MOST_WEIGHT).to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of RGB images (B, 3, H, W) in [0, 1]."""
        self.choose_weights()
        return self.model.logits(self.model(images))

    # ---------------------------------------------------------------- training

    @property
    def training_alpha(self) -> float:
        """``alpha`` at the present step of the training."""
        if self.alpha_ramp_steps == 0:
            return self.alpha
        return self.alpha * min(1.0, self.global_step / self.alpha_ramp_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy of the tags (paper section 3.4)."""
        self.choose_weights()
        logits = self.model.logits(self.model(batch.images, self.training_alpha))
        loss = F.binary_cross_entropy_with_logits(logits, batch.tags.float(), pos_weight=self.pos_weight)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    # ---------------------------------------------------------------- activation maps and cues

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> ActivationPrediction:
        """Cues and activation maps of each image's tagged classes, averaged over mirror images and scales.

        What an image gets does not depend on the others of the batch.
        """
        refuse_large(batch, "PeakAttentionModule")
        found: dict[int, tuple[Cues, Tensor]] = {}
        for (size, original), rows in _groups(batch.sizes, batch.original_sizes):
            image, classes = batch.tags[rows].nonzero(as_tuple=True)
            images = batch.images[rows, :, : size[0], : size[1]]
            planes, large = self._activation_planes(
                images, image, classes, (size, self.scales), (original, self.cue_scales)
            )
            cues = find_cues(
                smooth(large),
                image,
                classes,
                window=self.cue_window,
                threshold=self.cue_threshold,
                limit=CUE_LIMIT,
                every_equal=self.recipe == "release",
            )
            if self.affinity:
                planes = self._spread(planes, images, image)
            for number, row in enumerate(rows):
                mine = cues.select(cues.image == number)
                own_image = Cues(torch.zeros_like(mine.image), mine.yx, mine.classes, mine.scores)
                found[row] = own_image, planes[image == number]
        cues_of, maps_of = zip(*(found[row] for row in range(len(batch))), strict=True)
        return ActivationPrediction(cues_of, maps_of)

    def _activation_planes(
        self, images: Tensor, image: Tensor, classes: Tensor, *wanted: tuple[tuple[int, int], tuple[float, ...]]
    ) -> tuple[Tensor, ...]:
        """Maps (P, H, W) of P pairs of image and class for each ``wanted`` size and scales; images without padding."""
        views: list[list[Tensor]] = [[] for _ in wanted]
        for scale in sorted({scale for _, scales in wanted for scale in scales}):
            seen = see(images, scale)
            size_seen = (seen.shape[-2], seen.shape[-1])
            for mirrored in (False, True) if self.mirror else (False,):
                maps = self.model(seen.flip(-1) if mirrored else seen)
                aligned = self.model.align(maps[image, classes], size_seen)
                for planes, (size, scales) in zip(views, wanted, strict=True):
                    if scale in scales:
                        plane = activation_planes(aligned, size)
                        planes.append(plane.flip(-1) if mirrored else plane)
        return tuple(torch.stack(planes).mean(0) for planes in views)

    def _spread(self, planes: Tensor, images: Tensor, image: Tensor) -> Tensor:
        """Planes (P, H, W) of ``images``, whose numbers are ``image``, spread by the likeness of the features."""
        scale = max(self.scales)
        if scale != 1:
            size = [max(1, round(side * scale)) for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        all_features = self.model.fine_features(images)
        # the last cells may reach over the image's end: planes that reach as far are cut again
        height, width = planes.shape[-2:]
        rows, columns = (
            torch.arange(round(self.model.strides[0] * cells * side / seen), device=planes.device).clamp(max=side - 1)
            for cells, side, seen in zip(all_features.shape[-2:], (height, width), images.shape[-2:], strict=True)
        )
        reaching = planes[:, rows[:, None], columns]
        spread = planes.clone()
        for number, features in enumerate(all_features):
            own = image == number
            spread[own] = spread_activations(reaching[own], features)[:, :height, :width]
        return spread

    # ---------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predicted tags with the true ones."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predicted tags with the true ones."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _evaluate(self, batch: Batch) -> None:
        refuse_large(batch, "PeakAttentionModule")
        spare = (0, self.labels - batch.tags.shape[1])
        if len(batch) == 0:  # of a process without images, which gathers empty tensors and not nothing
            self.average_precision.preds.append(torch.zeros(0, self.labels, device=self.device))
            self.average_precision.target.append(torch.zeros(0, self.labels, dtype=torch.int32, device=self.device))
        for (size,), rows in _groups(batch.sizes):
            scores = self(batch.images[rows, :, : size[0], : size[1]]).sigmoid()
            tags = batch.tags[rows].int()
            self.average_precision.update(F.pad(scores, spare), F.pad(tags, spare))
            self.counts.update(F.pad(scores, spare), F.pad(tags, spare))

    def _log_scores(self, stage: str) -> None:
        # in every process, or those with images would wait for the others
        if anywhere(self, self.average_precision.update_called):
            with warnings.catch_warnings():  # labels without a positive image are left out
                warnings.filterwarnings("ignore", message="No positive samples.*")
                precision = self.average_precision.compute()
            true_positive, false_positive, _, _, positive = self.counts.compute().unbind(1)
            f1 = 2 * true_positive / (true_positive + false_positive + positive)
            seen = (positive > 0).nonzero().flatten().tolist()
            scores = {f"ap/{self.class_names[label]}": precision[label] for label in seen}
            if seen:
                scores |= {"map": precision[seen].mean(), "f1": f1[seen].mean()}
            self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})
        for metric in (self.average_precision, self.counts):
            metric.reset()


def _groups(*columns: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[tuple[int, int], ...], list[int]]]:
    """Numbers of the images that agree in all sizes: they can be seen together without padding."""
    rows = list(zip(*columns, strict=True))
    for key in dict.fromkeys(rows):
        yield key, [number for number, row in enumerate(rows) if row == key]
