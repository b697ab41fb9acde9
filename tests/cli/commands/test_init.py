"""``bestie-pl init``: from a folder to configurations."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from bestie_pl.cli.main import main


def images(root: Path, count: int = 4) -> Path:
    (root / "images").mkdir(parents=True)
    for number in range(count):
        image = Image.new("RGB", (96, 80), (20, 20, 20))
        ImageDraw.Draw(image).ellipse((24, 24, 56, 56), fill=(230, 210, 220))
        image.save(root / "images" / f"i{number}.png")
    return root


def tags(root: Path, *rows: str) -> Path:
    (root / "tags.csv").write_text("\n".join(["image,tags,split", *rows]) + "\n")
    return root


def points(root: Path, count: int = 4) -> Path:
    records = [{"file": f"i{n}.png", "points": [{"x": 40, "y": 40, "class": "nut"}]} for n in range(count)]
    (root / "points.json").write_text(json.dumps({"classes": ["nut"], "images": records}))
    return root


def coco(path: Path, names: list[str]) -> None:
    """Squares of 20 px."""
    records = [{"id": n, "file_name": name, "width": 96, "height": 80} for n, name in enumerate(names)]
    square = [30, 30, 50, 30, 50, 50, 30, 50]
    marked = [
        {"id": n + 1, "image_id": n, "category_id": 7, "segmentation": [square], "area": 400, "bbox": [30, 30, 20, 20]}
        for n in range(len(names))
    ]
    content = {"images": records, "annotations": marked, "categories": [{"id": 7, "name": "nut"}]}
    path.write_text(json.dumps(content | {"annotations": [m | {"iscrowd": 0} for m in marked]}))


def written(root: Path) -> dict[str, Any]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (root / "configs").glob("*.yaml")}


ONE_CLASS = [f"i{n}.png,nut;,train" for n in range(4)]


def test_points_without_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = points(tags(images(tmp_path / "set"), *ONE_CLASS))
    assert main(["init", str(root), "--device", "cpu"]) == 0
    configs = written(root)
    assert set(configs) == {"maps", "semantic", "instances"}
    assert configs["maps"]["model"] == {"class_path": "bestie_pl.GrownMaps"}
    (writer,) = configs["maps"]["trainer"]["callbacks"]
    assert writer["init_args"]["output_dir"] == configs["semantic"]["data"]["init_args"]["semantic_dir"]
    (writer,) = configs["semantic"]["trainer"]["callbacks"]
    assert writer["init_args"]["output_dir"] == configs["instances"]["data"]["init_args"]["semantic_dir"]
    assert configs["instances"]["data"]["init_args"]["batch_size"] == 4
    assert 0.1 <= configs["instances"]["data"]["init_args"]["object_scale"] <= 0.4
    reasons = (root / "configs" / "instances.yaml").read_text()
    assert "object_scale: " in reasons and "px wide; VOC's about 140" in reasons
    assert "objects are about 33 px wide" in capsys.readouterr().out


def test_points_and_maps(tmp_path: Path) -> None:
    root = points(tags(images(tmp_path / "set"), *ONE_CLASS))
    (root / "semantic_maps").mkdir()
    for number in range(4):
        Image.new("L", (96, 80), 1).save(root / "semantic_maps" / f"i{number}.png")
    assert main(["init", str(root), "--device", "cuda"]) == 0
    (config,) = written(root).values()
    assert config["data"]["init_args"]["semantic_dir"] == "semantic_maps"


def test_tags_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tags(images(tmp_path / "set"), "i0.png,nut;,train", "i1.png,nut;fig;,train", "i2.png,,val", "i3.png,,train")
    assert main(["init", str(root)]) == 0
    configs = written(root)
    assert set(configs) == {"classifier", "semantic", "instances"}
    assert configs["classifier"]["data"]["init_args"]["semantic_source"] == "none"
    assert configs["instances"]["data"]["init_args"]["supervision"] == "tags"
    printed = capsys.readouterr().out
    assert printed.index("data check") < printed.index("configs/classifier.yaml --ckpt_path last")


def test_printed_commands_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tags(images(tmp_path / "my set"), "i0.png,nut;,train", "i1.png,fig;,train", "i2.png,,val", "i3.png,,train")
    assert main(["init", str(root)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "bestie-pl " in line]
    assert len(lines) > 4 and all(str(root) in shlex.split(line)[-1] + shlex.split(line)[3] for line in lines[1:-1])
    assert shlex.split(lines[-1])[:3] == ["bestie-pl", "segment", str(root / "images")]


def test_coco_files_of_two_splits(tmp_path: Path) -> None:
    """Their names say the splits; the one for validation is the truth to score with."""
    root = images(tmp_path / "set")
    coco(root / "instances_train.json", ["i0.png", "i1.png", "i2.png"])
    coco(root / "instances_val.json", ["i3.png"])
    assert main(["init", str(root)]) == 0
    assert (root / "tags.csv").read_text() == (
        "image,tags,split\ni0.png,nut;,train\ni1.png,nut;,train\ni2.png,nut;,train\ni3.png,nut;,val\n"
    )
    assert [i["file"] for i in json.loads((root / "points.json").read_text())["images"]] == [
        "i0.png",
        "i1.png",
        "i2.png",
    ]
    config = written(root)["instances"]
    assert config["data"]["init_args"]["annotations"] == "instances_{split}.json"
    assert config["trainer"]["check_val_every_n_epoch"] >= 1 and "limit_val_batches" not in config["trainer"]


def test_labels_in_folders_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the annotation program put them; images too."""
    root = images(tmp_path / "set")
    (root / "images/sub").mkdir()
    (root / "images/i3.png").rename(root / "images/sub/i3.png")
    shape = {"label": "nut", "points": [[40, 40]], "shape_type": "point"}
    for number in range(4):
        folder, name = root / "labels" / ("", "", "more/and more", "sub")[number], f"i{number}.png"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"version": "5", "shapes": [shape], "imagePath": name, "imageHeight": 80, "imageWidth": 96}
        (folder / f"i{number}.json").write_text(json.dumps(content))
    assert main(["init", str(root)]) == 0
    files = [image["file"] for image in json.loads((root / "points.json").read_text())["images"]]
    assert files == ["i0.png", "i1.png", "i2.png", "sub/i3.png"]
    printed = capsys.readouterr().out
    assert "have no labels" not in printed and printed.startswith(f"wrote {root / 'points.json'} and ")


