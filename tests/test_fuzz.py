from __future__ import annotations

from pathlib import Path

import pytest

from tools import fuzz


@pytest.mark.parametrize("name", fuzz.targets())
def test_inputs_are_right_before_they_are_damaged(name: str, tmp_path: Path) -> None:
    target = fuzz.targets()[name]
    for file, content in target.files.items():
        path = tmp_path / file
        path.write_bytes(content)
        target.read(path, tmp_path / "out")


def test_a_short_run_finds_nothing() -> None:
    figures = fuzz.run(400, seed=19)
    assert [(name, f.failures) for name, f in figures.items() if f.forbidden] == []
    assert sum(f.inputs for f in figures.values()) >= 400
    assert all(f.right + f.refused == f.inputs for f in figures.values())
    # the inputs do something: some are still right, most are not
    assert 0 < sum(f.right for f in figures.values()) < sum(f.refused for f in figures.values())


def _stray(path: Path, output: Path) -> None:
    (output / "link" / "x").write_text("")


def _defect(path: Path, output: Path) -> None:
    {}[path]


def _unnamed(path: Path, output: Path) -> None:
    raise fuzz.UserError("something is wrong somewhere")


def _crash(path: Path, output: Path) -> None:
    fuzz.os.kill(fuzz.os.getpid(), fuzz.signal.SIGSEGV)


def _endless(path: Path, output: Path) -> None:
    while True:
        pass


def _greedy(path: Path, output: Path) -> None:
    assert len(bytearray(b"x") * (200 * 2**20))


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_stray, "a file outside"),
        (_defect, "KeyError"),
        (_unnamed, "names no file"),
        (_crash, "signal 11"),
        (_endless, "more than 1 s"),
        (_greedy, "MiB of memory"),
    ],
)
def test_each_forbidden_outcome_is_seen(
    read: fuzz.Callable[[Path, Path], object], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "targets", lambda: {"bad": fuzz.Target({"a.txt": b"1 2"}, read)})
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "MEBIBYTES", 100)
    bad = fuzz.run(2, names=["bad"])["bad"]
    assert bad.inputs == 2 and bad.forbidden >= 1
    assert outcome in bad.failures[0]["outcome"]
