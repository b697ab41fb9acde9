"""The tables of the photographs of animals, and their picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from bestie_pl import BestieModule, FolderDataModule, MaskRCNNModule
from bestie_pl.drawing import overlay, sheet, write_picture
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.ops.masks import paint
from bestie_pl.structures import IGNORE, Batch, Instances
from experiments.animals.chain import (
    CLASSIFIERS,
    MAPS,
    OWN,
    POOLINGS,
    SUPERVISIONS,
    TABLE3,
    TABLE4,
    VARIANTS,
    Chain,
    photographs,
    stage_of,
)
from experiments.runs import METRICS, add_seed, curves_of

PICTURE_EVERY = 14
"""Every 14th test photograph by name is in the pictures."""
KINDS = {
    "full supervision": ("full", "full"),
    "points": ("points", "full"),
    "points, maps grown from them": ("points_alone", "full"),
    "tags": ("tags", "full"),
    "points, nearest point in crowded components": ("points_nearest", "full"),
    "points, maps grown from them, nearest point": ("points_alone_nearest", "full"),
    "tags, nearest cue in crowded components": ("tags_nearest", "full"),
    "full supervision, longer": ("full_longer", "full_longer"),
    "tags, another round": ("round2", "full_longer"),
    "tags, nearest cue, another round": ("round2_nearest", "full_longer"),
    "points, maps grown from them, another round": ("points_round2", "full_longer"),
}
"""What is compared with full supervision, and with which: one that has as many steps in all."""
SECOND_STAGE = {
    "tags: BESTIE": "tags",
    "tags: BESTIE †, a Mask R-CNN on its labels": "tags_second",
    "tags: BESTIE, another round on its labels": "round2",
    "points: BESTIE": "points",
    "points: BESTIE †, a Mask R-CNN on its labels": "points_second",
    "full: BESTIE's network on true instances": "full",
    "full: Mask R-CNN on true instances": "full_second",
}
"""The rows of the paper's table 1, and the stage of each."""
WRITTEN = {
    "CAM_maps": "of the classifier",
    "Retrained_maps": "of the semantic round",
    "Retrained2_maps": "of another semantic round",
    "Grown_maps": "grown from points",
    "Alone2_maps": "grown from points, after two semantic rounds",
}
"""The maps that trainings learn from."""
LABELS = {
    "": "",
    "_refined": ", refined at test",
    "_views": ", views at test",
    "_views_refined": ", views, refined at test",
}
"""Of the rows, by how a network was tested."""
PICTURES = 8
SURE = 0.5
"""Least score of a detector's instances in the pictures."""
CUE_THRESHOLD = 0.2
"""That of configs/animals/tags.yaml."""


@dataclass
class Tables:
    """The results of one seed, put beside those of others."""

    chain: Chain
    truth: dict[str, np.ndarray]
    results: Path

    def maps(self) -> None:
        """Mean IoU of maps of training photographs, tags given; undecided pixels count as background."""
        dev = set((self.chain.root / "dev.txt").read_text().split())
        rows: dict[str, dict[str, Any] | None] = {}
        for name in MAPS:
            folder = self.chain.folder / stage_of(f"dev {name}") / "maps"
            rows[f"{name} (development split)"] = quality(folder, self.truth, dev)
        for folder_name, name in WRITTEN.items():
            folder = self.chain.root / self.chain.below_root(folder_name)
            for part, names in (("development split", dev), ("others", set(self.truth) - dev)):
                rows[f"{name} ({part})"] = quality(folder, self.truth, names)
        settings = {f"{name} (development split)": [str(part) for part in row] for name, row in MAPS.items()}
        self.write("maps", rows, "miou", settings)

    def scores(self) -> None:
        """All tables of what is there, but that of the maps: scores on the test photographs, nothing given."""
        self.instances()
        self.write("table1", {name: self.scores_of(stage) for name, stage in SECOND_STAGE.items()})
        self.write(
            "labels", {name: self.quality_of_labels(name) for name in SUPERVISIONS if name != "full"}, "precision"
        )
        settings = {name: list(options) for name, (_, options) in VARIANTS.items()}
        self.write("variants", {name: self.scores_of(stage_of(name)) for name in VARIANTS}, settings=settings)
        self.classifiers()
        stages = {f"{pooling}: {row}": stage_of(f"table3 {pooling} {row}") for pooling in POOLINGS for row in TABLE3}
        self.write("table3", {row: self.scores_of(stage) for row, stage in stages.items()})
        curves = {row: curves_of(self.chain.folder / stage) for row, stage in stages.items()}
        self.write("curves", curves, metric=None)
        self.write("table4", {source: self.scores_of(stage_of(f"table4 {source}")) for source in TABLE4})

    def instances(self) -> None:
        """What is learnt from tags and points beside full supervision."""
        rows: dict[str, dict[str, Any] | None] = {}
        for suffix, label in LABELS.items():
            for name, (stage, reference) in KINDS.items():
                scores, full = self.scores_of(stage + suffix), self.scores_of(reference + suffix)
                share = {"share": scores["map50"] / full["map50"]} if scores and full else {}
                rows[name + label] = scores | share if scores else None
        self.write("instances", rows)

    def classifiers(self) -> None:
        """Tags of the test photographs, and cues of the training photographs."""
        rows: dict[str, dict[str, Any] | None] = {}
        for name in CLASSIFIERS:
            stage = "classifier" if name == OWN else stage_of(f"classifier {name}")
            tested, cues = (self.chain.report(stage, report) for report in ("scores_test", "cue_report"))
            rows[name] = None
            if tested and cues:
                (line,) = (line for line in cues["thresholds"] if abs(line["threshold"] - CUE_THRESHOLD) < 1e-6)
                figures = {key: line[key] for key in ("precision", "recall", "instances_with_one_cue")}
                rows[name] = {"tag_map": tested["scores"]["test/map"]} | figures
        settings = {name: list(options) for name, options in CLASSIFIERS.items()}
        self.write("classifier", rows, "instances_with_one_cue", settings)

    def scores_of(self, stage: str) -> dict[str, Any] | None:
        """Scores on the test photographs, whatever their notes; None if the stage was not tested."""
        report = self.chain.report(stage, "scores_test")
        if report is None:
            return None
        return {m: v for name, v in report["scores"].items() for m in METRICS if name.split("/", 1)[1] == m}

    def quality_of_labels(self, supervision: str) -> dict[str, Any] | None:
        """What the labels of the second stage are worth; None if there are none."""
        path = self.chain.folder / f"{supervision}_labels.report.json"
        return json.loads(path.read_text())["quality"] if path.exists() else None

    def write(
        self,
        name: str,
        rows: dict[str, dict[str, Any] | None],
        metric: str | None = "map50",
        settings: dict[str, list[str]] | None = None,
    ) -> None:
        """Put this seed into a table, if it has something for it."""
        if not any(rows.values()):
            return
        add_seed(
            self.results / f"{name}.json",
            self.chain.seed,
            rows,
            command="python -m experiments.animals ROOT",
            metric=metric,
            settings=settings,
            seconds=self.chain.seconds(),
        )


