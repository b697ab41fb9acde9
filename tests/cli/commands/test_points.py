"""``bestie-pl points`` as users run it, and the way from its files through every configuration of a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl.cli import main as cli
from bestie_pl.cli.commands.points import SOURCES
from bestie_pl.data.annotation_tools.readers import READERS
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.points import read_points

REPOSITORY = Path(__file__).resolve().parents[3]
W, H = 40, 30


def labelme(folder: Path, name: str, *points: tuple[str, float, float], **more: Any) -> None:
    """One of LabelMe's files with points."""
    shapes = [{"label": c, "points": [[x, y]], "shape_type": "point", "group_id": None} for c, x, y in points]
    content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": H, "imageWidth": W, **more}
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def picture(path: Path, size: tuple[int, int] = (W, H), orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size, (10, 20, 30)).save(path, exif=exif)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Labels of three images, and the images in another folder."""
    labelme(tmp_path / "labels", "one", ("dog", 10.5, 4.5), ("cat", 30.5, 20.5), ("dog", 1.5, 1.5))
    labelme(tmp_path / "labels" / "sub", "two", ("cat", 40, 30))
    labelme(tmp_path / "labels", "empty")
    for name in ("one", "sub/two", "empty"):
        picture(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


def points(*arguments: object, status: int = 0) -> None:
    assert cli.main(["points", *map(str, arguments)]) == status


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a command that fails."""
    points(*arguments, status=2)
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("bestie-pl: error: ")
    return output.err.removeprefix("bestie-pl: error: ").strip()


def test_from_labels_to_a_data_set(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = annotated
    points(
        *(root / "labels", "--from", "labelme", "--images", root / "images"),
        *("--output", root / "points.json", "--tags", root / "tags.csv"),
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"4 points in 3 images: {root}/points.json", "  class 0  cat: 2", "  class 1  dog: 2"]
    found = read_points(root / "points.json")
    assert list(found.files) == ["empty.jpg", "one.jpg", "sub/two.jpg"] and found.sizes.tolist() == [[H, W]] * 3
    assert (root / "tags.csv").read_text().splitlines() == [
        *("image,tags,split", "empty.jpg,,train", "one.jpg,cat;dog;,train", "sub/two.jpg,cat;,train")
    ]
    for name in ("empty", "one", "sub/two"):
        path = root / "maps" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((H, W), np.uint8)).save(path)
    data = FolderDataModule(str(root), points="points.json", semantic_dir="maps", num_workers=0)
    data.setup("fit")
    samples = data.datasets["train"]
    assert [samples[n].cues.yx.tolist() for n in range(3)] == [[], [[4, 10], [20, 30], [1, 1]], [[29, 39]]]


