"""Train and test one configuration through the command line, once: a finished run is read, not repeated."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str, threads: int | None = None, log: Path | None = None) -> None:
    """Run ``bestie-pl`` with arguments in the repository's root; its output goes to the terminal or to a file."""
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-m", "bestie_pl", *arguments]
    if log is None:
        subprocess.run(line, cwd=ROOT, env=environment, check=True)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        result = subprocess.run(line, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if result.returncode:
        raise SystemExit(f"bestie-pl {shlex.join(arguments)} failed, see {log}")


def fit_and_test(
    config: str, folder: Path, overrides: Sequence[str] = (), *, threads: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Scores of a configuration trained and tested in ``folder``; ``seconds`` tells what training and test took."""
    done = folder / "result.json"
    if done.exists():
        content: dict[str, Any] = json.loads(done.read_text())
        return content
    log = folder / "output.txt" if quiet else None
    shared = ["--config", config, f"--trainer.default_root_dir={folder}", *overrides]
    if quiet:
        shared.append("--trainer.enable_progress_bar=false")
    start = time.monotonic()
    command("fit", *shared, threads=threads, log=log)
    trained = time.monotonic()
    command("test", *shared, "--ckpt_path=last", threads=threads, log=log)
    scores = json.loads((folder / "scores_test.json").read_text())
    content = {
        **scores,
        "config": config,
        "overrides": list(overrides),
        "seconds": {"fit": round(trained - start, 1), "test": round(time.monotonic() - trained, 1)},
    }
    write_json(done, content)
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
