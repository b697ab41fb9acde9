"""Loaders of samples: batches from worker processes that end when they should."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bestie_pl.data.samples import STRIDE, Sample, collate
from bestie_pl.structures import Batch, Cues

WORKERS_LEFT = 30.0
"""Seconds that a worker lives on after SIGTERM; the step for which it is needed has less."""


def open_loader(
    dataset: Dataset[Sample], workers: int, collate_fn: Callable[[Sequence[Sample]], Batch], **order: Any
) -> DataLoader[Sample]:
    """A loader of batches.

    Args:
        dataset: Of samples.
        workers: Processes that read them; 0 reads in this one.
        collate_fn: Makes samples a batch.
        order: Of the batches: ``sampler`` and ``batch_size``, or ``batch_sampler``.
    """
    # keywords only: Lightning makes prediction loaders anew from the arguments
    return ResumableLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_process,
        **order,
    )


class ResumableLoader(DataLoader[Sample]):
    """A loader that goes on where a training was interrupted: its sampler asks the trainer for the place."""

    def __iter__(self) -> Any:
        """Iterate; workers that are left when Python ends are told so, as they do not listen to its SIGTERM."""
        iterator = super().__iter__()
        if self.num_workers > 0:
            atexit.register(_end_workers, weakref.ref(iterator))
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning takes a loader without this for one that starts from the first image again."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""


def collate_evaluated(samples: Sequence[Sample], *, classes: int, truth: bool) -> Batch:
    """A batch of evaluated images; of none where a process has no image."""
    if samples:
        return collate(samples, multiple=STRIDE)
    nothing = () if truth else None
    return Batch(
        images=torch.zeros(0, 3, STRIDE, STRIDE, dtype=torch.uint8),
        tags=torch.zeros(0, classes, dtype=torch.bool),
        cues=Cues.empty(),
        names=(),
        sizes=(),
        original_sizes=(),
        references=nothing,
        semantic_references=nothing,
    )


def _leave_signals_to_the_process(worker: int) -> None:
    """A signal to all processes of a run ends it after the step, for which the workers are needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)


def _end_workers(iterator: weakref.ref[Any]) -> None:
    if (left := iterator()) is not None:
        left._shutdown_workers()


def _end_soon(number: int, frame: FrameType | None) -> None:
    """A second one ends the worker, as time does: Python sends it to workers that hang at its exit, and waits."""
    signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "setitimer"):  # not on Windows, where nothing sends it
        signal.setitimer(signal.ITIMER_REAL, WORKERS_LEFT)
