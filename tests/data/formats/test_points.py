"""The documented form of points: JSON and CSV read, checked and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.points import (
    REPORTED,
    PointSet,
    PointSetBuilder,
    csv_rows,
    read_points,
    relative_file,
    tag_csv,
    to_json,
    write_release,
)

EXAMPLE: dict[str, Any] = {
    "classes": ["dog", "cat"],
    "images": [
        {
            "file": "sub/one.jpg",
            "width": 640,
            "height": 480,
            "points": [{"x": 31.5, "y": 12, "class": "cat"}, {"x": 70, "y": 200, "class": "dog", "confidence": 0.5}],
        },
        {"file": "two.png", "points": []},
    ],
}


def read(folder: Path, content: Any, name: str = "points.json", **settings: Any) -> PointSet:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_points(folder / name, **settings)


def rows_of(points: PointSet) -> dict[str, list[tuple[float, float, str, float]]]:
    """x, y, class and confidence of every point of every image."""
    table = {}
    for n, file in enumerate(points.files):
        rows = points.rows(n)
        columns = (points.yx[rows].tolist(), points.classes[rows].tolist(), points.scores[rows].tolist())
        table[file] = [(x, y, points.class_names[c], score) for (y, x), c, score in zip(*columns, strict=True)]
    return table


def test_json(tmp_path: Path) -> None:
    points = read(tmp_path, EXAMPLE)
    assert points.class_names == ("dog", "cat") and len(points) == 2
    assert rows_of(points) == {"sub/one.jpg": [(31.5, 12, "cat", 1), (70, 200, "dog", 0.5)], "two.png": []}
    assert points.sizes.tolist() == [[480, 640], [0, 0]]


def test_csv_rows_may_stand_in_any_order(tmp_path: Path) -> None:
    text = "image,x,y,class,confidence\none,1,2,cat,\ntwo,3,4,dog,0.25\nthree,,,,\none,5,6.5,dog,1\n"
    points = read(tmp_path, text, "points.csv")
    assert points.class_names == ("cat", "dog")
    assert rows_of(points) == {
        "one": [(1, 2, "cat", 1), (5, 6.5, "dog", 1)],
        "two": [(3, 4, "dog", 0.25)],
        "three": [],
    }
    plain = read(tmp_path, "image,x,y,class\none,1,2,cat\none,5,6.5,dog\nthree,,,\n", "points.csv")
    assert rows_of(plain)["one"] == rows_of(points)["one"] and rows_of(plain)["three"] == []


def test_classes_are_numbered_as_the_data_set_has_them(tmp_path: Path) -> None:
    points = read(tmp_path, EXAMPLE, class_names=("bird", "cat", "dog"))
    assert points.classes.tolist() == [1, 2] and points.class_names == ("bird", "cat", "dog")
    unused = {**EXAMPLE, "classes": ["cow", "dog", "cat"]}
    assert read(tmp_path, unused, class_names=("cat", "dog")).classes.tolist() == [0, 1]
    with pytest.raises(
        ValueError, match=r"points.json: points of the class 'dog'; expected one of cat: correct the fi"
    ):
        read(tmp_path, EXAMPLE, class_names=("cat",))


def change(**values: Any) -> dict[str, Any]:
    """The example with other fields in the first image."""
    return {**EXAMPLE, "images": [{**EXAMPLE["images"][0], **values}, EXAMPLE["images"][1]]}


def point(**values: Any) -> dict[str, Any]:
    return change(points=[{"x": 1, "y": 2, "class": "cat", **values}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is no JSON .*; expected a file of points, {\"classes\""),
        ([], r"expected a file of points, .*; `bestie-pl points --help` lists formats that can be converted"),
        ({"images": []}, r"classes: None; expected a list of class names"),
        ({**EXAMPLE, "classes": ["cat", 1]}, r"classes: 1 is no name; quote it"),
        ({**EXAMPLE, "classes": ["dog", "cat", "dog"]}, r"classes: 'dog' stands there twice"),
        ({**EXAMPLE, "images": []}, r"images: lists no image; expected a file of points"),
        ({**EXAMPLE, "info": 1}, r"the file: info: no field of this format; expected classes, images"),
        ({**EXAMPLE, "images": ["one.jpg"]}, r"images\[0\]: 'one.jpg'; expected an object with file and points"),
        (change(file=None), r"images\[0\]: file: None; expected the name of an image file"),
        (
            change(file="../one.jpg"),
            r"image '../one.jpg': file: '../one.jpg' leads out of the folder; expected a plain path below the folder",
        ),
        (change(file="two.png"), r"image 'two.png': the image 'two.png' stands there twice; give all its points once"),
        (
            change(width=None),
            r"image 'sub/one.jpg': width, height: None, 480; expected both in whole pixels, or neither",
        ),
        (change(width=6.5), r"image 'sub/one.jpg': width, height: 6.5, 480; expected both in whole pixels"),
        (change(points=None), r"image 'sub/one.jpg': points: None; expected a list, empty for an image without points"),
        (change(id=3), r"image 'sub/one.jpg': id: no field of this format; expected file, height, points, width"),
        (change(points=[[1, 2]]), r"image 'sub/one.jpg', point 1: \[1, 2\]; expected an object with x, y and class"),
        (
            point(label="cat"),
            r"image 'sub/one.jpg', point 1: label: no field of this format; expected class, confidence",
        ),
        (point(x="1"), r"image 'sub/one.jpg', point 1: x: '1'; expected a number of pixels"),
        (point(x=True), r"point 1: x: True; expected a number of pixels"),
        (point(x=640), r"point 1: x: 640; expected 0 <= x < 640, the image's width"),
        (point(y=-0.5), r"point 1: y: -0.5; expected 0 <= y < 480, the image's height"),
        (point(y=float("nan")), r"point 1: y: nan; expected a number of pixels"),
        (
            change(width=None, height=None, points=[{"x": float("inf"), "y": 0, "class": "cat"}]),
            r"point 1: x: inf; expected 0 <= x < the image's width",
        ),
        (point(**{"class": "bird"}), r"point 1: class: 'bird'; expected one of dog, cat"),
        (point(**{"class": 1}), r"point 1: class: 1; expected one of dog, cat"),
        (point(confidence=1.5), r"point 1: confidence: 1.5; expected a number in 0..1"),
    ],
)
def test_wrong_json(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"points.json: (image .*, )?{message}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;x;y;class\n", r"the first line is 'image;x;y;class'; expected image,x,y,class,confidence"),
        ("file,x,y,class\na,1,2,cat\n", r"the first line is 'file,x,y,class'; expected image,x,y,class"),
        ("image,x,y,class\na,1,2\n", r"line 2: 3 columns; expected 4"),
        ("image,x,y,class\na,1,two,cat\n", r"line 2: y: 'two'; expected a number of pixels"),
        ("image,x,y,class\na,1,nan,cat\n", r"line 2: y: nan; expected a number of pixels"),
        ("image,x,y,class\na,1,2,\n", r"line 2: class: ''; expected a class name"),
        ("image,x,y,class\na,-1,2,cat\n", r"line 2: x: -1.0; expected 0 <= x < the image's width"),
        ("image,x,y,class\n,1,2,cat\n", r"line 2: file: ''; expected the name of an image file"),
        ("image,x,y,class\n", r"images: lists no image"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"points.csv: {message}"):
        read(tmp_path, text, "points.csv")


def test_findings_are_collected_up_to_a_limit(tmp_path: Path) -> None:
    wrong = {"x": -1, "y": 2, "class": "cat"}
    with pytest.raises(ValueError) as caught:
        read(tmp_path, change(points=[{"x": 1, "y": 1, "class": "cat"}, wrong, {**wrong, "class": "cow"}], id=1))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "point 2: x: -1" in lines[1] and "point 3: class: 'cow'" in lines[2]
    with pytest.raises(ValueError) as caught:
        read(tmp_path, change(points=[wrong] * 1000))
    lines = str(caught.value).splitlines()
    assert len(lines) == REPORTED and lines[-1].endswith("(and perhaps more)")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*none.json; expected a file of points"):
        read_points(tmp_path / "none.json")


SIZE = (70, 90)
NAMES = ("猫", "traffic light", "a,b")
POSITION = st.tuples(
    *(st.floats(0, side, exclude_max=True, width=32) | st.integers(0, side - 1) for side in SIZE),
    st.integers(0, 2),
    st.sampled_from([1, 0.75, 0.125, 0]),
)
IMAGES = st.dictionaries(
    st.sampled_from(["b", "a/b.png", "größe 1.jpg", "c"]), st.lists(POSITION, max_size=4), min_size=1
)


def built(images: dict[str, list[tuple[float, float, int, float]]], *, sized: bool = True) -> PointSet:
    builder = PointSetBuilder(Path("given"), NAMES)
    for file, points in images.items():
        row = builder.image(file, SIZE if sized else None, where=file)
        for y, x, number, confidence in points:
            builder.point(row, x, y, NAMES[number], confidence, file)
    return builder.finish()


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.booleans())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, images: Any, sized: bool) -> None:
    points, folder = built(images, sized=sized), tmp_path_factory.mktemp("points")
    (folder / "points.json").write_text(to_json(points), encoding="utf-8")
    again = read_points(folder / "points.json")
    for name in ("sizes", "ends", "yx", "classes", "scores"):
        assert getattr(again, name).tolist() == getattr(points, name).tolist()
    assert again.class_names == NAMES and list(again.files) == list(images)
    write_release(points, folder / "release")
    for n, file in enumerate(images):
        name = file.removesuffix(".png").removesuffix(".jpg")
        cues = read_cues(folder / "release" / f"{name}.txt", SIZE, len(NAMES))
        rows = points.rows(n)
        # beyond the centre of the last pixel a text file's points are moved to it
        expected = np.minimum(points.yx[rows].numpy(), np.array(SIZE, np.float32) - 1)
        assert cues.yx.tolist() == expected.tolist() and cues.classes.tolist() == points.classes[rows].tolist()
        assert cues.scores.tolist() == points.scores[rows].tolist()


def test_json_is_short_and_readable(tmp_path: Path) -> None:
    text = to_json(built({"größe.png": [(0.1, 12.0, 0, 1)]}))
    assert '{"file": "größe.png", "width": 90, "height": 70, "points": [{"x": 12, "y": 0.1, "class": "猫"}]}' in text


def test_release_files_need_unique_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two images are named a, but for their suffix; rename one, or write JSON"):
        write_release(built({"a.jpg": [], "a.png": []}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tags_of_points(tmp_path: Path) -> None:
    points = built({"one.jpg": [(1, 1, 1, 1), (2, 2, 0, 1), (3, 3, 1, 1)], "two.jpg": [], "three.jpg": []})
    text = tag_csv(points, [["crowd"], [], ["猫"]])
    assert text == "image,tags,split\none.jpg,crowd;traffic light;猫;,train\ntwo.jpg,,train\nthree.jpg,猫;,train\n"
    with pytest.raises(ValueError, match="image 'two.jpg': the class 'a;b' has a semicolon; rename it"):
        tag_csv(points, [[], ["a;b"], []])


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("a.jpg", "a.jpg"),
        ("./sub//a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("../images/a.jpg", "a.jpg"),
        ("sub/../../a.jpg", "a.jpg"),
        ("/data/a.jpg", "a.jpg"),
        ("D:\\data\\a.jpg", "a.jpg"),
    ],
)
def test_relative_files(path: str, file: str) -> None:
    assert relative_file(path) == file


def test_csv_rows_tell_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name, value\n"two\nlines",1\n\nb,2\n')
    assert list(csv_rows(tmp_path / "a.csv", ("name", "value"))) == [(3, ["two\nlines", "1"]), (5, ["b", "2"])]


def test_a_place_counts_once(tmp_path: Path) -> None:
    """Two points in one region would mean two objects."""
    row = "one,10,4,dog\n"
    (tmp_path / "points.csv").write_text(f"image,x,y,class\n{row}two,3,3,cat\n{row} one ,10,4,cat\none,10,5,dog\n")
    with pytest.warns(UserWarning, match="1 points stand at the place of another one of their class, in one first"):
        found = read_points(tmp_path / "points.csv")
    assert list(found.files) == ["one", "two"]
    assert found.yx[found.rows(0)].tolist() == [[4, 10], [4, 10], [5, 10]]
    assert found.classes[found.rows(0)].tolist() == [1, 0, 1] and found.yx[found.rows(1)].tolist() == [[3, 3]]
