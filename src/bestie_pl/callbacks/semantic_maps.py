"""Semantic maps of ``predict`` as PNG files, and a report on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.callbacks import verdicts
from bestie_pl.callbacks.provenance import weights_of
from bestie_pl.callbacks.reporting import ReportingWriter, computed, tell
from bestie_pl.callbacks.resume import below_root, images_of
from bestie_pl.callbacks.run_folder import publish, run_folder
from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import require_folder, write_json
from bestie_pl.data.formats.maps import MapFolder, read_if_present, write_semantic
from bestie_pl.data.loaders import collate_evaluated
from bestie_pl.data.samples import Sample
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.semantic_maps import SemanticMapFigures
from bestie_pl.modules.peak_attention import ActivationPrediction
from bestie_pl.modules.semantic import SemanticPrediction
from bestie_pl.ops.masks import resize_map
from bestie_pl.ops.semantic import (
    BACKGROUND,
    BAND,
    ITERATIONS,
    otsu_background,
    refine_activations,
    semantic_from_activations,
)
from bestie_pl.progress import progress
from bestie_pl.structures import IGNORE, Batch

SETTINGS = ("use_tags", "mirror", "scales", "refine", "pamr_iterations", "foreground_threshold", "background", "band")
"""What the report repeats of a module's settings, as far as it has them."""
SAMPLE = 100
"""Images that a threshold is found from."""


@runtime_checkable
class MakesActivations(Protocol):
    """A classifier whose ``predict_step`` returns an ``ActivationPrediction``, which becomes semantic maps here."""

    class_names: tuple[str, ...]
    makes_activations: bool


@runtime_checkable
class MakesMaps(Protocol):
    """A module whose ``predict_step`` returns a ``SemanticPrediction``."""

    class_names: tuple[str, ...]
    makes_semantic_maps: bool


