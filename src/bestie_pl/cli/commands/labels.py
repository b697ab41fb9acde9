"""``bestie-pl labels``: a training set's predictions -> labels for a second stage, one COCO file with scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestie_pl.cli.lightning import BestieParser, data_parser, read_data_module
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.files import require_folder, write_json, write_text
from bestie_pl.data.formats.images import image_size
from bestie_pl.data.formats.predictions import REMEDY, read_predictions
from bestie_pl.data.formats.truth import paint_instances
from bestie_pl.data.labels import choose, to_annotations
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import Split
from bestie_pl.errors import UserError
from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.ops.masks import encode
from bestie_pl.ops.transfer import instances_from_map
from bestie_pl.progress import progress
from bestie_pl.structures import Cues, Instances, LabeledInstances

MOST = 100
"""Labels of an image at most. Source: COCO, whose evaluation looks at so many."""


def main(args: list[str]) -> int:
    """Write the labels that the command line asks for, and a report of them beside.

    Kept are predictions that are sure (``label_threshold``), large (``min_area``) and of a class that the image is
    tagged with; of an image with points those that hold exactly one point of their class. True instances are opened
    only if the configuration says ``label_quality: true``, and only to measure the labels.

    Raises:
        FileNotFoundError: No such folder, or an image without predictions.
        ValueError: Names file and field of what is wrong.
    """
    data, options = read_data_module(_parser(), args)
    if not isinstance(data, InstanceDataModule):
        raise ValueError(f"data must be an InstanceDataModule, whose splits state tags; got {type(data).__name__}")
    if options.max_per_image < 1:
        raise ValueError(f"--max_per_image must be at least 1, got {options.max_per_image}")
    folder, output = Path(options.predictions), Path(options.output)
    if output.suffix != ".json":
        raise ValueError(f"--output must be the path of a .json file, got {output}")
    require_folder(folder, f"predicted instances NAME.json of the training images; {REMEDY}")
    content, report = _collect(data, folder, options.max_per_image)
    if not report["labels"]:
        raise UserError(
            f"{folder}: none of the predictions for {report['images']} images becomes a label; lower label_threshold "
            "or min_area, or train the first stage longer"
        )
    write_text(output, json.dumps(content))
    write_json(output.with_suffix(".report.json"), report)
    print("\n".join([f"{output}: {report['labels']} labels of {report['images']} images", *_lines(report)]))
    return 0


def _collect(data: InstanceDataModule, folder: Path, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The annotation file, and the report."""
    data.prepare_data()
    split = data.open_split("train")
    assert split.tags is not None  # training splits have them
    min_area = max(1, round(data.geometry.min_area / data.image_scale**2))  # in pixels of the files
    quality = LabelQuality()
    precisions: dict[str, VOCInstanceAP | COCOInstanceAP] = {
        "voc": VOCInstanceAP(data.num_classes),
        "coco": COCOInstanceAP(data.num_classes),
    }
    categories = list(data.category_ids if isinstance(data, COCODataModule) else range(1, data.num_classes + 1))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts, tags_without = torch.zeros(2, data.num_classes, dtype=torch.int64)
    points_in_all, pointed = 0, data.supervision == "points" and not split.mixed
    for index, name in enumerate(progress(split.names, "labels")):
        path, tags = Path(split.images[index]), split.tags[index]
        size = image_size(path)
        points = _points(data, split, index, size)
        if points is not None:
            points_in_all += len(points)
        least = 0.0 if points is not None else data.label_threshold  # points say what an object is
        found = read_predictions(folder, name, size, data.class_names, tags=tags, least_share=least, min_area=min_area)
        ids, classes, scores = choose(*found, points=points, most=most)
        image_id = data.image_ids[name] if isinstance(data, COCODataModule) else index + 1
        images.append({"id": image_id, "file_name": name + path.suffix, "height": size[0], "width": size[1]})
        annotations += to_annotations(
            ids, classes, scores, image_id=image_id, first_id=len(annotations) + 1, category_ids=categories
        )
        of_class = classes.bincount(minlength=data.num_classes)
        counts += of_class
        tags_without += tags & (of_class == 0)
        if data.label_quality and split.truth is not None and split.truth.known(index):
            truth = split.truth(index, size).instances
            labels = Instances(encode(ids)[1], classes, scores, size)
            for metric in precisions.values():
                metric.update([labels], [truth], [name])
            quality.update(_table(ids, classes), _table(*paint_instances(truth)))
    report: dict[str, Any] = {
        "images": len(images),
        "labels": len(annotations),
        "images_without_labels": len(images) - len({a["image_id"] for a in annotations}),
        "tags_without_labels": int(tags_without.sum()),
        "points_without_labels": points_in_all - len(annotations) if pointed else None,
        "classes": {
            name: {"labels": labels, "tags_without_labels": without}
            for name, labels, without in zip(data.class_names, counts.tolist(), tags_without.tolist(), strict=True)
        },
        "rules": {
            "supervision": data.supervision,
            "label_threshold": None if pointed else data.label_threshold,  # of images that have tags only
            "min_area": min_area,
            "max_per_image": most,
        },
        "quality": None,
    }
    if quality.update_called:
        scores_of = {f"{kind}_{key}": value for kind, m in precisions.items() for key, value in m.compute().items()}
        figures = quality.compute() | {key: v for key, v in scores_of.items() if not key.endswith("per_class")}
        report["quality"] = {key: round(float(v), 4) for key, v in figures.items() if not v.isnan()}
    description = "labels predicted by a first stage, not true instances"
    content = {
        "info": {"description": description, "rules": report["rules"]},
        "images": images,
        "categories": [{"id": c, "name": n} for c, n in zip(categories, data.class_names, strict=True)],
        "annotations": annotations,
    }
    return content, report


def _points(data: InstanceDataModule, split: Split, index: int, size: tuple[int, int]) -> Cues | None:
    """The given points of an image, as training takes them; None if it has tags only."""
    if data.supervision != "points":
        return None
    cues, pointed = split.read_cues(index, size, data.num_classes)
    assert split.tags is not None  # training splits have them
    return (
        None if pointed is False else cues.select((cues.scores > data.cue_threshold) & split.tags[index][cues.classes])
    )


def _table(ids: Tensor, classes: Tensor) -> LabeledInstances:
    """Instances of one image as a batch of one."""
    return instances_from_map(
        ids[None], torch.zeros(len(classes) + 1, dtype=torch.int64), torch.cat([torch.tensor([-1]), classes])
    )


def _lines(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    lines = [
        f"  {name}: {row['labels']}, and {row['tags_without_labels']} tags without a label"
        for name, row in report["classes"].items()
    ]
    if report["points_without_labels"] is not None:
        lines.append(f"  points without a label: {report['points_without_labels']}")
    if quality := report["quality"]:
        shown = ("precision", "recall", "mean_iou", "voc_map50", "coco_ap")
        lines.append("  against the truth: " + ", ".join(f"{key} {quality[key]}" for key in shown if key in quality))
    return lines


def _parser() -> BestieParser:
    parser = data_parser(
        "labels", "Choose from the predictions of training images those that a second stage learns, as a COCO file."
    )
    add = parser.add_argument
    add("--predictions", type=str, required=True, help="Folder of NAME.json, `predictions` in the run's folder")
    add("--output", type=str, required=True, help="The .json file to write; a report goes beside it")
    add("--max_per_image", type=int, default=MOST, help="Labels of an image at most, the surest ones")
    return parser
