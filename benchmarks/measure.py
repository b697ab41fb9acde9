"""Clocks, counters and what a result file says of the machine."""

from __future__ import annotations

import cProfile
import datetime
import math
import platform
import statistics
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bestie_pl.ops import capacity

Key = TypeVar("Key")

WAITING_OPS = {
    "lift_fresh",  # torch.tensor, copied from the host
    "nonzero",
    "_local_scalar_dense",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "bincount",
    "repeat_interleave",
    "is_nonzero",
}
"""Operations that an accelerator and the host wait for one another at."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        name: What was measured.
        value: The figure.
        unit: Of the value.
        bar: What the value should reach; None for a figure without a bar.
        limit: What cannot be surpassed, in words.
        at_most: Whether the bar is an upper one.
        limited_by: What takes the time or the memory now, from a profile.
        next_step: What would have to change to come closer to the limit.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    limit: str = ""
    at_most: bool = True
    limited_by: str = ""
    next_step: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: ``cpu`` or ``cuda``.
        quick: Small inputs and few repeats: shows that the benchmark runs, not how fast anything is.
        threads: Of torch on the CPU.
    """

    device: str
    quick: bool
    threads: int

    @property
    def repeats(self) -> int:
        """Of each timing."""
        return 3 if self.quick else 7

    @property
    def cuda(self) -> bool:
        """Whether the figures are those of a GPU."""
        return self.device == "cuda"


def synchronize(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], settings: Settings, *, cpu_time: bool = False, repeats: int | None = None) -> float:
    """Median duration of a call after one call that is not counted; ``cpu_time`` counts processor seconds."""
    return alternating({0: run}, settings, cpu_time=cpu_time, repeats=repeats)[0]


def once(run: Callable[[], Any]) -> float:
    """Duration of a single call on a CPU, for calls that take many seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternating(
    runs: Mapping[Key, Callable[[], Any]],
    settings: Settings,
    *,
    cpu_time: bool = False,
    repeats: int | None = None,
) -> dict[Key, float]:
    """``seconds`` of several calls that are compared: made in turn, so that a busy machine slows all of them."""
    clock = time.process_time if cpu_time else time.perf_counter
    durations: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(1 + (repeats or settings.repeats)):
        for name, run in runs.items():
            synchronize(settings.device)
            start = clock()
            run()
            synchronize(settings.device)
            durations[name].append(clock() - start)
    return {name: statistics.median(some[1:]) for name, some in durations.items()}


class Stages:
    """Adds up what the parts of a run take: ``with stages("peaks"): ...``."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.runs: list[dict[str, float]] = [{}]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is done inside as ``name``."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.runs[-1][name] = self.runs[-1].get(name, 0.0) + time.perf_counter() - start

    def next_run(self) -> None:
        """Count what follows apart."""
        self.runs.append({})

    def medians(self) -> dict[str, float]:
        """Seconds of each part, the median of the runs after the first one."""
        runs = [run for run in self.runs if run]
        runs = runs[1:] or runs
        return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}


def busiest(run: Callable[[], Any], settings: Settings, count: int = 3) -> str:
    """The operations that take most of a call, by the profiler: ``exp 31 %, index 12 %``."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.cuda else [])
    run()
    with profile(activities=activities) as profiler:
        run()
        synchronize(settings.device)
    taken: Counter[str] = Counter()
    for event in profiler.key_averages():
        own = event.self_device_time_total if settings.cuda else event.self_cpu_time_total
        taken[event.key.removeprefix("aten::")] += own
    total = sum(taken.values()) or 1
    return ", ".join(f"{name} {100 * t / total:.0f} %" for name, t in taken.most_common(count))


def busiest_functions(run: Callable[[], Any], count: int = 3) -> str:
    """``busiest`` for what happens outside of torch: Python functions and other extensions."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    entries = sorted(profiler.getstats(), key=lambda entry: -entry.inlinetime)
    total = sum(entry.inlinetime for entry in entries)

    def name(code: Any) -> str:
        return str(code) if isinstance(code, str) else str(code.co_name)

    return ", ".join(f"{name(e.code)} {100 * e.inlinetime / total:.0f} %" for e in entries[:count])


class WaitCounter(TorchDispatchMode):
    """Counts on a CPU what an accelerator would have to be waited for, in what it would run.

    These are operations whose result the host reads, or whose result's size depends on values, and numbers of the host
    that become tensors. Tables are made as for an accelerator: see ``bestie_pl.ops.capacity``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._others = ExitStack()

    def __enter__(self) -> WaitCounter:
        self._others.enter_context(patch.object(capacity, "HOSTS", frozenset()))
        self._others.enter_context(_HostReads(self.waits))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._others.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING_OPS:
            self.waits[name] += 1
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # indices that are masks are counted first
            self.waits["index by a mask"] += sum(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


class _HostReads(TorchFunctionMode):
    """Counts reads of several values at once, which no operation on a CPU stands for."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.cpu, Tensor.numpy):
            self._waits[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def count_waits(run: Callable[[], Any], settings: Settings) -> dict[str, int]:
    """How often a call waits for the device: counted by CUDA itself, on a CPU by the operations that would."""
    run()
    if not settings.cuda:
        with WaitCounter() as counter:
            run()
        return dict(+counter.waits)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(_where(warning) for warning in caught if "synchroniz" in str(warning.message)))


def _where(warning: warnings.WarningMessage) -> str:
    return f"{Path(warning.filename).name}:{warning.lineno}"


class MemoryMeter(TorchDispatchMode):
    """Bytes of the tensors that are alive, those made outside of it not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in inputs and id(storage) not in self.known:
                    self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        number, size = id(storage), storage.nbytes()
        self.known.add(number)
        self.live += size
        self.peak = max(self.peak, self.live)

        def forget() -> None:
            self.known.discard(number)
            self.live -= size

        weakref.finalize(storage, forget)


def peak_bytes(run: Callable[[], Any], settings: Settings) -> int:
    """Most memory that a call needs for tensors beyond what is there before it."""
    run()
    if not settings.cuda:
        with MemoryMeter() as meter:
            run()
        return meter.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def exponent(sizes: Sequence[float], durations: Sequence[float]) -> float:
    """Slope of log duration over log size: 1 for growth in proportion."""
    x, y = [math.log(s) for s in sizes], [math.log(d) for d in durations]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Processor, GPU, versions and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = f"{len(names)} x {names[0]}" if names else processor
    return {
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if settings.cuda else None,
        "threads": settings.threads,
        "quick": settings.quick,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if settings.cuda else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
