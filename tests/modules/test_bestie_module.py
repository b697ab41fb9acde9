"""BestieModule in training, evaluation and checkpoints, on generated scenes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from quick import make_trainer
from torch import nn
from torch.utils.data import DataLoader

from bestie_pl.callbacks.scores import ScoreWriter
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.errors import UserError
from bestie_pl.modules.bestie import BestieModule, Inference
from bestie_pl.modules.optimization import Optimization
from bestie_pl.structures import Batch, Cues, Geometry, InstanceMaps

SHARED = {"object_scale": 0.25, "min_area": 200}


def make_data(root: Path, *, kind: type[ShapesDataModule] = ShapesDataModule, **settings: Any) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    defaults = {"batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "crop_size": 64}
    return kind(str(root), **{**sizes, **defaults, **SHARED, **settings})


def make_module(**settings: Any) -> BestieModule:
    defaults = {
        "backbone": "tf_efficientnet_lite0",
        "decoder": "pyramid",
        "backbone_weights": None,
        "supervision": "points",
        "object_scale": SHARED["object_scale"],
        "geometry": Geometry(sigma=16.0, min_area=SHARED["min_area"]),
        "optimization": Optimization("adamw", lr=2e-3),
    }
    return BestieModule(5, **{**defaults, **settings})


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


def test_a_compiled_network_trains_the_same(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own backend for debugging, which traces the network but generates no code."""
    calls: list[Any] = []
    compiled = torch.compile

    def compile_quickly(call: Any, **settings: Any) -> Any:
        calls.append(call)
        return compiled(call, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    weights = []
    for compile_network in (False, True):
        pl.seed_everything(0)
        module = make_module(compile_network=compile_network)
        make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, make_data(shapes_folder))
        weights.append(module.state_dict())
        assert len(calls) == compile_network
    for name, value in weights[0].items():
        assert torch.allclose(value.float(), weights[1][name].float(), atol=1e-5), name
    assert weights[0].keys() == weights[1].keys()


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
        module = unlogged(
            make_module(supervision="tags", geometry=Geometry(min_area=200, cluster_tolerance=5.0), **{switch: value})
        )
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


