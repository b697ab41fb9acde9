"""``bestie-pl segment``: a trained network and images of any kind -> overlays, label images, tables, COCO's JSON."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]  # a requirement of Lightning

from bestie_pl.data.files import check_unique, write_json
from bestie_pl.errors import UserError
from bestie_pl.prediction.engine import OVERLAP, TILE
from bestie_pl.prediction.result import Result
from bestie_pl.prediction.sources import find_files
from bestie_pl.predictor import BestiePredictor
from bestie_pl.progress import progress

KINDS = {"overlays": ".png", "labels": ".png", "tables": ".csv", "coco": ".json"}
"""What can be written, each into a folder of this name, and how the files end."""


MARK = ".segment"
"""A hidden file in each of these folders: what is in them may be written over, and is no input."""


def main(args: list[str]) -> int:
    """Find the objects in the images that the command line names, and write what it asks for.

    Raises:
        FileNotFoundError: No such checkpoint or image.
        ValueError: No checkpoint of a network that finds instances, a broken image, or two images of one name.
    """
    options = _parser().parse_args(args)
    if not 0 <= options.min_score <= 1:
        raise UserError(f"--min_score {options.min_score:g}; expected a number from 0 to 1")
    folders = [Path(options.out, kind) for kind in KINDS]
    written = [folder.resolve() for folder in folders if (folder / MARK).exists()]
    files = [named for source in options.sources for named in _find(source, written)]
    check_unique(Path(options.out), [name for name, _ in files])
    predictor = BestiePredictor.load(
        options.checkpoint,
        image_scale=options.image_scale,
        device=options.device,
        tile=options.tile,
        overlap=options.overlap,
    )
    out, kinds = Path(options.out), list(dict.fromkeys(options.write))
    try:
        _claim([out / kind for kind in kinds])
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder that can be written") from error
    found = 0
    for name, path in progress(files, "segment"):
        (result,) = predictor(path)
        result = result.above(options.min_score)
        for kind in kinds:
            _write(result, kind, out / kind / f"{name}{KINDS[kind]}")
        counts = ", ".join(f"{count} {label}" for label, count in Counter(result.class_names).most_common())
        tqdm.write(f"{path}: {counts or 'nothing found'}")  # above the bar
        found += len(result)
    print(f"{found} instances in {len(files)} images, written to " + ", ".join(f"{out / kind}" for kind in kinds))
    return 0


def _claim(folders: Sequence[Path]) -> None:
    """Make and mark the folders that are written to; refuse one with files of somebody else's, before any is made."""
    for folder in folders:
        if folder.is_dir() and not (folder / MARK).exists() and any(folder.iterdir()):
            raise UserError(
                f"--out {folder.parent}: its folder {folder.name} has files that `segment` did not write; "
                "give another folder"
            )
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()


def _find(source: str, written: Sequence[Path]) -> list[tuple[str, Path]]:
    """The image files of a source, without those that an earlier run wrote there, unless it asks for these."""
    kept, asked = [], Path(source).resolve()
    for name, path in find_files(source):
        folder = next((folder for folder in written if path.resolve().is_relative_to(folder)), None)
        if folder is None or asked.is_relative_to(folder):
            kept.append((name, path))
    if not kept:
        raise FileNotFoundError(f"{source}: no image there but what `segment` wrote; give other images")
    return kept


def _write(result: Result, kind: str, path: Path) -> None:
    if kind == "overlays":
        result.save(path)
    elif kind == "labels":
        result.to_label_image(path)
    elif kind == "tables":
        result.to_csv(path)
    else:
        rows = result.to_coco()
        write_json(path, [{**row, "class": name} for row, name in zip(rows, result.class_names, strict=True)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl segment",
        description="Find objects in images with a trained network. Large images are looked at tile by tile.",
    )
    add = parser.add_argument
    add("sources", nargs="+", help="image files, folders, or patterns such as 'photos/*.jpg'")
    add("--checkpoint", required=True, help="RUN/checkpoints/last.ckpt, or what `bestie-pl export` wrote")
    add("--out", default="segmented", help="folder to write to (default: segmented)")
    add(
        "--write",
        nargs="+",
        choices=list(KINDS),
        default=["overlays"],
        help="overlays: pictures; labels: 16-bit images of numbers; tables: CSV of areas, centroids and boxes; coco: "
        "JSON with run-length codes (default: overlays)",
    )
    add("--min_score", type=float, default=0.0, help="leave out instances with a lower score (default: 0)")
    add("--image_scale", type=float, help="enlarge images by this factor (default: as in training)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--tile", type=int, default=TILE, help=f"side of a tile in pixels (default: {TILE})")
    add("--overlap", type=int, default=OVERLAP, help=f"of neighbouring tiles (default: {OVERLAP})")
    return parser
