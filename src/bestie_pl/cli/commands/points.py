"""``bestie-pl points``: what annotation programs write -> one point per object, checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bestie_pl.errors import UserError

if TYPE_CHECKING:  # `bestie-pl points --help` answers without torch
    from bestie_pl.data.annotation_tools.marked import MarkedImage

SOURCES = {
    "coco": "annotation file: keypoint, else a pixel of the segmentation, else the centre of the box",
    "labelme": "file, or folder of them: point, rectangle, circle, polygon, mask; a group_id is one object",
    "cvat": "`CVAT for images 1.1`, annotations.xml: points, box, ellipse, polygon, mask; a group_id is one object",
    "labelstudio": "export JSON: keypoints, rectangles, ellipses, polygons and brushes with labels",
    "via": "project of VIA 2 or exported annotations, JSON or CSV: point, rect, circle, ellipse, polygon",
    "csv": "image,x,y,class[,confidence]; 0 is the centre of the first pixel",
    "json": "the form that this command writes",
}


def main(args: list[str]) -> int:
    """Convert, check and write.

    Raises:
        FileNotFoundError: No such file, or an image that is not in ``--images``.
        UserError: Names file, image and field of what is wrong.
    """
    options = _parser().parse_args(args)
    from bestie_pl.data.annotation_tools.readers import read_marked
    from bestie_pl.data.files import write_text
    from bestie_pl.data.formats.classes import alike
    from bestie_pl.data.formats.points import image_name, tag_csv, to_json, write_release

    config = None if options.label_config is None else Path(options.label_config)
    marked = read_marked([Path(path) for path in options.inputs], options.source, config)
    if options.images is not None:
        _match(marked.images, Path(options.images))
    points = marked.points(Path(options.inputs[0]), options.classes)
    output = Path(options.output)
    _check_outputs(output, options)
    tags = None if options.tags is None else tag_csv(points, (image.tags for image in marked.images))
    if tags is not None and not options.overwrite:
        _keep_edited(Path(options.tags), tags)
    if output.suffix.lower() == ".json":
        write_text(output, to_json(points))
    else:
        if options.classes is None:
            _keep_numbers(output, {f"{image_name(file)}.txt" for file in points.files})
        write_release(points, output)
    if tags is not None:
        write_text(Path(options.tags), tags)
    counts = points.classes.long().bincount(minlength=len(points.class_names)).tolist()
    for group in alike(points.class_names):
        print(f"class names that differ by little: {', '.join(group)}; is it one class?", file=sys.stderr)
    print(f"{len(points.classes)} points in {len(points)} images: {output}")
    for number, (name, count) in enumerate(zip(points.class_names, counts, strict=True)):
        print(f"  class {number}  {name}: {count}")
    return 0


def _check_outputs(output: Path, options: argparse.Namespace) -> None:
    """Raise UserError if an annotation file would be written over, or if points were to become another kind of file."""
    for name, path in (("--output", output), ("--tags", None if options.tags is None else Path(options.tags))):
        if path is not None and path.exists() and any(path.samefile(file) for file in options.inputs):
            raise UserError(f"{name} {path}: is what the points are read from; give another file")
    if output.suffix.lower() in (".csv", ".txt", ".xml") and not output.is_dir():
        raise UserError(f"--output {output}: expected a .json file, or a folder for text files NAME.txt")


def _keep_numbers(folder: Path, own: set[str]) -> None:
    """Raise UserError if text files of other images stay, whose class numbers may mean other classes by now."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
    if others := sorted(there - own):
        raise UserError(
            f"--output {folder}: has {others[0]}, whose class numbers may mean others; give --classes in the order "
            "that they have there, or another folder"
        )


def _keep_edited(path: Path, content: str) -> None:
    """Raise UserError if a file holds something else than what would be written: splits are made by editing it."""
    if path.exists() and path.read_bytes() != content.encode(errors="backslashreplace"):
        raise UserError(
            f"{path}: exists and differs, perhaps by what you edited; give another file as --tags, or --overwrite it"
        )


def _match(images: Iterable[MarkedImage], folder: Path) -> None:
    """Give the images the paths that they have in a folder, and compare their sizes.

    Leading folders that another computer had are left off. Sizes are those after turning as the EXIF orientation says.
    """
    from bestie_pl.data.files import plain_problem, require_folder
    from bestie_pl.data.formats.images import find_image, image_size
    from bestie_pl.progress import progress

    require_folder(folder, "the images; give it as --images")
    for image in progress(images, "images"):
        parts = image.file.split("/")
        endings = [ending for k in range(len(parts)) if not plain_problem(ending := "/".join(parts[k:]))]
        paths = (find_image(folder, ending) for ending in endings)  # some programs leave out the suffix
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"no such image: {folder / image.file}; expected the folder of the images in --images"
            )
        image.file = path.relative_to(folder).as_posix()
        size = image_size(path)
        if image.size is not None and image.size != size:
            raise UserError(
                f"{path}: is {size[1]} x {size[0]} px (width x height, turned as its EXIF orientation says) "
                f"but was {image.size[1]} x {image.size[0]} when it was annotated; use the annotated images"
            )
        image.size = size


def _parser() -> argparse.ArgumentParser:
    sources = "\n".join(f"  {name:<12}{reads}" for name, reads in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="bestie-pl points",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Read the objects of an annotation file, and write one point for each of them.",
        epilog=f"formats:\n{sources}\n\nFolderDataModule reads what this writes. A .json file holds class names, text "
        "files the numbers\nthat are printed.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files of one format")
    parser.add_argument("--from", dest="source", required=True, choices=SOURCES, help="their format")
    parser.add_argument(
        "--output", required=True, help="a .json file, or a folder for text files of the release's format"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names in the order of their numbers; if omitted, COCO's categories by id, else the names sorted",
    )
    parser.add_argument(
        "--images", metavar="FOLDER", help="find the images here, and compare their sizes with the files'"
    )
    parser.add_argument(
        "--label-config",
        metavar="FILE",
        help="Label Studio's labelling configuration (XML): which of a task's images regions are on, if it has several",
    )
    parser.add_argument(
        "--tags",
        metavar="FILE",
        help="also write the images' tags, a CSV for FolderDataModule; all are in the split train, until you edit it",
    )
    parser.add_argument("--overwrite", action="store_true", help="write the file of tags anew even if it was edited")
    return parser
