"""What pictures show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bestie_pl import BestieModule, ShapesDataModule
from bestie_pl.callbacks import pictures
from bestie_pl.callbacks.pictures import LONGEST_COURSE, PictureWriter, _draw_prediction
from bestie_pl.drawing import color_wheel
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Batch, Cues, Instances


def test_all_predicted_instances_are_drawn_the_better_ones_on_top() -> None:
    ids = torch.zeros(3, 8, 8, dtype=torch.int32)
    ids[0, :, :4], ids[1, :, 2:6], ids[2, 6:, 6:] = 1, 1, 1
    masks = tuple(code for one in ids for code in encode(one)[1])
    image = np.full((8, 8, 3), 100, np.uint8)

    def drawn(*scores: float) -> np.ndarray:
        return _draw_prediction(image, Instances(masks, torch.zeros(3).long(), torch.tensor(scores), (8, 8)))

    changed = (drawn(0.9, 0.5, 0.001) != image).any(2)
    # away from outlines, which reach into the neighbouring pixels
    assert changed[:, :6].all() and changed[6:, 6:].all()
    assert not changed[:5, 7:].any()
    first, second = drawn(0.9, 0.5, 0.001), drawn(0.5, 0.9, 0.001)
    overlap, beside = first[4, 3], first[4, 1]
    assert (overlap == beside).all() != (second[4, 3] == second[4, 1]).all()


def test_maps_stand_beside_the_labels(
    trained_run: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Centre heatmap and offset field of the trained network between its refined labels and its prediction."""
    module = BestieModule.load_from_checkpoint(trained_run / "checkpoints" / "last.ckpt", map_location="cpu")
    settings = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64, "clutter": 1}
    data = ShapesDataModule(
        root=str(shapes_folder), **settings, generator_seed=0, num_workers=0, batch_size=2, crop_size=64,
        object_scale=0.32, min_area=250, label_quality=True,
    )  # fmt: skip
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "sheet", lambda rows, titles, captions: drawn.append((rows, titles, captions)))
    monkeypatch.setattr(pictures, "write_picture", lambda path, image: None)
    writer, trainer = PictureWriter(every_n_steps=2), SimpleNamespace(default_root_dir=tmp_path, loggers=[])
    trainer.callbacks, trainer.estimated_stepping_batches = [], 5
    writer.on_train_start(trainer, module)  # type: ignore[arg-type]
    module.train()
    module.model.network.eval()  # a part that its owner keeps as it is
    for step in range(1, 6):
        trainer.global_step = step
        writer.on_train_batch_end(trainer, module, None, batch, 0)  # type: ignore[arg-type]
    assert module.training and not module.model.network.training
    writer.on_train_end(trainer, module)  # type: ignore[arg-type]
    *sheets, (moments, _, captions) = drawn
    assert captions == ["after 1 step", "after 2 steps", "after 4 steps", "after 5 steps"]
    assert [len(rows) for rows, *_ in sheets] == [2] * 4
    rows, titles, _ = sheets[-1]
    assert titles == [
        "image and cues", "semantic map", "pseudo labels", "refined labels", "centre heatmap", "offset field",
        "prediction", "ground truth",
    ]  # fmt: skip
    assert all(picture.shape == (64, 64, 3) for row in rows for picture in row)
    # the weights did not change between these moments, nor did the crop that is shown
    shown = next(row for row in rows if (row[0] == moments[0][0]).all())
    assert all((first == second).all() for moment in moments for first, second in zip(shown, moment, strict=True))
    maps = module.eval().model.enlarge(module(batch.images), (64, 64))
    background = maps.semantic_logits[0].argmax(0) == 0
    assert (rows[0][5][background.numpy()] == 255).all(), "offsets of the background are nobody's"
    expected = color_wheel(maps.offset_field[0].detach() * ~background, longest=16)
    assert (rows[0][5] == expected).all(), "full strength is a quarter of the crop, at all moments alike"


class OneImage(SimpleNamespace):
    """What the writer looks at of a batch."""

    def __len__(self) -> int:
        return 1


