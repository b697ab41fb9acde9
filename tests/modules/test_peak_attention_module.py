"""PeakAttentionModule: learning tags, scores, activation maps and cues."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from quick import make_trainer

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.optimization import Optimization
from bestie_pl.modules.peak_attention import ActivationPrediction, PeakAttentionModule
from bestie_pl.ops.cues import activation_planes, find_cues, smooth
from bestie_pl.structures import Batch, Cues


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    defaults: dict[str, Any] = {
        "train_images": 16,
        "val_images": 5,
        "test_images": 5,
        "image_size": 64,
        "supervision": "tags",
        "semantic_source": "none",
        "predict_split": "train",
        "batch_size": 4,
        "eval_batch_size": 2,
        "num_workers": 0,
        "crop_size": 64,
    }
    return ShapesDataModule(str(root), **{**defaults, **settings})


def make_module(**settings: Any) -> PeakAttentionModule:
    defaults: dict[str, Any] = {
        "backbone": "mobilenetv3_small_100",
        "backbone_weights": None,
        "width": 16,
        "pam_layers": 2,
        "cue_window": 5,
    }
    return PeakAttentionModule(5, **{**defaults, **settings})


def ready_module(**settings: Any) -> PeakAttentionModule:
    """One that sees something everywhere: statistics of the data, and class maps that are not negative."""
    torch.manual_seed(0)
    module = make_module(**settings)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    module.model(torch.rand(4, 3, 64, 64))
    module.model.network.get_parameter("classifier.weight").data.abs_()
    return module.eval()


def make_batch(*sizes: tuple[int, int], originals: tuple[tuple[int, int], ...] | None = None) -> Batch:
    """Random images of these sizes, padded together; classes 1 and 3 in all."""
    height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
    images = torch.full((len(sizes), 3, height, width), 0.5)
    draw = torch.Generator().manual_seed(0)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.rand(3, h, w, generator=draw)
    tags = torch.tensor([[False, True, False, True, False]]).repeat(len(sizes), 1)
    names = tuple(f"image{i}" for i in range(len(sizes)))
    return Batch(images, tags, Cues.empty(), names, sizes, originals or sizes)


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.alphas: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        assert batch.semantic is None and batch.images.is_floating_point()
        self.values.append(float(outputs["loss"]))
        self.alphas.append(module.training_alpha)


@pytest.mark.parametrize("pooling", ["mean", "topk", "ngwp"])
def test_tags_are_learnt(shapes_folder: Path, tmp_path: Path, pooling: str) -> None:
    pl.seed_everything(0)
    losses = Losses()
    module = make_module(pooling=pooling, alpha=0.0, optimization=Optimization("adamw", lr=5e-3, weight_decay=0.01))
    trainer = make_trainer(tmp_path, max_steps=60, limit_val_batches=0, callbacks=[losses])
    trainer.fit(module, make_data(shapes_folder, scale_range=(1.0, 1.0), color_jitter=0.0, batch_size=8))
    assert np.mean(losses.values[-6:]) < 0.75 * np.mean(losses.values[:6])


def test_fit_needs_no_map_no_cue_and_no_truth(shapes_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    root.mkdir()
    for name in ("JPEGImages", "ImageSets", "train_cls.txt", "val_cls.txt", "test_cls.txt", "classes.txt"):
        (root / name).symlink_to(shapes_folder / name)
    data = make_data(root, label_quality=False)
    data.prepare_data = lambda: None  # type: ignore[method-assign]  # it would write what is missing
    trainer = make_trainer(tmp_path, max_epochs=1, max_steps=-1)
    trainer.fit(make_module(balance=True), data)
    (scores,) = trainer.test(make_module(), data, verbose=False)
    assert {"val/map", "val/f1"} <= set(trainer.callback_metrics) | {n.replace("test", "val") for n in scores}
    assert any(name.startswith("test/ap/") for name in scores)
    assert all(0 <= value <= 1 for value in scores.values())


def test_alpha_rises_in_training_only(shapes_folder: Path, tmp_path: Path) -> None:
    losses = Losses()
    module = make_module(alpha=0.8, alpha_ramp_steps=4)
    make_trainer(tmp_path, max_steps=6, limit_val_batches=0, callbacks=[losses]).fit(module, make_data(shapes_folder))
    assert losses.alphas == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert module.model.alpha == 0.8


def test_scores_by_hand() -> None:
    """Two images; the class without a positive image counts nowhere."""
    module = make_module()
    logged: dict[str, float] = {}
    module.log_dict = lambda values, **_: logged.update({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
    logits = iter([torch.tensor([[2.0, -1.0, 3.0, -3.0, -3.0]]), torch.tensor([[1.0, -2.0, 1.0, -3.0, -3.0]])])
    module.forward = lambda images: next(logits)  # type: ignore[method-assign]
    for tags in ([0, 1], [0]):
        batch = make_batch((32, 32))
        row = torch.zeros(1, 5, dtype=torch.bool)
        row[0, tags] = True
        module.validation_step(replace(batch, tags=row), 0)
    module.on_validation_epoch_end()
    # class 0: found twice; class 1: ranked first but under one half; class 2 has no positive image
    assert logged == pytest.approx({"val/ap/class0": 1, "val/ap/class1": 1, "val/map": 1, "val/f1": 0.5})


def test_balance_weighs_rare_classes(shapes_folder: Path, tmp_path: Path) -> None:
    module, data = make_module(balance=True), make_data(shapes_folder)
    make_trainer(tmp_path, limit_val_batches=0).fit(module, data)
    positive, images = data.tag_counts()
    expected = ((images - positive) / positive.clamp(min=1)).clamp(1, 10)
    assert module.pos_weight is not None and torch.allclose(module.pos_weight, expected)
    assert "pos_weight" not in module.state_dict()


def test_the_releases_optimiser(shapes_folder: Path, tmp_path: Path) -> None:
    """Four groups, biases twice as fast, a tenth from the start of the epochs 5 and 10 on."""
    rates: list[list[float]] = []

    class Rates(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = make_module(optimization=Optimization("sgd", lr=0.01, backbone_lr_factor=0.1, weight_decay=0.01))
    settings: dict[str, Any] = {"max_epochs": 10, "max_steps": -1, "limit_train_batches": 1, "limit_val_batches": 0}
    make_trainer(tmp_path, callbacks=[Rates()], **settings).fit(module, make_data(shapes_folder))
    first = [0.001, 0.002, 0.01, 0.02]
    assert rates[0] == rates[3] == pytest.approx(first)
    assert rates[4] == rates[8] == pytest.approx([rate / 10 for rate in first])
    assert rates[9] == pytest.approx([rate / 100 for rate in first])


@pytest.mark.parametrize("mirror", [False, True])
def test_activation_maps_are_of_tags_and_of_no_padding(mirror: bool) -> None:
    module = ready_module(mirror=mirror)
    batch = make_batch((64, 64), (48, 40), (33, 64))
    batch = replace(batch, tags=batch.tags & torch.tensor([[True], [True], [False]]))
    maps = module.predict_step(batch, 0).activations
    assert [tuple(m.shape) for m in maps] == [(2, 64, 64), (2, 48, 40), (0, 33, 64)]
    for b, (own, (h, w)) in enumerate(zip(maps, batch.sizes, strict=True)):
        image = Batch(
            batch.images[b : b + 1, :, :h, :w], batch.tags[b : b + 1], Cues.empty(), ("a",), ((h, w),), ((h, w),)
        )
        (alone,) = module.predict_step(image, 0).activations
        assert own.dtype == torch.float32 and torch.allclose(own, alone, atol=1e-4)
        assert (own.amax((1, 2)) > 0.5).all() and (own <= 1).all()


def test_mirroring_an_image_mirrors_its_maps() -> None:
    module = ready_module(mirror=True, scales=(1.0, 0.75))
    batch = make_batch((48, 64))
    (plain,) = module.predict_step(batch, 0).activations
    (mirrored,) = module.predict_step(replace(batch, images=batch.images.flip(-1)), 0).activations
    assert torch.allclose(plain, mirrored.flip(-1), atol=1e-4) and plain.max() > 0.5


def test_affinity_changes_the_maps_but_not_the_cues() -> None:
    batch = make_batch((64, 64), (48, 40))
    plain, spread = (ready_module(affinity=on, scales=(1.0, 1.5)).predict_step(batch, 0) for on in (False, True))
    for one, other in zip(plain.cues, spread.cues, strict=True):
        assert one.yx.equal(other.yx)
    for one, other in zip(plain.activations, spread.activations, strict=True):
        assert one.shape == other.shape and not one.allclose(other)
        torch.testing.assert_close(other.amax((1, 2)), torch.ones(len(other)))


@pytest.mark.parametrize("width", [72, 71, 65])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_spread_maps_lie_where_the_features_do(width: int, scale: float) -> None:
    """Whatever the last cell of stride 8 covers beside the image."""
    module = ready_module(affinity=True, scales=(scale,))
    cell = module.model.strides[0] / scale  # in pixels of the image
    cells = math.ceil(width / cell)
    features = torch.where(torch.arange(cells) * cell >= 32, 1.0, -1.0).expand(1, 1, math.ceil(16 / cell), cells)
    module.model.fine_features = lambda images: features  # type: ignore[method-assign]
    planes = torch.where(torch.arange(width) >= 36, 1.0, 0.9).expand(1, 16, width)
    (spread,) = module._spread(planes, torch.zeros(1, 3, 16, width), torch.zeros(1).long())
    inside = spread[8] > 0.5
    assert spread.shape == (16, width) and not inside[:31].any() and inside[33:].all()


def test_cues_and_maps_have_scales_of_their_own() -> None:
    """Each is what it would be if both had its scales."""
    batch = make_batch((48, 64))

    def predict(**scales: Sequence[float]) -> ActivationPrediction:
        module = ready_module(mirror=True, cue_threshold=0.05, **scales)
        return module.predict_step(batch, 0)

    mixed, small, large = (
        predict(scales=(0.5,), cue_scales=(1.0, 1.5)),
        predict(scales=(0.5,)),
        predict(scales=(1, 1.5)),
    )
    assert torch.allclose(mixed.activations[0], small.activations[0], atol=1e-6)
    assert torch.equal(mixed.cues[0].yx, large.cues[0].yx) and len(mixed.cues[0])
    assert not torch.equal(small.cues[0].scores, large.cues[0].scores)


@pytest.mark.parametrize("case", ["cam0", "cam1", "cam2"])
@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_predictions_are_the_releases_cues(
    golden: Callable[[str], dict[str, np.ndarray]], case: str, recipe: str
) -> None:
    """With recorded class maps in the place of the network's; none of these cases has a plateau."""
    data = golden("j_pam")
    maps = torch.from_numpy(data[f"{case}_logits_map"])
    module = PeakAttentionModule(
        maps.shape[1],
        backbone="vgg16",
        backbone_weights=None,
        alpha=0.0,
        recipe=recipe,  # type: ignore[arg-type]
    )
    seen = iter(maps[:, None])
    module.model.forward = lambda images, alpha=None: next(seen)  # type: ignore[method-assign]
    height, width = (8 * side for side in maps.shape[-2:])
    batch = Batch(
        images=torch.zeros(1, 3, height, width),
        tags=torch.from_numpy(data[f"{case}_tags"]).bool(),
        cues=Cues.empty(),
        names=("a",),
        sizes=((height, width),),
        original_sizes=(tuple(data[f"{case}_size"].tolist()),),
    )
    (cues,) = module.predict_step(batch, 0).cues
    found = np.column_stack([cues.yx.flip(1), cues.classes, cues.scores])
    expected = data[f"{case}_out_points_x_y_cls_conf"]
    order, reference = np.lexsort(found.T[:3]), np.lexsort(expected.T[:3])
    assert np.array_equal(found[order, :3], expected[reference, :3])
    assert np.allclose(found[order, 3], expected[reference, 3], atol=1e-4)


