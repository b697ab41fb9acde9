"""Where runs write: each into a folder of its own, ``ROOT/logs/version_N``; links in ``ROOT`` lead to the newest.

``ROOT/checkpoints/last.ckpt`` is the newest complete state of the newest run that has one. Runs may follow each other,
overlap or be killed: what counts is which complete files there are, whatever the link says.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
import zipfile
from pathlib import Path

from bestie_pl.data.files import UNFINISHED, in_one_move

LOGS = "logs"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"

_RUN = re.compile(r"version_(\d+)")
_STATE = re.compile(r"step=(\d+)\.ckpt")
_STALE = 60.0
"""Seconds without a write after which a hidden, half-written file belongs to a process that is no more."""


def claim_run(root: Path) -> Path:
    """Make the folder of a new run. No two processes get the same one."""
    logs = root / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    number = 1 + max((run_number(run) for run in runs_of(root)), default=-1)
    while True:
        folder = logs / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def runs_of(root: Path) -> list[Path]:
    """Folders of the runs in ``root``, the newest first."""
    found = [folder for folder in (root / LOGS).glob("version_*") if _RUN.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=run_number, reverse=True)


def checkpoint_of(run: Path) -> Path | None:
    """The newest complete checkpoint of one run."""
    states = [(match, path) for path in (run / CHECKPOINTS).glob("*.ckpt") if (match := _STATE.fullmatch(path.name))]
    for _, path in sorted(states, key=lambda state: int(state[0][1]), reverse=True):
        # the list of contents stands at the end of such a file, so a cut one has none
        if zipfile.is_zipfile(path):
            return path
    return None


def newest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint of the newest run in ``root`` that has one."""
    return next((path for run in runs_of(root) if (path := checkpoint_of(run)) is not None), None)


def find_checkpoint(path: Path) -> Path:
    """The file that a checkpoint's path means: of ``ROOT/checkpoints/last.ckpt`` the newest complete one of the runs.

    A link that was being replaced when its process was killed, or that another run has taken, says nothing then.
    """
    if path.name == LAST and path.parent.name == CHECKPOINTS:
        return newest_checkpoint(path.parent.parent) or path
    return path


def link_newest(root: Path, name: str) -> None:
    """Let ``root/name`` lead to the file of that name of the newest run that has it."""
    for run in runs_of(root):
        if (run / name).is_file():
            replace_link(root / name, run / name)
            return


def link_last(root: Path) -> None:
    """Let ``root/checkpoints/last.ckpt`` lead to the newest complete checkpoint of the newest run that has one."""
    newest = newest_checkpoint(root)
    if newest is not None:
        replace_link(root / CHECKPOINTS / LAST, newest)


def replace_link(link: Path, target: Path) -> None:
    """Let a link lead to ``target``, in one move: there is the old or the new one at any time.

    A file of that name that is no link was put there by somebody, and is kept as ``NAME-before.SUFFIX``. Where the file
    system has no links, the file is copied.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent))
    except OSError:
        with in_one_move(link) as copy:
            shutil.copyfile(target, copy)
        return
    if link.is_file() and not link.is_symlink():
        link.replace(_unused(link.with_name(f"{link.stem}-before{link.suffix}")))
    temporary.replace(link)


def sweep(folder: Path, age: float = _STALE) -> None:
    """Remove hidden files that killed processes left half-written, in ``folder`` and below it."""
    for path in folder.rglob(f".*{UNFINISHED}*"):
        try:
            if _TEMPORARY.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > age:
                path.unlink()
        except OSError:  # another process was faster
            continue


_TEMPORARY = re.compile(rf"\..+{re.escape(UNFINISHED)}[a-z0-9_]{{8}}")


def run_number(run: Path) -> int:
    """The N of a run's folder ``version_N``; -1 of another."""
    match = _RUN.fullmatch(run.name)
    return int(match[1]) if match else -1


def _unused(path: Path) -> Path:
    number = 1
    while path.exists():
        path = path.with_name(f"{path.stem.split('-before')[0]}-before{number}{path.suffix}")
        number += 1
    return path
