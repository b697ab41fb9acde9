"""What ``wandb sweep`` takes: an agent's own code launches two draws of it, offline, and finds both whole and apart."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEPS = sorted((REPOSITORY / "configs" / "sweeps").glob("*.yaml"))


def draw(parameter: dict[str, Any], random: np.random.Generator) -> Any:
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return parameter["values"][random.integers(len(parameter["values"]))]
    low, high = parameter["min"], parameter["max"]
    if parameter["distribution"] == "log_uniform_values":
        return float(np.exp(random.uniform(np.log(low), np.log(high))))
    assert parameter["distribution"] == "uniform"
    return float(random.uniform(low, high))


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_launches_two_draws(
    path: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load(path.read_text())
    assert set(sweep) == {"program", "method", "metric", "command", "parameters"}
    small = {"root": shapes_folder, "train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    small |= {"clutter": 1, "generator_seed": 0, "crop_size": 64, "batch_size": 2, "num_workers": 0}
    fixed = {f"data.init_args.{name}": str(value) for name, value in small.items()}
    fixed |= {"trainer.max_steps": 2, "trainer.accelerator": "cpu", "model.init_args.backbone_weights": "null"}
    fixed |= {"trainer.check_val_every_n_epoch": 1, "trainer.limit_train_batches": 2}
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "bestie-pl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m bestie_pl "$@"\n')
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them; forget them afterwards
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "tried")

    agent = object.__new__(Agent)  # its constructor asks a server
    agent._sweep_command, agent._function, agent._run_processes = sweep["command"], None, {}
    agent._in_jupyter = agent._forward_signals = False
    drawn = {}
    for number in range(2):
        random = np.random.default_rng(number)
        values = {name: draw(parameter, random) for name, parameter in sweep["parameters"].items()} | fixed
        drawn[f"draw{number}"] = values
        arguments = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"type": "run", "run_id": f"draw{number}", "program": sweep["program"], "args": arguments})
    for process in agent._run_processes.values():
        assert process.wait() == 0
    for run, values in drawn.items():
        folder = tmp_path / "runs" / "sweep" / run
        assert (folder / "checkpoints" / "last.ckpt").exists() and (folder / "pictures" / "training.png").is_file()
        (record,) = folder.rglob("run-*.wandb")
        assert record.name == f"run-{run}.wandb" and record.stat().st_size > 1000
        (configuration,) = folder.rglob("config.yaml")
        settings = yaml.safe_load(configuration.read_text())
        for name in sweep["parameters"]:
            found = settings
            for part in name.split("."):
                found = found[part]
            assert float(found) == pytest.approx(float(values[name])), name
    assert len({tuple(values.values()) for values in drawn.values()}) == 2
