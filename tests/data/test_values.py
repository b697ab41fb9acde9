"""Values that were once read wrongly without a word: read right now, or reported by ``data check``."""

from __future__ import annotations

import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl.data.annotation_tools.readers import read_marked
from bestie_pl.data.check import CheckedImages
from bestie_pl.data.coco import COCODataModule, read_categories, read_index
from bestie_pl.data.files import Packed
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.classes import alike, check_class_names
from bestie_pl.data.formats.images import open_image, remarks
from bestie_pl.data.formats.tags import read_tags
from bestie_pl.data.formats.truth import COCOTruth, VOCTruth, paint_instances
from bestie_pl.errors import UserError
from bestie_pl.prediction.sources import find_files

H, W = 24, 32
SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]


def coco(path: Path, *annotations: dict[str, Any], classes: int = 2, **image: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": H, "width": W, **image}],
        "categories": [{"id": k, "name": f"c{k}"} for k in range(1, classes + 1)],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "segmentation": SQUARE, **annotation}
            for n, annotation in enumerate(annotations, 1)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def truth_of(path: Path) -> COCOTruth:
    index = read_index(path, tuple(read_categories(path)), keep_masks=True)
    assert index.annotations is not None
    return COCOTruth(index.annotations, index.sizes, path)


# ---------------------------------------------------------------- ground truth