def test_a_project_of_via_with_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VIA writes no sizes: ``--images`` finds them, and what lies outside of an image."""
    picture(tmp_path / "images" / "sub" / "one.jpg")

    def write(x: float) -> Path:
        shape = {"name": "circle", "cx": x, "cy": 4.5, "r": 3}
        region = {"shape_attributes": shape, "region_attributes": {"class": "dog"}}
        image = {"filename": "sub/one.jpg", "size": 9, "regions": [region], "file_attributes": {"class": "cat"}}
        (tmp_path / "p.json").write_text(json.dumps({"_via_img_metadata": {"a": image}}))
        return tmp_path / "p.json"

    arguments = ("--from", "via", "--images", tmp_path / "images", "--output", tmp_path / "points.json")
    points(write(10.5), *arguments, "--tags", tmp_path / "tags.csv", "--classes", "cat", "dog")
    found = read_points(tmp_path / "points.json")
    assert found.yx.tolist() == [[4, 10]] and found.sizes.tolist() == [[H, W]] and found.classes.tolist() == [1]
    assert (tmp_path / "tags.csv").read_text().splitlines()[1] == "sub/one.jpg,cat;dog;,train"
    capsys.readouterr()
    assert "x: 60" in refused(capsys, write(60.5), *arguments)


def test_text_files_and_the_order_of_classes(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = annotated
    points(root / "labels", "--from", "labelme", "--output", root / "txt", "--classes", "dog", "bird", "cat")
    assert (root / "txt" / "one.txt").read_text() == "10 4 0 1.000\n30 20 2 1.000\n1 1 0 1.000\n"
    assert (root / "txt" / "sub" / "two.txt").read_text() == "39 29 2 1.000\n"
    assert (root / "txt" / "empty.txt").read_text() == ""
    assert "  class 1  bird: 0\n" in capsys.readouterr().out
    message = refused(capsys, root / "labels", "--from", "labelme", "--output", root / "txt", "--classes", "cat")
    assert message.splitlines() == [
        f"{root}/labels/one.json: shape {k} (dog): class: 'dog'; expected one of cat" for k in (1, 3)
    ]


def test_its_own_form_is_checked_and_converted(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = annotated
    points(root / "labels", "--from", "labelme", "--output", root / "points.json")
    points(root / "points.json", "--from", "json", "--output", root / "again.json")
    assert (root / "again.json").read_text() == (root / "points.json").read_text()
    (root / "table.csv").write_text("image,x,y,class\nsub/two,39,29,cat\none,10,4,dog\none,30,20,cat\none,1,1,dog\n")
    points(
        *(root / "table.csv", "--from", "csv", "--images", root / "images", "--output", root / "own.json"),
        *("--classes", "cat", "dog"),
    )
    one, other = (json.loads((root / name).read_text()) for name in ("points.json", "own.json"))
    assert one["classes"] == other["classes"]
    assert {i["file"]: i for i in other["images"]} == {i["file"]: i for i in one["images"] if i["points"]}
    content = json.loads((root / "points.json").read_text())
    content["images"][1]["points"][0]["x"] = W
    (root / "points.json").write_text(json.dumps(content))
    capsys.readouterr()
    message = refused(capsys, root / "points.json", "--from", "json", "--output", root / "again.json")
    assert message == f"{root}/points.json: image 'one.jpg', point 1: x: 40; expected 0 <= x < 40, the image's width"
    assert json.loads((root / "again.json").read_text()) == one  # a failed run leaves the old file


def test_images_are_found_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["C:/photos/set/sub/turned.jpg,1,2,cat", "plain,1,2,cat", "SHOUT.JPG,1,2,cat"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["image,x,y,class", *rows]) + "\n")
    picture(tmp_path / "images" / "sub" / "turned.jpg", orientation=6)
    picture(tmp_path / "images" / "plain.png")
    picture(tmp_path / "images" / "SHOUT.JPG")
    arguments = (table, "--from", "csv", "--images", tmp_path / "images", "--output", tmp_path / "points.json")
    points(*arguments)
    found = read_points(tmp_path / "points.json")
    assert list(found.files) == ["sub/turned.jpg", "plain.png", "SHOUT.JPG"]
    assert found.sizes.tolist() == [[W, H], [H, W], [H, W]]  # as it is seen: a quarter turn
    capsys.readouterr()
    table.write_text("image,x,y,class\nplain,39,2,cat\nplain,40,2,cat\n")
    assert "x: 40.0; expected 0 <= x < 40, the image's width" in refused(capsys, *arguments)
    table.write_text("image,x,y,class\nplain,1,2,cat\nother/plain.png,1,2,cat\n")
    assert "the image 'plain.png' stands there twice; give all its points once" in refused(capsys, *arguments)
    table.write_text("image,x,y,class\nsub/lost.jpg,1,2,cat\n")
    assert refused(capsys, *arguments).startswith(f"no such image: {tmp_path}/images/sub/lost.jpg; expected the folder")
    (tmp_path / "images" / "lost.jpg").write_text("no picture")
    assert "images/lost.jpg: cannot be read as an image" in refused(capsys, *arguments)


def test_another_version_of_an_image_is_found(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(annotated / "images" / "one.jpg", (W // 2, H // 2))
    arguments = (annotated / "labels", "--from", "labelme", "--output", annotated / "points.json")
    message = refused(capsys, *arguments, "--images", annotated / "images")
    assert message.endswith(
        "one.jpg: is 20 x 15 px (width x height, turned as its EXIF orientation says) but was 40 x 30 when it was "
        "annotated; use the annotated images"
    )
    assert not (annotated / "points.json").exists()
    message = refused(capsys, *arguments, "--images", annotated / "nowhere")
    assert message == f"no such folder: {annotated}/nowhere; expected the images; give it as --images"


def test_wrong_calls(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["labels"], "the following arguments are required: --from, --output"),
        (["labels", "--from", "yolo", "--output", "x"], "argument --from: invalid choice: 'yolo'"),
    ]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["points", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    message = refused(capsys, annotated / "none.json", "--from", "coco", "--output", annotated / "points.json")
    assert message == f"no such file: {annotated}/none.json; expected a COCO annotation file"


def test_help_names_every_format_and_is_light() -> None:
    assert SOURCES.keys() == READERS.keys()
    script = Path(sys.executable).with_name("bestie-pl")
    shown = subprocess.run([script, "points", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {name:<12}" in shown for name in SOURCES) and "FolderDataModule" in shown
    code = "import sys; from bestie_pl.cli.main import main; main(['points', '--help'])"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("False\n")


# ---------------------------------------------------------------- every configuration


def test_every_folder_configuration_runs(shapes_folder: Path, tmp_path: Path) -> None:
    """The whole way of ``configs/folder``: tags to cues and maps to instances; and points for half of the images."""
    from bestie_pl.cli.lightning import run

    names = (shapes_folder / "classes.txt").read_text().split()
    rows = []
    for split in ("train", "val"):
        for line in (shapes_folder / f"{split}_cls.txt").read_text().splitlines():
            name, *numbers = line.split()
            rows.append(f"{name},{';'.join(names[int(n)] for n in numbers)};,{split}")
    root = tmp_path / "my_set"
    (root / "points").mkdir(parents=True)
    (root / "images").symlink_to(shapes_folder / "JPEGImages")
    (root / "tags.csv").write_text("\n".join(["image,tags,split", *rows]) + "\n")
    for path in sorted((shapes_folder / "Center_points").glob("train*.txt"))[::2]:
        (root / "points" / path.name).write_text(path.read_text())

    def bestie(verb: str, config: str, *more: str) -> None:
        arguments = [f"--data.init_args.root={root}", f"--data.init_args.class_names={json.dumps(names)}"]
        arguments += [f"--data.init_args.{size}" for size in ("crop_size=64", "batch_size=8", "num_workers=0")]
        arguments += ["--model.init_args.backbone_weights=null"] * (verb == "fit")
        arguments += [f"--trainer.default_root_dir={tmp_path / config}", "--trainer.accelerator=cpu"]
        run([verb, "--config", f"{REPOSITORY}/configs/folder/{config}.yaml", *arguments, *more])

    steps = "--trainer.max_steps=2"
    bestie("fit", "classifier", steps)
    bestie("predict", "classifier", "--ckpt_path=last")
    made = {path.stem for path in (root / "Peak_points").glob("*.txt")}
    assert made == {path.stem for path in (root / "CAM_maps").glob("*.png")} and len(made) == 16
    bestie("fit", "semantic", steps)
    bestie("predict", "semantic", "--ckpt_path=last")
    assert made == {path.stem for path in (root / "Retrained_maps").glob("*.png")}
    bestie("fit", "tags", steps, f"--model.init_args.init_from={tmp_path / 'semantic/checkpoints/last.ckpt'}")
    bestie("fit", "points", steps, "--data.init_args.points=points", "--data.init_args.semantic_dir=CAM_maps")
    bestie("predict", "points", "--ckpt_path=last", f"--data.init_args.predict_images={root / 'images'}")
    assert len(list((tmp_path / "points" / "predictions").glob("*.json"))) == len(list((root / "images").iterdir()))
    for config in ("tags", "points"):
        state = torch.load(tmp_path / config / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 2 and all(v.isfinite().all() for v in state["state_dict"].values())


def test_edited_tags_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("image,x,y,class\na.png,1,2,cat\n")
    tags = tmp_path / "tags.csv"
    command = [
        "points",
        str(tmp_path / "p.csv"),
        "--from",
        "csv",
        "--output",
        str(tmp_path / "p.json"),
        "--tags",
        str(tags),
    ]
    assert cli.main(command) == 0 and cli.main(command) == 0  # what it wrote itself may be written again
    edited = tags.read_text().replace("train", "val")
    tags.write_text(edited)
    (tmp_path / "p.json").unlink()
    assert cli.main(command) == 2
    assert "tags.csv: exists and differs" in capsys.readouterr().err
    assert tags.read_text() == edited and not (tmp_path / "p.json").exists()
    assert cli.main([*command, "--overwrite"]) == 0 and "train" in tags.read_text()


def test_what_it_reads_is_never_written_over(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = annotated
    file = root / "labels" / "one.json"
    before = file.read_bytes()
    message = refused(capsys, file, "--from", "labelme", "--output", file)
    assert message == f"--output {file}: is what the points are read from; give another file"
    given = (file, "--from", "labelme", "--output", root / "points.json")
    assert f"--tags {file}: is what" in refused(capsys, *given, "--tags", file)
    assert file.read_bytes() == before
    assert "expected a .json file, or a folder" in refused(capsys, *given[:3], "--output", root / "points.csv")
    points(*given[:3], "--output", root / "txt")
    capsys.readouterr()
    labelme(root / "labels", "three", ("dog", 5, 5))  # 0 here, and 1 there
    more = (root / "labels/three.json", "--from", "labelme", "--output", root / "txt")
    assert "has one.txt, whose class numbers may mean others; give --classes" in refused(capsys, *more)
    assert not (root / "txt" / "three.txt").exists()
    points(*more, "--classes", "cat", "dog")
    assert (root / "txt" / "three.txt").read_text().split()[2] == "1"


def test_crowds_alone_are_no_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowd = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [1, 1, 5, 5]}
    image = {"id": 1, "file_name": "a.png", "width": W, "height": H}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [crowd]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    message = refused(capsys, tmp_path / "coco.json", "--from", "coco", "--output", tmp_path / "points.json")
    assert "annotations: all 1 have iscrowd 1" in message
