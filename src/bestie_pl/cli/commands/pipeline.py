"""``bestie-pl pipeline``: the commands of several stages in order, each run only if something it rests on changed."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml  # which Lightning needs too
from tqdm import tqdm  # type: ignore[import-untyped]  # which it needs as well

PACKAGE = Path(__file__).resolve().parents[2]
TRAINED = ("fit", "validate", "test", "predict")
"""Commands that leave what they write in ``trainer.default_root_dir``: the stage's folder."""
FIELDS = {"commands", "inputs", "outputs", "verdict"}
PATIENCE = 20
"""Seconds in which what a killed pipeline left must have ended: workers look every five whether they are needed."""
MARK = ".stage"
"""In a stage's folder, so that nothing is removed from a folder that was there before."""
FORM = "see configs/shapes/pipeline.yaml for the form"


@dataclass(frozen=True)
class Stage:
    """Commands that are run together; their ``folder``, which they make, is emptied before they run.

    ``commands`` are words without ``bestie-pl``. ``verdict``: for each label a JSON file and the keys of a number.
    """

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    verdict: Mapping[str, Sequence[str]]

    def beside(self, suffix: str) -> Path:
        """A file beside the folder: ``.log`` is what commands print, ``.done.json`` what a finished stage leaves."""
        return self.folder.with_name(self.name + suffix)

    def is_own(self) -> bool:
        """Whether the folder that is there is one that a pipeline has made, or empty."""
        return self.folder.is_dir() and ((self.folder / MARK).exists() or not any(self.folder.iterdir()))

    def clear(self) -> None:
        """Make the folder, or empty it: what an interrupted run left could be taken for the next one's."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / MARK).touch()
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARK:
                path.unlink()


def main(args: list[str]) -> int:
    """Run the stages that the command line asks for, one line each.

    A stage is skipped while its commands, the configurations they name, the contents of its inputs and the package's
    code are those of its last run, and its outputs are as that run left them. A stage that was interrupted starts anew.

    Raises:
        FileNotFoundError: No such file, or an input that no stage makes.
        ValueError: Names file and field of what is wrong, the stage that failed, or a folder that no pipeline has made.
    """
    options = _parser().parse_args(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the command ends with it
    stages = read_pipeline(Path(options.config), options.folder)
    wanted = _needed(stages, options.stages) if options.stages else stages
    for stage in wanted:
        if stage.folder.exists() and not stage.is_own():
            raise ValueError(
                f"{stage.folder} is there and no pipeline has made it: stage {stage.name} would empty it; move it, or "
                "give another --folder"
            )
    code = _hash(file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.py")))
    start, width = time.monotonic(), max(len(stage.name) for stage in wanted)
    for stage in wanted:
        if absent := [path for path in stage.inputs if not path.exists()]:
            raise FileNotFoundError(f"{options.config}: stage {stage.name}: no input {absent[0]}; make it first")
        record, made = _run_if_needed(stage, code)
        verdict = ", ".join(f"{label} {number:.4g}" for label, number in record["verdict"].items())
        print(f"{stage.name:<{width}}{record['seconds']:8.0f} s  {'made' if made else 'kept'}  {verdict}", flush=True)
    print(f"{len(wanted)} stages, {time.monotonic() - start:.0f} s; all in {stages[0].folder.parent}")
    return 0


def read_pipeline(path: Path, folder: str | None = None) -> list[Stage]:
    """The stages of a YAML file of ``folder``, ``options`` and ``stages``, in its order.

    ``{NAME}`` stands for the folder of the stage itself or of an earlier one that ``inputs`` name. ``options`` are
    added to every command, and ``trainer.default_root_dir`` to those that have a trainer.

    Args:
        path: The file.
        folder: In place of the file's.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It has another form, or a stage rests on one that stands later or is not among its inputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected the stages of a pipeline, {FORM}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is no YAML ({error}); restore it") from error
    parts = content if isinstance(content, dict) else {}
    if not isinstance(parts.get("stages"), dict) or not parts["stages"] or not (folder or parts.get("folder")):
        raise ValueError(f"{path}: expected `folder` and `stages`, a name and its fields each; {FORM}")
    root = Path(folder or content["folder"]).resolve()
    folders: dict[str, str] = {}
    stages = []
    for name, entry in content["stages"].items():
        where = f"{path}: stage {name}"
        if not re.fullmatch(r"\w[\w-]*", str(name)) or not isinstance(entry, dict) or not entry.get("commands"):
            raise ValueError(f"{where}: expected a name of letters, digits and _, and `commands` in it; {FORM}")
        if unknown := sorted(entry.keys() - FIELDS):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(sorted(FIELDS))}")
        if problem := next((f for f in FIELDS - {"verdict"} if not isinstance(entry.get(f) or [], list)), None):
            raise ValueError(f"{where}: `{problem}` is no list; {FORM}")
        inputs = [_filled(text, folders, where) for text in entry.get("inputs") or ()]
        read = {other: at for other, at in folders.items() if any(Path(text).is_relative_to(at) for text in inputs)}
        own = read | {str(name): str(root / str(name))}
        trained = f"--trainer.default_root_dir={own[str(name)]}"
        commands = []
        for text in entry["commands"]:
            try:
                given = shlex.split(text)
            except (ValueError, AttributeError) as error:
                raise ValueError(
                    f"{where}: the command {text!r} cannot be read ({error}); correct its quotes"
                ) from error
            words = [_filled(word, own, where) for word in (*given, *(content.get("options") or ()))]
            commands.append((*words, trained) if words[0] in TRAINED else tuple(words))
        outputs = [Path(_filled(text, own, where)) for text in entry.get("outputs") or ()]
        folders |= own
        stages.append(
            Stage(
                name=str(name),
                folder=root / str(name),
                commands=tuple(commands),
                inputs=tuple(Path(text) for text in inputs),
                outputs=tuple(outputs),
                verdict=_verdicts(entry.get("verdict") or {}, where),
            )
        )
    return stages


