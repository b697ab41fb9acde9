"""Tests of the generated data set: files, completeness, determinism, and whether its scenes are hard enough."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bestie_pl.data.generator import dataset as shapes
from bestie_pl.data.generator.dataset import SHAPE_CLASSES, generate_shapes
from bestie_pl.data.generator.drawings import DRAWINGS
from bestie_pl.data.generator.imperfect_maps import imperfect_map
from bestie_pl.data.generator.scenes import Scene, draw_scene

SIZE = 64
COUNTS = {"train": 6, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "data" / "set"
    generate_shapes(root, **COUNTS, size=SIZE, seed=3, workers=1)
    return root


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, i]), 96) for i in range(80)]


def indexed(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def names_of(root: Path, split: str) -> list[str]:
    return (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()


def all_names(root: Path) -> list[str]:
    return [name for split in COUNTS for name in names_of(root, split)]


# ------------------------------------------------------------------------------------------------------- the files


def test_splits_have_the_images_asked_for_and_share_none(root: Path) -> None:
    assert {split: len(names_of(root, split)) for split in COUNTS} == COUNTS
    names = all_names(root)
    assert len(set(names)) == len(names)
    for folder, suffix in (
        ("JPEGImages", ".jpg"),
        ("SegmentationClass", ".png"),
        ("SegmentationObject", ".png"),
        ("Annotations", ".xml"),
        ("Center_points", ".txt"),
    ):
        assert sorted(p.name for p in (root / folder).iterdir()) == sorted(name + suffix for name in names)
    trained = names_of(root, "train") + names_of(root, "val")
    assert sorted(p.stem for p in (root / "WSSS_maps").iterdir()) == sorted(trained)


def test_pictures_have_the_size_and_modes_of_voc(root: Path) -> None:
    for name in all_names(root):
        with Image.open(root / f"JPEGImages/{name}.jpg") as picture:
            assert picture.size == (SIZE, SIZE) and picture.mode == "RGB"
        assert indexed(root / f"SegmentationObject/{name}.png").shape == (SIZE, SIZE)
    with Image.open(root / f"SegmentationClass/{names_of(root, 'val')[0]}.png") as picture:
        palette = np.array(picture.getpalette()).reshape(-1, 3)
    # VOC's colours of background, aeroplane, person and void
    assert palette[[0, 1, 15, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]


def test_instances_agree_with_classes_boxes_and_points(root: Path) -> None:
    for name in all_names(root):
        ids = indexed(root / f"SegmentationObject/{name}.png")
        semantic = indexed(root / f"SegmentationClass/{name}.png")
        points = [line.split() for line in (root / f"Center_points/{name}.txt").read_text().splitlines()]
        annotation = ElementTree.parse(root / f"Annotations/{name}.xml").getroot()
        assert annotation.findtext("filename") == f"{name}.jpg"
        assert [annotation.findtext(f"size/{key}") for key in ("width", "height", "depth")] == [str(SIZE)] * 2 + ["3"]
        objects = annotation.findall("object")
        assert np.array_equal(ids > 0, semantic > 0)
        assert len(points) == len(objects) == ids.max() >= 1
        for i, (point, entry) in enumerate(zip(points, objects, strict=True), start=1):
            y, x = np.nonzero(ids == i)
            (value,) = np.unique(semantic[ids == i])
            assert SHAPE_CLASSES[value - 1] == entry.findtext("name")
            assert entry.findtext("difficult") == "0"
            box = [int(entry.findtext(f"bndbox/{key}") or -1) for key in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [x.min() + 1, y.min() + 1, x.max() + 1, y.max() + 1]
            assert point[2:] == [str(value - 1), "1.000"]
            point_x, point_y = int(point[0]), int(point[1])
            assert ids[point_y, point_x] == i
            distance = np.hypot(y - y.mean(), x - x.mean())
            assert np.hypot(point_y - y.mean(), point_x - x.mean()) == pytest.approx(distance.min())


def test_lists_hold_the_classes_of_the_true_maps(root: Path) -> None:
    assert (root / "classes.txt").read_text().split() == list(SHAPE_CLASSES)
    for split in COUNTS:
        lines = [line.split() for line in (root / f"{split}_cls.txt").read_text().splitlines()]
        assert [line[0] for line in lines] == names_of(root, split)
        flags = {
            c: dict(line.split() for line in (root / f"ImageSets/Main/{c}_{split}.txt").read_text().splitlines())
            for c in SHAPE_CLASSES
        }
        for name, *tags in lines:
            present = set(np.unique(indexed(root / f"SegmentationClass/{name}.png"))) - {0}
            assert {int(t) + 1 for t in tags} == present and len(tags) == len(present)
            assert {c for c in SHAPE_CLASSES if flags[c][name] == "1"} == {SHAPE_CLASSES[v - 1] for v in present}
            assert all(flags[c][name] in ("1", "-1") for c in SHAPE_CLASSES)


def test_imperfect_maps_are_semantic_maps_unlike_the_truth(root: Path) -> None:
    for name in names_of(root, "train") + names_of(root, "val"):
        given = indexed(root / f"WSSS_maps/{name}.png")
        assert set(np.unique(given)) <= {*range(len(SHAPE_CLASSES) + 1), 255}
        assert not np.array_equal(given, indexed(root / f"SegmentationClass/{name}.png"))


def test_parameters_are_recorded(root: Path) -> None:
    recorded = json.loads((root / "shapes.json").read_text())
    assert (recorded["size"], recorded["seed"], recorded["counts"]) == (SIZE, 3, COUNTS)
    assert recorded["generator"] == shapes.GENERATOR_VERSION


# ----------------------------------------------------------------------------------- determinism and completeness


def test_files_do_not_depend_on_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "two", **COUNTS, size=SIZE, seed=3, workers=2)
    assert contents(tmp_path / "two") == contents(root)


def test_an_image_does_not_depend_on_how_many_there_are(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "few", train=2, val=1, test=0, size=SIZE, seed=3, workers=1)
    few, many = contents(tmp_path / "few"), contents(root)
    pictures = [name for name in few if name.endswith((".jpg", ".png", ".xml")) or name.startswith("Center_points")]
    assert len(pictures) == 3 * 6
    assert all(few[name] == many[name] for name in pictures)


def test_images_differ_between_seeds_splits_and_numbers(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "other", train=1, val=0, test=0, size=SIZE, seed=4, workers=1)
    pictures = [p.read_bytes() for folder in (root, tmp_path / "other") for p in (folder / "JPEGImages").iterdir()]
    assert len(set(pictures)) == len(pictures) == sum(COUNTS.values()) + 1


def test_a_second_call_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(shapes, "_write_image", refuse)
    generate_shapes(root, **COUNTS, size=SIZE, seed=3, workers=1)


@pytest.mark.parametrize("change", [{"seed": 5}, {"size": 96}, {"val": 4}])
def test_other_parameters_are_refused(root: Path, change: dict[str, int]) -> None:
    before = contents(root)
    with pytest.raises(ValueError, match=r"shapes\.json.*remove"):
        generate_shapes(root, **{**COUNTS, "size": SIZE, "seed": 3, **change}, workers=1)
    assert contents(root) == before


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all I have")
    with pytest.raises(ValueError, match=r"no shapes\.json"):
        generate_shapes(tmp_path, train=1, val=0, test=0, size=SIZE, workers=1)
    assert contents(tmp_path) == {"thesis.txt": b"all I have"}


def test_an_unreadable_parameter_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text("{")
    with pytest.raises(ValueError, match=r"shapes\.json cannot be read"):
        generate_shapes(tmp_path, train=1, val=0, test=0, size=SIZE, workers=1)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    generate_shapes(str(tmp_path / "set"), train=1, val=0, test=0, size=SIZE, workers=1)
    assert names_of(tmp_path / "set", "train") == ["train_000000"]
    assert names_of(tmp_path / "set", "val") == []


def test_nothing_remains_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shapes._write_image

    def fail_at_third(job: shapes._Job) -> tuple[int, ...]:
        if job.index == 2:
            raise OSError("disk full")
        return write(job)

    monkeypatch.setattr(shapes, "_write_image", fail_at_third)
    with pytest.raises(OSError, match="disk full"):
        generate_shapes(tmp_path / "set", train=4, val=0, test=0, size=SIZE, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_faster_process_with_the_same_parameters_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shapes._write_all

    def overtaken(folder: Path, parameters: dict[str, object], workers: int) -> None:
        write(folder, parameters, workers)
        if not (tmp_path / "set").exists():
            write(tmp_path / "set", parameters, workers)

    monkeypatch.setattr(shapes, "_write_all", overtaken)
    generate_shapes(tmp_path / "set", train=2, val=0, test=0, size=SIZE, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert len(names_of(tmp_path / "set", "train")) == 2


@pytest.mark.parametrize("wrong", [{"train": -1}, {"seed": -1}, {"size": 8}, {"workers": 0}])
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        generate_shapes(tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ the scenes


def touching_classes(scene: Scene) -> bool:
    """Whether two objects of one class touch, corners included."""
    classes = (-1, *scene.classes)
    for i in range(1, len(classes)):
        neighbours = np.unique(scene.ids[ndimage.binary_dilation(scene.ids == i, np.ones((3, 3)))])
        if any(j != i and classes[j] == classes[i] for j in neighbours):
            return True
    return False


def pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def test_about_half_of_the_scenes_have_touching_objects_of_a_class(scenes: list[Scene]) -> None:
    assert 0.35 < np.mean([touching_classes(s) for s in scenes]) < 0.65


def test_scenes_hold_one_to_eight_objects_of_one_to_three_classes(scenes: list[Scene]) -> None:
    counts = [len(s.classes) for s in scenes]
    assert min(counts) >= 1 and max(counts) in (7, 8)
    assert {len(set(s.classes)) for s in scenes} == {1, 2, 3}


def test_classes_are_about_equally_frequent(scenes: list[Scene]) -> None:
    share = np.bincount([c for s in scenes for c in s.classes], minlength=len(SHAPE_CLASSES)) / sum(
        len(s.classes) for s in scenes
    )
    assert len(share) >= 5
    assert (share > 0.5 / len(share)).all() and (share < 1.6 / len(share)).all()


def test_sizes_vary_and_no_object_is_a_speck(scenes: list[Scene]) -> None:
    areas = np.concatenate([np.bincount(s.ids.ravel())[1:] for s in scenes])
    assert areas.min() >= 60 * (96 / 128) ** 2
    assert np.percentile(areas, 95) > 6 * np.percentile(areas, 5)


def test_color_does_not_tell_the_class(scenes: list[Scene]) -> None:
    # the spread of the objects' colours within a class is far larger than that of the classes' means
    colors = np.array([s.image[s.ids == i].mean(0) for s in scenes for i in range(1, s.ids.max() + 1)])
    classes = np.array([c for s in scenes for c in s.classes])
    means = np.stack([colors[classes == c].mean(0) for c in range(len(SHAPE_CLASSES))])
    within = np.stack([colors[classes == c].std(0) for c in range(len(SHAPE_CLASSES))])
    assert (means.std(0) < 0.5 * within.mean(0)).all()


@pytest.mark.parametrize("size", [32, 101, 256])
def test_scenes_scale_with_the_size(size: int) -> None:
    scenes = [draw_scene(np.random.default_rng(i), size) for i in range(6)]
    assert all(s.image.shape == (size, size, 3) and s.ids.shape == (size, size) for s in scenes)
    covered = np.mean([(s.ids > 0).mean() for s in scenes])
    assert 0.03 < covered < 0.4


@pytest.mark.parametrize("kind", range(len(SHAPE_CLASSES)))
def test_every_class_fills_its_frame_and_has_a_small_part(kind: int) -> None:
    v, u = np.mgrid[-1.3:1.3:131j, -1.3:1.3:131j].astype(np.float32)
    distance, index, texture = DRAWINGS[kind](u, v)
    inside = distance <= 0
    assert 1.7 < max(np.ptp(u[inside]), np.ptp(v[inside])) < 2.1
    assert not inside[[0, -1]].any() and not inside[:, [0, -1]].any()
    assert 0.05 < (index[inside] > 0).mean() < 0.4
    assert set(np.unique(index[inside])) == {0, 1, 2}
    assert np.broadcast_to(texture, u.shape)[inside].std() > 0


def test_imperfect_maps_are_as_good_as_weak_supervision_gives(scenes: list[Scene]) -> None:
    confusion = np.zeros((len(SHAPE_CLASSES) + 1, 256))
    merged = missed = objects = 0
    for i, scene in enumerate(scenes):
        given = imperfect_map(np.random.default_rng([8, i]), scene)
        np.add.at(confusion, (scene.semantic, given), 1)
        for number, c in enumerate(scene.classes, start=1):
            objects += 1
            missed += not (given[scene.ids == number] == c + 1).any()
        merged += any(
            ndimage.label(given == c + 1, np.ones((3, 3)))[1]
            < ndimage.label(scene.semantic == c + 1, np.ones((3, 3)))[1]
            for c in set(scene.classes)
        )
    right = np.diag(confusion)
    iou = right / (confusion.sum(1) + confusion.sum(0)[: len(right)] - right)
    assert 0.65 < iou.mean() < 0.9
    assert 0.02 < missed / objects < 0.15
    assert merged > 5
    assert 0 < confusion[:, 255].sum() < 0.03 * confusion.sum()


def test_imperfect_map_leaves_the_scene_alone_and_repeats(scenes: list[Scene]) -> None:
    scene = scenes[0]
    ids = scene.ids.copy()
    first = imperfect_map(np.random.default_rng(1), scene)
    assert np.array_equal(first, imperfect_map(np.random.default_rng(1), scene))
    assert np.array_equal(ids, scene.ids)
