"""Files of tags by class name: three forms with the same content, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestie_pl.data.formats.tags import TagTable, read_tags

LISTED = "image,tags,split\nsub/one.jpg,cat;dog,train\ntwo.jpg,,val\nthree.jpg,dog,train\n"
FLAGS = "split,image,dog,cat\ntrain,sub/one.jpg,1,1\nval,two.jpg,0,0\ntrain,three.jpg,1,0\n"
OBJECT = {
    "sub/one.jpg": {"tags": ["cat", "dog"], "split": "train"},
    "two.jpg": {"tags": [], "split": "val"},
    "three.jpg": {"split": "train", "tags": ["dog"]},
}
FORMS = {"listed.csv": LISTED, "flags.csv": FLAGS, "tags.json": json.dumps(OBJECT)}


def read(folder: Path, text: str, name: str = "tags.csv", **settings) -> TagTable:
    (folder / name).write_text(text, encoding="utf-8")
    return read_tags(folder / name, **settings)


def content(table: TagTable) -> tuple[list[str], list[list[bool]], list[str]]:
    tags = table.dense(torch.arange(len(table.files))).tolist()
    return list(table.files), tags, [table.splits[n] if n >= 0 else "" for n in table.split.tolist()]


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_say_the_same(tmp_path: Path, name: str) -> None:
    table = read(tmp_path, FORMS[name], name)
    assert table.class_names == ("cat", "dog")
    tags = [[True, True], [False, False], [False, True]]
    assert content(table) == (["sub/one.jpg", "two.jpg", "three.jpg"], tags, ["train", "val", "train"])
    assert table.dense(torch.tensor([2, 0])).tolist() == [tags[2], tags[0]]
    assert table.dense(torch.tensor([], dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("name", FORMS)
def test_class_names_give_the_order_and_more(tmp_path: Path, name: str) -> None:
    table = read(tmp_path, FORMS[name], name, class_names=["dog", "bird", "cat"])
    assert table.class_names == ("dog", "bird", "cat")
    assert content(table)[1] == [[True, False, True], [False] * 3, [True, False, False]]
    with pytest.raises(ValueError, match=rf"{name}: .*'dog'.* class_names|{name}: .*'dog'; expected one of cat"):
        read(tmp_path, FORMS[name], name, class_names=["cat"])


def test_json_lists_need_no_split(tmp_path: Path) -> None:
    table = read(tmp_path, '{"one": ["traffic light"], "two": ["a;b"]}', "tags.json")
    assert table.class_names == ("a;b", "traffic light") and table.splits == () and table.split.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("a,polar bear\nb,\nc,bird", ("bird", "polar bear")),
        ('a,"cat,dog"\nb,polar bear', ("cat", "dog", "polar bear")),
        ("a,traffic light;dog\nb,traffic light", ("dog", "traffic light")),
        ("a,traffic light;\nb,dog ; cat", ("cat", "dog", "traffic light")),
    ],
)
def test_blanks_part_no_tags(tmp_path: Path, rows: str, names: tuple[str, ...]) -> None:
    assert read(tmp_path, f"image,tags\n{rows}\n").class_names == names


def test_tags_between_blanks_are_found_out(tmp_path: Path) -> None:
    text = "image,tags\na,cat\nb,dog\nc,dog cat\n"
    with pytest.raises(ValueError, match=r"the tag 'dog cat', where dog and cat are tags too: .*\(dog;cat\)"):
        read(tmp_path, text)
    assert read(tmp_path, text, class_names=["cat", "dog", "dog cat"]).class_names[2] == "dog cat"
    assert read(tmp_path, text + "d,cat;\n").class_names == ("cat", "dog", "dog cat")


def test_columns_that_are_no_class(tmp_path: Path) -> None:
    text = "image,cat,license,dog\na.jpg,1,CC-BY;SA,0\nb.jpg,0,,1\n"
    table = read(tmp_path, text, ignored_columns=["license"])
    assert table.class_names == ("cat", "dog") and content(table)[1] == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="tags.csv: line 2: license: 'CC-BY;SA'; expected 1 if .* in ignored_columns"):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="tags.csv: no column 'licence', which ignored_columns names; there are image"):
        read(tmp_path, text, ignored_columns=["licence"])
    with pytest.raises(
        ValueError, match=r"the column 'license' is no class; expected one of cat, dog, or name it in ign"
    ):
        read(tmp_path, text, class_names=["cat", "dog"])


def test_tables_of_other_programs(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, quotes, names with commas and in other scripts."""
    text = '\ufeffimage,tags\r\n"größe, 1.jpg",cat;猫\r\n\r\nb;c.jpg,cat\r\n'
    (tmp_path / "tags.csv").write_bytes(text.encode())
    table = read_tags(tmp_path / "tags.csv")
    assert list(table.files) == ["größe, 1.jpg", "b;c.jpg"] and table.class_names == ("cat", "猫")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is ''; expected names of columns with commas, each once, one of them `image`"),
        ("image;tags\na;cat\n", "the first line is 'image;tags'; expected names of columns with commas"),
        (
            "image,cat,cat\na,1,1\n",
            "the first line is 'image,cat,cat'; expected names of columns with commas, each once",
        ),
        ("image,tags,author\na,cat,me\n", "columns author beside tags; name them in ignored_columns"),
        ("image,tags\na,cat\nb\n", r"line 3: 1 columns; expected 2: \['b'\]"),
        ("image,tags\na,cat,dog\n", "line 2: 3 columns; expected 2: .*: several tags stand between semicolons"),
        ("image,tags\n ,cat\n", "line 2: image: '' is empty; expected a plain path below the folder of the images"),
        ("image,tags\n../a.jpg,cat\n", "line 2: image: '../a.jpg' leads out of the folder; expected a plain path"),
        (
            "image,tags\n/data/a.jpg,cat\n",
            "line 2: image: '/data/a.jpg' leads out of the folder; expected a plain path",
        ),
        ("image,tags\na.jpg,cat\na.png,dog\n", "listed more than once: a; image names must be unique, also without"),
        ("image,tags\na,\n", "holds no tag; expected a file of tags"),
        ("image,tags\n", "holds no image; expected a file of tags"),
        ("image,cat\na,yes\n", "line 2: cat: 'yes'; expected 1 if the image holds this class, else 0"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"tags.csv: {message}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('["a"]', 'holds a list; expected {"image": '),
        ('{"a": "cat"}', "a: 'cat'; expected "),
        ('{"a": {"split": "val"}}', "a: {'split': 'val'}; expected "),
        ('{"a": {"tags": [], "label": "cat"}}', "a: .*'label': 'cat'.*; expected "),
        ('{"a": [1]}', r"a: tags: \[1\]; expected a list of class names"),
        ('{"a": {"tags": ["cat"], "split": 1}}', "a: split: 1; expected its name"),
        ('{"a": []}', "holds no tag; expected a file of tags"),
    ],
)
def test_wrong_json(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"tags.json: {message}"):
        read(tmp_path, text, "tags.json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*none.csv; expected a file of tags, CSV or JSON"):
        read_tags(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("image,tags\ngröße.jpg,cat\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv: is no UTF-8 text"):
        read_tags(tmp_path / "latin.csv")


FILES = st.sampled_from(["a", "b/a", "b/größe 1", "c.x", "d"])
WORDS = st.text("ab猫-'.", min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(FILES, st.sets(WORDS, max_size=3), min_size=1))
def test_listed_and_json_forms_agree(tmp_path_factory: pytest.TempPathFactory, tags: dict[str, set[str]]) -> None:
    if not any(tags.values()):
        return
    folder = tmp_path_factory.mktemp("tags")
    csv = "image,tags\n" + "".join(f"{file},{''.join(f'{tag};' for tag in own)}\n" for file, own in tags.items())
    listed = read(folder, csv)
    plain = read(folder, json.dumps({file: list(own) for file, own in tags.items()}), "tags.json")
    assert listed.class_names == plain.class_names == tuple(sorted(set().union(*tags.values())))
    assert content(listed) == content(plain)
    named = [{name for name, tag in zip(plain.class_names, row, strict=True) if tag} for row in content(plain)[1]]
    assert dict(zip(plain.files, named, strict=True)) == tags


@pytest.mark.parametrize("tag", ["cat, dog", "dog,cat"])
def test_commas_among_semicolons(tmp_path: Path, tag: str) -> None:
    text = f'image,tags\na,cat;\nb,dog;\nc,"{tag}"\n'
    with pytest.raises(ValueError, match=f"the tag '{tag}', where .* are tags too: separate tags by semicolons"):
        read(tmp_path, text)
    assert read(tmp_path, text, class_names=["cat", "dog", tag]).class_names[2] == tag
    assert read(tmp_path, 'image,tags\na,cat;\nb,"cell, nucleus"\n').class_names == ("cat", "cell, nucleus")
