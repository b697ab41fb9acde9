"""Crops a second of the whole training step: in half precision, against the network alone, float32, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, Settings, Stages, alternating, busiest, peak_bytes, seconds
from benchmarks.scenes import make_scene
from benchmarks.step import Step, half, make_step

LIMIT = "measured matrix rate"


class _Silent(Stages):
    """No clock and no waiting."""

    def __call__(self, name: str) -> Any:
        return nullcontext()


def run(settings: Settings) -> list[Row]:
    """Rows of the training's throughput: HRNet-W48 at 416 px on a GPU, Lite0 at 128 px on a CPU, without bars there."""
    batch = 2 if settings.quick else 16
    repeats = 20 if settings.cuda else 3
    name = "HRNet-W48, 416 px" if settings.cuda else "Lite0, 128 px"
    train, images = _training(batch, settings)
    make = partial(make_step, settings, 20)
    variants: dict[str, Callable[[], Step]] = {"float32": make}
    if settings.cuda:
        variants = {
            "bfloat16": partial(make, dtype=torch.bfloat16),
            "float16": partial(make, dtype=torch.float16),
        }
    with _fixed_shapes(settings):
        rates, whys = {}, {}
        for variant, start in variants.items():
            step = start()
            rates[variant] = batch / seconds(train(step), settings, repeats=repeats)
            whys[variant] = busiest(train(step), settings, 6)
            del step
        step = make(dtype=half(settings))
        calls: dict[str, Callable[[], Any]] = {"whole": train(step), "alone": partial(step.network_alone, images)}
        taken = alternating(calls, settings, repeats=repeats)
        why_not_all = busiest(calls["whole"], settings, 6)
        del step, calls
    with _exact_float32():
        plain = batch / seconds(train(make(sampled=False, plain=True)), settings, repeats=repeats)

    fastest = max(rates, key=lambda variant: rates[variant])
    why = whys[fastest]
    bars = {"rate": 222, "gain": 3, "share": 92} if settings.cuda else {}
    then = "larger batches, so that the network's small branches fill the GPU"
    rows = []
    for variant, rate in rates.items():
        bar = bars.get("rate") if variant == fastest else None
        rows.append(Row(f"{name}, {variant}: whole step", rate, "crops/s", bar, LIMIT, False, whys[variant], then))
    rows.append(Row(f"{name}: float32, channels first, eager, enlarged maps", plain, "crops/s"))
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


def run_compiled(settings: Settings) -> list[Row]:
    """What ``torch.compile`` of the network gives: of HRNet-W48, which takes it minutes before the first step."""
    return _against_eager("compiled", lambda step, images: step.model.network.compile(), settings)


def run_graphed(settings: Settings) -> list[Row]:
    """What a CUDA graph of the network gives, which one call launches in place of thousands."""
    return _against_eager("graphed", _graph, settings)


def _graph(step: Step, images: Tensor) -> None:
    with step.autocast:
        step.model.graph(images)


def _against_eager(how: str, change: Callable[[Step, Tensor], None], settings: Settings) -> list[Row]:
    batch = 2 if settings.quick else 16
    train, images = _training(batch, settings)
    with _fixed_shapes(settings):
        steps = {kind: make_step(settings, 20, dtype=half(settings)) for kind in ("eager", how)}
        change(steps[how], images)
        taken = alternating({kind: train(step) for kind, step in steps.items()}, settings, repeats=20)
        why = busiest(train(steps[how]), settings, 6)
    name = "HRNet-W48, 416 px, bfloat16"
    rows = [Row(f"{name}, {kind}: whole step", batch / t, "crops/s") for kind, t in taken.items()]
    return [*rows, Row(f"{name}: {how} against eager", taken["eager"] / taken[how], "x", limited_by=why)]


def run_batches(settings: Settings) -> list[Row]:
    """The whole step with more images at once."""
    rows = []
    with _fixed_shapes(settings):
        for batch in (2, 4) if settings.quick else (16, 32, 64):
            train, _ = _training(batch, settings)
            step = make_step(settings, 20, dtype=half(settings))
            rate = batch / seconds(train(step), settings, repeats=10)
            rows.append(Row(f"HRNet-W48, 416 px, bfloat16, batch {batch}: whole step", rate, "crops/s"))
            peak = peak_bytes(train(step), settings) / 2**20
            rows.append(Row(f"HRNet-W48, 416 px, bfloat16, batch {batch}: memory", peak, "MiB"))
    return rows


def _training(batch: int, settings: Settings) -> tuple[Callable[[Step], Callable[[], None]], Tensor]:
    """What makes a call of a step on one and the same batch; and its images."""
    size = 416 if settings.cuda else 128
    scene = make_scene(20, batch=batch, size=size, device=settings.device)
    images = torch.rand(batch, 3, size, size, device=settings.device)
    silent = _Silent()

    def train(step: Step) -> Callable[[], None]:
        return lambda: step(images, scene.semantic, scene.tags, scene.cues, silent)

    return train, images


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
