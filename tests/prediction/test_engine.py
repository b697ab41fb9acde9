"""Sources of all kinds, and large images: tiles give what the whole image gives, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prediction.coded import CodedNetwork, draw_discs

from bestie_pl.ops.masks import mask_iou
from bestie_pl.prediction.engine import Predictor
from bestie_pl.structures import Instances


def shares_found(first: Instances, second: Instances, iou: float = 0.9) -> float:
    """Of the objects of both, how many have a partner in the other."""
    overlap = mask_iou(first, second)
    if not overlap.numel():
        return float(len(first) == len(second))
    matched = int((overlap.amax(1) > iou).sum()) + int((overlap.amax(0) > iou).sum())
    return matched / (len(first) + len(second))


def mosaic(seed: int, side: int, count: int, largest: int) -> np.ndarray:
    """Discs anywhere, in touching crowds, and one more on each crossing of the seams of tiles of 192 px."""
    random = np.random.default_rng(seed)
    centers = random.integers(0, side, (count, 2))
    radii = random.integers(6, largest, count)
    seams = np.arange(96, side, 96)
    crossings = np.stack(np.meshgrid(seams, seams), -1).reshape(-1, 2) + random.integers(-9, 9, (len(seams) ** 2, 2))
    centers = np.concatenate([centers, np.clip(crossings, 0, side - 1)])
    return draw_discs((side, side), centers, np.concatenate([radii, random.integers(6, 14, len(crossings))]))


@pytest.mark.parametrize(("largest", "seed"), [(15, 0), (15, 1), (60, 2)])
def test_objects_on_seams_are_those_of_the_whole_image(largest: int, seed: int) -> None:
    """Small ones lie whole in a tile; those of up to 120 px are larger than the overlap and are joined."""
    picture = mosaic(seed, side=768, count=12000 // largest**2 * 6, largest=largest)
    network = CodedNetwork()
    (whole,) = Predictor(network)([picture])
    assert network.seen == [(768, 768)] and len(whole) > 40
    (tiled,) = Predictor(network, tile=192, overlap=96)([picture])
    assert max(network.seen[1:]) == (192, 192)
    assert shares_found(whole.instances, tiled.instances) >= 0.98


def test_one_object_over_many_tiles_is_one_object() -> None:
    picture = draw_discs((500, 500), np.array([[250, 250]]), np.array([120]))
    (tiled,) = Predictor(CodedNetwork(), tile=128, overlap=64)([picture])
    assert tiled.areas.tolist() == [int((picture[..., 0] == 255).sum())]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 12), st.integers(0, 2**16))
def test_any_size_any_number(height: int, width: int, count: int, seed: int) -> None:
    """Labels stay inside of the objects, no pixel is lost at a seam, and no object is there twice."""
    random = np.random.default_rng(seed)
    picture = draw_discs(
        (height, width), random.integers(0, [height, width], (count, 2)), random.integers(5, 14, count)
    )
    (tiled,) = Predictor(CodedNetwork(), tile=128, overlap=64)([picture])
    (whole,) = Predictor(CodedNetwork())([picture])
    assert (tiled.image == picture).all() and tiled.instances.size == (height, width)
    found, expected = tiled.to_label_image() > 0, whole.to_label_image() > 0
    assert not (found & ~expected).any()
    assert (found == expected).mean() > 0.98
    assert abs(len(tiled) - len(whole)) <= 2


def test_scaled_images_are_cut_before_they_are_enlarged() -> None:
    picture = mosaic(3, side=384, count=60, largest=15)
    network = CodedNetwork()
    (tiled,) = Predictor(network, image_scale=2, tile=384, overlap=192)([picture])
    assert set(network.seen) == {(384, 384)} and len(tiled) > 5
    with pytest.raises(ValueError, match="image_scale must be positive, got 0"):
        Predictor(network, image_scale=0)


@pytest.mark.parametrize(("tile", "overlap"), [(100, 32), (128, 96), (128, 20), (0, 0), (128, -32), (128, 32)])
def test_tiles_that_fit_no_network_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="tile and overlap must be multiples of 32"):
        Predictor(CodedNetwork(), tile=tile, overlap=overlap)


MEASURE = """
import resource, sys
import numpy as np, torch
from prediction.coded import CodedNetwork, draw_discs
from bestie_pl.prediction.engine import Predictor
side = int(sys.argv[1])
random = np.random.default_rng(0)
picture = draw_discs((side, side), random.integers(0, side, (side * side // 40000, 2)),
                     random.integers(6, 30, side * side // 40000))
Predictor(CodedNetwork(), tile=512, overlap=128)([picture[:640, :640]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(result,) = Predictor(CodedNetwork(), tile=512, overlap=128)([picture])
print(len(result), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / picture[..., 0].size)
"""


def test_memory_grows_by_few_bytes_a_pixel() -> None:
    """What ``Predictor`` states: the image is there already; whole, the maps alone would take 20 bytes a pixel."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", MEASURE, "3000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    count, per_pixel = done.stdout.split()
    assert int(count) > 150
    assert float(per_pixel) < 13


# ---------------------------------------------------------------- sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of one disc, in two folders and kinds, and a file that is none."""
    picture = draw_discs((40, 50), np.array([[20, 24]]), np.array([9]))
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.bmp", "sub/a.tif"):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(source: object) -> list[str]:
    results = Predictor(CodedNetwork())(source)  # type: ignore[arg-type]
    assert all(len(result) == 1 for result in results)
    return [result.name for result in results]


def test_paths_folders_and_patterns(folder: Path) -> None:
    assert names(folder / "b.png") == names(str(folder / "b.png")) == ["b"]
    assert names(folder) == ["a", "b", "sub/a"]
    assert names(str(folder / "*")) == ["a", "b"]
    assert names(f"{folder}/**/a.*") == ["a", "sub/a"]
    assert names([folder / "b.png", np.asarray(Image.open(folder / "b.png")), str(folder / "sub")]) == [
        "b",
        "image_0",
        "a",
    ]


def test_pictures_arrays_and_tensors_are_the_same_image(folder: Path) -> None:
    image = Image.open(folder / "b.png")
    array = np.asarray(image)
    alpha = np.concatenate([array, np.zeros_like(array[..., :1])], 2)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = Predictor(CodedNetwork())(folder / "b.png")[0]
    for source in (image, array, alpha, array / 255, tensor, tensor / 255, tensor[None], image.convert("RGBA")):
        (result,) = Predictor(CodedNetwork())(source)
        assert (result.image == array).all() and result.name == "image_0"
        assert result.instances.masks == expected.instances.masks
    two = torch.stack([tensor, tensor])
    assert names(two) == ["image_0", "image_1"]


def test_grey_of_8_and_16_bits() -> None:
    grey = np.full((8, 9), 51, np.uint8)
    for source in (
        grey,
        grey.astype(np.uint16) * 257,
        grey / 255,
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
    ):
        (result,) = Predictor(CodedNetwork())(source)
        assert result.image.shape == (8, 9, 3) and (result.image == 51).all() and len(result) == 0


def test_photographs_are_turned_as_files_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    for source in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg")):
        assert Predictor(CodedNetwork())(source)[0].image.shape == (30, 20, 3)


def test_a_stream_opens_images_when_asked(folder: Path) -> None:
    network = CodedNetwork()
    stream = Predictor(network)(folder, stream=True)
    assert not network.seen
    assert next(stream).name == "a" and len(network.seen) == 1
    assert network.training, "left as it was found"
    assert [result.name for result in stream] == ["b", "sub/a"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere.png", FileNotFoundError, "no such image, folder or pattern: nowhere.png; expected a path"),
        ("nowhere/*.png", FileNotFoundError, "no image there; expected files that end in .jpg"),
        (np.zeros((3, 8, 9), np.uint8), ValueError, r"shape \(3, 8, 9\); expected \(H, W, 3\)"),
        (np.zeros((8, 9, 3), np.int64), ValueError, "an array of int64; expected uint8"),
        (np.full((8, 9), 7.0), ValueError, r"values 7\.\.7; expected \[0, 1\]"),
        (np.full((8, 9), np.nan), ValueError, r"values nan\.\.nan"),
        (torch.zeros(8, 9, 3), ValueError, "channels first"),
        ([None], ValueError, "cannot make an image of a NoneType"),
    ],
)
def test_what_is_no_image(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Predictor(CodedNetwork())(source)  # type: ignore[arg-type]


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    with pytest.raises(ValueError, match="listed more than once: a; "):
        Predictor(CodedNetwork())(folder)


def test_an_oracle_is_refused() -> None:
    network = CodedNetwork()
    network.oracle = "points"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="images alone give no points"):
        Predictor(network)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (torch.full((3, 8, 9), 100, dtype=torch.int8), "int8; expected uint8"),
        (torch.ones(3, 8, 9, dtype=torch.bool), "bool; expected uint8"),
        (torch.ones(3, 8, 9, dtype=torch.int32).to(torch.uint16), "uint16; expected uint8"),
        (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)"),
    ],
)
def test_values_that_are_no_image(source: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Predictor(CodedNetwork())(source)