def test_cues_are_in_pixels_of_the_file() -> None:
    module = ready_module(cue_window=9)
    batch = make_batch((64, 64), (48, 40), (64, 64), originals=((128, 100), (48, 40), (64, 64)))
    prediction = module.predict_step(batch, 0)
    assert len(prediction.cues) == 3
    for b, cues in enumerate(prediction.cues):
        h, w = batch.sizes[b]
        image = batch.images[b : b + 1, :, :h, :w]
        classes = torch.tensor([1, 3])
        planes = 0
        for x in (image, image.flip(-1)):
            aligned = module.model.align(module.model(x)[0, classes], (h, w))
            plane = activation_planes(aligned, batch.original_sizes[b])
            planes = planes + (plane if x is image else plane.flip(-1)) / 2
        expected = find_cues(smooth(planes), torch.zeros(2).long(), classes, window=9)  # type: ignore[arg-type]
        assert torch.equal(cues.yx, expected.yx) and torch.equal(cues.classes, expected.classes)
        assert torch.allclose(cues.scores, expected.scores, atol=1e-5) and cues.image.sum() == 0
        assert set(cues.classes.tolist()) == {1, 3}
        assert prediction.activations[b].shape == (2, h, w), "at the size that the network saw"


def test_an_image_without_tags_has_no_cue() -> None:
    batch = make_batch((64, 64))
    (cues,), (maps,) = make_module().eval().predict_step(replace(batch, tags=torch.zeros_like(batch.tags)), 0)
    assert len(cues) == 0 and maps.shape == (0, 64, 64)


