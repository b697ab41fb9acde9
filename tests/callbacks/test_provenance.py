"""Files of predictions say what made them; a run goes on with its own files, and never among others'."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from quick import make_trainer

from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.provenance import FILE
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.grown_maps import GrownMaps
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.structures import Batch, Instances


class Finder(pl.LightningModule):
    """Finds nothing, with a weight and two settings; one of them is of training."""

    def __init__(self, weight: float = 0.0, threshold: float = 0.5, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters("threshold", "lr")
        self.weight = torch.nn.Parameter(torch.tensor([weight]))
        self.seen: list[str] = []

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Instances, ...]:
        self.seen += batch.names
        return tuple(Instances((), torch.zeros(0).long(), torch.zeros(0), size) for size in batch.original_sizes)


@pytest.fixture
def data(shapes_folder: Path) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    return ShapesDataModule(str(shapes_folder), **sizes, eval_batch_size=2, num_workers=0, predict_split="val")


def predict(module: Finder, data: Any, folder: Path, writer: PredictionWriter | None = None) -> list[str]:
    """Names of the images that were predicted."""
    trainer = make_trainer(folder, callbacks=[writer or PredictionWriter()])
    trainer.predict(module, data, return_predictions=False)
    return module.seen


def test_the_same_goes_on_and_another_is_refused(data: ShapesDataModule, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    names = predict(Finder(), data, tmp_path)
    made_by = yaml.safe_load((folder / FILE).read_text())
    assert len(names) == 5 == len(list(folder.glob("*.json"))) and len(made_by["sha256"]) == 64
    assert made_by["settings"]["model"] == {"threshold": 0.5} and made_by["version"]
    (folder / f"{names[3]}.json").unlink()
    (folder / f".{names[0]}.json.part-abcdefgh").write_text("half")
    assert predict(Finder(lr=0.2), data, tmp_path) == [names[3]]  # training has ended

    for other, says in (
        (Finder(weight=1.0), "were made with other weights; give this run another output_dir"),
        (Finder(threshold=0.7), r"other model.threshold \(0.5 there, 0.7 now\)"),
    ):
        with pytest.raises(ValueError, match=says):
            predict(other, data, tmp_path)
        assert yaml.safe_load((folder / FILE).read_text()) == made_by
    data.predict_images = Path(shutil.copytree(data.root / "JPEGImages", tmp_path / "others"))
    data.datasets.clear()
    with pytest.raises(ValueError, match="other images"):
        predict(Finder(), data, tmp_path)


def test_other_files_are_made_anew_only_if_asked(data: ShapesDataModule, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    names = predict(Finder(), data, tmp_path)
    (folder / FILE).unlink()
    (folder / f"{names[0]}.json").write_text("edited")
    with pytest.raises(ValueError, match="do not say what made them.*overwrite: true"):
        predict(Finder(), data, tmp_path)
    assert (folder / f"{names[0]}.json").read_text() == "edited"
    assert predict(Finder(weight=2.0), data, tmp_path, PredictionWriter(overwrite=True)) == names
    assert (folder / f"{names[0]}.json").read_text() == "[]\n"
    assert predict(Finder(weight=2.0), data, tmp_path) == []


def test_every_image_has_its_file_at_the_end(data: ShapesDataModule, tmp_path: Path) -> None:
    class Forgetful(PredictionWriter):
        def write_on_batch_end(self, *arguments: Any) -> None:
            if arguments[5] != 1:
                super().write_on_batch_end(*arguments)

    with pytest.raises(ValueError, match="2 of 5 images have no file"):
        predict(Finder(), data, tmp_path, Forgetful())
    assert len(predict(Finder(), data, tmp_path)) == 2


def test_files_of_other_images_count_too(data: ShapesDataModule, tmp_path: Path) -> None:
    """They would pass for those of the newer weights."""
    folder = tmp_path / "predictions"
    names = predict(Finder(), data, tmp_path)
    for name in names[:3]:
        (folder / f"{name}.json").rename(folder / f"another_{name}.json")
    with pytest.raises(ValueError, match="were made with other weights.*another output_dir"):
        predict(Finder(weight=1.0), data, tmp_path)
    with pytest.raises(ValueError, match=r"images that are not predicted now \(another_.* and others\).*remove them"):
        predict(Finder(weight=1.0), data, tmp_path, PredictionWriter(overwrite=True))
    assert len(list(folder.glob("*.json"))) == 5, "nothing was removed"
    for path in folder.glob("another_*"):
        path.unlink()
    assert predict(Finder(weight=1.0), data, tmp_path, PredictionWriter(overwrite=True)) == names


def test_one_batch_is_not_all(data: ShapesDataModule, tmp_path: Path) -> None:
    make_trainer(tmp_path, limit_predict_batches=1, callbacks=[PredictionWriter()]).predict(Finder(), data)
    assert len(list((tmp_path / "predictions").glob("*.json"))) == 2


class Tagged(Finder):
    """Whose predictions rest on the tags."""

    reads_tags = True


def of_folder(root: Path, **settings: Any) -> FolderDataModule:
    given: dict[str, Any] = {"semantic_source": "none", "predict_split": "train", "num_workers": 0}
    return FolderDataModule(str(root), supervision="tags", **(given | settings))


def changed(path: Path) -> None:
    os.utime(path, (time.time() + 5,) * 2)


def test_what_a_prediction_rests_on_is_newer(tmp_path: Path) -> None:
    """An image that was replaced, and tags that were corrected, where the module reads them."""
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "tags.csv").write_text("image,tags,split\na.png,cat;,train\nb.png,dog;,train\n")
    assert predict(Tagged(), of_folder(tmp_path), tmp_path) == ["a", "b"]
    assert predict(Tagged(), of_folder(tmp_path), tmp_path) == []
    changed(tmp_path / "tags.csv")
    assert predict(Tagged(), of_folder(tmp_path), tmp_path) == ["a", "b"]
    assert predict(Finder(), of_folder(tmp_path), tmp_path / "other") == ["a", "b"]
    assert predict(Finder(), of_folder(tmp_path), tmp_path / "other") == []
    changed(tmp_path / "images/b.png")
    assert predict(Finder(), of_folder(tmp_path), tmp_path / "other") == ["b"]


def test_images_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "a.png")
        record = {"id": 1, "file_name": "a.png", "width": 32, "height": 32}
        content = {"images": [record], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    given: dict[str, Any] = {"train_images": "train", "train_annotations": "train.json", "val_images": "val"}
    given |= {"val_annotations": "val.json", "semantic_source": "none", "supervision": "tags", "num_workers": 0}
    first = COCODataModule(str(tmp_path), **given, predict_annotations="train.json")
    assert predict(Finder(), first, tmp_path) == ["a"]
    with pytest.raises(ValueError, match="other images"):
        predict(Finder(), COCODataModule(str(tmp_path), **given), tmp_path)


def test_files_of_other_images_whose_making_is_unknown(tmp_path: Path) -> None:
    """They would pass for this run's as soon as the folder says what made it."""
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "tags.csv").write_text("image,tags,split\na.png,cat;,train\nb.png,dog;,val\n")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "b.json").write_text("[]")
    with pytest.raises(ValueError, match=r"its files \(b.json\) do not say what made them"):
        predict(Finder(), of_folder(tmp_path), tmp_path)


def picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


def test_what_rests_on_tags() -> None:
    small: dict[str, Any] = {"backbone": "mobilenetv3_small_100", "backbone_weights": None}
    assert PeakAttentionModule(2, **small, width=16).reads_tags
    assert GrownMaps(2).reads_tags and ImportedMaps(2, folder="maps").reads_tags
    assert not ImportedMaps(2, folder="maps", use_tags=False).reads_tags
    for yes in (True, False):
        assert SemanticModule(2, **small, decoder="pyramid", use_tags=yes).reads_tags is yes
        assert BestieModule(2, **small, decoder="pyramid", oracle="tags" if yes else None).reads_tags is yes
