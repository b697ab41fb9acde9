"""Tar files in the place of folders: the same batches and scores, and nothing that a hostile tar file could do."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import seed_everything

from bestie_pl.cli.main import main
from bestie_pl.data.files import Packed
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.images import open_image
from bestie_pl.data.shards import is_file, open_shards, read_bytes

FILES = ["sub/one.png", "two.jpg", "größe 3.png", "four.v2.jpg", "sub/five.jpg", "six.png", "seven.jpg", "eight.png"]
SHARDED = {
    "images": "shards/*.tar",
    "semantic_dir": "shards/*.tar/maps",
    "cues_dir": "shards/*.tar/cues",
    "points": "shards/*.tar/spots",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images of different sizes with maps and cues, six of them with points too; two to validate."""
    root = tmp_path / "set"
    random = np.random.default_rng(0)
    rows, images, annotations = ["image,tags,split"], [], []
    for number, file in enumerate(FILES):
        height, width = 40 + 3 * number, 60 - 2 * number
        stem = str(Path(file).with_suffix(""))
        for kind in ("images", "maps", "cues", "spots"):
            (root / kind / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "images" / file)
        semantic = np.zeros((height, width), np.uint8)
        semantic[5:25, 8:30] = 1 + number % 2
        Image.fromarray(semantic).save(root / "maps" / f"{stem}.png")
        (root / "cues" / f"{stem}.txt").write_text(f"12 9 {number % 2} 0.9\n")
        if number % 3:
            (root / "spots" / f"{stem}.txt").write_text(f"{14 + number} 12 {number % 2} 1\n")
        rows.append(f"{stem if number == 1 else file},{('cat', 'dog')[number % 2]};,{'train' if number < 6 else 'val'}")
        images.append({"id": number, "file_name": file, "height": height, "width": width})
        box = [8, 5, 30, 5, 30, 25, 8, 25]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1 + number % 2, "iscrowd": 0, "segmentation": [box]}
        )
    (root / "tags.csv").write_text("\n".join(rows) + "\n")
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "truth.json").write_text(json.dumps(content))
    return root


def write_shards(root: Path, megabytes: int = 1) -> None:
    labels = [str(root / kind) for kind in ("maps", "cues", "spots")]
    arguments = [str(root / "images"), "--labels", *labels, "--out", str(root / "shards")]
    assert main(["data", "shards", *arguments, "--megabytes", str(megabytes)]) == 0


def module(root: Path, **settings: Any) -> FolderDataModule:
    common = {"semantic_dir": "maps", "points": "spots", "cues_dir": "cues", "annotations": "truth.json"}
    common |= {"num_workers": 0, "batch_size": 2, "eval_batch_size": 2, "crop_size": 32, "object_scale": 0.3}
    return FolderDataModule(str(root), **(common | settings))


