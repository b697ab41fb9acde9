"""Inference: network and post-processing apart, against the loop over components; evaluation."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, Settings, busiest, busiest_functions, once, seconds
from benchmarks.reference import PerComponent
from benchmarks.scenes import Scene, make_scene
from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.voc import VOCInstanceAP
from bestie_pl.models.bestie import BestieModel
from bestie_pl.ops.instances import find_instances
from bestie_pl.ops.masks import encode, to_instances
from bestie_pl.ops.views import average_maps, mirror_maps
from bestie_pl.recipe import RULES
from bestie_pl.structures import Geometry, Instances

HEIGHT, WIDTH = 375, 500
SIZE = (384, 512)
NEXT_STEP = "maps read at stride 4 as in training: only the class of a pixel needs all channels enlarged"


def post_process(scene: Scene, *, mirror: bool = False, recipe: str = "paper") -> tuple[Instances, ...]:
    """Masks of 500 x 375 px from maps of stride 4 as the module makes them, run-length codes included."""
    maps = scene.large()
    if mirror:
        maps = average_maps([maps, mirror_maps(scene.large())], average_offsets=True)
    count = len(scene.semantic)
    valid = torch.zeros(scene.semantic.shape, dtype=torch.bool, device=scene.semantic.device)
    valid[:, :HEIGHT, :WIDTH] = True
    labels, _ = find_instances(maps, geometry=Geometry(), rules=RULES[recipe], valid=valid)  # type: ignore[arg-type]
    return to_instances(labels, sizes=[(HEIGHT, WIDTH)] * count, original_sizes=[(HEIGHT, WIDTH)] * count)


def image_scene(batch: int, device: str) -> Scene:
    """Maps of images of 500 x 375 px, padded to 512 x 384."""
    scene = make_scene(20, batch=batch, size=SIZE[1], device=device)
    h, w = SIZE[0] // 4, SIZE[1] // 4
    maps = type(scene.maps)(*(m[..., :h, :w].contiguous(memory_format=torch.channels_last) for m in scene.maps))
    enlargement = type(scene.enlargement)(SIZE, SIZE)
    return Scene(maps, enlargement, scene.semantic[:, : SIZE[0]], scene.tags, scene.cues)


def run(settings: Settings) -> list[Row]:
    """Row 6 without evaluation."""
    rows = []
    backbone, decoder = ("hrnet_w48", "heads") if settings.cuda else ("tf_efficientnet_lite0", "pyramid")
    model = BestieModel(20, backbone, decoder).to(settings.device).eval()  # type: ignore[arg-type]
    for batch in (1,) if settings.quick else (1, 8):
        scene = image_scene(batch, settings.device)
        images = torch.rand(batch, 3, *SIZE, device=settings.device)
        for mirror in (False, True):

            def network(mirror: bool = mirror, images: torch.Tensor = images) -> None:
                with torch.inference_mode(), torch.autocast(settings.device, torch.bfloat16, enabled=settings.cuda):
                    model(images)
                    if mirror:
                        model(images.flip(-1))

            name = f"batch {batch}{', mirror' if mirror else ''}"
            rows.append(Row(f"{name}: network {backbone}", 1e3 * seconds(network, settings) / batch, "ms an image"))
            own = seconds(lambda s=scene, m=mirror: post_process(s, mirror=m), settings) / batch
            why = busiest(lambda s=scene, m=mirror: post_process(s, mirror=m), settings)
            rows.append(Row(f"{name}: post-processing", 1e3 * own, "ms an image", limited_by=why))
            if batch == 1 and not mirror and not settings.cuda:
                rows += _against_loop(scene, batch, own, why, settings)
    return rows


def _against_loop(scene: Scene, batch: int, own: float, why: str, settings: Settings) -> list[Row]:
    def loop() -> None:
        maps = scene.large()
        maps = type(maps)(*(m[..., :HEIGHT, :WIDTH].contiguous() for m in maps))
        PerComponent(Geometry(), 0.1).predict(maps)

    taken = once(loop) / batch
    return [
        Row(f"batch {batch}: loop over components", 1e3 * taken, "ms an image"),
        Row(f"batch {batch}: post-processing, faster than the loop", taken / own, "x", 10, "-", False, why, NEXT_STEP),
    ]


def run_evaluation(settings: Settings) -> list[Row]:
    """VOC's validation set: matching of masks that exist already, and scores."""
    count = 20 if settings.quick else 1449
    kinds = 16
    predictions, references = [], []
    for seed in range(2):
        scene = make_scene(20, batch=kinds, size=WIDTH, instances=5, fragments=0, seed=seed)
        made = []
        for semantic in scene.semantic[:, :HEIGHT]:
            numbers, codes = encode(_five(semantic))
            made.append(Instances(codes, (numbers - 1) % 4, torch.linspace(1, 0.2, len(codes)), (HEIGHT, WIDTH)))
        (predictions if seed else references).extend(made)
    maps = scene.semantic[:, :HEIGHT]
    maps = maps.where(maps < 255, 0)

    def voc() -> None:
        metric = VOCInstanceAP(20)
        for image in range(count):
            metric.update([predictions[image % kinds]], [references[image % kinds]], [f"{image:05d}"])
        metric.compute()

    def everything() -> None:
        metric, coco, semantic = VOCInstanceAP(20), COCOInstanceAP(20), SemanticIoU(20)
        for image in range(count):
            which = image % kinds
            for one in (metric, coco):
                one.update([predictions[which]], [references[which]], [f"{image:05d}"])
            semantic.update(maps[which], maps[(which + 1) % kinds])
        for one in (metric, coco, semantic):
            one.compute()

    scale = 1449 / count
    taken = seconds(voc, settings, repeats=1) * scale
    whole = seconds(everything, settings, repeats=1) * scale
    return [
        Row(
            "1,449 images with 5 masks: VOC scores",
            taken,
            "s",
            20,
            "-",
            True,
            busiest_functions(voc),
            "several images in one call of pycocotools",
        ),
        Row("1,449 images: VOC, COCO and semantic scores together", whole, "s"),
        Row("VOC scores", 1449 / taken, "images/s"),
    ]


def _five(semantic: torch.Tensor) -> torch.Tensor:
    """A label map of five regions: the classes' regions cut into bands."""
    bands = torch.arange(len(semantic))[:, None] * 5 // len(semantic) + 1
    return bands.int() * ((semantic > 0) & (semantic < 255))
