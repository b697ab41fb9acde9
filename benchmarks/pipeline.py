"""Input pipeline: images a second of decoding and of what follows on the device, against what the network consumes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row, Settings, busiest, seconds
from benchmarks.scenes import make_scene
from benchmarks.step import half, make_step
from bestie_pl.data.samples import collate
from bestie_pl.data.voc import VOC_CLASSES, VOCDataModule
from bestie_pl.recipe import Recipe


def write_photographs(root: Path, count: int) -> None:
    """A data set in VOC's layout: JPEG files of 500 x 375 px with the grain of photographs, maps and points."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "WSSS_maps", "Center_points", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    scene = make_scene(20, batch=count, size=500)
    lines = []
    for number in range(count):
        name = f"2007_{number:06d}"
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.BICUBIC)
        grain = random.normal(0, 12, (375, 500, 3))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(
            root / "JPEGImages" / f"{name}.jpg", quality=90
        )
        Image.fromarray(scene.semantic[number, :375].numpy()).save(root / "WSSS_maps" / f"{name}.png")
        own = scene.cues.select((scene.cues.image == number) & (scene.cues.yx[:, 0] < 374))
        points = zip(own.yx.tolist(), own.classes.tolist(), strict=True)
        text = "".join(f"{x:.1f} {y:.1f} {c} 1.0\n" for (y, x), c in points)
        (root / "Center_points" / f"{name}.txt").write_text(text)
        lines.append(" ".join([name, *(str(c) for c in scene.tags[number].nonzero().flatten().tolist())]))
    for split in ("train_aug", "val"):  # the second is asked for, and not read
        (root / f"{split}_cls.txt").write_text("\n".join(lines) + "\n")


def run(settings: Settings) -> list[Row]:
    """Row 5."""
    rows = []
    count, size = (8, 128) if settings.quick else (32, 416)
    batch = min(16, count)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2012"
        write_photographs(root, count)
        for recipe in ("paper", "release"):
            rows += _recipe(root, recipe, count, batch, size, settings)
    step = make_step(settings, len(VOC_CLASSES), dtype=half(settings))
    images = torch.rand(batch, 3, size, size, device=settings.device)
    rate = batch / seconds(lambda: step.network_alone(images), settings, repeats=3)
    name = "HRNet-W48 AMP" if settings.cuda else "Lite0"
    rows.append(Row(f"network alone, {name}, {size} px: forward and backward", rate, "images/s"))
    decoding = next(row.value for row in rows if row.name == "paper: decoding, a worker")
    rows.append(Row("workers that feed this network", rate / decoding, "workers"))
    rows.append(Row("workers that feed 222 crops/s", 222 / decoding, "workers"))
    return rows


def _recipe(root: Path, recipe: Recipe, count: int, batch: int, size: int, settings: Settings) -> list[Row]:
    data = VOCDataModule(str(root), recipe=recipe, batch_size=batch, num_workers=0, crop_size=size)
    data.setup("fit")
    samples = data.datasets["train"]

    def decode() -> None:
        for index in range(count):
            samples[index]

    gathered = [samples[index] for index in range(batch)]
    batch_of_files = collate(gathered)
    raw = batch_of_files.to(settings.device)
    ready = data.on_after_batch_transfer(raw, 0)
    named = f"{recipe}: decoding" + (" and augmentation" if recipe == "release" else "")
    per_second = {
        f"{named}, a worker": count / seconds(decode, settings),
        f"{recipe}: collating": batch / seconds(lambda: collate(gathered), settings),
        f"{recipe}: augmentation and pseudo labels on the device": batch
        / seconds(lambda: data.on_after_batch_transfer(raw, 0), settings),
        f"{recipe}: components and pseudo labels alone": batch / seconds(lambda: data.label(ready), settings),
    }
    if settings.cuda:
        pinned = batch_of_files.pin_memory()
        per_second[f"{recipe}: transfer"] = batch / seconds(lambda: pinned.to("cuda"), settings)
    profiles = [busiest(decode, settings) if "a worker" in name else "" for name in per_second]
    profiles[2] = busiest(lambda: data.on_after_batch_transfer(raw, 0), settings)
    return [
        Row(name, value, "images/s", limited_by=why)
        for (name, value), why in zip(per_second.items(), profiles, strict=True)
    ]
