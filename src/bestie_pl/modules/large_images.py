"""Evaluating images that are too large for a network to see in one piece: in tiles, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bestie_pl.errors import UserError
from bestie_pl.ops.masks import resize_map
from bestie_pl.ops.tiles import Window, windows
from bestie_pl.prediction.engine import MARGIN, OVERLAP, TILE
from bestie_pl.prediction.mosaic import Mosaic
from bestie_pl.structures import IGNORE, Batch, Cues, Instances

MOST_WHOLE = 4096 * 4096
"""Pixels of an image that is not evaluated in tiles; a photograph has some 12 million."""

Found = tuple[tuple[Instances, ...], tuple[Tensor, ...]]


def in_tiles(predict: Callable[[Batch], Found], batch: Batch, *, tile: int = TILE, overlap: int = OVERLAP) -> Found:
    """Instances and semantic maps of a batch; of images larger than a tile from overlapping ones, as of ``Predictor``.

    Memory beside what one tile takes grows by some 40 bytes a pixel of the image, whatever network and classes.

    Args:
        predict: What a network finds in a batch; see ``BestieModule.predict_instances``.
        batch: On the device, images in [0, 1].
        tile: Side in pixels of the network's input, a multiple of 32.
        overlap: Of neighbouring tiles, a multiple of 32.
    """
    if all(max(size) <= tile for size in batch.sizes):
        return predict(batch)
    instances, maps = [], []
    for row, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
        if max(size) <= tile:
            (found,), (semantic,) = predict(_part(batch, row, Window(0, 0, *size), original))
        else:
            mosaic = Mosaic(size, margin=min(MARGIN, overlap // 2))
            semantic = torch.full(size, IGNORE, dtype=torch.uint8)
            for window in windows(size, tile, overlap):
                height, width = window.bottom - window.top, window.right - window.left
                (seen,), (plane,) = predict(_part(batch, row, window, (height, width)))
                mosaic.add(window, seen)
                # each tile counts from the middle of its overlap with the ones before
                top, left = (overlap // 2 if start else 0 for start in (window.top, window.left))
                semantic[window.top + top : window.bottom, window.left + left : window.right] = plane[top:, left:]
            found, semantic = mosaic.instances(original), resize_map(semantic, original)
        instances.append(found)
        maps.append(semantic)
    return tuple(instances), tuple(maps)


def refuse_large(batch: Batch, what: str) -> None:
    """Raise UserError if an image is larger than what ``what`` can see in one piece, in bounded memory."""
    for name, (height, width) in zip(batch.names, batch.sizes, strict=True):
        if height * width > MOST_WHOLE:
            raise UserError(
                f"{name}: {width} x {height} px after image_scale; {what} sees images in one piece, of at most "
                f"{MOST_WHOLE} pixels: use a smaller data.init_args.image_scale, or cut the image into several"
            )


def _part(batch: Batch, row: int, window: Window, original: tuple[int, int]) -> Batch:
    """A window of one image as a batch; padding to whole strides stays, as the batch has it."""
    height, width = window.bottom - window.top, window.right - window.left
    padded = [-(-side // 32) * 32 for side in (height, width)]
    image = batch.images[row : row + 1, :, window.top : window.top + padded[0], window.left : window.left + padded[1]]
    cues = batch.cues.select(batch.cues.image == row)
    yx = cues.yx - cues.yx.new_tensor(window[:2])
    inside = ((yx > -0.5) & (yx < yx.new_tensor([height, width]) - 0.5)).all(1)
    return replace(
        batch,
        images=image,
        tags=batch.tags[row : row + 1],
        cues=Cues(torch.zeros_like(cues.image), yx, cues.classes, cues.scores).select(inside),
        names=batch.names[row : row + 1],
        sizes=((height, width),),
        original_sizes=(original,),
        references=None,
        semantic_references=None,
    )
