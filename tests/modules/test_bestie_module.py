"""BestieModule in training, evaluation and checkpoints, on generated scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.structures import Batch, Cues, InstanceMaps

SHARED = {"object_scale": 0.25, "min_area": 200}


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    defaults = {"batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "crop_size": 64}
    return ShapesDataModule(str(root), **{**sizes, **defaults, **SHARED, **settings})


def make_module(**settings: Any) -> BestieModule:
    defaults = {
        "backbone": "tf_efficientnet_lite0",
        "decoder": "pyramid",
        "backbone_weights": None,
        "supervision": "points",
        "sigma": 16.0,
        "optimizer": "adamw",
        "lr": 2e-3,
    }
    return BestieModule(5, **{**defaults, **SHARED, **settings})


def make_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **settings})


@pytest.fixture
def batch(shapes_folder: Path) -> Batch:
    """One augmented and labelled training batch."""
    data = make_data(shapes_folder, label_quality=True)
    data.setup("fit")
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def losses_of(module: BestieModule, batch: Batch, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def unlogged(module: BestieModule) -> BestieModule:
    """The module outside a Trainer: logging has nowhere to go."""
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


def test_one_batch_can_be_learnt(batch: Batch) -> None:
    torch.manual_seed(0)
    losses = losses_of(unlogged(make_module()), batch, 30)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("supervision", ["tags", "points"])
def test_every_recipe_and_supervision_gives_a_finite_loss_and_gradients(
    shapes_folder: Path, recipe: str, supervision: str
) -> None:
    data = make_data(shapes_folder, supervision=supervision, recipe=recipe, cues_dir="Center_points")
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    module = unlogged(make_module(supervision=supervision, recipe=recipe))
    module.training_step(batch, 0).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_full_supervision_labels_every_object(shapes_folder: Path) -> None:
    data = make_data(shapes_folder, supervision="full", semantic_source="ground_truth", scale_range=(1.0, 1.0))
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.pseudo is not None and batch.semantic is not None
    assert torch.equal(batch.pseudo.ids > 0, (batch.semantic > 0) & (batch.semantic < 255))
    assert len(data.leak_notes) == 2


@pytest.mark.parametrize("switch", ["guidance", "refinement", "clustering"])
def test_every_row_of_table_3_is_a_switch(batch: Batch, switch: str) -> None:
    """With tags, as in the table; maps are given, so that refinement and clustering have something to find."""
    losses = []
    for value in (True, False):
        module = unlogged(make_module(supervision="tags", cluster_tolerance=5.0, **{switch: value}))
        maps = maps_of_truth(batch)
        module.model.forward = lambda images, maps=maps: maps  # type: ignore[method-assign]
        losses.append(float(module.training_step(batch, 0)))
    assert losses[0] != losses[1]


def maps_of_truth(batch: Batch) -> InstanceMaps:
    """What a network that has nearly learnt the batch would say: true offsets, and a heatmap without any peak."""
    from bestie_pl.ops.heatmaps import offset_field

    assert batch.truth is not None and batch.semantic is not None
    logits = torch.nn.functional.one_hot(batch.semantic.long().clamp(max=5), 6).permute(0, 3, 1, 2) * 4.0
    return InstanceMaps(logits, torch.full((len(batch), 5, 64, 64), 0.1), offset_field(batch.truth))


def test_a_batch_without_a_single_label_trains_the_semantic_branch_only(batch: Batch) -> None:
    assert batch.semantic is not None
    nothing = replace(batch, cues=Cues.empty(), semantic=torch.zeros_like(batch.semantic))
    data = make_data(Path("unused"))
    module = unlogged(make_module())
    module.training_step(data.label(nothing), 0).backward()
    grads = {name: p.grad.abs().sum() for name, p in module.named_parameters() if p.grad is not None}
    assert all(value.isfinite() for value in grads.values())
    assert all(value == 0 for name, value in grads.items() if "center" in name or "offset" in name)
    assert any(value > 0 for name, value in grads.items() if "seg" in name or "semantic" in name)


def test_fit_and_test_through_the_trainer(shapes_folder: Path, tmp_path: Path) -> None:
    module, data = make_module(), make_data(shapes_folder, label_quality=True)
    trainer = make_trainer(tmp_path, max_epochs=1, max_steps=-1)
    trainer.fit(module, data)
    assert {"train/loss", "train/pseudo/precision", "train/refined/recall", "val/map50", "val/miou"} <= set(
        trainer.callback_metrics
    )
    (scores,) = trainer.test(module, data, verbose=False)
    assert {
        "test/map25",
        "test/map50",
        "test/map70",
        "test/map75",
        "test/coco_ap",
        "test/coco_ap50",
        "test/miou",
    } <= set(scores)
    assert all(0 <= value <= 1 for value in scores.values())


def test_mixed_precision_trains(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, precision="bf16-mixed", limit_val_batches=1)
    trainer.fit(make_module(), make_data(shapes_folder))
    assert trainer.global_step == 2 and trainer.callback_metrics["train/loss"].isfinite()


def test_the_oracle_is_in_the_name_of_every_score(shapes_folder: Path, tmp_path: Path) -> None:
    for oracle in ("tags", "points"):
        module = make_module(oracle=oracle)
        (scores,) = make_trainer(tmp_path).test(module, make_data(shapes_folder), verbose=False)
        assert scores and all(name.startswith(f"test_oracle_{oracle}/") for name in scores)


def test_predictions_do_not_look_at_tags_or_points(shapes_folder: Path) -> None:
    data = make_data(shapes_folder)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    blind = replace(batch, tags=torch.zeros_like(batch.tags), cues=Cues.empty())
    module = make_module().eval()
    with_labels, without = module.predict_step(batch, 0), module.predict_step(blind, 0)
    assert [p.masks for p in with_labels] == [p.masks for p in without]


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_masks_have_the_original_size_whatever_the_network_saw(recipe: str) -> None:
    """Images of odd sizes, padded together or resized: codes must fit the files."""
    module = make_module(recipe=recipe).eval()
    sizes, originals = (
        (((64, 32),), ((61, 33),)) if recipe == "release" else (((61, 33), (40, 64)), ((61, 33), (20, 32)))
    )
    batch = Batch(
        images=torch.rand(len(sizes), 3, 64, 32 if recipe == "release" else 64),
        tags=torch.zeros(len(sizes), 5, dtype=torch.bool),
        cues=Cues.empty(),
        names=tuple("ab"[: len(sizes)]),
        sizes=sizes,
        original_sizes=originals,
    )
    instances, semantic = module.predict_instances(batch)
    assert [tuple(plane.shape) for plane in semantic] == list(originals)
    for found, size in zip(instances, originals, strict=True):
        assert found.size == size and all(tuple(mask["size"]) == size for mask in found.masks)


def test_padding_does_not_change_a_prediction() -> None:
    """The heads see beyond the border, so only what is no padding may hold an instance."""
    module = make_module().eval()
    image = torch.rand(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image, (0, 64))
    common = {"tags": torch.zeros(1, 5, dtype=torch.bool), "cues": Cues.empty(), "names": ("a",)}
    result = module.predict_step(Batch(padded, sizes=((64, 64),), original_sizes=((64, 64),), **common), 0)
    assert all(tuple(mask["size"]) == (64, 64) for mask in result[0].masks)


def test_mirroring_a_symmetric_image_gives_a_symmetric_result() -> None:
    module = make_module(mirror=True).eval()
    half = torch.rand(1, 3, 64, 32)
    image = torch.cat([half, half.flip(-1)], -1)
    batch = Batch(image, torch.zeros(1, 5, dtype=torch.bool), Cues.empty(), ("a",), ((64, 64),), ((64, 64),))
    maps, _ = module._inference_maps(batch)
    assert torch.allclose(maps.center_heatmap, maps.center_heatmap.flip(-1), atol=1e-4)
    assert torch.allclose(maps.offset_field[:, 1], -maps.offset_field[:, 1].flip(-1), atol=1e-3)
    assert torch.allclose(maps.offset_field[:, 0], maps.offset_field[:, 0].flip(-1), atol=1e-3)


def test_a_checkpoint_alone_gives_the_module_back(shapes_folder: Path, tmp_path: Path) -> None:
    module = make_module(class_names=("a", "b", "c", "d", "e"))
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(module, make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = BestieModule.load_from_checkpoint(tmp_path / "module.ckpt", map_location="cpu")
    assert loaded.class_names == module.class_names and loaded.geometry == module.geometry
    image = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(module.eval()(image), loaded.eval()(image), strict=True):
        assert torch.equal(ours, theirs)


def test_resuming_equals_not_stopping(shapes_folder: Path, tmp_path: Path) -> None:
    def train(checkpoint: Path | None = None) -> BestieModule:
        pl.seed_everything(7)
        module = make_module(lr=1e-3)
        keep_all = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(tmp_path, max_epochs=2, max_steps=-1, limit_val_batches=0, enable_checkpointing=True)
        trainer.callbacks.append(keep_all)
        trainer.fit(module, make_data(shapes_folder), ckpt_path=checkpoint)
        return module

    whole = train()
    resumed = train(tmp_path / "epoch=0.ckpt")
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_of_another_network_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(make_module(), make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    other = BestieModule(5, backbone="hrnet_w18_small", backbone_weights=None, **SHARED)
    with pytest.raises(ValueError, match="backbone='tf_efficientnet_lite0'"):
        make_trainer(tmp_path).test(other, make_data(shapes_folder), ckpt_path=tmp_path / "module.ckpt")


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="class_names has 1 names"):
        BestieModule(2, ["one"])
    with pytest.raises(ValueError, match="peak_window must be odd"):
        make_module(peak_window=40)


def test_it_is_a_part_of_another_lightning_module(batch: Batch) -> None:
    """A user's project may hold it and train it with a loss of its own."""

    class Theirs(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.bestie = BestieModule(num_classes=5, backbone="hrnet_w18_small")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.bestie(images).semantic_logits

    logits = Theirs()(batch.images)
    assert logits.shape == (4, 6, 16, 16)


def test_two_processes_score_like_one(shapes_folder: Path, tmp_path: Path) -> None:
    """Five images on two processes: each is counted once although three and two do not divide evenly."""
    torch.manual_seed(0)
    module = make_module()
    (one,) = make_trainer(tmp_path).test(module, make_data(shapes_folder), verbose=False)
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork")
    (two,) = trainer.test(module, make_data(shapes_folder), verbose=False)
    assert one == two


def test_two_processes_train(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork", max_steps=2, limit_val_batches=1)
    trainer.fit(make_module(), make_data(shapes_folder))
    assert trainer.callback_metrics["train/loss"].isfinite()
