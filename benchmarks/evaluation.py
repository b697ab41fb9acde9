"""Scores of a data set of COCO's size on several processes: that they are the same, how long they take, what they need.

The processes share no folder: they meet over TCP and exchange the metrics' records, which hold run-length codes.
"""

from __future__ import annotations

import hashlib
import pickle
import resource
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from pycocotools import mask as codec
from torch.multiprocessing.spawn import spawn

from benchmarks.measure import Row, Settings
from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.structures import Instances

IMAGES = 5000
MASKS = 10
CLASSES = 80
SIZE = (480, 640)
CORNERS = 24
PROCESSES = (1, 2, 3)
MOST_MEMORY = 2.0
"""GB a process."""


class Report(NamedTuple):
    """What one process found: a digest of all scores, CPU s of both phases, GB at start and peak, bytes it sends."""

    scores: str
    update: float
    compute: float
    libraries: float
    memory: float
    sent: int


def run(settings: Settings) -> list[Row]:
    """Both instance metrics on one, two and three processes.

    Raises:
        RuntimeError: Two processes, or two numbers of processes, do not agree on the scores.
    """
    images = 60 if settings.quick else IMAGES
    rows, expected = [], None
    for count in PROCESSES:
        reports = _spawn(count, images)
        expected = expected or reports[0].scores
        if any(report.scores != expected for report in reports):
            raise RuntimeError(f"{count} processes do not agree on the scores")
        name = f"{images:,} images with {MASKS} masks, {count} {'process' if count == 1 else 'processes'}"
        slowest = max(report.update for report in reports)
        rows += [
            Row(f"{name}: matching and coding as the images come", slowest, "CPU s"),
            Row(f"{name}: exchange and scores", max(report.compute for report in reports), "CPU s"),
            Row(f"{name}: sent by a process", max(report.sent for report in reports) / 1e6, "MB"),
        ]
        if count > 1:
            rows += [Row(f"{name}: peak memory of process {i}", r.memory, "GB") for i, r in enumerate(reports)]
        largest = max(reports, key=lambda report: report.memory)
        why = f"{largest.libraries:.2f} GB are libraries"
        rows.append(Row(f"{name}: peak memory of a process", largest.memory, "GB", MOST_MEMORY, "-", limited_by=why))
    return rows


def make_image(number: int) -> tuple[Instances, Instances]:
    """Predictions and references of a made-up image: ragged discs; most predictions are a reference, moved a little.

    Scores are coarse, so that many are equal; one reference in 50 is a crowd.
    """
    rng = np.random.default_rng(number)
    middle = rng.uniform((0, 0), SIZE, (MASKS, 2))
    radius = rng.uniform(8, 120, MASKS)
    classes = rng.integers(0, CLASSES, 3)[rng.integers(0, 3, MASKS)]  # an image holds few classes
    outline = rng.uniform(0.7, 1.3, (MASKS, CORNERS))
    moved = middle + rng.normal(0, 0.15, (MASKS, 2)) * radius[:, None]
    guessed = np.where(rng.random(MASKS) < 0.9, classes, rng.integers(0, CLASSES, MASKS))
    predictions = _instances(moved, radius, outline * rng.uniform(0.9, 1.1, outline.shape), guessed)
    scores = torch.from_numpy(rng.integers(1, 100, MASKS) / 100).float()
    references = _instances(middle, radius, outline, classes)
    crowd = torch.from_numpy(rng.random(MASKS) < 0.02)
    return (
        Instances(predictions.masks, predictions.classes, scores, SIZE),
        Instances(references.masks, references.classes, references.scores, SIZE, crowd),
    )


def _instances(middle: Any, radius: Any, outline: Any, classes: Any) -> Instances:
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    y = middle[:, :1] + radius[:, None] * outline * np.sin(angle)
    x = middle[:, 1:] + radius[:, None] * outline * np.cos(angle)
    polygons = np.stack([x, y], 2).reshape(MASKS, -1).tolist()
    masks = tuple(codec.frPyObjects(polygons, *SIZE))
    return Instances(masks, torch.from_numpy(classes), torch.ones(MASKS), SIZE)


def _spawn(count: int, images: int) -> list[Report]:
    context = torch.multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_process, (count, images, port, reports), nprocs=count)
    found = dict(reports.get() for _ in range(count))
    return [Report(*found[rank]) for rank in range(count)]


def _process(rank: int, count: int, images: int, port: int, reports: Any) -> None:
    """One process' share of the images, and the scores of all."""
    torch.set_num_threads(1)
    libraries = peak_memory()
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    metrics = VOCInstanceAP(CLASSES), COCOInstanceAP(CLASSES)
    taken = 0.0
    for number in range(rank, images, count):
        predictions, references = make_image(number)
        start = time.process_time()
        for metric in metrics:
            metric.update([predictions], [references], [f"{number:012d}"])
        taken += time.process_time() - start
    sent = sum(len(pickle.dumps(metric.records)) for metric in metrics)
    torch.distributed.barrier()
    start = time.process_time()
    results = [metric.compute() for metric in metrics]
    done = time.process_time()
    content = repr([sorted((name, score.tolist()) for name, score in result.items()) for result in results])
    scores = hashlib.sha256(content.encode()).hexdigest()
    reports.put((rank, tuple(Report(scores, taken, done - start, libraries, peak_memory(), sent))))
    torch.distributed.destroy_process_group()


def peak_memory() -> float:
    """GB that this process has held at most, libraries included."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the parent's memory at the start too
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
