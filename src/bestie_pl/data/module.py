"""The data module that all data sets share: loaders, and labels on the device. A data set adds where its files are."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from bestie_pl.data.augmentation import Augmentation
from bestie_pl.data.files import Packed, check_unique, files_below, require_folder
from bestie_pl.data.formats.classes import alike, check_class_names
from bestie_pl.data.formats.images import IMAGE_SUFFIXES, ImageFiles
from bestie_pl.data.formats.points import image_name
from bestie_pl.data.formats.predictions import LABEL_THRESHOLD
from bestie_pl.data.loaders import collate_evaluated, open_loader
from bestie_pl.data.resuming import position, settle
from bestie_pl.data.samplers import (
    EvaluationBatches,
    EvaluationSampler,
    TrainingSampler,
    draw_seed,
    repeat_factors,
    run_seed,
    stored_size,
)
from bestie_pl.data.samples import EvaluationSamples, Sample, Split, TrainingSamples, collate
from bestie_pl.data.unreadable import Unreadable
from bestie_pl.errors import UserError
from bestie_pl.ops.labels import pseudo_labels
from bestie_pl.recipe import RULES, Recipe
from bestie_pl.structures import Batch, Geometry, Supervision

Stage = Literal["train", "val", "test", "predict"]
EVALUATED: dict[str, Stage] = {"fit": "val", "validate": "val", "test": "test", "predict": "predict"}
"""The images that are evaluated in each of Lightning's stages."""
SemanticSource = Literal["folder", "ground_truth", "none"]