def test_a_checkpoint_alone_gives_the_module_back(shapes_folder: Path, tmp_path: Path) -> None:
    module = make_module(class_names=("a", "b", "c", "d", "e"), pooling="ngwp", scales=(1.0, 0.5))
    trainer = make_trainer(tmp_path, enable_checkpointing=True, limit_val_batches=0)
    trainer.fit(module, make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = PeakAttentionModule.load_from_checkpoint(tmp_path / "module.ckpt", map_location="cpu")
    assert loaded.class_names == module.class_names and loaded.scales == (1.0, 0.5)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(module.eval()(image), loaded.eval()(image))
    with pytest.raises(ValueError, match="pooling='ngwp', the configuration or the data says 'mean'"):
        make_trainer(tmp_path).test(make_module(), make_data(shapes_folder), ckpt_path=tmp_path / "module.ckpt")


def test_two_processes_score_like_one(shapes_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make_module()
    (one,) = make_trainer(tmp_path).test(module, make_data(shapes_folder), verbose=False)
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork")
    (two,) = trainer.test(module, make_data(shapes_folder), verbose=False)
    assert one == pytest.approx(two)


def test_two_processes_train(shapes_folder: Path, tmp_path: Path) -> None:
    """DDP refuses parameters without a gradient, so the unused stage of the backbone must be out of its sight."""
    module = make_module(strides=(8, 16), pooling="ngwp", alpha=0.5)
    make_trainer(tmp_path, devices=2, strategy="ddp_fork", limit_val_batches=1).fit(module, make_data(shapes_folder))


def test_one_class_is_enough() -> None:
    module = PeakAttentionModule(1, backbone="mobilenetv3_small_100", backbone_weights=None, width=16).eval()
    logged: dict[str, float] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    for present in (True, False):
        module.validation_step(replace(make_batch((32, 32)), tags=torch.tensor([[present]])), 0)
    module.on_validation_epoch_end()
    assert {"val/ap/class0", "val/map", "val/f1"} == set(logged)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["one"]}, "class_names has 1 names"),
        ({"cue_window": 4}, "cue_window must be odd"),
        ({"cue_threshold": 0.0}, "cue_threshold must be between"),
        ({"scales": ()}, "scales must be positive"),
        ({"cue_scales": (0.0,)}, "cue_scales must be positive"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**settings)


def test_a_resumed_training_needs_no_backbone_file(shapes_folder: Path, tmp_path: Path) -> None:
    """The checkpoint replaces the weights, and the file may be gone on the machine that goes on."""
    trainer = make_trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    trainer.fit(make_module(), make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = make_module(backbone_weights=str(tmp_path / "gone.pth"))
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        make_trainer(tmp_path).fit(module, make_data(shapes_folder))
    resumed = make_trainer(tmp_path, enable_checkpointing=True)
    resumed.fit(module, make_data(shapes_folder), ckpt_path=tmp_path / "one.ckpt")
    assert resumed.global_step == 2
