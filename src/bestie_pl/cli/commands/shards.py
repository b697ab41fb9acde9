"""``bestie-pl data shards``: a folder of images, and of labels, as tar files in WebDataset's layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from bestie_pl.data.files import files_below, require_folder
from bestie_pl.data.formats.images import IMAGE_SUFFIXES
from bestie_pl.data.shards import write_shards
from bestie_pl.errors import UserError


def main(args: list[str]) -> int:
    """Write the shards that the command line asks for, and say how a configuration names them.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No image in it, or shards that are there already.
    """
    options = _parser().parse_args(args)
    images = require_folder(Path(options.images), "a folder of images")
    labels = [require_folder(Path(folder), "a folder of NAME.png or NAME.txt") for folder in options.labels]
    out = Path(options.out)
    if options.megabytes < 1:
        raise UserError(f"--megabytes must be 1 or more, got {options.megabytes}")
    if found := sorted(out.glob("*.tar")):
        raise UserError(f"{found[0]} is there already; remove the shards, or give another folder as --out")
    paths = (path for path in files_below(images) if path.suffix.lower() in IMAGE_SUFFIXES)
    files = [path.relative_to(images).as_posix() for path in paths]
    if not files:
        raise UserError(f"{images}: no image in it; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    shards = 0
    for path, count in write_shards(images, files, labels, out, shard_bytes=options.megabytes * 10**6):
        print(f"{path}: {count} images", flush=True)
        shards += 1
    print(f"{len(files)} images in {shards} shards. With root {out.parent}, the data's arguments are")
    print(f"  images: {out.name}/*.tar")
    for folder in labels:
        print(f"  {out.name}/*.tar/{folder.name} in the place of the folder {folder.name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl data shards",
        description="Write the images of a folder, with the label files of other folders beside them, into tar files "
        "of some size, for file systems that are slow with many small files.",
    )
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of the images, with subfolders")
    add("--labels", nargs="+", default=[], metavar="FOLDER", help="folders of NAME.png or NAME.txt: maps, cues, points")
    add("--out", required=True, help="folder to write to, beside the file of tags")
    add("--megabytes", type=int, default=500, help="of a shard (default: 500)")
    return parser
