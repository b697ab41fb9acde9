"""What annotation programs write, by hand: COCO, LabelMe, CVAT, Label Studio, VIA; and files that are none of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from bestie_pl.data.annotation_tools.geometry import box_center, from_corner, nearest_to_centroid, polygon_area
from bestie_pl.data.annotation_tools.label_studio import decode_brush
from bestie_pl.data.annotation_tools.marked import Marked
from bestie_pl.data.annotation_tools.readers import read_marked
from bestie_pl.data.annotation_tools.via import COLUMNS

H, W = 30, 40
C_SHAPE = np.zeros((H, W), np.uint8)
C_SHAPE[4:21, 6:9] = C_SHAPE[4:7, 6:26] = C_SHAPE[18:21, 6:26] = 1
"""A letter C, whose centroid lies outside of it."""
INSIDE = (8.0, 12.0)
"""x and y of its pixel that is nearest to its centroid (13.2, 12)."""


def write(folder: Path, content: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def spots(marked: Marked, image: int = 0) -> list[tuple[str, float, float]]:
    """Label, x and y of an image's objects."""
    return [(entry.label, *entry.spot) for entry in marked.images[image].objects]


# ---------------------------------------------------------------- COCO


def coco(*annotations: dict[str, Any], **images: Any) -> dict[str, Any]:
    """A COCO file of one image; categories as in the real ones, not in the order of their ids."""
    image = {"license": 4, "file_name": "one.jpg", "coco_url": "http://...", "height": H, "width": W, "id": 397133}
    common = {"image_id": 397133, "category_id": 1, "iscrowd": 0, "area": 702.1}
    people = {"supercategory": "person", "id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}
    return {
        "info": {"description": "COCO 2017 Dataset"},
        "images": [{**image, **images}],
        "annotations": [{**common, "id": 100 + n, **annotation} for n, annotation in enumerate(annotations)],
        "categories": [{"supercategory": "animal", "id": 18, "name": "dog"}, people],
    }


def runs(mask: np.ndarray, order: str) -> list[int]:
    """Lengths of runs of a mask, beginning with zeros."""
    flat = mask.flatten(order)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    lengths = np.diff(ends).tolist()
    return [0, *lengths] if flat[0] else lengths


COMPRESSED = rle.encode(np.asfortranarray(C_SHAPE))["counts"].decode()
BOX = {"bbox": [10.0, 4, 5, 11]}
SEGMENTATIONS = {
    "list": {"size": [H, W], "counts": runs(C_SHAPE, "F")},
    "compressed": {"size": [H, W], "counts": COMPRESSED},
    "polygons": [[6, 4, 26, 4, 26, 7, 9, 7, 9, 18, 26, 18, 26, 21, 6, 21]],
}


@pytest.mark.parametrize("form", SEGMENTATIONS)
def test_coco_masks(tmp_path: Path, form: str) -> None:
    file = coco({**BOX, "segmentation": SEGMENTATIONS[form]})
    assert spots(read_marked([write(tmp_path, file)], "coco")) == [("person", *INSIDE)]


def test_coco_keypoints_boxes_and_crowds(tmp_path: Path) -> None:
    polygon = [[6, 4, 16, 4, 16, 14, 6, 14]]
    file = coco(
        {**BOX, "num_keypoints": 1, "keypoints": [0, 0, 0, 21, 17, 1, 0, 0, 0], "segmentation": polygon},
        # a pose is not one point
        {**BOX, "num_keypoints": 2, "keypoints": [9, 9, 2, 21, 17, 2, 0, 0, 0], "segmentation": polygon},
        # two parts of one object, the second much larger
        {**BOX, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [10, 10, 20, 10, 20, 20, 10, 20]], "category_id": 18},
        {**BOX, "segmentation": []},
        {"bbox": [-4, 20, 10, 5]},
        {**BOX, "iscrowd": 1, "category_id": 18, "segmentation": SEGMENTATIONS["list"]},
    )
    marked = read_marked([write(tmp_path, file)], "coco")
    assert marked.class_names == ("person", "dog")  # by ascending id
    assert spots(marked) == [
        ("person", 21, 17),  # a pixel, not a corner of one
        ("person", 10, 8),
        ("dog", 14, 14),
        ("person", 12, 9),  # 10 + 5/2 - 1/2 and 4 + 11/2 - 1/2
        ("person", 2.5, 22),  # the middle of what is in the image
    ]
    assert marked.images[0].tags == {"dog"} and marked.images[0].size == (H, W)


