"""Every kind of image that people have: read with the right pixels, or refused with its name."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from bestie_pl.data.files import Packed, write_text
from bestie_pl.data.formats.images import ImageFiles, find_image, image_size, open_image
from bestie_pl.data.release import MEAN_COLOR
from bestie_pl.data.samples import collate
from bestie_pl.data.voc import VOCDataModule

ORIENTATION = 0x0112
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What each EXIF orientation asks a viewer to do with the stored rows. Source: EXIF 2.3, tag 274."""


def exif(orientation: int) -> Image.Exif:
    record = Image.Exif()
    record[ORIENTATION] = orientation
    return record


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel from (H, W, channels) uint16; Pillow writes grey ones only."""
    height, width, channels = values.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def blocks(height: int = 24, width: int = 40) -> np.ndarray:
    """Colours in blocks of 8 px, which JPEG keeps nearly as they are; no symmetry."""
    random = np.random.default_rng(1)
    return random.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


# ---------------------------------------------------------------- read


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = blocks()
    path = tmp_path / f"photo{suffix}"
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(stored).save(path, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](stored)
    found = pixels(path)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected, atol=12 if suffix == ".jpg" else 0)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """Inks are subtracted from white: (255 - C) (255 - K) / 255, and so on. Adobe's JPEG files hold them inverted."""
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [40, 80, 160, 60]])
    stored = inks[None].repeat(16, 0).repeat(16, 1).astype(np.uint8)
    path = tmp_path / "print.jpg"
    Image.fromarray(stored, mode="CMYK").save(path, quality=100, subsampling=0)
    with Image.open(path) as image:
        assert image.mode == "CMYK" and "adobe" in image.info
    expected = (255 - inks[:, :3]) * (255 - inks[:, 3:]) / 255
    np.testing.assert_allclose(pixels(path)[8, 8::16].astype(int), expected, atol=4)


def test_grey_jpeg(tmp_path: Path) -> None:
    stored = blocks()[..., 0]
    Image.fromarray(stored).save(tmp_path / "grey.jpg", quality=95)
    found = pixels(tmp_path / "grey.jpg")
    assert (found == found[..., :1]).all()
    np.testing.assert_allclose(found[..., 0].astype(int), stored, atol=8)


def test_16_bit_grey_is_scaled_and_rounded(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32896, 65406, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    (tmp_path / "b.png").write_bytes(png16(values[..., None]))
    for name in ("a.png", "a.tif", "b.png"):
        found = pixels(tmp_path / name)
        assert (found == expected[..., None]).all(), name


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_keep_their_upper_byte(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, 5, channels), np.uint16)
    (tmp_path / "a.png").write_bytes(png16(values))
    colours = values[..., :3] if channels > 2 else values[..., :1].repeat(3, 2)
    assert (pixels(tmp_path / "a.png") == colours >> 8).all()


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128])])
def test_palettes_are_looked_up(tmp_path: Path, transparency: int | bytes | None) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = np.array([[10, 20, 30], [200, 100, 50], [7, 8, 9]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.flatten().tolist())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
    assert (pixels(tmp_path / "a.png") == palette[indices]).all()


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".tif"), ("RGBA", ".webp")])
def test_alpha_is_dropped(tmp_path: Path, mode: str, suffix: str) -> None:
    """Transparent pixels have the colour that is stored under them."""
    stored = np.random.default_rng(0).integers(0, 256, (6, 7, len(mode)), np.uint8)
    stored[..., -1] = np.arange(42).reshape(6, 7) * 6
    Image.fromarray(stored, mode=mode).save(
        tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {})
    )
    expected = stored[..., :3] if mode == "RGBA" else stored[..., :1].repeat(3, 2)
    assert (pixels(tmp_path / f"a{suffix}") == expected).all()


def test_one_bit_and_few_bits(tmp_path: Path) -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == bits[..., None] * np.uint8(255)).all()


@pytest.mark.parametrize("suffix", [".JPG", ".Jpeg".upper(), ".PNG", ".TIF", ".bmp", ".webp"])
def test_suffixes_of_both_cases_are_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    assert find_image(tmp_path, "a") == path
    assert find_image(tmp_path, "b") == tmp_path / "b.jpg"  # what an error then names


# ---------------------------------------------------------------- refused


