"""The page on own data: its commands run as printed, on photographs that are drawn here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bestie_pl.cli.main import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own-data.md").read_text()
SIDE = 64
SHORT = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--model.init_args.backbone_weights=null"]


def commands(folder: str) -> list[list[str]]:
    """The page's commands on a folder, without ``bestie-pl``."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert all(line[0] == "bestie-pl" for line in lines)
    return [line[1:] for line in lines if any(f"{folder}/" in word or word == folder for word in line)]


def photographs(folder: Path, count: int) -> list[list[tuple[str, int, int, int]]]:
    """Images of red and blue discs on a textured ground; and of each its discs: class, x, y, radius."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    scenes = []
    for number in range(count):
        ground = random.integers(60, 120, (SIDE, SIDE, 1)).repeat(3, 2).astype(np.uint8)
        image = Image.fromarray(ground)
        discs = []
        for k, name in enumerate(("red", "blue")):
            if number % 3 != k:  # a third of the images lacks each
                x, y, radius = int(random.integers(10, 54)), 16 + 32 * k, int(random.integers(6, 10))
                ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=name)
                discs.append((name, x, y, radius))
        image.save(folder / f"photo{number}.jpg", quality=90)
        scenes.append(discs)
    return scenes


def label(folder: Path, scenes: list[list[tuple[str, int, int, int]]]) -> None:
    """What LabelMe writes of circles that somebody drew on the discs."""
    folder.mkdir()
    for number, discs in enumerate(scenes):
        shapes = [
            {"label": name, "points": [[x, y], [x + radius, y]], "shape_type": "circle", "group_id": None}
            for name, x, y, radius in discs
        ]
        content = {"shapes": shapes, "imagePath": f"photo{number}.jpg", "imageHeight": SIDE, "imageWidth": SIDE}
        (folder / f"photo{number}.json").write_text(json.dumps(content))


def run(lines: list[list[str]]) -> None:
    for line in lines:
        more = SHORT if line[0] == "fit" else []
        more = [*more, "--data.init_args.num_workers=0"] if line[0] in ("fit", "predict") else more
        assert main([*line, *more]) == 0, line


def overlays_of(root: Path) -> None:
    """The way ends with a picture of each image, as wide as high, in which the photograph can be seen."""
    paths = sorted((root / "found" / "overlays").glob("*.png"))
    assert [path.stem for path in paths] == [f"photo{number}" for number in range(6)]
    for path in paths:
        with Image.open(path) as overlay, Image.open(root / "images" / f"{path.stem}.jpg") as photograph:
            assert overlay.width == overlay.height >= SIDE
            difference = np.asarray(overlay.convert("RGB").resize((SIDE, SIDE)), float) - np.asarray(photograph, float)
            assert np.median(np.abs(difference)) < 30


def test_the_way_from_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenes = photographs(tmp_path / "my_set" / "images", 6)
    label(tmp_path / "my_set" / "labels", scenes)
    lines = commands("my_set")
    assert [line[0] for line in lines] == ["points", "init", "predict", "data", "fit", "predict", "fit", "segment"]
    run(lines)
    for number, discs in enumerate(scenes):
        grown = np.asarray(Image.open(tmp_path / "my_set" / "Grown_maps" / f"photo{number}.png"))
        for name, x, y, radius in discs:
            disc = (np.arange(SIDE)[:, None] - y) ** 2 + (np.arange(SIDE) - x) ** 2 <= radius**2
            value = ["blue", "red"].index(name) + 1
            assert ((grown == value) & disc).sum() > 0.8 * disc.sum() and (grown == value).sum() < 1.4 * disc.sum()
    assert len(list((tmp_path / "my_set" / "Retrained_maps").glob("*.png"))) == 6
    overlays_of(tmp_path / "my_set")


def test_the_way_from_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "my_tags"
    scenes = photographs(root / "images", 6)
    rows = [f"photo{n}.jpg,{''.join(f'{disc[0]};' for disc in discs)},train" for n, discs in enumerate(scenes)]
    (root / "tags.csv").write_text("\n".join(["image,tags,split", *rows]) + "\n")
    run(commands("my_tags"))
    for folder in ("CAM_maps", "Retrained_maps"):
        assert len(list((root / folder).glob("*.png"))) == 6
    overlays_of(root)


def test_init_prints_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has to look them up."""
    monkeypatch.chdir(tmp_path)
    label_of = photographs(tmp_path / "my_set" / "images", 6)
    label(tmp_path / "my_set" / "labels", label_of)
    assert main(["init", "my_set"]) == 0
    printed = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  bestie-pl")]
    page = [line for line in commands("my_set") if line[0] not in ("points", "init")]
    assert printed == page