def test_coco_without_image_sizes(tmp_path: Path) -> None:
    file = coco({"segmentation": SEGMENTATIONS["polygons"]}, BOX, width=None, height=None)
    marked = read_marked([write(tmp_path, file)], "coco")
    assert spots(marked) == [("person", *INSIDE), ("person", 12, 9)] and marked.images[0].size is None


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1}, "annotation 100: image_id 1, category_id 1; expected those of an image and a category"),
        ({"category_id": 90}, "annotation 100: image_id 397133, category_id 90; expected those of an image and a cat"),
        ({}, "annotation 100: neither one labelled keypoint nor a segmentation nor a bbox"),
        ({"bbox": [1, 2, 3]}, r"annotation 100: bbox: \[1, 2, 3\]; expected 4 numbers"),
        ({"bbox": [1, 2, "3", 4]}, r"annotation 100: bbox: \[1, 2, '3', 4\]; expected 4 numbers"),
        ({"bbox": [1, 2, 0, 4]}, r"annotation 100: bbox: a box of 0 x 4 px; expected a positive width and height"),
        ({"bbox": [50, 2, 3, 4]}, r"annotation 100: bbox: the box is outside the image"),
        ({"keypoints": [1, 2]}, r"annotation 100: keypoints: \[1, 2\]; expected 0 numbers"),
        ({"segmentation": {"size": [H, W]}}, "annotation 100: segmentation: a run-length code without counts"),
        (
            {"segmentation": {"size": [W, H], "counts": COMPRESSED}},
            r"segmentation: of size \[40, 30\]; the image's is ",
        ),
        (
            {"segmentation": {"size": [H, W], "counts": [5, 6]}},
            r"segmentation: a broken run-length code, .* 30 x 40 p",
        ),
        (
            {"segmentation": {"size": [H, W], "counts": [-5, 1205]}},
            r"segmentation: a broken run-length code, .* 30 x 40 p",
        ),
        (
            {"segmentation": {"size": [H, W], "counts": "garbage!!"}},
            "segmentation: a broken run-length code, .* 30 x 40 p",
        ),
        ({"segmentation": {"size": [H, W], "counts": [1200]}}, "annotation 100: segmentation: no pixel of it is in"),
        ({"segmentation": [[1, 2, 3, 4]]}, "segmentation: a polygon of 2 corners; expected three or more"),
        (
            {"segmentation": [1, 2, 3, 4, 5, 6]},
            "segmentation: 1; expected a polygon as numbers x, y, x, y",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, r"segmentation: \[1, 2, 3, 4, 5\]; expected a polygon as numbers x, y"),
        ({"segmentation": [[50, 2, 60, 2, 60, 8]]}, "segmentation: no pixel of it is in the image"),
    ],
)
def test_wrong_coco_annotations(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: .*{message}"):
        read_marked([write(tmp_path, coco(annotation))], "coco")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(images=[]),
            "expected a COCO annotation file with `images`, `annotations` and `categories`",
        ),
        (
            lambda c: c["images"].append(c["images"][0]),
            "image 'one.jpg': id: 397133 is another image's; ids must be un",
        ),
        (lambda c: c["images"][0].pop("file_name"), "image 397133: no file_name; found"),
        (
            lambda c: c["images"][0].update(width="40"),
            "image 'one.jpg': height, width: 30, '40'; expected whole numbers",
        ),
        (
            lambda c: c["images"][0].pop("width"),
            "image 'one.jpg': height, width: 30, None; expected whole numbers of pi",
        ),
        (lambda c: c["categories"][0].update(name="person"), "categories: two have the same name; rename one"),
        (lambda c: c["categories"][0].pop("id"), "categories: no id; found"),
        (lambda c: c.update(annotations="none"), r"cannot be understood \(.*\); expected what --from coco reads"),
    ],
)
def test_wrong_coco_files(tmp_path: Path, change: Any, message: str) -> None:
    content = coco(BOX)
    change(content)
    with pytest.raises(ValueError, match=f"file.json: {message}"):
        read_marked([write(tmp_path, content)], "coco")


def test_several_coco_files_are_read_together(tmp_path: Path) -> None:
    one = write(tmp_path, coco(BOX), "train.json")
    two = write(tmp_path, coco(BOX, BOX, file_name="two.jpg"), "val.json")
    marked = read_marked([one, two], "coco")
    assert [(image.file, len(image.objects)) for image in marked.images] == [("one.jpg", 1), ("two.jpg", 2)]
    other = coco(BOX)
    other["categories"].pop(0)
    with pytest.raises(ValueError, match="train.json and other files have different categories; convert one after"):
        read_marked([one, write(tmp_path, other, "other.json")], "coco")


# ---------------------------------------------------------------- LabelMe


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(*shapes: dict[str, Any], path: str = "one.jpg", **more: Any) -> dict[str, Any]:
    common = {"group_id": None, "description": "", "flags": {}, "mask": None}
    content = {"version": "5.5.0", "flags": {}, "shapes": [{**common, **shape} for shape in shapes]}
    return {**content, "imagePath": path, "imageData": None, "imageHeight": H, "imageWidth": W, **more}


