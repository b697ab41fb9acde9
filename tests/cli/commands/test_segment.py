"""``bestie-pl segment`` as users run it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from bestie_pl.cli.main import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("photos/a.png", "photos/größe 1.png", "photos/sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / name)
    return tmp_path / "photos"


def test_everything_that_can_be_written(trained_run: Path, photos: Path, tmp_path: Path) -> None:
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    command = [sys.executable, "-m", "bestie_pl", "segment", "photos", "--checkpoint", str(checkpoint)]
    command += ["--out", "found", "--write", "overlays", "labels", "tables", "coco"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == ["photos/a.png", "photos/größe 1.png", "photos/sub/c.png"]
    assert lines[3].endswith("in 3 images, written to found/overlays, found/labels, found/tables, found/coco")
    written = sorted(path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("[!.]*.*"))
    assert written == sorted(
        f"{kind}/{name}.{end}"
        for kind, end in {"overlays": "png", "labels": "png", "tables": "csv", "coco": "json"}.items()
        for name in ("a", "größe 1", "sub/c")
    )
    labels = np.asarray(Image.open(tmp_path / "found" / "labels" / "a.png"))
    rows = list(csv.DictReader((tmp_path / "found" / "tables" / "a.csv").open()))
    records = json.loads((tmp_path / "found" / "coco" / "a.json").read_text())
    assert len(rows) == len(records) == labels.max() > 0
    for row, record in zip(rows, records, strict=True):
        assert row["class"] == record["class"] and int(row["area"]) == record["area"]
        assert (codec.decode(record["segmentation"]) == (labels == int(row["label"]))).all()


def test_overlays_alone_of_the_best(
    trained_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(trained_run / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "found")]
    assert main(["segment", str(photos / "*.png"), *arguments, "--min_score", "1"]) == 0
    assert f"{photos / 'a.png'}: nothing found\n" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "found").rglob("*.png")) == ["a.png", "größe 1.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "elsewhere"}, "no such image, folder or pattern: elsewhere; "),
        ({2: "other.ckpt"}, "no such checkpoint: other.ckpt; expected the checkpoint of a BestieModule"),
        ({3: "--tile", 4: "100"}, "tile and overlap must be multiples of 32"),
        ({3: "--device", 4: "gpu"}, "device 'gpu': there is no such device here; expected cpu"),
        ({3: "--device", 4: "cuda:99"}, "device 'cuda:99': there is no such device here; expected cpu"),
        ({3: "--min_score", 4: "30"}, "--min_score 30; expected a number from 0 to 1"),
        ({4: "/dev/null/found"}, "--out /dev/null/found: Not a directory; give a folder that can be written"),
    ],
)
def test_what_is_refused(
    trained_run: Path, photos: Path, tmp_path: Path, change: dict[int, str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint = str(trained_run / "checkpoints" / "last.ckpt")
    given = dict(enumerate([str(photos), "--checkpoint", checkpoint, "--out", str(tmp_path / "found")])) | change
    assert main(["segment", *given.values()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "found").exists() and not Path("segmented").exists()


def test_what_it_wrote_is_not_segmented(trained_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", str(photos), "--checkpoint", str(trained_run / "checkpoints" / "last.ckpt")]
    for folder in (photos, photos / "found"):
        for _ in range(2):
            assert main([*command, "--out", str(folder)]) == 0
            assert " instances in 3 images, written to " in capsys.readouterr().out
        shutil.rmtree(folder / "overlays")


def test_two_images_of_one_name(trained_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(trained_run / "checkpoints" / "last.ckpt")
    (photos / "sub" / "c.png").rename(photos / "sub" / "a.png")
    assert main(["segment", str(photos / "a.png"), str(photos / "sub"), "--checkpoint", checkpoint]) == 2
    assert "listed more than once: a; image names must be unique" in capsys.readouterr().err


def test_files_of_somebody_else_are_kept(trained_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "labels").mkdir()
    (photos / "labels" / "a.png").write_bytes(b"painted by hand")
    command = ["segment", str(photos / "*.png"), "--checkpoint", str(trained_run / "checkpoints" / "last.ckpt")]
    assert main([*command, "--out", str(photos), "--write", "overlays", "labels"]) == 2
    assert "its folder labels has files that `segment` did not write" in capsys.readouterr().err
    assert (photos / "labels" / "a.png").read_bytes() == b"painted by hand" and not (photos / "overlays").exists()


def test_images_behind_a_link(trained_run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "sub").rename(tmp_path / "elsewhere")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(photos)  # a circle
    command = ["segment", str(photos), "--checkpoint", str(trained_run / "checkpoints" / "last.ckpt")]
    assert main([*command, "--out", str(tmp_path / "found")]) == 0
    found = sorted(path.relative_to(tmp_path / "found/overlays") for path in (tmp_path / "found").rglob("*.png"))
    assert [path.as_posix() for path in found] == ["a.png", "größe 1.png", "linked/c.png"]
