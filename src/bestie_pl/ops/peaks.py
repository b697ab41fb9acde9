"""Centres of instances: peaks of the centre heatmap and points where the offset field converges, by component."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bestie_pl.ops.capacity import EXACT, Capacity
from bestie_pl.ops.components import unite
from bestie_pl.ops.enlargement import Enlargement, PixelSpots, Spots, find_spots
from bestie_pl.recipe import Rules
from bestie_pl.structures import Components, Geometry, InstanceMaps

CLUSTER_HEAT = 0.05
"""A convergence point counts only if the heatmap there is above this (release 4.6: 0.05; the paper gives no number)."""

WINDOW_BUDGET = 2**22
"""How many pixels of windows, or pairs of centres, are looked at together: bounds memory, changes no result."""

NO_COMPONENT = torch.iinfo(torch.int64).max
"""Component of a centre that counts nowhere: sorted behind all others."""


@dataclass(frozen=True)
class Centers:
    """Centres inside components, sorted by component; in one component first peaks, then clustered centres.

    Args:
        component: (M,) int64, ascending; rows of the table of components, or any other number of a group of pixels.
            Rows of ``NO_COMPONENT`` are empty slots.
        yx: (M, 2), int64 for centres that were found; given points may lie between pixels (float32).
        score: (M,) float32, value of the heatmap; 1 for a clustered centre.
        rank: (M,) int64, number of the centre inside its component, from 0.
    """

    component: Tensor
    yx: Tensor
    score: Tensor
    rank: Tensor

    def __post_init__(self) -> None:
        n = len(self.component)
        shapes = [tuple(t.shape) for t in (self.component, self.yx, self.score, self.rank)]
        if shapes != [(n,), (n, 2), (n,), (n,)]:
            raise ValueError(f"centers need shapes (M,), (M, 2), (M,), (M,); got {shapes}")

    def __len__(self) -> int:
        return len(self.component)

    @classmethod
    def sorted(cls, component: Tensor, yx: Tensor, score: Tensor) -> Centers:
        """Centres in any order, sorted by component; those of one component keep their order."""
        component, order = component.sort(stable=True)
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(component, component)
        return cls(component, yx[order], score[order], rank)

    def without_crowds(self, most: int) -> Centers:
        """The centres of components that have at most ``most``; the others become empty slots."""
        first, behind = (torch.searchsorted(self.component, self.component, right=right) for right in (False, True))
        return Centers.sorted(self.component.masked_fill(behind - first > most, NO_COMPONENT), self.yx, self.score)

    def cut(self, count: int | None) -> Centers:
        """The first ``count``; all if None."""
        return Centers(self.component[:count], self.yx[:count], self.score[:count], self.rank[:count])

    def spans(self, components: int) -> tuple[Tensor, Tensor]:
        """First row and number of rows of each of ``components`` components: two tensors (components,) int64."""
        ends = torch.searchsorted(self.component, torch.arange(components + 1, device=self.component.device))
        return ends[:-1], ends[1:] - ends[:-1]


@dataclass(frozen=True)
class Foreground:
    """What the network says at the pixels of components, as a list; beyond it nothing depends on the number of classes.

    Args:
        components: Components of the batch.
        pixel: (P,) int64, ascending index into the flat (B, H, W): the pixels of components that are large enough.
        component: (P,) int64; 0 in empty slots, which are the last ones.
        heat: (P,) float32, centre heatmap of the component's class; 0 in empty slots.
        offset: (2, P) float32, (dy, dx); infinite in empty slots.
        plane: (B, H, W) float32: ``heat`` at its pixels, 0 elsewhere.
        spots: Where to read other maps of the network at these pixels.
    """

    components: Components
    pixel: Tensor
    component: Tensor
    heat: Tensor
    offset: Tensor
    plane: Tensor
    spots: Spots

    def cut(self, count: int | None) -> Foreground:
        """The first ``count`` pixels; all if None."""
        return Foreground(
            components=self.components,
            pixel=self.pixel[:count],
            component=self.component[:count],
            heat=self.heat[:count],
            offset=self.offset[:, :count],
            plane=self.plane,
            spots=self.spots.select(slice(count)),
        )


def gather_foreground(
    maps: InstanceMaps,
    components: Components,
    *,
    min_area: int,
    enlargement: Enlargement | None = None,
    capacity: Capacity = EXACT,
) -> Foreground:
    """Read the maps at the pixels of components of at least ``min_area`` pixels.

    Args:
        maps: At the resolution of ``components``, or smaller with ``enlargement``; any floating type and memory format.
        components: Of the batch.
        min_area: Smaller components are left out.
        enlargement: How the maps become as large as the components; they are read without it being done.
        capacity: Of the list.

    Raises:
        ValueError: The maps have, or get, another batch size or resolution than the components.
    """
    batch, height, width = components.labels.shape
    for name, one in zip(maps._fields, maps, strict=True):
        size = tuple(one.shape[2:]) if enlargement is None else enlargement.size
        if (len(one), *size) != (batch, height, width):
            raise ValueError(
                f"{name} is {(*one.shape[:2], *size)}, the components are of {batch} maps of {height} x {width}; "
                "enlarge the maps first (BestieModel.enlarge)"
            )
    labels = components.labels.flatten()
    # the row of the background has an area of 0
    large = (components.area >= max(min_area, 1)).index_select(0, labels)
    rows = capacity.pick("pixels", large, room=labels.numel() if components.pixels is None else components.pixels)
    component = rows.clear(labels.index_select(0, rows.at)).long()
    channel = rows.clear(components.classes.index_select(0, component))
    spots = find_spots(rows.at, maps.offset_field.shape, enlargement)
    heat = rows.clear(spots.read(maps.center_heatmap, channel))
    # added, so that empty slots change nothing
    plane = heat.new_zeros(labels.shape).index_add_(0, rows.at, heat)
    return Foreground(
        components=components,
        pixel=rows.at,
        component=component,
        heat=heat,
        offset=rows.clear(spots.read_all(maps.offset_field), torch.inf),
        plane=plane.view(components.labels.shape),
        spots=spots,
    )


@torch.no_grad()
def find_peaks(
    foreground: Foreground, *, threshold: float, window: int, strict: bool, capacity: Capacity = EXACT
) -> Centers:
    """Pixels that are over a threshold and the maximum of their window, the plane being 0 outside their component.

    The same as masking the plane with each component in turn and taking the dense maximum, at a fraction of its price:
    the few pixels that are the maximum of their nearest neighbours are looked at in growing windows.

    Args:
        foreground: The centre heatmap of the class that each pixel's component has.
        threshold: Positive.
        window: Side of the window in pixels, odd.
        strict: As in release 4.1 and 4.2: a peak is above the threshold, and equal maxima of a window
            are peaks all of them. Otherwise a peak may equal the threshold, and only the first of equals is one, so
            that a plateau is one centre.
        capacity: Of the lists of pixels that may still be peaks.

    Returns:
        Centers in row-major order within their component.

    Raises:
        ValueError: ``threshold`` is not positive or ``window`` not odd.

    Source: paper section 3.5.

    >>> from bestie_pl.ops.components import label_components
    >>> heat = torch.tensor([[[[0.9, 0.2, 0.5, 0.0, 0.8]]]])
    >>> maps = InstanceMaps(heat, heat, torch.zeros(1, 2, 1, 5))
    >>> foreground = gather_foreground(maps, label_components(torch.tensor([[[1, 1, 1, 0, 1]]])), min_area=1)
    >>> find_peaks(foreground, threshold=0.3, window=5, strict=True).yx.tolist()
    [[0, 0], [0, 4]]
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}: the plane counts as 0 outside the component")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    components, plane = foreground.components, foreground.plane
    labels, reach = components.labels, window // 2
    over = foreground.heat > threshold if strict else foreground.heat >= threshold
    rows = capacity.pick("over the threshold", over, room=len(over) // 4)
    candidate = rows.at
    pixel = foreground.pixel[candidate]
    highest = rows.clear(~_beaten(plane, labels, pixel, min(reach, 1), by_equals=not strict))
    rows = capacity.pick("highest of their neighbors", highest, room=len(pixel) // 16)
    candidate = candidate[rows.at]
    pixel, value = foreground.pixel[candidate], foreground.heat[candidate]
    component = rows.clear(foreground.component[candidate])

    # the largest value of a component needs no look at its window; among equals, only if all of them are peaks
    top = value.new_zeros(len(components.area)).scatter_reduce_(0, component, value, "amax")
    is_top = value == top[component]
    if not strict:
        is_top &= (torch.zeros_like(top).index_add_(0, component, is_top.to(top.dtype)) == 1)[component]
    beaten = torch.zeros_like(is_top)
    # where a table is filled up its last row is compared again, and found what it is
    rows = capacity.pick("to be compared nearby", ~is_top & (component > 0), room=len(pixel))
    rest = rows.at
    beaten[rest] = _beaten(plane, labels, pixel[rest], min(reach, 5), by_equals=not strict)
    rest = rest[capacity.pick("to be compared", rows.clear(~beaten[rest]), room=len(rest) // 4).at]
    beaten[rest] = _beaten(plane, labels, pixel[rest], reach, by_equals=not strict)

    rows = capacity.pick("peaks", ~beaten & (component > 0), room=len(pixel) // 4)
    _, y, x = PixelSpots.of(pixel[rows.at], (plane.shape[1], plane.shape[2]))
    return Centers.sorted(rows.clear(component[rows.at], NO_COMPONENT), torch.stack([y, x], 1), value[rows.at])


def _beaten(plane: Tensor, labels: Tensor, pixel: Tensor, reach: int, *, by_equals: bool) -> Tensor:
    """Whether a pixel of the same component within ``reach`` rows and columns has a larger value: (K,) bool.

    ``by_equals``: an equal value that comes earlier in row-major order beats too.
    """
    height, width = plane.shape[1:]
    values, numbers = plane.flatten(), labels.flatten()
    side = torch.arange(-reach, reach + 1, device=plane.device)
    beaten = [torch.zeros(0, dtype=torch.bool, device=plane.device)]
    for chunk in torch.split(pixel, max(1, WINDOW_BUDGET // len(side) ** 2)):
        image, y, x = PixelSpots.of(chunk, (height, width))
        # a window that sticks out of the image is folded back onto its border, which belongs to it anyway
        rows = (y[:, None] + side).clamp(0, height - 1) + (image * height)[:, None]
        columns = (x[:, None] + side).clamp(0, width - 1)
        around = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        theirs, own = values[around], values[chunk][:, None]
        larger = theirs > own
        if by_equals:
            larger |= (theirs == own) & (around < chunk[:, None])
        beaten.append((larger & (numbers[around] == numbers[chunk][:, None])).any(1))
    return torch.cat(beaten)


@torch.no_grad()
def cluster_centers(foreground: Foreground, *, geometry: Geometry, capacity: Capacity = EXACT) -> Centers:
    """Points where the offset field converges: centroids of small round regions of short offsets.

    Regions have 4 neighbours and lie in one component; the number of their pixels is nearer than
    ``geometry.cluster_tolerance`` to that of a disc of ``geometry.cluster_radius``. Centroids are cut to integers and
    may lie outside the region, even outside the component; ``find_centers`` drops those.

    Returns:
        Centers of score 1, within their component in the order of the regions' first pixels.

    Source: paper section 3.5, "center clustering". The release also offers the background as a region, which can
    qualify in an image of some twenty pixels; not copied.
    """
    _, height, width = foreground.components.labels.shape
    weak = foreground.offset.square().sum(0).sqrt() < geometry.cluster_radius
    rows = capacity.pick("weak offsets", weak, room=len(weak))
    pixel, component = foreground.pixel[rows.at], rows.clear(foreground.component[rows.at])

    # runs of consecutive pixels instead of pixels: whole objects are weak while a network has not learnt offsets
    joined = (pixel[1:] == pixel[:-1] + 1) & (component[1:] == component[:-1]) & (pixel[1:] % width != 0)
    starts = component > 0
    stops = starts.clone()
    starts[1:] &= ~joined
    stops[:-1] &= ~joined
    rows = capacity.pick("weak runs", starts, room=len(starts) // 8)
    first, last = rows.at, capacity.pick("ends of weak runs", stops, room=len(stops) // 8).at
    # empty slots: of length 0, behind all pixels
    start, length = rows.clear(pixel[first], 2 * foreground.components.labels.numel()), rows.clear(last + 1 - first)
    component = rows.clear(component[first])

    # two runs touch if and only if the pixel below or above the end of one of them belongs to the other
    end = start + length - 1
    below_and_above = torch.stack([end + width, end - width])
    other = (torch.searchsorted(start, below_and_above, right=True) - 1).clamp(min=0)
    touches = (below_and_above < start[other] + length[other]) & (below_and_above >= start[other])
    touches &= component[other] == component  # also keeps the last row of an image from the first of the next
    runs = torch.arange(len(start), device=start.device)
    root = unite(len(runs), runs.repeat(2), other.where(touches, runs).flatten(), capacity=capacity)

    _, y, x = PixelSpots.of(start, (height, width))
    sums = torch.stack([length, length * y, length * (2 * x + length - 1)])  # the last is twice the sum of x
    area, sum_y, twice_sum_x = torch.zeros_like(sums).index_add_(1, root, sums)
    round_ = ((area - geometry.cluster_area).abs() < geometry.cluster_tolerance) & (root == runs) & (component > 0)
    rows = capacity.pick("round regions", round_, room=len(runs) // 32)
    area = area[rows.at].clamp(min=1)
    yx = torch.stack([sum_y[rows.at] // area, twice_sum_x[rows.at] // (2 * area)], 1)
    component = rows.clear(component[rows.at], NO_COMPONENT)
    return Centers.sorted(component, yx, torch.ones_like(component, dtype=torch.float32))


@torch.no_grad()
def find_centers(
    foreground: Foreground,
    *,
    geometry: Geometry,
    threshold: float,
    rules: Rules,
    clustering: bool,
    capacity: Capacity = EXACT,
) -> Centers:
    """Peaks of each component, complemented by the points where its offsets converge.

    A clustered centre is accepted if it lies in the component, the heatmap there is above ``CLUSTER_HEAT``, and the
    component has no peak or only peaks farther away than ``geometry.cluster_distance``. Accepted ones are not compared
    with one another.

    Args:
        foreground: The maps at the components' pixels.
        geometry: Window of the peaks, radius, tolerance and distance of clustered centres.
        threshold: Of the peaks, positive.
        rules: Which values are peaks, and what a clustered centre scores: ``strict_peaks``, ``clustered_score``.
        clustering: False for peaks only.
        capacity: Of all lists on the way; the table of centres is called "centers" there.

    Source: paper section 3.5; what it leaves open is as in release 4.4 to 4.9.
    """
    components = foreground.components
    found = find_peaks(
        foreground, threshold=threshold, window=geometry.peak_window, strict=rules.strict_peaks, capacity=capacity
    )
    component, yx, score = found.component, found.yx, found.score
    if clustering:
        clusters = cluster_centers(foreground, geometry=geometry, capacity=capacity)
        pixel = center_pixels(clusters, components)
        heat = foreground.plane.flatten()[pixel]
        hot = heat > CLUSTER_HEAT
        good = (components.labels.flatten()[pixel] == clusters.component) & hot
        good &= ~_near_peak(clusters, found, geometry.cluster_distance)
        component = torch.cat([component, clusters.component.where(good, NO_COMPONENT)])
        # how short the offsets are says where a centre is, not how sure: a weak heatmap makes a weak label (Eq. 2)
        certainty = heat if rules.clustered_score == "heatmap" else torch.ones_like(heat)
        yx, score = torch.cat([yx, clusters.yx]), torch.cat([score, certainty])
    rows = capacity.pick("centers", component != NO_COMPONENT, room=len(component))
    return Centers.sorted(rows.clear(component[rows.at], NO_COMPONENT), yx[rows.at], score[rows.at])


def center_pixels(centers: Centers, components: Components) -> Tensor:
    """Index of each centre's pixel into the flat (B, H, W): (M,) int64; any pixel for empty slots."""
    _, height, width = components.labels.shape
    component = centers.component.clamp(max=len(components.image) - 1)
    return (components.image[component] * height + centers.yx[:, 0]) * width + centers.yx[:, 1]


def _near_peak(clusters: Centers, peaks: Centers, distance: float) -> Tensor:
    """Whether a peak of the same component is at most ``distance`` away: (M,) bool."""
    near = [torch.zeros(0, dtype=torch.bool, device=peaks.yx.device)]
    chunk = max(1, WINDOW_BUDGET // max(1, len(peaks)))
    for yx, component in zip(torch.split(clusters.yx, chunk), torch.split(clusters.component, chunk), strict=True):
        away_y, away_x = yx[:, :1] - peaks.yx[:, 0], yx[:, 1:] - peaks.yx[:, 1]
        away = away_y.square_().add_(away_x.square_()).float().sqrt_()
        near.append(((away <= distance) & (component[:, None] == peaks.component)).any(1))
    return torch.cat(near)
