"""SemanticModule in training and prediction, and BestieModule that starts from it or refines at test."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quick
import torch
from torch.nn import functional as F

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule, Inference
from bestie_pl.modules.optimization import Optimization
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.structures import Batch, Cues

SMALL: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "decoder": "pyramid", "backbone_weights": None}


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    defaults = {"batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "crop_size": 64, "predict_split": "train"}
    return ShapesDataModule(str(root), **{**sizes, **defaults, **settings})


make_trainer = partial(quick.make_trainer, limit_val_batches=0)


def batch_of(images: torch.Tensor, sizes: tuple[tuple[int, int], ...], tags: torch.Tensor | None = None) -> Batch:
    if tags is None:
        tags = torch.zeros(len(images), 5, dtype=torch.bool)
    return Batch(images, tags, Cues.empty(), tuple("abcd"[: len(images)]), sizes, sizes)


@pytest.fixture(scope="module")
def semantic_checkpoint(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the semantic round."""
    folder = tmp_path_factory.mktemp("semantic")
    trainer = make_trainer(folder, enable_checkpointing=True)
    trainer.fit(
        SemanticModule(5, **SMALL, optimization=Optimization("adamw", lr=1e-3, weight_decay=0.1)),
        make_data(shapes_folder),
    )
    trainer.save_checkpoint(folder / "semantic.ckpt")
    return folder / "semantic.ckpt"


