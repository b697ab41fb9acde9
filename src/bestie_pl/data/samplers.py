"""Which images an epoch shows, in which order, and to which process."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from bestie_pl.data.formats.images import FORMATS
from bestie_pl.data.shards import opened_file


def run_seed() -> int:
    """The seed that ``seed_everything`` left, the same in all processes; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


NETWORK = 1
"""The stream of what a network draws, such as dropout, which shall not follow the augmentation's draws."""


def draw_seed(rank: int, batch: int, *stream: int) -> int:
    """Seed of what is drawn at random for a process's ``batch``-th batch: the same after an interruption.

    Args:
        rank: Of the process.
        batch: Counted from the start of the training.
        stream: Tells apart what draws independently for the same batch; augmentation has none.
    """
    return int(np.random.SeedSequence([run_seed(), rank, batch, *stream]).generate_state(1, np.uint64)[0])


class TrainingSampler(DistributedSampler[int]):
    """Shuffles anew each epoch, divides among processes, tells items the epoch; starts anywhere in an epoch.

    Args:
        dataset: The training images.
        world: Number of processes.
        rank: Which one this is.
        seed: The same in all processes.
        repeats: (N,) how often an epoch shows each image on average, at least 1; once if omitted.
        position: The epoch, and how many of this process's items in it have been seen: where to start, asked when
            workers begin to read, which is before Lightning calls ``set_epoch``. The start of the epoch that was set if
            omitted.
    """

    def __init__(
        self,
        dataset: Sized,
        world: int,
        rank: int,
        seed: int,
        repeats: Tensor | None = None,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.position = position
        self.repeats = torch.ones(len(dataset)) if repeats is None else repeats
        self.most = 1 if repeats is None else math.ceil(repeats.max()) + 1
        places = range(math.ceil(self.repeats.double().sum()))
        super().__init__(places, world, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        seen = 0
        if self.position is not None:
            self.epoch, seen = self.position()
        image = self._images()
        # repetitions are items of their own: they are augmented differently
        before = torch.arange(len(image)) - torch.searchsorted(image, image)
        # an element of an array is read in a tenth of the time that one of a tensor takes
        items = ((self.epoch * self.most + before) * len(self.repeats) + image).numpy()
        return (int(items[place]) for place in list(super().__iter__())[seen:])

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


SMALL_BATCH = 2**20
"""Pixels of a batch, padding included, whose memory does not matter."""


class EvaluationBatches(BatchSampler):
    """Images in their order, as many together as ``batch_size`` and their sizes allow.

    Images of a batch are padded to the largest. A large batch ends before an image that would make more than a third of
    it padding, so that memory follows the images: one of 4,000 px among small ones is seen alone.

    Args:
        sampler: Not looked at. Lightning makes batch samplers anew with another one.
        batch_size: Images of a batch, at most.
        drop_last: Not looked at: no image is left out.
        images: Which images, in their order.
        size_of: (H, W) of an image, roughly; asked once an image.
        join: Where there is no image there is one batch of none. A process thereby joins the others wherever they wait
            for each other.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        *,
        images: Sequence[int],
        size_of: Callable[[int], tuple[int, int]],
        join: bool = False,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.images, self.size_of, self.join = images, size_of, join

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    @cached_property
    def _batches(self) -> list[list[int]]:
        batches: list[list[int]] = []
        height = width = area = 0
        for image in self.images:
            h, w = self.size_of(image) if self.batch_size > 1 else (1, 1)
            height, width, area = max(height, h), max(width, w), area + h * w
            count = len(batches[-1]) if batches else self.batch_size
            if count == self.batch_size or height * width * (count + 1) > max(SMALL_BATCH, 1.5 * area):
                batches.append([])
                height, width, area = h, w, h * w
            batches[-1].append(image)
        return batches or [[]] * self.join


def stored_size(path: Path) -> tuple[int, int]:
    """(H, W) as the head of a file says, or (1, 1): what is wrong with it is said where it is read."""
    try:
        with Image.open(opened_file(path), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # Pillow raises whatever it meets
        return 1, 1