def digest(path: Path) -> str:
    """Of a file's content, or of all files in a folder with their names; of nothing, an empty text."""
    if path.is_dir():
        from bestie_pl.data.files import files_below  # here, not above: it takes a second

        files = files_below(path)
        return _hash(f"{file.relative_to(path)}\0{digest(file)}" for file in files)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _filled(text: str, folders: Mapping[str, str], where: str) -> str:
    """The text with the folders of stages in it."""

    def folder_of(match: re.Match[str]) -> str:
        if match[1] not in folders:
            known = f"expected one of {', '.join(folders)}" if folders else "no stage stands before it"
            raise ValueError(f"{where}: {match[0]} is no earlier stage, or not among `inputs`; {known}")
        return folders[match[1]]

    return re.sub(r"\{(\w[\w-]*)\}", folder_of, str(text))


def _needed(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The named stages and those that they rest on, in order."""
    if unknown := set(names) - {stage.name for stage in stages}:
        raise ValueError(f"--stages {min(unknown)}: no such stage; there are {', '.join(s.name for s in stages)}")
    wanted = set(names)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= {s.name for s in stages if any(path.is_relative_to(s.folder) for path in stage.inputs)}
    return [stage for stage in stages if stage.name in wanted]


def _key(stage: Stage, code: str) -> str:
    """Digest of all that a stage rests on."""
    words = [part for command in stage.commands for word in command for part in (word, word.partition("=")[2])]
    settings = sorted({word for word in words if word.endswith((".yaml", ".yml"))})
    contents = [f"{path}\0{digest(path)}" for path in (*map(Path, settings), *stage.inputs)]
    return _hash([code, *map("\0".join, stage.commands), *contents])


def _run_if_needed(stage: Stage, code: str) -> tuple[dict[str, Any], bool]:
    """The record of a stage, and whether it was run for it; of two pipelines on one folder one waits or gives up."""
    path = stage.beside(".done.json")
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with stage.beside(".log").open("a", encoding="utf-8") as log:
        _lock(log)
        key = _key(stage, code)
        record = json.loads(path.read_text()) if path.is_file() else {}
        if record.get("key") == key and record["outputs"] == [digest(output) for output in stage.outputs]:
            return record, False
        path.unlink(missing_ok=True)
        record = {"key": key, **_run(stage, log)}
        from bestie_pl.data.files import write_json  # here, not above: it takes a second

        write_json(path, record | {"outputs": [digest(output) for output in stage.outputs]})
        return record, True


def _run(stage: Stage, log: TextIO) -> dict[str, Any]:
    """Run a stage's commands one after the other."""
    start = time.monotonic()
    log.truncate(0)
    stage.clear()
    for words in stage.commands:
        print(f"$ bestie-pl {shlex.join(words)}", file=log, flush=True)
        if run_command(words, log):
            raise ValueError(f"stage {stage.name}: `bestie-pl {words[0]}` failed; {log.name} says why")
    if absent := [path for path in stage.outputs if not path.exists()]:
        raise ValueError(f"stage {stage.name} did not make {absent[0]}; correct its `outputs` or its commands")
    return {"seconds": round(time.monotonic() - start, 1), "verdict": _verdict(stage)}


def run_command(words: Sequence[str], log: TextIO) -> int:
    """Exit status of a ``bestie-pl`` command; if this process is interrupted, it ends with all that it started."""
    line = [sys.executable, "-m", "bestie_pl", *words]
    what = f"{Path(log.name).stem}: {words[0]}"
    with (
        tqdm(desc=what, bar_format="{desc} {elapsed}", disable=None, leave=False) as clock,
        subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    clock.refresh()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _lock(log: TextIO) -> None:
    """Lock a stage's log, which its commands and their workers hold as long as they live, whoever started them."""
    for _ in range(PATIENCE):
        try:
            return fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(1)
    raise ValueError(f"the stage is being run: a process writes {log.name}; end it, or wait")


def _verdicts(content: Any, where: str) -> Mapping[str, Sequence[str]]:
    """The places of the numbers that a stage's line shows, as the file gives them."""
    if not isinstance(content, dict) or any(not isinstance(at, list) or len(at) < 2 for at in content.values()):
        raise ValueError(f"{where}: expected `verdict: LABEL: [FILE.json, KEY, ...]`; {FORM}")
    return content


def _verdict(stage: Stage) -> dict[str, float]:
    """The numbers that the stage's line shows."""
    found = {}
    for label, (file, *keys) in stage.verdict.items():
        value: Any = json.loads((stage.folder / file).read_text())
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"stage {stage.name}: verdict {label}: {file} has no {key!r}; correct the keys")
            value = value[key]
        if isinstance(value, (int, float)):  # null where there was nothing to measure
            found[label] = float(value)
    return found


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl pipeline",
        description="Run the stages of a file in order; skip those whose commands, configurations, inputs and code are "
        "unchanged.",
    )
    parser.add_argument("-c", "--config", required=True, help="the stages, such as configs/shapes/pipeline.yaml")
    parser.add_argument("--folder", help="where stages keep their files, in place of the file's `folder`")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="these alone, and what they rest on")
    return parser
