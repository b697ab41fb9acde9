"""BESTIE whose refined labels come from a running mean of the network's weights: a variant that was tried."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bestie_pl import BestieModule
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.structures import Batch, InstanceMaps, LabeledInstances

DECAY = 0.95
"""Share that the mean keeps in a step: it looks back 20 of a training's 150."""


class AveragedRefinement(BestieModule):
    """The labels of section 3.5 from another network than the one that learns them; arguments as for BestieModule."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # in a list: no part of the checkpoint, which holds the network that is evaluated
        self.mean: list[AveragedModel] = []

    def on_train_start(self) -> None:
        """Start the mean at the first weights."""
        super().on_train_start()
        self.mean = [AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)]

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Add the step's weights."""
        self.mean[0].update_parameters(self.model)

    @torch.no_grad()
    def refine(self, maps: InstanceMaps, batch: Batch, enlargement: Enlargement | None = None) -> LabeledInstances:
        """Labels by the mean's maps in the place of the network's; pictures come with maps at the images' size."""
        if enlargement is None or not self.mean:
            return super().refine(maps, batch, enlargement)
        averaged = self.mean[0].eval()(batch.images)
        return super().refine(averaged, batch, enlargement)