class InstanceDataModule(pl.LightningDataModule):
    """Images with semantic maps and points or cues for training, with true instances for evaluation.

    Workers decode files to bytes; on the device, ``on_after_batch_transfer`` augments a training batch and makes its
    pseudo labels from what the crops show. Training never opens ground truth, unless ``supervision``,
    ``semantic_source`` or ``label_quality`` ask for it. A data set of one's own adds its ``class_names`` and
    ``open_split``.

    Args:
        root: Folder of the data set.
        class_names: Names of the classes, in the order of their numbers; no background.
        supervision: What labels are made from: image ``tags`` with a classifier's cues, ``points``, or ``full``: the
            true instances, as a reference.
        semantic_source: Where training takes its semantic maps from: the ``folder`` of a weakly supervised method, or
            ``ground_truth`` for comparison. Independent of ``supervision: full``, which takes only the instances from
            the ground truth. ``none`` is for classifiers: batches hold images and tags, in evaluation too, and no
            folder of maps, cues or ground truth has to exist.
        recipe: Whose augmentation and labels, where paper and authors' release disagree. ``release`` augments in the
            workers, evaluates images one by one at a multiple of 32, and ignores the augmentation arguments below. With
            ``semantic_source: none`` it does what the release's classifier does: images become squares, of which
            training cuts ``crop_size``, and evaluated ones have that size.
        object_scale: Size of the objects relative to VOC's (50 to 400 px), after ``image_scale``.
        min_area: Components with fewer pixels get no label, at ``object_scale: 1``.
        cue_threshold: Training uses only cues that are surer than this.
        labels_from: An earlier model's predictions for the training images, to start the labels from (iterative
            training, paper table 5, and the second stage): their folder, ``RUN/predictions``, or the file that
            ``bestie-pl labels`` made of it. Of tagged classes, and with ``supervision: points`` those that hold exactly
            one point of their class. With ``tags`` no cues are read then.
        label_threshold: Least score of a prediction that becomes a label, relative to the surest of its class in the
            image, which is a label whatever its score. Images with points need none. What a file of labels holds, was
            chosen by ``bestie-pl labels``.
        label_weights: Such a prediction's score is how much it counts in the losses; all count alike otherwise.
        label_quality: Also read the true instances of training images, to measure the labels, and of predicted images,
            to measure cues. No loss uses them. Training images without (most of VOC's) are left out of the measure.
        repeat_threshold: Images of classes that less than this share of the training images have are shown more often
            (``data.samplers.repeat_factors``); 0 shows each image once an epoch.
        max_unreadable: Training goes on over so many images that cannot be read, and shows the next one of the list in
            the place of each; 0 stops at the first. Each process counts those that it meets.
        batch_size: Training images per process.
        eval_batch_size: Evaluated images per process; they are padded to the largest.
        num_workers: Worker processes per process.
        crop_size: Side of the training crops in pixels.
        image_scale: Factor by which images are enlarged before anything else, for objects of few pixels.
        scale_range: Least and largest random scale of training images.
        color_jitter: Strength of the random colour changes; 0 switches them off.
        dihedral: Also mirror up-down and turn by 90 degrees: for microscopy and aerial pictures.
        predict_images: A folder of images for ``predict``, with subfolders; the data set's own choice if omitted.
    """

    def __init__(
        self,
        root: str,
        class_names: Sequence[str],
        *,
        supervision: Supervision = "points",
        semantic_source: SemanticSource = "folder",
        recipe: Recipe = "paper",
        object_scale: float = 1.0,
        min_area: int = Geometry.min_area,
        cue_threshold: float = 0.7,
        labels_from: str | None = None,
        label_threshold: float = LABEL_THRESHOLD,
        label_weights: bool = False,
        label_quality: bool = False,
        repeat_threshold: float = 0.0,
        max_unreadable: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 4,
        num_workers: int = 2,
        crop_size: int = 416,
        image_scale: float = 1.0,
        scale_range: tuple[float, float] = (0.7, 1.3),
        color_jitter: float = 1.0,
        dihedral: bool = False,
        predict_images: str | None = None,
    ) -> None:
        super().__init__()
        # a process without a single image is fine in evaluation: it contributes nothing to the scores
        self.allow_zero_length_dataloader_with_multiple_devices = True
        _check_range("0 < scale_range[0] <= scale_range[1]", 0 < scale_range[0] <= scale_range[1], scale_range)
        _check_range("image_scale > 0", image_scale > 0, image_scale)
        for name, number in (
            ("crop_size", crop_size),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            _check_range(f"{name} >= 1", number >= 1, number)
        _check_range("num_workers >= 0", num_workers >= 0, num_workers)
        _check_range("0 <= cue_threshold < 1", 0 <= cue_threshold < 1, cue_threshold)
        _check_range("0 <= label_threshold <= 1", 0 <= label_threshold <= 1, label_threshold)
        _check_range("0 <= repeat_threshold <= 1", 0 <= repeat_threshold <= 1, repeat_threshold)
        _check_range("max_unreadable >= 0", max_unreadable >= 0, max_unreadable)
        _check_range("0 <= color_jitter <= 3", 0 <= color_jitter <= 3, color_jitter)
        if semantic_source == "none" and supervision != "tags":
            raise ValueError(f"semantic_source none leaves nothing but tags; use supervision tags, not {supervision}")
        if labels_from is not None and (supervision == "full" or semantic_source == "none"):
            raise ValueError(
                "labels_from gives labels for training on semantic maps with supervision tags or points; leave it out "
                f"with supervision {supervision} and semantic_source {semantic_source}"
            )
        if label_weights and (labels_from is None or supervision == "points"):
            raise ValueError(
                "label_weights are the scores of labels_from, and points leave none of them; give labels_from with "
                "supervision tags, or leave label_weights out"
            )
        self.root = Path(root)
        self.class_names = check_class_names(class_names)
        for group in alike(self.class_names):
            rank_zero_warn(f"Class names that differ by little: {', '.join(group)}; is it one class?")
        self.supervision: Supervision = supervision
        self.semantic_source: SemanticSource = semantic_source
        self.recipe: Recipe = recipe
        self.object_scale, self.min_area = object_scale, min_area
        self.geometry = Geometry(min_area=min_area).scaled(object_scale)
        self.cue_threshold, self.label_quality = cue_threshold, label_quality
        self.labels_from = None if labels_from is None else Path(labels_from)
        self.label_threshold, self.label_weights = label_threshold, label_weights
        self.repeat_threshold, self.max_unreadable = repeat_threshold, max_unreadable
        self.batch_size, self.num_workers = batch_size, num_workers
        self._given_batch_size = batch_size
        self.eval_batch_size = 1 if recipe == "release" else eval_batch_size
        self.crop_size, self.image_scale = crop_size, image_scale
        self.augmentation = Augmentation(crop_size, (scale_range[0], scale_range[1]), dihedral, color_jitter)
        self.predict_images = None if predict_images is None else Path(predict_images)
        self.datasets: dict[Stage, Dataset[Sample]] = {}
        self.batches_augmented = 0
        self.predict_rows: Callable[[], Sequence[int]] | None = None

    @property
    def num_classes(self) -> int:
        """Classes without background."""
        return len(self.class_names)

    @property
    def leak_notes(self) -> tuple[str, ...]:
        """What of the training images' ground truth reaches the losses, in words; empty for weak supervision."""
        notes = []
        if self.semantic_source == "ground_truth":
            notes.append("the semantic maps of the training images are the ground truth")
        if self.supervision == "full":
            notes.append("the labels of the training images are the true instances")
        return tuple(notes)

    @property
    def tags_only(self) -> bool:
        """Whether batches hold nothing but images and tags."""
        return self.semantic_source == "none"

    @property
    def reads_true_instances(self) -> bool:
        """Whether training opens instance masks."""
        return (
            self._module_reads_instances and (self.supervision == "full" or self.label_quality) and not self.tags_only
        )

    @property
    def reads_cues(self) -> bool:
        """Whether training needs points or cues; predicted labels take the place of cues."""
        return self._module_reads_instances and (
            self.supervision == "points"
            or (self.supervision == "tags" and self.labels_from is None and not self.tags_only)
        )

    @property
    def _module_reads_instances(self) -> bool:
        """Whether the module that is trained looks at instance labels at all; its ``reads_instances`` says so."""
        return bool(getattr(self._module, "reads_instances", True))

    @property
    def _module(self) -> Any:
        """The module that is trained, scored or predicts; None without one."""
        return getattr(self.trainer, "lightning_module", None)

    @property
    def has_truth(self) -> bool:
        """Whether there is something to validate and test with."""
        return True

    def reads_truth(self, stage: Stage) -> bool:
        """Whether the images of a stage come with their true instances and semantic maps."""
        if stage == "train":
            return self.reads_true_instances
        return self.label_quality if stage == "predict" else not self.tags_only

    def tag_counts(self) -> tuple[torch.Tensor, int]:
        """Training images that hold each class, (C,) int64, and training images in all; after ``setup``."""
        split = cast(TrainingSamples, self.datasets["train"]).split
        assert split.tags is not None  # training needs them
        # numpy adds up the rows of a tall table ten times as fast as torch
        return torch.from_numpy(split.tags.numpy().sum(0)), len(split)

    def predict_only(self, rows: Callable[[], Sequence[int]]) -> None:
        """Restrict ``predict`` to some images of its split, for a writer that continues where an earlier run ended.

        ``rows`` is asked when the images are about to be read, in every process: by then the weights are there.
        """
        self.predict_rows = rows

    @abstractmethod
    def open_split(self, stage: Stage) -> Split:
        """The files of one split. Training needs tags and what the settings ask for, validation and test the truth."""

    def setup(self, stage: str) -> None:
        """Read the lists that the stage needs, and check that their folders exist."""
        if stage == "fit":
            for note in self.leak_notes:
                rank_zero_warn(f"Not weakly supervised: {note}.")
            # anew for each training: what it reads depends on who learns
            self.datasets["train"] = self._training_samples(self.open_split("train"))
        # without validation, training needs no ground truth at all
        skipped = stage == "fit" and self.trainer is not None and self.trainer.limit_val_batches == 0
        if stage in ("fit", "validate") and not skipped:
            self._add("val", lambda: self.evaluation_samples(self.open_split("val")))
        if stage == "test":
            self._add("test", lambda: self.evaluation_samples(self.open_split("test")))
        if stage == "predict":
            self._add("predict", lambda: self.evaluation_samples(self._predict_split(), truth_optional=True))
        name = EVALUATED[stage]
        if name in self.datasets and getattr(self._module, "reads_points", False):
            self._check_points(cast(EvaluationSamples, self.datasets[name]).split, scored=name != "predict")

    def teardown(self, stage: str) -> None:
        """Say how many training images were not seen."""
        unreadable = getattr(self.datasets.get("train"), "unreadable", None)
        if stage == "fit" and unreadable is not None and (found := unreadable.found()):
            warnings.warn(
                f"{len(found)} training images could not be read, others were shown in their place: {', '.join(found)}",
                stacklevel=1,
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled anew each epoch, rare classes repeated if asked for; the last, smaller batch is left out."""
        dataset = cast(TrainingSamples, self.datasets["train"])
        repeats = None
        if self.repeat_threshold > 0:
            assert dataset.split.tags is not None  # training needs them
            repeats = repeat_factors(dataset.split.tags, self.repeat_threshold)
        settle(self.trainer)
        sampler = TrainingSampler(dataset, *self._world, seed=run_seed(), repeats=repeats, position=self._position)
        if 0 < len(sampler) < self.batch_size != self._given_batch_size:
            # Lightning's batch-size finder doubles it until memory ends; here images do
            self.batch_size = len(sampler)
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"{len(sampler)} training images per process make no batch of {self.batch_size}; use a smaller "
                "batch_size"
            )
        return open_loader(
            dataset, self.num_workers, collate, batch_size=self.batch_size, sampler=sampler, drop_last=True
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Each image once; none where training goes without validation, whatever a tuner asks for."""
        return self._evaluation_loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> DataLoader[Sample]:
        """Each image once."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Each image once; needs no ground truth."""
        return self._evaluation_loader("predict")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: images to [0, 1]; a training batch is augmented and, if it has semantic maps, labelled."""
        # evaluated batches never have a semantic map; where those in training have none either, the trainer knows
        training = batch.semantic is not None or (self.trainer is not None and self.trainer.training)
        if not training:
            return replace(batch, images=batch.images.float() / 255)
        if self.recipe != "release":
            # the draws follow from seed, process and number of the batch: the same after an interruption
            number = self.batches_augmented
            if self.trainer is not None and self.trainer.training:
                number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self.batches_augmented = number + 1
            generator = torch.Generator().manual_seed(draw_seed(self._world[1], number))
            batch = self.augmentation(batch, generator)
        else:
            batch = replace(batch, images=batch.images.float() / 255)
        return batch if batch.semantic is None else self.label(batch)

    def label(self, batch: Batch) -> Batch:
        """Add components and pseudo labels to an augmented training batch."""
        batch = pseudo_labels(batch, supervision=self.supervision, rules=RULES[self.recipe], geometry=self.geometry)
        return replace(batch, truth=batch.truth if self.label_quality else None, predicted=None)

    def state_dict(self) -> dict[str, Any]:
        """What decides which images a step has seen, and how large a predictor has to show them."""
        return {"images_a_step": self.batch_size * self._world[0], "seed": run_seed(), "image_scale": self.image_scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the training goes on with other images than it would have had."""
        now = self.state_dict()
        changed = [
            f"{name} was {state_dict[name]}, is {now[name]}"
            for name in now
            if name in state_dict and state_dict[name] != now[name]
        ]
        tuned = self.batch_size != self._given_batch_size
        if changed and not tuned and self.trainer is not None and self.trainer.state.fn == "fit":
            rank_zero_warn(f"The training does not go on as it would have: {'; '.join(changed)}.")

    @property
    def _world(self) -> tuple[int, int]:
        """Number of processes, and which one this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _position(self) -> tuple[int, int]:
        """The epoch, and how many of this process's images in it have been seen."""
        epoch, batches = position(self.trainer)
        return epoch, batches * self.batch_size

    def _add(self, stage: Stage, make: Callable[[], Dataset[Sample]]) -> None:
        if stage not in self.datasets:
            self.datasets[stage] = make()

    def _training_samples(self, split: Split) -> TrainingSamples:
        if self.tags_only:
            split = replace(split, semantic_dir=None, cues_dir=None, truth=None)
        elif self.semantic_source == "folder" or split.semantic_dir is not None:
            _require(split.semantic_dir, "semantic maps", "NAME.png", "semantic_dir")
        labels = None
        if self.labels_from is not None:
            # its reader of annotation files is COCODataModule's, which is one of these
            from bestie_pl.data.labels import open_labels

            labels = open_labels(
                self.labels_from,
                split.names,
                self.class_names,
                points=split.points,
                # points say what an object is
                least_share=0.0 if self.supervision == "points" and not split.mixed else self.label_threshold,
                weighted=self.label_weights,
            )
        if self.reads_cues and (split.points is None or split.cues_dir is not None):
            what = "points" if self.supervision == "points" and split.points is None else "cues"
            _require(split.cues_dir, what, "NAME.txt of lines `x y class conf`", "cues_dir")
        return TrainingSamples(
            split,
            self.class_names,
            read_cues=self.reads_cues,
            read_instances=self.reads_true_instances,
            truth_optional=not self.leak_notes,
            labels=labels,
            cue_threshold=self.cue_threshold,
            image_scale=self.image_scale,
            release_crop=self.crop_size if self.recipe == "release" else None,
            seed=run_seed(),
            unreadable=Unreadable(split.images, self.max_unreadable) if self.max_unreadable else None,
        )

    def _check_points(self, split: Split, *, scored: bool) -> None:
        """Refuse to predict from points where there are none; an image of no points would be one without objects."""
        if split.points is None and (self.supervision != "points" or split.cues_dir is None):
            raise ValueError(
                "these predictions rest on given points, and the data module has none: give it supervision: points and "
                "the points of these images"
            )
        pointed = split.pointed()
        if not all(pointed):
            absent = f"no points of the image {split.names[pointed.index(False)]}"
            if scored or not any(pointed):
                raise UserError(f"{absent}: these predictions rest on them; list no point for an image without objects")
            rank_zero_warn(
                f"{absent} ({pointed.count(False)} of {len(pointed)} have none): nothing is predicted there."
            )

    def evaluation_samples(self, split: Split, *, truth_optional: bool = False) -> EvaluationSamples:
        """The images of a split as they are evaluated: whole, and of the size that the settings ask for."""
        release = self.recipe == "release"
        if self.tags_only:
            # cues may be what is being written
            split = replace(split, cues_dir=None)
        return EvaluationSamples(
            split,
            self.num_classes,
            self.image_scale,
            truth_optional=truth_optional,
            fit_stride=release and not self.tags_only,
            square=self.crop_size if release and self.tags_only else None,
        )

    def _predict_split(self) -> Split:
        if self.predict_images is None:
            split = self.open_split("predict")
            return split if self.label_quality else replace(split, truth=None)
        if self.tags_only:
            raise ValueError("the images of predict_images have no tags, and cues need them; choose a split with tags")
        folder = require_folder(self.predict_images, "images to predict")
        paths = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not paths:
            raise UserError(f"{folder}: no image in it; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
        files = [path.relative_to(folder).as_posix() for path in paths]
        names = [image_name(file) for file in files]
        check_unique(folder, names)
        return Split(Packed(names), ImageFiles(folder, Packed(files)))

    def _evaluation_loader(self, stage: Stage) -> DataLoader[Sample]:
        dataset = cast(EvaluationSamples, self.datasets[stage])
        rows = self.predict_rows() if stage == "predict" and self.predict_rows is not None else None
        sampler = EvaluationSampler(dataset, *self._world, rows=rows)
        paths = dataset.split.images
        batches = EvaluationBatches(
            sampler,
            self.eval_batch_size,
            images=list(sampler),
            size_of=lambda index: stored_size(Path(paths[index])),
            join=stage != "predict" and len(dataset) > 0,
        )
        truth = dataset.split.truth is not None
        collate_fn = partial(collate_evaluated, classes=self.num_classes, truth=truth)
        return open_loader(dataset, self.num_workers, collate_fn, batch_sampler=batches)


def _check_range(rule: str, holds: bool, found: object) -> None:
    if not holds:
        raise ValueError(f"expected {rule}, got {found}")


def _require(folder: Path | None, what: str, files: str, argument: str) -> None:
    if folder is None:
        raise ValueError(f"training needs a folder of {what} ({files}): give {argument}, or choose other supervision")
    require_folder(folder, f"the training images' {what} ({files}); give {argument}, or make them first")
