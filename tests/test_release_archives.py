"""What the authors share for VOC 2012 unpacks into its folder and is read as it is."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bestie_pl.cli.main import main
from bestie_pl.data.samples import collate
from bestie_pl.data.voc import VOCDataModule

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "voc"
HEIGHT, WIDTH = 96, 128
TRAIN = [f"2007_{n:06}" for n in (32, 39, 63, 68, 121, 170)]
VAL = ["2007_000033", "2007_000042"]
PERSON, BOAT = 14, 3


def palette_png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> None:
    """Like theirs: a folder of the archive's name; and what a Mac leaves in such files."""
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(f"{path.stem}/{name}", content)
        target.writestr(f"{path.stem}/.DS_Store", b"\0")
        target.writestr(f"__MACOSX/{path.stem}/._x", b"\0")


@pytest.fixture(scope="module")
def voc2012(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC's own folders, the four archives unpacked beside them, and the release's lists of images and tags.

    Each picture has two touching people and a boat, but for the last of training, which has nothing.
    """
    folder = tmp_path_factory.mktemp("voc")
    root = folder / "VOCdevkit" / "VOC2012"
    objects = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects[10:40, 10:30], objects[10:40, 30:50], objects[60:80, 80:120] = 1, 2, 3
    classes = np.array([0, PERSON + 1, PERSON + 1, BOAT + 1])[objects]
    border = np.zeros_like(objects, dtype=bool)
    border[9:41, 51] = True
    objects[border], classes[border] = 255, 255
    nothing = np.zeros_like(objects)
    random = np.random.default_rng(1)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in TRAIN + VAL:
        pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    for name in VAL:
        (root / "SegmentationClass" / f"{name}.png").write_bytes(palette_png(classes))
    # VOC's lists: of its own training images only some
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{name}\n" for name in TRAIN[:2]))
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in VAL))
    (root / "train_cls.txt").write_text("".join(f"{n} {BOAT} {PERSON} \n" for n in TRAIN[:-1]) + f"{TRAIN[-1]}\n")
    (root / "val_cls.txt").write_text("".join(f"{name} {BOAT} {PERSON}\n" for name in VAL))

    given = f"20 25 {PERSON} 1.0\n40 25 {PERSON} 1.0\n100 70 {BOAT} 1.0\n".encode()
    peaks = f"100 70 {BOAT} 0.912\n41 24 {PERSON} 0.871\n20 25 {PERSON} 0.700\n12 90 {PERSON} 0.104\n".encode()
    empty = {f"{TRAIN[-1]}.txt": b""}
    contents = {
        "Center_points": {f"{name}.txt": given for name in TRAIN[:-1] + VAL} | empty,
        "Peak_points": {f"{name}.txt": peaks for name in TRAIN[:-1]} | empty,
        "WSSS_maps": {f"{name}.png": palette_png(classes) for name in TRAIN[:-1]}
        | {f"{TRAIN[-1]}.png": palette_png(nothing)},
        "SegmentationObject": {f"{name}.png": palette_png(objects) for name in VAL},
    }
    for name, files in contents.items():
        archive(folder / f"{name}.zip", files)
        with zipfile.ZipFile(folder / f"{name}.zip") as source:
            source.extractall(root)
    return root


# the second stage needs the labels that the first makes, and a pipeline is no configuration of one run
@pytest.mark.parametrize(
    "config", sorted(p.name for p in CONFIGS.glob("*.yaml") if p.stem not in ("mask_rcnn", "pipeline"))
)
def test_every_voc_configuration_reads_them(voc2012: Path, config: str) -> None:
    arguments = yaml.safe_load((CONFIGS / config).read_text())["data"]["init_args"]
    data = VOCDataModule(**{**arguments, "root": str(voc2012), "num_workers": 0, "crop_size": 96})
    data.setup("fit")
    samples = data.datasets["train"]
    assert list(samples.split.names) == TRAIN
    tags = [row.nonzero().flatten().tolist() for row in samples.split.tags]
    assert tags == [[BOAT, PERSON]] * 5 + [[]]
    if data.tags_only:
        return
    split, size = samples.split, (HEIGHT, WIDTH)
    cues = split.read_cues(0, size, 20)[0]
    if data.supervision == "points":
        assert cues.classes.tolist() == [PERSON, PERSON, BOAT] and cues.scores.tolist() == [1, 1, 1]
    else:
        assert cues.yx.tolist() == [[70, 100], [24, 41], [25, 20], [90, 12]]
        assert cues.scores.tolist() == pytest.approx([0.912, 0.871, 0.7, 0.104])
    # whole images: a region with one sure cue is an instance; touching people are none where both have a point
    pseudo = data.label(collate([replace(samples, release_crop=None)[n] for n in range(len(TRAIN))])).pseudo
    labelled = pseudo.classes[pseudo.area > 0].bincount(minlength=20).nonzero().flatten().tolist()
    assert labelled == ([BOAT] if data.supervision == "points" else [BOAT, PERSON])
    assert pseudo.area[pseudo.classes == BOAT].tolist() == [20 * 40] * 5

    evaluated = data.datasets["val"]
    assert [evaluated[n].name for n in range(len(evaluated))] == VAL
    references = evaluated[0].references
    assert references.classes.tolist() == [PERSON, PERSON, BOAT] and references.size == size


@pytest.mark.parametrize("config", ["tags_release.yaml", "points.yaml"])
def test_a_step_of_training_and_validation(voc2012: Path, tmp_path: Path, config: str) -> None:
    hardware = ["accelerator=cpu", "devices=1", "strategy=auto", "precision=32-true", "sync_batchnorm=false"]
    command = ["fit", "--config", str(CONFIGS / config), f"--data.init_args.root={voc2012}"]
    command += [f"--trainer.{setting}" for setting in (*hardware, "fast_dev_run=true")]
    command += ["--data.init_args.crop_size=96", "--data.init_args.num_workers=0"]
    command += ["--model.init_args.backbone=hrnet_w18_small", "--model.init_args.backbone_weights=null"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}"]) == 0


def test_the_check_finds_nothing_wrong(voc2012: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "points.yaml")
    assert main(["data", "check", "--config", config, f"--data.init_args.root={voc2012}", "--workers=0"]) == 0
    output = capsys.readouterr().out
    assert "train: 6 images, 128 x 96 px" in output and "val: 2 images" in output and "\n0 errors, " in output
