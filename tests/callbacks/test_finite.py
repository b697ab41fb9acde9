"""The first loss that is no number ends the training, before the weights have seen it."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from quick import make_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from bestie_pl.callbacks.finite import StopAtNonFinite
from bestie_pl.structures import Batch, Cues


def batch(number: int) -> Batch:
    names = (f"image{number}", f"picture{number}")
    sizes = ((4, 4), (4, 4))
    return Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, dtype=torch.bool), Cues.empty(), names, sizes, sizes)


class Spoilt(pl.LightningModule):
    """Its loss or its gradient is not finite in one batch."""

    def __init__(self, number: int, kind: str) -> None:
        super().__init__()
        self.number, self.kind = number, kind
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.weights: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.weights.append(float(self.weight.detach()))
        if batch_idx != self.number:
            return self.weight.square().sum()
        if self.kind == "gradient":  # the root of zero has a finite value and no finite slope
            return (self.weight - self.weight.detach()).sqrt().sum()
        return self.weight.sum() * float(self.kind)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "accumulated", "says"),
    [
        ("nan", 1, "the loss is nan in step 2, in a batch of image2, picture2; the weights are as they were"),
        ("-inf", 2, "the loss is -inf in step 1, in a batch of image2, picture2;"),
        ("gradient", 1, "the gradients are not finite in step 2, in a batch of image2, picture2;"),
    ],
)
def test_it_stops_before_the_step_and_names_the_images(kind: str, accumulated: int, says: str, tmp_path: Any) -> None:
    module = Spoilt(2, kind)
    settings: dict[str, Any] = {"max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": accumulated}
    trainer = make_trainer(tmp_path, callbacks=[StopAtNonFinite()], **settings)
    with pytest.raises(ValueError, match=says):
        trainer.fit(module, DataLoader([batch(number) for number in range(4)], batch_size=None))
    assert float(module.weight.detach()) == module.weights[2] and 0 < module.weights[2] < 1
