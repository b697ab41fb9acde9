"""Large data sets: seconds and memory to open index files of 118 thousand and 1.7 million images; decoding."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Row, Settings, alternating, busiest_functions
from benchmarks.pipeline import write_photographs
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.images import ImageFiles, open_image
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import Split, TrainingSamples, to_tensor
from bestie_pl.data.voc import VOCDataModule

COCO_IMAGES, COCO_ANNOTATIONS, COCO_VAL_IMAGES = 118_287, 860_001, 5_000
"""Of ``instances_train2017.json`` and ``instances_val2017.json``."""
COCO_CATEGORY_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
MANY_IMAGES, MANY_CLASSES = 1_700_000, 600
"""About those of OpenImages."""
FEW = 5_000
"""Images that a worker has read when its memory is looked at first, and images of the sets that are profiled."""
POINTS_STEP = 8
"""Of every so many images a worker reads the points: each page of their columns is read so, too."""

STATUS, SHARING = Path("/proc/self/status"), Path("/proc/self/smaps_rollup")


def write_coco(root: Path, images: int) -> None:
    """Annotation files with as many annotations an image as COCO has, and of such lengths: 450 MB for COCO's images."""
    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    polygons = []
    for count in np.clip(random.lognormal(3.0, 0.7, 997), 3, 300).astype(int):
        polygons.append(f"[[{', '.join(str(v) for v in random.uniform(0, 420, 2 * count).round(2))}]]")
    # crowds, one annotation in a hundred: 640 x 480 pixels in runs
    runs = np.diff(np.sort(random.choice(640 * 480, (10, 400))), prepend=0, append=640 * 480).tolist()
    crowds = [json.dumps({"counts": counts, "size": [480, 640]}) for counts in runs]
    categories = json.dumps([{"supercategory": "thing", "id": n, "name": f"class {n}"} for n in COCO_CATEGORY_IDS])
    for split, count in (("train2017", images), ("val2017", min(images, COCO_VAL_IMAGES))):
        (root / split).mkdir()
        ids = random.permutation(581_921)[:count].tolist()
        owners = random.choice(ids, count * COCO_ANNOTATIONS // COCO_IMAGES).tolist()
        kinds = random.integers(0, len(COCO_CATEGORY_IDS), len(owners)).tolist()
        with (root / "annotations" / f"instances_{split}.json").open("w") as file:
            file.write(f'{{"info": {{"year": 2017}}, "licenses": [], "categories": {categories}, "images": [')
            for n, number in enumerate(ids):
                file.write(
                    f'{", " if n else ""}{{"license": 4, "file_name": "{number:012d}.jpg", "coco_url": "http://images.'
                    f'cocodataset.org/{split}/{number:012d}.jpg", "height": 480, "width": 640, "date_captured": '
                    f'"2013-11-14 17:02:52", "flickr_url": "http://farm9.staticflickr.com/8186/{number}_z.jpg", '
                    f'"id": {number}}}'
                )
            file.write('], "annotations": [')
            for n, (owner, kind) in enumerate(zip(owners, kinds, strict=True)):
                crowd = n % 100 == 0
                mask = crowds[n % 10] if crowd else polygons[n % len(polygons)]
                file.write(
                    f'{", " if n else ""}{{"segmentation": {mask}, "area": 2765.15, "iscrowd": {int(crowd)}, '
                    f'"image_id": {owner}, "bbox": [199.84, 200.46, 77.71, 70.88], '
                    f'"category_id": {COCO_CATEGORY_IDS[kind]}, "id": {900_000_000_000 + n}}}'
                )
            file.write("]}")


def write_folder(root: Path, images: int) -> None:
    """``tags.csv`` with 1 to 6 of 600 classes an image; ``points.csv`` with a point of each on every other image."""
    random = np.random.default_rng(1)
    for folder in ("images", "maps"):
        (root / folder).mkdir(parents=True)
    classes = [f"Made-up thing {number:03d}" for number in range(MANY_CLASSES)]
    counts = random.integers(1, 7, images).tolist()
    drawn = iter(random.integers(0, MANY_CLASSES, sum(counts)).tolist())
    x, y = (iter(random.integers(0, 640, sum(counts)).tolist()) for _ in range(2))
    with (root / "tags.csv").open("w") as tags, (root / "points.csv").open("w") as points:
        tags.write("image,tags,split\n")
        points.write("image,x,y,class\n")
        for n, count in enumerate(counts):
            file = f"train_{n % 16:x}/{_identifier(n):016x}.jpg"
            own = [classes[next(drawn)] for _ in range(count)]
            tags.write(f"{file},{';'.join(own)},train\n")
            if n % 2:
                points.writelines(f"{file},{next(x)}.5,{next(y)},{name}\n" for name in own)


def write_voc(root: Path, images: int) -> None:
    """The release's list of a split with 1 or 2 of VOC's classes an image, and VOC's own list."""
    folders = ("JPEGImages", "WSSS_maps", "Center_points", "SegmentationClass", "SegmentationObject")
    for folder in (*folders, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"{2007 + n % 6}_{n:07d}" for n in range(images)]
    for split, own in (("train_aug", names), ("val", names[:1])):
        lines = (f"{name} {n % 20} {n % 7}\n" if n % 3 else f"{name} {n % 20}\n" for n, name in enumerate(own))
        (root / f"{split}_cls.txt").write_text("".join(lines))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(own) + "\n")


