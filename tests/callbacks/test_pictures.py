"""What pictures show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bestie_pl import BestieModule, ShapesDataModule
from bestie_pl.callbacks import pictures
from bestie_pl.callbacks.pictures import PictureWriter, _draw_prediction
from bestie_pl.ops.masks import encode
from bestie_pl.structures import Instances


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
    drawn = []
    monkeypatch.setattr(pictures, "sheet", lambda rows, titles: drawn.append((rows, titles)))
    monkeypatch.setattr(pictures, "write_picture", lambda path, image: None)
    writer, trainer = PictureWriter(), SimpleNamespace(default_root_dir=tmp_path, loggers=[], callbacks=[])
    writer.on_train_batch_end(trainer, module, None, batch, 0)  # type: ignore[arg-type]
    writer.on_train_end(trainer, module)  # type: ignore[arg-type]
    ((rows, titles),) = drawn
    assert titles == [
        "image and cues", "semantic map", "pseudo labels", "refined labels", "centre heatmap", "offset field",
        "prediction", "ground truth",
    ]  # fmt: skip
    assert len(rows) == 2 and all(picture.shape == (64, 64, 3) for row in rows for picture in row)
    maps = module.eval().model.enlarge(module(batch.images), (64, 64))
    background = maps.semantic_logits[0].argmax(0) == 0
    assert (rows[0][5][background.numpy()] == 255).all(), "offsets of the background are nobody's"
    assert background.all() or (rows[0][5][~background.numpy()] != 255).any()
