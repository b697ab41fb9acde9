"""Crops a second of the whole training step: in half precision, compiled, against the network alone and float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Row, Settings, Stages, alternating, busiest, seconds
from benchmarks.scenes import make_scene
from benchmarks.step import Step, half, make_step

BATCH = 16
LIMIT = "measured matrix rate"


class _Silent(Stages):
    """No clock and no waiting."""

    def __call__(self, name: str) -> Any:
        return nullcontext()


def run(settings: Settings) -> list[Row]:
    """Rows of the training's throughput: HRNet-W48 at 416 px on a GPU, Lite0 at 128 px on a CPU, without bars there."""
    size = 416 if settings.cuda else 128
    name = "HRNet-W48, 416 px" if settings.cuda else "Lite0, 128 px"
    scene = make_scene(20, batch=BATCH, size=size, device=settings.device)
    images = torch.rand(BATCH, 3, size, size, device=settings.device)
    silent = _Silent()

    def train(step: Step) -> Callable[[], None]:
        return lambda: step(images, scene.semantic, scene.tags, scene.cues, silent)

    make = partial(make_step, settings, 20)
    variants: dict[str, Callable[[], Step]] = {"float32": make}
    if settings.cuda:
        variants = {
            "bfloat16": partial(make, dtype=torch.bfloat16),
            "float16": partial(make, dtype=torch.float16),
            "bfloat16, compiled": lambda: _compiled(make(dtype=torch.bfloat16)),
        }
    with _fixed_shapes(settings):
        rates, whys = {}, {}
        for variant, start in variants.items():
            step = start()
            rates[variant] = BATCH / seconds(train(step), settings)
            whys[variant] = busiest(train(step), settings, 6)
            del step
        step = make(dtype=half(settings))
        calls = {"whole": train(step), "alone": partial(step.network_alone, images)}
        taken = alternating(calls, settings)
        why_not_all = busiest(calls["whole"], settings, 6)
        del step, calls
    with _exact_float32():
        plain = BATCH / seconds(train(make(sampled=False, plain=True)), settings)

    fastest = max(rates, key=lambda variant: rates[variant])
    why = whys[fastest]
    rows = [Row(f"{name}, {variant}: whole step", rate, "crops/s") for variant, rate in rates.items()]
    rows.append(Row(f"{name}: float32, channels first, eager, enlarged maps", plain, "crops/s"))
    bars = {"rate": 222, "gain": 3, "share": 92} if settings.cuda else {}
    rows.append(
        Row(
            f"{name}: whole step, {fastest}",
            rates[fastest],
            "crops/s",
            bars.get("rate"),
            LIMIT,
            False,
            why,
            "larger batches, so that the network's small branches fill the GPU",
        )
    )
    rows.append(
        Row(
            f"{name}: against float32, channels first, eager",
            rates[fastest] / plain,
            "x",
            bars.get("gain"),
            LIMIT,
            False,
            why,
            "float8 convolutions, which torch has not",
        )
    )
    rows.append(
        Row(
            f"{name}: whole step against the network's forward and backward alone",
            100 * taken["alone"] / taken["whole"],
            "%",
            bars.get("share"),
            "100 %",
            False,
            why_not_all,
            "cross-entropy in one kernel that reads the logits at stride 4",
        )
    )
    return rows


def _compiled(step: Step) -> Step:
    step.model.network.compile()
    return step


@contextmanager
def _fixed_shapes(settings: Settings) -> Iterator[None]:
    """As with ``trainer.benchmark``: cuDNN tries its algorithms."""
    torch.backends.cudnn.benchmark = settings.cuda
    yield
    torch.backends.cudnn.benchmark = False


@contextmanager
def _exact_float32() -> Iterator[None]:
    """No TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
