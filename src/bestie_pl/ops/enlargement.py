"""Enlarging the network's maps to pixels: all of them, some of them, or band by band.

Maps leave the network with a quarter of the image's height and width. Enlarged maps with a channel a class take 16
times their memory; what follows needs only few of the pixels, or can do with some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.structures import InstanceMaps

CPU_BAND = 2**20
"""Values of an enlarged map that are worked on together on a CPU: what its cache holds. Changes no result."""

DEVICE_BAND = 2**26
"""The same on other devices, where starting an operation has its price: 256 MB."""


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


@dataclass(frozen=True)
class Enlargement:
    """Bilinear, in float32, from maps of (h, w) cells to ``grid``, of which the first rows and columns are kept.

    Args:
        size: (H, W) of the result.
        grid: Height and width that the cells are spread over; at least ``size``.
        align_corners: Whether the corner cells lie on the grid's corner pixels, instead of each cell covering its part.

    >>> Enlargement((1, 3), (1, 4))(torch.tensor([[[[0.0, 1.0]]]])).tolist()
    [[[[0.0, 0.25, 0.75]]]]
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.size[0] > self.grid[0] or self.size[1] > self.grid[1]:
            raise ValueError(f"a grid of {self.grid} cannot be cut to {self.size}")

    def __call__(self, values: Tensor) -> Tensor:
        """(B, K, h, w) enlarged to (B, K, H, W)."""
        large = F.interpolate(values.float(), self.grid, mode="bilinear", align_corners=self.align_corners)
        return large[..., : self.size[0], : self.size[1]]

    def all(self, maps: InstanceMaps) -> InstanceMaps:
        """All three maps enlarged."""
        return InstanceMaps(*(self(one) for one in maps))

    def axis(self, which: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the pixels of an axis lie among its cells.

        Args:
            which: 0 for rows, 1 for columns.
            cells: Number of cells along the axis, at least 2.
            device: Of the result.

        Returns:
            first: (n,) int64 in 0..cells - 2: a pixel lies between this cell and the next one.
            share: (n,) float32 in [0, 1], of the next one.
        """
        if self.align_corners:
            at = torch.arange(self.size[which], device=device) * ((cells - 1) / max(self.grid[which] - 1, 1))
        else:
            at = (torch.arange(self.size[which], device=device) + 0.5) * (cells / self.grid[which]) - 0.5
        at = at.float().clamp(0, cells - 1)
        first = at.long().clamp(max=cells - 2)
        return first, at - first

    def locate(self, pixel: Tensor, shape: Sequence[int]) -> CellSpots:
        """Where to read a map for some pixels of what it is enlarged to.

        Args:
            pixel: (P,) int64, index into the flat (B, H, W).
            shape: Of the map, (B, K, h, w).
        """
        # as ``cells_of`` has it
        height, width = (max(2, cells) for cells in shape[-2:])
        (top, down), (left, right) = (self.axis(i, cells, pixel.device) for i, cells in enumerate((height, width)))
        # tables of the rows of all images: one division a pixel
        image = torch.arange(shape[0], device=pixel.device)[:, None]
        first = ((image * height + top) * width).flatten()
        row = pixel // self.size[1]
        x = pixel - row * self.size[1]
        return CellSpots(
            cell=first.index_select(0, row) + left.index_select(0, x),
            down=down.repeat(shape[0]).index_select(0, row),
            right=right.index_select(0, x),
        )

    def bands(self, cells: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The enlarged map, some rows at a time, channels last.

        Args:
            cells: (B, h, w, K) from ``cells_of``.

        Yields:
            The rows, and the map there: (B, n, W, K).
        """
        height, width = self.size
        top, down = self.axis(0, cells.shape[1], cells.device)
        rows = at_a_time(len(cells) * width * cells.shape[3], cells.device)
        for start in range(0, height, rows):
            band = slice(start, min(start + rows, height))
            first, share = top[band], down[band][:, None, None]
            yield band, self._widen(torch.lerp(cells[:, first], cells[:, first + 1], share))

    def add_band(self, gradient: Tensor, band: slice, of_band: Tensor) -> None:
        """Add to a gradient (B, h, w, K) of the cells what follows from that of a band, (B, n, W, K)."""
        height, width = gradient.shape[1:3]
        top, down = self.axis(0, height, gradient.device)
        first, share = top[band], down[band][:, None, None]
        of_rows = self._narrow(of_band, width)
        gradient.index_add_(1, first + 1, of_rows * share)
        gradient.index_add_(1, first, of_rows * (1 - share))

    def _widen(self, rows: Tensor) -> Tensor:
        """(B, n, w, K) to (B, n, W, K)."""
        grid = (rows.shape[1], self.grid[1])
        wide = F.interpolate(rows.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=self.align_corners)
        return wide.permute(0, 2, 3, 1)[:, :, : self.size[1]]

    def _narrow(self, wide: Tensor, width: int) -> Tensor:
        """The adjoint of ``_widen``."""
        batch, rows, _, channels = wide.shape
        if self.grid[1] > self.size[1]:
            wide = F.pad(wide, (0, 0, 0, self.grid[1] - self.size[1]))
        wide = wide.permute(0, 3, 1, 2)
        narrow: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
            wide, [rows, self.grid[1]], [batch, channels, rows, width], self.align_corners, None, None
        )
        return narrow.permute(0, 2, 3, 1)


def at_a_time(values: int, device: torch.device) -> int:
    """How many things that have so many values each should be worked on together."""
    return max(1, (CPU_BAND if device.type == "cpu" else DEVICE_BAND) // max(1, values))


def find_spots(pixel: Tensor, shape: Sequence[int], enlargement: Enlargement | None) -> Spots:
    """Where to read maps of ``shape`` (B, K, h, w) for pixels (P,), indices into the flat (B, H, W)."""
    if enlargement is None:
        return PixelSpots.of(pixel, (shape[2], shape[3]))
    return enlargement.locate(pixel, shape)
