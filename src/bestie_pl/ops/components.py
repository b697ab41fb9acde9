"""Exact connected components of a whole batch in pure torch, on any device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bestie_pl.ops.capacity import EXACT, Capacity, attempts
from bestie_pl.structures import Components

PIXELS_A_RUN = 16
"""How long runs of equal class, or of background, are at least on average, on devices that cannot say; a guess."""


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
    row = torch.arange(0, table.numel(), 256, dtype=torch.int32, device=tags.device)[:, None, None]
    return table.flatten().index_select(0, (semantic + row).flatten()).view(semantic.shape)


def class_map(components: Components) -> Tensor:
    """The class map that components were found in: (B, H, W) int32, 0 outside, ``c + 1`` for class ``c``.

    >>> class_map(label_components(torch.tensor([[[0, 3, 3], [1, 0, 0]]]))).tolist()
    [[[0, 3, 3], [1, 0, 0]]]
    """
    numbers = (components.classes + 1).int()
    return numbers.index_select(0, components.labels.flatten()).view(components.labels.shape)


def label_components(
    classes: Tensor, *, connectivity: Literal[4, 8] = 8, backend: Literal["runs", "kornia"] = "runs"
) -> Components:
    """Number the connected regions of equal class in a batch of class maps.

    Works on the runs of equal class in each row (a few thousand) instead of on pixels (millions): two runs of
    neighbouring rows touch if and only if one of them covers the pixel at, or just right of, the other's end, so every
    run has at most three links; these are then united by hooking and pointer jumping until nothing changes.

    Args:
        classes: (B, H, W) integers, 0 outside; different values never connect.
        connectivity: 8, or 4 for regions that touch by their edges only.
        backend: ``runs`` as above; ``kornia`` unites the pixels of one class after the other by Kornia's union-find,
            which knows 8 neighbours and two values only. Both are exact and give the same numbers (docs/method.md
            compares their speed).

    Returns:
        Components, numbered by their first pixel in row-major order; ``classes`` of the table is the map's value - 1.

    >>> label_components(torch.tensor([[[1, 0, 1], [0, 1, 2]]])).labels.tolist()
    [[[1, 0, 1], [0, 1, 2]]]
    >>> label_components(torch.tensor([[[1, 0, 1], [0, 1, 2]]]), connectivity=4).labels.tolist()
    [[[1, 0, 2], [0, 3, 4]]]
    """
    if backend == "kornia":
        return _label_with_kornia(classes, connectivity)
    height, width = classes.shape[1:]
    # runs of background are numbered like others: one search for the ends of runs, not two
    starts = torch.ones_like(classes, dtype=torch.bool)
    torch.ne(classes[..., 1:], classes[..., :-1], out=starts[..., 1:])
    run_of = starts.flatten().cumsum(0, dtype=torch.int32).sub_(1)  # number of the run that covers a pixel

    for capacity in attempts(classes.device):
        runs = capacity.pick("runs", starts, room=classes.numel() // PIXELS_A_RUN)
        # where the table is filled up: behind the last pixel, so of length 0, and background
        start = runs.clear(runs.at, classes.numel())
        length = torch.cat([start[1:], start.new_full((1,), classes.numel())]) - start
        run_class = runs.clear(classes.flatten().index_select(0, runs.at))
        neighbors = _neighbors(run_of, start, length, run_class, (height, width), connectivity)
        itself = torch.arange(len(start), device=start.device)
        root = unite(len(start), itself.repeat(len(neighbors)), torch.cat(neighbors), capacity=capacity)
        inside = run_class != 0
        is_root = (root == itself) & inside
        roots = capacity.pick("components", is_root, room=len(start)).at
        length = length * inside
        capacity.limit("pixels", length.sum(), room=classes.numel())

    roots = roots[: capacity.count("components")]
    component = is_root.cumsum(0)[root] * inside  # of each run, 1..K; 0 for background
    row, column = start // width, start % width
    table = component.new_zeros(4, len(roots) + 1)
    table[0].index_add_(0, component, length)
    table[1].index_add_(0, component, length * (row % height))
    table[2].index_add_(0, component, length * (2 * column + length - 1))  # twice the sum of x
    table[3, 1:] = row[roots] // height
    area = table[0].clamp(min=1)
    return Components(
        labels=component.int().index_select(0, run_of).view(classes.shape),
        image=table[3],
        classes=torch.cat([run_class.new_zeros(1), run_class[roots]]).long() - 1,
        area=table[0],
        center_yx=torch.stack([table[1] // area, table[2] // (2 * area)], 1),
        pixels=capacity.count("pixels"),
    )


def _label_with_kornia(classes: Tensor, connectivity: int) -> Components:
    if connectivity != 8:
        raise ValueError(f"Kornia's union-find knows 8 neighbours, not {connectivity}; use backend runs")
    from kornia.contrib import connected_components_union_find  # here: workers that load images need no Kornia

    labels = torch.zeros_like(classes, dtype=torch.int64)
    for value in torch.unique(classes):
        if value != 0:
            found = connected_components_union_find((classes == value)[:, None])[:, 0]
            labels = torch.where(found > 0, found + labels.max(), labels)
    # numbered anew, by the first pixel of each in row-major order
    _, labels = torch.unique(labels, return_inverse=True)
    labels = labels + int(bool((classes != 0).all()))  # without background there is no 0 to be the first
    flat = labels.flatten()
    at = torch.arange(len(flat), device=flat.device)
    count = int(flat.max()) + 1 if len(flat) else 1
    first = at.new_full((count,), len(flat)).scatter_reduce_(0, flat, at, "amin")
    order = first[1:].argsort()
    number = order.new_zeros(count)
    number[order + 1] = torch.arange(1, count, device=order.device)
    flat = number[flat]
    height, width = classes.shape[1:]
    table = flat.new_zeros(3, count).index_add_(
        1, flat, torch.stack([torch.ones_like(at), at // width % height, at % width])
    )
    table[:, 0] = 0
    area, start = table[0].clamp(min=1), first[order + 1]
    row = torch.cat([start.new_zeros(1), start])
    inside = torch.arange(count, device=order.device) > 0
    return Components(
        labels=flat.int().view(classes.shape),
        image=row // (height * width) * inside,
        classes=torch.where(inside, classes.flatten()[row.clamp(max=len(at) - 1)].long(), 0) - 1,
        area=table[0],
        center_yx=torch.stack([table[1] // area, table[2] // area], 1),
        pixels=int(table[0].sum()),
    )


def _neighbors(
    run_of: Tensor, start: Tensor, length: Tensor, run_class: Tensor, size: tuple[int, int], connectivity: Literal[4, 8]
) -> list[Tensor]:
    """For each run the runs of its class at its ends in the next and in the previous row; itself where there is none.

    Args:
        run_of: (B * H * W,) number of the run that covers a pixel.
        start: (R,) index of a run's first pixel into the flat (B, H, W).
        length: (R,) pixels.
        run_class: (R,) class; runs of class 0 have no neighbors.
        size: (H, W).
        connectivity: 4 or 8.

    Returns:
        Two or three tensors (R,) int64.
    """
    height, width = size
    row, column = start // width, start % width
    y, end = row % height, column + length
    within = run_class != 0
    itself = torch.arange(len(start), device=start.device)
    neighbors = []
    for down, x in [(1, end - 1), (-1, end - 1)] if connectivity == 4 else [(1, end - 1), (1, end), (-1, end)]:
        inside = within & (x >= 0) & (x < width) & (y + down >= 0) & (y + down < height)
        other = run_of[((row + down) * width + x).where(inside, 0)].long()
        # a table that was guessed too small does not hold all runs
        other = other.where(inside & (other < len(start)), itself)
        neighbors.append(other.where(run_class[other] == run_class, itself))
    return neighbors


ROUNDS, JUMPS = 3, 3
"""How often links are hooked between two looks at whether anything is left to do, and paths halved after each time."""

LOOKS = 2
"""After how many times ``ROUNDS`` a device that cannot be asked is expected to be done."""


def unite(count: int, first: Tensor, second: Tensor, *, capacity: Capacity = EXACT) -> Tensor:
    """Smallest member of each node's connected set: hook and halve paths until both ends of all links agree.

    A node's entry is always a member of its set and only ever decreases, so this ends; then all members of a set have
    the same entry, and the smallest can have none but itself.

    Args:
        count: Number of nodes.
        first: (E,) int64, one end of each link.
        second: (E,) int64, the other end.
        capacity: How the end is noticed.

    >>> unite(4, torch.tensor([3]), torch.tensor([1])).tolist()
    [0, 1, 2, 1]
    """
    root = torch.arange(count, device=first.device)

    def undone() -> Tensor:
        return (root[first] != root[second]).any() | (root[root] != root).any()

    for _ in capacity.repeat("rounds of uniting", undone, room=LOOKS):
        for _ in range(ROUNDS):
            a, b = root[first], root[second]
            root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            for _ in range(JUMPS):
                root = root[root]
    return root
