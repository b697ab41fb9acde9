"""``bestie-pl sheet``: what is on the picture, and what wrong input gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.cli import main as cli
from bestie_pl.cli.commands import sheet as command
from bestie_pl.drawing import Picture
from bestie_pl.models.peak_attention import PeakAttentionModel
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPES = [
    "train_images=16",
    "val_images=5",
    "test_images=5",
    "image_size=64",
    "num_workers=0",
    "clutter=1",
    "generator_seed=0",
]


def save(module: pl.LightningModule, path: Path) -> str:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def classifier(path: Path, num_classes: int = 5, **settings: Any) -> str:
    """The checkpoint of a classifier with random weights."""
    torch.manual_seed(0)
    network = {"backbone": "mobilenetv3_small_050", "strides": (8, 16), "width": 16, "pam_layers": 1}
    return save(PeakAttentionModule(num_classes, **{**network, "cue_window": 9, **settings}), path)


def shapes(root: Path) -> list[str]:
    arguments = [f"--data.init_args.{setting}" for setting in (f"root={root}", *SHAPES)]
    return ["sheet", "--config", str(REPOSITORY / "configs/shapes/classifier.yaml"), *arguments]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What goes onto the last sheet."""
    content: dict[str, Any] = {}
    join = command.sheet

    def record(rows: Sequence[Sequence[Picture]], titles: Sequence[str], *, captions: Sequence[str]) -> Image.Image:
        content.update(rows=rows, titles=list(titles), captions=list(captions))
        return join(rows, titles, captions=captions)

    monkeypatch.setattr(command, "sheet", record)
    return content


