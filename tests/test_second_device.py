"""Nothing is left on the wrong device: everything runs on a second one, and gives the same there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from quick import SILENT
from second_device import OneDevice, second_device

from bestie_pl import BestieModule, PeakAttentionModule, SemanticModule
from bestie_pl.callbacks.cues import CueWriter
from bestie_pl.callbacks.pictures import PictureWriter
from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.scores import ScoreWriter
from bestie_pl.callbacks.semantic_maps import SemanticMapWriter
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import Inference
from bestie_pl.modules.optimization import Optimization
from bestie_pl.structures import Geometry

NETWORK = {"backbone": "mobilenetv3_small_100", "backbone_weights": None}
SCALE = {"object_scale": 0.25, "min_area": 200}


def bestie(**settings: Any) -> BestieModule:
    return BestieModule(
        5,
        decoder="pyramid",
        geometry=Geometry(sigma=16.0, min_area=SCALE["min_area"]),
        object_scale=SCALE["object_scale"],
        optimization=Optimization(lr=2e-3),
        **NETWORK,
        **settings,
    )


def classifier(**settings: Any) -> PeakAttentionModule:
    return PeakAttentionModule(5, width=16, cue_window=5, **NETWORK, **settings)


def instance_writers(folder: Path) -> list[pl.Callback]:
    return [ScoreWriter(), PictureWriter(), PredictionWriter()]


def cue_and_map_writers(folder: Path) -> list[pl.Callback]:
    return [CueWriter(str(folder / "cues")), SemanticMapWriter(str(folder / "maps"))]


def map_writer(folder: Path) -> list[pl.Callback]:
    return [SemanticMapWriter(str(folder / "maps"))]


@pytest.mark.parametrize(
    ("make", "data", "writers"),
    [
        pytest.param(
            lambda: bestie(supervision="tags", inference=Inference(mirror=True, scales=(0.75, 1.0), refine="pamr")),
            {"supervision": "tags", "cues_dir": "Center_points", "label_quality": True},
            instance_writers,
            id="tags",
        ),
        pytest.param(
            lambda: bestie(supervision="tags", recipe="release", oracle="tags"),
            {"supervision": "tags", "cues_dir": "Center_points", "recipe": "release"},
            instance_writers,
            id="tags, release",
        ),
        pytest.param(
            lambda: bestie(supervision="points", oracle="points"),
            {"supervision": "points"},
            instance_writers,
            id="points",
        ),
        pytest.param(
            lambda: classifier(pooling="topk", balance=True, scales=[1.0, 1.5], cue_scales=[1.0, 2.0]),
            {"supervision": "tags", "semantic_source": "none"},
            cue_and_map_writers,
            id="classifier",
        ),
        pytest.param(
            lambda: SemanticModule(5, decoder="pyramid", optimization=Optimization(lr=2e-3), **NETWORK),
            {"supervision": "tags", "cues_dir": "Center_points", "label_quality": True},
            map_writer,
            id="semantic round",
        ),
    ],
)
def test_a_run_on_a_second_device_gives_the_same(
    shapes_folder: Path,
    tmp_path: Path,
    make: Callable[[], pl.LightningModule],
    data: dict[str, Any],
    writers: Callable[[Path], list[pl.Callback]],
) -> None:
    found = []
    for name in ("cpu", "second"):
        with second_device() if name == "second" else nullcontext(torch.device("cpu")) as device:
            found.append(run(shapes_folder, tmp_path / name, device, make, data, writers))
    scores, files = found[0]
    assert scores and found[1][0] == pytest.approx(scores, rel=0, nan_ok=True)
    assert files and files == found[1][1]


def run(
    root: Path,
    folder: Path,
    device: torch.device,
    make: Callable[[], pl.LightningModule],
    settings: dict[str, Any],
    writers: Callable[[Path], list[pl.Callback]],
) -> tuple[dict[str, float], dict[str, bytes]]:
    """Fit, test and predict; the scores, and the files that were predicted."""
    pl.seed_everything(1)
    module = make()
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64, "crop_size": 64}
    data = ShapesDataModule(str(root), batch_size=4, eval_batch_size=2, num_workers=0, **sizes, **SCALE, **settings)
    trainer = pl.Trainer(
        strategy=OneDevice(device),
        callbacks=writers(folder),
        **{name: value for name, value in SILENT.items() if name not in ("accelerator", "devices")},
        max_steps=2,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        # tensors of inference mode cannot be wrapped
        inference_mode=False,
    )
    scores = {}
    for verb in (trainer.fit, trainer.test, trainer.predict):
        verb(module, data)
        scores |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    made = [path for path in folder.rglob("*") if path.suffix in (".png", ".txt") or path.parent.name == "predictions"]
    return scores, {str(path.relative_to(folder)): path.read_bytes() for path in made if path.is_file()}


def test_tensors_of_two_devices_are_refused() -> None:
    with second_device() as device:
        there = torch.arange(3, device=device)
        assert (there + 1).cpu().tolist() == [1, 2, 3]
        assert there[torch.tensor([2])].tolist() == [2]
        with pytest.raises(
            RuntimeError, match=r"expected all tensors on one device, found \(3,\) on meta, \(3,\) on cpu"
        ):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
