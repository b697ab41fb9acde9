"""SemanticMapWriter: files, continuation, report; from maps, from activations, on several processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from quick import make_trainer

from bestie_pl.callbacks.cues import CueWriter
from bestie_pl.callbacks.provenance import FILE
from bestie_pl.callbacks.semantic_maps import SemanticMapWriter
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.grown_maps import GrownMaps
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.peak_attention import ActivationPrediction, PeakAttentionModule
from bestie_pl.structures import Batch, Cues

CLASSES = ["fish", "lock", "beetle", "kite", "moon"]


def make_data(root: Path, **settings: Any) -> ShapesDataModule:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    defaults = {"eval_batch_size": 3, "num_workers": 0, "predict_split": "train", "supervision": "tags"}
    return ShapesDataModule(str(root), **{**sizes, **defaults, **settings})


def predict(
    module: pl.LightningModule, data: pl.LightningDataModule, folder: Path, *writers: pl.Callback, **settings: Any
) -> None:
    trainer = make_trainer(folder, callbacks=list(writers), **settings)
    trainer.predict(module, data, return_predictions=False)


class Classifier(pl.LightningModule):
    """Activations that are the brightness of the image, for every tagged class."""

    class_names = tuple(CLASSES)
    makes_activations = True

    def predict_step(self, batch: Batch, batch_idx: int) -> ActivationPrediction:
        self.seen = [*getattr(self, "seen", []), *batch.names]
        bright = [image[:, :h, :w].mean(0) for image, (h, w) in zip(batch.images, batch.sizes, strict=True)]
        counts = batch.tags.sum(1).tolist()
        maps = tuple((b / b.max()).repeat(count, 1, 1) for b, count in zip(bright, counts, strict=True))
        return ActivationPrediction((Cues.empty(),) * len(batch), maps)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_maps_of_a_classifier_are_written_in_the_release_format(shapes_folder: Path, tmp_path: Path) -> None:
    predict(Classifier(), make_data(shapes_folder), tmp_path, SemanticMapWriter(background=0.5, iterations=3))
    files = sorted((tmp_path / "semantic_maps").glob("*.png"))
    assert [path.name for path in files] == [f"train_{n:06}.png" for n in range(16)]
    tags = {line.split()[0]: set(map(int, line.split()[1:])) for line in (shapes_folder / "train_cls.txt").open()}
    for path in files:
        image = Image.open(path)
        assert image.mode == "P" and image.size == (64, 64) and image.getpalette()[3:6] == [128, 0, 0]
        assert set(np.unique(image)) <= {0, 255, *(c + 1 for c in tags[path.stem])}
    report = json.loads((tmp_path / "semantic_maps.json").read_text())
    assert report["figures"]["images"] == 16 and report["figures"]["tag_precision"] == 1
    assert report["settings"] == {"background": 0.5, "band": 0.15, "iterations": 3, "wide": False}
    assert "miou" not in report, "no truth was asked for"


def test_otsus_threshold_is_that_of_all_images_also_after_an_interruption(shapes_folder: Path, tmp_path: Path) -> None:
    data = make_data(shapes_folder)
    predict(Classifier(), data, tmp_path, SemanticMapWriter(background="otsu", band=0, iterations=0))
    settings = json.loads((tmp_path / "semantic_maps.json").read_text())["settings"]
    assert settings["background"] == "otsu"
    values = []
    for sample in (data.datasets["predict"][n] for n in range(16)):
        bright = sample.image.float().mean(0)
        values.append((bright / bright.max()).flatten())
    values = torch.cat(values)
    assert settings["threshold"] == pytest.approx(plain_otsu(values), abs=0.01)
    files = sorted((tmp_path / "semantic_maps").glob("*.png"))
    before = {path: path.read_bytes() for path in files}
    for path in files[5:9]:
        path.unlink()
    predict(Classifier(), data, tmp_path, SemanticMapWriter(background="otsu", band=0, iterations=0))
    assert {path: path.read_bytes() for path in files} == before
    predict(Classifier(), data, tmp_path, SemanticMapWriter(background="otsu", band=0, iterations=0))
    report = json.loads((tmp_path / "semantic_maps.json").read_text())
    assert "threshold" not in report["settings"], "nothing was left to look for it"
    with pytest.raises(ValueError, match="made with other settings|background"):
        predict(Classifier(), data, tmp_path, SemanticMapWriter(band=0, iterations=0))


def plain_otsu(values: torch.Tensor) -> float:
    """The threshold whose two sides have means that are farthest apart, weighted by their sizes."""
    candidates = torch.linspace(0, 1, 1001)[1:-1]
    spread = []
    for threshold in candidates:
        above = values > threshold
        share = above.float().mean()
        means = values[above].mean() - values[~above].mean()
        spread.append(share * (1 - share) * means**2)
    return float(candidates[torch.stack(spread).nan_to_num(0).argmax()])


def test_an_interrupted_run_goes_on_and_the_report_covers_all(shapes_folder: Path, tmp_path: Path) -> None:
    data = make_data(shapes_folder, label_quality=True)
    whole = Classifier()
    predict(whole, data, tmp_path, SemanticMapWriter())
    report = json.loads((tmp_path / "semantic_maps.json").read_text())
    assert len(whole.seen) == 16 and 0 < report["miou"] < 1
    files = sorted((tmp_path / "semantic_maps").glob("*.png"))
    for path in files[5:9]:
        path.unlink()
    before = files[0].stat().st_mtime_ns
    rest = Classifier()
    predict(rest, data, tmp_path, SemanticMapWriter())
    assert rest.seen == [path.stem for path in files[5:9]]
    again = json.loads((tmp_path / "semantic_maps.json").read_text())
    for name in ("ignored", "tag_recall", "edge_alignment"):
        assert again["figures"][name] == pytest.approx(report["figures"][name])
    assert again["miou"] == pytest.approx(report["miou"]) and again["figures"]["images"] == 16
    assert files[0].stat().st_mtime_ns == before

    nothing = Classifier()
    predict(nothing, data, tmp_path, SemanticMapWriter())
    assert not hasattr(nothing, "seen")
    assert json.loads((tmp_path / "semantic_maps.json").read_text())["figures"]["images"] == 16
    all_again = Classifier()
    predict(all_again, data, tmp_path, SemanticMapWriter(overwrite=True))
    assert len(all_again.seen) == 16


def test_an_image_is_left_out_only_if_every_writer_has_finished_it(shapes_folder: Path, tmp_path: Path) -> None:
    data = make_data(shapes_folder)
    predict(Classifier(), data, tmp_path, SemanticMapWriter(str(tmp_path / "one")))
    (tmp_path / "one" / "train_000003.png").unlink()
    both = Classifier()
    predict(both, data, tmp_path, SemanticMapWriter(str(tmp_path / "one")), SemanticMapWriter(str(tmp_path / "two")))
    assert len(both.seen) == 16 and len(os.listdir(tmp_path / "two")) == 16 + 1


def test_cues_and_maps_come_from_one_look_at_each_image(shapes_folder: Path, tmp_path: Path) -> None:
    """Together they are the files of each writer alone; images are enlarged, so cues and maps differ in size."""

    def run(folder: Path, *writers: pl.Callback) -> int:
        torch.manual_seed(0)
        module = PeakAttentionModule(
            5, CLASSES, backbone="mobilenetv3_small_100", backbone_weights=None, width=16, cue_window=5, mirror=False
        )
        seen = 0

        def look(images: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
            nonlocal seen
            seen += len(images)
            assert images.shape[-2:] == (128, 128)
            return torch.nn.functional.avg_pool2d(images.std(1, keepdim=True), 8).repeat(1, 5, 1, 1)

        module.model.forward = look  # type: ignore[method-assign]
        predict(module, make_data(shapes_folder, image_scale=2.0, semantic_source="none"), folder, *writers)
        return seen

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    both, cues, maps = (tmp_path / name for name in ("both", "cues", "maps"))
    writers = [(CueWriter(str(folder / "cues")), SemanticMapWriter(iterations=1)) for folder in (both, cues, maps)]
    assert run(both, *writers[0]) == 16
    assert run(cues, writers[1][0]) == run(maps, writers[2][1]) == 16
    assert content(both / "cues") == content(cues / "cues") and len(content(cues / "cues")) == 16 + 1
    assert content(both / "semantic_maps") == content(maps / "semantic_maps")
    assert any(np.unique(read(path)).max() > 0 for path in (maps / "semantic_maps").glob("*.png"))
    assert {Image.open(path).size for path in (maps / "semantic_maps").glob("*.png")} == {(64, 64)}


def test_two_processes_write_each_image_once_and_one_report(shapes_folder: Path, tmp_path: Path) -> None:
    data = make_data(shapes_folder, label_quality=True)
    predict(Classifier(), data, tmp_path / "one", SemanticMapWriter(background="otsu"))
    for gone in (tmp_path / "two" / "semantic_maps", tmp_path / "one" / "semantic_maps"):
        gone.mkdir(parents=True, exist_ok=True)
    for some in ("train_000004.png", FILE):  # one image is there already
        shutil.copy(tmp_path / "one" / "semantic_maps" / some, tmp_path / "two" / "semantic_maps" / some)
    writer = SemanticMapWriter(background="otsu")
    predict(Classifier(), data, tmp_path / "two", writer, devices=2, strategy="ddp_fork")
    one, two = (json.loads((tmp_path / name / "semantic_maps.json").read_text()) for name in ("one", "two"))
    assert one["figures"] == pytest.approx(two["figures"], nan_ok=True) and one["miou"] == pytest.approx(two["miou"])
    assert one["settings"] == two["settings"] and 0 < one["settings"]["threshold"] < 1
    for path in (tmp_path / "one" / "semantic_maps").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "semantic_maps" / path.name).read_bytes()
    last = tmp_path / "two" / "semantic_maps" / "train_000004.png"
    last.unlink()  # one process has nothing to write, and waits for the other's threshold
    writer = SemanticMapWriter(background="otsu")
    predict(Classifier(), data, tmp_path / "two", writer, devices=2, strategy="ddp_fork")
    assert last.read_bytes() == (tmp_path / "one" / "semantic_maps" / last.name).read_bytes()


def test_modules_without_maps_are_left_alone(shapes_folder: Path, tmp_path: Path) -> None:
    class Other(pl.LightningModule):
        def predict_step(self, batch: Batch, batch_idx: int) -> list[int]:
            return [1] * len(batch)

    predict(Other(), make_data(shapes_folder), tmp_path, SemanticMapWriter())
    assert not (tmp_path / "semantic_maps").exists()


def test_wrong_folders_and_thresholds_are_refused(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="background - band"):
        SemanticMapWriter(background=0.1, band=0.2)
    with pytest.raises(ValueError, match="background - band"):
        SemanticMapWriter(background="otsu", band=0.6)
    with pytest.raises(FileNotFoundError, match="earlier round"):
        predict(Classifier(), make_data(shapes_folder), tmp_path, SemanticMapWriter(earlier_dir=str(tmp_path / "no")))
    (tmp_path / "semantic_maps").mkdir()
    with pytest.raises(ValueError, match="overwritten"):
        predict(
            Classifier(),
            make_data(shapes_folder),
            tmp_path,
            SemanticMapWriter(earlier_dir=str(tmp_path / "semantic_maps")),
        )


# ---------------------------------------------------------------- imported maps


def test_an_imported_folder_is_cleaned_and_compared(shapes_folder: Path, tmp_path: Path) -> None:
    """True maps as PNG; in one a class that the image is not tagged with."""
    source = tmp_path / "source"
    source.mkdir()
    for path in (shapes_folder / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(read(path)).save(source / path.name)
    tags = {line.split()[0]: set(map(int, line.split()[1:])) for line in (shapes_folder / "train_cls.txt").open()}
    name = next(name for name, classes in tags.items() if len(classes) < 5)
    foreign = min(set(range(5)) - tags[name]) + 1
    spoilt = read(source / f"{name}.png").copy()
    spoilt[:4] = foreign
    Image.fromarray(spoilt).save(source / f"{name}.png")
    module = ImportedMaps(5, CLASSES, folder=str(source))
    writer = SemanticMapWriter(earlier_dir=str(shapes_folder / "SegmentationClass"))
    predict(module, make_data(shapes_folder, label_quality=True), tmp_path, writer)
    assert (read(tmp_path / "semantic_maps" / f"{name}.png")[:4] == 255).all()
    report = json.loads((tmp_path / "semantic_maps.json").read_text())
    assert report["miou"] > 0.9 and report["figures"]["tag_recall"] == 1 == report["figures"]["tag_precision"]
    assert report["figures"]["agreement_with_earlier"] == 1 and report["figures"]["edge_alignment"] > 1.5

    changed, made = source / f"{name}.png", tmp_path / "semantic_maps" / f"{name}.png"
    Image.fromarray(np.zeros_like(spoilt)).save(changed)
    os.utime(changed, ns=(made.stat().st_mtime_ns + 10**9,) * 2)
    times = {path: path.stat().st_mtime_ns for path in made.parent.glob("*.png")}
    predict(module, make_data(shapes_folder), tmp_path, SemanticMapWriter())
    assert not read(made).any()
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {made}


@pytest.mark.parametrize("scores", ["logits", "probabilities", "activations"])
def test_scores_are_imported(scores: Any, shapes_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in (shapes_folder / "SegmentationClass").glob("train_*.png"):
        values = np.eye(6, dtype=np.float32)[np.where(read(path) == 255, 0, read(path))].transpose(2, 0, 1)
        kind = {"logits": values * 9 - 3, "probabilities": values, "activations": values[1:]}[scores]
        np.save(source / f"{path.stem}.npy", kind.astype(np.float16))
    module = ImportedMaps(5, CLASSES, folder=str(source), scores=scores, refine="pamr", pamr_iterations=1)
    predict(module, make_data(shapes_folder, label_quality=True), tmp_path, SemanticMapWriter())
    assert json.loads((tmp_path / "semantic_maps.json").read_text())["miou"] > 0.8


def test_another_order_of_the_classes_is_found_out(shapes_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    turned = [*CLASSES[1:], CLASSES[0]]  # how the source counts
    table = np.zeros(256, np.uint8)
    table[255] = 255
    for number, name in enumerate(turned, 1):
        table[CLASSES.index(name) + 1] = number
    # enough images for the check: the same scenes under more names
    data = make_data(shapes_folder, label_quality=True)
    data.setup("predict")
    for path in (shapes_folder / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(table[read(path)]).save(source / path.name)
    right = ImportedMaps(5, CLASSES, folder=str(source), source_classes=turned)
    predict(right, data, tmp_path / "right", SemanticMapWriter())
    assert json.loads((tmp_path / "right" / "semantic_maps.json").read_text())["miou"] > 0.95
    wrong = ImportedMaps(5, CLASSES, folder=str(source))
    with pytest.raises(ValueError, match="what it calls .* is .*source_classes"):
        for _ in range(2):  # 16 scenes are too few to judge by, 32 are enough
            predict(wrong, data, tmp_path / "wrong", SemanticMapWriter(overwrite=True))


def test_imported_maps_cannot_be_trained(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bestie-pl predict"):
        ImportedMaps(5, CLASSES, folder=str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match="to import"):
        ImportedMaps(5, CLASSES, folder=str(tmp_path / "no")).setup("predict")


def test_a_single_class_and_points_that_are_corrected(tmp_path: Path) -> None:
    """Whoever has one class has no other way to maps; a point that is moved makes its map anew."""
    (tmp_path / "images").mkdir()
    names = ("a", "b")
    for name in names:
        Image.fromarray(np.full((24, 24, 3), 40, np.uint8)).save(tmp_path / f"images/{name}.png")
    (tmp_path / "tags.csv").write_text("image,tags,split\na.png,cell,train\nb.png,cell,train\n")
    points = tmp_path / "points"
    points.mkdir()
    for name in names:
        (points / f"{name}.txt").write_text("12 12 0 1\n")

    def run(**settings: Any) -> dict[str, int]:
        data = FolderDataModule(
            str(tmp_path), supervision="points", points="points", predict_split="train", num_workers=0
        )
        predict(GrownMaps(1, ["cell"], **settings), data, tmp_path, SemanticMapWriter("maps"))
        return {name: (tmp_path / f"maps/{name}.png").stat().st_mtime_ns for name in names}

    first = run()
    report = json.loads((tmp_path / "semantic_maps.json").read_text())
    assert report["class_tag_recall"] == {"cell": 1.0} and report["figures"]["images"] == 2
    assert run() == first
    (points / "b.txt").write_text("4 4 0 1\n")
    later = (first["b"] + 10**9, first["b"] + 10**9)
    os.utime(points / "b.txt", ns=later)
    second = run()
    assert second["a"] == first["a"] and second["b"] != first["b"] and read(tmp_path / "maps/b.png")[4, 4] == 1
    with pytest.raises(ValueError, match=r"other model.band \(0.15 there, 0.3 now\)"):
        run(band=0.3)
