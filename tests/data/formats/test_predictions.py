"""Predictions of one round as the labels of the next."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as codec

from bestie_pl.data.formats.predictions import read_predictions
from bestie_pl.structures import Instances

NAMES = ("cat", "dog")


def write(folder: Path, rows: list[tuple[str, float, np.ndarray]], name: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    records = []
    for label, score, mask in rows:
        code = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
        records.append({"image": name, "class": label, "score": score, "segmentation": segmentation})
    (folder / f"{name}.json").write_text(json.dumps(records))


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_surer_instance_covers_the_other(tmp_path: Path) -> None:
    write(tmp_path, [("dog", 0.4, box(0, 0, 4, 6)), ("cat", 0.9, box(2, 4, 8, 10)), ("dog", 0.1, box(7, 0, 8, 1))])
    ids, classes, scores = read_predictions(tmp_path, "a", (8, 10), NAMES)
    assert ids.dtype == torch.int32 and classes.tolist() == [0, 1, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.4, 0.1])
    assert torch.equal(ids == 1, torch.from_numpy(box(2, 4, 8, 10)))
    assert int((ids == 2).sum()) == 20 and int((ids == 3).sum()) == 1


def test_what_is_unsure_beside_another_untagged_or_small_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [("dog", 0.4, box(0, 0, 4, 6)), ("cat", 0.9, box(2, 4, 8, 10)), ("cat", 0.5, box(2, 3, 8, 10))])
    kept = read_predictions(tmp_path, "a", (8, 10), NAMES, least_share=0.6)
    assert kept[1].tolist() == [0, 1], "the dog is the only one; the second cat is less than 0.6 times as sure"
    kept = read_predictions(tmp_path, "a", (8, 10), NAMES, tags=torch.tensor([False, True]))
    assert kept[1].tolist() == [1] and int(kept[0].max()) == 1
    ids, classes, scores = read_predictions(tmp_path, "a", (8, 10), NAMES, min_area=7)
    assert classes.tolist() == [0, 1], "of the second cat six pixels are left"
    assert sorted(ids.unique().tolist()) == [0, 1, 2] and int((ids > 0).sum()) < int((box(2, 3, 8, 10)).sum()) + 24


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), count=st.integers(0, 6))
def test_it_agrees_with_painting_from_worst_to_best(tmp_path: Path, seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    rows = [("cat", round(float(s), 3), random.random((5, 6)) < 0.4) for s in random.permutation(count) / 7]
    write(tmp_path, rows)
    ids, _, scores = read_predictions(tmp_path, "a", (5, 6), NAMES)
    best = np.zeros((5, 6))
    for _, score, mask in sorted(rows, key=lambda row: row[1]):
        best[mask] = score + 1
    found = torch.cat([torch.tensor([-1.0]), scores])[ids.long()].numpy() + 1
    np.testing.assert_allclose(found, best, atol=1e-6)
    assert all((ids == n + 1).any() for n in range(len(scores)))


def test_what_the_prediction_writer_wrote_can_be_read(tmp_path: Path) -> None:
    from bestie_pl.callbacks.predictions import PredictionWriter

    code = codec.encode(np.asfortranarray(box(1, 2, 5, 7).astype(np.uint8)))
    found = Instances((code,), torch.tensor([1]), torch.tensor([0.75]), (8, 10))
    trainer, batch = SimpleNamespace(default_root_dir=str(tmp_path)), SimpleNamespace(names=("a", "b"))
    nothing = Instances((), torch.zeros(0, dtype=torch.int64), torch.zeros(0), (8, 10))
    module = SimpleNamespace(class_names=NAMES)
    PredictionWriter().write_on_batch_end(trainer, module, (found, nothing), None, batch, 0, 0)  # type: ignore[arg-type]
    ids, classes, scores = read_predictions(tmp_path / "predictions", "a", (8, 10), NAMES)
    assert torch.equal(ids > 0, torch.from_numpy(box(1, 2, 5, 7))) and classes.tolist() == [1]
    assert scores.tolist() == [0.75]
    ids, classes, scores = read_predictions(tmp_path / "predictions", "b", (8, 10), NAMES)
    assert ids.shape == (8, 10) and ids.sum() == 0 and len(classes) == len(scores) == 0


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.json.*predict the training images"):
        read_predictions(tmp_path, "a", (8, 10), NAMES)
    for content in ("{", "[1]", '[{"class": "cat"}]', '[{"class": "cat", "score": 1, "segmentation": {"size": [1]}}]'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=r"a\.json: .* expected predicted instances of the image"):
            read_predictions(tmp_path, "a", (8, 10), NAMES)
    write(tmp_path, [("horse", 0.4, box(0, 0, 4, 6))])
    with pytest.raises(ValueError, match="unknown class 'horse'; expected one of cat, dog"):
        read_predictions(tmp_path, "a", (8, 10), NAMES)
    write(tmp_path, [("cat", 0.4, box(0, 0, 4, 6))])
    with pytest.raises(ValueError, match="10 x 8"):
        read_predictions(tmp_path, "a", (10, 8), NAMES)