def test_truth_as_text(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", {"iscrowd": "0"}, {"iscrowd": "1"}, {"iscrowd": True}, {"iscrowd": None}, {})
    instances = truth_of(path)(0, (H, W)).instances
    assert instances.crowd is not None and instances.crowd.tolist() == [False, True, True, False, False]
    marked = read_marked([path], "coco")
    assert len(marked.images[0].objects) == 3 and marked.images[0].tags == {"c1"}
    path = coco(tmp_path / "a.json", {"iscrowd": "maybe"})
    for read in (lambda: truth_of(path)(0, (H, W)), lambda: read_marked([path], "coco")):
        with pytest.raises(UserError, match="a.json: .*annotation 1: iscrowd: 'maybe'; expected 0 or 1"):
            read()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_object_255_is_a_border_in_8_bits_only(dtype: Any, tmp_path: Path) -> None:
    for folder in ("classes", "objects"):
        (tmp_path / folder).mkdir()
    objects = np.zeros((H, W), dtype)
    objects.flat[1 : 301 if dtype == np.uint16 else 256] = np.arange(1, 301 if dtype == np.uint16 else 256)
    Image.fromarray(objects).save(tmp_path / "objects" / "a.png")
    Image.fromarray((objects > 0).astype(np.uint8)).save(tmp_path / "classes" / "a.png")
    truth = VOCTruth(Packed(["a"]), tmp_path / "classes", tmp_path / "objects", 1)
    instances, _ = truth(0, (H, W))
    assert len(instances) == (300 if dtype == np.uint16 else 254)
    ids, classes = paint_instances(instances)  # more than 255 masks
    assert len(ids.unique()) == len(classes) + 1
    semantic = (objects > 0).astype(np.uint8)
    semantic[objects == 255] = 255  # VOC's border
    Image.fromarray(semantic).save(tmp_path / "classes" / "a.png")
    if dtype == np.uint16:
        with pytest.raises(
            UserError, match="object 255 lies on background alone .*; in a map of 16 bits 255 is an obj"
        ):
            truth(0, (H, W))


def test_the_class_of_an_object_is_the_smallest_below_it(tmp_path: Path) -> None:
    for folder in ("classes", "objects"):
        (tmp_path / folder).mkdir()
    objects, classes = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
    objects[2:6, 2:6], objects[8:12, 2:6] = 9, 4
    classes[2:4, 2:6], classes[4:6, 2:6], classes[8:9, 2:6], classes[9:12, 2:6] = 2, 1, 255, 2
    Image.fromarray(objects).save(tmp_path / "objects" / "a.png")
    Image.fromarray(classes).save(tmp_path / "classes" / "a.png")
    instances, _ = VOCTruth(Packed(["a"]), tmp_path / "classes", tmp_path / "objects", 2)(0, (H, W))
    assert instances.classes.tolist() == [1, 0]  # of the objects 4 and 9


def test_more_classes_than_maps_can_hold(tmp_path: Path) -> None:
    assert len(check_class_names([str(k) for k in range(254)])) == 254
    path = coco(tmp_path / "a.json", {"category_id": 290}, classes=300)
    with pytest.raises(UserError, match=r"class_names: 300 classes; expected 1\.\.254"):
        COCODataModule(str(tmp_path), train_annotations="a.json", val_annotations="a.json")
    # a file may have more categories than the data set that uses some of them
    truth = truth_of(path)
    classes = torch.full((300,), -1)
    classes[289] = 1
    found = COCOTruth(truth.annotations, truth.sizes, path, torch.tensor([0]), classes)(0, (H, W))
    assert found.instances.classes.tolist() == [1] and found.semantic.unique().tolist() == [0, 2]


def test_a_folders_truth_with_302_categories(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "images" / "a.png")
    coco(tmp_path / "truth.json", {"category_id": 290}, classes=302)
    (tmp_path / "tags.csv").write_text("image,tags,split\na.png,c290;c7,val\n")
    data = FolderDataModule(str(tmp_path), annotations="truth.json")
    data.setup("validate")
    sample = data.datasets["val"][0]
    assert data.class_names == ("c290", "c7") and sample.references is not None
    assert sample.references.classes.tolist() == [0] and sample.semantic_reference.unique().tolist() == [0, 1]


# ---------------------------------------------------------------- images


def deep_tiff(path: Path, values: np.ndarray) -> Path:
    """A TIFF of 16 bits, (bands, H, W), band after band, without compression; Pillow writes none."""
    bands, height, width = values.shape
    entries = [
        *(
            (256, 4, 1, width),
            (257, 4, 1, height),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (277, 3, 1, bands),
            (278, 4, 1, height),
        ),
        *((284, 3, 1, 2), (258, 3, bands, "bits"), (273, 4, bands, "offsets"), (279, 4, bands, "counts")),
    ]
    plane = height * width * 2
    start = 8 + 2 + 12 * len(entries) + 4
    tables = {
        "bits": (start, "<3H", [16] * 3),
        "offsets": (start + 6, "<3I", [start + 30 + k * plane for k in range(3)]),
    }
    tables["counts"] = (start + 18, "<3I", [plane] * 3)
    out = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        out += struct.pack("<HHII", tag, kind, count, tables[value][0] if isinstance(value, str) else value)
    out += b"\0" * 4 + b"".join(struct.pack(form, *numbers) for _, form, numbers in tables.values())
    path.write_bytes(out + values.astype("<u2").tobytes())
    return path


def test_16_bits_band_after_band_are_refused(tmp_path: Path) -> None:
    path = deep_tiff(tmp_path / "a.tif", np.arange(3 * H * W).reshape(3, H, W))
    with pytest.raises(UserError, match="a.tif: holds 16 bits a channel, band after band; save it pixel by pixel"):
        open_image(path)


def test_a_12_bit_camera_is_told(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, H * W).reshape(H, W).astype(np.uint16)
    for name, factor, said in (("dark.tif", 1, True), ("bright.tif", 16, False)):
        Image.fromarray(values * factor).save(tmp_path / name)
        found = remarks(tmp_path / name, open_image(tmp_path / name))
        assert [("values 0..4095 of 0..65535" in text, "nearly black" in text) for text in found] == [
            (True, True)
        ] * said
    Image.fromarray((values // 256).astype(np.uint8)).save(tmp_path / "night.png")  # 8 bits may be as dark as they are
    assert remarks(tmp_path / "night.png", open_image(tmp_path / "night.png")) == []


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".png"])
def test_a_stack_is_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    pages = [Image.new("RGB", (W, H), (shade, 0, 0)) for shade in (10, 120, 250)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    (said,) = remarks(path, open_image(path))
    assert "holds 3 pictures (pages of a stack), of which the first is used" in said


def test_a_second_band_is_told(tmp_path: Path) -> None:
    Image.new("LA", (W, H), (10, 200)).save(tmp_path / "a.tif")
    (said,) = remarks(tmp_path / "a.tif", open_image(tmp_path / "a.tif"))
    assert "holds 2 bands, of which 1" in said
    for mode in ("RGB", "L", "CMYK", "1", "P"):
        Image.new(mode, (W, H)).save(tmp_path / "b.tif")
        assert remarks(tmp_path / "b.tif", open_image(tmp_path / "b.tif")) == [], mode


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (W, H)).save(tmp_path / "a.gif")
    for name, content in (("a.png", (tmp_path / "a.gif").read_bytes()), ("b.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: cannot be read as an image"):
            open_image(tmp_path / name)


def test_data_check_says_all_that(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    values = np.linspace(0, 4095, H * W).reshape(H, W).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "images" / "a.tif")
    deep_tiff(tmp_path / "images" / "b.tif", np.zeros((3, H, W)))
    (tmp_path / "tags.csv").write_text("image,tags,split\na.tif,cat,train\nb.tif,cat,train\n")
    data = FolderDataModule(str(tmp_path), supervision="tags", semantic_source="none", val_split="train")
    data.setup("fit")
    images = CheckedImages(data.datasets["train"], data.class_names, 1)
    (dark,), (planar,) = images[0].problems, images[1].problems
    assert not dark.error and "nearly black" in dark.message
    assert planar.error and "band after band" in planar.message


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_composed_and_decomposed_names(stored: str, listed: str, tmp_path: Path) -> None:
    name = unicodedata.normalize(listed, "sub ä/Präparat é.png")
    path = tmp_path / "images" / unicodedata.normalize(stored, "sub ä/Präparat é.png")
    path.parent.mkdir(parents=True)
    Image.new("RGB", (W, H), (9, 9, 9)).save(path)
    other = unicodedata.normalize("NFD" if listed == "NFC" else "NFC", name)
    (tmp_path / "tags.csv").write_text(f"image,tags,split\n{name},cat,train\n", encoding="utf-8")
    (tmp_path / "p.json").write_text(
        json.dumps({"classes": ["cat"], "images": [{"file": other, "points": [{"x": 1, "y": 2, "class": "cat"}]}]})
    )
    data = FolderDataModule(str(tmp_path), points="p.json", predict_split="train")
    data.setup("predict")
    sample = data.datasets["predict"][0]
    assert sample.image.unique().tolist() == [9] and len(sample.cues) == 1
    assert sample.name == unicodedata.normalize("NFC", "sub ä/Präparat é")


def test_names_from_windows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "images" / "a.png")
    coco(tmp_path / "a.json", {}, file_name="images\\a.png")
    settings = {name: "." for name in ("train_images", "val_images")}
    data = COCODataModule(str(tmp_path), train_annotations="a.json", val_annotations="a.json", **settings)
    data.setup("validate")
    assert data.datasets["val"][0].name == "images/a"


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for file in ("a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/b.png"):
        (tmp_path / "new" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H)).save(tmp_path / "new" / file)
    (tmp_path / "new" / "folder.png").mkdir()
    (tmp_path / "tags.csv").write_text("image,tags\na.png,cat\n")
    data = FolderDataModule(str(tmp_path), predict_images=str(tmp_path / "new"))
    data.setup("predict")
    assert list(data.datasets["predict"].split.names) == ["a", "sub/b"]
    for source in (tmp_path / "new", tmp_path / "new" / "**" / "*.png"):
        assert [name for name, _ in find_files(source)] == ["a", "sub/b"]
    assert data.datasets["predict"][1].image.shape == (3, H, W)


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ('a,"cell, nucleus"\nb,cell\n', ("cell", "nucleus")),
        ("a, cell ;nucleus \nb,cell\n", ("cell", "nucleus")),
        ("a,cell  nucleus\nb,cell\n", ("cell", "cell nucleus")),
        ("a,cell  body;\nb,cell body;\n", ("cell body",)),
        ('a,"Gr\u00fcn, rot"\nb,Gru\u0308n\n', ("Gr\u00fcn", "rot")),
    ],
)
def test_one_rule_for_class_names(column: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,tags\n" + column, encoding="utf-8")
    assert read_tags(tmp_path / "t.csv").class_names == names


def test_names_that_differ_by_little_are_told(tmp_path: Path) -> None:
    assert alike(["cell", "Cell", "dog"]) == [("cell", "Cell")]
    (tmp_path / "tags.csv").write_text("image,tags\na.png,cell;Cell\n")
    with pytest.warns(UserWarning, match="Class names that differ by little: Cell, cell"):
        assert FolderDataModule(str(tmp_path)).class_names == ("Cell", "cell")


@pytest.mark.parametrize("name", [False, None, 3, "", "  "])
def test_what_yaml_takes_for_something_else(name: object) -> None:
    with pytest.raises(UserError, match="class_names: .* is no name; quote it"):
        check_class_names(["cat", name])


def test_a_misspelt_class_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,tags\na.png,nuclues\n")
    with pytest.raises(
        UserError, match=r"line 2: tag 'nuclues'; expected one of cell, nucleus \(did you mean 'nucleus'"
    ):
        read_tags(tmp_path / "t.csv", ["cell", "nucleus"])
    (tmp_path / "t.csv").write_text("image,,tags\na.png,1,cell\n")
    with pytest.raises(UserError, match=r"t.csv: the first line has no name for column 2"):
        read_tags(tmp_path / "t.csv")


# ---------------------------------------------------------------- annotation programs


def labelme(path: Path, *labels: str, **shape: Any) -> Path:
    shapes = [{"label": label, "points": [[20, 20]], "shape_type": "point", **shape} for label in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"shapes": shapes, "imagePath": "a.png", "imageHeight": H, "imageWidth": W}))
    return path


