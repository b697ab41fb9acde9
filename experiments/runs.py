"""Train and test one configuration through the command line, once: a finished run is read, not repeated."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import write_json

ROOT = Path(__file__).resolve().parents[1]
ANEW = "--trainer.callbacks.overwrite=true"
"""Of the writer named before it: cues and maps of an earlier network, which the folder may hold, are not kept."""
METRICS = ("map25", "map50", "map70", "map75", "miou")
FIGURES = ("true_positives", "recall", "precision")
CURVES = ("val/map50", *(f"train/{labels}/{figure}" for labels in ("pseudo", "refined") for figure in FIGURES))


def command(*arguments: str, threads: int | None = None, log: Path | None = None) -> None:
    """Run ``bestie-pl`` with arguments in the repository's root; its output goes to the terminal or to a file."""
    variables = {**os.environ, "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    if threads is not None:
        variables |= {"OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-m", "bestie_pl", *arguments]
    if log is None:
        subprocess.run(line, cwd=ROOT, env=variables, check=True)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        result = subprocess.run(line, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
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


def curves_of(folder: Path) -> dict[str, Any] | None:
    """Logged numbers over the optimiser steps of a run: label quality of training images (figure 6), mAP50 (figure 7).

    None of a run that has not ended.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "logs").glob("*/metrics.csv")) if (folder / "scores_test.json").exists() else ():
        with path.open() as file:
            for line in csv.DictReader(file):
                for name in CURVES:
                    if line.get(name):
                        series.setdefault(name, []).append((int(line["step"]), float(line[name])))
    return {name: sorted(set(points)) for name, points in series.items()} or None


def row_of(name: str, by_seed: Mapping[int, dict[str, Any]], metric: str | None, settings: Any) -> dict[str, Any]:
    """A row of a table: what each seed gave, and mean and spread of ``metric`` if there is one."""
    row: dict[str, Any] = {"name": name, "seeds": list(by_seed), "settings": settings}
    runs = list(by_seed.values())
    if metric is not None:
        values = [figures[metric] for figures in runs]
        row |= {"values": values, "mean": statistics.mean(values)}
        row |= {"std": statistics.stdev(values) if len(values) > 1 else None}
        row["all"] = {key: [figures[key] for figures in runs] for key in runs[0]}
    return row | {"by_seed": runs}


def add_seed(
    path: Path,
    seed: int,
    rows: Mapping[str, dict[str, Any] | None],
    *,
    command: str,
    metric: str | None = "map50",
    settings: Mapping[str, Sequence[str]] | None = None,
    seconds: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Add a seed's figures to a table, or replace what the table had of it; rows without figures stay as they were.

    ``seconds``: what each stage of this seed took. Returns all rows of the table.
    """
    stored = json.loads(path.read_text()) if path.exists() else {"rows": []}
    known = {row["name"]: dict(zip(row["seeds"], row["by_seed"], strict=True)) for row in stored["rows"]}
    content = []
    for name, added in rows.items():
        by_seed = dict(sorted((known.get(name, {}) | ({seed: added} if added else {})).items()))
        if by_seed:
            content.append(row_of(name, by_seed, metric, list((settings or {}).get(name, ()))))
    table: dict[str, Any] = {"metric": metric, "command": command, "environment": environment(), "rows": content}
    if seconds is not None:
        table["seconds"] = stored.get("seconds", {}) | {str(seed): seconds}
    write_json(path, table)
    return content


def write_table(
    path: Path,
    results: dict[tuple[str, int], dict[str, Any]],
    settings: dict[str, dict[str, Any]],
    seeds: Sequence[int],
) -> None:
    """Write and print one row a setting from the results of all settings and seeds; mAP50 is the row's figure."""
    rows = []
    for name in settings:
        runs = {seed: results[name, seed] for seed in seeds}
        figures = {seed: {metric: run["scores"][f"test/{metric}"] for metric in METRICS} for seed, run in runs.items()}
        rows.append(row_of(name, figures, "map50", settings[name]) | {"seconds": [r["seconds"] for r in runs.values()]})
        spread = f" ± {rows[-1]['std']:.3f}" if len(runs) > 1 else ""
        print(f"{name:<26}{rows[-1]['mean']:.3f}{spread}   {[round(value, 3) for value in rows[-1]['values']]}")
    head = {"metric": "map50", "command": shlex.join(["python", *sys.argv])}
    write_json(path, head | {"environment": results[next(iter(results))]["environment"], "rows": rows})
