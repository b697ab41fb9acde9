"""The semantic round: the network's semantic branch, trained on given maps, makes better maps of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.models.bestie import BestieModel
from bestie_pl.modules.base import NetworkModule, anywhere, settings_of
from bestie_pl.modules.large_images import refuse_large
from bestie_pl.modules.optimization import Optimization
from bestie_pl.ops.instances import predict_semantic
from bestie_pl.ops.losses import semantic_loss
from bestie_pl.ops.masks import resize_map
from bestie_pl.ops.semantic import ITERATIONS, favour_foreground, refine_logits, with_every_tag
from bestie_pl.ops.views import check_scales, mean_probabilities, see
from bestie_pl.recipe import RULES, Recipe
from bestie_pl.structures import Batch, InstanceMaps


class SemanticPrediction(NamedTuple):
    """B semantic maps (H, W) uint8 at the original sizes, 255 where undecided; and how much mirroring changes them.

    ``mirror_agreement``: B shares of pixels, in [0, 1], that get the same class from the image and from its mirror
    image, before refinement; None where the mirror image was not looked at.
    """

    maps: tuple[Tensor, ...]
    mirror_agreement: tuple[float, ...] | None = None


class SemanticModule(NetworkModule):
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
        optimization: Optimiser and schedule.
    """

    model: BestieModel
    makes_semantic_maps = True
    reads_instances = False
    """Training reads semantic maps, and needs neither points nor cues nor masks."""

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
        optimization: Optimization = Optimization(),
    ) -> None:
        optimizing = settings_of(Optimization, optimization)
        super().__init__(
            num_classes, class_names, backbone_weights=backbone_weights, optimization=optimizing, init_from=init_from
        )
        if not 0 < foreground_threshold < 1:
            raise ValueError(f"foreground_threshold must be between 0 and 1, got {foreground_threshold}")
        if pamr_iterations < 0:
            raise ValueError(f"pamr_iterations must not be negative, got {pamr_iterations}")
        # a checkpoint holds plain types only
        class_names, scales = list(self.class_names), list(check_scales("scales", scales))
        optimization = asdict(optimizing)  # type: ignore[assignment]
        self.save_hyperparameters()
        self.rules = RULES[recipe]
        self.use_tags, self.mirror, self.scales = use_tags, mirror, tuple(scales)
        self.refine, self.pamr_iterations = refine, pamr_iterations
        self.foreground_threshold = foreground_threshold

        self.model = BestieModel(num_classes, backbone, decoder, recipe=recipe)
        # no loss reaches them, and DDP refuses to wait for gradients that never come
        for parameter in self.model.instance_parameters():
            parameter.requires_grad_(False)
        self.plain_iou, self.refined_iou = SemanticIoU(num_classes), SemanticIoU(num_classes)

    @property
    def network(self) -> BestieModel:
        """See ``NetworkModule``."""
        return self.model

    def forward(self, images: Tensor) -> Tensor:
        """Semantic logits (B, C + 1, H, W) float32 of RGB images (B, 3, H, W) in [0, 1], at their size."""
        self.choose_weights()
        logits = self.model(images).semantic_logits
        one = logits[:, :1]  # in the place of centre and offset maps, which nobody wants here
        size = (images.shape[-2], images.shape[-1])
        return self.model.enlarge(InstanceMaps(logits, one, one), size).semantic_logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy against the maps (paper Eq. 5)."""
        if batch.semantic is None:
            raise ValueError("a training batch needs a semantic map; see Batch")
        self.choose_weights()
        maps = self.model(batch.images)
        loss = semantic_loss(
            maps.semantic_logits,
            batch.semantic,
            hard_fraction=self.rules.hard_fraction,
            enlargement=self.model.enlargement(maps, (batch.images.shape[-2], batch.images.shape[-1])),
            mean_over_processes=self.mean_over_processes if self.rules.counts_of == "all" else None,
        )
        self.log("train/loss", loss, prog_bar=True)
        return loss

    # ---------------------------------------------------------------- inference and evaluation

    @property
    def reads_tags(self) -> bool:
        """Whether the maps rest on given tags."""
        return self.use_tags

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> SemanticPrediction:
        """Maps of a batch at the original sizes, with tags, mirror image, scales and refinement as configured."""
        refuse_large(batch, "SemanticModule")
        tags = batch.tags if self.use_tags else None
        logits = self._at_scales(batch.images)
        agreement = None
        if self.mirror:
            mirrored = self._at_scales(batch.images.flip(-1)).flip(-1)
            same = predict_semantic(logits, tags=tags) == predict_semantic(mirrored, tags=tags)
            agreement = tuple(float(s[:h, :w].float().mean()) for s, (h, w) in zip(same, batch.sizes, strict=True))
            logits = mean_probabilities([logits, mirrored])
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
            logits = self(see(images, scale))
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear", antialias=scale > 1)
            views.append(logits)
        return mean_probabilities(views)

    def _refined(self, logits: Tensor, batch: Batch) -> Tensor:
        wide = self.refine == "wide"
        return refine_logits(logits, batch.images, sizes=batch.sizes, iterations=self.pamr_iterations, wide=wide)

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> None:
        if not batch.semantic_references:  # or this process has no images
            return
        refuse_large(batch, "SemanticModule")
        logits = self(batch.images)
        found = [(self.plain_iou, _maps(logits, batch))]
        if self.refine is not None:
            found.append((self.refined_iou, _maps(self._refined(logits, batch), batch)))
        for metric, maps in found:
            for predicted, true in zip(maps, batch.semantic_references, strict=True):
                metric.update(predicted, true.to(predicted.device))

    def _log_scores(self, stage: str) -> None:
        for prefix, metric in ((stage, self.plain_iou), (f"{stage}_{self.refine}", self.refined_iou)):
            # in every process, or those with images would wait for the others
            if anywhere(self, metric.update_called):
                result = metric.compute()
                names = ("background", *self.class_names)
                scores = {f"iou/{name}": value for name, value in zip(names, result["per_class"], strict=True)}
                scores["miou"] = result["miou"]
                self.log_dict(
                    {f"{prefix}/{name}": value.float() for name, value in scores.items() if not value.isnan()}
                )
            metric.reset()


def _maps(logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """The likeliest class of each pixel, (H, W) uint8 at the original sizes."""
    planes = predict_semantic(logits)
    return tuple(
        resize_map(plane[:h, :w], original)
        for plane, (h, w), original in zip(planes, batch.sizes, batch.original_sizes, strict=True)
    )
