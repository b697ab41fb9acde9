"""Training over a few images that cannot be read: named, counted, bounded, and the same however it is run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from bestie_pl.data.unreadable import Unreadable
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.errors import UserError


def data_module(root: Path, **settings: object) -> VOCDataModule:
    data = VOCDataModule(
        str(root), class_names=["cat", "dog"], train_split="train", batch_size=1, crop_size=32, **settings
    )
    data.setup("fit")
    return data


def break_images(root: Path, *names: str) -> None:
    for name in names:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"\xff\xd8 no more")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_the_place(workers: int, voc_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its own labels; named once, by whichever worker meets it first."""
    pl.seed_everything(5, verbose=False)
    whole = [batch.names[0] for batch in data_module(voc_folder, num_workers=0).train_dataloader()]
    break_images(voc_folder, "a1", "a2")
    data = data_module(voc_folder, max_unreadable=2, num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *where: print(message, file=sys.stderr)  # of workers too
        loader = data.train_dataloader()
        names = [batch.names[0] for batch in loader]
        sizes = {batch.names[0]: batch.sizes[0] for batch in loader}
        data.teardown("fit")
    assert names == [{"a1": "a3", "a2": "a3"}.get(name, name) for name in whole]
    assert sizes["a3"] == (64, 64)
    told = capfd.readouterr().err.splitlines()
    for name in ("a1", "a2"):
        assert sum(f"{name}.jpg: cannot be read" in line for line in told) == 1, told
    assert sum("2 training images could not be read" in line for line in told) == 1


def test_one_more_than_allowed_is_an_error(voc_folder: Path) -> None:
    break_images(voc_folder, "a1", "a4", "a2")
    (voc_folder / "JPEGImages" / "a1.jpg").unlink()  # as bad as one that is broken
    data = data_module(voc_folder, max_unreadable=2, num_workers=0)
    with pytest.warns(UserWarning, match="max_unreadable allows"):  # noqa: SIM117
        with pytest.raises(UserError, match=r"\.jpg.*3 training images cannot be read, and max_unreadable allows 2"):
            list(data.train_dataloader())


def test_none_is_allowed_unless_asked_for(voc_folder: Path) -> None:
    break_images(voc_folder, "a1")
    with pytest.raises(UserError, match=r"a1\.jpg: cannot be read as an image"):
        list(data_module(voc_folder, num_workers=0).train_dataloader())
    with pytest.raises(ValueError, match="max_unreadable >= 0"):
        data_module(voc_folder, max_unreadable=-1)


def test_no_image_can_be_read(tmp_path: Path) -> None:
    images = Unreadable([str(tmp_path / "a.png"), str(tmp_path / "b.png")], 9)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="a.png and all other training images"):
        images.open(0)


def test_the_place_does_not_depend_on_what_was_met_before(voc_folder: Path) -> None:
    """As after an interruption, or in another process."""
    break_images(voc_folder, "a0", "a1")
    with pytest.warns(UserWarning):
        one = data_module(voc_folder, max_unreadable=5, recipe="release").datasets["train"]
        other = data_module(voc_folder, max_unreadable=5, recipe="release").datasets["train"]
        assert [one[item].name for item in (0, 1)] == ["a2", "a2"]
        first = [one[item] for item in range(12)]
        second = [other[item] for item in reversed(range(12))][::-1]
    assert all(torch.equal(a.image, b.image) and a.name == b.name for a, b in zip(first, second, strict=True))
