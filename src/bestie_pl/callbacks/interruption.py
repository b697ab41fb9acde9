"""Signals and failures: a run ends in all its processes, between two steps, saved, and its status says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import STEP_OUTPUT

from bestie_pl.callbacks.checkpoints import NewestState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 20.0
"""Seconds in which a signalled training comes to the end of its step. Schedulers kill after 30 or more."""
FOLLOWING = 10.0
"""Seconds for the other processes to end by themselves."""

_STOP = "bestie_pl/stop"


class Interruption(Callback):
    """End a run on SIGINT (Ctrl-C) or SIGTERM, and all processes of it when one fails.

    A signal to any process of a training lets all of them finish the step, save the state and end, with 130 or 143 (128
    and the number of the signal) as their status. In a validation all end at once; it is not made up for later. Outside
    of a training there is nothing to save, and the signal ends the process where it is, as does a second one. A process
    that does not come to the end of its step ends after ``GRACE`` seconds.

    A process that fails says why; the first one then ends those that it started, and is ended by Lightning's observer
    where another one fails.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._training = False
        self._step = 0
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    # ---------------------------------------------------------------- signals

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Know the processes that this one has started."""
        self._signal, self._training = 0, False
        self._children = list(getattr(trainer.strategy.launcher, "procs", []))

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        self._listen(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        self._listen(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        self._listen(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals."""
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._listen(trainer)
        self._training, self._step = True, trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """After an optimiser step, stop in all processes if one of them was told to."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._stop_together(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a training's validation; the processes have different numbers of batches, and meet at its end."""
        if self._training and self._told(trainer):
            raise StopIteration

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before scores are computed that would be those of a part of the images."""
        if self._training:
            self._stop_together(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes now is short, and the state is saved."""
        self._training = False
        self._cancel_timer()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back; one that came after the last step still says how the process ends."""
        self._give_back()
        number, self._signal = self._signal, 0
        if number:
            _end_with(number)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Overrule Lightning, whose handler of SIGTERM makes processes wait for each other and ends them with 0."""
        if trainer.received_sigterm:  # before this had taken over
            _end_with(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            current = signal.getsignal(number)
            # a shell's background jobs ignore SIGINT
            if current != signal.SIG_IGN and current != self._handle:
                self._before.setdefault(number, current)
                signal.signal(number, self._handle)

    def _give_back(self) -> None:
        self._cancel_timer()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if signal.getsignal(number) == self._handle:  # Lightning may have done so
                    signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal or not self._training:
            self._cancel_timer()
            _end_with(number)
        self._signal = number
        self._say(f"{signal.Signals(number).name}: the training stops after this step; again to stop at once")
        self._timer = threading.Timer(GRACE, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _told(self, trainer: pl.Trainer) -> bool:
        """Whether this process, or another one that has said so, got a signal."""
        if trainer.world_size == 1:
            return bool(self._signal)
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        if self._signal:
            store.set(_STOP, str(self._signal))
        return bool(self._signal) or bool(store.check([_STOP]))

    def _stop_together(self, trainer: pl.Trainer) -> None:
        """All processes call this at the same place."""
        number = self._signal
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        self._cancel_timer()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, NewestState):
                callback.keep(trainer)
                saved = callback.best_model_path
                rank_zero_info(f"saved checkpoint to {saved}; --ckpt_path last goes on from it" if saved else "")
        self._forget_children(trainer)
        self._signal, self._training = number, False
        _end_with(number)

    def _give_up(self) -> None:
        self._say(f"the step did not end in {GRACE:.0f} s; the newest checkpoint is that of an earlier step")
        for child in self._children:
            child.kill()
        os._exit(128 + self._signal)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _say(message: str) -> None:
        # not through print, which must not be entered twice
        os.write(sys.stderr.fileno(), f"bestie-pl: {message}\n".encode())

    # ---------------------------------------------------------------- failures

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End the processes that this one started."""
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        self._give_back()
        # nobody observes them any more, or this process would be killed while it ends by itself
        self._forget_children(trainer)
        failed = 0
        if stopped and self._signal:
            _all_ended(self._children, FOLLOWING)
        elif isinstance(exception, RuntimeError):  # perhaps because another process is no more
            failed = _first_failure(self._children, FOLLOWING)
        for child in self._children:
            child.kill()
        if failed:
            self._say(f"another process of this run ended with status {failed}; its message says why")
            raise SystemExit(failed if failed > 0 else 128 - failed) from exception

    def _forget_children(self, trainer: pl.Trainer) -> None:
        procs = getattr(trainer.strategy.launcher, "procs", None)
        if isinstance(procs, list):
            procs.clear()


def end_with_parent(parent: int | None = None, *, seconds: float = FOLLOWING) -> None:
    """Let this process end some seconds after the one that started it, wherever it waits for that one.

    A first process that is killed, or ended by a signal before a run has begun, tells the others nothing.

    Args:
        parent: Number of that process, which may be no more; the present parent if omitted.
        seconds: For this one to end by itself.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _first_failure(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> int:
    """Status of the first process to fail; 0 if all end well, or none fails in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        statuses = [child.poll() for child in children]
        if failed := next((status for status in statuses if status), 0):
            return failed
        if None not in statuses:
            return 0
        time.sleep(0.05)
    return 0


def _all_ended(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)


def _end_with(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
