"""A training that was interrupted goes on with the batch that would have come next."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def position(trainer: pl.Trainer | None) -> tuple[int, int]:
    """The epoch in which a trainer is, from 0, and how many of its batches have been trained on."""
    if trainer is None:
        return 0, 0
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
    under_way = epochs.started > epochs.processed
    return epochs.processed, batches.processed if under_way else 0


def settle(trainer: pl.Trainer | None) -> None:
    """Put a trainer that was just restored between two batches, before it starts.

    A checkpoint is written in the middle of Lightning's bookkeeping: before or after an epoch or a validation counts as
    finished. Lightning guesses what is left to do, and adds a batch to a finished epoch where ``max_steps`` is set and
    there is no validation. Here an epoch whose last batch was trained on is over, and the next one starts;
    otherwise the epoch goes on with its next batch. A validation that was interrupted is not made up for.

    Of a trainer that was not restored nothing changes.
    """
    loop: Any = None if trainer is None else trainer.fit_loop
    if loop is None or not (loop.restarting or loop.is_resuming):
        return
    steps, epochs, batches = loop.epoch_loop, loop.epoch_progress, loop.epoch_loop.batch_progress
    started = epochs.current.started
    if batches.is_last_batch and 0 < batches.current.processed == batches.current.ready:
        finished, done = started, 0
    elif batches.current.processed:
        finished, done = started - 1, batches.current.processed
    else:
        finished, done = epochs.current.processed, 0
    for progress in (epochs.total, epochs.current):
        progress.ready = progress.started = started if done else finished
        progress.processed = progress.completed = finished
    batches.is_last_batch = False
    batches.total.ready = batches.total.started = batches.total.completed = batches.total.processed
    batches.current.ready = batches.current.started = batches.current.processed = batches.current.completed = done
    if not done:
        steps.scheduler_progress.reset_on_run()
        steps.automatic_optimization.optim_progress.reset_on_run()
        # nothing is half done: with max_steps Lightning would still take it for a restart, and count a batch of none
        loop._restarting = steps.restarting = False
    steps.val_loop.batch_progress.reset()
    steps._batches_that_stepped = steps.global_step  # what loggers count
