"""A small data set in VOC layout, written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = [(40, 60), (50, 64), (33, 47), (64, 64), (45, 45), (40, 61)]


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """Six images a0..a5 of classes cat and dog; two touching cats and a dog in each; split ``train`` and ``val``."""
    root = tmp_path / "set"
    folders = ["JPEGImages", "SegmentationClass", "SegmentationObject", "WSSS_maps", "Center_points", "Peak_points"]
    for folder in folders:
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    random = np.random.default_rng(0)
    names = [f"a{n}" for n in range(len(SIZES))]
    for name, (h, w) in zip(names, SIZES, strict=True):
        image = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        objects = np.zeros((h, w), np.uint8)
        objects[2:12, 2:12], objects[2:12, 12:22], objects[20:30, 5:25] = 1, 2, 3
        objects[30] = 255
        classes = np.array([0, 1, 1, 2], np.uint8)[objects.clip(0, 3)]
        classes[objects == 255] = 255
        for folder, values in [("SegmentationClass", classes), ("SegmentationObject", objects), ("WSSS_maps", classes)]:
            palette = Image.fromarray(values).convert("P")
            palette.putdata(values.flatten().tolist())
            palette.save(root / folder / f"{name}.png")
        (root / "Center_points" / f"{name}.txt").write_text("7 6 0 1.000\n17 6 0 1.000\n15 25 1 1.000\n")
        (root / "Peak_points" / f"{name}.txt").write_text("8 6 0 0.900\n17 6 0 0.700\n14 25 1 0.701\n")
    (root / "train_cls.txt").write_text("".join(f"{name} 0 1\n" for name in names))
    (root / "val_cls.txt").write_text("".join(f"{name} 0 1\n" for name in names[:5]))
    return root
