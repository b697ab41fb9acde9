"""Sums over maps that the losses need, with gradients of their own: of an enlarged map without enlarging it.

A map with a channel a class at the size of the labels would be most of a training's memory. What the losses need of it
are numbers a pixel, and these follow from the cells of the small map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.structures import IGNORE


class SquaresAndSamples(torch.autograd.Function):
    """Sum over the channels of a map's squares, (B, H, W), and the map's values at some flat indices, (E,).

    Two autograd operations would each build and then add up a dense gradient of the whole map; here there is one.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What the class says."""
        ctx.save_for_backward(values, index)
        return values.square().sum(1), values.flatten()[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of the map; the other arguments have none."""
        values, index = ctx.saved_tensors
        of_squares, of_samples = gradients
        gradient = (values * (2 * of_squares)[:, None]).flatten()
        return gradient.index_add_(0, index, of_samples).view(values.shape), None


class SquaresAndSamplesOfCells(torch.autograd.Function):
    """The same of an enlarged map without enlarging it, and the squares at some pixels only, (P,).

    A pixel's values are means of those of the four cells around it, so the sum of their squares is a quadratic form of
    the cells' inner products: the channels are summed once, at the cells' resolution. As a matrix product, the pixel's
    rows times a 3 x 3 table of its cells times its columns, ``[(1 - s)^2, s^2, 2 s (1 - s)]`` of its shares.
    """

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, enlargement: Enlargement, pixel: Tensor, sampled: Tensor, channel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the class says."""
        ctx.save_for_backward(cells, pixel, sampled, channel)
        ctx.enlargement = enlargement
        batch, height, width, _ = cells.shape
        own = cells.square().sum(3)
        beside = (cells[:, :, 1:] * cells[:, :, :-1]).sum(3)
        below = (cells[:, 1:] * cells[:, :-1]).sum(3)
        # mean of the two diagonals of four cells
        across = cells[:, 1:, 1:] * cells[:, :-1, :-1]
        across = across.addcmul_(cells[:, 1:, :-1], cells[:, :-1, 1:]).sum(3) / 2
        table = cells.new_zeros(batch, height, width, 3, 3)
        for (row, column), values in _table_entries(own, beside, below, across):
            table[:, :-1, :-1, row, column] = values
        values = cells.permute(0, 3, 1, 2)
        spots = enlargement.locate(pixel, values.shape)
        some = table.view(-1, 9).index_select(0, spots.cell).view(-1, 3, 3)
        squares = ((some * _quadratic(spots.down)[:, :, None]).sum(1) * _quadratic(spots.right)).sum(1)
        return squares, enlargement.locate(sampled, values.shape).read(values, channel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient of the map; the other arguments have none."""
        cells, pixel, sampled, channel = ctx.saved_tensors
        of_squares, of_samples = gradients
        batch, height, width, channels = cells.shape
        shape = (batch, channels, height, width)
        cell, down, right = ctx.enlargement.locate(pixel, shape)
        entries = (_quadratic(down) * of_squares[:, None])[:, :, None] * _quadratic(right)[:, None]
        at = cell[:, None] * 9 + torch.arange(9, device=cell.device)
        table = cells.new_zeros(batch * height * width * 9).index_add_(0, at.flatten(), entries.flatten())
        table = table.view(batch, height, width, 3, 3)
        own, beside = cells.new_zeros(batch, height, width), cells.new_zeros(batch, height, width - 1)
        below, across = cells.new_zeros(batch, height - 1, width), cells.new_zeros(batch, height - 1, width - 1)
        for (row, column), values in _table_entries(own, beside, below, across):
            values += table[:, :-1, :-1, row, column]

        gradient = cells * (2 * own[..., None])
        later, earlier, both = slice(1, None), slice(None, -1), slice(None)
        for factor, first, second in (
            (beside, (both, later), (both, earlier)),
            (below, (later, both), (earlier, both)),
            (across / 2, (later, later), (earlier, earlier)),
            (across / 2, (later, earlier), (earlier, later)),
        ):
            one, other = (both, *first), (both, *second)
            gradient[one].addcmul_(cells[other], factor[..., None])
            gradient[other].addcmul_(cells[one], factor[..., None])

        cell, down, right = ctx.enlargement.locate(sampled, shape)
        flat = gradient.view(-1)
        for step, share in ((0, 1 - down), (width, down)):
            at = (cell + step) * channels + channel
            flat.index_add_(0, at, of_samples * share * (1 - right))
            flat.index_add_(0, at + channels, of_samples * share * right)
        return gradient, None, None, None, None


def _table_entries(
    own: Tensor, beside: Tensor, below: Tensor, across: Tensor
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Where the inner products of cells stand in the table of each four neighbouring cells, and views of them.

    Args:
        own: (B, h, w), of a cell with itself.
        beside: (B, h, w - 1), with its right neighbour.
        below: (B, h - 1, w), with its lower neighbour.
        across: (B, h - 1, w - 1), mean of the two diagonals.
    """
    yield (0, 0), own[:, :-1, :-1]
    yield (0, 1), own[:, :-1, 1:]
    yield (1, 0), own[:, 1:, :-1]
    yield (1, 1), own[:, 1:, 1:]
    yield (0, 2), beside[:, :-1]
    yield (1, 2), beside[:, 1:]
    yield (2, 0), below[:, :, :-1]
    yield (2, 1), below[:, :, 1:]
    yield (2, 2), across


def _quadratic(share: Tensor) -> Tensor:
    """(P,) to (P, 3): what a pixel between two cells takes of their squares and of their product."""
    rest = 1 - share
    return torch.stack([rest.square(), share.square(), 2 * share * rest], 1)


class BandedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each pixel, (B, H, W), 0 where the label is 255; logits are enlarged band by band, twice.

    Takes cells (B, h, w, C + 1), the semantic map (B, H, W) and the enlargement. Between the two passes a number a
    pixel is kept; the dense way keeps two maps with a channel a class.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, semantic: Tensor, enlargement: Enlargement) -> Tensor:
        """What the class says."""
        total = cells.new_empty(semantic.shape)
        own = cells.new_empty(semantic.shape)
        for band, logits in enlargement.bands(cells):
            label = semantic[:, band].long()
            total[:, band] = logits.logsumexp(3)
            own[:, band] = logits.gather(3, label.where(label != IGNORE, 0)[..., None])[..., 0]
        ctx.save_for_backward(cells, semantic, total)
        ctx.enlargement = enlargement
        return (total - own).masked_fill_(semantic == IGNORE, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the map; the other arguments have none."""
        cells, semantic, total = ctx.saved_tensors
        of_pixels = gradients[0].masked_fill(semantic == IGNORE, 0)
        gradient = torch.zeros_like(cells)
        for band, logits in ctx.enlargement.bands(cells):
            label = semantic[:, band].long()
            some = of_pixels[:, band, :, None]
            of_logits = (logits - total[:, band, :, None]).exp_().mul_(some)
            of_logits.scatter_add_(3, label.where(label != IGNORE, 0)[..., None], -some)
            ctx.enlargement.add_band(gradient, band, of_logits)
        return gradient, None, None