class SemanticMapWriter(ReportingWriter):
    """Write a semantic map of each image to ``<output_dir>/<image name>.png``, a palette PNG as the release has them.

    Does its work where the module makes maps (SemanticModule, ImportedMaps), or activation maps (the classifier):
    those are refined by the image's colours and cut by thresholds here, in the same pass that finds the cues. Files
    appear complete or not at all. A run that was interrupted goes on with the images that are missing. In a distributed
    run every process writes its own images.

    At the end ``semantic_maps.json`` in the run's folder says how good the maps are, over all images, those of earlier
    runs included: figures that need no ground truth (see ``SemanticMapFigures``); and the mean IoU where the data
    module reads the true maps (``label_quality``), for which ignored pixels count as background.

    Args:
        output_dir: Folder for the maps; a relative one is below the data set's root, as its ``semantic_dir`` is.
            ``semantic_maps`` in the run's folder if omitted.
        background: Activation below which a pixel of a classifier's map is background; ``otsu`` finds it for the data
            set, from the activations of 100 of its images (``ops.semantic.otsu_background``).
        band: Activations this close to it are ignored (255).
        iterations: Rounds of refinement of a classifier's activations; 0 for none.
        wide: Refine over larger distances, for objects of a quarter of the image (``ops.semantic.refine_widely``).
        overwrite: Predict and write all images anew.
        earlier_dir: Maps of the round before, to report how many pixels agree; relative as above.
    """

    suffix = ".png"
    regardless_of = frozenset({"cue_scales", "cue_threshold", "cue_window"})

    def __init__(
        self,
        output_dir: str | None = None,
        *,
        background: float | Literal["otsu"] = BACKGROUND,
        band: float = BAND,
        iterations: int = ITERATIONS["activations"],
        wide: bool = False,
        overwrite: bool = False,
        earlier_dir: str | None = None,
    ) -> None:
        super().__init__(overwrite)
        self.output_dir = output_dir
        self.background, self.band, self.iterations = background, band, iterations
        self.wide = wide
        self.earlier_dir = earlier_dir
        self.threshold = None if background == "otsu" else background
        middle = 0.5 if self.threshold is None else self.threshold
        if not (band >= 0 and middle - band >= 0 and middle + band < 1 and iterations >= 0):
            raise ValueError(
                "expected a background of otsu or a number, 0 <= background - band, background + band < 1 and "
                f"iterations >= 0; got {background}, {band} and {iterations}"
            )

    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the maps go."""
        if self.output_dir is None:
            return Path(trainer.default_root_dir, "semantic_maps")
        return below_root(trainer, self.output_dir)

    def applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the module makes maps or activations."""
        return isinstance(pl_module, (MakesMaps, MakesActivations))

    def settings(self) -> Mapping[str, Any]:
        """How activations become maps."""
        return {name: getattr(self, name) for name in ("background", "band", "iterations", "wide")}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the folders, and leave out the finished images."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict" or not self.applies(trainer, pl_module):
            return
        self.earlier: Path | None = None
        if self.earlier_dir is not None:
            self.earlier = below_root(trainer, self.earlier_dir)
            require_folder(self.earlier, "the maps ID.png of an earlier round")
            if self.earlier.resolve() == self.folder(trainer).resolve():
                raise ValueError(f"{self.earlier}: the earlier maps would be overwritten; give another output_dir")
        assert isinstance(pl_module, (MakesMaps, MakesActivations))
        self.names = tuple(pl_module.class_names)
        self.figures, self.iou = SemanticMapFigures(len(self.names)), SemanticIoU(len(self.names))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the threshold; Lightning calls this where there is something to write."""
        super().on_predict_start(trainer, pl_module)
        if self.background != "otsu" or not isinstance(pl_module, MakesActivations):
            return
        self.threshold = None
        if images_of(trainer) is None:
            raise ValueError("background: otsu needs a data module of this package; give a number")
        # a process without images does not come here, so each finds it for itself, from the same images
        self.threshold = self._otsu(trainer, pl_module)

    @torch.no_grad()
    def _otsu(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        """The threshold for all images of ``predict``, the finished ones too: an interrupted run goes on with it."""
        images, data = images_of(trainer), getattr(trainer, "datamodule", None)
        assert images is not None and data is not None  # or there would have been an error
        scores = []
        step = max(1, len(images) / SAMPLE)
        chosen = [int(number * step) for number in range(min(len(images), SAMPLE))]
        for index in progress(chosen, "looking for the background's threshold"):
            batch = collate_evaluated([images[index]], classes=0, truth=False).to(module.device)
            batch = data.on_after_batch_transfer(batch, 0)
            with trainer.precision_plugin.predict_step_context():
                (planes,) = module.predict_step(batch, 0).activations
            if len(planes):
                height, width = batch.sizes[0]
                image = batch.images[0, :, :height, :width]
                refined = refine_activations(planes, image, iterations=self.iterations, wide=self.wide)
                scores.append(refined.amax(0).flatten().cpu())
        if not scores:
            return BACKGROUND
        # rounded, so that processes agree
        threshold = round(min(otsu_background(torch.cat(scores)), 0.99), 3)
        rank_zero_info(f"Maps: background below {threshold:.3f}, by Otsu's rule from {len(scores)} images.")
        return threshold

    @torch.no_grad()
    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        if not self.applies(trainer, pl_module):
            return
        if isinstance(prediction, SemanticPrediction):
            maps, agreement = prediction
        else:
            maps, agreement = self._from_activations(prediction, batch), None
        for b, (name, semantic) in enumerate(zip(batch.names, maps, strict=True)):
            write_semantic(self._file(trainer, name), semantic)
            height, width = batch.sizes[b]
            self._measure(
                name,
                semantic.cpu(),
                batch.tags[b].cpu(),
                batch.images[b, :, :height, :width].cpu(),
                true=None if batch.semantic_references is None else batch.semantic_references[b].cpu(),
                agreement=None if agreement is None else agreement[b],
            )

    def measure_again(self, trainer: pl.Trainer, sample: Sample) -> None:
        """Add the map of an earlier run."""
        semantic = MapFolder(self.folder(trainer), self.names).read(sample.name, sample.original_size)
        self._measure(sample.name, semantic, sample.tags, sample.image.float() / 255, true=sample.semantic_reference)

    def _from_activations(self, prediction: ActivationPrediction, batch: Batch) -> tuple[Tensor, ...]:
        assert self.threshold is not None  # it was found when prediction began
        band = min(self.band, self.threshold, 0.99 - self.threshold)
        maps = []
        for planes, tags, image, (h, w), original in zip(
            prediction.activations, batch.tags, batch.images, batch.sizes, batch.original_sizes, strict=True
        ):
            activations = planes.new_zeros(len(tags), h, w)
            activations[tags] = planes
            semantic = semantic_from_activations(
                activations,
                tags,
                image[:, :h, :w],
                background=self.threshold,
                band=band,
                iterations=self.iterations,
                wide=self.wide,
            )
            maps.append(resize_map(semantic, original))
        return tuple(maps)

    def _measure(
        self,
        name: str,
        semantic: Tensor,
        tags: Tensor,
        image: Tensor,
        *,
        true: Tensor | None,
        agreement: float | None = None,
    ) -> None:
        """Add one image to the figures; all on the CPU."""
        size = (semantic.shape[0], semantic.shape[1])
        if image.shape[1:] != size:
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        earlier = read_if_present(self.earlier, name, size, self.names)
        self.figures.update(semantic, tags, image, earlier=earlier, mirror_agreement=agreement)
        if true is not None:
            self.iou.update(semantic.masked_fill(semantic == IGNORE, 0), true)

    def report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``semantic_maps.json`` and tell the verdict."""
        figures, iou = computed(trainer, self.figures), computed(trainer, self.iou)
        if not trainer.is_global_zero:
            return
        # of a single class, torchmetrics makes a scalar of it
        by_class = [_number(share) for share in figures.pop("class_tag_recall").reshape(-1)]
        values = {name: _number(value) for name, value in figures.items()}
        verdict = verdicts.of_maps(self.names, by_class, values)
        settings = {name: getattr(pl_module, name) for name in SETTINGS if hasattr(pl_module, name)}
        if isinstance(pl_module, MakesActivations):
            settings |= self.settings()
            if self.background == "otsu" and self.threshold is not None:
                settings["threshold"] = self.threshold
        content: dict[str, Any] = {
            "verdict": verdict,
            "folder": str(self.folder(trainer)),
            **weights_of(trainer, pl_module),
            "settings": settings,
            "figures": values,
            "class_tag_recall": dict(zip(self.names, by_class, strict=True)),
            "environment": environment(),
        }
        if values["images"] and not iou["miou"].isnan():
            content["miou"] = _number(iou["miou"])
            names = ("background", *self.names)
            content["iou"] = {name: _number(value) for name, value in zip(names, iou["per_class"], strict=True)}
        write_json(run_folder(trainer) / "semantic_maps.json", content)
        publish(trainer, "semantic_maps.json")
        found = {**values, "miou": content.get("miou")}
        rank_zero_info(
            f"Semantic maps in {self.folder(trainer)}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in found.items() if value is not None)
        )
        tell("Maps", verdict)


def _number(value: Tensor) -> float | None:
    """For JSON, which knows no NaN."""
    number = value.item()
    return None if math.isnan(number) else number