@pytest.mark.parametrize("oracle", ["tags", "points"])
def test_the_oracle_is_in_the_name_of_every_score(
    oracle: str, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Returned, printed, logged and written: after test, validate and the validation within fit."""
    module, data = make_module(oracle=oracle), make_data(shapes_folder)
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(tmp_path, logger=logger, callbacks=[ScoreWriter()], limit_train_batches=1, max_steps=1)
    trainer.fit(module, data)
    logged = [name for name in trainer.logged_metrics if name.split("/")[0] not in OF_TRAINING]
    assert logged and all(name.startswith(f"val_oracle_{oracle}/") for name in logged)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        capsys.readouterr()
        (scores,) = run(module, data)
        printed = [line for line in capsys.readouterr().out.splitlines() if any(name in line for name in LEGEND_NAMES)]
        assert len(printed) == len(scores) and all(f"oracle_{oracle}/" in line for line in printed)
        written = json.loads((tmp_path / f"scores_{stage}.json").read_text())
        assert written["oracle"] == oracle and written["scores"].keys() == scores.keys()
        assert all(name.startswith(f"{stage}_oracle_{oracle}/") for name in scores)
    columns = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    scored = [name for name in columns if "/" in name and name.split("/")[0] not in OF_TRAINING]
    assert scored and all(f"_oracle_{oracle}/" in name for name in scored)


def test_points_that_nobody_gave_are_no_answer(shapes_folder: Path, tmp_path: Path) -> None:
    """A classifier's cues are none, and an image whose file is missing is not one without objects."""
    module = make_module(oracle="points")
    with pytest.raises(ValueError, match="rest on given points, and the data module has none"):
        make_trainer(tmp_path).test(module, make_data(shapes_folder, supervision="tags"), verbose=False)
    data = make_data(shapes_folder, cues_dir=str(tmp_path / "points"))
    shutil.copytree(shapes_folder / "Center_points", tmp_path / "points")
    make_trainer(tmp_path).test(module, data, verbose=False)
    absent = sorted((tmp_path / "points").glob("test_*.txt"))[0]
    absent.unlink()
    data.datasets.clear()
    with pytest.raises(UserError, match=f"no points of the image {absent.stem}"):
        make_trainer(tmp_path).test(module, data, verbose=False)
    with pytest.warns(UserWarning, match=rf"{absent.stem} \(1 of 5 have none\): nothing is predicted there"):
        (first, *_) = make_trainer(tmp_path).predict(module, data)
    absent.write_text("")
    make_trainer(tmp_path).test(module, data, verbose=False)


OF_TRAINING = ("train", "labels", "weight")
LEGEND_NAMES = ("map25", "map50", "map70", "map75", "ap25/", "ap50/", "coco_ap", "miou")


def test_the_score_file_says_which_score_is_whose_and_what_views_it_is_from(
    shapes_folder: Path, tmp_path: Path
) -> None:
    module = make_module(inference=Inference(mirror=True, scales=(0.5, 1.0), average_offsets=False))
    (scores,) = make_trainer(tmp_path, callbacks=[ScoreWriter()]).test(module, make_data(shapes_folder), verbose=False)
    written = json.loads((tmp_path / "scores_test.json").read_text())
    views = {name: written["inference"][name] for name in ("mirror", "scales", "average_offsets")}
    assert views == {"mirror": True, "scales": [0.5, 1.0], "average_offsets": False}
    explained = {name.strip() for names in written["legend"] for name in names.split(",")}
    used = {name.removeprefix("test/") for name in scores}
    per_class = {f"{name}/{c}" for name in ("ap25", "ap50") for c in module.class_names}
    assert used - per_class <= explained
    assert {"coco_ap25", "coco_ap50", "coco_ap70", "coco_ap75", "map25", "map50", "map70", "map75"} <= used


class Poisoned(ShapesDataModule):
    """Wrong tags, and points of wrong classes at wrong places, for every evaluated image."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        count = 3 * len(batch)
        wrong = Cues(
            torch.arange(len(batch)).repeat(3),
            torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 64,
            torch.arange(count) % 5,
            torch.ones(count),
        )
        return replace(batch, tags=~batch.tags, cues=wrong)


@pytest.mark.parametrize(
    ("recipe", "oracle"), [("paper", None), ("release", None), ("paper", "tags"), ("paper", "points")]
)
def test_without_an_oracle_predictions_do_not_look_at_tags_or_points(
    recipe: str, oracle: str | None, shapes_folder: Path, tmp_path: Path
) -> None:
    """Masks, classes, scores and figures are the same with poisoned labels; an oracle is what makes them differ."""
    torch.manual_seed(0)
    module = make_module(
        recipe=recipe, oracle=oracle, inference=Inference(mirror=True, refine="pamr", pamr_iterations=1)
    )
    module.load_state_dict(make_module().state_dict())  # the release's fresh weights find nothing
    found = []
    for kind in (ShapesDataModule, Poisoned):
        data = make_data(shapes_folder, kind=kind, recipe=recipe)
        (scores,) = make_trainer(tmp_path).test(module, data, verbose=False)
        predictions = [p for batch in make_trainer(tmp_path).predict(module, data) for p in batch]
        rows = [(p.masks, p.classes.tolist(), p.scores.tolist()) for p in predictions]
        assert len(rows) == 5
        found.append((rows, scores))
    assert oracle or sum(len(masks) for masks, _, _ in found[0][0]) >= 5  # there is something to compare
    assert (found[0] == found[1]) is (oracle is None)


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


def analytic_maps(images: torch.Tensor) -> InstanceMaps:
    """A network that sees a mirrored or scaled image as it sees the image.

    Of the red channel it tells where its centre of mass is, of the others what is where; a cell knows its 4 x 4 pixels.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height).view(1, -1, 1) + 0.5
    x = torch.arange(width).view(1, 1, -1) + 0.5
    red = images[:, 0]
    center = [(red * place).sum((1, 2)) / red.sum((1, 2)) for place in (y, x)]
    fields = torch.stack([at.view(-1, 1, 1) - place + 0 * red for at, place in zip(center, (y, x), strict=True)], 1)
    logits = torch.stack([images[:, 1], images[:, 2], 1 - images[:, 1], images[:, 1] * images[:, 2]], 1)

    def cells(values: torch.Tensor) -> torch.Tensor:
        padding = (0, -width % 4, 0, -height % 4)
        return nn.functional.avg_pool2d(nn.functional.pad(values, padding, mode="replicate"), 4)

    return InstanceMaps(cells(4 * logits), cells(images[:, 1:]), cells(fields))


