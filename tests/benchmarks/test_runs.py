"""The benchmarks run, and say of each bar whether it is met; nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main


def test_results_are_stored_with_machine_and_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["waits", "throughput", "--device", "cpu", "--threads", "1", "--quick", "--results", str(tmp_path)])
    contents = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(contents) == {"waits_cpu", "throughput_cpu"}
    for content in contents.values():
        assert content["machine"]["quick"] and content["machine"]["threads"] == 1
        assert all(isinstance(row["value"], float | int) for row in content["rows"])
    (waits,) = (row for row in contents["waits_cpu"]["rows"] if "bar" in row)
    assert (waits["value"], waits["bar"], waits["met"]) == (2, 2, True)
    assert "met: bar <= 2" in capsys.readouterr().out


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["wait", "--device", "cpu"])
    assert f"no benchmark wait; there are {', '.join(BENCHMARKS)}" in capsys.readouterr().err.replace("\n", " ")
