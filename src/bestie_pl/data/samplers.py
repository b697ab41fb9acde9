"""Which images an epoch shows, in which order, and to which process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class TrainingSampler(DistributedSampler[int]):
    """Shuffles anew each epoch (Lightning calls ``set_epoch``), divides among processes, tells items the epoch.

    Args:
        dataset: The training images.
        world: Number of processes.
        rank: Which one this is.
        seed: The same in all processes.
        repeats: (N,) how often an epoch shows each image on average, at least 1; once if omitted.
    """

    def __init__(self, dataset: Sized, world: int, rank: int, seed: int, repeats: Tensor | None = None) -> None:
        self.repeats = torch.ones(len(dataset)) if repeats is None else repeats
        self.most = 1 if repeats is None else math.ceil(repeats.max()) + 1
        places = range(math.ceil(self.repeats.double().sum()))
        super().__init__(places, world, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        image = self._images()
        # repetitions are items of their own: they are augmented differently
        before = torch.arange(len(image)) - torch.searchsorted(image, image)
        # an element of an array is read in a tenth of the time that one of a tensor takes
        items = ((self.epoch * self.most + before) * len(self.repeats) + image).numpy()
        return (int(items[place]) for place in super().__iter__())

    def _images(self) -> Tensor:
        """The image of each place in an epoch: one that is due 1.3 times has a second place in 3 of 10 epochs."""
        places = len(self.dataset)  # type: ignore[arg-type]
        ends = self.repeats.double().cumsum(0)
        offset = torch.rand((), generator=torch.Generator().manual_seed(self.seed + self.epoch), dtype=torch.float64)
        at = (torch.arange(places) + offset) * (ends[-1] / places)
        return torch.searchsorted(ends, at, right=True).clamp_(max=len(self.repeats) - 1)


def repeat_factors(tags: Tensor, threshold: float) -> Tensor:
    """How often an epoch shows each image, so that rare classes are seen more often.

    A class that a share ``f`` of the images has is due ``max(1, sqrt(threshold / f))`` times; an image as often as the
    most wanted of its classes.

    Args:
        tags: (N, C) bool.
        threshold: Share of the images; classes that fewer have are repeated.

    Returns:
        (N,) float32, at least 1.

    Source: repeat factor sampling, LVIS (Gupta et al., CVPR 2019).

    >>> repeat_factors(torch.tensor([[True, False], [True, False], [True, False], [True, True]]), 1.0).tolist()
    [1.0, 1.0, 1.0, 2.0]
    """
    factors = torch.ones(len(tags))
    # class by class: a table of numbers for all of them would take four times the memory of the tags
    for has in tags.unbind(1):
        share = float(has.float().mean())
        if 0 < share < threshold:
            factors[has] = factors[has].clamp(min=math.sqrt(threshold / share))
    return factors


class EvaluationSampler(DistributedSampler[int]):
    """Each image exactly once over all processes, which may get different numbers of them, or none.

    A DistributedSampler in name, so that Lightning leaves it alone whatever ``use_distributed_sampler`` says. ``rows``
    restricts it to some images.
    """

    def __init__(self, dataset: Sized, world: int, rank: int, rows: Sequence[int] | None = None) -> None:
        super().__init__(dataset, world, rank, shuffle=False)  # type: ignore[arg-type]
        self.indices = (range(len(dataset)) if rows is None else rows)[rank::world]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
