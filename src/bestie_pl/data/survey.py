"""Looks at a folder of one's own: what labels it has and how large its objects are; and chooses settings for that."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.data.files import files_below, read_text, require_folder
from bestie_pl.data.formats.images import IMAGE_SUFFIXES, find_image, image_size, open_image
from bestie_pl.data.formats.maps import read_semantic
from bestie_pl.data.formats.points import PointSet, image_name, read_points
from bestie_pl.data.formats.tags import TagTable, read_tags
from bestie_pl.data.samples import to_tensor
from bestie_pl.ops.growing import grow_semantic
from bestie_pl.progress import progress
from bestie_pl.structures import IGNORE, Cues, Geometry

MAP_FOLDERS = ("semantic_maps", "semantic")
"""Where one's own semantic maps are looked for; the first one that has those of all training images counts.

Maps that an earlier stage made are none: their stages would be left out, and they grow old as the labels change.
"""
VAL_NAMES, TEST_NAMES = ("val", "valid", "validation"), ("test", "testing")
SAMPLE = 24
"""Images of which objects are measured."""
LARGEST_SIDE = 512
"""Images are made this small before maps are grown to measure objects."""
VOC_DIAMETER = 140.0
"""Of a disc with the area of a typical object of VOC, the geometric mean of its 50 to 400 px: ``object_scale`` 1."""
CELL = 4
"""Pixels of the network's input for a cell of its maps."""
LEAST_CELLS = 6
"""Images are enlarged until a typical object is as many cells wide."""
PER_IMAGE = {"cpu": 40, "cuda": 200}
STEPS = {"cpu": (300, 600), "cuda": (1500, 20000)}
"""Least and most steps. On one CPU core 600 steps of 8 images of 256 px take a quarter of an hour."""
LARGEST_CROP = {"cpu": 288, "cuda": 416}
BATCH = {"cpu": 8, "cuda": 16}

HEAD = 2**16
"""Characters of a file that are looked at to tell what wrote it."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Args:
        root: The folder.
        class_names: Sorted, as ``FolderDataModule`` numbers them.
        train_images: Images of the training split.
        size: Median height and width of (some of) them.
        splits: Names of the splits of training, validation and test; the last two None where there is none.
        points: File or folder of points below ``root``; None where there is none.
        semantic_dir: Folder of semantic maps below ``root``; None where there is none.
        annotations: Ground truth below ``root``, with ``{split}``; None where there is none.
        tags_differ: Whether some training images have other tags than others, so that a classifier can learn them.
        diameter: Of a disc with the median object's area, in pixels; None without points.
        unlisted: Images that the file of tags does not name.
        unused: Images of other splits than ``splits``, by the name of their split, ``""`` for none.
    """

    root: Path
    class_names: tuple[str, ...]
    train_images: int
    size: tuple[int, int]
    splits: tuple[str, str | None, str | None]
    points: str | None
    semantic_dir: str | None
    annotations: str | None
    tags_differ: bool
    diameter: float | None
    unlisted: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)


def annotation_source(path: Path) -> str | None:
    """Which program wrote an annotation file, a key of ``READERS``; None if it is none that is known.

    Tells files by their beginning: LabelMe's have ``shapes``, COCO's images with ``file_name``, Label Studio's are
    lists of tasks, VIA's have ``_via_`` fields or regions and may be CSV, CVAT's are XML.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".xml", ".csv"):
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(HEAD)
    if suffix == ".xml":
        found = "cvat" if "<annotations>" in head and "<image " in head else None
    elif suffix == ".csv":
        found = "via" if re.match(r"#?\s*filename,file_size,file_attributes,region_count,", head) else None
    elif '"_via_' in head or '"shape_attributes"' in head:
        found = "via"
    elif re.search(r'"shapes"\s*:\s*\[', head):
        found = "labelme"
    elif re.search(r'"(file_name|category_id|supercategory)"\s*:', head) and head.lstrip().startswith("{"):
        found = "coco"
    elif head.lstrip().startswith("[") and re.search(r'"(annotations|completions)"\s*:', head):
        found = "labelstudio"
    else:
        found = None
    return found


def annotation_files(folder: Path) -> dict[str, list[Path]]:
    """Annotation files in a folder and below, by the program that wrote them."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        own = any(part in ("runs", "configs") for part in path.relative_to(folder).parts)
        if not own and (source := annotation_source(path)) is not None:
            found.setdefault(source, []).append(path)
    return found


