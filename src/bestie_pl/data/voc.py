"""PASCAL VOC and data sets in its layout, with the release's lists and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bestie_pl.data.files import Packed, as_it_looks, below, read_names, read_text, read_xml, require_folder
from bestie_pl.data.formats.classes import check_class_names, class_name
from bestie_pl.data.formats.images import ImageFiles
from bestie_pl.data.formats.tags import read_tag_list
from bestie_pl.data.formats.truth import VOCTruth
from bestie_pl.data.module import InstanceDataModule, Stage
from bestie_pl.data.samples import Split
from bestie_pl.errors import UserError, expected_one_of

T = TypeVar("T")

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CUES_DIRS = {"tags": "Peak_points", "points": "Center_points", "full": "Center_points"}
"""The release's folders of a classifier's cues and of given points."""
RELEASE_LISTS = {"train_aug": "train_cls.txt"}
"""What the release calls the list of a split, where it is not SPLIT_cls.txt."""


class VOCDataModule(InstanceDataModule):
    """PASCAL VOC's "year" folder (VOC2012), or a data set of one's own in its layout.

    ``JPEGImages``, ``SegmentationClass`` and ``SegmentationObject`` hold images and ground truth. What the authors
    share unpacks beside them: ``Peak_points``, ``Center_points``, ``WSSS_maps``, and their lists of images and tags.

    **Splits**: the images stand in ``ImageSets/Segmentation/SPLIT.txt``, else in ``SPLIT_cls.txt`` (lines
    ``ID class class ...``, 0-based, as in the release). In VOC 2012, ``train`` are 1,464 images with masks of VOC's
    own, ``val`` 1,449, and ``train_aug`` the 10,582 that papers on weak supervision train on, VOC's and SBD's without
    ``val``; their list is ``train_aug.txt``, ``train_aug_cls.txt`` or, as the release calls it, ``train_cls.txt``.

    **Tags** are taken from that ``_cls.txt``, which may list more images, else from
    ``ImageSets/Main/CLASS_SPLIT.txt``, else from the object names in ``Annotations/ID.xml``. Objects that VOC calls
    difficult are tagged like all others, also where a class has no other object.

    **Ground truth**: all objects of ``SegmentationObject`` count, difficult ones too: VOC's segmentation task does not
    know the word. 255, the border that VOC draws around objects, belongs to none of them, so that a mask that covers it
    loses overlap, as in the authors' evaluation; mean IoU of semantic maps leaves it out. In semantic maps to train on,
    255 teaches nothing and separates regions.

    Args:
        root: The year folder.
        train_split: Split to train on.
        val_split: Split that ``validate`` and training's validation use.
        test_split: Split that ``test`` uses.
        predict_split: Split that ``predict`` uses, unless ``predict_images`` names a folder; ``test_split`` if omitted.
        semantic_dir: Semantic maps of the training images, ``ID.png``, below ``root``.
        cues_dir: Points or cues, ``ID.txt`` of lines ``x y class conf``, below ``root``. ``Peak_points`` for tags and
            ``Center_points`` for points if omitted.
        class_names: Names of the classes in the order of their numbers; those in ``root/classes.txt`` if omitted, and
            VOC's 20 without that file.
        **kwargs: See ``InstanceDataModule``.
    """

    def __init__(
        self,
        root: str,
        *,
        train_split: str = "train_aug",
        val_split: str = "val",
        test_split: str = "val",
        predict_split: str | None = None,
        semantic_dir: str = "WSSS_maps",
        cues_dir: str | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        listed = Path(root) / "classes.txt"
        if class_names is None:
            class_names = _class_list(listed) if listed.is_file() else VOC_CLASSES
        super().__init__(root, class_names, **kwargs)
        self.splits: dict[Stage, str] = {
            "train": train_split,
            "val": val_split,
            "test": test_split,
            "predict": predict_split or test_split,
        }
        self.semantic_dir = self.root / semantic_dir
        self.cues_dir = self.root / (cues_dir or CUES_DIRS[self.supervision])

    def open_split(self, stage: Stage) -> Split:
        """See ``InstanceDataModule``."""
        split = self.splits[stage]
        images = require_folder(self.root / "JPEGImages", "the images ID.jpg; root is the folder that holds JPEGImages")
        listed = self._names(split)
        names = Packed(listed)
        classes, objects = self.root / "SegmentationClass", self.root / "SegmentationObject"
        # true semantic maps exist for many more images than true objects (SBD), so they need no objects
        semantic_dir = classes if self.semantic_source == "ground_truth" else self.semantic_dir
        truth = None
        if self.reads_truth(stage):
            for folder in (classes, objects):
                require_folder(folder, f"ground truth ID.png of the split {split}")
            truth = VOCTruth(names, classes, objects, self.num_classes)
        return Split(
            names=names,
            images=ImageFiles(images, names),
            tags=self._tags(split, listed, required=stage == "train" or self.tags_only),
            tags_file=self._tag_list(split),
            semantic_dir=semantic_dir if stage == "train" else None,
            cues_dir=self.cues_dir,
            truth=truth,
        )

    def _names(self, split: str) -> list[str]:
        lists = (self.root / "ImageSets" / "Segmentation" / f"{split}.txt", self._tag_list(split))
        for path in lists:
            if path.is_file():
                return read_names(path)
        raise FileNotFoundError(
            f"no list of the split {split!r}: neither {lists[0]} nor {lists[1]} exists; add one, or name another split"
        )

    def _tag_list(self, split: str) -> Path:
        """The list in the release's form, whether there is one or not."""
        listed = self.root / f"{split}_cls.txt"
        of_release = self.root / RELEASE_LISTS.get(split, listed.name)
        return of_release if of_release.is_file() and not listed.is_file() else listed

    def _tags(self, split: str, names: list[str], *, required: bool) -> Tensor | None:
        """(N, C) bool from the first source that there is; None if there is none and they are not required."""
        listed = self._tag_list(split)
        main = self.root / "ImageSets" / "Main"
        flags = [below(main, f"{name}_{split}.txt") for name in self.class_names]
        annotations = self.root / "Annotations"
        if listed.is_file():
            tagged, tags = read_tag_list(listed, self.num_classes)
            if tagged == names:
                return tags
            row = {name: number for number, name in enumerate(tagged)}
            return tags[torch.tensor([_listed(row, name, listed) for name in names])]
        if all(path.is_file() for path in flags):
            columns = [_class_flags(path) for path in flags]
            return torch.tensor([[_listed(c, n, p) for c, p in zip(columns, flags, strict=True)] for n in names])
        files = [as_it_looks(below(annotations, f"{name}.xml")) for name in names] if annotations.is_dir() else []
        if files and (required or files[0].is_file()):
            return torch.stack([self._tags_of_objects(path) for path in files])
        if required:
            raise FileNotFoundError(
                f"no tags of the split {split!r}: expected {listed} (lines `ID class class ...`), {flags[0]} and the "
                f"like, or {annotations}/ID.xml"
            )
        return None

    def _tags_of_objects(self, path: Path) -> Tensor:
        row = torch.zeros(self.num_classes, dtype=torch.bool)
        tree = read_xml(path, "the image's annotation, for its tags")
        for element in tree.iterfind("object/name"):
            name = class_name(element.text or "")
            if name not in self.class_names:
                raise UserError(
                    f"{path}: unknown class {name!r}; {expected_one_of(name, self.class_names)}: correct the file, or "
                    "give class_names"
                )
            row[self.class_names.index(name)] = True
        return row


def _class_list(path: Path) -> list[str]:
    """One class name a line."""
    names = [line for line in read_text(path, "one class name a line").splitlines() if line.strip()]
    return list(check_class_names(names, str(path)))


def _class_flags(path: Path) -> dict[str, bool]:
    """Image name -> whether the class is there, from lines ``ID flag``: 1 yes, 0 difficult objects only, -1 no."""
    flags = {}
    for number, line in enumerate(read_text(path, "lines of `ID flag`").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("1", "0", "-1"):
            raise UserError(f"{path} line {number}: found {line.strip()!r}; expected an image name and 1, 0 or -1")
        flags[fields[0]] = fields[1] != "-1"
    return flags


def _listed(table: dict[str, T], name: str, path: Path) -> T:
    if name not in table:
        raise UserError(f"{path}: the image {name} of the split is missing; add its line")
    return table[name]
