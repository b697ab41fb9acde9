"""Pixels to instances: each pixel goes to the centre that its offset points at (Eq. 1); measures of such groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bestie_pl.ops.capacity import EXACT, Capacity, attempts, take
from bestie_pl.ops.enlargement import Enlargement, PixelSpots, Spots, at_a_time, find_spots
from bestie_pl.ops.peaks import NO_COMPONENT, Centers
from bestie_pl.structures import Cues, LabeledInstances

USUAL_CENTERS = 8
"""Centres in one group of pixels, at most, on devices that cannot say how many there are; a guess."""

SEMANTIC_VALUES = 256
"""A semantic map holds bytes: image and class make one number."""


@torch.no_grad()
def group_pixels(
    pixel: Tensor,
    offset: Tensor,
    component: Tensor,
    centers: Centers,
    *,
    components: int,
    size: tuple[int, int],
    max_rank: int | None = None,
    usual: int = USUAL_CENTERS,
    capacity: Capacity = EXACT,
) -> Tensor:
    """The centre that each pixel belongs to: the one of its component nearest to where its offset points.

    One pass a rank over the pixels whose component still has a centre of that rank, so that components with one centre
    cost nothing. Distances are float32, in coordinates of the whole image and after the square root: anything else
    breaks ties differently from the release. Of equally near centres the first one wins.

    Args:
        pixel: (P,) int64, index into the flat (B, H, W).
        offset: (2, P) float32, (dy, dx) in pixels.
        component: (P,) int64, below ``components``; any group of pixels that share their centres.
        centers: Centres of the components.
        components: How many components there are, row 0 of their table included.
        size: (H, W).
        max_rank: If one pixel of a component belongs to a centre of this rank or a higher one, all of the component's
            pixels get -1. The release gives up crowded components this way.
        usual: Guess of how many centres a component has at most, for ``capacity``.
        capacity: Whether pixels without a centre to compare are left out, and how many passes there are.

    Returns:
        (P,) int64, a row of ``centers``; -1 where the component has none.

    Source: paper section 3.2, Eq. (1); release 4.3, and 5.2 for ``max_rank``.

    >>> centers = Centers.sorted(torch.zeros(2).long(), torch.tensor([[0, 0], [0, 4]]), torch.ones(2))
    >>> offset = torch.tensor([[0.0, 0, 0, 0, 0], [0.0, -1, 0, 1, 0]])
    >>> group_pixels(torch.arange(5), offset, torch.zeros(5).long(), centers, components=1, size=(1, 5)).tolist()
    [0, 0, 0, 1, 1]
    """
    first, count = centers.spans(components)
    owner = first.where(count > 0, -1).index_select(0, component)
    if len(centers) == 0:
        return owner
    center_y, center_x = centers.yx.float().unbind(1)

    # what follows is about the pixels whose component has centres left to compare
    active = capacity.narrow((count > 1).index_select(0, component))
    own, nearest = take(component, active), take(owner, active)
    own_first, own_count = first.index_select(0, own), count.index_select(0, own)
    _, y, x = PixelSpots.of(take(pixel, active), size)
    target_y, target_x = y + take(offset[0], active), x + take(offset[1], active)

    def distance(row: Tensor) -> Tensor:
        row = row.clamp(max=len(centers) - 1)  # of pixels without that many centres
        away_y, away_x = center_y.index_select(0, row) - target_y, center_x.index_select(0, row) - target_x
        return (away_y.square_() + away_x.square_()).sqrt_()

    best = distance(own_first)
    crowded = torch.zeros_like(count)
    for rank in range(1, capacity.limit("centers of a component", count.max(), room=usual)):
        row = own_first + rank
        away = distance(row)
        more = own_count > rank + 1
        closer = (away < best) & (own_count > rank)
        if max_rank is not None and rank >= max_rank:
            # one pixel is enough, whichever of the remaining centres gets it in the end
            crowded.index_add_(0, own, closer.long())
            more &= crowded.index_select(0, own) == 0
        nearest, best = row.where(closer, nearest), away.where(closer, best)
        owner = nearest if active is None else owner.index_copy_(0, active, nearest)
        going_on = capacity.narrow(more)
        if active is None or going_on is None:
            continue
        columns = (active, own, own_first, own_count, nearest, best, target_y, target_x)
        active, own, own_first, own_count, nearest, best, target_y, target_x = (take(c, going_on) for c in columns)
        if len(active) == 0:
            break
    return owner if max_rank is None else owner.where((crowded == 0).index_select(0, component), -1)


@dataclass(frozen=True)
class Groups:
    """The centres that own pixels, numbered 1..N in the order of their rows.

    Args:
        pixel: (P,) int64, index into the flat (B, H, W).
        ids: (P,) int64 in 0..N; 0 for pixels without a centre.
        center: (N,) int64, row of the centres.
        area: (N + 1,) int64 pixels; 0 in row 0 and in empty slots, which are the last ones.
    """

    pixel: Tensor
    ids: Tensor
    center: Tensor
    area: Tensor

    @classmethod
    def of(cls, pixel: Tensor, owner: Tensor, centers: Centers, *, capacity: Capacity = EXACT) -> Groups:
        """Number what ``group_pixels`` says of ``pixel``; the table is called "groups" there."""
        area = torch.zeros(len(centers) + 1, dtype=torch.int64, device=owner.device)
        owner = owner + 1
        area.index_add_(0, owner, torch.ones_like(owner))
        area[:1].zero_()
        owning = area > 0
        number = owning.cumsum(0) * owning
        rows = capacity.pick("groups", owning, room=len(centers))
        area = torch.cat([area[:1], rows.clear(area[rows.at])])
        return cls(pixel, number.index_select(0, owner), rows.at - 1, area)

    def cut(self, pixels: int | None, count: int | None) -> Groups:
        """The first ``pixels`` pixels and ``count`` groups; all of them where that is None."""
        area = self.area if count is None else self.area[: count + 1]
        return Groups(self.pixel[:pixels], self.ids[:pixels], self.center[:count], area)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` (P,) in [0, 1] over each group: (N,) float32.

        Summed in integers: the order, which a GPU does not keep, and the size of the group then cost no digits.
        """
        sums = torch.zeros_like(self.area).index_add_(0, self.ids, (values * 2.0**24).round().long())
        return (sums[1:].double() / (self.area[1:] * 2.0**24)).float()

    def maximum(self, values: Tensor) -> Tensor:
        """Largest of ``values`` (P,) in each group: (N,)."""
        lowest = values.new_full((len(self.area),), -torch.inf)
        return lowest.scatter_reduce_(0, self.ids, values, "amax")[1:]

    def first(self, chosen: Tensor) -> Tensor:
        """First pixel of each group in which ``chosen`` (P,) bool is true: (N,) index into the flat (B, H, W)."""
        none = torch.iinfo(torch.int64).max
        first = self.pixel.new_full((len(self.area),), none)
        return first.scatter_reduce_(0, self.ids, self.pixel.where(chosen, none), "amin")[1:]

    def label(
        self,
        shape: Sequence[int],
        *,
        image: Tensor,
        classes: Tensor,
        center_yx: Tensor,
        weight: Tensor,
        peaks: Cues | None = None,
    ) -> LabeledInstances:
        """The groups as labelled instances of a batch of ``shape`` (B, H, W).

        Args:
            shape: Of the label map.
            image: (N,) int64.
            classes: (N,) int64, 0-based.
            center_yx: (N, 2) pixels.
            weight: (N,) float32.
            peaks: ``center_yx`` with score 1, if omitted.
        """
        ids = torch.zeros(tuple(shape), dtype=torch.int32, device=self.pixel.device)
        ids.view(-1).scatter_(0, self.pixel, self.ids.int())
        center_yx = center_yx.float()
        return LabeledInstances(
            ids=ids,
            image=torch.cat([image.new_zeros(1), image]),
            classes=torch.cat([classes.new_full((1,), -1), classes]),
            center_yx=torch.cat([center_yx.new_zeros(1, 2), center_yx]),
            weight=torch.cat([weight.new_zeros(1), weight]),
            area=self.area,
            peaks=Cues(image, center_yx, classes, torch.ones_like(weight)) if peaks is None else peaks,
        )


