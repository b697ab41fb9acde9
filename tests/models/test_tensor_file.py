"""Files of tensors: nothing of them is executed, damage is named, levels and prefixes are taken off."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bestie_pl.models.tensor_file import differences, read_file, split_content

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(3)}


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_zip, save_legacy, safetensors.torch.save_file])
def test_each_format_gives_the_same_tensors(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if save is safetensors.torch.save_file else "w.pth")
    save(STATE, path)
    content = read_file(path)
    assert content.keys() == STATE.keys()
    for name, value in STATE.items():
        assert content[name].dtype == value.dtype and content[name].equal(value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("beside", [True, False])
def test_nothing_of_a_file_is_executed(save: Callable[[Any, Path], None], beside: bool, tmp_path: Path) -> None:
    path, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    save({"model": STATE, "args": Trap(sprung)} if beside else Trap(sprung), path)
    with pytest.raises(ValueError, match=r"w\.pth is no file of tensors") as error:
        read_file(path)
    assert not sprung.exists()
    assert "weights_only" not in str(error.value), "no advice to load it all the same"
    if save is save_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works"


def test_objects_are_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Path("objects")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"needs pathlib\.\w+, which may run code; .* save the state dict alone"):
        read_file(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 20, 100, -1])
def test_damaged_files_are_named(suffix: str, kept: int, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_zip(STATE, whole) if suffix == ".pth" else safetensors.torch.save_file(STATE, whole)
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"cut\{suffix} is no file of tensors .* damaged or of another kind"):
        read_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*none.pth"):
        read_file(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path)


names = st.text("abm.", min_size=1, max_size=6).filter(lambda name: not name.startswith(("module.", "model.")))


@given(
    st.sets(names, min_size=1, max_size=4),
    st.sampled_from(["", "module.", "model.", "module.model."]),
    st.sampled_from([[], ["model"], ["state_dict"], ["model", "state_dict"]]),
)
def test_levels_and_prefixes_come_off_and_the_rest_is_beside(keys: set[str], prefix: str, levels: list[str]) -> None:
    tensors = {key: torch.tensor(float(n)) for n, key in enumerate(sorted(keys))}
    content: dict[str, Any] = {prefix + key: value for key, value in tensors.items()}
    for level in levels:
        content = {level: content, f"beside {level}": 1}
    found, beside = split_content(content, Path("w.pth"))
    assert found == tensors
    assert beside == {f"beside {level}": 1 for level in levels}


def test_a_prefix_of_some_names_only_stays() -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert split_content(mixed, Path("w.pth"))[0].keys() == mixed.keys()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "'state_dict'$"),
        (torch.zeros(2), "'state_dict'$"),
        ({"model": {}}, "'state_dict'$"),
        ({"net": STATE, "epoch": 3}, r"; found 'net' \(dict\), 'epoch' \(int\)$"),
        (STATE | {"_extra_state": None}, r"; found '_extra_state' \(NoneType\)$"),
    ],
)
def test_content_without_tensors_by_name_is_refused(content: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^w\.pth holds no tensors by name .*{found}"):
        split_content(content, Path("w.pth"))


shapes = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([(), (1,), (2,), (2, 1)]))


@given(shapes, shapes, st.sets(st.sampled_from("xyz")))
def test_differences_name_every_tensor_that_is_not_as_wanted(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], unknown: set[str]
) -> None:
    def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    text = differences(zeros(found), zeros(wanted), unknown)
    parts = []
    if missing := [name for name in sorted(wanted) if name not in found]:
        parts.append(f"{len(missing)} tensors missing: {', '.join(missing)}")
    if wrong := [n for n in found if n in wanted and found[n] != wanted[n]]:
        shapes = [f"{n} {found[n]} instead of {wanted[n]}" for n in wrong]
        parts.append(f"{len(wrong)} tensors of another shape: {', '.join(shapes)}")
    if unknown:
        parts.append(f"{len(unknown)} tensors unknown: {', '.join(sorted(unknown))}")
    assert text == "; ".join(parts)


def test_long_lists_are_cut() -> None:
    wanted = {f"t{n:02}": torch.zeros(1) for n in range(12)}
    text = differences({}, wanted)
    assert text.startswith("12 tensors missing: t00, t01") and text.endswith("t07 and 4 more")


def test_an_archive_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    """A few kilobytes could ask for any memory."""
    small, bomb = tmp_path / "small.ckpt", tmp_path / "bomb.ckpt"
    torch.save({"a": torch.zeros(1_000_000)}, small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ValueError, match="claims 4.* bytes of tensors in a file of"):
        read_file(bomb)
    assert torch.equal(read_file(small)["a"], torch.zeros(1_000_000))
