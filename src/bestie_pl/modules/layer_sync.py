"""Batch normalisation over all processes, for timm's networks too."""

from __future__ import annotations

from pytorch_lightning.plugins.layer_sync import LayerSync
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn import Module


class SyncBatchNorm(LayerSync):
    """What ``Trainer(sync_batchnorm=True)`` should be: ``Trainer(plugins=[SyncBatchNorm()])``.

    Lightning's own converts timm's layers that join normalisation and activation (EfficientNet, MobileNet) to plain
    normalisation, and the activations are lost. The command line uses this one for ``trainer.sync_batchnorm: true``.
    """

    def apply(self, model: Module) -> Module:
        """The model with synchronised layers."""
        converted: Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: Module) -> Module:
        """The same model: outside of a distributed training, synchronised layers do what plain ones do."""
        return model
