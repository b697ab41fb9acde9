"""A generated data set in PASCAL VOC's layout, so that everything downstream reads ordinary files."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bestie_pl.data.formats.maps import indexed_image
from bestie_pl.data.generator.drawings import SHAPE_CLASSES, Bytes
from bestie_pl.data.generator.imperfect_maps import imperfect_map
from bestie_pl.data.generator.scenes import Scene, draw_scene
from bestie_pl.progress import progress

__all__ = ["SHAPE_CLASSES", "generate_shapes"]

STREAMS = {"train": 0, "val": 1, "test": 3}
"""Random streams of the splits. Version 1 had stream 2 for tests, whose scores were seen while settings were chosen."""
GENERATOR_VERSION = 2
"""Raised by every change of the generated files, so that data of an older generator is not taken for new."""

MIN_SIZE = 32  # below, the smallest objects are a few pixels
JPEG_QUALITY = 90
PARAMETER_FILE = "shapes.json"
FOLDERS = (
    "JPEGImages",
    "SegmentationClass",
    "SegmentationObject",
    "Annotations",
    "Center_points",
    "WSSS_maps",
    "ImageSets/Segmentation",
    "ImageSets/Main",
)


def generate_shapes(
    root: Path | str,
    *,
    train: int = 1000,
    val: int = 100,
    test: int = 200,
    size: int = 128,
    seed: int = 0,
    clutter: float = 1.0,
    workers: int | None = None,
) -> None:
    """Write a data set of textured, overlapping objects in VOC layout, with points and imperfect semantic maps.

    ===================================  ==============================================================================
    ``JPEGImages/ID.jpg``                the image
    ``SegmentationClass/ID.png``         palette PNG: 0 background, ``c + 1`` class ``c``
    ``SegmentationObject/ID.png``        palette PNG: 0 background, 1..n the visible parts of the objects
    ``Annotations/ID.xml``               tight boxes, counted from 1, one an object in the order of the ids
    ``Center_points/ID.txt``             ``x y class conf`` an object: its own pixel nearest to its centroid, conf 1.000
    ``WSSS_maps/ID.png``                 training and validation images: ``imperfect_maps.imperfect_map``
    ``ImageSets/Segmentation/SPLIT.txt`` the names of a split
    ``ImageSets/Main/CLASS_SPLIT.txt``   the names and +1 or -1
    ``SPLIT_cls.txt``                    ``ID class class ...``, the tags
    ``classes.txt``, ``shapes.json``     the class names; the parameters
    ===================================  ==============================================================================

    The folder is complete or absent: files are written beside it and moved at the end. If it holds a data set with
    the same parameters, nothing happens. An image depends on ``size``, ``seed``, ``clutter``, its split and its number
    alone.

    Args:
        root: Folder to make; it may exist if it is empty.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images; these get no imperfect maps.
        size: Side of the square images in pixels. Objects scale with it: they are a sixth to just over half as long.
        seed: Not negative.
        clutter: Strength of textures and number of things that belong to no class, in [0, 1]: with little of both,
            outlines can be found by colour.
        workers: Processes; all available cores if None. With more than one, a script must call this under
            ``if __name__ == "__main__"``, as always with new processes.

    Raises:
        ValueError: A parameter is out of range, or ``root`` holds something else.
    """
    root = Path(root).absolute()  # "." has no parent to write in
    counts = {"train": train, "val": val, "test": test}
    wrong = min(counts.values()) < 0 or seed < 0 or size < MIN_SIZE or not 0 <= clutter <= 1
    if wrong or (workers is not None and workers < 1):
        raise ValueError(
            f"expected counts and seed >= 0, size >= {MIN_SIZE}, clutter in [0, 1] and workers >= 1; "
            f"got {counts}, seed {seed}, size {size}, clutter {clutter}, workers {workers}"
        )
    parameters = {
        "generator": GENERATOR_VERSION,
        "size": size,
        "seed": seed,
        "clutter": clutter,
        "counts": counts,
        "classes": list(SHAPE_CLASSES),
    }
    if _is_complete(root, parameters):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        folder = Path(temporary) / "data"  # mode and name of the temporary folder itself are not those of a data set
        _write_all(folder, parameters, workers or _available_cores())
        try:
            folder.rename(root)
        except OSError:
            # another process may have been faster
            if not _is_complete(root, parameters):
                raise


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_complete(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether ``root`` holds the data set asked for; False if it is absent or empty, an error if it holds another."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file = root / PARAMETER_FILE
    if not file.is_file():
        raise ValueError(f"{root} exists but has no {PARAMETER_FILE}; choose another folder, or remove it")
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} cannot be read ({error}); remove {root} to generate it again") from error
    if found != parameters:
        raise ValueError(
            f"{file} says that the folder was generated with {found}, but {parameters} was asked for; "
            f"choose another folder, or remove {root} to generate it again"
        )
    return True


@dataclass(frozen=True)
class _Job:
    """One image: everything that its files depend on."""

    folder: Path
    split: str
    index: int
    size: int
    seed: int
    clutter: float

    @property
    def name(self) -> str:
        return f"{self.split}_{self.index:06d}"

    def generator(self, stream: int) -> np.random.Generator:
        """Streams are independent, so the picture does not change if the map's recipe does."""
        split = STREAMS[self.split]
        return np.random.default_rng([self.seed, split, self.index, stream])


