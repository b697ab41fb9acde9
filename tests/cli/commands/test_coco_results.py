"""``bestie-pl coco-results``: from the files of predict to what pycocotools and COCO's test servers take."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.cli.main import main
from bestie_pl.data.coco import COCODataModule
from bestie_pl.metrics import COCOInstanceAP
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.structures import Instances


def join(folder: Path, annotations: Path, output: Path) -> int:
    command = ["coco-results", "--predictions", str(folder), "--annotations", str(annotations), "--output", str(output)]
    return main(command)


def score(annotations: Path, results: Path) -> dict[str, float]:
    """What pycocotools says of the two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("ap", "ap50", "ap75"), evaluation.stats[:3], strict=True))


# ---------------------------------------------------------------- real photographs, COCO's categories


@pytest.fixture(scope="module")
def coco_tiny(real_data: Path) -> COCODataModule:
    names = {f"{split}_images": "images" for split in ("train", "val")}
    names |= {f"{split}_annotations": f"instances_{split}.json" for split in ("train", "val")}
    data = COCODataModule(str(real_data / "coco_tiny"), num_workers=0, **names)
    data.setup("validate")
    return data


def write_predictions(data: COCODataModule, folder: Path, change: Callable[[Instances], Instances]) -> COCOInstanceAP:
    """Write changed ground truth as ``predict`` does; the metric has seen the same."""
    metric = COCOInstanceAP(data.num_classes)
    module, trainer = SimpleNamespace(class_names=data.class_names), SimpleNamespace(datamodule=data)
    samples = data.datasets["val"]
    for number in range(len(samples)):
        sample = samples[number]
        prediction = change(sample.references)
        metric.update([prediction], [sample.references], [sample.name])
        PredictionWriter(str(folder)).write_on_batch_end(
            trainer,  # type: ignore[arg-type]
            module,  # type: ignore[arg-type]
            [prediction],
            None,
            SimpleNamespace(names=(sample.name,)),
            0,
            0,
        )
    return metric


def test_the_truth_itself_scores_1(coco_tiny: COCODataModule, tmp_path: Path) -> None:
    """All 80 categories come back with ids of up to 90, all images with theirs; crowd regions are no objects."""

    def without_crowds(truth: Instances) -> Instances:
        assert truth.crowd is not None
        kept = (~truth.crowd).nonzero().flatten()
        masks = tuple(truth.masks[i] for i in kept.tolist())
        return Instances(masks, truth.classes[kept], truth.scores[kept], truth.size)

    write_predictions(coco_tiny, tmp_path / "predictions", without_crowds)
    annotations = coco_tiny.root / "instances_val.json"
    assert join(tmp_path / "predictions", annotations, tmp_path / "results.json") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    truth = json.loads(annotations.read_text())
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    assert sorted((r["image_id"], r["category_id"]) for r in results) == sorted(
        (a["image_id"], a["category_id"]) for a in objects
    )
    assert max(r["category_id"] for r in results) > 80 and min(r["category_id"] for r in results) == 1
    assert score(annotations, tmp_path / "results.json") == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})


def test_scores_are_those_of_the_metric(coco_tiny: COCODataModule, tmp_path: Path) -> None:
    """Of shifted masks, some in another class, some inside of crowds: the report of a run and COCO's own agree."""
    random = np.random.default_rng(0)

    def shifted(truth: Instances) -> Instances:
        masks = []
        for code in truth.masks:
            mask = np.roll(codec.decode(code), random.integers(-8, 9, 2), (0, 1))
            masks.append(codec.encode(np.asfortranarray(mask)))
        wrong = torch.from_numpy(random.random(len(masks)) < 0.1)
        classes = torch.where(wrong, (truth.classes + 1) % 80, truth.classes)
        scores = torch.from_numpy(random.permutation(1024)[: len(masks)] / 1024).float()
        order = scores.argsort(descending=True)
        return Instances(tuple(masks[i] for i in order.tolist()), classes[order], scores[order], truth.size)

    metric = write_predictions(coco_tiny, tmp_path / "predictions", shifted)
    annotations = coco_tiny.root / "instances_val.json"
    assert join(tmp_path / "predictions", annotations, tmp_path / "results.json") == 0
    ours, theirs = metric.compute(), score(annotations, tmp_path / "results.json")
    assert 0.1 < theirs["ap"] < 0.9
    assert {name: float(ours[name]) for name in theirs} == pytest.approx(theirs, abs=1e-6)


# ---------------------------------------------------------------- images without annotations


@pytest.fixture
def test_dev(tmp_path: Path) -> Path:
    """A data set in COCO's folders: an annotated image, and three test images without annotations."""
    root = tmp_path / "coco"
    categories = [{"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}, {"id": 90, "name": "toothbrush"}]
    box = {"id": 1, "image_id": 5, "category_id": 44, "segmentation": [[2, 2, 30, 2, 30, 30, 2, 30]], "iscrowd": 0}
    random = np.random.default_rng(0)
    for file, objects, ids, folder in (
        ("instances_val2017.json", [box], [5], "val2017"),
        ("image_info_test-dev2017.json", None, [700001, 21, 300], "test2017"),
    ):
        images = [{"id": k, "file_name": f"{k:012}.jpg", "height": 48, "width": 64, "license": 1} for k in ids]
        (root / folder).mkdir(parents=True)
        for image in images:
            pixels = random.integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / str(image["file_name"]))
        content = {"info": {}, "licenses": [], "images": images, "categories": categories}
        content |= {} if objects is None else {"annotations": objects}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / file).write_text(json.dumps(content))
    return root


