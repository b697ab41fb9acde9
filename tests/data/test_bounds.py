"""Memory follows a file and its image, not what the file claims; native code never sees what was not checked."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from bestie_pl.data.annotation_tools.readers import read_marked
from bestie_pl.data.coco import read_categories, read_index
from bestie_pl.data.formats.codes import encode_polygons, encode_runs, read_runs
from bestie_pl.data.formats.images import MOST_PIXELS, check_pixels
from bestie_pl.data.formats.maps import MapFolder, read_semantic
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.errors import UserError

H, W = 24, 32
SIZE = (H, W)


def growth(read: Callable[[], object]) -> float:
    """MiB by which reading enlarges a process of its own; 0 for whatever it raises of ours."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read()
        except UserError:
            pass
        finally:
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
            os._exit(0)
    assert os.waitpid(process, 0)[1] == 0  # no signal
    os.close(writing)
    with os.fdopen(reading) as said:
        return int(said.read()) / 1024


def coco(path: Path, **annotation: Any) -> Path:
    image = {"id": 1, "file_name": "a.png", "height": H, "width": W} | annotation.pop("image", {})
    shared = {"id": 1, "image_id": 1, "category_id": 1}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [shared | annotation]}
    path.write_text(json.dumps({**content, **annotation.pop("file", {})}))
    return path


def truth(path: Path) -> object:
    index = read_index(path, tuple(read_categories(path)), keep_masks=True)
    assert index.annotations is not None
    return COCOTruth(index.annotations, index.sizes, path)(0, SIZE)


@pytest.mark.parametrize("corner", [[1e8, 2], [2, -1e8], [1e300, 2], [1e9 + 0.5, 1e9]])
def test_far_corners(corner: list[float], tmp_path: Path) -> None:
    polygon = [2, 2, *corner, 20, 20]
    with pytest.raises(UserError, match=r"a: the corner x=.*, y=.* is far beyond the 32 x 24 px image; correct"):
        encode_polygons([polygon], SIZE, "a")
    path = coco(tmp_path / "a.json", segmentation=[polygon])
    for read in (lambda: truth(path), lambda: read_marked([path], "coco")):
        assert growth(read) < 50
        with pytest.raises(UserError, match="a.json: .*annotation 1.*far beyond"):
            read()


def test_an_outline_that_runs_to_and_fro() -> None:
    zigzag = [value for k in range(3000) for value in ((k % 2) * 31, k % 24)]
    with pytest.raises(UserError, match="the length of the outline, 9.*px, is far beyond"):
        encode_polygons([zigzag], SIZE, "a")
    with pytest.raises(UserError, match="the length of the outline"):
        encode_polygons([[0, 0, 31, 0, 31, 23]] * 200, SIZE, "a")


def test_corners_a_little_outside_are_cut_as_before() -> None:
    polygon = [-9.5, -3, 50, 2, 31, 60.25]
    (found,) = encode_polygons([polygon], SIZE, "a")
    assert found == rle.frPyObjects([polygon], *SIZE)[0]


@pytest.mark.parametrize(
    "counts",
    [
        *([], [768, 1], [-1, 769], [True, 767], [1e3], ["768"], [2**62, 2**62]),
        *("", "o" * 100_000, "é", "\0", "768", None, 5, {}),
    ],
)
def test_codes_that_do_not_cover_the_image(counts: object) -> None:
    with pytest.raises(UserError, match="a: a (broken )?run-length code"):
        encode_runs(counts, SIZE, "a")


def test_codes_of_both_kinds_are_the_same() -> None:
    code = encode_runs([5, 9, 754], SIZE, "a")
    assert read_runs(code["counts"]) == [5, 9, 754]
    assert encode_runs(code["counts"].decode(), SIZE, "a") == code


