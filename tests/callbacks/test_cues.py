"""Cue files and their report: format, resuming, several processes, truth for the report only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from quick import make_trainer

from bestie_pl.callbacks.cues import CueWriter
from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.semantic_maps import SemanticMapWriter
from bestie_pl.data.formats.cues import format_cues, read_cues
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.structures import Cues


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    defaults: dict[str, Any] = {
        "train_images": 16,
        "val_images": 5,
        "test_images": 5,
        "image_size": 64,
        "supervision": "tags",
        "semantic_source": "none",
        "predict_split": "val",
        "eval_batch_size": 2,
        "num_workers": 0,
    }
    return ShapesDataModule(str(root), **{**defaults, **settings})


@pytest.fixture
def module() -> PeakAttentionModule:
    """A classifier that sees every class in places of strong colour."""
    module = PeakAttentionModule(5, backbone="mobilenetv3_small_100", backbone_weights=None, width=16, cue_window=5)
    module.model.forward = colorful  # type: ignore[method-assign]
    return module


def colorful(images: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images.std(1, keepdim=True), 8).repeat(1, 5, 1, 1)


def predict(module: pl.LightningModule, data: Any, folder: Path, *callbacks: pl.Callback, **settings: Any) -> None:
    trainer = make_trainer(folder, callbacks=list(callbacks), **settings)
    trainer.predict(module, data, return_predictions=False)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


def names_of(root: Path, split: str) -> list[str]:
    return [line.split()[0] for line in (root / f"{split}_cls.txt").read_text().splitlines()]


def test_lines_are_the_releases() -> None:
    two = torch.tensor([0, 0])
    cues = Cues(two, torch.tensor([[3.0, 40.0], [12.0, 0.0]]), torch.tensor([1, 14]), torch.tensor([0.70049, 1.0]))
    assert format_cues(cues) == "40 3 1 0.700\n0 12 14 1.000\n"
    assert format_cues(Cues.empty()) == ""


def test_every_image_gets_a_file_that_training_reads(
    module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path
) -> None:
    writer = CueWriter(str(tmp_path / "cues"))
    predict(module, make_data(shapes_folder), tmp_path, writer, PredictionWriter())
    names = names_of(shapes_folder, "val")
    assert sorted(content(tmp_path / "cues")) == sorted(f"{name}.txt" for name in names)
    assert not (tmp_path / "predictions").exists()
    tags = {line.split()[0]: line.split()[1:] for line in (shapes_folder / "val_cls.txt").read_text().splitlines()}
    for name in names:
        cues = read_cues(tmp_path / "cues" / f"{name}.txt", (64, 64), 5)
        assert sorted({int(c) for c in cues.classes}) == sorted(map(int, tags[name]))
        assert cues.classes.tolist() == sorted(cues.classes.tolist()) and cues.scores.min() >= 0.1


def test_the_report_measures_with_the_truth_only_where_asked(
    module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path
) -> None:
    reports = []
    for quality in (False, True):
        writer = CueWriter(str(tmp_path / f"cues{quality}"))
        predict(module, make_data(shapes_folder, label_quality=quality), tmp_path, writer)
        reports.append(json.loads((tmp_path / "cue_report.json").read_text()))
    blind, seeing = reports
    assert blind["images"] == seeing["images"] == 5 and blind["measured_images"] == 0
    assert blind["thresholds"][0]["precision"] is None and seeing["instances"] > 0
    for row, same in zip(seeing["thresholds"], blind["thresholds"], strict=True):
        assert row["cues"] == same["cues"] and row["tags_with_one_cue"] == same["tags_with_one_cue"]
    assert 0 < seeing["thresholds"][0]["precision"] <= 1
    assert seeing["settings"]["pooling"] == "mean" and seeing["settings"]["alpha"] == 0.7
    assert content(tmp_path / "cuesFalse") == content(tmp_path / "cuesTrue")


def test_an_interrupted_run_goes_on(module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    step = module.predict_step
    module.predict_step = lambda batch, batch_idx: (seen.extend(batch.names), step(batch, batch_idx))[1]  # type: ignore[method-assign]
    folder, data = tmp_path / "cues", make_data(shapes_folder, label_quality=True)
    predict(module, data, tmp_path, CueWriter(str(folder)))
    whole, report = content(folder), json.loads((tmp_path / "cue_report.json").read_text())
    names = names_of(shapes_folder, "val")
    (folder / f"{names[1]}.txt").unlink()
    (folder / f"{names[3]}.txt").unlink()
    seen.clear()
    predict(module, data, tmp_path, CueWriter(str(folder)))
    assert sorted(seen) == sorted([names[1], names[3]]) and content(folder) == whole
    again = json.loads((tmp_path / "cue_report.json").read_text())
    assert {**again, "environment": None} == {**report, "environment": None}

    seen.clear()
    (tmp_path / "cue_report.json").unlink()
    predict(module, data, tmp_path, CueWriter(str(folder)))
    assert seen == [] and (tmp_path / "cue_report.json").exists()
    predict(module, data, tmp_path, CueWriter(str(folder), overwrite=True))
    assert len(seen) == 5


def test_files_are_asked_only_for_what_is_in_them(shapes_folder: Path, tmp_path: Path) -> None:
    def classifier(**settings: Any) -> PeakAttentionModule:
        torch.manual_seed(0)
        settings = {"backbone": "mobilenetv3_small_100", "backbone_weights": None, "width": 16, **settings}
        return PeakAttentionModule(5, cue_window=5, cue_scales=[1.0], **settings)

    cues, maps, data = tmp_path / "cues", tmp_path / "maps", make_data(shapes_folder)
    predict(classifier(), data, tmp_path, CueWriter(str(cues)), SemanticMapWriter(str(maps)))
    before = content(cues)
    others = tmp_path / "others"
    other = classifier(affinity=True, scales=[1.0, 1.5])
    predict(other, data, tmp_path, CueWriter(str(cues)), SemanticMapWriter(str(others)))
    assert content(cues) == before and len(list(others.glob("*.png"))) == 5
    anew = tmp_path / "anew"
    predict(other, data, tmp_path, CueWriter(str(anew)))
    assert content(anew) == before  # so the setting was rightly left out
    with pytest.raises(ValueError, match=r"other model.affinity .*model.scales"):
        predict(other, data, tmp_path, SemanticMapWriter(str(maps)))

    more = classifier(cue_threshold=0.4)
    predict(more, data, tmp_path, CueWriter(str(tmp_path / "more")), SemanticMapWriter(str(maps)))
    with pytest.raises(ValueError, match="other model.cue_threshold"):
        predict(more, data, tmp_path, CueWriter(str(cues)))


def test_two_processes_write_each_image_once(module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path) -> None:
    for name, settings in {"one": {}, "two": {"devices": 2, "strategy": "ddp_fork"}}.items():
        (tmp_path / name).mkdir()
        writer = CueWriter(str(tmp_path / name / "cues"))
        predict(module, make_data(shapes_folder, label_quality=True), tmp_path / name, writer, **settings)
    assert content(tmp_path / "one" / "cues") == content(tmp_path / "two" / "cues")
    one, two = (json.loads((tmp_path / name / "cue_report.json").read_text()) for name in ("one", "two"))
    assert one["thresholds"] == two["thresholds"] and one["images"] == two["images"] == 5


def test_one_process_may_have_nothing_left_to_do(
    module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "cues", make_data(shapes_folder)
    predict(module, data, tmp_path, CueWriter(str(folder)))
    (folder / f"{names_of(shapes_folder, 'val')[2]}.txt").unlink()
    predict(module, data, tmp_path, CueWriter(str(folder)), devices=2, strategy="ddp_fork")
    assert len(content(folder)) == 5
    assert json.loads((tmp_path / "cue_report.json").read_text())["images"] == 5


def test_cues_go_where_the_data_module_looks(shapes_folder: Path, tmp_path: Path) -> None:
    trainer = pl.Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule = make_data(shapes_folder)  # type: ignore[attr-defined]
    assert CueWriter().folder(trainer) == shapes_folder / "Peak_points"
    assert CueWriter("mine").folder(trainer) == shapes_folder / "mine"
    assert CueWriter(str(tmp_path / "mine")).folder(trainer) == tmp_path / "mine"
    trainer.datamodule = None  # type: ignore[attr-defined]
    assert CueWriter("mine").folder(trainer) == Path("mine")
    assert CueWriter().folder(trainer) == tmp_path / "cues"


def test_it_leaves_other_modules_alone(shapes_folder: Path, tmp_path: Path) -> None:
    module = BestieModule(5, backbone="hrnet_w18_small", backbone_weights=None, object_scale=0.25)
    data = make_data(shapes_folder, supervision="points", semantic_source="folder", object_scale=0.25)
    predict(module, data, tmp_path, CueWriter(str(tmp_path / "cues")), limit_predict_batches=1)
    assert not (tmp_path / "cues").exists() and not (tmp_path / "cue_report.json").exists()


def test_images_without_tags_are_refused(module: PeakAttentionModule, shapes_folder: Path, tmp_path: Path) -> None:
    data = make_data(shapes_folder, predict_images=str(shapes_folder / "JPEGImages"))
    with pytest.raises(ValueError, match="predict_images have no tags"):
        predict(module, data, tmp_path, CueWriter())