def equal(one: Any, two: Any) -> bool:
    """Of batches and all that is in them."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder: Path, workers: int) -> None:
    write_shards(folder)
    batches = []
    for settings in ({}, SHARDED):
        seed_everything(3)
        data = module(folder, num_workers=workers, **settings)
        data.setup("fit")
        batches.append([*data.train_dataloader(), *data.val_dataloader()])
    assert len(batches[0]) == 4 and all(map(equal, *batches))
    assert sorted(name for batch in batches[1][:3] for name in batch.names) == sorted(
        str(Path(file).with_suffix("")) for file in FILES[:6]
    )
    assert {int(batch.semantic.max()) for batch in batches[1][:3]} <= {1, 2, 255}
    assert sum(len(batch.cues) for batch in batches[1][:3]) == 6


def test_a_training_that_goes_on_has_the_batches_that_would_have_come(folder: Path) -> None:
    """Images keep their numbers: an item is the same whoever asks for it, in whatever order."""
    write_shards(folder)
    samples = []
    for settings in ({}, SHARDED):
        data = module(folder, recipe="release", supervision="tags", **settings)
        data.setup("fit")
        samples.append(data.datasets["train"])
    for number in (9, 2, 17):  # random draws follow from the number
        assert equal(samples[0][number], samples[1][number])


def test_the_whole_data_set_is_checked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(folder)
    arguments = {"root": str(folder), "batch_size": 2, "annotations": "truth.json", **SHARDED}
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"data": {"class_path": "bestie_pl.FolderDataModule", "init_args": arguments}}))
    assert main(["data", "check", "--config", str(config), "--workers", "0"]) == 0
    (folder / "images" / "six.png").write_bytes(b"nothing")
    for path in (folder / "shards").iterdir():
        path.unlink()
    write_shards(folder)
    capsys.readouterr()
    assert main(["data", "check", "--config", str(config), "--workers", "0"]) == 1
    assert f"{folder}/shards/*.tar/six.png: cannot be read as an image" in capsys.readouterr().out


def test_what_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(1)
    for name in ("a", "b", "c"):  # half a megabyte each
        Image.fromarray(random.integers(0, 256, (400, 450, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    (folder / "images" / ".hidden.png").write_bytes(b"")
    write_shards(folder)
    paths = sorted((folder / "shards").iterdir())
    assert [path.name for path in paths] == ["000000.tar", "000001.tar"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        *("  images: shards/*.tar", "  shards/*.tar/maps in the place of the folder maps"),
        *(f"  shards/*.tar/{kind} in the place of the folder {kind}" for kind in ("cues", "spots")),
    ]
    with tarfile.open(paths[1]) as archive:
        names = archive.getnames()
        assert all(member.mtime == 0 and member.isreg() for member in archive)
    # as WebDataset has it: what belongs together has one name and stands together
    at = names.index("sub/five.jpg")
    assert names[at : at + 4] == ["sub/five.jpg", "sub/five.maps.png", "sub/five.cues.txt", "sub/five.spots.txt"]
    content = [path.read_bytes() for path in paths]
    assert main(["data", "shards", str(folder / "images"), "--out", str(folder / "shards")]) == 2
    assert "000000.tar is there already; remove the shards" in capsys.readouterr().err
    for path in paths:
        path.unlink()
    write_shards(folder)
    assert [path.read_bytes() for path in paths] == content


def test_names_that_would_meet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "six.maps.png").write_bytes(b"an image")
    arguments = [str(folder / "images"), "--labels", str(folder / "maps"), "--out", str(folder / "shards")]
    assert main(["data", "shards", *arguments]) == 2
    assert "a shard would have two files six.maps.png; rename the image or the folder" in capsys.readouterr().err
    assert not list((folder / "shards").glob("*.tar"))


def tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> Path:
    """A tar file of members; those without content have what their ``size`` says of zeros."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([special("a.png", tarfile.SYMTYPE, "/etc/passwd")], "'a.png' is a link, a device or a sparse file"),
        ([("b.png", b"x"), special("a.png", tarfile.LNKTYPE, "b.png")], "'a.png' is a link, a device"),
        ([special("a.png", tarfile.FIFOTYPE)], "'a.png' is a link, a device"),
        ([("../a.png", b"x")], r"'\.\./a.png' leads out of the folder; expected plain paths"),
        ([("/etc/a.png", b"x")], "'/etc/a.png' leads out of the folder"),
        ([("sub/../../a.png", b"x")], "leads out of the folder"),
        ([("a\\..\\b.png", b"x")], "leads out of the folder"),
        ([("a.png", b"x"), ("./a.png", b"y")], "listed more than once: a.png"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, members: list[Any], message: str) -> None:
    path = tar(tmp_path / "s.tar", *members)
    with pytest.raises(ValueError, match=f"s.tar: .*{message}"):
        open_shards(path)


def resized(path: Path, size: bytes) -> Path:
    """The first member says that it has another size."""
    content = bytearray(path.read_bytes())
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 10 + b"\xfc\x00", b"00000100000\0"]
)
def test_sizes_that_the_file_does_not_have(tmp_path: Path, size: bytes) -> None:
    """Too large, far too large, and below 0, with which a reader would go round and round."""
    path = resized(tar(tmp_path / "s.tar", ("a.png", b"x" * 600), ("b.png", b"y")), size)
    with pytest.raises(ValueError, match="s.tar: "):
        open_shards(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"x" * 5000])
def test_what_is_no_tar_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(ValueError, match="s.tar: cannot be read as a tar file"):
        open_shards(tmp_path / "s.tar")
    tar(tmp_path / "s.tar", ("a.png", b"x"), mode="w:gz")
    with pytest.raises(ValueError, match=r"s.tar: cannot be read .*; expected an uncompressed tar file"):
        open_shards(tmp_path / "s.tar")


def test_members_are_found_by_name(tmp_path: Path) -> None:
    tar(tmp_path / "1.tar", ("./sub/b.png", b"bb"), ("a.png", b"aaa"), special("sub", tarfile.DIRTYPE))
    tar(tmp_path / "2.tar", ("c.maps.png", b"c"))
    folder = tmp_path / "*.tar"
    index = open_shards(folder)
    assert index is not None and list(index.names) == ["a.png", "c.maps.png", "sub/b.png"]
    assert isinstance(index.names, Packed)
    assert [read_bytes(folder / name) for name in index.names] == [b"aaa", b"c", b"bb"]
    assert read_bytes(folder / "maps" / "c.png") == b"c" and read_bytes(tmp_path / "1.tar" / "a.png") == b"aaa"
    assert not is_file(folder / "d.png") and not is_file(folder / "maps" / "a.png") and not is_file(folder)
    assert open_shards(tmp_path / "none" / "*.tar") is None and open_shards(tmp_path) is None
    tar(tmp_path / "2.tar", ("d.png", b"dddd"))
    assert open_shards(folder) is not index and read_bytes(folder / "d.png") == b"dddd"


def test_a_folder_may_be_called_like_a_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "a.tar" / "b.png")
    assert open_image(tmp_path / "a.tar" / "b.png").size == (4, 3)
    with pytest.raises(FileNotFoundError, match=r"a.tar/c.png"):
        open_image(tmp_path / "a.tar" / "c.png")


def test_no_shards_are_named(folder: Path) -> None:
    data = module(folder, **SHARDED)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*shards/\*.tar; expected the images"):
        data.setup("fit")
