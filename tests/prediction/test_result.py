"""What a result says, shows and writes."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as codec

from bestie_pl.ops.masks import encode
from bestie_pl.prediction.result import Result
from bestie_pl.structures import Instances


@pytest.fixture
def result() -> Result:
    """A large fig and a small date."""
    ids = torch.zeros(40, 60, dtype=torch.int32)
    ids[10:30, 20:50] = 1
    ids[5:9, 0:4] = 2
    _, codes = encode(ids)
    instances = Instances(codes, torch.tensor([1, 0]), torch.tensor([0.9, 0.4]), (40, 60))
    image = np.full((40, 60, 3), 120, np.uint8)
    return Result("plate/one", image, instances, ("date", "fig"))


@pytest.fixture
def nothing() -> Result:
    found = Instances((), torch.zeros(0, dtype=torch.int64), torch.zeros(0), (40, 60))
    return Result("empty", np.zeros((40, 60, 3), np.uint8), found, ("date", "fig"))


def test_arrays(result: Result) -> None:
    assert len(result) == 2 and result.class_names == ["fig", "date"] and result.classes.tolist() == [1, 0]
    assert result.scores.tolist() == pytest.approx([0.9, 0.4]) and result.areas.tolist() == [600, 16]
    assert result.masks.shape == (2, 40, 60) and result.masks.sum((1, 2)).tolist() == [600, 16]
    assert result.boxes.tolist() == [[20, 10, 50, 30], [0, 5, 4, 9]]
    assert result.centroids.tolist() == [[34.5, 19.5], [1.5, 6.5]]
    assert repr(result) == "Result('plate/one', 40 x 60: 1 fig, 1 date)"
    assert result.above(0.5).class_names == ["fig"] and len(result.above(0.95)) == 0 and len(result.above(0)) == 2


def test_nothing_found_is_a_result(nothing: Result, tmp_path: Path) -> None:
    assert nothing.masks.shape == (0, 40, 60) and nothing.boxes.shape == (0, 4) and nothing.centroids.shape == (0, 2)
    assert nothing.to_coco() == [] and nothing.to_csv().count("\n") == 1 and not nothing.to_label_image().any()
    assert nothing.save(tmp_path / "a.png").is_file() and repr(nothing).endswith(": nothing)")


def test_coco(result: Result) -> None:
    records = json.loads(json.dumps(result.to_coco(image_id=7, category_ids=[11, 90])))
    assert [(r["image_id"], r["category_id"], r["area"]) for r in records] == [(7, 90, 600), (7, 11, 16)]
    assert records[0]["bbox"] == [20, 10, 30, 20] and result.to_coco()[0]["category_id"] == 2
    assert (codec.decode(records[1]["segmentation"]) == result.masks[1]).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_images_have_16_bits(result: Result, tmp_path: Path, suffix: str) -> None:
    labels = result.to_label_image(tmp_path / f"a{suffix}")
    assert labels.dtype == np.uint16 and labels[15, 25] == 1 and labels[6, 2] == 2 and (labels > 0).sum() == 616
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.mode == "I;16" and (np.asarray(image) == labels).all()


def test_better_ones_cover_worse_ones() -> None:
    masks = [np.array([[1, 1, 0]], np.uint8), np.array([[0, 1, 1]], np.uint8)]
    codes = tuple(codec.encode(np.asfortranarray(mask)) for mask in masks)
    found = Instances(codes, torch.tensor([0, 0]), torch.tensor([0.9, 0.1]), (1, 3))
    assert Result("a", np.zeros((1, 3, 3), np.uint8), found, ("x",)).to_label_image().tolist() == [[1, 1, 2]]


def test_csv(result: Result, tmp_path: Path) -> None:
    text = result.to_csv(tmp_path / "sub" / "a.csv")
    assert (tmp_path / "sub" / "a.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "label": "1",
        "class": "fig",
        "score": "0.9000",
        "area": "600",
        "centroid_x": "34.50",
        "centroid_y": "19.50",
        "x1": "20",
        "y1": "10",
        "x2": "50",
        "y2": "30",
    }
    labels = result.to_label_image()
    assert [int((labels == int(row["label"])).sum()) for row in rows] == [int(row["area"]) for row in rows]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_overlays_are_large_enough_to_be_read(result: Result, tmp_path: Path, suffix: str) -> None:
    with Image.open(result.save(tmp_path / f"a{suffix}")) as image:
        assert image.size == (9 * 60, 9 * 40)
        picture = np.asarray(image).astype(int)
    change = np.abs(picture - 120).max(2) > 20
    assert change[10 * 9 : 30 * 9, 20 * 9 : 50 * 9].all(), "the whole mask is tinted"
    assert not change[32 * 9 :].any() and not change[:, 53 * 9 :].any(), "and what is far from it is not"


def test_wrong_suffixes(result: Result, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.txt: an overlay is written as one of \.png, \.jpg"):
        result.save(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.jpg: a label image is written as one of \.png, \.tif"):
        result.to_label_image(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_supervision(result: Result, nothing: Result) -> None:
    detections = result.to_supervision()
    assert detections.class_id.tolist() == [1, 0] and detections["class_name"].tolist() == ["fig", "date"]
    assert detections.area.tolist() == [600, 16]
    assert (np.asarray(detections.mask[1]) == result.masks[1]).all()
    assert len(nothing.to_supervision()) == 0


def test_a_package_that_is_not_there(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'bestie-pl\[supervision\]'"):
        result.to_supervision()
