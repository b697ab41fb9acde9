"""One image's instances from those of its overlapping windows: an object across a seam is one object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bestie_pl.ops.masks import encode, resize_map
from bestie_pl.ops.runs import paint_codes
from bestie_pl.ops.tiles import Window, shared_pixels
from bestie_pl.structures import Instances

UNSEEN = -1
SAME = 0.5
"""Share of pixels from which two regions are taken for one object; at most one region can have more than half."""


class _Objects(NamedTuple):
    """A row an object; row 0 is nothing. ``whole``: not cut off by a window; ``area``: pixels that it has."""

    classes: Tensor
    scores: Tensor
    whole: Tensor
    area: Tensor

    @classmethod
    def none(cls) -> _Objects:
        return cls(torch.tensor([-1]), torch.zeros(1), torch.tensor([False]), torch.zeros(1, dtype=torch.int64))

    def extended(self, others: _Objects, rows: Tensor) -> _Objects:
        return _Objects(*(torch.cat([mine, theirs[rows]]) for mine, theirs in zip(self, others, strict=True)))


class Mosaic:
    """A label map that windows are laid into, row by row, as ``ops.tiles.windows`` gives them.

    An object that ends before the inner border of its window is whole, one that reaches it is cut off. Where windows
    overlap, whole objects count and what others saw of them is dropped, as is what only the window saw that cut it off;
    two objects that are both cut off, as those larger than the overlap are, become one if they have the same class and
    share more than half of what the two windows see of them. Memory: 4 bytes a pixel of the image, and what one window
    needs.

    Args:
        size: (H, W) of the image.
        margin: How near the inner border an object counts as cut off, in pixels: networks see less there.
    """

    def __init__(self, size: tuple[int, int], *, margin: int) -> None:
        self.size, self.margin = size, margin
        self._ids = torch.full(size, UNSEEN, dtype=torch.int32)
        self._known = _Objects.none()
        self._once = torch.zeros(1, dtype=torch.int64)  # area before other objects took their share
        self._box = torch.zeros(1, 4, dtype=torch.int64)  # of the windows that an object was seen in

    def add(self, window: Window, instances: Instances) -> None:
        """Lay in the instances of one window, which is as large as they say."""
        view = self._ids[window.top : window.bottom, window.left : window.right]
        new = paint_codes(instances.masks[::-1], instances.size)  # better ones over worse ones
        new = torch.where(new > 0, len(instances) + 1 - new, 0)
        found = _Objects(
            torch.cat([torch.tensor([-1]), instances.classes]),
            torch.cat([torch.zeros(1), instances.scores]),
            self._is_whole(new, window, len(instances) + 1),
            torch.bincount(new.flatten().long(), minlength=len(instances) + 1),
        )
        partner, dropped = self._compare(view, new, found)
        self._forget(view, window, kept=partner[partner > 0])
        self._write(view, new, found, partner, dropped, window)

    def _compare(self, view: Tensor, new: Tensor, found: _Objects) -> tuple[Tensor, Tensor]:
        """Which known object each of the window's is a part of, 0 for none; and which of them are not to be added."""
        known, count = self._known, len(found.classes)
        old, number, shared = shared_pixels(view, new)
        old_whole, new_whole = known.whole[old], found.whole[number]
        # whole and whole: the first one stays
        least = torch.minimum(known.area[old], found.area[number])
        dropped = torch.zeros(count, dtype=torch.bool)
        dropped[number[old_whole & new_whole & (shared > SAME * least)]] = True
        # cut off and cut off: one object, if they agree where both windows look
        old_here = _count(view.clamp(min=0), len(known.classes))
        seen = _count(new[view >= 0], count)
        agree = shared > SAME * (old_here[old] + seen[number] - shared)
        one = ~old_whole & ~new_whole & agree & (known.classes[old] == found.classes[number])
        partner = torch.zeros(count, dtype=torch.int64)
        partner[number[one]] = old[one]
        # what is cut off here and was seen in full before, but not as this
        dropped |= ~found.whole & (partner == 0) & (seen > SAME * found.area)
        dropped[0] = True
        return partner, dropped

    def _forget(self, view: Tensor, window: Window, *, kept: Tensor) -> None:
        """Clear what earlier windows cut off and this one sees in full, but not as they did."""
        rows = len(self._known.classes)
        present = _count(view.clamp(min=0), rows)
        gone = (present > 0) & ~self._known.whole & self._is_whole(view.clamp(min=0), window, rows)
        gone[kept] = False
        gone[0] = False
        self._known.area.sub_(present * gone)
        view[gone[view.clamp(min=0)]] = 0

    def _write(
        self, view: Tensor, new: Tensor, found: _Objects, partner: Tensor, dropped: Tensor, window: Window
    ) -> None:
        """Paint the window's objects: whole ones over what was cut off, the others where there is nothing."""
        known, first = self._known, len(self._known.classes)
        fresh = ((partner == 0) & ~dropped & (found.area > 0)).nonzero().squeeze(1)
        target = partner.clone()
        target[fresh] = torch.arange(first, first + len(fresh))
        old, number, shared = shared_pixels(view, new)
        wins = found.whole[number] & ~known.whole[old] & ~dropped[number]
        lost = torch.zeros(first, dtype=torch.int64).index_add_(0, old[wins], shared[wins])
        writable = (view <= 0) | (found.whole[new] & ~known.whole[view.clamp(min=0)])
        numbers = target[new].int()
        view.copy_(torch.where(writable & (numbers > 0), numbers, view.clamp(min=0)))

        joining = (partner > 0).nonzero().squeeze(1)
        joined, added = partner[joining], _count(new[writable], len(found.classes))
        known.scores.scatter_reduce_(0, joined, found.scores[joining], "amax")
        known.area.sub_(lost).index_add_(0, joined, added[joining])
        self._once.index_add_(0, joined, added[joining])
        box = torch.tensor(window)
        self._box[joined] = _union(self._box[joined], box)
        self._box = torch.cat([self._box, box.expand(len(fresh), 4)])
        self._once = torch.cat([self._once, added[fresh]])
        self._known = known.extended(found._replace(area=added), fresh)
        for row in (lost > 0).nonzero().squeeze(1).tolist():
            if self._known.area[row] <= (1 - SAME) * self._once[row]:
                self._erase(row)

    def instances(self, size: tuple[int, int] | None = None) -> Instances:
        """All objects, best score first, at another ``size`` (H, W) if given. No window can be added afterwards."""
        size = self.size if size is None else size
        numbers, codes = encode(resize_map(self._ids.clamp_(min=0), size))
        order = self._known.scores[numbers].argsort(descending=True, stable=True)
        rows = numbers[order]
        masks = tuple(codes[i] for i in order.tolist())
        return Instances(masks, self._known.classes[rows], self._known.scores[rows], size)

    def _is_whole(self, new: Tensor, window: Window, count: int) -> Tensor:
        """(count,) bool: which numbers of a window's map keep clear of borders that are not the image's."""
        height, width = new.shape
        m = self.margin
        strips = []
        if window.top > 0:
            strips.append(new[:m])
        if window.left > 0:
            strips.append(new[:, :m])
        if window.bottom < self.size[0]:
            strips.append(new[height - m :])
        if window.right < self.size[1]:
            strips.append(new[:, width - m :])
        whole = torch.ones(count, dtype=torch.bool)
        for strip in strips:
            whole[torch.unique(strip).long()] = False
        return whole

    def _erase(self, row: int) -> None:
        top, left, bottom, right = self._box[row].tolist()
        view = self._ids[top:bottom, left:right]
        view[view == row] = 0
        self._known.area[row] = 0


def _count(numbers: Tensor, rows: int) -> Tensor:
    """How often each number below ``rows`` stands in a map: (rows,) int64."""
    return torch.bincount(numbers.flatten().long(), minlength=rows)


def _union(boxes: Tensor, box: Tensor) -> Tensor:
    return torch.cat([torch.minimum(boxes[:, :2], box[:2]), torch.maximum(boxes[:, 2:], box[2:])], 1)