def test_images_that_no_stage_sees_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tags(images(tmp_path / "set"), "i0.png,nut;,train", "i1.png,,train", "i2.png,nut;,trian", "i3.png,,")
    assert main(["init", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "  1 images are of the split 'trian', and no stage sees them: expected one of train (did you mean 'train'?)",
        "  1 images are of no split, and no stage sees them: expected one of train",
    ]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = points(tags(images(tmp_path / "set"), *ONE_CLASS))
    assert main(["init", str(root)]) == 0
    config = root / "configs" / "semantic.yaml"
    config.write_text("mine")
    assert main(["init", str(root)]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err and config.read_text() == "mine"
    assert main(["init", str(root), "--overwrite"]) == 0 and config.read_text() != "mine"


def test_labels_that_teach_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tags(images(tmp_path / "set"), *ONE_CLASS)
    assert main(["init", str(root)]) == 2
    assert "all training images have the same tags" in capsys.readouterr().err and not (root / "configs").exists()


def test_no_labels_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "set")
    assert main(["init", str(root)]) == 2
    message = capsys.readouterr().err
    assert "neither tags.csv nor annotation files" in message and "such as `one.jpg,cat;dog,train`" in message
    assert main(["init", str(tmp_path)]) == 2
    assert f"no such folder: {tmp_path / 'images'}" in capsys.readouterr().err


def test_names_that_yaml_would_misread(tmp_path: Path) -> None:
    """A folder's name is a string, whatever it looks like."""
    root = points(tags(images(tmp_path / "a: 'set' # 1"), *ONE_CLASS))
    assert main(["init", str(root)]) == 0
    assert written(root)["instances"]["data"]["init_args"]["root"] == str(root)


def test_the_folder_of_a_coco_file_says_its_split(tmp_path: Path) -> None:
    root = images(tmp_path / "test")  # what lies above says nothing
    for split, names in (("train", ["i0.png", "i1.png"]), ("valid", ["i2.png"]), ("test", ["i3.png"])):
        (root / "labels" / split).mkdir(parents=True)
        coco(root / "labels" / split / "_annotations.coco.json", names)
    assert main(["init", str(root)]) == 0
    rows = (root / "tags.csv").read_text().splitlines()[1:]
    assert sorted(rows) == ["i0.png,nut;,train", "i1.png,nut;,train", "i2.png,nut;,valid", "i3.png,nut;,test"]


def test_a_second_call_plans_the_same(tmp_path: Path) -> None:
    """Maps that an earlier stage made are no labels of one's own."""
    root = points(tags(images(tmp_path / "set"), *ONE_CLASS))
    (root / "Grown_maps").mkdir()
    for number in range(4):
        Image.new("L", (96, 80), 1).save(root / "Grown_maps" / f"i{number}.png")
    assert main(["init", str(root)]) == 0
    assert set(written(root)) == {"maps", "semantic", "instances"}


def test_an_annotation_file_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "set")
    coco(root / "points.json", ["i0.png", "i1.png"])
    before = (root / "points.json").read_bytes()
    assert main(["init", str(root), "--overwrite"]) == 2
    assert "is what coco wrote, and points would take its place" in capsys.readouterr().err
    assert (root / "points.json").read_bytes() == before and not (root / "tags.csv").exists()


def test_names_from_a_mac_and_truth_of_another_name(tmp_path: Path) -> None:
    root = points(tags(images(tmp_path / "set"), *ONE_CLASS[:3], "\u00e9.png,nut;,val"))
    (root / "images/i3.png").rename(root / "images/e\u0301.png")
    coco(root / "evaluation_old.json", ["i3.png"])
    coco(root / "instances_val.json", ["i3.png"])
    assert main(["init", str(root)]) == 0
    assert written(root)["instances"]["data"]["init_args"]["annotations"] == "instances_{split}.json"
