"""The whole way on small scenes, killed at a random moment of each stage: writes results/shapes/killed_pipeline.json.

One run of the pipeline is left alone. In another folder, each stage in turn is killed (SIGKILL, the pipeline and all
that it started) at a random moment and started again. Then what both runs made is compared: networks tensor by tensor,
cues, maps and labels byte by byte, scores number by number. At the end a setting of one stage is changed, and the
stages that are made anew are listed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from bestie_pl.callbacks.scores import environment
from bestie_pl.cli.commands.pipeline import digest
from bestie_pl.data.files import write_json, write_text
from experiments.runs import ROOT

PIPELINE = Path("configs/shapes/pipeline.yaml")
SCENES = ("train_images=24", "val_images=4", "test_images=6", "image_size=64", "crop_size=64", "batch_size=4")
SMALL = [f"--data.init_args.{setting}" for setting in (*SCENES, "num_workers=1")]
STEPS = 6
COMPARED = ("*.png", "*.txt", "*.json", "*.ckpt")
CHANGED = "points"
"""The stage whose number of steps is changed in the end."""


def main() -> None:
    """Run, kill, compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/killed_pipeline"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("results/shapes/killed_pipeline.json"))
    arguments = parser.parse_args()
    runs, draw = ROOT / arguments.runs, random.Random(arguments.seed)
    shutil.rmtree(runs, ignore_errors=True)
    whole, killed = runs / "whole", runs / "killed"
    for folder in (whole, killed):
        write_text(folder / "pipeline.yaml", yaml.safe_dump(small(folder), sort_keys=False))
    names = list(small(whole)["stages"])
    finish(whole, names)
    seconds = {name: json.loads((whole / f"{name}.done.json").read_text())["seconds"] for name in names}
    rows = []
    for name in names:
        moment = draw.uniform(0, seconds[name])
        hit = kill(killed, name, moment)
        finish(killed, [name])
        rows.append({"stage": name, "killed_after_s": round(moment, 1), "was_running": hit})
        print(rows[-1], flush=True)
    different = differences(whole, killed, names)
    content = small(killed)
    commands = content["stages"][CHANGED]["commands"]
    content["stages"][CHANGED]["commands"] = [line.replace(f"max_steps={STEPS}", "max_steps=2") for line in commands]
    write_text(killed / "pipeline.yaml", yaml.safe_dump(content, sort_keys=False))
    again = [line.split()[0] for line in finish(killed, names) if " made " in line]
    head = {"command": "python -m experiments.killed_pipeline", "environment": environment()}
    found = {"stages": rows, "different_files": different, "changed_stage": CHANGED, "made_again": again}
    write_json(ROOT / arguments.output, head | found)
    print(f"different: {different or 'nothing'}; made again after a change of {CHANGED}: {', '.join(again)}")


def small(folder: Path) -> dict[str, Any]:
    """The shipped pipeline on a few small scenes, each training a few steps."""
    content: dict[str, Any] = yaml.safe_load((ROOT / PIPELINE).read_text())
    content["options"] = [f"--data.init_args.root={folder / 'data'}", *content["options"][1:], *SMALL]
    for stage in content["stages"].values():
        stage["commands"] = [
            f"{line} --trainer.max_steps={STEPS}" if line.startswith("fit ") else line for line in stage["commands"]
        ]
    return content


def start(folder: Path, names: list[str]) -> subprocess.Popen[str]:
    """The pipeline in a process group of its own."""
    line = [sys.executable, "-m", "bestie_pl", "pipeline", "--config", str(folder / "pipeline.yaml")]
    line += ["--folder", str(folder), "--stages", *names]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(folder: Path, names: list[str]) -> list[str]:
    """Run stages to their end; the lines that the pipeline printed."""
    process = start(folder, names)
    lines = process.communicate()[0].splitlines()
    if process.returncode:
        raise SystemExit(f"the pipeline in {folder} failed; its .log files say why")
    return lines


def kill(folder: Path, name: str, moment: float) -> bool:
    """Kill the pipeline so many seconds after the stage has begun; whether it was still running."""
    process, log = start(folder, [name]), folder / f"{name}.log"
    while process.poll() is None and not log.exists():
        time.sleep(0.05)
    try:
        process.wait(moment)
        return False
    except subprocess.TimeoutExpired:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for group in (process.pid, *map(int, children.stdout.split())):  # each command leads a group of its own
            os.killpg(group, signal.SIGKILL)
        process.wait()
        return True


def differences(one: Path, other: Path, names: list[str]) -> list[str]:
    """Files of the stages that differ, or that one run has alone; what tells time, place and the machine may."""
    found = []
    for name in names:
        files = {
            run: {str(path.relative_to(run)) for pattern in COMPARED for path in (run / name).rglob(pattern)}
            for run in (one, other)
        }
        found += sorted(files[one] ^ files[other])
        found += [file for file in sorted(files[one] & files[other]) if not same(one / file, other / file)]
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two files say the same."""
    if one.suffix == ".ckpt":
        first, second = (torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in (one, other))
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if one.suffix == ".json":
        return plain(json.loads(one.read_text())) == plain(json.loads(other.read_text()))
    return digest(one) == digest(other)


def plain(content: Any) -> Any:
    """JSON without what differs between two equal runs: dates, and whatever names a folder or a file's hash."""
    if isinstance(content, dict):
        left_out = {"environment", "date", "seconds", "sha256"}
        return {key: plain(value) for key, value in content.items() if key not in left_out}
    if isinstance(content, list):
        return [plain(value) for value in content]
    return None if isinstance(content, str) and os.sep in content else content


if __name__ == "__main__":
    main()
