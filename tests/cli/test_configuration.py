"""Configurations from elsewhere: bounded, and names in them are texts."""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import get_loader

from bestie_pl.cli.configuration import guard_configurations, load_configuration
from bestie_pl.errors import UserError


@pytest.fixture
def load() -> Callable[[str], Any]:
    guard_configurations()
    guard_configurations()  # is not guarded twice
    guarded = get_loader("yaml")
    assert isinstance(guarded, partial) and guarded.func is load_configuration
    assert not isinstance(guarded.args[0], partial)
    return guarded


def test_aliases_are_counted_with_what_they_stand_for(load: Callable[[str], Any]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"aliases \(\*name\) of the configuration unfold into \d+ values; expected at"):
        load("\n".join(lines))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
    assert load("a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}


def test_what_holds_itself(load: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="nested too deeply, or holds itself"):
        load("a: &a [*a]")


@pytest.mark.parametrize("name", ["no", "on", "Yes", "12", "null", "1.5"])
def test_names_that_yaml_reads_as_something_else(name: str, load: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="class_names: YAML reads one of the names as .*; quote it"):
        load(f"data:\n  init_args: {{class_names: [cat, {name}]}}")
    with pytest.raises(UserError, match="class_names: YAML reads"):
        load(f"data.init_args.class_names: [{name}]")
    assert load(f"class_names: ['{name}']") == {"class_names": [name]}


def test_numbers_without_end(load: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="a value of the configuration cannot be read"):
        load(f"data: {'9' * 5000}")


def test_settings_of_other_kinds_are_left_alone(load: Callable[[str], Any]) -> None:
    assert load("scale_range: [1, 2]\nclass_names: null\nnames: [no]") == {
        "scale_range": [1, 2],
        "class_names": None,
        "names": [False],
    }


@pytest.mark.parametrize("command", [["data", "check"], ["labels"], ["sheet"]])
def test_the_command_line_says_it_in_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bestie_pl.cli import main as cli

    path = tmp_path / "c.yaml"
    path.write_text("data: {class_path: bestie_pl.FolderDataModule, init_args: {root: x, class_names: [no, cat]}}\n")
    with_status = 0
    try:
        with_status = cli.main([*command, "--config", str(path)])
    except SystemExit as stop:
        with_status = int(stop.code or 0)
    said = capsys.readouterr().err
    assert with_status == 2 and said.startswith("bestie-pl: error: ") and "quote it" in said and "Traceback" not in said
