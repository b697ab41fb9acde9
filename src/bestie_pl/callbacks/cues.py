"""Cues of ``predict`` as text files in the release's format, and a report on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from bestie_pl.callbacks import verdicts
from bestie_pl.callbacks.provenance import weights_of
from bestie_pl.callbacks.reporting import ReportingWriter, computed, tell
from bestie_pl.callbacks.resume import below_root
from bestie_pl.callbacks.run_folder import publish, run_folder
from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json, write_text
from bestie_pl.data.formats.cues import format_cues, read_cues
from bestie_pl.data.samples import Sample
from bestie_pl.metrics.cues import CueQuality
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.ops.cues import CUE_THRESHOLD
from bestie_pl.structures import Batch, Instances

SETTINGS = (
    "backbone",
    "pooling",
    "alpha",
    "pam_layers",
    "mirror",
    "cue_scales",
    "cue_window",
    "cue_threshold",
    "recipe",
)
"""What the report repeats of the classifier's settings."""


class CueWriter(ReportingWriter):
    """Write each image's cues to ``<output_dir>/<image name>.txt``: lines ``x y class conf``, classes ascending.

    That is the form of release 12.8, which ``supervision: tags`` reads. Files appear complete or not at all; a run
    that was interrupted goes on with the images that are missing. In a distributed run every process writes its own
    images. Does nothing but for a ``PeakAttentionModule``.

    At the end ``cue_report.json`` in the run's folder says for several thresholds how many cues there are for how many
    tags; and, where the data module reads the true instances (``label_quality``), how many are right (see
    ``CueQuality``). The report covers all images, those of earlier runs included.

    Args:
        output_dir: Folder for the files; a relative one is below the data set's root, as its ``cues_dir`` is. If
            omitted, the one where the data module looks for cues.
        overwrite: Predict and write all images anew.
    """

    suffix = ".txt"
    regardless_of = frozenset({"affinity", "scales"})  # those of cues are cue_scales

    def __init__(self, output_dir: str | None = None, *, overwrite: bool = False) -> None:
        super().__init__(overwrite)
        self.output_dir = output_dir

    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the cues go."""
        if self.output_dir is not None:
            return below_root(trainer, self.output_dir)
        looked_for = getattr(getattr(trainer, "datamodule", None), "cues_dir", None)
        return Path(looked_for or Path(trainer.default_root_dir, "cues"))

    def applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the module makes cues."""
        return isinstance(pl_module, PeakAttentionModule)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the figures, and leave out the finished images."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and isinstance(pl_module, PeakAttentionModule):
            self.quality = CueQuality(len(pl_module.class_names))

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
        tags, references = batch.tags.cpu(), list(batch.references or (None,) * len(batch))
        if batch.measured is not None:
            references = [one if known else None for one, known in zip(references, batch.measured, strict=True)]
        for b, (name, cues) in enumerate(zip(batch.names, prediction.cues, strict=True)):
            # another writer may have asked for an image that has its cues
            if self.overwrite or not self.is_finished(trainer, name):
                write_text(self._file(trainer, name), format_cues(cues))
            self._measure(trainer, name, batch.original_sizes[b], tags[b], references[b])

    def measure_again(self, trainer: pl.Trainer, sample: Sample) -> None:
        """Add the cues of an earlier run."""
        references = sample.references if sample.measured else None
        self._measure(trainer, sample.name, sample.original_size, sample.tags, references)

    def _measure(
        self, trainer: pl.Trainer, name: str, size: tuple[int, int], tags: Tensor, references: Instances | None
    ) -> None:
        """Add one image to the figures, as its file says: that is what training reads."""
        self.quality.update(read_cues(self._file(trainer, name), size, len(tags)), tags, references)

    def report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``cue_report.json`` and tell the verdict."""
        assert isinstance(pl_module, PeakAttentionModule)
        figures = {name: value.cpu() for name, value in computed(trainer, self.quality).items()}
        if not trainer.is_global_zero:
            return
        numbers = {name: _plain(value) for name, value in figures.items()}
        columns = {name: value for name, value in numbers.items() if isinstance(value, list)}
        rows = [
            {"threshold": threshold, **{name: column[row] for name, column in columns.items()}}
            for row, threshold in enumerate(self.quality.thresholds)
        ]
        verdict = self._verdict(trainer, pl_module.class_names, rows, numbers["tags"])
        content = {
            "verdict": verdict,
            "folder": str(self.folder(trainer)),
            **weights_of(trainer, pl_module),
            "settings": {name: pl_module.hparams[name] for name in SETTINGS},
            **{name: value for name, value in numbers.items() if not isinstance(value, list)},
            "thresholds": rows,
            "environment": environment(),
        }
        write_json(run_folder(trainer) / "cue_report.json", content)
        publish(trainer, "cue_report.json")
        rank_zero_info(f"Cues in {self.folder(trainer)}: {rows[0]['cues']} in {numbers['images']} images.")
        tell("Cues", verdict)

    def _verdict(self, trainer: pl.Trainer, names: Sequence[str], rows: Sequence[dict[str, Any]], tags: int) -> str:
        """By the threshold that the data's training uses, or the nearest one of the report."""
        used = getattr(getattr(trainer, "datamodule", None), "cue_threshold", CUE_THRESHOLD)
        row = min(rows, key=lambda row: abs(float(row["threshold"]) - used))
        return verdicts.of_cues(names, row["class_tags_with_cue"], row["cues"] / max(1, tags), row["threshold"])


def _plain(value: Tensor) -> Any:
    """Numbers and lists for JSON, which knows no NaN."""
    if value.dim():
        return [_plain(part) for part in value]
    number = value.item()
    return None if math.isnan(number) else number
