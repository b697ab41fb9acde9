"""What every LightningModule of this package with a network shares: class names, first weights, optimiser."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from bestie_pl.models.bestie import BestieModel
from bestie_pl.modules.optimization import Optimization, configure, follow_new_rate, take_rates
from bestie_pl.modules.weights import load_network, refuse_other_classes, refuse_other_network

T = TypeVar("T")


class Trained(Protocol):
    """A network that tells its backbone's parameters from the others."""

    def backbone_parameters(self) -> list[nn.Parameter]:
        """What ImageNet weights can fill."""

    def head_parameters(self) -> list[nn.Parameter]:
        """Everything else."""

    def load_backbone_weights(self, source: str) -> None:
        """Fill the backbone completely, or raise."""


def names_of(num_classes: int, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The given names, one a class; ``class0``, ... if there are none.

    Raises:
        ValueError: Another number of names than of classes.
    """
    names = tuple(class_names) if class_names is not None else tuple(f"class{c}" for c in range(num_classes))
    if len(names) != num_classes:
        raise ValueError(f"class_names has {len(names)} names for num_classes={num_classes}; give one name a class")
    return names


def settings_of(kind: type[T], given: T | Mapping[str, Any] | None) -> T:
    """A group of settings, from itself or from the plain dictionary that a checkpoint keeps of it."""
    if isinstance(given, kind):
        return given
    assert given is None or isinstance(given, Mapping)
    return kind(**(given or {}))


def plain(settings: Any) -> dict[str, Any]:
    """A group of settings as a checkpoint and a configuration keep it: a dictionary without tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


def anywhere(module: pl.LightningModule, here: bool) -> bool:
    """Whether something is so in any process; all of them have to ask, or they would wait for each other."""
    trainer = module._trainer
    return here if trainer is None else trainer.strategy.reduce_boolean_decision(here, all=False)


class NetworkModule(pl.LightningModule):
    """A LightningModule with a network in ``model``.

    Weights to start from are read when training starts: by this module's own ``on_fit_start``, or at the first images
    that it sees in training where another LightningModule holds it, whose ``on_fit_start`` is called instead. They are
    never read when weights were loaded into it before (a checkpoint, ``load_state_dict``), or after a first training.

    Args:
        num_classes: Classes without background.
        class_names: One a class; ``class0``, ... if omitted.
        backbone_weights: ``imagenet``, the path of a local file, or None for random weights.
        optimization: Optimiser and schedule.
        init_from: Checkpoint of a training of the same network, to start from in place of ``backbone_weights``.
    """

    model: nn.Module
    network_settings: ClassVar[tuple[str, ...]] = ("num_classes", "backbone", "decoder")
    """The settings that decide which tensors the network has."""

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None,
        *,
        backbone_weights: str | None,
        optimization: Optimization,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        # predicting fewer images than there are processes is fine: each process writes its own
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.num_classes, self.class_names = num_classes, names_of(num_classes, class_names)
        self.backbone_weights, self.init_from = backbone_weights, init_from
        self.optimization = optimization
        self._weights_are_chosen = self._weights_are_given = False
        self._rate_is_new = False
        self.register_load_state_dict_post_hook(_remember_weights)  # type: ignore[no-untyped-call]

    @property
    def lr(self) -> float:
        """Highest learning rate; where Lightning's learning-rate finder reads it and leaves what it found."""
        return self.optimization.lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self.optimization = replace(self.optimization, lr=rate)
        self.hparams["optimization"] = plain(self.optimization)
        self._rate_is_new = True

    def on_fit_start(self) -> None:
        """Read the weights that training starts from, unless a checkpoint has just been restored."""
        if self.trainer.ckpt_path is None and not self._weights_are_given:  # the path is not known in ``setup`` yet
            self.load_first_weights()
        self._weights_are_chosen = True

    def on_train_start(self) -> None:
        """Take the rates of a training of this length, or one that was found after the optimiser was made."""
        for config in self.trainer.lr_scheduler_configs:
            take_rates(config.scheduler)
        if self._rate_is_new:
            follow_new_rate(self.trainer, self.lr)
            self._rate_is_new = False

    def on_fit_end(self) -> None:
        """Another training goes on from here."""
        self._weights_are_given = True

    def load_first_weights(self) -> None:
        """Read those of an earlier training, or of the backbone alone."""
        if self.init_from is not None:
            assert isinstance(self.model, BestieModel)
            load_network(self.model, self.init_from, self)
        elif self.backbone_weights is not None:
            self.network.load_backbone_weights(self.backbone_weights)

    def choose_weights(self) -> None:
        """Read the first weights when a training that another module leads begins, unless there are weights already."""
        if self.training and self._trainer is not None and not self._weights_are_chosen:
            self.load_first_weights()
            self._weights_are_chosen = True

    @torch.no_grad()
    def mean_over_processes(self, counts: Tensor) -> Tensor:
        """Mean of a tensor over the processes that train together; every one of them has to call this."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return counts
        reduced = trainer.strategy.reduce(counts.clone(), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    @property
    @abstractmethod
    def network(self) -> Trained:
        """``model``, as what it is."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two groups of parameters, backbone and head, that follow one schedule at their own rates."""
        heads = [parameter for parameter in self.network.head_parameters() if parameter.requires_grad]
        return configure(self, self.network.backbone_parameters(), heads, self.optimization)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep plain types only: ``__init__`` of a subclass may have got groups of settings as they are."""
        settings = checkpoint.get("hyper_parameters", {})
        groups = {name: plain(value) for name, value in settings.items() if is_dataclass(value)}
        checkpoint["hyper_parameters"] = settings | groups

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network with one clear message."""
        refuse_other_network(checkpoint, self.hparams, self.network_settings)
        refuse_other_classes(checkpoint, self)


def _remember_weights(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, NetworkModule)
    module._weights_are_chosen = True
    # the learning-rate finder puts back what there was before its steps, which nobody has given
    trainer = module._trainer
    if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
        module._weights_are_given = True
