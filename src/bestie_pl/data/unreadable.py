"""Training goes on over a few images that cannot be read, if it was told to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from bestie_pl.data.formats.images import open_image
from bestie_pl.errors import UserError


class Unreadable:
    """Opens images, the next one of the list in the place of one that cannot be read; at most so many of these.

    Which image takes the place depends on the files alone: neither on workers nor on processes nor on interruptions.
    The workers of a process count together; each image is named once, in a warning.

    Args:
        images: Paths of the training images.
        most: How many of them may be unreadable.
    """

    def __init__(self, images: Sequence[str], most: int) -> None:
        self.images, self.most = images, most
        self._known = torch.zeros(len(images), dtype=torch.bool)
        self._known.share_memory_()  # type: ignore[no-untyped-call]

    def open(self, index: int) -> tuple[int, Image.Image]:
        """The ``index``-th image or the next one that can be read, and its number.

        Raises:
            UserError: More than ``most`` images cannot be read, or none can.
        """
        for step in range(len(self.images)):
            place = (index + step) % len(self.images)
            path = Path(self.images[place])
            try:
                return place, open_image(path)
            except (UserError, OSError) as error:
                self._count(place, str(error))
        raise UserError(f"{self.images[index]} and all other training images cannot be read; restore them")

    def _count(self, place: int, problem: str) -> None:
        if self._known[place]:
            return
        self._known[place] = True
        count = int(self._known.sum())
        if count > self.most:
            raise UserError(
                f"{problem}. {count} training images cannot be read, and max_unreadable allows {self.most}: restore "
                "them, or allow more"
            )
        warnings.warn(
            f"{problem}. Another image is shown in its place; max_unreadable allows {self.most - count} more",
            stacklevel=2,
        )

    def found(self) -> list[str]:
        """Paths of the images that could not be read so far."""
        return [self.images[place] for place in self._known.nonzero()[:, 0].tolist()]
