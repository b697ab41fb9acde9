"""A data set of one's own: images and a file of tags; points, semantic maps and ground truth where there are some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from bestie_pl.data.coco import read_categories, read_index
from bestie_pl.data.files import Packed, as_it_looks, below, check_unique, read_text, require_folder
from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.images import IMAGE_SUFFIXES, ImageFiles
from bestie_pl.data.formats.points import PointSet, image_name, read_points
from bestie_pl.data.formats.tags import read_tags
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.data.module import InstanceDataModule, Stage
from bestie_pl.data.samples import Split
from bestie_pl.data.shards import is_file, open_shards
from bestie_pl.errors import UserError, expected_one_of
from bestie_pl.structures import Cues

MIXED = "with recipe: release all training images need points; add them, or use recipe: paper"
NO_POINTS = (
    "training with supervision: points needs points: give points, a .json or .csv file, which `bestie-pl points` "
    "makes, or a folder of text files; or use supervision: tags"
)


class FolderDataModule(InstanceDataModule):
    """A folder of images, with subfolders, and one file of their tags by class name.

    **Tags** as CSV, in one of two forms, or as JSON::

        image,tags,split              image,split,cat,dog       {
        sub/one.jpg,cat;dog,train     sub/one.jpg,train,1,1       "sub/one.jpg": ["cat", "dog"],
        two.jpg,,val                  two.jpg,val,0,0             "two.jpg": {"tags": [], "split": "val"}
                                                                }

    ``image`` is a file below ``images``, with or without its suffix. Several tags of an image stand between semicolons;
    in a file without any semicolon, between commas in quotes. Names of classes may have blanks. Every other column of
    the second form is a class, 1 where the image holds it; columns that are no class have to be named in
    ``ignored_columns``.
    ``split`` may be left out where splits are text files.

    **Classes** are all names in the file of tags, sorted; ``class_names`` gives another order, or more classes. Numbers
    in semantic maps and text files count in this order.

    **Splits**: a split is a value of ``split``, or a text file below ``root`` that ends in ``.txt``, an image a line.

    **Points and tags together**: with ``supervision: points`` the training images that ``points`` does not name (of a
    folder: that have no file there) are taught by their tags, as with ``supervision: tags``: from a classifier's cues,
    if ``cues_dir`` is given, and by what the network itself finds in the semantic map.

    **Ground truth** is a COCO annotation file whose categories are matched by name and images by file. It is needed for
    ``validate`` and ``test``; without it, training has no validation.

    Args:
        root: Folder that the paths below start from.
        images: Folder of the images: JPEG, PNG, TIFF, BMP or WebP; or tar files, ``shards/*.tar``, whose labels are
            ``shards/*.tar/semantic_maps`` and the like (``bestie_pl.data.shards``).
        tags: File of the tags.
        class_names: Names of the classes in the order of their numbers.
        ignored_columns: Columns of ``tags`` that are neither class nor split.
        train_split: Split to train on.
        val_split: Split that ``validate`` and training's validation use.
        test_split: Split that ``test`` uses; ``val_split`` if omitted.
        predict_split: Split that ``predict`` uses, unless ``predict_images`` names a folder; the test split if omitted.
        semantic_dir: Semantic maps of the training images, ``NAME.png``: 0 background, c + 1 for class c.
        points: Given points: a ``.json`` or ``.csv`` file of the form that ``bestie_pl.data.formats.points`` describes
            and ``bestie-pl points`` makes and checks, or a folder of the release's text files ``NAME.txt``. An image
            that it names without a point has no object.
        cues_dir: A classifier's cues, ``NAME.txt`` of lines ``x y class conf`` with classes from 0.
        annotations: Ground truth. ``{split}`` in it stands for the name of the split.
        **kwargs: See ``InstanceDataModule``.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "images",
        tags: str = "tags.csv",
        class_names: Sequence[str] | None = None,
        ignored_columns: Sequence[str] = (),
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        predict_split: str | None = None,
        semantic_dir: str | None = None,
        points: str | None = None,
        cues_dir: str | None = None,
        annotations: str | None = None,
        **kwargs: Any,
    ) -> None:
        base = Path(root)
        self.table = read_tags(base / tags, class_names, ignored_columns)
        super().__init__(root, self.table.class_names, **kwargs)
        self.images_dir = base / images
        test = test_split or val_split
        self.splits: dict[Stage, str] = {
            "train": train_split,
            "val": val_split,
            "test": test,
            "predict": predict_split or test,
        }
        self.semantic_dir, self.points, self.cues_dir = (
            base / path if path else None for path in (semantic_dir, points, cues_dir)
        )
        self.annotations = annotations

    @property
    def unused(self) -> dict[str, int]:
        """How many images are in no stage, by the name of their split; see ``TagTable.outside``."""
        return self.table.outside(self.splits.values())

    @property
    def has_truth(self) -> bool:
        """See ``InstanceDataModule``."""
        return self.annotations is not None or self.tags_only

    def setup(self, stage: str) -> None:
        """See ``InstanceDataModule``."""
        if stage in ("validate", "test") and not self.has_truth:
            raise UserError(
                f"{stage} needs ground truth; give annotations, a COCO file with the images' true instances"
            )
        super().setup(stage)

    def open_split(self, stage: Stage) -> Split:
        """See ``InstanceDataModule``."""
        wanted = self.reads_truth(stage) or (stage == "train" and self.semantic_source == "ground_truth")
        if stage == "val" and not self.has_truth:
            return Split(Packed([]), Packed([]))
        folder = require_folder(self.images_dir, "the images; give root and images")
        training, points, mixed = stage == "train", None, False
        if training and self.supervision == "points" and self.points is None:
            raise UserError(NO_POINTS)
        split = self.splits[stage]
        rows = self._rows(split)
        files = self._files(folder, rows)
        names = [image_name(file) for file in files]
        packed = Packed(names)
        if self.points is not None and not self.tags_only and (not training or self.supervision == "points"):
            points = self._points(self.points, names, packed)
            if training:
                mixed = self._is_mixed(self.points, names, points)
        optional = stage == "predict" or (training and not self.leak_notes)
        return Split(
            names=packed,
            images=ImageFiles(folder, Packed(files)),
            tags=self.table.dense(rows),
            tags_file=self.table.path,
            semantic_dir=self.semantic_dir if training and self.semantic_source == "folder" else None,
            cues_dir=self.cues_dir if points is None or mixed else None,
            truth=self._truth(split, names, optional=optional) if wanted else None,
            points=points,
            mixed=mixed,
        )

    def _rows(self, split: str) -> Tensor:
        """Rows of the table that are in a split, (N,) int64."""
        table = self.table
        if not split.endswith(".txt"):
            if split not in table.splits:
                known = f"; {expected_one_of(split, table.splits)}" if table.splits else "; it names none"
                raise UserError(
                    f"{table.path}: no image of the split {split!r}{known}: add a column or key `split`, or name a "
                    "text file of image names (.txt)"
                )
            return (table.split == table.splits.index(split)).nonzero()[:, 0]
        path = self.root / split
        listed = [
            line.strip() for line in StringIO(read_text(path, "the images of a split, one a line")) if line.strip()
        ]
        listed = [image_name(name) for name in listed]
        check_unique(path, listed)
        row_of = {image_name(file): row for row, file in enumerate(table.files)}
        rows = [row_of.get(name, -1) for name in listed]
        if not rows or -1 in rows:
            missing = f"the image {listed[rows.index(-1)]} is not in {table.path}" if rows else "names no image"
            raise UserError(f"{path}: {missing}; expected images of the file of tags, one a line")
        return torch.tensor(rows, dtype=torch.int64)

    def _files(self, folder: Path, rows: Tensor) -> list[str]:
        """The images' files, below ``folder``; suffixes that the table leaves out are looked up."""
        table = self.table
        listed = list(table.files)
        files = [listed[row] for row in rows.tolist()]
        if wanted := {image_name(file) for file in files if not _has_suffix(file)}:
            found: dict[str, str] = {}
            for name, file in _images_below(folder):
                if name in wanted and found.setdefault(name, file) != file:
                    raise UserError(
                        f"{table.path}: {name} may be {found[name]} or {file} in {folder}; give it with its suffix"
                    )
            if missing := wanted - found.keys():
                raise FileNotFoundError(
                    f"no such image: {folder / min(missing)}, with any of {', '.join(IMAGE_SUFFIXES)}; {table.path} "
                    "lists it"
                )
            files = [file if _has_suffix(file) else found[image_name(file)] for file in files]
        return files

    def _points(self, path: Path, names: list[str], packed: Packed) -> TablePoints | TextPoints:
        """Reader of given points."""
        if path.suffix.lower() not in (".json", ".csv"):
            require_folder(path, "points NAME.txt; points is a .json or .csv file, or a folder of text files")
            return TextPoints(path, packed, self.num_classes)
        points = read_points(path, self.class_names)
        of_points = [image_name(file) for file in points.files]
        check_unique(path, of_points)
        row_of = {name: row for row, name in enumerate(of_points)}
        if unknown := sorted(row_of.keys() - {image_name(file) for file in self.table.files}):
            rank_zero_warn(
                f"{path}: {len(unknown)} of its images are not in {self.table.path}, such as {unknown[0]}, and nothing "
                "is learnt from their points: correct the names, or list the images"
            )
        return TablePoints(points, torch.tensor([row_of.get(name, -1) for name in names], dtype=torch.int64))

    def _is_mixed(self, path: Path, names: list[str], points: TablePoints | TextPoints) -> bool:
        """Whether some of the training images have no points; an error if none has, or if all need them."""
        pointed = points.pointed()
        if all(pointed):
            return False
        if not any(pointed):
            raise UserError(
                f"{path}: no points of any training image, such as {names[0]}; name images as below {self.images_dir}"
            )
        if self.recipe == "release":  # which knows nothing of the kind
            raise UserError(f"{path}: no points of the training image {names[pointed.index(False)]}; {MIXED}")
        cues = f" and cues in {self.cues_dir}" if self.cues_dir else ""
        rank_zero_info(f"{sum(pointed)} of {len(names)} training images have points; the others have tags{cues}.")
        return True

    def _truth(self, split: str, names: list[str], *, optional: bool) -> COCOTruth:
        if self.annotations is None:
            raise UserError(f"the split {split} needs ground truth; give annotations, a COCO file with true instances")
        path = self.root / self.annotations.replace("{split}", split.removesuffix(".txt"))
        categories = read_categories(path)
        index = read_index(path, tuple(categories), keep_masks=True)
        assert index.annotations is not None  # they were asked for
        row_of = {name: row for row, name in enumerate(index.names)}
        missing = None if optional else next((name for name in names if name not in row_of), None)
        if missing is not None:
            raise UserError(
                f"{path}: no image {missing} of the split {split} in `images`; annotate it, or leave it out"
            )
        rows = torch.tensor([row_of.get(name, -1) for name in names], dtype=torch.int64)
        number_of = {name: number for number, name in enumerate(self.class_names)}
        classes = [number_of.get(name, -1) for name in categories.values()]
        own = torch.zeros(len(index.names), dtype=torch.bool)
        own[rows[rows >= 0]] = True
        used = set(index.tag_class[own[index.tag_row]].tolist())
        for k, (name, number) in enumerate(zip(categories.values(), classes, strict=True)):
            if k in used and number < 0:
                raise UserError(
                    f"{path}: annotations of the category {name!r}; {expected_one_of(name, self.class_names)}: correct "
                    "it, or give all class_names"
                )
        return COCOTruth(index.annotations, index.sizes, path, rows, torch.tensor(classes))


@dataclass(frozen=True)
class TablePoints:
    """Points of a split's images from one file. See ``PointReader``.

    Args:
        points: With the data set's classes.
        rows: (N,) int64, row in ``points`` of each image of the split, -1 for images that have tags only.
    """

    points: PointSet
    rows: Tensor

    def pointed(self) -> list[bool]:
        """Whether each image has points, or is known to have none."""
        return (self.rows >= 0).tolist()

    def file(self, index: int) -> Path:
        """See ``PointReader``."""
        return self.points.path

    def __call__(self, index: int, size: tuple[int, int]) -> Cues | None:
        """See ``PointReader``."""
        points, row = self.points, int(self.rows[index])
        if row < 0:
            return None
        where = f"{points.path}: image {points.files[row]!r}"
        height, width = points.sizes[row].tolist()
        if height and (height, width) != size:
            raise UserError(
                f"{where}: {width} x {height} px (width x height) but its file is {size[1]} x {size[0]} (after turning "
                "it as its EXIF orientation says); set the points on the stored image"
            )
        rows = points.rows(row)
        yx, classes, limit = points.yx[rows], points.classes[rows].long(), torch.tensor(size)
        outside = (yx >= limit).any(1)
        if outside.any():
            k = int(outside.nonzero()[0, 0])
            raise UserError(
                f"{where}, point {k + 1}: x={yx[k, 1]:g}, y={yx[k, 0]:g} is outside the {size[1]} x {size[0]} px image"
            )
        # a fraction past the centre of the last pixel still belongs to that pixel
        return Cues(torch.zeros_like(classes), torch.minimum(yx, limit - 1.0), classes, points.scores[rows])


@dataclass(frozen=True)
class TextPoints:
    """Points of a split's images from the release's text files; images without one have tags only. See ``PointReader``.

    Args:
        folder: Of the files ``NAME.txt``.
        names: Of the split's images.
        num_classes: Classes without background.
    """

    folder: Path
    names: Packed
    num_classes: int

    def pointed(self) -> list[bool]:
        """Whether each image has a file."""
        return [is_file(self.file(index)) for index in range(len(self.names))]

    def file(self, index: int) -> Path:
        """See ``PointReader``."""
        return as_it_looks(below(self.folder, f"{self.names[index]}.txt"))

    def __call__(self, index: int, size: tuple[int, int]) -> Cues | None:
        """See ``PointReader``."""
        path = self.file(index)
        return read_cues(path, size, self.num_classes) if is_file(path) else None


def _has_suffix(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES)


def _images_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and file, relative to ``folder``, of each image in it and its subfolders; hidden ones are none."""
    if (index := open_shards(folder)) is not None:
        yield from ((image_name(file), file) for file in index.names if _has_suffix(file))
        return
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below_it = os.path.relpath(where, folder)
        for file in sorted(files):
            if _has_suffix(file) and not file.startswith("."):
                path = file if below_it == "." else f"{below_it.replace(os.sep, '/')}/{file}"
                yield image_name(path), path
