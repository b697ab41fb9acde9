"""Synchronised batch normalisation keeps what timm's layers compute."""

from __future__ import annotations

import copy

import torch
from torch.nn import SyncBatchNorm as TorchSyncBatchNorm

from bestie_pl.models.bestie import BestieModel
from bestie_pl.modules.layer_sync import SyncBatchNorm


def test_activations_survive_and_every_layer_is_synchronised() -> None:
    model = BestieModel(2, "tf_efficientnet_lite0", "pyramid").eval()
    images = torch.rand(1, 3, 64, 64)
    expected = model(images)
    converted = SyncBatchNorm().apply(copy.deepcopy(model))
    assert not any(type(m) is torch.nn.BatchNorm2d for m in converted.modules())
    assert sum(isinstance(m, TorchSyncBatchNorm) for m in converted.modules()) > 40
    for found, right in zip(converted(images), expected, strict=True):
        torch.testing.assert_close(found, right)
    assert converted.state_dict().keys() == model.state_dict().keys()