def test_kinds_without_a_defined_colour_are_refused(tmp_path: Path) -> None:
    kinds = {
        "float.tif": (Image.fromarray(np.ones((2, 2), np.float32)), "floating-point numbers"),
        "lab.tif": (Image.new("LAB", (2, 2)), "LAB colours"),
        "deep.tif": (Image.fromarray(np.array([[0, 70000]], np.int32)), r"values 0\.\.70000; expected 8 or 16 bits"),
        "signed.tif": (Image.fromarray(np.array([[-1, 7]], np.int32)), r"values -1\.\.7"),
    }
    for name, (image, message) in kinds.items():
        image.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [0, 1, 30, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()))
    content = buffer.getvalue()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"half{suffix}: cannot be read as an image .*; restore it or take it out"):
        open_image(path)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match=r"page.jpg: cannot be read as an image"):
        open_image(path)
    with pytest.raises(FileNotFoundError, match=r"no such image: .*missing.jpg"):
        open_image(tmp_path / "missing.jpg")
    Image.new("RGB", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"page.jpg: cannot be read as an image .*exceeds limit"):
        open_image(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".jpg", ".png", ".webp", ".bmp"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_broken_bytes_give_an_image_or_an_error_with_the_name(
    tmp_path: Path, suffix: str, changes: list[tuple[float, int]]
) -> None:
    buffer = io.BytesIO()
    options = {} if suffix == ".bmp" else {"exif": exif(6)}
    Image.fromarray(blocks()).save(buffer, {".jpg": "JPEG"}.get(suffix, suffix[1:].upper()), **options)
    content = bytearray(buffer.getvalue())
    for at, value in changes:
        content[int(at**3 * len(content))] = value  # most of them in the header
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    try:
        assert open_image(path).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


# ---------------------------------------------------------------- through the data module

NAMES = ["größe", "日本語", "наука", "e\u0301tude", "emoji-🐟"]
SIZES = [(50, 1), (1, 50), (40, 8000), (1, 1), (90, 70)]
"""Height and width of the images of NAMES."""


PERIOD, LENGTH = 40, 20
"""Along the longer side of the images, every 40 px a beetle of 20 px begins, with a point in its middle."""


def beetles(height: int, width: int) -> tuple[np.ndarray, str]:
    """Semantic map of an image of this size, and its points in the release's format."""
    semantic, points = np.zeros((height, width), np.uint8), []
    for start in range(0, max(height, width), PERIOD):
        along, across = slice(start, start + LENGTH), slice(None)
        part = (along, across) if height >= width else (across, along)
        semantic[part] = 1
        rows, columns = np.nonzero(semantic[part])
        y, x = rows.mean() + (start if height >= width else 0), columns.mean() + (start if height < width else 0)
        points.append(f"{x} {y} 0 1\n")
    return semantic, "".join(points)


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Images of extreme sizes with names beyond ASCII and beetles; the second one is turned by EXIF."""
    root = tmp_path / "Datensätze"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "WSSS_maps", "Center_points"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("Käfer\nFisch\n", encoding="utf-8")
    for name, (height, width) in zip(NAMES, SIZES, strict=True):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0], image[..., 1] = 255, np.linspace(0, 255, height * width).reshape(height, width)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
        semantic, points = beetles(height, width)
        for folder in ("SegmentationClass", "SegmentationObject", "WSSS_maps"):
            Image.fromarray(semantic).save(root / folder / f"{name}.png")
        (root / "Center_points" / f"{name}.txt").write_text(points)
    turned = root / "JPEGImages" / f"{NAMES[1]}.png"
    with Image.open(turned) as image:
        image.rotate(90, expand=True).save(turned, exif=exif(6))
    # editors on Windows begin a file with a byte order mark
    (root / "train_cls.txt").write_text("".join(f"{name} 0\n" for name in NAMES), encoding="utf-8-sig")
    return root


def module(root: Path, **arguments: object) -> VOCDataModule:
    common = {"train_split": "train", "val_split": "train", "num_workers": 0, "min_area": 1}
    return VOCDataModule(str(root), **(common | arguments))


def test_evaluation_of_odd_images(odd_folder: Path) -> None:
    data = module(odd_folder, eval_batch_size=5)
    data.setup("validate")
    seen = []
    for raw in data.val_dataloader():  # images of like size together
        batch = data.on_after_batch_transfer(raw, 0)
        assert batch.sizes == batch.original_sizes
        seen += zip(batch.names, batch.sizes, strict=True)
        for image, semantic, (height, width) in zip(batch.images, batch.semantic_references, batch.sizes, strict=True):
            expected = torch.linspace(0, 255, height * width).floor().view(height, width) / 255
            assert (image[0, :height, :width] == 1).all()
            torch.testing.assert_close(image[1, :height, :width], expected, atol=1.01 / 255, rtol=0)
            assert tuple(semantic.shape) == (height, width)
    assert seen == list(zip(NAMES, SIZES, strict=True))


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("name", NAMES)
def test_training_on_odd_images(odd_folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, name: str) -> None:
    """Each alone and often, so that many draws of crop, scale and mirror meet it.

    No crop is all padding, none shows more than the image has, and the regions with one point in the crop are labelled.
    """
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (odd_folder / "train_cls.txt").write_text(f"{name} 0\n", encoding="utf-8")
    data = module(odd_folder, recipe=recipe, batch_size=1, crop_size=96, color_jitter=0.0)
    data.setup("fit")
    for draw in range(12):
        batch = data.on_after_batch_transfer(collate([data.datasets["train"][draw]]), 0)
        assert tuple(batch.images.shape) == (1, 3, 96, 96)
        assert batch.images.isfinite().all() and batch.images.min() >= 0 and batch.images.max() <= 1
        padding = torch.tensor(MEAN_COLOR).view(3, 1, 1) / 255
        visible = ((batch.images[0] - padding).abs() > 1e-3).any(0)
        assert visible.any()

        regions, count = ndimage.label(batch.semantic[0].numpy() == 1, np.ones((3, 3)))
        y, x = batch.cues.yx.round().long().numpy().T
        points_in = np.bincount(regions[y, x], minlength=count + 1)[1:]
        labelled = batch.pseudo.area > 0
        assert int(labelled.sum()) == (points_in == 1).sum()

        if recipe == "paper":  # the release enlarges and squeezes all images to about the size of the crop
            assert len(batch.cues) == int(labelled.sum()) >= 1
            shown = (batch.semantic[0] != 255).any(1).sum(), (batch.semantic[0] != 255).any(0).sum()
            for side, full in zip(shown, SIZES[NAMES.index(name)], strict=True):
                assert 1 <= side <= 1.3 * full + 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_utf8(odd_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    encoded = os.fsencode(folder) + b"/gr\xf6\xdfe.png"
    with open(encoded, "wb") as file:
        Image.new("RGB", (3, 2), (9, 8, 7)).save(file, format="PNG")
    data = module(odd_folder, predict_images=str(folder))
    data.setup("predict")
    sample = data.datasets["predict"][0]
    assert os.fsencode(sample.name) == b"gr\xf6\xdfe" and sample.image[:, 0, 0].tolist() == [9, 8, 7]
    # as predictions are written, readable for people
    write_text(tmp_path / f"{sample.name}.json", json.dumps({"Käfer": sample.name}, ensure_ascii=False))
    written = (tmp_path / f"{sample.name}.json").read_text(encoding="utf-8")
    assert json.loads(written) == {"Käfer": sample.name} and "Käfer" in written


def test_image_files_look_when_asked(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path, Packed(["a", "sub/ö"]))
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "sub" / "ö.png")
    assert list(files) == [str(tmp_path / "a.jpg"), str(tmp_path / "sub" / "ö.png")]
    assert files[-1] == files[1:][0] == str(tmp_path / "sub" / "ö.png") and len(files) == 2


def test_maps_belong_to_the_turned_image(odd_folder: Path) -> None:
    path = odd_folder / "WSSS_maps" / f"{NAMES[1]}.png"
    Image.new("L", (1, 50)).save(path)
    data = module(odd_folder)
    data.setup("fit")
    with pytest.raises(ValueError, match=rf"{NAMES[1]}.png: is 1 x 50 px .* but its image is 50 x 1"):
        data.datasets["train"][1]


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_that_is_turned(orientation: int, compression: str | None, mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 40), np.uint8)
    stored = np.stack([values] * 3, 2) if mode == "RGB" else values.astype(np.uint16) * 257 if "16" in mode else values
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.tif", exif=exif, compression=compression)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # counterclockwise
    wanted = np.rot90(values, turns)
    assert (np.asarray(open_image(tmp_path / "a.tif"))[:, :, 0] == wanted).all()
    assert image_size(tmp_path / "a.tif") == wanted.shape