@pytest.mark.parametrize(
    "size", [(2**31, 2), (10**5, 10**5), (1, 2**40), (0, 5), (-1, 5), (True, 5), (2.5, 5), ("3", 5)]
)
def test_sizes(size: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: height, width"):
        check_pixels(*size, "a: height, width")
    path = coco(tmp_path / "a.json", segmentation=[[1, 1, 5, 1, 5, 5]], image={"height": size[0], "width": size[1]})
    for read in (lambda: truth(path), lambda: read_marked([path], "coco")):
        with pytest.raises(UserError, match=r"a.json: image 'a.png': height, width"):
            read()


def test_the_largest_image(tmp_path: Path) -> None:
    side = int(MOST_PIXELS**0.5)
    assert check_pixels(side, side, "") == (side, side)
    whole = [[0, 0, side, 0, side, side, 0, side]]
    path = coco(tmp_path / "a.json", segmentation=whole, image={"height": side, "width": side})
    assert growth(lambda: read_marked([path], "coco").points(path)) < 100
    (entry,) = read_marked([path], "coco").images[0].objects
    assert entry.spot == (side // 2 - (side % 2 == 0), side // 2 - (side % 2 == 0))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"area": float("1e400")}, "area inf; expected a number of pixels"),
        ({"segmentation": {"size": True, "counts": [768]}}, "mask of size True; expected"),
        ({"segmentation": {"counts": [768]}}, "mask of size None; expected"),
        ({"segmentation": [{}]}, ".*; expected a polygon as numbers"),
        ({"segmentation": [[None] * 6]}, ".*; expected a polygon as finite numbers"),
    ],
)
def test_annotations(annotation: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", **{"segmentation": [[1, 1, 5, 1, 5, 5]], **annotation})
    with pytest.raises(UserError, match=f"a.json: annotation 1: {message}"):
        truth(path)


@pytest.mark.parametrize("digits", ["1" + "0" * 400, "9" * 5000])
def test_numbers_without_end(digits: str, tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", segmentation=[[1, 1, 5, 1, 5, 5]], area=7)
    path.write_text(path.read_text().replace('"area": 7', f'"area": {digits}'))
    with pytest.raises(UserError, match="a.json: annotation 1: area inf; expected"):
        truth(path)


@pytest.mark.parametrize("content", [{"categories": 5}, {"images": 5}, {"images": {}}, {"annotations": 5}])
def test_coco_files_of_another_shape(content: dict[str, Any], tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", segmentation=[[1, 1, 5, 1, 5, 5]])
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    with pytest.raises(UserError, match="a.json: "):
        truth(path)


# ---------------------------------------------------------------- masks of annotation programs


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and whose pixels are all white."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj()
    rows = b"".join(pack.compress(b"\0" + b"\xff" * -(-width // 8)) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def labelme_mask(path: Path, picture: bytes, **size: int) -> Path:
    shape = {
        "label": "cat",
        "shape_type": "mask",
        "points": [[0, 0], [9, 9]],
        "mask": base64.b64encode(picture).decode(),
    }
    path.write_text(json.dumps({"shapes": [shape], "imagePath": "a.png", **size}))
    return path


def test_a_labelme_mask_larger_than_its_image(tmp_path: Path) -> None:
    path = labelme_mask(tmp_path / "a.json", png(13_000, 13_000), imageHeight=H, imageWidth=W)
    assert growth(lambda: read_marked([path], "labelme")) < 50
    with pytest.raises(UserError, match=r"mask: 13000 x 13000 px in an image of 32 x 24"):
        read_marked([path], "labelme")
    path = labelme_mask(tmp_path / "a.json", png(13_000, 13_000))  # the image's size is not stated
    assert growth(lambda: read_marked([path], "labelme")) < 1500


@pytest.mark.parametrize("rle", [[256], [-1], ["a"], [1.5], "abc", [], [0, 0, 12, 0], None])
def test_label_studios_bytes(rle: object, tmp_path: Path) -> None:
    value = {"brushlabels": ["cat"], "rle": rle}
    result = {"type": "brushlabels", "to_name": "i", "original_height": H, "original_width": W, "value": value}
    (tmp_path / "t.json").write_text(
        json.dumps([{"id": 1, "data": {"i": "a.png"}, "annotations": [{"result": [result]}]}])
    )
    with pytest.raises(UserError, match=r"t.json: task 1 \(a.png\), result 1.*rle"):
        read_marked([tmp_path / "t.json"], "labelstudio")


@pytest.mark.parametrize(
    "attributes",
    [
        'left="0" top="0" width="100000" height="100000" rle="5,9"',
        'left="inf" top="0" width="4" height="4" rle="5,9"',
        'left="1e300" top="0" width="4" height="4" rle="5,9"',
        'left="0" top="0" width="4" height="4" rle="5,99999999999999999999"',
        'left="0" top="0" width="4" height="4" rle="5,-1"',
        'left="0" top="0" width="nan" height="4" rle="5,9"',
    ],
)
def test_cvats_masks(attributes: str, tmp_path: Path) -> None:
    image = f'<image name="a.png" width="{W}" height="{H}"><mask label="cat" {attributes}/></image>'
    (tmp_path / "a.xml").write_text(f"<annotations>{image}</annotations>")
    with pytest.raises(UserError, match="a.xml: image 'a.png', mask 1: "):
        read_marked([tmp_path / "a.xml"], "cvat")
    assert growth(lambda: read_marked([tmp_path / "a.xml"], "cvat")) < 50


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("shape", ["(100000, 100000)", "(-1, 5)", f"({10**30}, 5)", "(24, 32", "True", "()", "(0, 0)"])
def test_npy_headers(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 80
    )
    folder = MapFolder(tmp_path, ("cat",))
    with pytest.raises(UserError, match="a.npy: "):
        folder.read("a", SIZE)
    assert growth(lambda: folder.read("a", SIZE)) < 50


def test_objects_and_archives_are_no_arrays(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path, ("cat",))
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="a.npy: is no array of numbers"):
        folder.read("a", SIZE)
    with (tmp_path / "b.npy").open("wb") as file:
        np.savez(file, np.ones(3))
    with pytest.raises(UserError, match="b.npy: is an archive of arrays"):
        folder.read("b", SIZE)


def test_a_map_larger_than_its_image_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(13_000, 13_000))
    assert growth(lambda: read_semantic(tmp_path / "a.png", SIZE, 2)) < 50
    with pytest.raises(UserError, match=r"a.png: is 13000 x 13000 px .* but its image is 32 x 24"):
        read_semantic(tmp_path / "a.png", SIZE, 2)


def test_growth_is_measured() -> None:
    assert 180 < growth(lambda: len(bytearray(b"x") * (200 * 2**20))) < 300
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    assert growth(lambda: Image.open(io.BytesIO(out.getvalue())).load()) < 50
