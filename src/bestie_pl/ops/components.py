"""Exact connected components of a whole batch in pure torch, on any device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bestie_pl.structures import Components


def tagged_classes(semantic: Tensor, tags: Tensor) -> Tensor:
    """The class map that labels are made from: a semantic map with everything but the tagged classes set to 0.

    Args:
        semantic: (B, H, W) integers: 0 background, ``c + 1`` class ``c``, 255 ignore.
        tags: (B, C) bool.

    Returns:
        (B, H, W) int32 in 0..C.

    >>> tagged_classes(torch.tensor([[[0, 1, 2, 255]]]), torch.tensor([[False, True]])).tolist()
    [[[0, 0, 2, 0]]]
    """
    # one look-up table an image: value of the map -> class, 0 for background, untagged classes and ignore
    table = torch.zeros(len(tags), 256, dtype=torch.int32, device=semantic.device)
    count = tags.shape[1]
    table[:, 1 : count + 1] = torch.arange(1, count + 1, dtype=torch.int32, device=tags.device) * tags
    return table.gather(1, semantic.flatten(1).long()).view(semantic.shape)


def label_components(classes: Tensor, *, connectivity: Literal[4, 8] = 8) -> Components:
    """Number the connected regions of equal class in a batch of class maps.

    Works on the runs of equal class in each row (a few thousand) instead of on pixels (millions): two runs of
    neighbouring rows touch if and only if one of them covers the pixel at, or just right of, the other's end, so every
    run has at most three links; these are then united by hooking and pointer jumping until nothing changes.

    Args:
        classes: (B, H, W) integers, 0 outside; different values never connect.
        connectivity: 8, or 4 for regions that touch by their edges only.

    Returns:
        Components, numbered by their first pixel in row-major order; ``classes`` of the table is the map's value - 1.

    >>> label_components(torch.tensor([[[1, 0, 1], [0, 1, 2]]])).labels.tolist()
    [[[1, 0, 1], [0, 1, 2]]]
    >>> label_components(torch.tensor([[[1, 0, 1], [0, 1, 2]]]), connectivity=4).labels.tolist()
    [[[1, 0, 2], [0, 3, 4]]]
    """
    batch, height, width = classes.shape
    device = classes.device
    filled = classes != 0
    changes = classes[..., 1:] != classes[..., :-1]
    starts, stops = filled.clone(), filled.clone()
    starts[..., 1:] &= changes
    stops[..., :-1] &= changes
    # both at once: an accelerator is waited for each time that indices are taken
    start, last = torch.stack([starts, stops]).flatten().nonzero().view(2, -1)
    # number of the run that covers a pixel, counted from 1; 0 outside
    run_of = starts.flatten().cumsum(0, dtype=torch.int32).mul_(filled.flatten())
    runs = len(start)
    if runs == 0:
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        labels = torch.zeros_like(classes, dtype=torch.int32)
        return Components(labels, nothing, nothing - 1, nothing, torch.zeros(1, 2, dtype=torch.int64, device=device))

    run_class = classes.flatten()[start]
    length = last - classes.numel() + 1 - start
    row, column = start // width, start % width
    y, image = row % height, row // height
    end = column + length

    def links(down: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of each run and the run of its class that covers column x of the next or the previous row."""
        inside = (x < width) & (y + down >= 0) & (y + down < height)
        other = run_of[((row + down) * width + x).where(inside, start)].long() - 1  # outside: the run itself
        valid = inside & (other >= 0)
        other = other.where(valid, torch.arange(runs, device=device))
        same = run_class[other] == run_class
        return torch.arange(runs, device=device), other.where(same, torch.arange(runs, device=device))

    ends = [(1, end - 1), (-1, end - 1)] if connectivity == 4 else [(1, end - 1), (1, end), (-1, end)]
    pairs = [links(down, x) for down, x in ends]
    first = torch.cat([p[0] for p in pairs])
    second = torch.cat([p[1] for p in pairs])
    root = unite(runs, first, second)

    is_root = root == torch.arange(runs, device=device)
    component = is_root.cumsum(0)[root]  # of each run, 1..K
    roots = is_root.nonzero().squeeze(1)
    lookup = torch.cat([component.new_zeros(1), component]).int()
    table = torch.zeros(4, len(roots) + 1, dtype=torch.int64, device=device)
    table[0].index_add_(0, component, length)
    table[1].index_add_(0, component, length * y)
    table[2].index_add_(0, component, length * (column + end - 1))  # twice the sum of x
    table[3, 1:] = image[roots]
    area = table[0].clamp(min=1)
    return Components(
        labels=lookup[run_of].view(classes.shape),
        image=table[3],
        classes=torch.cat([run_class.new_zeros(1), run_class[roots]]).long() - 1,
        area=table[0],
        center_yx=torch.stack([table[1] // area, table[2] // (2 * area)], 1),
    )


ROUNDS, JUMPS = 3, 3
"""How often links are hooked between two looks at whether anything is left to do, and paths halved after each time."""


def unite(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Smallest member of each node's connected set: hook and halve paths until both ends of all links agree.

    A node's entry is always a member of its set and only ever decreases, so this ends; then all members of a set have
    the same entry, and the smallest can have none but itself.

    Args:
        count: Number of nodes.
        first: (E,) int64, one end of each link.
        second: (E,) int64, the other end.

    >>> unite(4, torch.tensor([3]), torch.tensor([1])).tolist()
    [0, 1, 2, 1]
    """
    root = torch.arange(count, device=first.device)
    while True:
        # several rounds a look: an accelerator is waited for at each
        for _ in range(ROUNDS):
            a, b = root[first], root[second]
            root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            for _ in range(JUMPS):
                root = root[root]
        if torch.equal(torch.cat([root[first], root[root]]), torch.cat([root[second], root])):
            return root