def _identifier(number: int) -> int:
    """Numbers without order, as names are."""
    return number * 0x9E3779B97F4A7C15 % 2**64


@dataclass(frozen=True)
class Kind:
    """A kind of data set: its name, images, who makes its files up and who opens them."""

    name: str
    images: int
    write: Callable[[Path, int], None]
    open: Callable[[str], InstanceDataModule]
    bar: float


def _coco(root: str) -> InstanceDataModule:
    return COCODataModule(root, supervision="tags", semantic_dir="train2017", cues_dir="train2017")


def _coco_truth(root: str) -> InstanceDataModule:
    return COCODataModule(root, supervision="full", semantic_dir="train2017")


def _folder(root: str) -> InstanceDataModule:
    return FolderDataModule(root, semantic_dir="maps", points="points.csv")


def _voc(root: str) -> InstanceDataModule:
    return VOCDataModule(root)


KINDS = (
    Kind("COCO, tags", COCO_IMAGES, write_coco, _coco, 20),
    Kind("COCO, instances too", COCO_IMAGES, write_coco, _coco_truth, 20),
    Kind("CSV of 600 classes and CSV of 3 million points", MANY_IMAGES, write_folder, _folder, 30),
    Kind("VOC lists", MANY_IMAGES, write_voc, _voc, 30),
)


def run(settings: Settings) -> list[Row]:
    """Index files, then decoding."""
    rows: list[Row] = []
    # a process for each opening, so that nothing else has left its mark on its memory
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for kind in KINDS:
        count = kind.images // 100 if settings.quick else kind.images
        with tempfile.TemporaryDirectory() as folder:
            kind.write(Path(folder) / "large", count)
            kind.write(Path(folder) / "small", FEW)
            with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as fresh:
                why = fresh.submit(profile_opening, kind, f"{folder}/small").result()
                opening = fresh.submit(measure_opening, kind, f"{folder}/large").result()
        name = f"{count:,} images, {kind.name}"
        rows.append(Row(f"{name}: opening, CPU seconds", opening.seconds, "s", kind.bar, "-", limited_by=why))
        if SHARING.exists():
            rows += [
                Row(f"{name}: most memory while opening", opening.peak, "MB"),
                Row(f"{name}: memory of the index", opening.kept, "MB"),
                Row(f"{name}: of it a worker's own after reading all of it", opening.private, "MB", 50, "0"),
                Row(f"{name}: the same if names and paths were Python lists", opening.private_lists, "MB"),
            ]
    return rows + _decoding(settings)


@dataclass(frozen=True)
class Opening:
    """CPU seconds, and MB: the most in use, what stays in use, and what of it a worker copies; that of lists, too."""

    seconds: float
    peak: float
    kept: float
    private: float
    private_lists: float


def measure_opening(kind: Kind, root: str) -> Opening:
    """Open a data set for training, in a process that has opened a small one and has all code in memory therefore."""
    gc.collect()
    before = _memory("VmRSS:", STATUS)
    start = time.process_time()
    data = kind.open(root)
    data.setup("fit")
    taken = time.process_time() - start
    peak = _memory("VmHWM:", STATUS) - before
    gc.collect()
    kept = _memory("VmRSS:", STATUS) - before
    split = cast(TrainingSamples, data.datasets["train"]).split
    names = list(split.names)
    images = names if isinstance(split.images, ImageFiles) else list(split.images)
    lists = Split(names, images)  # type: ignore[arg-type]
    return Opening(taken, peak, kept, private_growth(split), private_growth(lists))


