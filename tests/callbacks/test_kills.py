"""Killed at any moment: the newest complete state is found, and no file is half written."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bestie_pl.callbacks.checkpoints import WholeFileIO
from bestie_pl.data.files import write_json
from bestie_pl.modules.run_folders import CHECKPOINTS, LAST, claim_run, find_checkpoint, link_last

KILLS = 25


def killed(work: Callable[[int], None], begun: Callable[[], bool]) -> None:
    """Let a process of its own work, and kill it somewhere in the middle of it."""
    if (process := os.fork()) == 0:
        try:
            for number in range(10**6):
                work(number)
        finally:
            os._exit(1)
    while not begun():
        assert os.waitpid(process, os.WNOHANG)[0] == 0
        time.sleep(0.001)
    time.sleep(random.random() * 0.05)  # noqa: S311
    os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL


def test_a_training_killed_while_it_saves(tmp_path: Path) -> None:
    """`last` is a complete state from the first one on; as a training does, each state replaces the one before."""
    weights = {"weight": torch.rand(100_000)}
    for attempt in range(KILLS):
        root = tmp_path / str(attempt)
        folder = claim_run(root) / CHECKPOINTS

        def save(number: int, root: Path = root, folder: Path = folder) -> None:
            WholeFileIO().save_checkpoint({**weights, "global_step": number}, folder / f"step={number}.ckpt")
            link_last(root)
            (folder / f"step={number - 1}.ckpt").unlink(missing_ok=True)

        killed(save, lambda folder=folder: any(folder.glob("step=*.ckpt")))  # type: ignore[misc]
        state = torch.load(find_checkpoint(root / CHECKPOINTS / LAST), weights_only=True)
        assert torch.equal(state["weight"], weights["weight"])
        newest = max(int(path.stem.removeprefix("step=")) for path in folder.glob("step=*.ckpt"))
        assert state["global_step"] == newest


def test_predictions_killed_while_they_are_written(tmp_path: Path) -> None:
    """A file that is there is whole, and the next run takes its image for finished."""
    content = [{"class": "cat", "counts": "x" * 100_000}]
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)

        def write(number: int, folder: Path = folder) -> None:
            write_json(folder / f"{number}.json", content)

        killed(write, lambda folder=folder: any(folder.glob("[0-9]*.json")))  # type: ignore[misc]
        found = list(folder.glob("[0-9]*.json"))
        assert found and all(json.loads(path.read_text()) == content for path in found)
