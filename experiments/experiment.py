"""Train and test one configuration through the command line, once: a finished run is read, not repeated."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bestie_pl.data.files import write_json

ROOT = Path(__file__).resolve().parents[1]
ANEW = "--trainer.callbacks.overwrite=true"
"""Of the writer named before it: cues and maps of an earlier network, which the folder may hold, are not kept."""
METRICS = ("map25", "map50", "map70", "map75", "miou")


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
    config: str,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    checkpoint: Path | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores of a configuration trained and tested in ``folder``; ``seconds`` tells what training and test took.

    With a ``checkpoint`` it is only tested, with these weights.
    """
    done = folder / "result.json"
    if done.exists():
        content: dict[str, Any] = json.loads(done.read_text())
        return content
    clear(folder)
    log = folder / "output.txt" if quiet else None
    shared = ["--config", config, f"--trainer.default_root_dir={folder}", *overrides]
    if quiet:
        shared.append("--trainer.enable_progress_bar=false")
    start = time.monotonic()
    if checkpoint is None:
        command("fit", *shared, threads=threads, log=log)
    trained = time.monotonic()
    command("test", *shared, f"--ckpt_path={checkpoint or 'last'}", threads=threads, log=log)
    scores = json.loads((folder / "scores_test.json").read_text())
    content = {
        **scores,
        "config": config,
        "overrides": list(overrides),
        "folder": str(folder),
        "seconds": {"fit": round(trained - start, 1), "test": round(time.monotonic() - trained, 1)},
    }
    write_json(done, content)
    return content


def clear(folder: Path) -> None:
    """Remove what an interrupted run left: its checkpoint could be taken for the new one."""
    if folder.exists():
        shutil.rmtree(folder)


def write_table(
    path: Path,
    results: dict[tuple[str, int], dict[str, Any]],
    settings: dict[str, dict[str, Any]],
    seeds: Sequence[int],
) -> None:
    """Write and print one row a setting from the results of all settings and seeds; mAP50 is the row's figure."""
    rows = []
    for name in settings:
        runs = [results[name, seed] for seed in seeds]
        values = {metric: [run["scores"][f"test/{metric}"] for run in runs] for metric in METRICS}
        figures = values["map50"]
        rows.append(
            {
                "name": name,
                "seeds": list(seeds),
                "values": figures,
                "mean": statistics.mean(figures),
                "std": statistics.stdev(figures) if len(figures) > 1 else 0.0,
                "all": values,
                "settings": settings[name],
                "seconds": [run["seconds"] for run in runs],
            }
        )
        print(f"{name:<26}{rows[-1]['mean']:.3f} ± {rows[-1]['std']:.3f}   {[round(v, 3) for v in figures]}")
    environment = results[next(iter(results))]["environment"]
    command = shlex.join(["python", *sys.argv])
    write_json(path, {"metric": "map50", "command": command, "environment": environment, "rows": rows})