def test_labelmes_other_labels_are_no_classes(tmp_path: Path) -> None:
    marked = read_marked([labelme(tmp_path / "a.json", "__ignore__", "cell", "_background_", " cell ")], "labelme")
    assert [entry.label for entry in marked.images[0].objects] == ["cell", "cell"]


def test_copies_that_other_programs_leave_are_no_annotations(tmp_path: Path) -> None:
    for file in ("a.json", ".ipynb_checkpoints/a-checkpoint.json"):
        labelme(tmp_path / file, "cell")
    (tmp_path / "._a.json").write_bytes(b"\0\5\x16\7")
    assert [image.file for image in read_marked([tmp_path], "labelme").images] == ["a.png"]


@pytest.mark.parametrize(("kind", "why"), [("linestrip", "has no inside"), ("cuboid", "is no shape of LabelMe's")])
def test_shapes_without_inside_and_unknown_ones(kind: str, why: str, tmp_path: Path) -> None:
    path = labelme(tmp_path / "a.json", "cell", shape_type=kind, points=[[1, 2], [3, 4]])
    with pytest.raises(UserError, match=rf"shape 1 \(cell\): shape_type: '{kind}' {why}; use point"):
        read_marked([path], "labelme")


def label_studio(path: Path, data: dict[str, Any], *to_names: str, **result: Any) -> Path:
    value = {"x": 50, "y": 50, "keypointlabels": ["cell"]}
    shared = {"type": "keypointlabels", "value": value, "original_width": W, "original_height": H, **result}
    results = [{**shared, "to_name": name} for name in to_names]
    path.write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"result": results}]}]))
    return path