def test_the_console_script_draws_without_any_mask(shapes_folder: Path, tmp_path: Path) -> None:
    """Though the configuration asks for the true instances of the predicted images (label_quality)."""
    root = Path(shutil.copytree(shapes_folder, tmp_path / "shapes"))
    for folder in ("SegmentationClass", "SegmentationObject", "WSSS_maps", "Center_points"):
        shutil.rmtree(root / folder)
    checkpoints = [classifier(tmp_path / "a.ckpt", alpha=0.5), classifier(tmp_path / "b.ckpt", pooling="topk")]
    output = tmp_path / "new folder" / "sheet.png"
    arguments = ["--checkpoints", *checkpoints, "--labels", "mean", "best", "--alphas", "0", "0.7"]
    result = subprocess.run(
        [Path(sys.executable).with_name("bestie-pl"), *shapes(root), *arguments]
        + ["--images", "3", "--split", "predict", "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{output}: 3 images of predict, 4 columns\n"
    assert [path.name for path in output.parent.iterdir()] == ["sheet.png"]
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > 5 * 192 and image.height > 3 * 192


def test_columns_are_checkpoints_and_alphas(shapes_folder: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    one, two = classifier(tmp_path / "1.ckpt", alpha=0.7), classifier(tmp_path / "2.ckpt", alpha=0.0, pooling="ngwp")
    arguments = [*shapes(shapes_folder), "--output", str(tmp_path / "sheet.png"), "--images", "2"]
    assert cli.main([*arguments, "--checkpoints", one, two]) == 0
    assert drawn["titles"] == ["image", "mean\nalpha 0.7", "ngwp\nalpha 0"]
    own = drawn["rows"]
    assert cli.main([*arguments, "--checkpoints", one, "--alphas", "0", "0.7", "--labels", "CAM"]) == 0
    assert drawn["titles"] == ["image", "CAM\nalpha 0 (trained: 0.7)", "CAM\nalpha 0.7"]
    for before, after in zip(own, drawn["rows"], strict=True):
        assert np.array_equal(before[1], after[2]), "the checkpoint's own alpha, asked for or not"
        assert not np.array_equal(after[1], after[2])


@pytest.fixture
def reddest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of red things: the maps of all classes are how much red there is."""

    def red(self: PeakAttentionModel, images: Tensor, alpha: float | None = None) -> Tensor:
        return F.avg_pool2d(images[:, :1] - images[:, 1:2], 8, ceil_mode=True).expand(-1, 2, -1, -1)

    monkeypatch.setattr(PeakAttentionModel, "forward", red)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("size", [(60, 100), (100, 60)], ids=["landscape", "portrait"])
def test_maps_and_cues_are_where_the_object_is(
    reddest: None, tmp_path: Path, drawn: dict[str, Any], size: tuple[int, int], scale: float
) -> None:
    """Images that the batch pads, enlarged or not; seen mirrored too."""
    picture = np.full((*size, 3), 60, np.uint8)
    picture[8:32, 32:56] = (200, 60, 60)
    picture[16:24, 40:48] = (250, 60, 60)
    picture[40:48, 8:16] = (140, 60, 60)
    (tmp_path / "JPEGImages").mkdir()
    Image.fromarray(picture).save(tmp_path / "JPEGImages" / "größe.png")
    (tmp_path / "train_cls.txt").write_text("größe 0 1\n")
    (tmp_path / "classes.txt").write_text("fire\nengine\n")
    config = tmp_path / "data.yaml"
    config.write_text(
        f"data: {{class_path: bestie_pl.VOCDataModule, init_args: {{root: {tmp_path}, train_split: train, "
        f"supervision: tags, semantic_source: none, image_scale: {scale}}}}}\n"
    )
    arguments = ["sheet", "--config", str(config), "--output", str(tmp_path / "sheet.png")]
    checkpoint = classifier(tmp_path / "red.ckpt", num_classes=2)
    assert cli.main([*arguments, "--checkpoints", checkpoint]) == 0
    assert drawn["captions"] == ["größe: fire, engine (map of fire)"]
    ((image, overlay),) = drawn["rows"]
    assert image.shape == overlay.shape == tuple(192 * side // 100 + (192 * side % 100 > 50) for side in size) + (3,)

    ratio = 192 / 100
    strong, weak = (np.array([19.5, 43.5]) + 0.5) * ratio - 0.5, (np.array([43.5, 11.5]) + 0.5) * ratio - 0.5
    white = np.argwhere((overlay == 255).all(-1))
    assert np.abs(white.mean(0) - strong).max() < 4, "the sure cue"
    heat = overlay.max(-1).astype(int) - overlay.min(-1)
    assert heat[tuple(strong.round().astype(int) + 4)] > 100 and heat[-1, -1] == 0 and heat[0, 0] == 0
    near = np.abs(np.argwhere((overlay == 170).all(-1)) - weak).max(-1)
    assert len(near) > 0 and near.max() < 8, "the other cue, faint"

    assert cli.main([*arguments, "--checkpoints", checkpoint, "--cue_threshold", "0.05"]) == 0
    assert (drawn["rows"][0][1] == 170).all(-1).sum() == 0, "now both are sure"


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12), st.integers(1, 14))
def test_chosen_images_have_the_tag_that_is_drawn(rows: list[tuple[bool, ...]], count: int) -> None:
    tags = torch.tensor(rows, dtype=torch.bool).reshape(-1, 3)
    tagged = int(tags.any(1).sum())
    if tagged == 0:
        with pytest.raises(ValueError, match="no image of the split has a tag"):
            command.choose(tags, count)
        return
    pairs = command.choose(tags, count)
    images = [image for image, _ in pairs]
    assert len(pairs) == min(count, tagged) and images == sorted(set(images))
    assert all(tags[image, number] for image, number in pairs)


def test_chosen_images_are_spread_over_split_and_classes() -> None:
    tags = torch.ones(100, 4, dtype=torch.bool)
    assert command.choose(tags, 4) == [(12, 0), (37, 1), (62, 2), (87, 3)]


def test_wrong_input_is_one_line_that_names_it(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = classifier(tmp_path / "good.ckpt")
    other = save(SemanticModule(5, backbone="mobilenetv3_small_050", decoder="pyramid"), tmp_path / "semantic.ckpt")
    text = tmp_path / "text.ckpt"
    text.write_text("weights")
    output = tmp_path / "sheet.png"

    def complaint(*arguments: str) -> str:
        assert cli.main([*shapes(shapes_folder), "--output", str(output), *arguments]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("bestie-pl: error: ")
        return message

    assert f"no such checkpoint: {tmp_path / 'none.ckpt'}" in complaint("--checkpoints", str(tmp_path / "none.ckpt"))
    assert f"{other} is no classifier's" in complaint("--checkpoints", good, other)
    assert f"{text} is no file of tensors" in complaint("--checkpoints", str(text))
    three = classifier(tmp_path / "three.ckpt", num_classes=3)
    assert "three.ckpt was trained with 3 classes and the data has 5" in complaint("--checkpoints", three)
    assert "2 --labels for 1 --checkpoints" in complaint("--checkpoints", good, "--labels", "a", "b")
    assert "--alphas must be in [0, 1], got 0.5 1.5" in complaint("--checkpoints", good, "--alphas", "0.5", "1.5")
    assert "--images must be at least 1" in complaint("--checkpoints", good, "--images", "0")
    assert "must be the path of a .png file" in complaint("--checkpoints", good, "--output", "sheet.jpg")
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda root: shapes(root), "checkpoints"),
        (lambda root: ["sheet", "--checkpoints", "x.ckpt"], "data"),
        (lambda root: [*shapes(root), "--checkpoints", "x.ckpt", "--split", "trian"], "trian"),
    ],
)
def test_a_wrong_command_line_names_the_option(
    shapes_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path], list[str]],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments(shapes_folder))
    assert stop.value.code == 2 and message in capsys.readouterr().err