@cache
def seeing_module(recipe: str) -> BestieModule:
    module = make_module(recipe=recipe).eval()
    module.model.forward = analytic_maps  # type: ignore[method-assign]
    return module


def seen(
    batch: Batch, recipe: str, mirror: bool = False, scales: Collection[float] = (1.0,), average_offsets: bool = True
) -> tuple[InstanceMaps, tuple[tuple[int, int], ...]]:
    """Maps of a batch by the analytic network, and where they are no padding."""
    module = seeing_module(recipe)
    module.inference = Inference(mirror=mirror, scales=tuple(scales), average_offsets=average_offsets)
    return module._inference_maps(batch)


def smooth_batch(seed: int, sizes: list[tuple[int, int]], originals: list[tuple[int, int]], padded: tuple[int, int]):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), 3, *padded)
    for image, (height, width) in zip(images, sizes, strict=True):
        corners = torch.rand(1, 3, 2, 2, generator=generator)
        image[:, :height, :width] = nn.functional.interpolate(
            corners, (height, width), mode="bilinear", align_corners=True
        )[0]
    names = tuple(f"image{i}" for i in range(len(sizes)))
    return Batch(images, torch.zeros(len(sizes), 5).bool(), Cues.empty(), names, tuple(sizes), tuple(originals))


views = {
    "seed": st.integers(0, 2**31),
    "sizes": st.lists(st.tuples(st.integers(48, 90), st.integers(48, 90)), min_size=1, max_size=3),
    "scales": st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.1, 1.5, 2.0]), min_size=1, max_size=3, unique=True),
    "mirror": st.booleans(),
}


def assert_maps_agree(ours: InstanceMaps, theirs: InstanceMaps, sizes: Sequence[tuple[int, int]]) -> None:
    """Away from the border, where a cell of a small image knows little of what lies between its pixels."""
    probabilities = [maps.semantic_logits.softmax(1) for maps in (ours, theirs)]
    for row, (height, width) in enumerate(sizes):
        inside = (row, slice(None), slice(14, height - 14), slice(14, width - 14))
        assert torch.allclose(ours.offset_field[inside], theirs.offset_field[inside], rtol=0, atol=0.2)
        assert torch.allclose(ours.center_heatmap[inside], theirs.center_heatmap[inside], rtol=0, atol=0.02)
        assert torch.allclose(probabilities[0][inside], probabilities[1][inside], rtol=0, atol=0.02)


@given(**views)
@settings(max_examples=40, deadline=None)
def test_views_of_an_image_agree(seed: int, sizes: list[tuple[int, int]], scales: list[float], mirror: bool) -> None:
    """Maps of mirrored and scaled copies are those of the image itself, whatever its size and its neighbours'."""
    padded = (max(h for h, _ in sizes), max(w for _, w in sizes))
    batch = smooth_batch(seed, sizes, sizes, padded)
    expected, _ = seen(batch, "paper")
    maps, grid = seen(batch, "paper", mirror, scales)
    assert grid == tuple(sizes) and maps.offset_field.shape[-2:] == padded
    assert_maps_agree(maps, expected, sizes)