CONFIG = '<View><Image name="left" value="$first"/><Image name="right" value="$second"/></View>'


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("s3://lab/plate/well #3.png", "plate/well #3.png"),
        ("gs://lab/plate/well%203?.png", "plate/well%203?.png"),
        ("http://host/plate/well%20%233.png", "plate/well #3.png"),
        ("http://host/plate/well #3.png", "plate/well #3.png"),
    ],
)
def test_addresses_of_images(address: str, file: str, tmp_path: Path) -> None:
    marked = read_marked([label_studio(tmp_path / "t.json", {"image": address}, "image")], "labelstudio")
    assert [image.file for image in marked.images] == [file]


def test_several_images_of_a_task(tmp_path: Path) -> None:
    data = {"second": "b.png", "first": "a.png", "thumb": "c.png"}
    path = label_studio(tmp_path / "t.json", data, "left", "right", "right")
    with pytest.raises(UserError, match=r"data holds several images \(first, second, thumb\); .* as --label-config"):
        read_marked([path], "labelstudio")
    (tmp_path / "config.xml").write_text(CONFIG)
    marked = read_marked([path], "labelstudio", tmp_path / "config.xml")
    assert {image.file: len(image.objects) for image in marked.images} == {"a.png": 1, "b.png": 2}
    with pytest.raises(UserError, match="leave it out with --from coco"):
        read_marked([path], "coco", tmp_path / "config.xml")


def test_a_preview_beside_the_image(tmp_path: Path) -> None:
    path = label_studio(tmp_path / "t.json", {"preview": "small.png", "image": "a.png"}, "image")
    (image,) = read_marked([path], "labelstudio").images
    assert (image.file, len(image.objects)) == ("a.png", 1)


def test_images_in_a_list(tmp_path: Path) -> None:
    path = label_studio(tmp_path / "t.json", {"pages": ["a.png", "b.png"]}, "pages", item_index=1)
    assert [(i.file, len(i.objects)) for i in read_marked([path], "labelstudio").images] == [("a.png", 0), ("b.png", 1)]
