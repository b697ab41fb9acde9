"""What 8 and 64 GPUs do to a training and its evaluation, computed from what benchmarks measured on one.

The tables of docs/scaling.md; ``python -m tools.tables`` writes them. Nothing here was measured on several GPUs: rates
are divided by their number, and what a network between them costs is computed from bytes.
"""

from __future__ import annotations

import json
import math

from experiments.runs import ROOT

BENCHMARKS = "benchmarks/results"
GPUS = (1, 8, 64)
IMAGES, EPOCHS = 10_582, 70
"""VOC's train_aug, and the paper's schedule."""
REFERENCE_BATCH, REFERENCE_LR = 32, 5e-5
"""The paper's, of configs/voc/*.yaml, with Adam."""
BATCH = 4
"""Images a GPU of those configurations."""
WARMUP_SHARE = 1 / 12
"""Of the steps, as in the other configurations."""
PARAMETERS = 63_938_507
"""Of HRNet-W48 with its heads for 20 classes; a test counts them."""
GRADIENT_BYTES = 4
LINKS = {8: ("NVLink, 200 GB/s", 200e9), 64: ("a network card a GPU, 50 GB/s", 50e9)}
"""Assumed, not measured: what a GPU sends in a second."""
EVALUATED, MASKS = 5_000, 10
"""COCO's val2017, and the masks an image of the benchmark."""
FILE_BYTES = 160_000
"""Of a photograph: COCO's train2017 are 19 GB."""

Table = tuple[list[list[str]], str]


def measured(file: str, name: str) -> float:
    """A figure of a result file of the benchmarks.

    Raises:
        KeyError: There is no row of this name.
    """
    rows = json.loads((ROOT / BENCHMARKS / f"{file}.json").read_text())["rows"]
    return float({row["name"]: row["value"] for row in rows}[name])


BATCHES = (16, 32, 64)
"""Images at once that were measured."""


def crops_a_second(images: int = 16) -> float:
    """A whole step of HRNet-W48 on one GPU, with so many images of 416 px."""
    return measured("batches_cuda", f"HRNet-W48, 416 px, bfloat16, batch {images}: whole step")


def training_table() -> Table:
    """Batch, learning rate, warm-up and time of the paper's training on VOC."""
    rows = [["GPUs", "images a GPU", "batch", "learning rate", "steps", "warm-up", "hours, computed"]]
    for gpus, images in [(1, 32), (8, 4), (8, 16), (64, 1), (64, 4), (64, 16)]:
        batch = gpus * images
        steps = IMAGES // batch * EPOCHS
        rate = REFERENCE_LR * math.sqrt(batch / REFERENCE_BATCH)
        hours = IMAGES * EPOCHS / (crops_a_second(images) * gpus) / 3600 if images in BATCHES else None
        rows.append(
            [str(gpus), str(images), str(batch), f"{rate:.2g}", f"{steps:,}"]
            + [str(round(steps * WARMUP_SHARE)) if batch > REFERENCE_BATCH else "0"]
            + ["–" if hours is None else f"{hours:.2g}"]
        )
    rates = ", ".join(f"{crops_a_second(images):.0f} with {images}" for images in BATCHES)
    origin = (
        f"`python -m tools.tables`: {IMAGES:,} images, {EPOCHS} epochs; crops a second of a GPU are {rates} images at "
        f"once, `{BENCHMARKS}/batches_cuda.json`, as many times as there are GPUs; fewer were not measured"
    )
    return rows, origin


def gradient_table() -> Table:
    """What the exchange of gradients adds to a step."""
    rows = [["GPUs", "a GPU sends a step", "assumed link", "exchange", "backward, which hides it"]]
    backward = measured("step_cuda", "HRNet-W48, 416 px, AMP, maps read at stride 4: backward")
    for gpus, (link, rate) in LINKS.items():
        # a ring: each part of the gradients goes round twice
        sent = 2 * (gpus - 1) / gpus * PARAMETERS * GRADIENT_BYTES
        rows.append(
            [str(gpus), f"{sent / 1e6:.0f} MB", link, f"{1e3 * sent / rate:.1f} ms", f"{1e3 * backward:.0f} ms"]
        )
    return rows, f"{PARAMETERS / 1e6:.1f} million parameters in float32; `{BENCHMARKS}/step_cuda.json` with 16 images"


def input_table() -> Table:
    """Workers, files and bytes that feed the GPUs."""
    rows = [["GPUs", "crops/s", "workers, recipe paper", "recipe release", "files opened a second", "read"]]
    paper = measured("pipeline_cuda", "paper: decoding, a worker")
    release = measured("pipeline_cuda", "release: decoding and augmentation, a worker")
    for gpus in GPUS:
        crops = crops_a_second() * gpus
        workers = [f"{math.ceil(crops / rate)}" for rate in (paper, release)]
        rows.append([str(gpus), f"{crops:.0f}", *workers, f"{2 * crops:.0f}", f"{crops * FILE_BYTES / 1e6:.0f} MB/s"])
    origin = (
        f"`{BENCHMARKS}/pipeline_cuda.json`: {paper:.0f} and {release:.0f} images/s a worker; an image and a map a "
        f"crop, {FILE_BYTES // 1000} kB"
    )
    return rows, origin


def evaluation_table() -> Table:
    """What scoring costs: inference and matching are shared out, exchange and scores are not."""
    one = f"{EVALUATED:,} images with {MASKS} masks, 1 process"
    rows = [["GPUs", "images a process", "network and masks", "matching", "a process sends", "receives", "scores"]]
    image = sum(measured("inference_cuda", f"batch 8: {part}") for part in ("network hrnet_w48", "post-processing"))
    matching = measured("scores_cpu", f"{one}: matching and coding as the images come")
    sent = measured("scores_cpu", f"{one}: sent by a process")
    scores = measured("scores_cpu", f"{one}: exchange and scores")
    for gpus in GPUS:
        share = math.ceil(EVALUATED / gpus)
        part = share / EVALUATED
        rows.append(
            [str(gpus), f"{share:,}", f"{image * share / 1e3:.1f} s", f"{matching * part:.2f} s"]
            + [f"{sent * part if gpus > 1 else 0:.1f} MB", f"{sent if gpus > 1 else 0:.0f} MB", f"{scores:.0f} s"]
        )
    origin = (
        f"{EVALUATED:,} images with {MASKS} masks: `{BENCHMARKS}/inference_cuda.json`, `{BENCHMARKS}/scores_cpu.json`"
    )
    return rows, origin


TABLES = {
    "scaling_training": training_table,
    "scaling_gradients": gradient_table,
    "scaling_input": input_table,
    "scaling_evaluation": evaluation_table,
}