def shape(kind: str, points: Any, label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_labelme_shapes(tmp_path: Path) -> None:
    file = labelme(
        shape("point", [[10.5, 4.25]]),
        shape("rectangle", [[26.0, 21.0], [6.0, 4.0]]),  # drawn from the lower right corner
        shape("rectangle", [[6, 4], [26, 4], [26, 21], [6, 21]], "dog"),  # as X-AnyLabeling writes it
        shape("oriented_rectangle", [[10, 6], [14, 10], [10, 14], [6, 10]]),
        shape("circle", [[20, 10], [20, 25]]),  # the second point lies on the circle
        shape("polygon", [[6, 4], [26, 4], [26, 7], [9, 7], [9, 18], [26, 18], [26, 21], [6, 21]]),
        shape("mask", [[6, 4], [25, 20]], mask=png(C_SHAPE[4:21, 6:26])),
        shape("mask", [[6.4, 3.6], [25, 20]], mask=png(C_SHAPE[4:21, 6:26].astype(bool))),
    )
    marked = read_marked([write(tmp_path, file)], "labelme")
    assert marked.class_names is None and marked.images[0].file == "one.jpg" and marked.images[0].size == (H, W)
    # measured from the corner of the first pixel, whose centre is 0 for us
    box = (15.5, 12.0)
    assert spots(marked) == [
        ("cat", 10, 3.75),
        ("cat", *box),
        ("dog", *box),
        ("cat", 9.5, 9.5),
        ("cat", 19.5, 9.5),
        ("cat", *INSIDE),
        ("cat", *INSIDE),
        ("cat", *INSIDE),
    ]


def test_labelme_groups_are_one_object(tmp_path: Path) -> None:
    def square(x: int, size: int) -> list[list[int]]:
        return [[x, 2], [x + size, 2], [x + size, 2 + size], [x, 2 + size]]

    file = labelme(
        shape("polygon", square(0, 2), group_id=1),
        shape("polygon", square(20, 10), group_id=1),
        shape("polygon", square(10, 4), "dog", group_id=1),
        # a point says which, whatever the outline
        shape("polygon", square(20, 10), group_id=2),
        shape("point", [[23.5, 4.5]], group_id=2),
    )
    marked = read_marked([write(tmp_path, file)], "labelme")
    assert spots(marked) == [("cat", 24, 6), ("dog", 11, 3), ("cat", 23, 4)]
    file["shapes"].append(shape("point", [[1, 1]], group_id=2))
    with pytest.raises(
        ValueError, match=r"shape 4 \(cat\): the group 2 of 'cat' has 2 points or boxes; expected one ob"
    ):
        read_marked([write(tmp_path, file)], "labelme")


def test_labelme_folders(tmp_path: Path) -> None:
    point = shape("point", [[1, 1]])
    write(tmp_path, labelme(point), "one.json")
    write(tmp_path, labelme(point, path="two.jpg"), "sub/two.json")
    write(tmp_path, labelme(point, path="..\\images\\three.jpg"), "labels/three.json")  # on Windows
    marked = read_marked([tmp_path], "labelme")
    assert sorted(image.file for image in marked.images) == ["images/three.jpg", "one.jpg", "sub/two.jpg"]
    (marked_alone,) = read_marked([tmp_path / "labels" / "three.json"], "labelme").images
    assert marked_alone.file == "three.jpg"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no LabelMe file \*.json in it"):
        read_marked([tmp_path / "empty"], "labelme")


def test_labelme_may_leave_the_size_out(tmp_path: Path) -> None:
    file = labelme(shape("polygon", [[6, 4], [8, 4], [8, 6], [6, 6]]), imageHeight=None, imageWidth=None)
    del file["shapes"][0]["shape_type"]  # as the first versions
    marked = read_marked([write(tmp_path, file)], "labelme")
    assert marked.images[0].size is None and spots(marked) == [("cat", 6, 4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("line", [[1, 2], [3, 4]]), r"shape 1 \(cat\): shape_type: 'line' has no inside; use point, rectangle"),
        (shape("point", [[1, 2], [3, 4]]), r"shape 1 \(cat\): points: 2; expected 1 for a point"),
        (shape("rectangle", [[1, 2]]), r"shape 1 \(cat\): points: 1; expected 2 for a rectangle"),
        (shape("point", [[1, "two"]]), r"shape 1 \(cat\): points: .*; expected 2 numbers"),
        (shape("point", [[1, float("nan")]]), r"shape 1 \(cat\): points: .*nan.*; expected 2 numbers"),
        (shape("point", [[41, 2]]), r"shape 1 \(cat\): x=41 is outside the image, whose x ends at 40"),
        (shape("point", [[1, -2]]), r"shape 1 \(cat\): y=-2 is outside the image, whose y ends at 30"),
        (shape("rectangle", [[1, 2], [1, 5]]), r"shape 1 \(cat\): a box of 0 x 3 px; expected a positive width"),
        (shape("polygon", [[1, 2], [3, 4]]), r"shape 1 \(cat\): a polygon of 2 corners; expected three or more"),
        (shape("mask", [[6, 4], [25, 20]], mask="no picture"), r"shape 1 \(cat\): mask: is no picture in base64"),
        (shape("mask", [[6, 4], [25, 20]]), r"shape 1 \(cat\): no mask; found"),
        (shape("point", [[1, 2]], label=None), "shape 1: no label; found"),
    ],
)
def test_wrong_labelme_shapes(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: {message}"):
        read_marked([write(tmp_path, labelme(wrong))], "labelme")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation></annotation>", "is no JSON .*; expected a LabelMe file"),
        ({"shapes": []}, "expected a LabelMe file with `shapes` and `imagePath`"),
        (coco(BOX), "expected a LabelMe file with `shapes` and `imagePath`"),
        (labelme(imageHeight="30"), "imageHeight, imageWidth: '30', 40; expected whole numbers of pixels"),
        ({**labelme(), "shapes": ["cat"]}, r"shape 1: no label; found 'cat'"),
    ],
)
def test_wrong_labelme_files(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: {message}"):
        read_marked([write(tmp_path, content)], "labelme")


# ---------------------------------------------------------------- CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id>
      <name>pets</name>
      <mode>annotation</mode>
      <labels>
        <label><name>cat</name><color>#b83df5</color><type>any</type><attributes></attributes></label>
        <label><name>dog</name><color>#2080c0</color><type>any</type><attributes></attributes></label>
      </labels>
      <original_size><width>40</width><height>30</height></original_size>
    </task>
    <dumped>2024-03-05 12:41:13.437412+00:00</dumped>
  </meta>
  <image id="0" name="sub/one.jpg" width="40" height="30">
{shapes}
  </image>
  <image id="1" name="frame_000001" width="40" height="30">
  </image>
</annotations>
"""


def cvat(*shapes: str) -> str:
    return CVAT.replace("{shapes}", "\n".join(shapes))


def test_cvat_shapes(tmp_path: Path) -> None:
    row_major = ", ".join(map(str, runs(C_SHAPE[4:21, 6:26], "C")))
    polygon = "6.00,4.00;26.00,4.00;26.00,7.00;9.00,7.00;9.00,18.00;26.00,18.00;26.00,21.00;6.00,21.00"
    corners = 'label="cat" source="manual" occluded="0"'
    file = cvat(
        f'<points {corners} points="10.50,4.25" z_order="0"></points>',
        f'<points {corners} points="1.50,2.50;40.00,30.00" z_order="0"></points>',  # two cats
        f'<box {corners} xtl="6.00" ytl="4.00" xbr="26.00" ybr="21.00" z_order="0">'
        '<attribute name="age">3</attribute></box>',
        f'<box {corners} xtl="-4.00" ytl="4.00" xbr="6.00" ybr="21.00" z_order="0"></box>',
        f'<box {corners} xtl="6.00" ytl="4.00" xbr="26.00" ybr="21.00" rotation="30.00" z_order="0"></box>',
        f'<ellipse {corners} cx="20.00" cy="10.00" rx="9.00" ry="4.00" rotation="12.00" z_order="0"></ellipse>',
        f'<polygon {corners} points="{polygon}" z_order="0"></polygon>',
        f'<mask {corners} rle="{row_major}" left="6" top="4" width="20" height="17" z_order="0"></mask>',
        '<tag label="dog" source="manual"></tag>',
    )
    marked = read_marked([write(tmp_path, file, "annotations.xml")], "cvat")
    box = ("cat", 15.5, 12.0)
    assert spots(marked) == [
        ("cat", 10, 3.75),
        ("cat", 1, 2),
        ("cat", 39, 29),  # the corner belongs to the last pixel
        box,
        ("cat", 2.5, 12),
        box,
        ("cat", 19.5, 9.5),
        ("cat", *INSIDE),
        ("cat", *INSIDE),
    ]
    assert [(i.file, i.size, i.tags) for i in marked.images] == [
        ("sub/one.jpg", (30, 40), {"dog"}),
        ("frame_000001", (30, 40), set()),  # looked at, and nothing there
    ]


def test_cvat_groups_are_one_object(tmp_path: Path) -> None:
    small, large = "0,0;2,0;2,2;0,2", "20,2;30,2;30,12;20,12"
    file = cvat(
        f'<polygon label="cat" points="{small}" group_id="5"></polygon>',
        f'<polygon label="cat" points="{large}" group_id="5"></polygon>',
        f'<polygon label="cat" points="{small}" group_id="0"></polygon>',
        f'<polygon label="cat" points="{small}" group_id="0"></polygon>',
    )
    marked = read_marked([write(tmp_path, file, "annotations.xml")], "cvat")
    assert spots(marked) == [("cat", 24, 6), ("cat", 0, 0), ("cat", 0, 0)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('<polyline label="cat" points="1,2;3,4"></polyline>', "polyline 1: a polyline has no inside; use points, box"),
        ('<skeleton label="cat"></skeleton>', "skeleton 1: a skeleton has no inside"),
        ('<points points="1,2"></points>', "points 1: no label; expected an export of CVAT as it is"),
        ('<points label="cat" points="1,2;3"></points>', "points 1: points: '1,2;3'; expected x,y;x,y"),
        ('<points label="cat" points="50,2"></points>', "points 1: x=50 is outside the image, whose x ends at 40"),
        ('<box label="cat" xtl="1" ytl="2" xbr="3"></box>', "box 1: no ybr; expected an export of CVAT"),
        ('<box label="cat" xtl="1" ytl="2" xbr="3" ybr="b"></box>', "box 1: ybr: 'b'; expected a number"),
        ('<polygon label="cat" points="1,2;3,4"></polygon>', "polygon 1: a polygon of 2 corners; expected three"),
        (
            '<mask label="cat" rle="1,x" left="0" top="0" width="2" height="2"></mask>',
            "mask 1: rle: expected whole num",
        ),
        (
            '<mask label="cat" rle="1,9" left="0" top="0" width="2" height="2"></mask>',
            "mask 1: rle: 10 pixels; expecte",
        ),
        ('<mask label="cat" rle="4" left="0" top="0" width="2" height="2"></mask>', "mask 1: no pixel of it is in the"),
    ],
)
def test_wrong_cvat_shapes(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"annotations.xml: image 'sub/one.jpg', {message}"):
        read_marked([write(tmp_path, cvat(wrong), "annotations.xml")], "cvat")


VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><mode>interpolation</mode></task></meta>
  <track id="0" label="cat" source="manual">
    <box frame="0" keyframe="1" outside="0" occluded="0" xtl="6.00" ytl="4.00" xbr="26.00" ybr="21.00"></box>
  </track>
</annotations>
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # frames have no names there; CVAT exports the same task as images too
        (VIDEO, "holds no images; export from CVAT as `CVAT for images 1.1`, not as video"),
        (
            "<annotation><filename>a.jpg</filename></annotation>",
            "holds no images; export from CVAT as `CVAT for images",
        ),
        ("{}", "is no XML .*; expected CVAT's export of the kind `CVAT for images`"),
        (CVAT.replace('width="40" ', ""), "image 'sub/one.jpg': no width; expected an export of CVAT"),
        (CVAT.replace('height="30"', 'height="tall"'), "image 'sub/one.jpg': height: 'tall'; expected a number"),
    ],
)
def test_wrong_cvat_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"annotations.xml: {message}"):
        read_marked([write(tmp_path, text.replace("{shapes}", ""), "annotations.xml")], "cvat")


# ---------------------------------------------------------------- Label Studio


def region(kind: str, value: dict[str, Any], label: str = "cat", **more: Any) -> dict[str, Any]:
    common = {"original_width": W, "original_height": H, "image_rotation": 0, "id": "Dx_aB91ISN", "origin": "manual"}
    common |= {"from_name": "label", "to_name": "image", "type": kind}
    return {**common, "value": {**value, kind: [label]}, **more}


def task(*results: dict[str, Any], image: str = "/data/upload/3/1c2f0ab4-one.jpg", **more: Any) -> dict[str, Any]:
    annotation = {"id": 7, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "lead_time": 4.288}
    return {
        "id": 12,
        "annotations": [{**annotation, "result": list(results)}],
        "file_upload": image.rsplit("/", 1)[-1],
        "drafts": [],
        "predictions": [],
        "data": {"image": image},
        "meta": {},
        "project": 3,
        **more,
    }


def packed_brush(mask: np.ndarray) -> list[int]:
    """Label Studio's packing of an RGBA picture, from its description: runs of one value where it pays, else values."""
    values = np.repeat(mask.flatten() * 255, 4).tolist()
    sizes = (3, 4, 8, 16)
    bits = f"{len(values):032b}" + f"{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        end = at
        while end < len(values) and values[end] == values[at] and end - at < 2**16:
            end += 1
        same = end - at > 2
        if not same:
            end = min(at + 2, len(values))
        length = end - at - 1
        width = next(n for n, size in enumerate(sizes) if length < 2**size)
        bits += f"{int(same)}{width:02b}{length:0{sizes[width]}b}"
        bits += "".join(f"{value:08b}" for value in (values[at : at + 1] if same else values[at:end]))
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def test_label_studio_regions(tmp_path: Path) -> None:
    """All positions are per cent of the image's sides, and rectangles are turned about their upper left corner."""
    whole = {"x": 15.0, "y": 10.0, "width": 50.0, "height": 40.0}  # 6, 3 and 20 x 12 px
    corners = [(6, 4), (26, 4), (26, 7), (9, 7), (9, 18), (26, 18), (26, 21), (6, 21)]
    polygon = [[x / W * 100, y / H * 100] for x, y in corners]
    again = {**whole, "rotation": 0}
    file = task(
        region("keypointlabels", {"x": 25.0, "y": 50.0, "width": 0.5}),
        region("rectanglelabels", {**whole, "rotation": 0}, "dog"),
        region("rectanglelabels", {**whole, "x": 50.0, "rotation": 90}),
        region("rectanglelabels", {**whole, "x": 20.0, "y": 30.0, "rotation": 330}),
        region("ellipselabels", {"x": 50.0, "y": 50.0, "radiusX": 20, "radiusY": 16, "rotation": 30}),
        region("polygonlabels", {"points": polygon, "closed": True}),
        region("brushlabels", {"format": "rle", "rle": packed_brush(C_SHAPE)}),
        # remarks about a region repeat where it is; those about the whole image are elsewhere
        {**region("textarea", again), "value": {**again, "text": ["asleep"]}},
        {**region("choices", again), "value": {**again, "choices": ["old"]}},
        {"value": {"choices": ["indoors"]}, "id": "x", "from_name": "c", "to_name": "image", "type": "choices"},
        {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"},
    )
    marked = read_marked([write(tmp_path, [file])], "labelstudio")
    assert marked.images[0].file == "one.jpg" and marked.images[0].size == (H, W)
    found = spots(marked)
    assert [label for label, *_ in found] == ["cat", "dog", "cat", "cat", "cat", "cat", "cat"]
    # a quarter turn clockwise leads down and to the left: 20 - 12/2, 3 + 20/2
    turned = (8 + 10 * 0.75**0.5 + 6 * 0.5 - 0.5, 9 - 10 * 0.5 + 6 * 0.75**0.5 - 0.5)
    expected = [(9.5, 14.5), (15.5, 8.5), (13.5, 12.5), turned, (19.5, 14.5), INSIDE, INSIDE]
    assert np.allclose([spot for _, *spot in found], expected, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_brushes_are_unpacked(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits, np.uint8).reshape(height, width)
    assert np.array_equal(decode_brush(packed_brush(mask), (height, width), ""), mask > 0)


@pytest.mark.parametrize(
    ("image", "upload", "file"),
    [
        ("/data/upload/3/1c2f0ab4-my-cat.jpg", "1c2f0ab4-my-cat.jpg", "my-cat.jpg"),
        ("/data/upload/3/1c2f0ab4-gr%C3%B6%C3%9Fe%201.png", None, "größe 1.png"),
        ("/data/local-files/?d=pets/sub/one.jpg", None, "pets/sub/one.jpg"),
        ("s3://bucket/pets/one.jpg", None, "pets/one.jpg"),
        ("https://example.com/pets/one.JPG?x=1", None, "pets/one.JPG"),
        ("one.jpg", None, "one.jpg"),
    ],
)
def test_label_studio_names(tmp_path: Path, image: str, upload: str | None, file: str) -> None:
    content = task(region("keypointlabels", {"x": 1, "y": 2}), image=image, file_upload=upload)
    content["data"] = {"caption": "a cat", "photo": image}
    assert read_marked([write(tmp_path, [content])], "labelstudio").images[0].file == file


def test_label_studio_annotations_that_count(tmp_path: Path) -> None:
    def done(x: float, **more: Any) -> dict[str, Any]:
        return {"result": [region("keypointlabels", {"x": x, "y": 50.0})], **more}

    image = "{}.jpg".format
    tasks = [
        task(image=image("skipped"), annotations=[done(1, was_cancelled=True)]),
        task(image=image("open"), annotations=[], predictions=[done(1)]),
        task(image=image("empty")),
        task(image=image("best"), annotations=[done(25), done(50, ground_truth=True), done(1, was_cancelled=True)]),
    ]
    marked = read_marked([write(tmp_path, tasks)], "labelstudio")
    assert [i.file for i in marked.images] == ["empty.jpg", "best.jpg"]
    assert spots(marked) == [] and spots(marked, 1) == [("cat", 19.5, 14.5)]
    tasks.append(task(image=image("two"), annotations=[done(25), done(50)]))
    with pytest.raises(ValueError, match=r"task 12 \(two.jpg\): 2 annotations; keep one, or mark one as ground truth"):
        read_marked([write(tmp_path, tasks)], "labelstudio")


BOX_VALUE = {"x": 15.0, "y": 10.0, "width": 50.0, "height": 40.0, "rotation": 0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (region("rectanglelabels", BOX_VALUE, image_rotation=90), "image_rotation: 90; turn the image back and export"),
        (
            {**region("rectangle", BOX_VALUE), "value": BOX_VALUE},
            "type: 'rectangle'; expected a region with its label, ",
        ),
        (
            region("vectorlabels", {"vertices": [], "closed": True}),
            "type: 'vectorlabels'; expected a region with its l",
        ),
        (region("rectanglelabels", {"x": 1, "y": 2, "width": 3}), "value: no height; found"),
        (region("rectanglelabels", {**BOX_VALUE, "x": "a"}), r"\['a', 10.0, 50.0, 40.0\]; expected 4 numbers"),
        (region("keypointlabels", {"x": 101, "y": 2}), "x=40.4 is outside the image, whose x ends at 40"),
        (
            region("keypointlabels", {"x": 1, "y": 2}, original_width=None),
            "original_height, original_width: 30, None; ex",
        ),
        (
            region("keypointlabels", {"x": 1, "y": 2}, original_width=None, original_height=None),
            "no original_height and original_width; export again",
        ),
        (
            {**region("keypointlabels", {}), "value": {"x": 1, "y": 2, "keypointlabels": ["a", "b"]}},
            r"keypointlabels: \['a', 'b'\]; expected one label",
        ),
        (
            region("brushlabels", {"rle": packed_brush(C_SHAPE[:4])}),
            "rle: 640 values; expected four for each of the 40",
        ),
        (region("brushlabels", {"rle": packed_brush(C_SHAPE)[:20]}), "rle: ends too early"),
        (region("polygonlabels", {"points": [[1, 2], [3, 4]]}), "a polygon of 2 corners; expected three or more"),
    ],
)
def test_wrong_label_studio_regions(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"file.json: task 12 \(one.jpg\), result 1.*: {message}"):
        read_marked([write(tmp_path, [task(wrong)])], "labelstudio")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "a.jpg", "label": []}], "expected Label Studio's export of the kind JSON, not JSON-MIN"),
        ({"images": []}, "expected Label Studio's export of the kind JSON, not JSON-MIN: a list of tasks"),
        ([task(image="text")], "task 12: data: no image in it; expected the path or the address of one"),
        ([task(annotations=3)], r"cannot be understood \(.*\); expected what --from labelst"),
    ],
)
def test_wrong_label_studio_files(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: {message}"):
        read_marked([write(tmp_path, content)], "labelstudio")


# ---------------------------------------------------------------- VIA


def via_region(name: str, label: Any = "cat", **shape: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": {"class": label}}


VIA_POLYGON = {"all_points_x": [6, 26, 26, 9, 9, 26, 26, 6], "all_points_y": [4, 4, 7, 7, 18, 18, 21, 21]}


def via(*regions: dict[str, Any], file: str = "one.jpg", **more: Any) -> dict[str, Any]:
    """Annotations as "Export Annotations (as json)" writes them."""
    image = {"filename": file, "size": 1234, "regions": list(regions), "file_attributes": {}, **more}
    return {f"{file}1234": image}


def via_project(*regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    attributes = {"region": {"class": {"type": "dropdown", "options": {"cat": "", "dog": ""}}}, "file": {}}
    metadata = {**via(*regions, **more), **via(file="empty.jpg")}
    start = {"_via_settings": {"ui": {}, "core": {}, "project": {"name": "pets"}}, "_via_img_metadata": metadata}
    return {**start, "_via_attributes": attributes, "_via_data_format_version": "2.0.10"}


def via_csv(*regions: dict[str, Any], header: str = "", tags: str = "{}") -> str:
    """As "Export Annotations (as csv)" writes them."""

    def quoted(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return '"' + text.replace('"', '""') + '"'

    lines = [header + ",".join(COLUMNS)]
    for k, r in enumerate(regions):
        fields = [quoted(tags), len(regions), k, quoted(r["shape_attributes"]), quoted(r["region_attributes"])]
        lines.append("one.jpg,1234," + ",".join(map(str, fields)))
    return "\n".join([*lines, 'empty.jpg,99,"{}",0,0,"{}","{}"']) + "\n"


VIA_REGIONS = [
    via_region("point", cx=10, cy=4),
    via_region("rect", x=6, y=4, width=20, height=17),
    via_region("circle", "dog", cx=20, cy=10, r=15.2),
    via_region("ellipse", cx=20, cy=10, rx=9, ry=4, theta=0.2),
    via_region("polygon", {"cat": True, "dog": False}, **VIA_POLYGON),  # boxes to tick
]
VIA_SPOTS = [("cat", 9.5, 3.5), ("cat", 15.5, 12), ("dog", 19.5, 9.5), ("cat", 19.5, 9.5), ("cat", *INSIDE)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("project.json", via_project(*VIA_REGIONS)),
        ("export.json", {**via(*VIA_REGIONS), **via(file="empty.jpg")}),
        ("export.csv", via_csv(*VIA_REGIONS)),
        ("version1.csv", via_csv(*VIA_REGIONS, header="#")),
    ],
)
def test_via_shapes(tmp_path: Path, name: str, content: Any) -> None:
    marked = read_marked([write(tmp_path, content, name)], "via")
    assert spots(marked) == VIA_SPOTS and marked.class_names is None
    # both were looked at; sizes are nowhere
    assert [(i.file, i.size, i.tags) for i in marked.images] == [("one.jpg", None, set()), ("empty.jpg", None, set())]


def test_via_of_the_first_version_numbers_its_regions(tmp_path: Path) -> None:
    file = via()
    file["one.jpg1234"]["regions"] = {str(k): region for k, region in enumerate(VIA_REGIONS)}
    assert spots(read_marked([write(tmp_path, file)], "via")) == VIA_SPOTS


def test_via_tags_and_names_of_images(tmp_path: Path) -> None:
    region = via_region("point", cx=1, cy=1)
    file = {
        **via(region, file="http://example.org/photos/two%20cats.jpg?size=1", file_attributes={"class": {"dog": True}}),
        **via(file="..\\images\\three.jpg", file_attributes={"class": "dog", "caption": "nobody"}),
    }
    marked = read_marked([write(tmp_path, file)], "via")
    assert [(i.file, i.tags) for i in marked.images] == [("photos/two cats.jpg", {"dog"}), ("three.jpg", {"dog"})]


def test_via_says_the_class_in_one_of_several_attributes(tmp_path: Path) -> None:
    def named(**attributes: Any) -> dict[str, Any]:
        return {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": attributes}

    def label(*regions: dict[str, Any]) -> list[str]:
        return [name for name, *_ in spots(read_marked([write(tmp_path, via(*regions))], "via"))]

    assert label(named(animal="cat"), named(animal="dog")) == ["cat", "dog"]  # the only one
    assert label(named(age="3", Label="cat"), named(age="4", Label="dog")) == ["cat", "dog"]
    assert label(named(name="Socrates", type="human")) == ["human"]
    with pytest.raises(ValueError, match="file.json: attributes of regions: 'age', 'sex'; expected one .* `class`"):
        label(named(age="3", sex="f"))
    with pytest.raises(ValueError, match=r"attributes of regions: none; expected one .* `class`: add or rename it"):
        label(named())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (via_region("polyline", **VIA_POLYGON), r"\(cat\): 'polyline' has no inside; use point, rect, circle"),
        (via_region("star", cx=1, cy=2), r"\(cat\): 'star' is no shape of VIA's; use point, rect, circle"),
        (via_region("point", cx=1), r"\(cat\): cx, cy: \[1, None\]; expected 2 numbers"),
        (via_region("point", cx=-1, cy=3), r"\(cat\): x=-1 is outside the image"),
        (via_region("rect", x=1, y=2, width=0, height=4), r"\(cat\): a box of 0 x 4 px; expected a positive width"),
        (
            via_region("polygon", all_points_x=[1, 2, 3], all_points_y=[1, 2]),
            r"\(cat\): all_points_y: .*; expected 3 n",
        ),
        (via_region("polygon", all_points_x=[1, 2], all_points_y=[1, 2]), r"\(cat\): a polygon of 2 corners; expected"),
        (via_region("polygon", all_points_x=[1, 1e9, 3], all_points_y=[1, 2, 1e9]), r"\(cat\): height, width that the"),
        (via_region("point", "", cx=1, cy=3), "class: none; expected one class: set it in VIA"),
        (via_region("point", {"cat": True, "dog": True}, cx=1, cy=3), "class: cat, dog; expected one class: set it in"),
        (via_region("point", ["cat"], cx=1, cy=3), r"class: \['cat'\]; expected the name of a class"),
        ({"region_attributes": {"class": "cat"}}, "no shape_attributes; found"),
    ],
)
def test_wrong_via_regions(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: image 'one.jpg', region 1.*{message}"):
        read_marked([write(tmp_path, via_project(wrong))], "via")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_via_img_metadata": {}}, "lists no image; expected a project of VIA 2"),
        (
            {"project": {"pid": "1"}, "config": {}, "file": {}, "metadata": {}},
            "is a project of VIA 3, which is anoth",
        ),
        (coco(BOX), "expected a project of VIA 2, or its annotations exported as JSON or CSV"),
        (via(regions=3), "image 'one.jpg': regions: 3; expected a list"),
        (via(file=""), "image '': file: '.*expected"),
    ],
)
def test_wrong_via_files(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=f"file.json: {message}"):
        read_marked([path], "via").points(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,x,y,class\n", "columns 'image, x, y, class'; expected a project of VIA 2"),
        (via_csv().replace('"{}"', "", 1).replace("empty.jpg,99,", "empty.jpg,99", 1), "line 2: 6 fields; expected 7"),
        (via_csv(VIA_REGIONS[0]).replace('""cx', "cx"), "line 2: region_shape_attributes: is no JSON"),
    ],
)
def test_wrong_via_tables(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"file.csv: {message}"):
        read_marked([write(tmp_path, content, "file.csv")], "via")


