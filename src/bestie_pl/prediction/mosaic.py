"""One image's instances from those of its overlapping windows: an object across a seam is one object."""

from __future__ import annotations

import torch
from torch import Tensor

from bestie_pl.ops.masks import encode
from bestie_pl.ops.runs import paint_codes
from bestie_pl.ops.tiles import Window, shared_pixels
from bestie_pl.structures import Instances

UNSEEN = -1
SAME = 0.5
"""Share of pixels from which two regions are taken for one object; at most one region can have more than half."""


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
        # a row an object; row 0 is nothing
        self._classes = torch.tensor([-1])
        self._scores = torch.zeros(1)
        self._whole = torch.tensor([False])
        self._area = torch.zeros(1, dtype=torch.int64)
        self._area_once = torch.zeros(1, dtype=torch.int64)
        self._box = torch.zeros(1, 4, dtype=torch.int64)

    def add(self, window: Window, instances: Instances) -> None:
        """Lay in the instances of one window, which is as large as they say."""
        top, left, bottom, right = window
        view = self._ids[top:bottom, left:right]
        new = paint_codes(instances.masks[::-1], instances.size)  # better ones over worse ones
        new = torch.where(new > 0, len(instances) + 1 - new, 0)
        classes = torch.cat([torch.tensor([-1]), instances.classes])
        scores = torch.cat([torch.zeros(1), instances.scores])
        area = torch.bincount(new.flatten().long(), minlength=len(classes))
        whole = self._is_whole(new, window, len(classes))

        old, number, shared = shared_pixels(view, new)
        old_whole, new_whole = self._whole[old], whole[number]
        # whole and whole: the first one stays
        least = torch.minimum(self._area[old], area[number])
        drop = torch.zeros(len(classes), dtype=torch.bool)
        drop[number[old_whole & new_whole & (shared > SAME * least)]] = True
        # cut off and cut off: one object, if they agree where both windows look
        old_here = torch.bincount(view.clamp(min=0).flatten().long(), minlength=len(self._classes))[old]
        seen = torch.bincount(new[view >= 0].long(), minlength=len(classes))
        agree = shared > SAME * (old_here + seen[number] - shared)
        merged = ~old_whole & ~new_whole & agree & (self._classes[old] == classes[number])
        target = torch.zeros(len(classes), dtype=torch.int64)
        target[number[merged]] = old[merged]
        # what is cut off here and was seen in full before, but not as this; and the reverse
        drop |= ~whole & (target == 0) & (seen > SAME * area)
        drop[0] = True
        self._forget(view, window, kept=old[merged])

        fresh = ((target == 0) & ~drop & (area > 0)).nonzero().squeeze(1)
        first = len(self._classes)
        target[fresh] = torch.arange(first, first + len(fresh))
        target[drop] = 0
        wins = new_whole & ~old_whole & ~drop[number]
        lost = torch.zeros(first, dtype=torch.int64).index_add_(0, old[wins], shared[wins])

        writable = (view <= 0) | (whole[new] & ~self._whole[view.clamp(min=0)])
        written = target[new].int()
        view.copy_(torch.where(writable & (written > 0), written, view.clamp(min=0)))

        joined = target[number[merged]]
        self._scores.scatter_reduce_(0, joined, scores[number[merged]], "amax")
        self._area -= lost.where(self._area > 0, 0)
        added = torch.bincount(new[writable].long(), minlength=len(classes))
        for table, values in (("_area", added), ("_area_once", added)):
            column = getattr(self, table).index_add(0, joined, values[number[merged]])
            setattr(self, table, torch.cat([column, values[fresh]]))
        box = torch.tensor([top, left, bottom, right])
        self._box[joined] = _union(self._box[joined], box)
        self._box = torch.cat([self._box, box.expand(len(fresh), 4)])
        self._classes = torch.cat([self._classes, classes[fresh]])
        self._scores = torch.cat([self._scores, scores[fresh]])
        self._whole = torch.cat([self._whole, whole[fresh]])
        for row in (lost > 0).nonzero().squeeze(1).tolist():
            if 0 < self._area[row] <= (1 - SAME) * self._area_once[row]:
                self._erase(row)

    def instances(self) -> Instances:
        """All objects, best score first. No window can be added afterwards."""
        numbers, codes = encode(self._ids.clamp_(min=0))
        order = self._scores[numbers].argsort(descending=True, stable=True)
        rows = numbers[order]
        return Instances(tuple(codes[i] for i in order.tolist()), self._classes[rows], self._scores[rows], self.size)

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
            whole[strip.unique().long()] = False
        return whole

    def _forget(self, view: Tensor, window: Window, *, kept: Tensor) -> None:
        """Clear what earlier windows cut off and this one sees in full, but not as they did."""
        present = torch.bincount(view.clamp(min=0).flatten().long(), minlength=len(self._classes))
        gone = (present > 0) & ~self._whole & self._is_whole(view.clamp(min=0), window, len(self._classes))
        gone[kept] = False
        gone[0] = False
        self._area -= present * gone
        view[gone[view.clamp(min=0)]] = 0

    def _erase(self, row: int) -> None:
        top, left, bottom, right = self._box[row].tolist()
        view = self._ids[top:bottom, left:right]
        view[view == row] = 0
        self._area[row] = 0


def _union(boxes: Tensor, box: Tensor) -> Tensor:
    return torch.cat([torch.minimum(boxes[:, :2], box[:2]), torch.maximum(boxes[:, 2:], box[2:])], 1)
