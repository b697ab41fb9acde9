"""Data sets with COCO annotation files."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestie_pl.data.files import JSON, Packed, check_plain, check_unique, read_text, require_folder, understood
from bestie_pl.data.formats.classes import class_name
from bestie_pl.data.formats.images import ImageFiles, check_pixels
from bestie_pl.data.formats.points import image_name
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.data.module import InstanceDataModule, Stage
from bestie_pl.data.samples import Split
from bestie_pl.errors import UserError


class COCODataModule(InstanceDataModule):
    """A data set with COCO annotation files (``instances_*.json``).

    **Categories** become classes 0..C-1 in ascending category id: COCO's 80, whose ids go up to 90, are 0..79 in
    points and 1..80 in semantic maps. ``category_ids`` and ``image_ids`` lead back: predictions carry name and id of
    the category, and ``bestie-pl coco-results`` joins them into the file that COCO's servers and pycocotools take.

    **Tags**: an image has every class that it has an annotation of, crowd regions included: who tags an image does not
    tell single objects from crowds. Training keeps only the tags of its annotation file, unless the settings ask for
    ground truth.

    **Ground truth** is read from polygons and run-length codes of both kinds. Crowd regions (``iscrowd``) are no
    objects: they give no label and are 255 in true semantic maps. In COCO's AP, predictions inside them count neither
    for nor against, as in pycocotools; VOC's AP knows no such regions and takes them for background. An image without
    annotations has no object and counts all the same.

    **COCO's test images** have a file without annotations, which can be predicted:
    ``--data.init_args.test_images test2017 --data.init_args.predict_annotations
    annotations/image_info_test-dev2017.json``.

    Args:
        root: Folder that the paths below start from.
        train_images: Folder of the training images; COCO's own is ``train2017``.
        train_annotations: Annotation file of the training images, for their tags.
        val_images: Folder of the validation images.
        val_annotations: Annotation file for validation. The categories are read from it.
        test_images: Folder of the test images; ``val_images`` if omitted.
        test_annotations: Annotation file for ``test``; ``val_annotations`` if omitted.
        predict_annotations: Annotation file whose images, in ``test_images`` or ``train_images``, are predicted; the
            test images' if omitted. Annotations in it are not needed.
        semantic_dir: Semantic maps of the training images, ``NAME.png``: 0 background, c + 1 for class c.
        cues_dir: Points or cues, ``NAME.txt`` of lines ``x y class conf`` with classes from 0.
        **kwargs: See ``InstanceDataModule``.
    """

    def __init__(
        self,
        root: str,
        *,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        test_images: str | None = None,
        test_annotations: str | None = None,
        predict_annotations: str | None = None,
        semantic_dir: str | None = None,
        cues_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        base = Path(root)
        path = base / val_annotations
        categories = read_categories(path)
        super().__init__(root, tuple(categories.values()), **kwargs)
        self.category_ids = tuple(categories)
        self.image_ids: dict[str, int] = {}
        test = (base / (test_images or val_images), base / (test_annotations or val_annotations))
        train = (base / train_images, base / train_annotations)
        predict = base / predict_annotations if predict_annotations else test[1]
        self.sources: dict[Stage, tuple[Path, Path]] = {
            "train": train,
            "val": (base / val_images, path),
            "test": test,
            "predict": (train[0] if predict == train[1] else test[0], predict),
        }
        self.semantic_dir = base / semantic_dir if semantic_dir else None
        self.cues_dir = base / cues_dir if cues_dir else None

    def open_split(self, stage: Stage) -> Split:
        """See ``InstanceDataModule``."""
        folder, path = self.sources[stage]
        require_folder(folder, f"the images of {path}")
        wanted = self.reads_truth(stage) or (stage == "train" and self.semantic_source == "ground_truth")
        index = read_index(path, self.category_ids, keep_masks=wanted)
        if not index.annotated and (stage != "predict" or self.tags_only):
            raise UserError(f"{path}: has no `annotations`; expected them for the images' tags: choose another file")
        self.image_ids |= dict(zip(index.names, index.image_ids.tolist(), strict=True))
        return Split(
            names=index.names,
            images=ImageFiles(folder, index.files),
            tags=index.tags() if index.annotated else None,
            tags_file=path,
            semantic_dir=self.semantic_dir if stage == "train" and self.semantic_source == "folder" else None,
            cues_dir=self.cues_dir,
            truth=COCOTruth(index.annotations, index.sizes, path) if index.annotations is not None else None,
        )


@dataclass(frozen=True)
class COCOIndex:
    """One annotation file as columns, a row an image: ``names`` are file names without suffix; see ``COCOTruth``.

    ``annotated`` is False for a file without ``annotations``, such as those of COCO's test images. ``tag_row`` and
    ``tag_class`` are (T,) int64, image and category of each annotation.
    """

    annotated: bool
    names: Packed
    files: Packed
    image_ids: Tensor
    sizes: Tensor
    categories: int
    tag_row: Tensor
    tag_class: Tensor
    annotations: Packed | None

    def tags(self) -> Tensor:
        """(N, K) bool: the categories that each image has an annotation of."""
        tags = torch.zeros(len(self.names), self.categories, dtype=torch.bool)
        tags[self.tag_row, self.tag_class] = True
        return tags


def read_categories(path: Path) -> dict[int, str]:
    """Category id -> name of an annotation file, ascending.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not COCO's layout, or no category.
    """
    return _categories(_parse(_read(path), path, lambda *annotation: None), path)


def read_index(path: Path, category_ids: tuple[int, ...], *, keep_masks: bool) -> COCOIndex:
    """Read an annotation file; without ``keep_masks`` only its tags are kept.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not COCO's layout, other categories than ``category_ids``, an id that stands there twice, an
            annotation of an unknown image, or none at all with ``keep_masks``.
    """
    text = _read(path)
    found: list[tuple[Any, Any, Any]] = []
    spans: list[tuple[int, int]] = []

    def keep(annotation: Any, start: int, end: int) -> None:
        record = annotation if isinstance(annotation, dict) else {}
        found.append((record.get("id"), record.get("image_id"), record.get("category_id")))
        spans.append((start, end))

    content = _parse(text, path, keep)
    if "categories" in content and tuple(_categories(content, path)) != category_ids:
        raise UserError(
            f"{path}: categories {tuple(_categories(content, path))} differ from {category_ids} of the validation "
            "annotations; all annotation files of a data set need the same categories"
        )
    if keep_masks and "annotations" not in content:
        raise UserError(
            f"{path}: has no `annotations`; expected true instances: predict these images, or annotate them"
        )
    images = content.get("images")
    if not images or not isinstance(images, list):
        raise UserError(f"{path}: lists no images; expected a COCO annotation file with `images`")
    # Windows writes other separators
    given = (_field(image, "file_name", str, path).replace("\\", "/") for image in images)
    files = [posixpath.normpath(file) for file in given]
    check_plain(path, files)
    names = [image_name(file) for file in files]
    check_unique(path, names)
    image_ids: list[int] = [_field(image, "id", int, path) for image in images]
    sizes = [
        check_pixels(i.get("height"), i.get("width"), f"{path}: image {i['file_name']!r:.300}: height, width")
        for i in images
    ]
    _check_once(image_ids, "images have the id", path)
    # pycocotools keeps one annotation an id, so its scores would differ from ours
    _check_once((number for number, _, _ in found if type(number) is int), "annotations have the id", path)
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    class_of = {category: number for number, category in enumerate(category_ids)}
    rows, classes = [], []
    for number, image_id, category_id in found:
        try:
            rows.append(row_of[image_id])
            classes.append(class_of[category_id])
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: annotation {number} has image_id {image_id} and category_id {category_id}; expected those of "
                "an image and a category of the file"
            ) from None
    row = torch.tensor(rows, dtype=torch.int64)

    def annotations() -> Iterator[str]:
        order, first = row.argsort(stable=True).tolist(), 0
        for last in row.bincount(minlength=len(images)).cumsum(0).tolist():
            # of equal keys the last one counts
            own = (f'{text[spans[k][0] : spans[k][1] - 1]},"class":{classes[k]}}}' for k in order[first:last])
            yield f"[{','.join(own)}]"
            first = last

    return COCOIndex(
        annotated="annotations" in content,
        names=Packed(names),
        files=Packed(files),
        image_ids=torch.tensor(image_ids),
        sizes=torch.tensor(sizes),
        categories=len(category_ids),
        tag_row=row,
        tag_class=torch.tensor(classes, dtype=torch.int64),
        annotations=Packed(annotations()) if keep_masks else None,
    )


def _read(path: Path) -> str:
    return read_text(path, "a COCO annotation file; check root and the annotation arguments")


_MARK = re.compile(r"[ \t\n\r]*(.?)[ \t\n\r]*", re.DOTALL)
"""A character with the space around it."""


def _parse(text: str, path: Path, take: Callable[[Any, int, int], None]) -> dict[str, Any]:
    """The content of an annotation file; ``take`` gets each annotation and where it stands, the content their number.

    All annotations of COCO at once are gigabytes of small objects, and making them takes four times as long.
    """
    decode = JSON.raw_decode

    def step(at: int, *expected: str) -> tuple[str, int]:
        found = _MARK.match(text, at)
        if found is None or found[1] not in expected:
            raise json.JSONDecodeError(f"Expecting {' or '.join(expected)}", text, found.start(1) if found else at)
        return found[1], found.end()

    def enter(at: int, opening: str, closing: str) -> tuple[str, int]:
        mark, at = step(at, opening)
        return step(at, closing) if text.startswith(closing, at) else (mark, at)

    def members() -> Iterator[tuple[str, Any]]:
        mark, at = enter(0, "{", "}")
        while mark != "}":
            key, at = decode(text, at)
            _, at = step(at, ":")
            if key == "annotations":
                mark, at = enter(at, "[", "]")
                count = 0
                while mark != "]":
                    start = at
                    value, at = decode(text, start)
                    take(value, start, at)
                    count += 1
                    mark, at = step(at, ",", "]")
                yield key, count
            else:
                value, at = decode(text, at)
                yield key, value
            mark, at = step(at, ",", "}")
        if at < len(text):
            raise json.JSONDecodeError("Extra data", text, at)

    if (first := _MARK.match(text)) and first[1] == "[":
        raise UserError(f"{path}: holds a list; expected a COCO annotation file with `images` and `categories`")
    with understood(path, "a COCO annotation file; restore it"):
        return dict(members())


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Category id -> name, ascending."""
    categories = content.get("categories")
    if not categories or not isinstance(categories, list):
        raise UserError(f"{path}: lists no categories; expected a COCO annotation file with `categories`")
    pairs = sorted((_field(c, "id", int, path), class_name(_field(c, "name", str, path))) for c in categories)
    _check_once((number for number, _ in pairs), "categories have the id", path)
    _check_once((name for _, name in pairs), "categories have the name", path)
    return dict(pairs)


def _check_once(values: Iterable[Hashable], what: str, path: Path) -> None:
    """Raise UserError if a value stands there twice."""
    value, count = next(iter(Counter(values).most_common(1)), (None, 0))
    if count > 1:
        raise UserError(f"{path}: {count} {what} {value!r}; expected each once: number them anew, or merge them")


def _field(record: Any, name: str, kind: type, path: Path) -> Any:
    """A field of an entry, an ``int`` or a ``str``."""
    if not isinstance(record, dict) or name not in record:
        raise UserError(f"{path}: an entry without {name!r}: {record!r:.200}")
    value = record[name]
    if type(value) is not kind:
        expected = "a whole number" if kind is int else "a text"
        raise UserError(f"{path}: {name} is {value!r:.100}; expected {expected}: {record!r:.200}")
    return value