@given(**views, original=st.tuples(st.integers(48, 90), st.integers(48, 90)))
@settings(max_examples=40, deadline=None)
def test_views_of_an_image_agree_on_the_grid_of_its_file(
    seed: int,
    sizes: list[tuple[int, int]],
    scales: list[float],
    mirror: bool,
    original: tuple[int, int],
) -> None:
    """The release's recipe makes maps at the size of the file; offsets are in pixels of it."""
    size = tuple(-(-side // 32) * 32 for side in sizes[0])  # as its data module resizes images
    batch = smooth_batch(seed, [size], [original], size)
    expected, _ = seen(batch, "release")
    for average_offsets in (True, False):
        maps, grid = seen(batch, "release", mirror, {1.0, *scales}, average_offsets)
        assert grid == (original,) and maps.offset_field.shape[-2:] == original
        assert_maps_agree(maps, expected, grid)
    assert torch.equal(maps.offset_field, expected.offset_field)
    # and the plain maps are right: what lies right of the centre looks left, by as many pixels as there are
    y, x = original[0] // 2, original[1] // 2
    step = expected.offset_field[0, :, y + 8, x + 8] - expected.offset_field[0, :, y, x]
    assert torch.allclose(step, torch.tensor([-8.0, -8.0]), atol=0.7)


@given(seed=st.integers(0, 2**31), size=views["sizes"], mirror=st.booleans(), scale=st.sampled_from([0.5, 1.0, 1.5]))
@settings(max_examples=20, deadline=None)
def test_a_padded_image_is_seen_as_it_is_alone(
    seed: int, size: list[tuple[int, int]], mirror: bool, scale: float
) -> None:
    # multiples of 8, so that both have exactly this scale
    alone = smooth_batch(seed, size[:1], size[:1], tuple(-(-side // 8) * 8 for side in size[0]))
    beside = replace(alone, images=nn.functional.pad(alone.images, (0, 24, 0, 16)))
    expected, _ = seen(alone, "paper", mirror, [scale])
    maps, _ = seen(beside, "paper", mirror, [scale])
    height, width = size[0]
    for ours, theirs in zip(maps, expected, strict=True):
        inside = (..., slice(16, height - 16), slice(16, width - 16))
        assert torch.allclose(ours[inside], theirs[inside], rtol=0, atol=1e-4 if scale == 1 else 0.2)


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_which_maps_are_averaged_is_free_of_the_recipe(recipe: str) -> None:
    """The default follows it: three maps in the paper's, two in the release's."""
    batch = smooth_batch(0, [(64, 64)], [(64, 64)], (64, 64))
    torch.manual_seed(0)
    module = make_module(recipe=recipe).eval()
    plain = module._inference_maps(batch)[0].offset_field
    assert module.inference.average_offsets is (recipe == "paper")
    other = make_module(recipe=recipe, inference=Inference(average_offsets=recipe != "paper"))
    assert other.inference.average_offsets is not module.inference.average_offsets
    for mirror, scales in ((True, (1.0,)), (False, (0.5, 1.0))):
        for averaged in (True, False):
            module.inference = Inference(mirror=mirror, scales=scales, average_offsets=averaged)
            offsets = module._inference_maps(batch)[0].offset_field
            assert torch.equal(offsets, plain) is not averaged


def test_mirroring_a_symmetric_image_gives_a_symmetric_result() -> None:
    module = make_module(inference=Inference(mirror=True, scales=(1.0, 0.75))).eval()
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
        module = make_module(optimization=Optimization(lr=1e-3))
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
    other = BestieModule(5, backbone="hrnet_w18_small", backbone_weights=None, object_scale=0.25)
    with pytest.raises(ValueError, match="backbone='tf_efficientnet_lite0'"):
        make_trainer(tmp_path).test(other, make_data(shapes_folder), ckpt_path=tmp_path / "module.ckpt")


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="class_names has 1 names"):
        BestieModule(2, ["one"])
    with pytest.raises(ValueError, match="peak_window must be odd"):
        make_module(geometry=Geometry(peak_window=40))
    for scales in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="scales must be positive numbers, at least one"):
            make_module(inference=Inference(scales=scales))
    with pytest.raises(ValueError, match=r"scales are \[0.5\]; add 1.0 to them, or set average_offsets: true"):
        make_module(recipe="release", inference=Inference(scales=(0.5,)))


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


class Dictionaries(pl.LightningDataModule):
    """A data module of one's own: it yields what labels are made from, and no labels."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        semantic = (((y - 32) ** 2 + (x - 24) ** 2) < 200).byte() * 3  # one object of class 2
        one = {"image": torch.rand(3, 64, 64), "tags": [2], "semantic": semantic, "points": [(32.0, 24.0, 2)]}
        return DataLoader([one] * self.count, batch_size=2, collate_fn=self.collate)

    def collate(self, images: list[dict[str, Any]]) -> Batch:
        points = [(b, y, x, c) for b, one in enumerate(images) for y, x, c in one["points"]]
        image, y, x, classes = torch.tensor(points).T
        return Batch(
            images=torch.stack([one["image"] for one in images]),
            tags=torch.stack([torch.tensor([c in one["tags"] for c in range(5)]) for one in images]),
            cues=Cues(image.long(), torch.stack([y, x], 1), classes.long(), torch.ones(len(points))),
            semantic=torch.stack([one["semantic"] for one in images]),
            names=tuple(str(b) for b in range(len(images))),
            sizes=((64, 64),) * len(images),
            original_sizes=((64, 64),) * len(images),
        )


def test_a_data_module_of_ones_own_needs_no_labels(tmp_path: Path) -> None:
    module = make_module(supervision="points", geometry=Geometry(min_area=200, sigma=16.0))
    trainer = make_trainer(tmp_path, max_steps=4, max_epochs=-1)
    trainer.fit(module, Dictionaries())
    assert trainer.callback_metrics["train/center_pseudo"] > 0
    assert trainer.callback_metrics["train/offset_refined"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supervision": "tags"}, "data module has supervision 'points', the model 'tags'"),
        ({"recipe": "release"}, "data module has recipe 'paper', the model 'release'"),
        ({"object_scale": 1.0}, r"components need 12 pixels in the data module and 200 in the model"),
    ],
)
def test_data_and_model_that_disagree_do_not_train(
    settings: dict[str, Any], message: str, shapes_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(make_module(**settings), make_data(shapes_folder))


def test_weights_are_read_inside_another_module_too(shapes_folder: Path, tmp_path: Path) -> None:
    """Its ``on_fit_start`` is never called there; loaded states are left alone."""

    class Theirs(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.bestie = make_module(backbone_weights="imagenet")
            self.seen: list[bool] = []

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            heatmap = self.bestie(batch.images).center_heatmap
            self.seen.append(torch.equal(self.bestie.model.network.backbone.conv_stem.weight, expected))
            return heatmap.square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    trained = make_module()
    trained.model.load_backbone_weights("imagenet")
    expected = trained.model.network.backbone.conv_stem.weight.detach().clone()
    fresh = Theirs()
    make_trainer(tmp_path, max_steps=1).fit(fresh, make_data(shapes_folder))
    assert fresh.seen == [True]
    restored = Theirs()
    restored.load_state_dict({f"bestie.{name}": value for name, value in make_module().state_dict().items()})
    make_trainer(tmp_path, max_steps=1).fit(restored, make_data(shapes_folder))
    assert restored.seen == [False]


def test_a_subclass_adds_a_loss(shapes_folder: Path, tmp_path: Path) -> None:
    """As docs/questions.md shows it."""

    class Smooth(BestieModule):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            offsets = self(batch.images).offset_field
            return loss + 0.01 * (offsets[..., 1:] - offsets[..., :-1]).abs().mean()

    settings = {name: value for name, value in make_module().hparams.items() if not name.startswith("_")}
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(Smooth(**settings), make_data(shapes_folder))
    assert trainer.global_step == 1


def test_a_subclass_that_passes_its_arguments_on_has_a_checkpoint_of_plain_types(
    shapes_folder: Path, tmp_path: Path
) -> None:
    class Passing(BestieModule):
        def __init__(self, *arguments: Any, factor: float = 1.0, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.factor = factor

    small: dict[str, Any] = {"backbone": "mobilenetv3_small_100", "decoder": "pyramid", "backbone_weights": None}
    small |= {"supervision": "points", "object_scale": 0.25}
    module = Passing(5, **small, factor=2.0, geometry=Geometry(min_area=200), inference=Inference(scales=(0.5, 1.0)))
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, make_data(shapes_folder))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = Passing.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert loaded.factor == 2.0 and loaded.geometry == module.geometry and loaded.inference.scales == (0.5, 1.0)


def test_counts_are_those_of_all_processes(shapes_folder: Path, tmp_path: Path) -> None:
    class Counting(BestieModule):
        def on_train_start(self) -> None:
            assert float(self.mean_over_processes(torch.tensor(float(self.global_rank)))) == 0.5

    settings = {name: value for name, value in make_module().hparams.items() if not name.startswith("_")}
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork", max_steps=1, limit_val_batches=0)
    trainer.fit(Counting(**settings), make_data(shapes_folder))


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
