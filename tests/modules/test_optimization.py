"""The learning rate of every step, and which optimiser takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.plugins import MixedPrecision
from quick import make_trainer
from torch import nn

from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.optimization import (
    Optimization,
    configure,
    follow_new_rate,
    may_fuse,
    polynomial_decay,
    step_decay,
    take_rates,
)
from bestie_pl.modules.semantic import SemanticModule


def rates_of(steps: int, warmup_steps: int = 0, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = polynomial_decay(optimizer, steps, warmup_steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def test_equals_the_release(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    data = golden("l_schedule")
    rates = rates_of(50_000, 2_000, 5e-5)
    np.testing.assert_allclose([rates[int(done)] for done in data["iterations_done"]], data["lr"], atol=4e-16)


@pytest.mark.parametrize("schedule", [polynomial_decay, step_decay])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_training_that_goes_on_for_longer_has_the_rates_of_the_longer_one(schedule: Any, stop: int) -> None:
    """Stopped on the way, or at the end of the shorter one."""

    def begin(steps: int) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
        return optimizer, schedule(optimizer, steps, 2)

    def follow(optimizer: torch.optim.Optimizer, made: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
        return rates

    short, long, resumed = begin(4), begin(10), begin(10)
    whole = follow(*long, 10)
    follow(*short, stop)
    for new, old in zip(resumed, short, strict=True):
        new.load_state_dict(old.state_dict())
    take_rates(resumed[1])
    assert follow(*resumed, 10 - stop) == whole[stop:]


def test_falls_to_zero_without_warm_up() -> None:
    rates = rates_of(10)
    assert rates[0] == 1 and rates[-1] == 0 and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_warm_up_longer_than_the_training_just_ends_early(steps: int) -> None:
    rates = rates_of(steps, 100)
    assert 0 < rates[0] < 0.01 and rates[steps] == 0


@pytest.mark.parametrize("field", ["lr", "weight_decay", "backbone_lr_factor", "warmup_steps"])
def test_a_negative_setting_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must"):
        Optimization(**{field: -1})


def on_a_gpu(precision: str, clip: float | None) -> Any:
    """What decides about fusing, of a module on a GPU."""
    trainer = SimpleNamespace(gradient_clip_val=clip, precision=precision, estimated_stepping_batches=5)
    return SimpleNamespace(trainer=trainer, device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32-true", 20, True), ("16-mixed", None, True), ("16-mixed", 20, False), ("bf16-mixed", 20, False)],
)
def test_gradients_can_be_clipped_in_mixed_precision_on_a_gpu(precision: str, clip: float | None, fused: bool) -> None:
    module = on_a_gpu(precision, clip)
    assert may_fuse(module) is fused
    parameters = [nn.Parameter(torch.zeros(3))]
    optimizer = configure(module, parameters, parameters[:0], Optimization("adamw"))["optimizer"]
    assert optimizer.defaults["fused"] is fused
    if clip and precision != "32-true":  # Lightning's own refusal
        plugin = MixedPrecision(precision, "cuda")  # type: ignore[arg-type]
        plugin.clip_gradients(optimizer, clip_val=clip)
        fusing = torch.optim.AdamW(parameters, fused=True)
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            plugin.clip_gradients(fusing, clip_val=clip)


def test_the_learning_rate_finder_sets_the_rate_that_training_uses(shapes_folder: Path, tmp_path: Path) -> None:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}
    data = ShapesDataModule(str(shapes_folder), batch_size=4, num_workers=0, crop_size=64, **sizes)
    optimization = Optimization("adamw", lr=1e-4, backbone_lr_factor=0.3, warmup_steps=4)
    module = SemanticModule(
        5, backbone="tf_efficientnet_lite0", decoder="pyramid", backbone_weights=None, optimization=optimization
    )
    find = LearningRateFinder(min_lr=1e-5, max_lr=1e-1, num_training_steps=20)
    seen = Rates()
    trainer = make_trainer(tmp_path, max_steps=5, limit_val_batches=0, callbacks=[find, seen])
    trainer.fit(module, data)
    found = module.lr
    assert found != 1e-4 and module.hparams["optimization"]["lr"] == found
    expected = [
        [factor * found * part for part in (0.3, 1.0)] for factor in rates_of(5, 4)[:5]
    ]  # backbone and heads, from the first step of the warm-up on
    np.testing.assert_allclose(seen.rates, expected, rtol=1e-6)


def test_a_finished_training_goes_on_with_the_rates_of_the_longer_one(shapes_folder: Path, tmp_path: Path) -> None:
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64}

    def train(steps: int, checkpoint: Path | None = None) -> list[float]:
        seen, data = Rates(), ShapesDataModule(str(shapes_folder), batch_size=4, num_workers=0, crop_size=64, **sizes)
        module = SemanticModule(
            5,
            backbone="tf_efficientnet_lite0",
            decoder="pyramid",
            backbone_weights=None,
            optimization=Optimization("adamw", lr=1e-3),
        )
        trainer = make_trainer(tmp_path, max_steps=steps, limit_val_batches=0, callbacks=[seen])
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return [rates[-1] for rates in seen.rates]

    train(2)
    rates = train(5, tmp_path / "last.ckpt")
    assert rates == pytest.approx([1e-3 * (1 - done / 5) ** 0.9 for done in (2, 3, 4)])


class Rates(pl.Callback):
    """The rates that each step was taken with."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_all_groups_follow_a_new_rate(optimizer: Any) -> None:
    """Also the biases, which are twice as fast with SGD and come last."""
    module: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module.trainer = SimpleNamespace(estimated_stepping_batches=10, gradient_clip_val=None, precision="32-true")
    module.device = torch.device("cpu")
    made = configure(
        module, list(module[0].parameters()), list(module[1].parameters()), Optimization(optimizer, 0.02, 0.1)
    )
    before = [group["lr"] for group in made["optimizer"].param_groups]
    trainer: Any = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=made["lr_scheduler"]["scheduler"])])
    follow_new_rate(trainer, 0.02)
    assert [group["lr"] for group in made["optimizer"].param_groups] == pytest.approx(before)
    follow_new_rate(trainer, 0.06)
    follow_new_rate(trainer, 0.04)
    assert [group["lr"] for group in made["optimizer"].param_groups] == pytest.approx([2 * rate for rate in before])
