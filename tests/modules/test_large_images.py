"""Images larger than a tile: the same instances as in one piece, from parts, in bounded memory; or a refusal."""

from __future__ import annotations

import os
import resource

import pytest
import torch
from pycocotools import mask as codec
from scipy import ndimage
from torch import Tensor

from bestie_pl.errors import UserError
from bestie_pl.modules import large_images
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.large_images import in_tiles
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.ops.masks import decode, encode
from bestie_pl.prediction.engine import TILE
from bestie_pl.structures import Batch, Cues, Instances

SMALL = {"backbone": "mobilenetv3_small_050", "backbone_weights": None}


def batch_of(*images: Tensor, original: tuple[int, int] | None = None, cues: Cues | None = None) -> Batch:
    """Padded to a multiple of 32."""
    height, width = (-(-max(side) // 32) * 32 for side in zip(*(image.shape[1:] for image in images), strict=True))
    padded = torch.zeros(len(images), 3, height, width)
    for row, image in enumerate(images):
        padded[row, :, : image.shape[1], : image.shape[2]] = image
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    return Batch(
        images=padded,
        tags=torch.ones(len(images), 2, dtype=torch.bool),
        cues=Cues.empty() if cues is None else cues,
        names=tuple(f"image{row}" for row in range(len(images))),
        sizes=sizes,
        original_sizes=sizes if original is None else (original,) * len(images),
    )


def bright_regions(batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
    """An instance is a connected bright region, of the class that its colour says."""
    found, maps = [], []
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        level = image[0, :height, :width]
        numbers, codes = encode(torch.from_numpy(ndimage.label(level.numpy() > 0)[0]).int())
        classes = torch.tensor([int(level[torch.from_numpy(codec.decode(code)) > 0].max() > 0.5) for code in codes])
        scores = 0.5 + 0.001 * torch.arange(len(numbers)).float()
        found.append(Instances(tuple(codes), classes.long(), scores, (height, width)))
        maps.append((level > 0).byte() + (level > 0.5).byte())
    return tuple(found), tuple(maps)


def scene(height: int, width: int, objects: int) -> Tensor:
    """Discs that do not touch, some across the tiles' seams."""
    image = torch.zeros(3, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    random = torch.Generator().manual_seed(3)
    taken = torch.zeros(height, width, dtype=torch.bool)
    for number in range(objects):
        cy, cx = (torch.rand(2, generator=random) * torch.tensor([height, width])).tolist()
        near = (y - cy) ** 2 + (x - cx) ** 2
        if not taken[near < 16**2].any():
            image[:, near < 12**2] = 0.4 if number % 2 else 0.9
            taken |= near < 14**2
    return image


def masks_of(instances: Instances) -> set[tuple[int, bytes]]:
    planes = decode(instances)
    return {(int(c), plane.numpy().tobytes()) for c, plane in zip(instances.classes, planes, strict=True)}


def test_tiles_find_what_the_whole_image_holds() -> None:
    image = scene(300, 450, 60)
    small = scene(64, 90, 4)
    whole, whole_maps = bright_regions(batch_of(image, small))
    found, maps = in_tiles(bright_regions, batch_of(image, small), tile=192, overlap=96)
    assert len(whole[0]) > 20
    for mine, theirs, plane, other in zip(found, whole, maps, whole_maps, strict=True):
        assert masks_of(mine) == masks_of(theirs) and torch.equal(plane, other)
    assert found[0].scores.tolist() == sorted(found[0].scores.tolist(), reverse=True)


def test_results_have_the_size_of_the_file() -> None:
    image = scene(300, 450, 30)
    (found,), (semantic,) = in_tiles(bright_regions, batch_of(image, original=(150, 225)), tile=192, overlap=96)
    (whole,), (plane,) = bright_regions(batch_of(image))
    assert found.size == (150, 225) == tuple(semantic.shape) and len(found) == len(whole)
    assert torch.equal(semantic, plane[1::2, 1::2])  # the pixel under each centre


def test_given_points_go_with_their_tile() -> None:
    yx = torch.tensor([[10.0, 20], [0, 0], [10, 300]])
    cues = Cues(torch.tensor([1, 0, 1]), yx, torch.tensor([0, 0, 1]), torch.ones(3))
    seen: list[tuple[int, list[list[float]], list[int]]] = []

    def look(batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
        assert not batch.cues.image.any() and max(batch.sizes[0]) <= 192
        seen.append((batch.sizes[0][1], batch.cues.yx.tolist(), batch.cues.classes.tolist()))
        return bright_regions(batch)

    in_tiles(look, batch_of(scene(32, 40, 1), scene(64, 350, 3), cues=cues), tile=192, overlap=96)
    assert seen == [(40, [[0, 0]], [0]), (192, [[10, 20]], [0]), (192, [], []), (158, [[10, 108]], [1])]


def test_a_module_predicts_and_scores_large_images_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    module = BestieModule(2, decoder="pyramid", **SMALL).eval()  # type: ignore[arg-type]
    widths: list[int] = []
    real = module.predict_instances

    def look(batch: Batch) -> tuple[tuple[Instances, ...], tuple[Tensor, ...]]:
        widths.append(batch.images.shape[-1])
        return real(batch)

    monkeypatch.setattr(module, "predict_instances", look)
    batch = batch_of(torch.rand(3, 40, TILE + 40, generator=torch.Generator().manual_seed(0)))
    (found,) = module.predict_step(batch, 0)
    assert found.size == (40, TILE + 40) and widths == [TILE, 576]
    instances, (semantic,) = module.test_step(batch, 0)
    assert instances[0].size == found.size == tuple(semantic.shape) and len(widths) == 4


@pytest.mark.parametrize("kind", [SemanticModule, PeakAttentionModule])
def test_what_cannot_be_done_in_tiles_is_refused(
    kind: type[SemanticModule | PeakAttentionModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that rest on the whole image: a tag must be somewhere in it, an activation is relative to its maximum."""
    monkeypatch.setattr(large_images, "MOST_WHOLE", 64 * 64)
    settings = {"width": 16} if kind is PeakAttentionModule else {"decoder": "pyramid"}
    module = kind(2, **SMALL, **settings).eval()  # type: ignore[arg-type]
    module.predict_step(batch_of(torch.rand(3, 64, 64)), 0)
    for step in (module.predict_step, module.test_step):
        large = batch_of(torch.rand(3, 64, 96))
        if kind is SemanticModule:
            large = large.__class__(**{**vars(large), "semantic_references": (torch.zeros(64, 96),)})
        with pytest.raises(UserError, match=r"image0: 96 x 64 px after image_scale; .* use a smaller .*image_scale"):
            step(large, 0)


def test_memory_follows_the_tile() -> None:
    """In one piece this image takes 290 MiB."""
    module = BestieModule(5, decoder="pyramid", **SMALL).eval()  # type: ignore[arg-type]
    batch = batch_of(torch.rand(3, 1216, 1216, generator=torch.Generator().manual_seed(0)))
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            in_tiles(module.predict_instances, batch, tile=640, overlap=64)
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert int(said.read()) / 1024 < 200