def survey(root: Path) -> Survey:
    """Look at a folder that has ``images/`` and ``tags.csv`` or ``tags.json``.

    Raises:
        FileNotFoundError: No such folder or file.
        ValueError: No training split, or no image in it.
    """
    images = require_folder(root / "images", "the images of the data set")
    tags_file = next((root / name for name in ("tags.csv", "tags.json") if (root / name).is_file()), None)
    if tags_file is None:
        raise FileNotFoundError(f"no such file: {root / 'tags.csv'}; expected the images' tags, see FolderDataModule")
    table = read_tags(tags_file)
    train, val, test = _splits(root, table)
    rows = _rows(root, table, train)
    if len(rows) == 0:
        raise ValueError(f"{table.path}: no image of the split {train}; expected training images")
    files = list(table.files)
    files = [files[row] for row in rows.tolist()]
    names = [image_name(file) for file in files]
    sampled = list(range(0, len(names), max(1, len(names) // SAMPLE)))[:SAMPLE]
    paths = {n: _path(images, files[n]) for n in sampled}
    sizes = [_size(path) for path in paths.values()]
    points = next((p for p in ("points.json", "points.csv", "points") if (root / p).exists()), None)
    semantic = next((f for f in MAP_FOLDERS if all((root / f / f"{name}.png").is_file() for name in names)), None)
    tags = table.dense(rows)
    diameter = None
    if points is not None and (root / points).is_file():
        read = read_points(root / points, table.class_names)
        maps = None if semantic is None else root / semantic
        diameter = _diameter(read, {names[n]: path for n, path in paths.items()}, maps)
    return Survey(
        root=root,
        class_names=table.class_names,
        train_images=len(names),
        size=(round(median(h for h, _ in sizes)), round(median(w for _, w in sizes))),
        splits=(train, val, test),
        points=points,
        semantic_dir=semantic,
        annotations=_annotations(root, [s for s in (val, test) if s is not None]),
        tags_differ=bool((tags != tags[0]).any()),
        diameter=diameter,
        unlisted=max(0, _count_images(images) - len(table.files)),
        unused=table.outside(split for split in (train, val, test) if split is not None),
    )


class Choice(NamedTuple):
    """A setting and why it has this value."""

    value: Any
    why: str


def settings(found: Survey, device: Device) -> dict[str, Choice]:
    """Sizes and lengths of a training that fit the data and the machine, by the names of the configuration's keys.

    These are ``image_scale``, ``object_scale``, ``sigma`` and ``min_area``, only where they differ from the defaults,
    ``crop_size``, ``batch_size``, ``steps`` and ``warmup_steps``.
    """
    chosen: dict[str, Choice] = {}
    scale, diameter = 1, found.diameter
    short = min(found.size)
    if diameter is not None:
        scale = max(1, min(4, math.ceil(LEAST_CELLS * CELL / diameter)))
        if scale > 1:
            why = f"objects are about {diameter:.0f} px wide, {diameter / CELL:.1f} cells of the maps: enlarge them"
            chosen["image_scale"] = Choice(float(scale), why)
        object_scale = max(0.1, round(diameter * scale / VOC_DIAMETER, 2))
        why = f"objects are about {diameter * scale:.0f} px wide; VOC's about {VOC_DIAMETER:.0f}"
        chosen["object_scale"] = Choice(object_scale, why)
        if Geometry.sigma * object_scale < CELL:
            sigma = round(CELL / object_scale, 1)
            why = (
                f"{sigma * object_scale:.0f} px at this scale: a narrower Gaussian falls between the cells of the maps"
            )
            chosen["sigma"] = Choice(sigma, why)
        if Geometry.min_area * object_scale**2 < CELL**2:
            chosen["min_area"] = Choice(math.ceil(CELL**2 / object_scale**2), "one cell of the maps at this scale")
    side = short * scale
    crop = max(64, min(LARGEST_CROP[device], side) // 32 * 32)
    if found.points is None:
        chosen["crop_size"] = Choice(
            crop, f"images are about {side} px: a crop without the object teaches its tag wrongly"
        )
    else:
        chosen["crop_size"] = Choice(crop, f"images are about {side} px; larger crops cost time on a {device.upper()}")
    batch = min(BATCH[device], found.train_images)
    chosen["batch_size"] = Choice(batch, f"{found.train_images} training images, on a {device.upper()}")
    least, most = STEPS[device]
    steps = max(least, min(most, PER_IMAGE[device] * found.train_images // batch // 50 * 50))
    chosen["steps"] = Choice(steps, f"each image is seen some {steps * batch // found.train_images} times")
    chosen["warmup_steps"] = Choice(max(1, steps // 12), "a twelfth of the steps")
    return chosen


def _splits(root: Path, table: TagTable) -> tuple[str, str | None, str | None]:
    """Names as ``FolderDataModule`` takes them: a value of the column ``split``, or a text file."""
    files = {path.stem: path.name for path in sorted(root.glob("*.txt"))} if not table.splits else {}
    known = {name: name for name in table.splits} or files
    if "train" not in known:
        listed = f"; there are {', '.join(table.splits)}" if table.splits else ""
        raise ValueError(
            f"{table.path}: no split `train`{listed}; add a column `split` that says train for the images to learn from"
        )
    first = [next((known[name] for name in names if name in known), None) for names in (VAL_NAMES, TEST_NAMES)]
    return known["train"], first[0], first[1]


def _rows(root: Path, table: TagTable, split: str) -> Tensor:
    if split in table.splits:
        return (table.split == table.splits.index(split)).nonzero()[:, 0]
    lines = read_text(root / split, "the images of a split, one a line").splitlines()
    listed = {image_name(line.strip()) for line in lines if line.strip()}
    return torch.tensor([row for row, file in enumerate(table.files) if image_name(file) in listed], dtype=torch.int64)


def _count_images(folder: Path) -> int:
    return sum(path.suffix.lower() in IMAGE_SUFFIXES for path in files_below(folder))


def _path(folder: Path, file: str) -> Path:
    return find_image(folder, file)


def _size(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}; the file of tags lists it")
    return image_size(path)


def _annotations(root: Path, splits: Sequence[str]) -> str | None:
    """A file that has the truth of validation or test, with ``{split}`` where it names them."""
    for path in sorted(root.glob("*.json")):
        if annotation_source(path) == "coco":
            for split in splits:  # evaluation.json is not that of the split val
                name = rf"(?<![a-zA-Z]){re.escape(split.removesuffix('.txt'))}(?![a-zA-Z])"
                if re.search(name, path.stem):
                    return re.sub(name, "{split}", path.name)
    return None


def _diameter(points: PointSet, images: dict[str, Path], maps: Path | None) -> float | None:
    """Of a disc that has the median area of the images' objects: the pixels of a class over its points."""
    row_of = {image_name(file): row for row, file in enumerate(points.files)}
    found: list[float] = []
    for name, path in progress(images.items(), "sizes of objects"):
        if (row := row_of.get(name)) is not None:
            rows = points.rows(row)
            yx, classes = points.yx[rows], points.classes[rows].long()
            if len(yx):
                found += _areas(yx, classes, path, None if maps is None else maps / f"{name}.png", points.class_names)
    return 2 * math.sqrt(median(found) / math.pi) if found else None


def _areas(yx: Tensor, classes: Tensor, path: Path, semantic: Path | None, names: Sequence[str]) -> Iterator[float]:
    """Mean area in pixels of a class's objects in one image, once for each of them."""
    picture = open_image(path)
    size = (picture.height, picture.width)
    shrink = 1.0
    if semantic is not None:
        labels = read_semantic(semantic, size, len(names))
    else:
        image = to_tensor(picture)[None].float() / 255
        shrink = min(1.0, LARGEST_SIDE / max(size))
        if shrink < 1:
            image = F.interpolate(image, scale_factor=shrink, mode="bilinear", antialias=True)
        cues = Cues(torch.zeros(len(yx), dtype=torch.int64), (yx + 0.5) * shrink - 0.5, classes, torch.ones(len(yx)))
        labels = grow_semantic(cues, image[0])
    pixels = labels.flatten().long().bincount(minlength=IGNORE + 1)
    for number, count in enumerate(classes.bincount(minlength=len(names)).tolist()):
        if count and (area := float(pixels[number + 1])):
            yield from [area / count / shrink**2] * count


def split_of_file(path: Path, root: Path) -> str:
    """The split that an annotation file's name says, or its folder's below ``root``; ``train`` if they say none.

    >>> [split_of_file(Path("my_set", name), Path("my_set")) for name in ("a_val.json", "test/_coco.json", "a.json")]
    ['val', 'test', 'train']
    """
    words = re.split(r"[^a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
    return next((word for word in words if word in (*VAL_NAMES, *TEST_NAMES)), "train")