def draw(chain: Chain, path: Path) -> None:
    """What the networks of the first seed find on some test photographs, chosen by their names."""
    stages = {"tags": "tags", "tags, second stage": "tags_second", "points": "points", "full supervision": "full"}
    checkpoints = {title: chain.folder / name / "checkpoints/last.ckpt" for title, name in stages.items()}
    checkpoints = {title: checkpoint for title, checkpoint in checkpoints.items() if checkpoint.exists()}
    if path.exists() or not checkpoints:
        return
    names = photographs(chain.root, "test")[::PICTURE_EVERY][:PICTURES]
    (chain.root / "pictures.txt").write_text("".join(f"{name}\n" for name in names))
    modules = [
        (MaskRCNNModule if "second" in title else BestieModule).load_from_checkpoint(file, map_location="cpu").eval()
        for title, file in checkpoints.items()
    ]
    rows = []
    for batch in test_batches(chain.root, "pictures.txt"):
        assert batch.references is not None
        with Image.open(chain.root / "images" / f"{batch.names[0]}.jpg") as file:
            image = np.asarray(file.convert("RGB"))
        found = [
            sure(module.predict_step(batch, 0)[0])
            if isinstance(module, MaskRCNNModule)
            else module.predict_instances(batch)[0][0]
            for module in modules
        ]
        shown = [*(worst_first(instances) for instances in found), batch.references[0]]
        rows.append([image, *(overlay(image, paint(instances)) for instances in shown)])
    write_picture(path, sheet(rows, ["photograph", *checkpoints, "ground truth"]))


def test_batches(root: Path, split: str = "test") -> list[Batch]:
    """A test photograph each, with its true instances, at the size that the networks are tested at."""
    data = FolderDataModule(
        str(root),
        annotations="instances_test.json",
        test_split=split,
        supervision="full",
        image_scale=0.45,
        eval_batch_size=1,
        num_workers=0,
    )
    data.setup("test")
    return [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]


def sure(instances: Instances) -> Instances:
    """Those that a detector means, whose others overlap them."""
    kept = (instances.scores >= SURE).nonzero()[:, 0]
    masks = tuple(instances.masks[number] for number in kept.tolist())
    return Instances(masks, instances.classes[kept], instances.scores[kept], instances.size)


def worst_first(instances: Instances) -> Instances:
    """The order in which better ones are painted over worse ones."""
    order = instances.scores.argsort()
    masks = tuple(instances.masks[number] for number in order.tolist())
    return Instances(masks, instances.classes[order], instances.scores[order], instances.size)


def true_maps(root: Path) -> dict[str, np.ndarray]:
    """The true semantic map of each training photograph, by its file name; classes in the order of their names."""
    content = json.loads((root / "instances_train.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    used = sorted({names[annotation["category_id"]] for annotation in content["annotations"]})
    maps = {i["file_name"]: np.zeros((i["height"], i["width"]), np.uint8) for i in images.values()}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        runs = rle.merge(rle.frPyObjects(annotation["segmentation"], image["height"], image["width"]))
        number = used.index(names[annotation["category_id"]]) + 1
        maps[image["file_name"]][rle.decode(runs).astype(bool)] = number
    return maps


def quality(folder: Path, truth: dict[str, np.ndarray], names: set[str]) -> dict[str, Any] | None:
    """Figures of the maps of some photographs; None if one is missing."""
    paths = {name: folder / f"{Path(name).stem}.png" for name in names}
    if not names or not all(path.exists() for path in paths.values()):
        return None
    metric = SemanticIoU(max(int(true.max()) for true in truth.values()))
    undecided = pixels = 0
    for name, path in paths.items():
        semantic = torch.from_numpy(np.array(Image.open(path)))
        undecided += int((semantic == IGNORE).sum())
        pixels += semantic.numel()
        metric.update(semantic.masked_fill(semantic == IGNORE, 0), torch.from_numpy(truth[name]))
    result = metric.compute()
    background = float(result["per_class"][0])
    return {"miou": float(result["miou"]), "background": background, "undecided": undecided / pixels}