def settings(root: Path, tmp_path: Path, **more: Any) -> str:
    content = {
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "run"), "enable_progress_bar": False},
        "data": {"class_path": "bestie_pl.COCODataModule", "init_args": {"root": str(root), "num_workers": 0, **more}},
        "model": {
            "class_path": "bestie_pl.BestieModule",
            "init_args": {"backbone": "hrnet_w18_small", "backbone_weights": None, "inference": {"threshold": 1e-6}},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def checkpoint(tmp_path: Path) -> str:
    """Of a network with weights that nothing has trained."""
    module = BestieModule(3, ["car", "bottle", "toothbrush"], backbone="hrnet_w18_small", backbone_weights=None)
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")
    return f"--ckpt_path={tmp_path / 'untrained.ckpt'}"


TEST_DEV = {"test_images": "test2017", "predict_annotations": "annotations/image_info_test-dev2017.json"}


def test_test_dev_from_images_to_results(test_dev: Path, tmp_path: Path) -> None:
    assert main(["predict", "--config", settings(test_dev, tmp_path, **TEST_DEV), checkpoint(tmp_path)]) == 0
    predictions = tmp_path / "run" / "predictions"
    assert {path.stem for path in predictions.glob("*.json")} == {f"{k:012}" for k in (700001, 21, 300)}
    code = codec.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
    segmentation = {"size": [48, 64], "counts": code["counts"].decode()}
    # whatever the untrained network found: one image with two instances, one with one, one with none
    records = [{"class": name, "score": 0.5, "segmentation": segmentation} for name in ("toothbrush", "car")]
    (predictions / "000000700001.json").write_text(json.dumps(records))
    (predictions / "000000000021.json").write_text(json.dumps(records[:1]))
    (predictions / "000000000300.json").write_text("[]")
    annotations = test_dev / "annotations" / "image_info_test-dev2017.json"
    assert join(predictions, annotations, tmp_path / "results.json") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [(700001, 90), (700001, 3), (21, 90)]
    assert all(set(r) == {"image_id", "category_id", "segmentation", "score"} for r in results)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(annotations)).loadRes(str(tmp_path / "results.json"))
    assert loaded.annToMask(loaded.anns[1]).tolist() == np.eye(48, 64).tolist()


def test_images_without_annotations_cannot_be_scored(
    test_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_of_test = {"test_images": "test2017", "test_annotations": TEST_DEV["predict_annotations"]}
    assert main(["test", "--config", settings(test_dev, tmp_path, **settings_of_test), checkpoint(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "image_info_test-dev2017.json: has no `annotations`; expected true instances" in error


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Predictions of two images of 4 x 3 px, one in a subfolder, and the annotation file beside them."""
    images = [
        {"id": 8, "file_name": "sub/one.jpg", "height": 3, "width": 4},
        {"id": 9, "file_name": "./two.jpg", "height": 3, "width": 4},
    ]
    categories = [{"id": 7, "name": "Käfer"}, {"id": 1, "name": "car"}]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "categories": categories}))
    code = codec.encode(np.asfortranarray(np.ones((3, 4), np.uint8)))
    segmentation = {"size": [3, 4], "counts": code["counts"].decode()}
    record = {"image": "sub/one", "class": "Käfer", "category_id": 2, "score": 0.25, "segmentation": segmentation}
    (tmp_path / "predictions" / "sub").mkdir(parents=True)
    (tmp_path / "predictions" / "sub" / "one.json").write_text(json.dumps([record]))
    (tmp_path / "predictions" / "two.json").write_text("[]")
    (tmp_path / "predictions" / "of another set.json").write_text("[]")
    return tmp_path


def test_subfolders_and_images_without_instances(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = predicted / "out" / "results.json"
    assert join(predicted / "predictions", predicted / "all.json", output) == 0
    assert capsys.readouterr().out == f"{output}: 1 instances of 2 images\n"
    (result,) = json.loads(output.read_text())
    # by name, whatever number the data set that was trained on gives the class
    assert (result["image_id"], result["category_id"], result["score"]) == (8, 7, 0.25)
    assert codec.decode(result["segmentation"]).all()


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: (p / "predictions/two.json").unlink(),
            "1 of 2 images lack predictions, first two.json; ",
        ),
        (
            lambda p: change(p / "predictions/sub/one.json", lambda c: c[0].update({"class": "dog"})),
            "one.json: class 'dog' is no category of the annotation file; expected one of car, Käfer: ",
        ),
        (
            lambda p: change(p / "predictions/sub/one.json", lambda c: c[0]["segmentation"].update(size=[4, 3])),
            "one.json: is 3 x 4 px (width x height) but its image is 4 x 3",
        ),
        (
            lambda p: change(p / "predictions/sub/one.json", lambda c: c[0]["segmentation"].update(counts="05")),
            "one.json: a broken run-length code",
        ),
        (
            lambda p: change(p / "predictions/sub/one.json", lambda c: c[0].pop("score")),
            "one.json: cannot be understood",
        ),
        (lambda p: (p / "predictions/sub/one.json").write_text("["), "one.json: is no JSON"),
        (
            lambda p: (p / "predictions/sub/one.json").write_text("[]"),
            "no instance in any of 2 images; ",
        ),
        (lambda p: change(p / "all.json", lambda c: c.pop("categories")), "all.json: lists no categories"),
        (lambda p: change(p / "all.json", lambda c: c["images"][0].pop("id")), "all.json: an entry without 'id'"),
        (lambda p: (p / "all.json").unlink(), "no such file: "),
        (lambda p: (p / "predictions").rename(p / "elsewhere"), "no such folder: "),
    ],
)
def test_what_is_refused(
    predicted: Path, spoil: Callable[[Path], Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(predicted)
    assert join(predicted / "predictions", predicted / "all.json", predicted / "results.json") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("bestie-pl: error: ") and error.count("\n") == 1
    assert not (predicted / "results.json").exists()
