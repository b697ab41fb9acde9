"""Labels of a training set: what is chosen, what the file holds, and that training reads it as it reads predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.cli.main import main
from bestie_pl.data.formats.images import image_size
from bestie_pl.data.labels import choose
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.structures import Cues, Instances

SIZES = [(40, 60), (50, 64), (33, 47), (64, 64), (45, 45), (40, 61)]
"""Of the images of ``voc_folder``, which each hold two cats and a dog."""
BOXES = [(0, 0.9, 2, 2, 12, 12), (0, 0.8, 2, 12, 12, 22), (1, 0.7, 20, 5, 30, 25), (0, 0.2, 20, 30, 30, 40)]
"""Class, score, top, left, bottom, right: the objects, and something unsure on the background."""


@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 8), st.integers(1, 4))
def test_what_is_chosen_holds_one_point_and_each_point_has_one_label(
    seed: int, labels: int, points: int, most: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(labels + 1, (5, 7), generator=generator).int()
    classes = torch.randint(2, (labels,), generator=generator)
    scores = torch.rand(labels, generator=generator).sort(descending=True).values
    yx = torch.stack([torch.randint(5, (points,)), torch.randint(7, (points,))], 1).float()
    cues = Cues(torch.zeros(points).long(), yx, torch.randint(2, (points,), generator=generator), torch.ones(points))
    kept, kept_classes, kept_scores = choose(ids, classes, scores, points=cues, most=most)
    held = [
        [int(k) for k, (y, x) in enumerate(yx.long().tolist()) if kept[y, x] == n + 1 and cues.classes[k] == c]
        for n, c in enumerate(kept_classes)
    ]
    assert all(len(points_inside) == 1 for points_inside in held)
    assert len({k for inside in held for k in inside}) == len(held) <= most
    assert kept_scores.tolist() == sorted(kept_scores.tolist(), reverse=True)
    plain = choose(ids, classes, scores, most=most)
    assert plain[1].tolist() == classes[:most].tolist()
    assert torch.equal(plain[0], torch.where(ids <= most, ids, 0))


def test_two_points_in_a_mask_leave_none() -> None:
    ids = torch.tensor([[1, 1, 2, 0]])
    yx = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    points = Cues(torch.zeros(4).long(), yx, torch.tensor([3, 3, 4, 3]), torch.ones(4))
    kept, classes, scores = choose(ids, torch.tensor([3, 4]), torch.tensor([0.9, 0.8]), points=points, most=5)
    assert kept.tolist() == [[0, 0, 1, 0]] and classes.tolist() == [4] and scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(("orientation", "size"), [(1, (20, 30)), (3, (20, 30)), (6, (30, 20))])
def test_the_size_is_that_of_the_turned_image(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == size
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.jpg: cannot be read as an image"):
        image_size(tmp_path / "broken.jpg")


def predict(folder: Path, boxes: list[tuple[Any, ...]] = BOXES) -> Path:
    """What ``predict`` writes of the six images, into a folder beside the data set."""
    predictions = folder.parent / "run" / "predictions"
    trainer: Any = SimpleNamespace(default_root_dir=str(predictions.parent))
    for number, size in enumerate(SIZES):
        masks = []
        for _, _, top, left, bottom, right in boxes:
            mask = np.zeros(size, np.uint8, order="F")
            mask[top:bottom, left:right] = 1
            masks.append(codec.encode(mask))
        numbers = torch.tensor([box[0] for box in boxes], dtype=torch.int64)
        found = Instances(tuple(masks), numbers, torch.tensor([box[1] for box in boxes]), size)
        module: Any = SimpleNamespace(class_names=("cat", "dog"))
        batch = SimpleNamespace(names=(f"a{number}",))
        PredictionWriter(str(predictions)).write_on_batch_end(trainer, module, (found,), None, batch, 0, 0)
    return predictions


def labels(folder: Path, *arguments: str, status: int = 0) -> Path:
    """Run the command on the six images, with true instances to measure by."""
    output = folder.parent / "labels.json"
    config = ["--data=bestie_pl.VOCDataModule", f"--data.init_args.root={folder}", "--data.init_args.train_split=train"]
    config += ["--data.init_args.supervision=tags", "--data.init_args.min_area=20"]
    line = ["labels", *config, "--output", str(output), *arguments]
    if not any("--predictions" in argument for argument in arguments):
        line += ["--predictions", str(folder.parent / "run" / "predictions")]
    assert main(line) == status
    return output


def test_pycocotools_reads_the_file_and_the_report_is_right(
    voc_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(voc_folder)
    output = labels(voc_folder, "--data.init_args.label_quality=true")
    assert "cat: 12, and 0 tags without a label" in capsys.readouterr().out
    coco = COCO(str(output))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    assert len(coco.getImgIds()) == 6 and len(coco.getAnnIds()) == 18
    for number, (height, width) in enumerate(SIZES):
        image = coco.loadImgs(coco.getImgIds()[number])[0]
        assert (image["file_name"], image["height"], image["width"]) == (f"a{number}.jpg", height, width)
        rows = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [row["category_id"] for row in rows] == [1, 1, 2]
        assert [row["score"] for row in rows] == pytest.approx([0.9, 0.8, 0.7])
        assert [row["bbox"] for row in rows] == [[2, 2, 10, 10], [12, 2, 10, 10], [5, 20, 20, 10]]
        assert [row["area"] for row in rows] == [coco.annToMask(row).sum() for row in rows] == [100, 100, 200]
        assert all(row["iscrowd"] == 0 for row in rows)
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["labels"] == 18 and report["images_without_labels"] == 0 and report["points_without_labels"] is None
    assert report["quality"]["precision"] == report["quality"]["recall"] == report["quality"]["voc_map75"] == 1


def test_rules_drop_by_score_area_tag_and_number(voc_folder: Path) -> None:
    predict(
        voc_folder, [(0, 0.9, 2, 2, 12, 12), (0, 0.8, 2, 12, 6, 16), (1, 0.1, 20, 5, 30, 25), (0, 0.5, 0, 30, 9, 40)]
    )
    (voc_folder / "train_cls.txt").write_text("".join(f"a{n} {'0 1' if n else '1'}\n" for n in range(6)))
    report = json.loads(labels(voc_folder).with_suffix(".report.json").read_text())
    assert report["classes"]["cat"] == {"labels": 10, "tags_without_labels": 0}
    assert report["classes"]["dog"] == {"labels": 6, "tags_without_labels": 0} and report["quality"] is None
    output = labels(voc_folder, "--data.init_args.label_threshold=0.95")
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["classes"]["cat"]["labels"] == 5 and report["classes"]["dog"]["labels"] == 6
    report = json.loads(labels(voc_folder, "--max_per_image=1").with_suffix(".report.json").read_text())
    assert report["classes"]["cat"]["labels"] == 5 and report["classes"]["dog"]["tags_without_labels"] == 5


def test_with_points_there_is_one_mask_a_point(voc_folder: Path) -> None:
    predict(voc_folder, [(0, 0.9, 2, 2, 12, 22), (1, 0.8, 20, 5, 30, 25), (0, 0.7, 20, 30, 30, 40)])
    output = labels(voc_folder, "--data.init_args.supervision=points")
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["classes"]["cat"]["labels"] == 0, "one mask has both cats' points, the other has none"
    assert report["classes"]["dog"]["labels"] == 6 and report["points_without_labels"] == 12


def test_points_take_unsure_masks_for_labels_too(voc_folder: Path) -> None:
    """A point says that there is an object; of the folder as of the file."""
    folder = predict(voc_folder, [(0, 0.9, 2, 2, 12, 12), (0, 0.2, 2, 12, 12, 22), (1, 0.1, 20, 5, 30, 25)])
    output = labels(voc_folder, "--data.init_args.supervision=points")
    for source in (folder, output):
        for supervision, number in (("points", 3), ("tags", 2 if source == folder else 3)):
            data = module_of(voc_folder, source, supervision=supervision)
            assert len(data.datasets["train"][0].predicted.classes) == number, (source, supervision)


def module_of(voc_folder: Path, source: Path, **settings: Any) -> VOCDataModule:
    """Whole images."""
    defaults: dict[str, Any] = {"train_split": "train", "num_workers": 0, "batch_size": 6, "crop_size": 64}
    defaults |= {"scale_range": (1.0, 1.0), "color_jitter": 0, "min_area": 20, "supervision": "tags"}
    data = VOCDataModule(str(voc_folder), labels_from=str(source), **(defaults | settings))
    data.setup("fit")
    return data


@pytest.mark.parametrize("weighted", [False, True])
def test_training_learns_the_same_from_the_file_and_from_its_predictions(voc_folder: Path, weighted: bool) -> None:
    folder = predict(voc_folder)
    output = labels(voc_folder)
    batches = []
    for source in (folder, output):
        data = module_of(voc_folder, source, label_weights=weighted)
        torch.manual_seed(0)
        batch = next(iter(data.train_dataloader()))
        data.batches_augmented = 0
        batches.append(data.label(data.augmentation(batch, torch.Generator().manual_seed(1))))
    (first, second) = (batch.pseudo for batch in batches)
    assert first is not None and second is not None
    assert torch.equal(first.ids, second.ids) and torch.equal(first.classes, second.classes)
    torch.testing.assert_close(first.weight, second.weight)
    inside = second.weight[second.area > 0]
    expected = torch.tensor([0.9, 0.8, 0.7]) if weighted else torch.ones(3)
    assert all(float((value - expected).abs().min()) < 1e-6 for value in inside) and len(inside) >= 12


def test_a_file_that_does_not_fit_is_refused(voc_folder: Path) -> None:
    predict(voc_folder)
    output = labels(voc_folder)
    content = json.loads(output.read_text())

    def refused(message: str, **changes: Any) -> None:
        output.write_text(json.dumps(content | changes))
        with pytest.raises(ValueError, match=message):
            data = module_of(voc_folder, output)
            data.datasets["train"][0]

    refused("no image a0 of the training split", images=content["images"][1:], annotations=[])
    refused("category 'cow'; expected one of cat, dog", categories=[{"id": 1, "name": "cow"}, {"id": 2, "name": "dog"}])
    wrong = [content["annotations"][0] | {"score": 7}, *content["annotations"][1:]]
    refused(r"annotation 1: score 7; expected a number in \[0, 1\]", annotations=wrong)
    with pytest.raises(ValueError, match="label_weights are the scores of labels_from, and points leave none"):
        module_of(voc_folder, output, supervision="points", label_weights=True)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        module_of(voc_folder, voc_folder / "absent.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_per_image=0"], "--max_per_image must be at least 1, got 0"),
        (["--predictions=absent"], "no such folder: absent; expected predicted instances"),
        (["--output=labels.txt"], "--output must be the path of a .json file, got labels.txt"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, voc_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(voc_folder)
    labels(voc_folder, *arguments, status=2)
    assert message in capsys.readouterr().err


def test_an_image_without_predictions_is_named(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(predict(voc_folder))
    (voc_folder.parent / "run" / "predictions").mkdir()
    labels(voc_folder, status=2)
    assert "a0.json" in capsys.readouterr().err


def test_texts_say_crowd_as_in_other_files(voc_folder: Path) -> None:
    predict(voc_folder)
    output = labels(voc_folder)
    content = json.loads(output.read_text())
    for row in content["annotations"]:
        row["iscrowd"] = "1" if row["category_id"] == 2 else "0"
    output.write_text(json.dumps(content))
    for weighted in (False, True):
        predicted = module_of(voc_folder, output, label_weights=weighted).datasets["train"][0].predicted
        assert predicted.classes.tolist() == [0, 0] and int(predicted.ids.max()) == 2
