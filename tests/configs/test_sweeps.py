"""What ``wandb sweep`` takes: an agent's own code launches two draws of it, offline, and finds both whole and apart."""

from __future__ import annotations

import os
import re
import shutil
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


@pytest.fixture(scope="module")
def root(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes with what the stages before leave there, and with VOC's name of the larger training split."""
    copy = Path(shutil.copytree(shapes_folder, tmp_path_factory.mktemp("sweeps") / "data"))
    for made, needed in (("WSSS_maps", "CAM_maps"), ("WSSS_maps", "Retrained_maps"), ("Center_points", "Peak_points")):
        shutil.copytree(copy / made, copy / needed)
    shutil.copy(copy / "train_cls.txt", copy / "train_aug_cls.txt")
    return copy


def small(configuration: str, root: Path) -> dict[str, Any]:
    """Settings that make a training of the configuration one of two steps on a CPU."""
    values: dict[str, Any] = {
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.check_val_every_n_epoch": 1,
    }
    values |= {"trainer.limit_train_batches": 2, "model.init_args.backbone_weights": "null"}
    data = {"root": root, "crop_size": 64, "batch_size": 2, "num_workers": 0}
    if "/shapes/" in configuration:
        data |= {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
        data |= {"clutter": 1, "generator_seed": 0}
        if "init_from" in (REPOSITORY / configuration).read_text():
            values["model.init_args.init_from"] = "null"
    else:  # what is for GPUs
        values |= {"trainer.devices": 1, "trainer.precision": "32-true", "trainer.strategy": "auto"}
        values |= {"trainer.sync_batchnorm": "false", "model.init_args.backbone": "hrnet_w18_small"}
    return values | {f"data.init_args.{name}": str(value) for name, value in data.items()}


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_launches_two_draws(path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load(path.read_text())
    assert {"program", "method", "metric", "command", "parameters"} <= set(sweep)
    assert set(sweep) <= {"program", "method", "metric", "command", "parameters", "early_terminate"}
    (configuration,) = re.findall(r"--config (\S+)", " ".join(sweep["command"]))
    fixed = small(configuration, root)
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
        assert (folder / "checkpoints" / "last.ckpt").exists() and (folder / "pictures" / "training.png").is_file() == (
            "BestieModule" in (REPOSITORY / configuration).read_text()
        )
        (record,) = folder.rglob("run-*.wandb")
        assert record.name == f"run-{run}.wandb" and record.stat().st_size > 1000
        (written,) = folder.rglob("config.yaml")
        settings = yaml.safe_load(written.read_text())
        for name in sweep["parameters"]:
            found = settings
            for part in name.split("."):
                found = found[part]
            expected, found = (yaml.safe_load(str(value)) for value in (values[name], found))
            assert (pytest.approx(expected) if isinstance(expected, float) else expected) == found, name
        assert sweep["metric"]["name"].encode() in record.read_bytes()
    assert len({tuple(values.values()) for values in drawn.values()}) == 2