def _write_all(folder: Path, parameters: dict[str, Any], workers: int) -> None:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    counts = parameters["counts"]
    common = {name: parameters[name] for name in ("size", "seed", "clutter")}
    jobs = [_Job(folder, split, i, **common) for split, count in counts.items() for i in range(count)]
    if min(workers, len(jobs)) <= 1:
        tags = [_write_image(job) for job in progress(jobs, "scenes")]
    else:
        # spawn: a fork of a process in which other threads run may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            drawn = pool.map(_write_image, jobs, chunksize=max(1, min(16, len(jobs) // workers)))
            tags = list(progress(drawn, "scenes", total=len(jobs)))
    for split in counts:
        _write_lists(folder, split, {j.name: t for j, t in zip(jobs, tags, strict=True) if j.split == split})
    _write_lines(folder / "classes.txt", SHAPE_CLASSES)
    (folder / PARAMETER_FILE).write_text(json.dumps(parameters, indent=2) + "\n")


def _write_lists(folder: Path, split: str, tags: dict[str, tuple[int, ...]]) -> None:
    """The lists of a split from its images' tags."""
    _write_lines(folder / f"ImageSets/Segmentation/{split}.txt", tags)
    _write_lines(folder / f"{split}_cls.txt", (" ".join([n, *map(str, t)]) for n, t in tags.items()))
    for c, name in enumerate(SHAPE_CLASSES):
        flags = (f"{n} {1 if c in t else -1:2d}" for n, t in tags.items())
        _write_lines(folder / f"ImageSets/Main/{name}_{split}.txt", flags)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _write_image(job: _Job) -> tuple[int, ...]:
    """Draw one scene and write its files.

    Returns:
        The classes that are in it.
    """
    scene = draw_scene(job.generator(0), job.size, job.clutter)
    Image.fromarray(scene.image).save(job.folder / f"JPEGImages/{job.name}.jpg", quality=JPEG_QUALITY)
    _write_indexed(job.folder / f"SegmentationClass/{job.name}.png", scene.semantic)
    _write_indexed(job.folder / f"SegmentationObject/{job.name}.png", scene.ids)
    _write_annotation(job, scene)
    points = [
        f"{x} {y} {c} 1.000"
        for (y, x), c in ((_nearest_to_centroid(scene.ids == i), c) for i, c in enumerate(scene.classes, start=1))
    ]
    _write_lines(job.folder / f"Center_points/{job.name}.txt", points)
    if job.split != "test":
        _write_indexed(job.folder / f"WSSS_maps/{job.name}.png", imperfect_map(job.generator(1), scene))
    return tuple(sorted(set(scene.classes)))


def _nearest_to_centroid(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(y, x) of the mask's own pixel nearest to its centroid; the first one in row-major order on a tie."""
    y, x = np.nonzero(mask)
    nearest = ((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin()
    return int(y[nearest]), int(x[nearest])


def _write_indexed(path: Path, values: Bytes) -> None:
    """A palette PNG in VOC's colours."""
    indexed_image(values).save(path, optimize=False)


def _write_annotation(job: _Job, scene: Scene) -> None:
    """VOC's XML: boxes of the visible parts, counted from 1."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{job.name}.jpg"
    _add(ElementTree.SubElement(root, "size"), width=job.size, height=job.size, depth=3)
    _add(root, segmented=1)
    for i, c in enumerate(scene.classes, start=1):
        y, x = np.nonzero(scene.ids == i)
        at_border = min(y.min(), x.min()) == 0 or max(y.max(), x.max()) == job.size - 1
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = SHAPE_CLASSES[c]
        _add(entry, truncated=int(at_border), difficult=0)
        box = ElementTree.SubElement(entry, "bndbox")
        _add(box, xmin=x.min() + 1, ymin=y.min() + 1, xmax=x.max() + 1, ymax=y.max() + 1)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(job.folder / f"Annotations/{job.name}.xml")


def _add(parent: ElementTree.Element, **values: int) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)