# ---------------------------------------------------------------- all of them, and the geometry that they share


@pytest.mark.parametrize("source", ["coco", "labelme", "cvat", "labelstudio", "via", "json", "csv"])
def test_missing_and_binary_files(tmp_path: Path, source: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*none.json; expected "):
        read_marked([tmp_path / "none.json"], source)
    (tmp_path / "file.json").write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(ValueError, match="file.json: is no UTF-8 text"):
        read_marked([tmp_path / "file.json"], source)


@pytest.mark.parametrize("source", ["coco", "labelme", "cvat", "labelstudio", "via", "json", "csv"])
@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "[1]", "3", '"a"', "<a/>", "", '{"images": [1], "categories": [2]}']
)
def test_every_reader_refuses_what_is_not_its_format(tmp_path: Path, source: str, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="file.json: "):
        read_marked([path], source).points(path)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30, unique=True))
def test_nearest_to_centroid(pixels: list[tuple[int, int]]) -> None:
    x, y = nearest_to_centroid(np.array([(y, x, y + 1, x + 1) for y, x in pixels]))
    mean = np.mean(pixels, 0)
    distances = [np.hypot(*(np.array(pixel) - mean)) for pixel in pixels]
    assert (int(y), int(x)) in pixels
    assert np.hypot(y - mean[0], x - mean[1]) <= min(distances) + 1e-9


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4 * W), st.integers(0, 4 * H)), min_size=3, max_size=8))
@example([(0, 4), (28, 96), (127, 40)])  # an outline through the corner between pixels
def test_polygons_have_the_pixels_that_cocos_own_tool_gives_them(quarters: list[tuple[int, int]]) -> None:
    polygon = [value / 4 for corner in quarters for value in corner]
    expected = np.argwhere(rle.decode(rle.merge(rle.frPyObjects([polygon], H, W))))
    if len(expected):
        area = polygon_area([polygon], (H, W), "").tolist()
        found = [(y, x) for top, left, end, right in area for y in range(top, end) for x in range(left, right)]
        assert sorted(found) == sorted(map(tuple, expected.tolist()))


def test_slivers_and_objects_at_the_border() -> None:
    # thinner than a pixel: the pixel in its middle
    assert nearest_to_centroid(polygon_area([[3.1, 2, 3.2, 2, 3.2, 9, 3.1, 9]], (H, W), "")) == (3, 5)
    # half outside: what is inside
    x, y = nearest_to_centroid(polygon_area([[-10, -10, 6, -10, 6, 6, -10, 6]], (H, W), ""))
    assert (x, y) == (2, 2)
    assert from_corner(0, 0, (H, W), "") == (0, 0) and from_corner(W, H, (H, W), "") == (W - 1, H - 1)
    assert from_corner(0.5, 1.75, None, "") == (0, 1.25)
    assert box_center(35, -5, 10, 10, (H, W), "") == (37, 2)
