"""``bestie-pl data check``: the report of a whole data set, and what the exit status says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bestie_pl.cli.main import main

H, W = 30, 40


def draw(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four training images (a0..a3) and two others (b0, b1) of cats and dogs: each has one of both, 10 x 10 px."""
    root = tmp_path / "set"
    objects = np.zeros((H, W))
    objects[2:12, 2:12], objects[15:25, 20:30] = 1, 2
    random = np.random.default_rng(0)
    for name in ("a0", "a1", "a2", "a3", "b0", "b1"):
        draw(root / "JPEGImages" / f"{name}.png", random.integers(0, 256, (H, W, 3)))
        for folder in ("WSSS_maps", "SegmentationClass", "SegmentationObject"):
            draw(root / folder / f"{name}.png", objects)
        (root / "Center_points").mkdir(exist_ok=True)
        (root / "Center_points" / f"{name}.txt").write_text("5 6 0 1\n25 20 1 1\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "train_cls.txt").write_text("".join(f"a{n} 0 1\n" for n in range(4)))
    (root / "val_cls.txt").write_text("b0 0 1\nb1 0 1\n")
    return root


def config(root: Path, class_path: str = "VOCDataModule", **settings: Any) -> str:
    """A configuration of a training, with more than its data in it."""
    path = root.parent / "config.yaml"
    settings = {"root": str(root), **({"train_split": "train"} if class_path == "VOCDataModule" else {}), **settings}
    content = {
        "trainer": {"max_steps": 5, "callbacks": [{"class_path": "CueWriter"}]},
        "data": {"class_path": f"bestie_pl.{class_path}", "init_args": settings},
        "model": {"class_path": "bestie_pl.BestieModule", "init_args": {"backbone": "hrnet_w48"}},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def check(*arguments: str) -> int:
    return main(["data", "check", "--workers", "0", "--config", *arguments])


def report(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    check(*arguments, "--json", str(tmp_path / "report.json"))
    content: dict[str, Any] = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    return content


def kinds(content: dict[str, Any]) -> dict[str, list[str]]:
    return {
        word: sorted({f"{finding['split']}: {finding['kind']}" for finding in content[word]})
        for word in ("errors", "warnings")
    }


# ---------------------------------------------------------------- a sound data set

TEXT = """\
train: 4 images, 40 x 30 px (width x height)
     tagged images  cues  cues used  regions, 1 cue
cat              4     4          4               4
dog              4     4          4               4
all              8     8          8               8
cues in an image: 2, median 2

val: 2 images, 40 x 30 px (width x height)
     tagged images  objects  cues
cat              2        2     2
dog              2        2     2
all              4        4     4
cues in an image: 2, median 2

test, predict: the images of val

0 errors, 0 warnings
"""


def test_a_sound_data_set(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(config(voc, batch_size=4, image_scale=2.0, object_scale=0.16)) == 0
    captured = capsys.readouterr()
    assert captured.out == TEXT and captured.err == ""


def test_advice_with_the_setting_that_helps(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Objects of 10 px under settings for VOC's, four images for a batch of eight: legal, and no warning."""
    content = report(tmp_path, config(voc))
    output = capsys.readouterr().out
    assert [found["kind"] for found in content["advice"]] == [
        "fewer images than a batch",
        "objects of few cells",
        "object_scale far from the objects",
    ]
    assert all(f"advice: {found['kind']}\n  train: {found['message']}\n" in output for found in content["advice"])
    assert "set batch_size: 4" in output and output.endswith("0 errors, 0 warnings\n")


def test_advice_knows_the_sigma_of_the_model(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it stands among the model's settings."""
    path = Path(config(voc, batch_size=4, image_scale=2.0, object_scale=0.16))
    content = yaml.safe_load(path.read_text())
    for settings in ({"sigma": 200.0}, {"geometry": {"sigma": 200.0}}):
        content["model"]["init_args"] = settings
        path.write_text(yaml.safe_dump(content))
        check(str(path))
        assert (
            "advice: sigma far from the objects\n  train: centres are Gaussians of 32.0 px" in capsys.readouterr().out
        )


def test_the_report_is_the_same_with_workers(voc: Path, tmp_path: Path) -> None:
    (voc / "Center_points" / "a2.txt").write_text("5 6 0 1\n99 6 0 1\n")
    (voc / "JPEGImages" / "a1.png").write_bytes(b"")
    first = report(tmp_path, config(voc))
    second = report(tmp_path, config(voc), "--workers", "2")
    assert first == second
    assert kinds(first) == {
        "errors": ["train: unreadable image", "train: wrong cue"],
        "warnings": ["train: tag without a cue"],
    }
    train = first["splits"]["train"]
    assert train["images"] == 4 and train["unreadable"] == 1
    assert train["heights"] == [30, 30] and train["widths"] == [40, 40]
    assert train["cues_per_image"] == {"0": 1, "1": 1, "2": 2}  # none of the unreadable one
    assert train["classes"]["cat"] == {
        "tagged images": 4,
        "objects": 0,
        "crowds": 0,
        "cues": 3,
        "cues used": 3,
        "regions, no cue": 0,
        "regions, 1 cue": 3,
        "regions, 2+ cues": 0,
        "regions too small": 0,
    }
    assert train["classes"]["dog"]["regions, no cue"] == 1
    assert first["splits"]["test"] == {"images_of": "val"}
    assert first["data"] == "VOCDataModule" and first["root"] == str(voc)
    (error,) = [finding for finding in first["errors"] if finding["kind"] == "wrong cue"]
    assert error["image"] == "a2" and "a2.txt line 2: x=99 is outside the 40 px wide image" in error["message"]


def test_the_command_itself(voc: Path, tmp_path: Path) -> None:
    """As a process, with workers, a progress bar on the terminal, and its exit status."""
    (voc / "WSSS_maps" / "a3.png").unlink()
    command = [sys.executable, "-m", "bestie_pl", "data", "check", "--config", config(voc), "--workers", "2"]
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 80))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
    os.set_blocking(terminal, False)
    shown = os.read(terminal, 100_000).decode()
    os.close(end)
    os.close(terminal)
    assert process.returncode == 1
    assert "error: unreadable semantic map (1)\n  train: no such file: " in output and "1 error, 0 warnings" in output
    assert "train:" in shown and "images/s" in shown and "Error" not in shown


# ---------------------------------------------------------------- across images


def test_warnings_alone_are_no_failure(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(4):
        (voc / "Center_points" / f"a{n}.txt").write_text("5 6 0 1\n35 28 1 1\n")
    (voc / "Center_points" / "b0.txt").write_text("")
    assert check(config(voc)) == 0
    output = capsys.readouterr().out
    assert "warning: cue beside the regions of its class (4)\n  train: " in output and "0 errors, 4 warnings" in output
    assert "regions, no cue  regions, 1 cue\n" in output
    assert "cues in an image: 0 to 2, median 2; none in 1 image\n" in output


def test_only_some_findings_of_a_kind_are_printed(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (voc / "Center_points" / "a0.txt").write_text("99 6 0 1\n" * 8)
    content = report(tmp_path, config(voc))
    output = capsys.readouterr().out
    assert output.count("a0.txt line") == 5 and "... and 3 more; --json FILE lists all" in output
    assert len(content["errors"]) == 8


def test_an_image_in_two_splits(voc: Path, tmp_path: Path) -> None:
    (voc / "val_cls.txt").write_text("b0 0 1\na1 0 1\n")
    content = report(tmp_path, config(voc))
    assert kinds(content) == {"errors": ["val: image in two splits"], "warnings": []}
    assert content["errors"][0]["image"] == "a1" and "of the split train" in content["errors"][0]["message"]
    assert check(config(voc)) == 1


def test_the_same_content_under_another_name(voc: Path, tmp_path: Path) -> None:
    shutil.copy(voc / "JPEGImages" / "a1.png", voc / "JPEGImages" / "b0.png")
    shutil.copy(voc / "JPEGImages" / "a2.png", voc / "JPEGImages" / "a3.png")
    content = report(tmp_path, config(voc))
    assert kinds(content) == {"errors": [], "warnings": ["train: image twice in a split", "val: image in two splits"]}
    assert "b0.png holds the same bytes as " in content["warnings"][1]["message"]
    assert check(config(voc)) == 0


def test_a_broken_image_in_two_splits(voc: Path, tmp_path: Path) -> None:
    (voc / "JPEGImages" / "a1.png").write_bytes(b"nothing")
    (voc / "val_cls.txt").write_text("a1 0 1\n")
    content = report(tmp_path, config(voc))
    assert "val: image in two splits" in kinds(content)["errors"]


def test_names_listed_twice(voc: Path, tmp_path: Path) -> None:
    (voc / "train_cls.txt").write_text("a0 0\na1 0\na0 1\n")
    content = report(tmp_path, config(voc))
    assert kinds(content)["errors"] == ["train: split that cannot be opened"]
    assert "train_cls.txt: listed more than once: a0; " in content["errors"][0]["message"]
    assert set(content["splits"]) == {"val", "test", "predict"}  # the others are read all the same


def test_every_split_that_cannot_be_opened_is_told(voc: Path, tmp_path: Path) -> None:
    shutil.rmtree(voc / "WSSS_maps")
    content = report(tmp_path, config(voc, val_split="vall", test_split="val"))
    assert [(finding["split"], finding["kind"]) for finding in content["errors"]] == [
        ("train", "split that cannot be opened"),
        ("val", "split that cannot be opened"),
    ]
    assert "WSSS_maps; expected the training images' semantic maps" in content["errors"][0]["message"]
    assert content["splits"]["test"]["images"] == 2


def test_a_class_that_nothing_teaches(voc: Path, tmp_path: Path) -> None:
    (voc / "classes.txt").write_text("cat\ndog\ncow\npig\n")
    content = report(tmp_path, config(voc))
    assert kinds(content) == {"errors": [], "warnings": ["train: class without a training image"]}
    assert content["warnings"][0]["message"].startswith("cow, pig; nothing teaches them")


def test_many_classes_are_summed(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cat", "dog", *(f"class {n}" for n in range(50))]
    (voc / "classes.txt").write_text("\n".join(names))
    assert check(config(voc)) == 0
    output = capsys.readouterr().out
    assert "\n52 classes              8     8" in output and "\ncat" not in output


def test_images_to_predict(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new.jpg").write_bytes(b"no image")
    shutil.copy(voc / "JPEGImages" / "a0.png", tmp_path / "more" / "old.png")  # who predicts it means to
    content = report(tmp_path, config(voc, predict_images=str(tmp_path / "more")))
    assert kinds(content) == {"errors": ["predict: unreadable image"], "warnings": []}
    assert content["splits"]["predict"]["images"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_utf8(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "old") + b"/gr\xf6\xdfe.jpg")).write_bytes(b"no image")
    content = report(tmp_path, config(voc, predict_images=str(tmp_path / "old")))
    assert os.fsencode(content["errors"][0]["image"]) == b"gr\xf6\xdfe"
    assert r"old/gr\udcf6\udcdfe.jpg: cannot be read as an image" in capsys.readouterr().out


# ---------------------------------------------------------------- other layouts


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A training and a validation image, each with a box and a crowd."""
    root = tmp_path / "coco"
    for k, split in enumerate(("train", "val")):
        draw(root / split / "000001.png", np.full((H, W, 3), 50 + k))
        annotations = [
            {"id": 1, "image_id": 1, "category_id": 44, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 3,
                "segmentation": {"size": [H, W], "counts": [800, 400]},
                "iscrowd": 1,
            },
        ]
        images = [{"id": 1, "file_name": "000001.png", "height": H, "width": W}]
        categories = [{"id": 3, "name": "car"}, {"id": 44, "name": "cup"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    draw(root / "maps" / "000001.png", np.zeros((H, W)))
    (root / "points").mkdir()
    (root / "points" / "000001.txt").write_text("7 7 1 1\n")
    return root


def coco_config(root: Path, **settings: Any) -> str:
    common = {f"{split}_images": split for split in ("train", "val")}
    common |= {f"{split}_annotations": f"{split}.json" for split in ("train", "val")}
    return config(root, "COCODataModule", **(common | {"semantic_dir": "maps", "cues_dir": "points"} | settings))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco(coco: Path, tmp_path: Path) -> None:
    """Files of one name in two folders are two images."""
    content = report(tmp_path, coco_config(coco, semantic_source="ground_truth"))
    # of the class that has a crowd alone
    assert kinds(content)["errors"] == []
    assert kinds(content)["warnings"] == ["train: tag without a cue", "train: tag without a region in the semantic map"]
    assert content["splits"]["val"]["classes"]["cup"]["objects"] == 1
    assert content["splits"]["val"]["classes"]["car"] | {"cues": 0} == {
        "tagged images": 1,
        "objects": 0,
        "crowds": 1,
        "cues": 0,
        "cues used": 0,
        "regions, no cue": 0,
        "regions, 1 cue": 0,
        "regions, 2+ cues": 0,
        "regions too small": 0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(id=1), "2 annotations have the id 1; expected each once"),
        (lambda c: c["images"].append({**c["images"][0], "file_name": "x.png"}), "2 images have the id 1"),
        (lambda c: c["images"].append({**c["images"][0], "id": 2}), "listed more than once: 000001"),
        (lambda c: c.pop("annotations"), "has no `annotations`; expected them for the images' tags"),
    ],
)
def test_broken_annotation_files(
    coco: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(coco / "train.json", change)
    content = report(tmp_path, coco_config(coco))
    assert [finding["kind"] for finding in content["errors"]] == ["split that cannot be opened"]
    assert re.search(message, content["errors"][0]["message"])


def test_a_folder_without_ground_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images and a list of tags are enough to train: nothing is wrong with them, and predict has no list."""
    root = tmp_path / "own"
    for name in ("ä", "b"):
        draw(root / "images" / f"{name}.png", np.full((H, W, 3), ord(name)))
    (root / "tags.csv").write_text("image,tags,split\nä.png,Käfer,train\nb.png,,train\n", encoding="utf-8")
    assert check(config(root, "FolderDataModule", supervision="tags", semantic_source="none", val_split="train")) == 1
    capsys.readouterr()
    draw(root / "maps" / "ä.png", np.ones((H, W)))
    draw(root / "maps" / "b.png", np.zeros((H, W)))
    (root / "cues").mkdir()
    (root / "cues" / "ä.txt").write_text("3 4 0 0.9\n")
    (root / "cues" / "b.txt").write_text("")
    settings = {"supervision": "tags", "semantic_dir": "maps", "cues_dir": "cues"}
    assert check(config(root, "FolderDataModule", **settings)) == 0
    output = capsys.readouterr().out
    assert "\nKäfer              1     1          1               1\n" in output
    assert "warning: split that cannot be opened (1)\n  predict: " in output and "0 errors, 1 warning\n" in output

    (root / "tags.csv").write_text("image,tags,split\nä.png,Käfer,train\nb.png,,trian\n", encoding="utf-8")
    assert check(config(root, "FolderDataModule", **settings)) == 0
    output = capsys.readouterr().out
    told = "1 of the split 'trian'; expected one of train, val (did you mean 'train'?)"
    assert f"warning: images that no stage uses (1)\n  data set: {told}\n" in output


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "unknown command 'chek' of `bestie-pl data`; expected one of check, shards (did you mean 'check'?)"),
        (["check", "--config", "CONFIG", "--workers", "-1"], "--workers must be 0 or more, got -1"),
    ],
)
def test_wrong_usage(voc: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [config(voc) if argument == "CONFIG" else argument for argument in arguments]
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err == f"bestie-pl: error: {message}\n"


def test_a_data_set_that_cannot_even_be_described(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco / "val.json").unlink()
    assert check(coco_config(coco)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bestie-pl: error: no such file: {coco / 'val.json'}; ") and error.count("\n") == 1


def test_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "check"])
    assert stop.value.code == 2 and "data" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert capsys.readouterr().out.startswith("usage: bestie-pl data check --config CONFIG")
