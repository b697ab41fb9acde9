"""From images of any source and size to results, with any network that finds instances in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from bestie_pl.data.samples import STRIDE, Sample, collate, resize_sample, scaled
from bestie_pl.drawing import Picture
from bestie_pl.ops.tiles import Window, windows
from bestie_pl.prediction.mosaic import Mosaic
from bestie_pl.prediction.result import Result
from bestie_pl.prediction.sources import NamedPicture, Source, open_source
from bestie_pl.progress import progress
from bestie_pl.recipe import Recipe
from bestie_pl.structures import Batch, Cues, Instances

TILE = 2048
"""Side of a tile in pixels of the network's input: more than photographs have, and what most machines hold."""
OVERLAP = 512
"""Of neighbouring tiles: the paper's objects have up to 400 px."""
MARGIN = 32
"""How near the border of its tile an object counts as cut off, in pixels of the network's input."""


class InstanceNetwork(Protocol):
    """What is asked of a network; ``BestieModule`` is one."""

    class_names: tuple[str, ...]
    recipe: Recipe
    training: bool

    @property
    def device(self) -> torch.device:
        """Where batches have to be."""

    @property
    def oracle(self) -> str | None:
        """What is given of the images that are predicted; None."""

    def train(self, mode: bool = True) -> object:
        """Switch between training and evaluation."""

    def predict_instances(self, batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
        """Scored masks and semantic maps of each image, at the original size."""


class Predictor:
    """Finds the instances of images from any source, of any size.

    An image that is larger than a tile is looked at tile by tile (``Mosaic`` says how objects at seams become one).
    Objects should be smaller than the overlap less 64 px, so that each lies whole in one of the tiles; of larger ones
    the parts are joined. Memory then grows by some 10 bytes a pixel of the image, whatever the network and the number
    of classes, on top of what one tile takes.

    Args:
        network: In evaluation as it is used here; it may be in training otherwise.
        image_scale: Factor by which images are enlarged beforehand, as for the network's training.
        tile: Side in pixels of the network's input, a multiple of 32.
        overlap: Of neighbouring tiles, at least 64 px and at most half a tile, a multiple of 32.

    Raises:
        ValueError: A number out of its range, or the network is told an oracle, which a source cannot give.
    """

    def __init__(
        self, network: InstanceNetwork, *, image_scale: float = 1.0, tile: int = TILE, overlap: int = OVERLAP
    ) -> None:
        if not image_scale > 0:
            raise ValueError(f"image_scale must be positive, got {image_scale}")
        if tile % STRIDE or overlap % STRIDE or not 2 * MARGIN <= overlap <= tile / 2:
            raise ValueError(
                f"tile and overlap must be multiples of {STRIDE}, and overlap at least {2 * MARGIN} and at most half a "
                f"tile; got {tile} and {overlap}"
            )
        if network.oracle is not None:
            raise ValueError(f"images alone give no {network.oracle}; load the network with oracle: null")
        self.network = network
        self.image_scale, self.tile, self.overlap = image_scale, tile, overlap

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all classes, in the order of their numbers."""
        return self.network.class_names

    @overload
    def __call__(self, source: Source | Sequence[Source]) -> list[Result]: ...
    @overload
    def __call__(self, source: Source | Sequence[Source], *, stream: Literal[False]) -> list[Result]: ...
    @overload
    def __call__(self, source: Source | Sequence[Source], *, stream: Literal[True]) -> Iterator[Result]: ...
    def __call__(self, source: Source | Sequence[Source], *, stream: bool = False) -> list[Result] | Iterator[Result]:
        """The result of each image, in the order of the source.

        Args:
            source: A path, folder, pattern, Pillow image, array, tensor, or a list of these; see ``open_source``.
            stream: Return a generator, which opens and predicts an image when its result is asked for, instead of a
                list that holds all images.

        Raises:
            FileNotFoundError: No such file, or no image in a folder. Raised before anything is predicted.
            ValueError: Not an image.
        """
        pictures = open_source(source)
        results = (self._result(named) for named in pictures)
        return results if stream else list(results)

    def _result(self, named: NamedPicture) -> Result:
        was_training = self.network.training
        self.network.train(False)
        try:
            instances = self._find(named.picture)
        finally:
            self.network.train(was_training)
        return Result(named.name, named.picture, instances, self.class_names, named.path)

    @torch.no_grad()
    def _find(self, picture: Picture) -> Instances:
        size = (picture.shape[0], picture.shape[1])
        if max(scaled(size, self.image_scale)) <= self.tile:
            return self._find_whole(picture)
        # in pixels of the image; those of the network's input where the scale is a power of two
        side, overlap, margin = (max(1, round(n / self.image_scale)) for n in (self.tile, self.overlap, MARGIN))
        overlap = min(overlap, side // 2)
        mosaic = Mosaic(size, margin=min(margin, overlap // 2))
        for window in progress(list(windows(size, side, overlap)), "tiles", "tiles"):
            mosaic.add(window, self._find_whole(_cut(picture, window)))
        return mosaic.instances()

    def _find_whole(self, picture: Picture) -> Instances:
        size = (picture.shape[0], picture.shape[1])
        tags = torch.zeros(len(self.class_names), dtype=torch.bool)
        image = torch.from_numpy(np.array(picture.transpose(2, 0, 1)))
        sample = Sample("", image, tags, Cues.empty(), size)
        target = scaled(size, self.image_scale)
        if self.network.recipe == "release":  # evaluates images at such sizes
            target = (-(-target[0] // STRIDE) * STRIDE, -(-target[1] // STRIDE) * STRIDE)
        if target != size:
            sample = resize_sample(sample, target)
        batch = collate([sample], multiple=STRIDE).to(self.network.device)
        (instances,), _ = self.network.predict_instances(replace(batch, images=batch.images.float() / 255))
        return instances


def _cut(picture: Picture, window: Window) -> Picture:
    return picture[window.top : window.bottom, window.left : window.right]