def profile_opening(kind: Kind, root: str) -> str:
    """What an opening's time goes to."""
    return busiest_functions(lambda: kind.open(root).setup("fit"))


def _memory(what: str, path: Path) -> float:
    """MB of this process: the sum of the lines that begin so; 0 where the system does not tell."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


def private_growth(split: Split) -> float:
    """MB that a worker process comes to own by reading all of a split instead of little of it."""
    if not SHARING.exists():
        return 0.0
    loader = DataLoader(_Reading(split), batch_size=None, num_workers=1, multiprocessing_context="fork")
    little, everything = (float(private) for private in loader)
    return everything - little


@dataclass(frozen=True)
class _Reading(Dataset[float]):
    """Reads what a split says of its images: item 0 of some of them, item 1 of all; tells the process's own memory."""

    split: Split

    def __len__(self) -> int:
        return 2

    def __getitem__(self, item: int) -> float:
        split = self.split
        for index in range(len(split) if item else min(FEW, len(split))):
            split.names[index]
            if not isinstance(split.images, ImageFiles):  # these are the names again
                split.images[index]
            if split.tags is not None:
                split.tags[index]
            if isinstance(split.truth, COCOTruth):
                split.truth.annotations[index]
            if split.points is not None and index % POINTS_STEP == 0:
                split.points(index, (640, 640))
        gc.collect()
        return _memory("Private_", SHARING)


def _decoding(settings: Settings) -> list[Row]:
    """Training samples, one after another in one process, against Pillow alone on the same files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC"
        photographs = Path(os.environ.get("BESTIE_DATA", "../shared/data")) / "voc_small"
        if photographs.is_dir():
            kind = "photographs"
            _link_photographs(photographs.resolve(), root, 20 if settings.quick else 200)
        else:
            kind = "made-up photographs"
            write_photographs(root, 8 if settings.quick else 32)
        data = VOCDataModule(str(root), num_workers=0)
        data.setup("fit")
        samples = cast(TrainingSamples, data.datasets["train"])
        files = list(samples.split.images)
        maps = [samples.split.semantic_dir / f"{name}.png" for name in samples.split.names]  # type: ignore[operator]

        def pillow(paths: list[str] | list[Path]) -> Iterator[object]:
            for path in paths:
                with Image.open(path) as image:
                    yield image.convert("RGB") if paths is files else image.load()

        runs: dict[str, Callable[[], object]] = {
            "Pillow": lambda: [None for _ in pillow(files)],
            "Pillow, maps": lambda: [None for _ in pillow(maps)],
            "image": lambda: [to_tensor(open_image(Path(file))).shape for file in files],
            "sample": lambda: [samples[index].name for index in range(len(samples))],
        }
        # processor seconds: what one core does, whoever else uses the machine
        taken = alternating(runs, settings, cpu_time=True)
        why = busiest_functions(runs["sample"])
    both = taken["Pillow"] + taken["Pillow, maps"]
    name, count = f"decoding, a core, {len(files)} {kind}", len(files)
    return [
        Row(f"{name}: Pillow alone", count / taken["Pillow"], "images/s"),
        Row(f"{name}: images as tensors", count / taken["image"], "images/s"),
        Row(f"{name}: images as tensors, against Pillow", taken["Pillow"] / taken["image"], "x", 0.8, "-", False),
        Row(f"{name}: training samples with map and cues", count / taken["sample"], "images/s", limited_by=why),
        Row(f"{name}: training samples, against Pillow reading image and map", both / taken["sample"], "x"),
    ]


def _link_photographs(source: Path, root: Path, count: int) -> None:
    """The first validation images of a VOC folder as a training split: they have maps; cues are made up."""
    random = np.random.default_rng(2)
    lines = (source / "val_cls.txt").read_text().splitlines(keepends=True)[:count]
    for folder in ("Center_points", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages").symlink_to(source / "JPEGImages")
    for folder in ("WSSS_maps", "SegmentationClass"):
        (root / folder).symlink_to(source / "SegmentationClass")
    for split in ("train_aug", "val"):  # the second is asked for, and not read
        (root / f"{split}_cls.txt").write_text("".join(lines))
    for line in lines:
        name, *classes = line.split()
        with Image.open(source / "JPEGImages" / f"{name}.jpg") as image:
            x, y = (random.integers(0, side, len(classes)) for side in image.size)
        text = "".join(f"{a} {b} {c} 1.000\n" for a, b, c in zip(x, y, classes, strict=True))
        (root / "Center_points" / f"{name}.txt").write_text(text)
