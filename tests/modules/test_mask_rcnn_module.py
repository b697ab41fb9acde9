"""MaskRCNNModule in training, evaluation and prediction, on true instances and on labels of a first stage."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quick
import torch
from pycocotools import mask as codec

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.scores import ScoreWriter
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules import large_images
from bestie_pl.modules.mask_rcnn import MaskRCNNModule
from bestie_pl.modules.optimization import Optimization, step_decay
from bestie_pl.structures import Batch, Cues

SMALL: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "backbone_weights": None,
    "width": 16,
    "anchor_sizes": (16, 32, 48, 64, 96),
    "optimization": Optimization("adamw", lr=3e-3),
    "settings": {
        "min_size": 64,
        "rpn_pre_nms_top_n_train": 50,
        "rpn_post_nms_top_n_train": 50,
        "rpn_pre_nms_top_n_test": 50,
        "rpn_post_nms_top_n_test": 20,
        "box_batch_size_per_image": 32,
        "box_score_thresh": 0.01,
    },
}


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    defaults = {"batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "crop_size": 64, "predict_split": "train"}
    full = {"supervision": "full", "semantic_source": "ground_truth"}
    return ShapesDataModule(str(root), **{**sizes, **defaults, **full, **settings})


make_trainer = partial(quick.make_trainer, limit_val_batches=0)


def test_the_instances_of_one_batch_can_be_learnt(shapes_folder: Path) -> None:
    torch.manual_seed(0)
    data = make_data(shapes_folder, batch_size=2, scale_range=(1.0, 1.0), color_jitter=0.0)
    data.setup("fit")
    batch = data.label(data.augmentation(next(iter(data.train_dataloader())), torch.Generator().manual_seed(0)))
    module = MaskRCNNModule(5, **SMALL).train()
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(50):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert batch.pseudo is not None
    wanted = [batch.pseudo.classes[(batch.pseudo.image == b) & (batch.pseudo.area > 0)] for b in range(len(batch))]
    found = module.eval().predict_step(batch, 0)
    hits = [
        any(
            float(codec.iou([code], [mask_of(batch, b, number)], [0])[0, 0]) > 0.5
            for code, label in zip(found[b].masks, found[b].classes.tolist(), strict=True)
            if label == number[1]
        )
        for b in range(len(batch))
        for number in objects(batch, b)
    ]
    assert sum(len(classes) for classes in wanted) == len(hits)
    assert sum(hits) > len(hits) / 2


def objects(batch: Batch, image: int) -> list[tuple[int, int]]:
    """Row and class of each instance of an image."""
    assert batch.pseudo is not None
    rows = ((batch.pseudo.image == image) & (batch.pseudo.area > 0)).nonzero()[:, 0].tolist()
    return [(row, int(batch.pseudo.classes[row])) for row in rows]


def mask_of(batch: Batch, image: int, number: tuple[int, int]) -> dict[str, Any]:
    assert batch.pseudo is not None
    mask = (batch.pseudo.ids[image] == number[0]).byte().numpy()
    code: dict[str, Any] = codec.encode(mask.copy(order="F"))
    return code


def test_training_scores_predictions_and_checkpoints(shapes_folder: Path, tmp_path: Path) -> None:
    names = ("fish", "lock", "beetle", "kite", "moon")
    module = MaskRCNNModule(5, names, **SMALL, supervision="full")
    trainer = make_trainer(tmp_path, callbacks=[ScoreWriter(), PredictionWriter()], enable_checkpointing=True)
    trainer.fit(module, make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    trainer.test(module, make_data(shapes_folder), verbose=False)
    scores = json.loads((tmp_path / "scores_test.json").read_text())
    assert scores["supervision"] == "full" and len(scores["ground_truth_used"]) == 2
    assert {"test/map25", "test/map50", "test/coco_ap75", "test/ap50/moon"} <= set(scores["scores"])
    assert "test/miou" not in scores["scores"] and "miou" not in scores["legend"]
    trainer.predict(module, make_data(shapes_folder), return_predictions=False)
    files = sorted((tmp_path / "predictions").glob("*.json"))
    assert len(files) == 16
    record = next(record for file in files for record in json.loads(file.read_text()))
    assert record["class"] in names and codec.decode(record["segmentation"]).shape == (64, 64)

    again = MaskRCNNModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.class_names == names
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    with pytest.raises(ValueError, match="the checkpoint was trained with width=16"):
        other = MaskRCNNModule(5, **SMALL | {"width": 8})
        make_trainer(tmp_path).test(
            other, make_data(shapes_folder), ckpt_path=tmp_path / "model.ckpt", weights_only=True
        )

    started = MaskRCNNModule(5, names, **SMALL, init_from=str(tmp_path / "model.ckpt"))
    make_trainer(tmp_path, max_steps=1, limit_train_batches=0).fit(started, make_data(shapes_folder))
    state = started.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_it_starts_from_weights_of_its_classes_that_are_finite(tmp_path: Path) -> None:
    content = {
        "state_dict": MaskRCNNModule(2, **SMALL).state_dict(),
        "hyper_parameters": {"class_names": ["cat", "dog"]},
    }
    (tmp_path / "logs/version_0/checkpoints").mkdir(parents=True)
    torch.save(content, tmp_path / "logs/version_0/checkpoints/step=5.ckpt")
    newest = str(tmp_path / "checkpoints/last.ckpt")  # whose link a killed training did not make
    MaskRCNNModule(2, ["cat", "dog"], **SMALL, init_from=newest).load_first_weights()
    with pytest.raises(ValueError, match="classes are others than the data's"):
        MaskRCNNModule(2, ["dog", "cat"], **SMALL, init_from=newest).load_first_weights()
    next(iter(content["state_dict"].values())).fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    module = MaskRCNNModule(2, ["cat", "dog"], **SMALL, init_from=str(tmp_path / "nan.ckpt"))
    with pytest.raises(ValueError, match="not finite"):
        module.load_first_weights()


def test_images_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch, shapes_folder: Path) -> None:
    data = make_data(shapes_folder, crop_size=64)
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    monkeypatch.setattr(large_images, "MOST_WHOLE", 32 * 32)
    with pytest.raises(ValueError, match="64 x 64 px after image_scale"):
        MaskRCNNModule(5, **SMALL).eval().predict_step(batch, 0)


def test_two_processes_score_like_one(shapes_folder: Path, tmp_path: Path) -> None:
    """Five images on two processes, and a training step of both."""
    torch.manual_seed(0)
    module = MaskRCNNModule(5, **SMALL)
    alone = make_trainer(tmp_path).test(module, make_data(shapes_folder, eval_batch_size=1), verbose=False)[0]
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork")
    both = trainer.test(module, make_data(shapes_folder, eval_batch_size=1), verbose=False)[0]
    assert both == pytest.approx(alone)
    make_trainer(tmp_path, devices=2, strategy="ddp_fork").fit(module, make_data(shapes_folder))


def test_predictions_have_the_size_of_the_file() -> None:
    module = MaskRCNNModule(2, **SMALL).eval()
    images = torch.rand(2, 3, 64, 64)
    tags = torch.zeros(2, 2, dtype=torch.bool)
    batch = Batch(images, tags, Cues.empty(), ("a", "b"), ((64, 64), (40, 50)), ((128, 128), (40, 50)))
    first, second = module.predict_step(batch, 0)
    assert first.size == (128, 128) and second.size == (40, 50)
    for instances in (first, second):
        assert all(tuple(code["size"]) == instances.size for code in instances.masks)
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)


def test_the_official_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = step_decay(optimizer, 900, 10), []
    for _ in range(900):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    found = [rates[i] for i in (0, 5, 10, 599, 600, 799, 800, 899)]
    assert found == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_wrong_arguments_are_named(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names has 1 names for num_classes=2"):
        MaskRCNNModule(2, ["cat"], **SMALL)
    with pytest.raises(ValueError, match="falls towards the training's end: set trainer.max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(MaskRCNNModule(5, **SMALL), make_data(shapes_folder))
    batch = Batch(torch.rand(1, 3, 64, 64), torch.ones(1, 2).bool(), Cues.empty(), ("a",), ((64, 64),), ((64, 64),))
    with pytest.raises(ValueError, match="a training batch needs labels"):
        MaskRCNNModule(2, **SMALL).training_step(batch, 0)


def test_a_checkpoint_of_other_classes_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    """As for every module with a network: names count, not only their number."""
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.strategy.connect(MaskRCNNModule(5, ["a", "b", "c", "d", "e"], **SMALL))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other = MaskRCNNModule(5, ["a", "b", "c", "e", "d"], **SMALL)
    with pytest.raises(ValueError, match="classes are others than the data's"):
        make_trainer(tmp_path).test(other, make_data(shapes_folder), ckpt_path=tmp_path / "one.ckpt")
