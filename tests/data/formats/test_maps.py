"""Maps and scores of other programs, and the file format that we write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl.data.formats.maps import MapFolder, read_if_present, read_semantic, write_semantic

NAMES = ("cat", "dog", "cow")
TURNED = ("cow", "cat", "dog")


def test_a_written_map_is_read_again_and_shows_the_palette_of_voc(tmp_path: Path) -> None:
    semantic = torch.tensor([[0, 1, 3], [255, 2, 2]], dtype=torch.uint8)
    write_semantic(tmp_path / "deep" / "a.png", semantic)
    assert torch.equal(read_semantic(tmp_path / "deep" / "a.png", (2, 3), 3), semantic)
    picture = Image.open(tmp_path / "deep" / "a.png")
    assert picture.mode == "P" and picture.convert("RGB").getpixel((2, 0)) == (128, 128, 0)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_semantic(tmp_path / "a.png", torch.ones(2, 2, dtype=torch.uint8))
    with pytest.raises((TypeError, ValueError)):
        write_semantic(tmp_path / "a.png", torch.ones(2, 2, 2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_semantic(tmp_path / "a.png", (2, 2), 1).sum() == 4


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_classes_are_put_into_the_order_of_the_data_set(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 1, 2, 3, 255]], dtype=np.uint8)
    if suffix == "png":
        Image.fromarray(values).save(tmp_path / "a.png")
    else:
        np.save(tmp_path / "a.npy", values.astype(np.int64))
    assert MapFolder(tmp_path, NAMES).read("a", (1, 5)).tolist() == [[0, 1, 2, 3, 255]]
    assert MapFolder(tmp_path, NAMES, TURNED).read("a", (1, 5)).tolist() == [[0, 3, 1, 2, 255]]


@pytest.mark.parametrize("background", [True, False])
def test_scores_are_put_into_the_order_of_the_data_set(tmp_path: Path, background: bool) -> None:
    scores = np.arange(3 + background, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    np.save(tmp_path / "a.npy", scores)
    found = MapFolder(tmp_path, NAMES, TURNED, background).read("a", (2, 2))
    first = [0.0] if background else []
    assert found[:, 0, 0].tolist() == [*first, *(TURNED.index(name) + float(background) for name in NAMES)]


def test_a_missing_map_is_no_map_where_none_is_needed(tmp_path: Path) -> None:
    assert read_if_present(None, "a", (1, 1), NAMES) is None and read_if_present(tmp_path, "a", (1, 1), NAMES) is None
    write_semantic(tmp_path / "a.png", torch.ones(1, 1, dtype=torch.uint8))
    assert read_if_present(tmp_path, "a", (1, 1), NAMES) is not None


def write(path: Path, values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a.png", np.zeros((3, 2), np.uint8), "2 x 3 px"),
        ("a.png", np.full((2, 3), 4, np.uint8), "value 4 at y=0, x=0"),
        ("a.png", np.zeros((2, 3, 3), np.uint8), "colour image"),
        ("a.npy", np.full((2, 3), -1), "value -1"),
        ("a.npy", np.zeros((2, 3)), "whole numbers"),
        ("a.npy", np.zeros((3, 2, 3)), "3 channels; expected 4: background"),
        ("a.npy", np.zeros((4, 4, 6)), "6 x 4 px"),
        ("a.npy", np.full((4, 2, 3), np.nan), "no numbers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, values: np.ndarray, message: str) -> None:
    write(tmp_path / name, values)
    with pytest.raises(ValueError, match=message) as error:
        MapFolder(tmp_path, NAMES).read("a", (2, 3))
    assert str(tmp_path / name) in str(error.value)


def test_missing_and_broken_files_and_foreign_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.png nor .*a\.npy"):
        MapFolder(tmp_path, NAMES).read("a", (2, 3))
    (tmp_path / "a.npy").write_text("text")
    with pytest.raises(ValueError, match=r"a\.npy: is no array"):
        MapFolder(tmp_path, NAMES).read("a", (2, 3))
    with pytest.raises(ValueError, match="different: cow, horse"):
        MapFolder(tmp_path, NAMES, ("cat", "dog", "horse"))
