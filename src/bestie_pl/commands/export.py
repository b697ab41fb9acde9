"""``bestie-pl export``: the files of ``predict`` -> one ``results.json`` in COCO's format, for its test servers."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REMEDY = "predict all images of the annotation file with PredictionWriter first"


class Picture(NamedTuple):
    """An image of an annotation file: its ``name`` without suffix, its id and (height, width)."""

    name: str
    image_id: int
    size: tuple[int, int]


def main(args: list[str]) -> int:
    """Write the results that the command line asks for, and say how many.

    Raises:
        FileNotFoundError: No such folder or file, or an image without predictions.
        ValueError: See ``read_annotations`` and ``collect``.
    """
    options = _parser().parse_args(args)
    from bestie_pl.data.files import require_folder, write_text

    folder, annotations = Path(options.predictions), Path(options.annotations)
    require_folder(folder, "the files NAME.json that predict wrote, `predictions` in the folder of its run")
    pictures, categories = read_annotations(annotations)
    results = collect(folder, pictures, categories)
    write_text(Path(options.output), json.dumps(results))
    print(f"{options.output}: {len(results)} instances of {len(pictures)} images")
    return 0


def read_annotations(path: Path) -> tuple[list[Picture], dict[str, int]]:
    """Images, and category names with their ids, of a COCO annotation file; ``annotations`` in it are not needed.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not COCO's layout, or two images or categories of one name.
    """
    from bestie_pl.data.files import check_unique, read_text

    text = read_text(path, "a COCO annotation file, such as image_info_test-dev2017.json")
    try:
        content = json.loads(text)
        pictures = [
            Picture(_name(image["file_name"]), int(image["id"]), (int(image["height"]), int(image["width"])))
            for image in content["images"]
        ]
        categories = [(str(category["name"]), int(category["id"])) for category in content["categories"]]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: is no COCO annotation file ({error!r}); expected `images` with id, file_name, height and width, "
            "and `categories` with id and name"
        ) from error
    if not pictures:
        raise ValueError(f"{path}: lists no images")
    check_unique(path, [picture.name for picture in pictures])
    if len(dict(categories)) < len(categories):
        raise ValueError(f"{path}: two categories have one name; predictions know their class by name")
    return pictures, dict(categories)


def collect(folder: Path, pictures: Sequence[Picture], categories: dict[str, int]) -> list[dict[str, Any]]:
    """All predicted instances, as pycocotools' ``loadRes`` and the test servers take them.

    A class becomes the id of the category of its name, so it does not matter how the data set that was trained on
    counts: COCO's 80 classes have ids up to 90.

    Args:
        folder: What PredictionWriter wrote: ``NAME.json``.
        pictures: The images to report. Files of others are left out.
        categories: Ids by name.

    Returns:
        ``{"image_id", "category_id", "segmentation", "score"}`` for each instance, in the order of ``pictures``.

    Raises:
        FileNotFoundError: An image has no file; an image without instances has one with an empty list.
        ValueError: A file is broken, its masks have another size than the image, or a class is no category; or there
            is no instance at all, which ``loadRes`` does not take.
    """
    missing = [picture.name for picture in pictures if not (folder / f"{picture.name}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(pictures)} images lack predictions, first {missing[0]}.json; {REMEDY}"
        )
    results = [result for picture in pictures for result in _read(folder, picture, categories)]
    if not results:
        raise ValueError(f"{folder}: no instance in any of {len(pictures)} images; lower test_threshold, or train more")
    return results


def _read(folder: Path, picture: Picture, categories: dict[str, int]) -> list[dict[str, Any]]:
    from bestie_pl.data.files import check_size, read_text

    path = folder / f"{picture.name}.json"
    results: list[dict[str, Any]] = []
    try:
        for record in json.loads(read_text(path, "predicted instances of the image")):
            code = record["segmentation"]
            height, width = (int(side) for side in code["size"])
            results.append(
                {
                    "image_id": picture.image_id,
                    "category_id": str(record["class"]),
                    "segmentation": {"size": [height, width], "counts": str(code["counts"])},
                    "score": float(record["score"]),
                }
            )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no predicted instances ({error!r}); {REMEDY}") from error
    for result in results:
        if result["category_id"] not in categories:
            raise ValueError(
                f"{path}: class {result['category_id']!r} is no category of the annotation file "
                f"({', '.join(list(categories)[:4])}, ...); predict with a network whose classes have these names"
            )
        check_size(path, result["segmentation"]["size"], picture.size)
        result["category_id"] = categories[result["category_id"]]
    return results


def _name(file: str) -> str:
    """As the data modules and their predictions have it: with subfolders, without suffix."""
    return os.path.splitext(os.path.normpath(file))[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl export",
        description="Join the predictions of `bestie-pl predict` into one results.json for COCO's test servers and "
        "pycocotools.",
    )
    parser.add_argument("--predictions", required=True, help="folder of NAME.json, `predictions` in the run's folder")
    parser.add_argument("--annotations", required=True, help="image_info_test-dev2017.json, or any COCO annotations")
    parser.add_argument("--output", default="results.json", help="file to write (default: results.json)")
    return parser
