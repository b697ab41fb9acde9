"""What a predictor found in one image: arrays to compute with, pictures to look at, files for other programs."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as codec

from bestie_pl.data.files import write_text
from bestie_pl.drawing import Picture, draw_instances, write_picture
from bestie_pl.ops.masks import decode
from bestie_pl.ops.runs import measure, paint_codes
from bestie_pl.structures import Instances

COLUMNS = ("label", "class", "score", "area", "centroid_x", "centroid_y", "x1", "y1", "x2", "y2")
"""Of the table, all but ``label``, ``class`` and ``score`` in pixels."""
LABEL_SUFFIXES = (".png", ".tif", ".tiff")
OVERLAY_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MOST_LABELS = 65535


@dataclass(frozen=True, repr=False)
class Result:
    """The instances of one image, best score first; there may be none.

    Args:
        name: Of the image, without suffix.
        image: (H, W, 3) uint8, RGB: the image as it was seen.
        instances: At the size of the image.
        all_class_names: Of all classes of the network, in the order of their numbers.
        path: Of the image's file, if it has one.

    >>> from bestie_pl.ops.masks import encode
    >>> import torch
    >>> numbers, codes = encode(torch.tensor([[0, 1], [0, 1]]))
    >>> found = Instances(codes, torch.tensor([0]), torch.tensor([0.75]), (2, 2))
    >>> result = Result("one", np.zeros((2, 2, 3), np.uint8), found, ("cell",))
    >>> result.class_names, result.boxes.tolist(), result.areas.tolist()
    (['cell'], [[1.0, 0.0, 2.0, 2.0]], [2])
    """

    name: str
    image: Picture
    instances: Instances
    all_class_names: tuple[str, ...]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.instances)

    def __repr__(self) -> str:
        counts = Counter(self.class_names).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
        return f"Result({self.name!r}, {self.instances.size[0]} x {self.instances.size[1]}: {found})"

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(N, H, W), made when asked for; ``instances.masks`` are the run-length codes, thousands of times smaller."""
        return decode(self.instances).numpy()

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """(N,) numbers of the classes, from 0."""
        return self.instances.classes.numpy()

    @property
    def class_names(self) -> list[str]:
        """N names."""
        return [self.all_class_names[number] for number in self.classes.tolist()]

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(N,) in [0, 1], descending."""
        return self.instances.scores.numpy()

    @property
    def boxes(self) -> npt.NDArray[np.float32]:
        """(N, 4): left, top, right and bottom edge in pixels; ``right - left`` is the width."""
        if not len(self):
            return np.zeros((0, 4), np.float32)
        found: npt.NDArray[np.float32] = codec.toBbox(list(self.instances.masks)).astype(np.float32)
        found[:, 2:] += found[:, :2]
        return found

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """(N,) pixels."""
        return np.array([area for area, _ in self._measures], np.int64)

    @property
    def centroids(self) -> npt.NDArray[np.float64]:
        """(N, 2): x and y of the mean of the pixels, whose centres lie at whole numbers."""
        return np.array([(x, y) for _, (y, x) in self._measures], np.float64).reshape(-1, 2)

    @cached_property
    def _measures(self) -> list[tuple[int, tuple[float, float]]]:
        return [measure(code) for code in self.instances.masks]

    def above(self, score: float) -> Result:
        """The instances with at least this score."""
        count = int((self.instances.scores >= score).sum())  # best score first
        kept = Instances(
            self.instances.masks[:count],
            self.instances.classes[:count],
            self.instances.scores[:count],
            self.instances.size,
        )
        return replace(self, instances=kept)

    def plot(self) -> Image.Image:
        """The image with outlined and tinted instances, and class and score where there is room for them."""
        return Image.fromarray(draw_instances(self.image, self.instances, self.all_class_names))

    def save(self, path: str | Path) -> Path:
        """Write ``plot()`` as PNG, JPEG, WebP, TIFF or BMP; returns the path.

        Raises:
            ValueError: Another suffix.
        """
        target = _with_suffix(path, OVERLAY_SUFFIXES, "an overlay")
        write_picture(target, self.plot())
        return target

    def to_coco(self, *, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The instances as COCO annotations with a score, masks as run-length codes with text that JSON takes.

        Args:
            image_id: Of the image.
            category_ids: Ids of the classes, in the order of their numbers; 1, 2, ... if omitted.

        Returns:
            ``{"image_id", "category_id", "score", "segmentation", "bbox", "area"}`` for each instance, ``bbox`` being
            left, top, width and height.
        """
        ids = category_ids or range(1, len(self.all_class_names) + 1)
        rows = zip(self.classes.tolist(), self.scores.tolist(), self.instances.masks, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": ids[number],
                "score": round(score, 6),
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
            }
            for (number, score, code), (x1, y1, x2, y2), area in zip(
                rows, self.boxes.tolist(), self.areas.tolist(), strict=True
            )
        ]

    def to_label_image(self, path: str | Path | None = None) -> npt.NDArray[np.uint16]:
        """(H, W) uint16: 0 for nothing, ``k`` for the k-th instance; better ones cover worse ones.

        Args:
            path: Where to write it as well, as a 16-bit PNG or TIFF, which microscopy programs read as labels.

        Raises:
            ValueError: Another suffix, or more than 65,535 instances.
        """
        if len(self) > MOST_LABELS:
            raise ValueError(f"{self.name}: {len(self)} instances are too many for 16 bits; take those above a score")
        target = None if path is None else _with_suffix(path, LABEL_SUFFIXES, "a label image")
        ids = paint_codes(self.instances.masks[::-1], self.instances.size).numpy()
        labels = np.where(ids > 0, len(self) + 1 - ids, 0).astype(np.uint16)
        if target is not None:
            write_picture(target, Image.fromarray(labels))
        return labels

    def to_csv(self, path: str | Path | None = None) -> str:
        """A table with a row an instance: number in the label image, class, score, area, centroid and box in pixels.

        Args:
            path: Where to write it as well.
        """
        table = StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, (name, score, area, center, box) in enumerate(
            zip(self.class_names, self.scores, self.areas, self.centroids, self.boxes, strict=True), 1
        ):
            places = [f"{value:.2f}" for value in center]
            writer.writerow([row, name, f"{score:.4f}", area, *places, *(f"{value:g}" for value in box)])
        if path is not None:
            write_text(Path(path), table.getvalue())
        return table.getvalue()

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with boxes, scores, classes, their names, and masks kept as run-length codes.

        Raises:
            ImportError: The package ``supervision`` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision needs the package supervision: pip install 'bestie-pl[supervision]'"
            ) from error
        if not len(self):
            return supervision.Detections.empty()
        # there the last row and column belong to a box
        boxes = self.boxes - np.array([0, 0, 1, 1], np.float32)
        codes = [{"size": list(c["size"]), "counts": c["counts"].decode("ascii")} for c in self.instances.masks]
        masks = supervision.CompactMask.from_coco_rle(codes, boxes, image_shape=self.instances.size)
        return supervision.Detections(
            xyxy=boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


def _with_suffix(path: str | Path, allowed: Sequence[str], what: str) -> Path:
    target = Path(path)
    if target.suffix.lower() not in allowed:
        raise ValueError(f"{target}: {what} is written as one of {', '.join(allowed)}")
    return target
