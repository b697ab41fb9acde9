"""Reading the network's maps at some pixels, whether the maps are as large as the image or are yet to be enlarged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PixelSpots(NamedTuple):
    """Where P pixels lie in maps of their own resolution: three times (P,) int64."""

    image: Tensor
    y: Tensor
    x: Tensor

    @classmethod
    def of(cls, pixel: Tensor, size: tuple[int, int]) -> PixelSpots:
        """From an index (P,) into the flat (B, H, W)."""
        row = pixel // size[1]
        image = row // size[0]
        # no remainders: a division takes as long as all the rest
        return cls(image, row - image * size[0], pixel - row * size[1])

    def read(self, values: Tensor, channel: Tensor) -> Tensor:
        """One channel of a map at each pixel.

        Args:
            values: (B, K, H, W), any floating type and memory format.
            channel: (P,) int64.

        Returns:
            (P,) float32.
        """
        return values[self.image, channel, self.y, self.x].float()

    def read_all(self, values: Tensor) -> Tensor:
        """All channels, one by one: (K, P) float32. For few channels."""
        return torch.stack([values[self.image, k, self.y, self.x].float() for k in range(values.shape[1])])

    def read_rows(self, values: Tensor, count: int) -> Iterator[Tensor]:
        """All channels of ``count`` pixels at a time: (count, K) float32, the last one shorter. For many channels."""
        cells = values.permute(0, 2, 3, 1)
        for start in range(0, len(self.image), count):
            yield cells[tuple(self.select(slice(start, start + count)))].float()

    def select(self, rows: Tensor | slice) -> PixelSpots:
        """Those of an index (R,) or a slice."""
        return PixelSpots(*_select(self, rows))


class CellSpots(NamedTuple):
    """Where P pixels lie among the cells of maps (B, K, h, w) that are yet to be enlarged.

    What is read equals the enlarged map up to float32 rounding. ``cell``: (P,) int64 into the flat (B, h, w), the upper
    left of the four around a pixel. ``down`` and ``right``: (P,) float32 in [0, 1], the shares of the lower two and of
    the right two.
    """

    cell: Tensor
    down: Tensor
    right: Tensor

    def read(self, values: Tensor, channel: Tensor) -> Tensor:
        """See ``PixelSpots.read``."""
        cells = cells_of(values)
        return self._blend(cells.view(-1), self.cell * cells.shape[3] + channel, cells)

    def read_all(self, values: Tensor) -> Tensor:
        """See ``PixelSpots.read_all``."""
        cells = cells_of(values)
        place = self.cell * cells.shape[3]
        return torch.stack([self._blend(cells.view(-1)[k:], place, cells) for k in range(cells.shape[3])])

    def read_rows(self, values: Tensor, count: int) -> Iterator[Tensor]:
        """See ``PixelSpots.read_rows``."""
        cells = cells_of(values)
        table = cells.view(-1, cells.shape[3])
        for start in range(0, len(self.cell), count):
            # one pass over all channels; ``_blend``, which rounds as enlarged maps do, would take seven
            index, share = self.select(slice(start, start + count)).corners(cells.shape[2])
            yield F.embedding_bag(index, table, mode="sum", per_sample_weights=share)

    def select(self, rows: Tensor | slice) -> CellSpots:
        """See ``PixelSpots.select``."""
        return CellSpots(*_select(self, rows))

    def corners(self, width: int) -> tuple[Tensor, Tensor]:
        """The four cells around each pixel in maps of ``width``, and their shares, sum 1: (P, 4) int64 and float32."""
        up, left = 1 - self.down, 1 - self.right
        corners = ((0, up, left), (1, up, self.right), (width, self.down, left), (width + 1, self.down, self.right))
        index, share = self.cell.new_empty(len(self.cell), 4), self.down.new_empty(len(self.cell), 4)
        # column by column: stacking them takes twice as long
        for number, (step, of_row, of_column) in enumerate(corners):
            torch.add(self.cell, step, out=index[:, number])
            torch.mul(of_row, of_column, out=share[:, number])
        return index, share

    def _blend(self, flat: Tensor, place: Tensor, cells: Tensor) -> Tensor:
        """Mean of ``flat`` at ``place`` (P,) and at the same channel of the cells to the right, below, and across."""
        step_right, step_down = cells.shape[3], cells.shape[2] * cells.shape[3]
        # columns first, like the enlargement of whole maps; shifted views cost less than shifted indices
        upper = torch.lerp(flat.index_select(0, place), flat[step_right:].index_select(0, place), self.right)
        flat = flat[step_down:]
        lower = torch.lerp(flat.index_select(0, place), flat[step_right:].index_select(0, place), self.right)
        return torch.lerp(upper, lower, self.down)


Spots = PixelSpots | CellSpots


def cells_of(values: Tensor) -> Tensor:
    """A map (B, K, h, w) as (B, h, w, K) float32, contiguous, at least two cells high and wide.

    Costs nothing if the map is float32 and laid out channels last. A single row or column of cells is doubled: what
    lies between equal values is the same.
    """
    height, width = values.shape[-2:]
    values = values.expand(-1, -1, max(height, 2), max(width, 2))
    return values.permute(0, 2, 3, 1).float().contiguous()


def _select(columns: Sequence[Tensor], rows: Tensor | slice) -> list[Tensor]:
    return [column[rows] if isinstance(rows, slice) else column.index_select(0, rows) for column in columns]
