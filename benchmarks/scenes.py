"""Batches like those of training on photographs: maps at stride 4, semantic maps at full size, labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.transfer import transfer
from bestie_pl.recipe import PAPER
from bestie_pl.structures import Components, Cues, Geometry, InstanceMaps, LabeledInstances

STRIDE = 4


@dataclass(frozen=True)
class Scene:
    """What a training step starts from after the network.

    Args:
        maps: (B, ..., h, w) at stride 4, as a network in training returns them.
        enlargement: To the size of the semantic map.
        semantic: (B, H, W) uint8, from a weakly supervised method: wrong pixels, fragments, 255 along outlines.
        tags: (B, C) bool.
        cues: One in most of the objects.
    """

    maps: InstanceMaps
    enlargement: Enlargement
    semantic: Tensor
    tags: Tensor
    cues: Cues

    @property
    def classes(self) -> Tensor:
        """(B, H, W) int32, the tagged classes."""
        return tagged_classes(self.semantic, self.tags)

    def components(self) -> Components:
        """Of the tagged classes."""
        return label_components(self.classes)

    def pseudo(self, components: Components) -> LabeledInstances:
        """Labels by transfer."""
        return transfer(components, self.cues, supervision="tags", rules=PAPER, geometry=Geometry())

    def large(self) -> InstanceMaps:
        """The maps at full size."""
        return self.enlargement.all(self.maps)


def make_scene(
    num_classes: int,
    *,
    batch: int = 16,
    size: int = 416,
    instances: int = 3,
    present: int | None = None,
    fragments: int = 3,
    seed: int = 0,
    device: str = "cpu",
) -> Scene:
    """Ellipses of 50 to 300 px, some touching others of their class; the same objects whatever ``num_classes`` is.

    Args:
        num_classes: C, at least 4. Objects have the first four classes only.
        batch: B.
        size: H and W.
        instances: Mean number of objects an image.
        present: Classes an image holds; 1, 2, 3 or 4 in turn if omitted.
        fragments: Small wrong regions an image, of the image's classes.
        seed: Of everything.
        device: Where the tensors go.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    cells = -(-size // STRIDE)
    at = torch.arange(size).float()
    at_cells = (torch.arange(cells) + 0.5) * STRIDE - 0.5
    semantic = torch.zeros(batch, size, size, dtype=torch.uint8)
    heat = uniform(-0.05, 0.1, batch, 4, cells, cells)
    offset = torch.randn(batch, 2, cells, cells, generator=generator)
    offset += uniform(-40, 40, batch, 2, 1, 1)
    logits = torch.randn(batch, 5, cells, cells, generator=generator)
    logits[:, 0] += 2
    tags = torch.zeros(batch, num_classes, dtype=torch.bool)
    cues = []
    for image in range(batch):
        own = present if present is not None else image % 4 + 1
        count = max(own, int(torch.randint(max(1, instances - 2), instances + 3, (), generator=generator)))
        for number in range(count):
            kind = number % own
            (cy, cx), (ry, rx) = uniform(0.1 * size, 0.9 * size, 2), uniform(0.06 * size, 0.3 * size, 2)
            inside = ((at[:, None] - cy) / ry).square() + ((at - cx) / rx).square()
            semantic[image][(inside < 1.05) & (inside > 0.98)] = 255
            semantic[image][inside <= 0.98] = kind + 1
            tags[image, kind] = True
            if torch.rand((), generator=generator) < 0.8:
                cues.append((image, float(cy), float(cx), kind))
            dy, dx = at_cells[:, None] - cy, at_cells - cx
            on = (dy / ry).square() + (dx / rx).square() < 1
            sharp = float(uniform(0.2, 1.0, 1))
            gaussian = sharp * torch.exp(-(dy.square() + dx.square()) / (2 * 8.0**2))
            heat[image, kind] = torch.maximum(heat[image, kind], gaussian)
            offset[image] = torch.where(on, torch.stack(torch.broadcast_tensors(-dy, -dx)), offset[image])
            logits[image, kind + 1] += 4 * on
        for number in range(fragments):
            y, x, h, w = (int(v) for v in torch.cat([uniform(0, size - 24, 2), uniform(4, 24, 2)]))
            semantic[image, y : y + h, x : x + w] = number % own + 1
    offset += 0.5 * torch.randn(offset.shape, generator=generator)
    # channels of absent classes: noise of the same kind
    more = torch.Generator().manual_seed(seed + 1)
    rest = num_classes - 4
    heat = torch.cat([heat, torch.rand(batch, rest, cells, cells, generator=more) * 0.15 - 0.05], 1)
    logits = torch.cat([logits, torch.randn(batch, rest, cells, cells, generator=more)], 1)
    maps = InstanceMaps(*(m.to(device).contiguous(memory_format=torch.channels_last) for m in (logits, heat, offset)))
    image, y, x, kind = zip(*cues, strict=True)
    points = Cues(torch.tensor(image), torch.tensor([y, x]).t(), torch.tensor(kind), torch.ones(len(image)))
    grid = (cells * STRIDE, cells * STRIDE)
    return Scene(maps, Enlargement((size, size), grid), semantic.to(device), tags.to(device), points.to(device))
