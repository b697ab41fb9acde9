"""What the metrics' tests share: instances from arrays, random pictures, real processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from pycocotools import mask as codec

from bestie_pl.structures import Instances


def _instances(masks: Any, classes: Any, scores: Any = None, crowd: Any = None, area: Any = None) -> Instances:
    masks = np.asarray(masks, dtype=np.uint8)
    codes = codec.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []
    return Instances(
        masks=tuple(codes),
        classes=torch.as_tensor(np.asarray(classes), dtype=torch.int64),
        scores=torch.as_tensor(np.ones(len(masks)) if scores is None else np.asarray(scores), dtype=torch.float32),
        size=(masks.shape[1], masks.shape[2]),
        crowd=None if crowd is None else torch.as_tensor(np.asarray(crowd), dtype=torch.bool),
        area=None if area is None else torch.as_tensor(np.asarray(area), dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def instances() -> Callable[..., Instances]:
    """instances(masks (N, H, W), classes, scores=None, crowd=None, area=None)."""
    return _instances


def _boxes(rng: np.random.Generator, count: int, height: int, width: int, most: int = 16) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    top, left = rng.integers(0, height - 4, (count, 1, 1)), rng.integers(0, width - 4, (count, 1, 1))
    down, right = top + rng.integers(4, most, (count, 1, 1)), left + rng.integers(4, most, (count, 1, 1))
    return (y >= top) & (y < down) & (x >= left) & (x < right)


@pytest.fixture(scope="session")
def random_images() -> Callable[..., dict[str, tuple[Instances, Instances]]]:
    """random_images(seed, count, crowd=False): name -> (predictions, references), 4 classes, the last one unused."""

    def make(seed: int, count: int, *, crowd: bool = False) -> dict[str, tuple[Instances, Instances]]:
        rng = np.random.default_rng(seed)
        images = {}
        for i in range(count):
            height, width = rng.integers(24, 40, 2)
            objects = int(rng.integers(0, 6))
            truth, classes = _boxes(rng, objects, height, width), rng.integers(0, 3, objects)
            # predictions: moved objects, some twice, and noise; coarse scores, so that many are equal
            source = rng.integers(0, objects, int(rng.integers(0, 8))) if objects else np.zeros(0, int)
            moved = [np.roll(truth[s], rng.integers(-2, 3, 2), (0, 1)) for s in source]
            noise = _boxes(rng, int(rng.integers(0, 3)), height, width)
            masks = np.concatenate([np.array(moved).reshape(-1, height, width), noise])
            labels = np.concatenate([classes[source], rng.integers(0, 3, len(noise))])
            scores = rng.integers(0, 8, len(masks)) / 8
            flags = rng.random(objects) < 0.2 if crowd else None
            images[f"image{i:03}"] = (_instances(masks, labels, scores), _instances(truth, classes, crowd=flags))
        return images

    return make


@pytest.fixture(scope="session")
def hard_images() -> Callable[..., dict[str, tuple[Instances, Instances]]]:
    """hard_images(seed, crowd=False): name -> (predictions, references) with everything that scores can stumble over.

    Four equal scores for all; several predictions on one object; images without predictions, without objects, without
    both; class 3 predicted but never there, class 4 neither; empty masks on both sides; objects of all sizes.
    """

    def make(seed: int, *, crowd: bool = False) -> dict[str, tuple[Instances, Instances]]:
        rng = np.random.default_rng(seed)
        images = {}
        for i in range(24):
            most = (16, 80, 300)[i % 3]
            height, width = rng.integers(20, 40 + most, 2)
            objects = int(rng.choice([0, 1, 2, 6]))
            truth = _boxes(rng, objects, height, width, most)
            truth[rng.random(objects) < 0.15] = False
            classes = rng.integers(0, 3, objects)
            source = rng.integers(0, objects, int(rng.choice([0, 1, 4, 9]))) if objects else np.zeros(0, int)
            moved = [np.roll(truth[s], rng.integers(-2, 3, 2), (0, 1)) for s in source]
            noise = _boxes(rng, int(rng.integers(0, 3)), height, width)
            masks = np.concatenate([np.array(moved, bool).reshape(-1, height, width), noise])
            masks[rng.random(len(masks)) < 0.1] = False
            labels = np.concatenate([classes[source], rng.integers(0, 4, len(noise))])
            scores = rng.integers(0, 4, len(masks)) / 4
            flags = rng.random(objects) < 0.25 if crowd else None
            images[f"image{i:03}"] = (_instances(masks, labels, scores), _instances(truth, classes, crowd=flags))
        return images

    return make


def _process(rank: int, count: int, folder: Path, work: Callable[[int], Any]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(work(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def in_processes(tmp_path: Path) -> Callable[..., list[Any]]:
    """in_processes(work, count=2): run a function of the rank in processes that can talk (gloo); what they return."""

    def run(work: Callable[[int], Any], count: int = 2) -> list[Any]:
        context = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds
        processes = [context.Process(target=_process, args=(rank, count, tmp_path, work)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        assert [process.exitcode for process in processes] == [0] * count
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]

    return run
