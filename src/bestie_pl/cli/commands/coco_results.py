"""``bestie-pl coco-results``: files of ``predict`` -> one ``results.json`` in COCO's format, for its test servers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestie_pl.data.coco import COCOIndex, read_categories, read_index
from bestie_pl.data.files import below, require_folder, write_text
from bestie_pl.data.formats.predictions import read_rows
from bestie_pl.errors import UserError, expected_one_of
from bestie_pl.progress import progress

REMEDY = "predict all images of the annotation file first"


def main(args: list[str]) -> int:
    """Write the results that the command line asks for, and say how many.

    Raises:
        FileNotFoundError: No such folder or file, or an image without predictions.
        UserError: The annotation file has not COCO's layout; or see ``collect``.
    """
    options = _parser().parse_args(args)
    folder, annotations = Path(options.predictions), Path(options.annotations)
    require_folder(folder, "the files NAME.json that predict wrote, `predictions` in the folder of its run")
    categories = read_categories(annotations)
    index = read_index(annotations, tuple(categories), keep_masks=False)
    results = collect(folder, index, {name: number for number, name in categories.items()})
    write_text(Path(options.output), json.dumps(results))
    print(f"{options.output}: {len(results)} instances of {len(index.names)} images")
    return 0


def collect(folder: Path, index: COCOIndex, categories: Mapping[str, int]) -> list[dict[str, Any]]:
    """All predicted instances, as pycocotools' ``loadRes`` and the test servers take them.

    A class becomes the id of the category of its name, so it does not matter how the data set that was trained on
    counts: COCO's 80 classes have ids up to 90.

    Args:
        folder: What PredictionWriter wrote: ``NAME.json``.
        index: The images to report. Files of others are left out.
        categories: Ids by name.

    Returns:
        ``{"image_id", "category_id", "segmentation", "score"}`` for each instance, in the order of the images.

    Raises:
        FileNotFoundError: An image has no file; an image without instances has one with an empty list.
        UserError: A file is broken, its masks have another size than the image, or a class is no category; or there
            is no instance at all, which ``loadRes`` does not take.
    """
    if missing := [name for name in index.names if not below(folder, f"{name}.json").is_file()]:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(index.names)} images lack predictions, first {missing[0]}.json; {REMEDY}"
        )
    results = []
    images = zip(index.names, index.image_ids.tolist(), index.sizes.tolist(), strict=True)
    for name, image_id, (height, width) in progress(images, "results", total=len(index.names)):
        path = below(folder, f"{name}.json")
        for label, score, code in read_rows(path, (height, width), REMEDY):
            if label not in categories:
                raise UserError(
                    f"{path}: class {label!r} is no category of the annotation file; "
                    f"{expected_one_of(label, categories)}: predict with a network whose classes have these names"
                )
            results.append(
                {
                    "image_id": image_id,
                    "category_id": categories[label],
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                    "score": score,
                }
            )
    if not results:
        raise UserError(
            f"{folder}: no instance in any of {len(index.names)} images; lower inference.threshold, or train more"
        )
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl coco-results",
        description="Join the predictions of `bestie-pl predict` into one results.json for COCO's test servers and "
        "pycocotools.",
    )
    parser.add_argument("--predictions", required=True, help="folder of NAME.json, `predictions` in the run's folder")
    parser.add_argument("--annotations", required=True, help="image_info_test-dev2017.json, or any COCO annotations")
    parser.add_argument("--output", default="results.json", help="file to write (default: results.json)")
    return parser
