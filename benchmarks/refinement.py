"""Refinement and transfer: against the loop over components, against the number of classes, and growth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import Row, Settings, Stages, alternating, busiest, exponent, seconds
from benchmarks.reference import PerComponent, Pooling
from benchmarks.scenes import Scene, make_scene
from bestie_pl.ops.grouping import group_pixels
from bestie_pl.ops.peaks import find_centers, find_peaks, gather_foreground
from bestie_pl.ops.refinement import refine_from_tags
from bestie_pl.structures import Geometry, LabeledInstances, Recipe

GEOMETRY = Geometry()
THRESHOLD = 0.3
RECIPES: tuple[Recipe, ...] = ("paper", "release")
POOLINGS: tuple[Pooling, ...] = ("torch", "opencv")


def refine(scene: Scene, recipe: Recipe = "paper") -> LabeledInstances:
    """Components and refined labels of a batch, from the maps as they leave the network."""
    return refine_from_tags(
        scene.maps,
        scene.components(),
        geometry=GEOMETRY,
        recipe=recipe,
        threshold=THRESHOLD,
        enlargement=scene.enlargement,
    )


def stages(scene: Scene, settings: Settings) -> dict[str, float]:
    """Seconds of each part of ``refine`` with the paper's recipe, and of transfer."""
    clock = Stages(settings.device)
    for _ in range(1 + settings.repeats):
        with clock("components"):
            components = scene.components()
        with clock("transfer"):
            scene.pseudo(components)
        with clock("planes"):
            foreground = gather_foreground(
                scene.maps, components, min_area=GEOMETRY.min_area, enlargement=scene.enlargement
            )
        with clock("peaks and clustering"):
            centers = find_centers(foreground, geometry=GEOMETRY, threshold=THRESHOLD, strict=False, clustering=True)
        plane = scene.maps.center_heatmap.new_zeros(components.labels.shape)
        plane.view(-1)[foreground.pixel] = foreground.heat
        with clock("peaks alone"):
            find_peaks(plane, components, threshold=THRESHOLD, window=GEOMETRY.peak_window, strict=False)
        with clock("grouping"):
            group_pixels(
                foreground.pixel,
                foreground.offset,
                foreground.component,
                centers,
                components=len(components.area),
                size=scene.enlargement.size,
            )
        with clock("all but transfer, as one call"):
            refine(scene)
        clock.next_run()
    return clock.medians()


def run(settings: Settings) -> list[Row]:
    """Rows 1 of the issue and the bars on refinement."""
    batch = 2 if settings.quick else 16
    make: Callable[..., Scene] = partial(make_scene, batch=batch, device=settings.device)
    rows: list[Row] = []
    scenes = {classes: make(classes) for classes in (20, 80, 200)}
    if not settings.cuda:
        rows += _against_loop(scenes[20], settings)
    for recipe in RECIPES:
        calls = {classes: partial(refine, scene, recipe) for classes, scene in scenes.items()}
        taken = alternating(calls, settings)
        why = busiest(lambda r=recipe: refine(scenes[80], r), settings)
        rows += [Row(f"{recipe} recipe, C={classes}", value, "s") for classes, value in taken.items()]
        rows.append(Row(f"{recipe} recipe: C=80 against C=20", taken[80] / taken[20], "x", 1.2, "1.0", True, why))
        if not settings.cuda:
            rows.append(_processor_seconds(scenes[20], recipe, settings))
    for name, some in (("few components", make(20)), ("many components", make(20, fragments=60))):
        rows.append(Row(f"{name}, number", len(some.components().area) - 1, "components"))
        rows += [Row(f"{name}, {stage}", value, "s") for stage, value in stages(some, settings).items()]
    for present in (1, 2, 3, 4):
        some = make(20, present=present)
        taken = seconds(lambda s=some: refine(s), settings)
        rows.append(Row(f"{present} present classes", taken, "s"))
    return rows


def _processor_seconds(scene: Scene, recipe: Recipe, settings: Settings) -> Row:
    why = busiest(lambda: refine(scene, recipe), settings)
    torch.set_num_threads(1)
    used = seconds(lambda: refine(scene, recipe), settings, cpu_time=True)
    torch.set_num_threads(settings.threads)
    return Row(f"{recipe} recipe: CPU seconds a batch, one thread", used, "s", 0.25, "0.05", True, why)


def _against_loop(scene: Scene, settings: Settings) -> list[Row]:
    """The same batch with the loop over components; its maps are enlarged beforehand, which is not counted."""
    large, classes = scene.large(), scene.classes.numpy()
    why = busiest(lambda: refine(scene, "release"), settings)
    own = alternating({recipe: partial(refine, scene, recipe) for recipe in RECIPES}, settings)
    rows = []
    for pooling in POOLINGS:
        loop = PerComponent(GEOMETRY, THRESHOLD, pooling)
        taken = seconds(lambda loop=loop: loop.refine(large, classes), settings, repeats=1)
        name = f"faster than the loop over components, its maximum by {pooling}"
        # only the release recipe computes exactly what the loop does
        bar = 40 if pooling == "torch" else None
        rows.append(
            Row(f"{name}: release recipe", taken / own["release"], "x", bar, "reading the maps once", False, why)
        )
        rows.append(Row(f"{name}: paper recipe", taken / own["paper"], "x"))
        rows += [Row(f"loop, {pooling}, {stage}", value, "s") for stage, value in loop.stages.medians().items()]
    return rows


def run_growth(settings: Settings) -> list[Row]:
    """Row 7: exponents of the duration against what may grow."""
    base = 2 if settings.quick else 8
    small = 208 if settings.quick else 416
    cases: dict[str, dict[float, Callable[[], Scene]]] = {
        "batch": {b: partial(make_scene, 20, batch=b, size=small) for b in (base, 2 * base, 4 * base)},
        "pixels": {s * s: partial(make_scene, 20, batch=4, size=s) for s in (small // 2, small, 2 * small)},
        "present classes": {
            p: partial(make_scene, 20, batch=base, size=small, present=p, instances=4) for p in (1, 2, 4)
        },
        "components": {f: partial(make_scene, 20, batch=base, size=small, fragments=f) for f in (10, 40, 160)},
        "centres": {i: partial(make_scene, 20, batch=base, size=small, instances=i, fragments=0) for i in (4, 8, 16)},
        "classes of the data set": {c: partial(make_scene, c, batch=base, size=small) for c in (20, 80, 200)},
    }
    rows = []
    for name, some in cases.items():
        calls = {size: partial(refine, make()) for size, make in some.items()}
        durations = list(alternating(calls, settings).values())
        rows.append(Row(f"time against {name}: exponent", exponent(list(some), durations), ""))
        rows += [Row(f"{name} {size:.0f}", value, "s") for size, value in zip(some, durations, strict=True)]
    return rows
