from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestie_pl.data.files import (
    as_it_looks,
    below,
    csv_lines,
    in_one_move,
    is_hidden,
    is_set,
    plain_problem,
    read_json,
    read_names,
    read_xml,
    require_folder,
    write_text,
)
from bestie_pl.errors import UserError, expected_one_of

OUTSIDE = ("../x.png", "a/../../x.png", "/etc/x.png", "..", "..\\x.png", "a\\b.png", "")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_do_not_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the name of a file below"):
        below(tmp_path, name)


@pytest.mark.parametrize("name", [".", "a//b.png", "./a.png", "a/", "a\x00b.png", "a\nb.png", "x" * 256, "ä" * 128])
def test_names_are_plain(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the name of a file below"):
        below(tmp_path, name)


@given(st.text(max_size=40))
def test_what_below_lets_through_is_below(name: str) -> None:
    home = Path("/nowhere/home")
    try:
        path = below(home, name)
    except UserError:
        return
    assert plain_problem(name) == ""
    assert path.is_relative_to(home) and ".." not in path.parts


def test_links_count(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "a.png").write_text("theirs")
    (home / "out").symlink_to(outside)
    (home / "inner").mkdir()
    (home / "in").symlink_to(home / "inner")
    (tmp_path / "named").symlink_to(home)
    with pytest.raises(UserError, match=r"leads out of .*home through a link, to .*outside; name the folder"):
        below(home, "out/a.png")
    assert below(home, "in/a.png") == home / "in" / "a.png"
    # the folder itself may be a link: the user named it
    assert below(tmp_path / "named", "inner/a.png") == tmp_path / "named" / "inner" / "a.png"
    # a file that is a link is read as what it links to, and a writer replaces the link
    (home / "a.png").symlink_to(outside / "a.png")
    assert below(home, "a.png").read_text() == "theirs"
    write_text(below(home, "a.png"), "ours")
    assert (outside / "a.png").read_text() == "theirs" and not (home / "a.png").is_symlink()


def test_the_longest_names_are_written(tmp_path: Path) -> None:
    path = below(tmp_path, "x" * 250 + ".json")
    write_text(path, "[]")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UserError, match="is longer than the 255 bytes"):
        below(tmp_path, "x" * 251 + ".json")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), in_one_move(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("there", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_that_look_the_same_are_found(there: str, asked: str, tmp_path: Path) -> None:
    path = tmp_path / unicodedata.normalize(there, "Präparat é.png")
    path.touch()
    assert as_it_looks(tmp_path / unicodedata.normalize(asked, "Präparat é.png")) == path
    assert as_it_looks(tmp_path / "Pr%C3%A4parat%20%C3%A9.png") == path
    # no way out: what is decoded stays a name
    assert as_it_looks(tmp_path / "%2e%2e%2fx.png") == tmp_path / "%2e%2e%2fx.png"
    assert as_it_looks(tmp_path / "other.png") == tmp_path / "other.png"


def test_hidden(tmp_path: Path) -> None:
    assert is_hidden(tmp_path / "._a.png", tmp_path)
    assert is_hidden(tmp_path / ".ipynb_checkpoints" / "a.png", tmp_path)
    assert not is_hidden(tmp_path / "a" / "b.png", tmp_path)
    assert not is_hidden(tmp_path / ".data" / "a.png", tmp_path / ".data")  # which the user named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, r"a.json: is nested too deeply; expected a list"),
        ("[1", r"a.json: is no JSON \(.*\); expected a list"),
        ('"\\ud800', r"a.json: is no JSON"),
    ],
)
def test_json_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", "a list")


def test_numbers_of_json_fit_into_64_bits(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"[{'9' * 5000}, 1{'0' * 400}, 123456789012345678, -7, 9223372036854775808]")
    found = read_json(tmp_path / "a.json", "numbers")
    assert found == [float("inf"), float("inf"), 123456789012345678, -7, 2.0**63]
    assert [type(number) for number in found] == [float, float, int, int, float]
    assert json.dumps(found[3]) == "-7"


def test_fields_of_a_csv_file_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.csv: line 2: field larger than field limit \(131072\); close its quot"):
        list(csv_lines('a,b\n"' + "x" * 200_000, tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>', "declares a document type or entities"),
        ("<a><b></a>", "is no XML"),
        ("<a>&b;</a>", "is no XML"),
    ],
)
def test_xml_without_entities(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=rf"a.xml: {message}.*; expected annotations"):
        read_xml(tmp_path / "a.xml", "annotations")


@pytest.mark.parametrize("value", [0, False, "0", "", "false", "No ", None, 0.0])
def test_not_set(value: object) -> None:
    assert is_set(value, "") is False


@pytest.mark.parametrize("value", [1, True, "1", "true", "YES"])
def test_set(value: object) -> None:
    assert is_set(value, "") is True


@pytest.mark.parametrize("value", [2, "maybe", [], {}, -1])
def test_neither(value: object) -> None:
    with pytest.raises(UserError, match="iscrowd: .*; expected 0 or 1"):
        is_set(value, "iscrowd")


def test_lists_hold_plain_names(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a\n../b\n")
    with pytest.raises(UserError, match=r"l.txt: '../b' leads out of the folder"):
        read_names(tmp_path / "l.txt")


def test_what_was_meant() -> None:
    assert expected_one_of("nuclues", ["cell", "nucleus"]) == "expected one of cell, nucleus (did you mean 'nucleus'?)"
    assert expected_one_of("CELL ", ["cell", "dog"]) == "expected one of cell, dog (did you mean 'cell'?)"
    assert expected_one_of(7, ["cell"]) == "expected one of cell"
    assert expected_one_of("x", map(str, range(300))).endswith("17, 18, 19 and 280 more")


def test_what_could_not_be_written_is_named(tmp_path: Path) -> None:
    """The system says of a full disk only that it is full."""
    with pytest.raises(OSError, match=r"No space left on device: .*a\.json"):  # noqa: SIM117
        with in_one_move(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(FileNotFoundError, match=r"is no folder: .*a\.png; expected images"):
        require_folder(tmp_path / "a.png", "images")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*b; expected images"):
        require_folder(tmp_path / "b", "images")