def test_the_maps_of_one_batch_can_be_learnt(shapes_folder: Path) -> None:
    torch.manual_seed(0)
    data = make_data(shapes_folder)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    module = SemanticModule(5, **SMALL)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [("hrnet_w18_small", "heads"), ("tf_efficientnet_lite0", "pyramid"), ("resnet18", "panoptic_deeplab")],
)
def test_what_is_trained_is_what_the_semantic_loss_reaches(backbone: str, decoder: Any) -> None:
    """Neither a parameter without a gradient, for which DDP would wait, nor a frozen one that had some."""
    module = SemanticModule(2, backbone=backbone, decoder=decoder, backbone_weights=None)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    module(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert frozen == {name for name, p in module.named_parameters() if p.grad is None}


def test_scores_say_which_of_them_are_refined(shapes_folder: Path, tmp_path: Path) -> None:
    for refine, expected in (("pamr", {"test", "test_pamr"}), (None, {"test"})):
        module = SemanticModule(5, **SMALL, refine=refine)
        (scores,) = make_trainer(tmp_path).test(module, make_data(shapes_folder), verbose=False)
        assert {name.split("/")[0] for name in scores} == expected and "test/miou" in scores


def test_validation_does_not_look_at_tags(shapes_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SemanticModule(5, **SMALL)
    found = []
    for blind in (False, True):
        data = make_data(shapes_folder)
        data.setup("test")
        if blind:
            split = data.datasets["test"].split  # type: ignore[attr-defined]
            split.tags.zero_()
        found.append(make_trainer(tmp_path).test(module, data, verbose=False)[0])
    assert found[0] == found[1]


def test_predicted_maps_hold_tagged_classes_at_the_original_size() -> None:
    torch.manual_seed(0)
    module = SemanticModule(5, **SMALL).eval()
    tags = torch.tensor([[False, True, False, True, False], [False] * 5])
    batch = batch_of(torch.rand(2, 3, 64, 64), ((61, 33), (40, 64)), tags)
    maps, agreement = module.predict_step(batch, 0)
    assert [tuple(m.shape) for m in maps] == [(61, 33), (40, 64)] and maps[0].dtype == torch.uint8
    assert set(maps[0].unique().tolist()) <= {0, 2, 4} and maps[1].sum() == 0
    assert agreement is not None and len(agreement) == 2 and agreement[1] == 1.0
    plain = SemanticModule(5, **SMALL, mirror=False, refine=None, use_tags=False).eval()
    maps, agreement = plain.predict_step(batch, 0)
    assert agreement is None
    logits = plain(batch.images)
    assert torch.equal(maps[0], logits[0].argmax(0)[:61, :33].byte())


def test_a_class_that_is_never_likeliest_appears_where_its_tag_says_so() -> None:
    torch.manual_seed(0)
    module = SemanticModule(5, **SMALL, refine=None).eval()
    with torch.no_grad():
        for parameter in module.model.parameters():
            if parameter.shape == (6,):  # the biases of the semantic logits
                parameter[2] -= 50
    batch = batch_of(torch.rand(1, 3, 64, 64), ((64, 64),), torch.tensor([[False, True, False, True, False]]))
    assert 2 in module.predict_step(batch, 0).maps[0]
    module.use_tags = False
    assert 2 not in module.predict_step(batch, 0).maps[0]


def test_predicted_maps_are_of_probabilities_averaged_over_scales() -> None:
    torch.manual_seed(0)
    settings = {**SMALL, "mirror": False, "refine": None, "use_tags": False}
    one, two = (SemanticModule(5, **settings, scales=scales).eval() for scales in ([1.0], [1.0, 2.0]))
    two.load_state_dict(one.state_dict())
    batch = batch_of(torch.rand(1, 3, 40, 64), ((40, 64),), torch.ones(1, 5, dtype=torch.bool))
    small = one(batch.images).softmax(1)
    large = F.avg_pool2d(two(F.interpolate(batch.images, scale_factor=2.0, mode="bilinear")).softmax(1), 2)
    best = ((small + large) / 2).topk(2, 1)
    lead = (best.values[:, 0] - best.values[:, 1])[0]
    sure = lead > lead.median()
    maps, _ = two.predict_step(batch, 0)
    assert torch.equal(maps[0][sure], best.indices[0, 0].byte()[sure])
    with pytest.raises(ValueError, match="scales"):
        SemanticModule(5, **settings, scales=[0.0])


def test_a_lower_threshold_gives_more_foreground_and_never_less() -> None:
    torch.manual_seed(0)
    images, tags = torch.rand(1, 3, 64, 64), torch.tensor([[False, True, False, True, False]])
    first = SemanticModule(5, **SMALL)
    maps = []
    for threshold in (0.99, 0.5, 0.01):
        module = SemanticModule(5, **SMALL, foreground_threshold=threshold).eval()
        module.load_state_dict(first.state_dict())
        maps.append(module.predict_step(batch_of(images, ((64, 64),), tags), 0).maps[0])
    for less, more in zip(maps, maps[1:], strict=False):
        assert torch.equal(less[less > 0], more[less > 0])
    assert (maps[0] > 0).sum() < (maps[2] > 0).sum()
    with pytest.raises(ValueError, match="foreground_threshold"):
        SemanticModule(5, **SMALL, foreground_threshold=1.0)


def test_wide_refinement_goes_into_the_maps_and_the_names_of_scores(shapes_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = batch_of(torch.rand(1, 3, 64, 64), ((64, 64),), torch.ones(1, 5, dtype=torch.bool))
    near, wide = (SemanticModule(5, **SMALL, refine=refine).eval() for refine in ("pamr", "wide"))
    wide.load_state_dict(near.state_dict())
    assert not torch.equal(near.predict_step(batch, 0).maps[0], wide.predict_step(batch, 0).maps[0])
    (scores,) = make_trainer(tmp_path).test(wide, make_data(shapes_folder), verbose=False)
    assert {"test/miou", "test_wide/miou"} <= scores.keys()


def test_another_round_goes_on_from_the_one_before(
    semantic_checkpoint: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    trained = torch.load(semantic_checkpoint, weights_only=True)["state_dict"]
    module = SemanticModule(5, **{**SMALL, "backbone_weights": "absent.pth"}, init_from=str(semantic_checkpoint))
    make_trainer(tmp_path, max_steps=1, limit_train_batches=0).fit(module, make_data(shapes_folder))
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in module.model.state_dict().items())


def test_bestie_starts_from_the_semantic_round(semantic_checkpoint: Path, shapes_folder: Path, tmp_path: Path) -> None:
    trained = torch.load(semantic_checkpoint, weights_only=True)["state_dict"]
    module = BestieModule(
        5, **{**SMALL, "backbone_weights": "absent.pth"}, supervision="points", init_from=str(semantic_checkpoint)
    )
    fresh = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer = make_trainer(tmp_path, max_steps=1, limit_train_batches=0, enable_checkpointing=True)
    trainer.fit(module, make_data(shapes_folder))
    started = module.model.state_dict()
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in started.items())
    assert any(not torch.equal(value, fresh[name]) for name, value in started.items() if "backbone" in name)
    # weight decay has not touched what no loss reached: a centre heatmap still starts near 0
    last = started["network.decoder.center.1.weight"]
    assert 0 < float(last.std()) < 0.002

    trainer.save_checkpoint(tmp_path / "bestie.ckpt")
    again = BestieModule.load_from_checkpoint(tmp_path / "bestie.ckpt")
    assert again.init_from == str(semantic_checkpoint)


def test_a_resumed_training_does_not_start_over(semantic_checkpoint: Path, shapes_folder: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "supervision": "points", "init_from": str(tmp_path / "gone.ckpt")}
    (tmp_path / "gone.ckpt").write_bytes(semantic_checkpoint.read_bytes())
    trainer = make_trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    trainer.fit(BestieModule(5, **settings), make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "bestie.ckpt")
    (tmp_path / "gone.ckpt").unlink()
    resumed = make_trainer(tmp_path, max_steps=2, enable_checkpointing=True)
    resumed.fit(BestieModule(5, **settings), make_data(shapes_folder), ckpt_path=tmp_path / "bestie.ckpt")
    assert resumed.global_step == 2
    make_trainer(tmp_path).test(BestieModule(5, **settings), make_data(shapes_folder), verbose=False)
    with pytest.raises(FileNotFoundError, match="gone.ckpt"):
        make_trainer(tmp_path).fit(BestieModule(5, **settings), make_data(shapes_folder))


def test_a_start_from_another_network_names_what_differs(
    semantic_checkpoint: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    data = make_data(shapes_folder)
    module = BestieModule(6, **SMALL, supervision="points", init_from=str(semantic_checkpoint))
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"seg\.1\.weight \(6, 64, 1, 1\) instead of \(7.*num_classes=5"):
        make_trainer(tmp_path).fit(module, data)
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    other = BestieModule(5, backbone="hrnet_w18_small", supervision="points", init_from=str(semantic_checkpoint))
    with pytest.raises(ValueError, match="missing: network.*backbone='tf_efficientnet_lite0'"):
        make_trainer(tmp_path).fit(other, make_data(shapes_folder))
    (tmp_path / "text.ckpt").write_text("no tensors")
    with pytest.raises(ValueError, match="nothing else is loaded"):
        make_trainer(tmp_path).fit(
            BestieModule(5, **SMALL, supervision="points", init_from=str(tmp_path / "text.ckpt")),
            make_data(shapes_folder),
        )


def test_refinement_at_test_is_in_the_name_of_every_score(shapes_folder: Path, tmp_path: Path) -> None:
    for oracle, prefix in ((None, "test_pamr"), ("tags", "test_oracle_tags_pamr")):
        module = BestieModule(5, **SMALL, inference=Inference(refine="pamr"), oracle=oracle)
        (scores,) = make_trainer(tmp_path).test(module, make_data(shapes_folder), verbose=False)
        assert scores and all(name.startswith(f"{prefix}/") for name in scores)


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_refinement_at_test_stops_at_padding_and_fits_every_size(recipe: Any) -> None:
    torch.manual_seed(0)
    module = BestieModule(5, **SMALL, recipe=recipe, inference=Inference(refine="pamr", pamr_iterations=3)).eval()
    if recipe == "release":  # resized to a multiple of 32, evaluated alone, at the size of the file
        batch = Batch(
            torch.rand(1, 3, 64, 32),
            torch.zeros(1, 5, dtype=torch.bool),
            Cues.empty(),
            ("a",),
            ((64, 32),),
            ((61, 33),),
        )
        instances, semantic = module.predict_instances(batch)
        assert instances[0].size == (61, 33) and semantic[0].shape == (61, 33)
        return
    images = torch.rand(2, 3, 64, 64)
    batch = batch_of(images, ((64, 40), (33, 64)))
    maps, _ = module._inference_maps(batch)
    module.inference = replace(module.inference, refine=None)
    plain, _ = module._inference_maps(batch)
    repainted = images.clone()
    repainted[0, :, :, 40:] = 0
    from bestie_pl.ops.semantic import refine_logits

    expected = refine_logits(plain.semantic_logits, repainted, sizes=batch.sizes, iterations=3)
    assert torch.allclose(maps.semantic_logits, expected, atol=1e-6)
    assert not torch.allclose(maps.semantic_logits.softmax(1), plain.semantic_logits.softmax(1), atol=1e-3)
    assert torch.equal(maps.center_heatmap, plain.center_heatmap)
