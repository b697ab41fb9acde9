"""Stop at the first loss that is no number, before the weights have seen it."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer


class StopAtNonFinite(Callback):
    """Raise ValueError instead of an optimiser step if its loss or its gradients are not finite.

    The message names the images of the batch. All processes stop, since gradients are those of all of them. With
    ``16-mixed``, gradients overflow now and then and Lightning leaves out the step; losses are looked at all the same.
    """

    def __init__(self) -> None:
        self._batch: tuple[str, ...] = ()
        self._seen: list[tuple[tuple[str, ...], Tensor]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what the images are called."""
        self._batch = tuple(getattr(batch, "names", ()))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss; to look at it now would make a device wait."""
        self._seen.append((self._batch, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at everything that this step rests on."""
        if not self._seen:  # the module has left out the batch
            return
        names, losses = [batch for batch, _ in self._seen], torch.stack([loss for _, loss in self._seen])
        self._seen = []
        gradients: list[Tensor] = []
        if trainer.precision != "16-mixed":
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else losses.new_zeros(1)
        if bool(losses.isfinite().all() & norms.isfinite().all()):
            return
        bad = [row for row, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
        what = f"the loss is {losses[bad[0]].item()}" if bad else "the gradients are not finite"
        where = ", ".join(name for row in bad or range(len(names)) for name in names[row])
        raise ValueError(
            f"{what} in step {trainer.global_step}, in a batch of {where or 'images without names'}; the weights are "
            "as they were before it. Look at these images and their labels, or use a smaller learning rate"
        )