def test_a_long_course_is_thinned_out(monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> None:
    module = BestieModule.load_from_checkpoint(trained_run / "checkpoints" / "last.ckpt", map_location="cpu")
    monkeypatch.setattr(pictures, "_training_rows", lambda *_: [{"image": np.zeros((8, 8, 3), np.uint8)}])
    monkeypatch.setattr(pictures, "_save", lambda *_: None)
    writer, trainer = PictureWriter(every_n_steps=1), SimpleNamespace(callbacks=[], estimated_stepping_batches=30)
    writer.on_train_start(trainer, module)  # type: ignore[arg-type]
    labels = SimpleNamespace(image=torch.zeros(2).long(), area=torch.tensor([0, 9]))
    kept: Any = OneImage(pseudo=labels, components=labels, to=lambda _: kept)
    writer._kept = kept
    for trainer.global_step in range(1, 31):
        writer.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    steps = [step for step, _ in writer._course]
    assert len(steps) <= LONGEST_COURSE and steps[0] == 1 and steps[-1] > 20


def instances(*boxes: tuple[int, int], score: float = 0.9) -> Instances:
    """Squares of 4 px at these corners."""
    ids = torch.zeros(len(boxes), 16, 16, dtype=torch.int32)
    for number, (y, x) in enumerate(boxes):
        ids[number, y : y + 4, x : x + 4] = 1
    masks = tuple(code for one in ids for code in encode(one)[1])
    return Instances(masks, torch.zeros(len(boxes)).long(), torch.full((len(boxes),), score), (16, 16))


@pytest.mark.parametrize("with_truth", [True, False])
def test_best_and_worst_test_images(
    with_truth: bool, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images come in any order; those without an object are neither good nor bad where the truth is known."""
    module = BestieModule.load_from_checkpoint(trained_run / "checkpoints" / "last.ckpt", map_location="cpu")
    truth = instances((0, 0), (8, 8))
    found = {
        "all": instances((0, 0), (8, 8), score=0.8), "half": instances((0, 0), score=0.7),
        "nearly": instances((0, 1), (8, 8), score=0.6), "none": instances(), "empty": instances((4, 4), score=0.9),
        "wrong": instances((4, 12), score=0.1),
    }  # fmt: skip
    sheets: dict[str, list[str]] = {}

    def save(_: Any, name: str, rows: Any, titles: Any, captions: Any = None) -> None:
        assert all(len(row) == len(titles) for row in rows)
        sheets[name] = [caption.partition(":")[0] for caption in captions or []]

    monkeypatch.setattr(pictures, "_save", save)
    writer, trainer = PictureWriter(count=2), SimpleNamespace(is_global_zero=True, world_size=1)
    writer.on_test_start(trainer, module)  # type: ignore[arg-type]
    for name in ("half", "none", "all", "empty", "wrong", "nearly"):
        references = (instances() if name == "empty" else truth,) if with_truth else None
        batch = Batch(
            images=torch.rand(1, 3, 16, 16), tags=torch.ones(1, 5).bool(), cues=Cues.empty(), names=(name,),
            sizes=((16, 16),), original_sizes=((16, 16),), references=references,
        )  # fmt: skip
        outputs = (found[name],), (torch.zeros(16, 16, dtype=torch.uint8),)
        writer.on_test_batch_end(trainer, module, outputs, batch, 0)  # type: ignore[arg-type]
    writer.on_test_end(trainer, module)  # type: ignore[arg-type]
    assert set(sheets) == {"test.png", "best.png", "worst.png"}
    expected = (["all", "nearly"], ["wrong", "none"]) if with_truth else (["empty", "all"], ["none", "wrong"])
    assert (sheets["best.png"], sheets["worst.png"]) == expected

    def gather(parts: list[Any], mine: Any) -> None:  # the other process saw an image that is better than all
        parts[:] = [mine, [mine[0]._replace(quality=1.5, name="other", caption="other: 1.5")]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    trainer.world_size = 2
    writer.on_test_end(trainer, module)  # type: ignore[arg-type]
    assert (sheets["best.png"], sheets["worst.png"]) == (["other", expected[0][0]], expected[1])
    trainer.is_global_zero = False
    sheets.clear()
    writer.on_test_end(trainer, module)  # type: ignore[arg-type]
    assert sheets == {}