@torch.no_grad()
def group_by_points(
    offset_field: Tensor, classes: Tensor, points: Cues, *, enlargement: Enlargement | None = None
) -> tuple[Groups, Tensor, Tensor, Tensor]:
    """Group all pixels of a class in an image by the points of that class there, wherever these lie.

    Args:
        offset_field: (B, 2, H, W), (dy, dx) in pixels; or smaller, with ``enlargement``.
        classes: (B, H, W) integers: 0 outside, ``c + 1`` for class ``c``.
        points: Rows of score 0 are empty slots. Of equally near points the first one wins.
        enlargement: How the field becomes as large as the class map; it is read without it being done.

    Returns:
        The groups, and of each its image (N,), its class (N,) and its point (N, 2) float32.

    Raises:
        ValueError: ``offset_field`` and ``classes`` differ in size.

    Source: paper section 3.5; release 6.1 and 10.8.
    """
    batch, height, width = classes.shape
    size = tuple(offset_field.shape[2:]) if enlargement is None else enlargement.size
    if (*offset_field.shape[:2], *size) != (batch, 2, height, width):
        raise ValueError(
            f"offset_field is {(*offset_field.shape[:2], *size)}, the class map {tuple(classes.shape)}; "
            f"expected ({batch}, 2, {height}, {width}): enlarge the maps first (BestieModel.enlarge)"
        )
    component = points.image * SEMANTIC_VALUES + points.classes + 1
    centers = Centers.sorted(component.where(points.scores > 0, NO_COMPONENT), points.yx.float(), points.scores)
    for capacity in attempts(classes.device):
        rows = capacity.pick("pixels", classes != 0, room=classes.numel())
        pixel = rows.at
        owner = group_pixels(
            pixel,
            find_spots(pixel, offset_field.shape, enlargement).read_all(offset_field),
            rows.clear(pixel // (height * width) * SEMANTIC_VALUES + classes.flatten().index_select(0, pixel)),
            centers,
            components=batch * SEMANTIC_VALUES,
            size=(height, width),
            capacity=capacity,
        )
        groups = Groups.of(pixel, owner, centers, capacity=capacity)
    groups = groups.cut(capacity.count("pixels"), capacity.count("groups"))
    own = centers.component[groups.center]
    return groups, own // SEMANTIC_VALUES, own % SEMANTIC_VALUES - 1, centers.yx[groups.center]


@torch.no_grad()
def class_probability(logits: Tensor, spots: Spots, classes: Tensor) -> Tensor:
    """Softmax probability of one class at each of some pixels, without a softmax over the whole batch.

    Args:
        logits: (B, C + 1, h, w), channel 0 is background; any floating type and memory format.
        spots: P pixels, and how they are read.
        classes: (P,) int64, 0-based.

    Returns:
        (P,) float32.
    """
    chunk = at_a_time(logits.shape[1], logits.device)
    parts = [torch.zeros(0, device=logits.device)]
    for scores, own in zip(spots.read_rows(logits, chunk), torch.split(classes + 1, chunk), strict=False):
        # relative to the class's own score: it adds 1 to the sum, so that nothing but the probability can underflow
        parts.append(scores.sub_(scores.gather(1, own[:, None])).exp_().sum(1).reciprocal_())
    return torch.cat(parts)
