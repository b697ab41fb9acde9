"""``bestie-pl pipeline``: what is run, what is kept, and what an interruption leaves."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import pytest
import yaml

from bestie_pl.cli.commands import pipeline
from bestie_pl.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[3]

Run = Callable[..., int]


def write(folder: Path, **changes: Any) -> Path:
    """Three stages: two that make a file of what they read, and one beside them."""
    (folder / "settings.yaml").write_text("lr: 1\n")
    (folder / "tags.csv").write_text("one\n")
    content: dict[str, Any] = {
        "folder": str(folder / "runs"),
        "options": ["--root=data"],
        "stages": {
            "first": {
                "commands": [f"fit --config {folder}/settings.yaml", "predict --write={first}/maps"],
                "inputs": [str(folder / "tags.csv")],
                "outputs": ["{first}/maps"],
                "verdict": {"mAP50": ["scores.json", "scores", "test/map50"]},
            },
            "second": {
                "commands": ["labels --read={first}/maps --write={second}/labels.json"],
                "inputs": ["{first}/maps"],
                "outputs": ["{second}/labels.json"],
            },
            "other": {"commands": ["test --write={other}/out"], "outputs": ["{other}/out"]},
        },
    }
    for name, fields in changes.items():
        content["stages"][name] = content["stages"].get(name, {}) | fields
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines as they are run; each writes what it reads, or its words, to the file that it should make."""
    lines: list[list[str]] = []

    def run(words: Sequence[str], log: TextIO) -> int:
        lines.append(list(words))
        values = dict(word.removeprefix("--").split("=", 1) for word in words[1:] if "=" in word)
        if "write" in values:
            output = Path(values["write"])
            source = Path(values["read"]).read_text() if "read" in values else "made"
            output.write_text(source)
            (output.parent / "scores.json").write_text('{"scores": {"test/map50": 0.51234}}')
        return 1 if "fail" in words else 0

    monkeypatch.setattr(pipeline, "run_command", run)
    return lines


def verbs(lines: list[list[str]]) -> list[str]:
    found = [line[0] for line in lines]
    lines.clear()
    return found


def test_stages_run_in_order_and_each_once(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert main(["pipeline", "--config", str(path)]) == 0
    runs = tmp_path / "runs"
    assert ran[0] == [
        *("fit", "--config", f"{tmp_path}/settings.yaml", "--root=data"),
        f"--trainer.default_root_dir={runs}/first",
    ]
    assert ran[2] == ["labels", f"--read={runs}/first/maps", f"--write={runs}/second/labels.json", "--root=data"]
    assert verbs(ran) == ["fit", "predict", "labels", "test"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("first ") and lines[0].endswith("made  mAP50 0.5123")
    assert main(["pipeline", "--config", str(path)]) == 0
    assert verbs(ran) == []
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[:3]] == ["kept"] * 3


def change_settings(folder: Path) -> None:
    (folder / "settings.yaml").write_text("lr: 2\n")


def change_data(folder: Path) -> None:
    (folder / "tags.csv").write_text("two\n")


def change_command(folder: Path) -> None:
    write(folder, first={"commands": ["fit --lr=3", "predict --write={first}/maps"]})


def damage_output(folder: Path) -> None:
    (folder / "runs/first/maps").write_text("damaged")


def lose_record(folder: Path) -> None:
    """As after a kill."""
    (folder / "runs/first.done.json").unlink()


@pytest.mark.parametrize("change", [change_settings, change_data, change_command, damage_output, lose_record])
def test_a_change_redoes_its_stage_and_what_changes_with_it(
    change: Callable[[Path], None], ran: list[list[str]], tmp_path: Path
) -> None:
    path = write(tmp_path)
    main(["pipeline", "--config", str(path)])
    outputs = [tmp_path / "runs" / name for name in ("first/maps", "second/labels.json", "other/out")]
    before = [output.read_bytes() for output in outputs]
    verbs(ran)
    change(tmp_path)
    (tmp_path / "runs/first/left").write_text("by the run before")
    main(["pipeline", "--config", str(path)])
    assert verbs(ran) == ["fit", "predict"], "its output is the same as before, so the next stage stays"
    assert not (tmp_path / "runs/first/left").exists()
    assert [output.read_bytes() for output in outputs] == before
    main(["pipeline", "--config", str(path)])
    assert verbs(ran) == []


def test_another_output_redoes_the_stages_after_it(ran: list[list[str]], tmp_path: Path) -> None:
    path = write(tmp_path)
    main(["pipeline", "--config", str(path)])
    verbs(ran)
    write(tmp_path, first={"commands": ["predict --read=" + str(tmp_path / "tags.csv") + " --write={first}/maps"]})
    main(["pipeline", "--config", str(path)])
    assert verbs(ran) == ["predict", "labels"]


def test_other_code_redoes_all(ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    main(["pipeline", "--config", str(path)])
    verbs(ran)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/code.py").write_text("x = 1\n")
    monkeypatch.setattr(pipeline, "PACKAGE", tmp_path / "package")
    main(["pipeline", "--config", str(path)])
    assert verbs(ran) == ["fit", "predict", "labels", "test"]


def test_chosen_stages_come_with_what_they_rest_on(ran: list[list[str]], tmp_path: Path) -> None:
    path = write(tmp_path)
    main(["pipeline", "--config", str(path), "--stages", "other", "--folder", str(tmp_path / "elsewhere")])
    assert verbs(ran) == ["test"] and (tmp_path / "elsewhere/other/out").is_file()
    main(["pipeline", "--config", str(path), "--stages", "second"])
    assert verbs(ran) == ["fit", "predict", "labels"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": {"comands": []}}, "pipeline.yaml: stage first: unknown field 'comands'; expected commands, inputs"),
        ({"a b": {"commands": ["fit"]}}, "stage a b: expected a name of letters"),
        ({"second": {"inputs": ["{third}/x"]}}, "stage second: {third} is no earlier stage, or not among `inputs`"),
        ({"second": {"inputs": []}}, "stage second: {first} is no earlier stage, or not among `inputs`"),
        ({"first": {"inputs": ["/no/such.csv"]}}, "stage first: no input /no/such.csv; make it first"),
        ({"first": {"outputs": ["{first}/cues"]}}, "first/cues; correct its `outputs` or its commands"),
        ({"first": {"commands": ["fit fail"]}}, "stage first: `bestie-pl fit` failed; "),
        ({"first": {"verdict": {"mAP": ["scores.json", "map"]}}}, "verdict mAP: scores.json has no 'map'"),
    ],
)
def test_errors_name_the_stage(
    changes: dict[str, Any], message: str, ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, **changes)
    assert main(["pipeline", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("bestie-pl: error: ")
    assert not (tmp_path / "runs/first.done.json").exists()


def test_a_folder_that_no_pipeline_has_made_is_left_alone(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    kept = tmp_path / "runs/second/kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("by hand")
    assert main(["pipeline", "--config", str(path)]) == 2
    assert "runs/second is there and no pipeline has made it: stage second" in capsys.readouterr().err
    assert ran == [] and kept.read_text() == "by hand" and [p.name for p in kept.parent.iterdir()] == ["kept.txt"]
    kept.unlink()  # an empty folder is anybody's
    assert main(["pipeline", "--config", str(path)]) == 0


def test_unknown_stages_and_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "--config", str(write(tmp_path)), "--stages", "third"]) == 2
    assert "no such stage; there are first, second, other" in capsys.readouterr().err
    assert main(["pipeline", "--config", str(tmp_path / "absent.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("stages: [")
    assert main(["pipeline", "--config", str(tmp_path / "broken.yaml")]) == 2
    assert "is no YAML" in capsys.readouterr().err


def understood(command: Sequence[str]) -> int:
    """Exit status of the parser that a command line of a pipeline meets; nothing is run."""
    from bestie_pl.cli.commands import labels
    from bestie_pl.cli.lightning import run

    if command[0] == "labels":
        labels._parser().parse_args(list(command[1:]))
        return 0
    with pytest.raises(SystemExit) as stop:
        run([*command, "--print_config"])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("data_set", ["animals", "coco", "nuclei", "shapes", "voc"])
def test_shipped_pipelines_are_command_lines_that_are_understood(
    data_set: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    stages = pipeline.read_pipeline(Path(f"configs/{data_set}/pipeline.yaml"))
    for stage in stages:
        for command in stage.commands:
            assert understood(command) == 0, (stage.name, command)
    assert understood([*stages[0].commands[0], "--trainer.max_stepz=1"]) == 2
    assert "max_stepz" in capsys.readouterr().err


def test_a_killed_pipeline_ends_its_command_and_gives_the_same_file_when_started_again(tmp_path: Path) -> None:
    """With the real command line; ``points`` makes a file from one that the test wrote."""
    csv = tmp_path / "points.csv"
    csv.write_text("image,x,y,class\n" + "".join(f"{n}.jpg,1,2,cat\n" for n in range(2000)))
    assert main(["points", str(csv), "--from", "csv", "--output", str(tmp_path / "points.json")]) == 0
    command = f"points {csv} --from csv --output {{one}}/points.json"
    stage = {"commands": [command], "inputs": [str(csv)], "outputs": ["{one}/points.json"]}
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"folder": str(tmp_path / "runs"), "stages": {"one": stage}}))
    line = [sys.executable, "-m", "bestie_pl", "pipeline", "--config", str(path)]
    log, output = tmp_path / "runs/one.log", tmp_path / "runs/one/points.json"

    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        while not log.is_file() or not log.read_text():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # its command is on the way
    assert process.returncode == 128 + signal.SIGTERM
    assert not output.exists() and not (tmp_path / "runs/one.done.json").exists()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("one ") and "made" in done.stdout
    assert output.read_bytes() == (tmp_path / "points.json").read_bytes()


def test_what_another_pipeline_has_just_made_is_kept(ran: list[list[str]], tmp_path: Path) -> None:
    """It looks again once it has the stage to itself."""
    config = str(write(tmp_path))
    assert pipeline.main(["-c", config]) == 0
    record = tmp_path / "runs/first.done.json"
    content = record.read_text()
    verbs(ran)
    record.unlink()
    with (tmp_path / "runs/first.log").open("a") as log, ThreadPoolExecutor(1) as pool:
        fcntl.flock(log, fcntl.LOCK_EX)
        waiting = pool.submit(pipeline._run_if_needed, pipeline.read_pipeline(Path(config))[0], "code")
        time.sleep(0.3)
        made = json.loads(content)
        record.write_text(json.dumps(made | {"key": pipeline._key(pipeline.read_pipeline(Path(config))[0], "code")}))
        fcntl.flock(log, fcntl.LOCK_UN)
        assert waiting.result()[1] is False
    assert verbs(ran) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stages": ["first"]}, "expected `folder` and `stages`, a name and its fields each"),
        ({"first": {"commands": ["fit 'x"]}}, r'stage first: the command "fit \'x" cannot be read \(No closing'),
        ({"first": {"inputs": "tags.csv"}}, "stage first: `inputs` is no list"),
        ({"first": {"verdict": {"mAP50": None}}}, "stage first: expected `verdict: LABEL: "),
    ],
)
def test_another_form_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    content = yaml.safe_load(path.read_text())
    for name, value in change.items():
        if name == "stages":
            content["stages"] = value
        else:
            content["stages"][name] |= value
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=says):
        pipeline.read_pipeline(path)


def test_empty_fields_and_verdicts_without_a_number_are_fine(ran: list[list[str]], tmp_path: Path) -> None:
    verdict = {"verdict": {"mAP50": ["scores.json", "none"]}}
    config = write(tmp_path, other={"inputs": None, **verdict})
    assert pipeline.read_pipeline(config)[2].inputs == ()
    stage = pipeline.read_pipeline(config)[2]
    stage.folder.mkdir(parents=True)
    (stage.folder / "scores.json").write_text('{"none": null}')
    assert pipeline._verdict(stage) == {}


def test_an_input_behind_a_link_counts(ran: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.txt").write_text("one")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "2024").symlink_to(tmp_path / "disk")
    path = write(tmp_path, first={"inputs": [str(tmp_path / "images")]})
    assert main(["pipeline", "--config", str(path)]) == 0
    verbs(ran)
    (tmp_path / "disk" / "a.txt").write_text("two")
    assert main(["pipeline", "--config", str(path)]) == 0
    assert verbs(ran)[:2] == ["fit", "predict"]
