"""Refinement and transfer: against the loop over components, against the number of classes, and growth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import Row, Settings, Stages, alternating, busiest, exponent, once, seconds
from benchmarks.reference import PerComponent, Pooling
from benchmarks.scenes import Scene, make_scene
from bestie_pl.ops.grouping import Groups, group_pixels
from bestie_pl.ops.peaks import cluster_centers, find_centers, find_peaks, gather_foreground
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.recipe import PAPER, RULES, Recipe
from bestie_pl.structures import Geometry, LabeledInstances

GEOMETRY = Geometry()
THRESHOLD = 0.3
RECIPES: tuple[Recipe, ...] = ("paper", "release")
POOLINGS: tuple[Pooling, ...] = ("torch", "opencv")
NEXT_STEPS: dict[Recipe, str] = {
    "paper": "components keep their runs of pixels, from which the list of pixels follows without a search",
    "release": "the exponential of each class at each pixel remains; probabilities at stride 4 would change the values",
}


def refine(scene: Scene, recipe: Recipe = "paper") -> LabeledInstances:
    """Components and refined labels of a batch, from the maps as they leave the network."""
    return refine_from_tags(
        scene.maps,
        scene.components(),
        geometry=GEOMETRY,
        rules=RULES[recipe],
        threshold=THRESHOLD,
        enlargement=scene.enlargement,
    )


def stages(scene: Scene, settings: Settings) -> dict[str, float]:
    """Seconds of each part of ``refine`` with the paper's recipe, and of transfer."""
    clock = Stages(settings.device)
    shape = scene.semantic.shape
    for _ in range(1 + settings.repeats):
        with clock("components"):
            components = scene.components()
        with clock("transfer"):
            scene.pseudo(components)
        with clock("planes"):
            foreground = gather_foreground(
                scene.maps, components, min_area=GEOMETRY.min_area, enlargement=scene.enlargement
            )
        with clock("peaks"):
            find_peaks(foreground, threshold=THRESHOLD, window=GEOMETRY.peak_window, strict=False)
        with clock("clustering"):
            cluster_centers(foreground, geometry=GEOMETRY)
        centers = find_centers(foreground, geometry=GEOMETRY, threshold=THRESHOLD, rules=PAPER, clustering=True)
        with clock("grouping"):
            owner = group_pixels(
                foreground.pixel,
                foreground.offset,
                foreground.component,
                centers,
                components=len(components.area),
                size=(shape[1], shape[2]),
            )
        with clock("targets"):
            groups = Groups.of(foreground.pixel, owner, centers)
            component = centers.component[groups.center]
            groups.label(
                shape,
                image=components.image[component],
                classes=components.classes[component],
                center_yx=centers.yx[groups.center],
                weight=centers.score[groups.center],
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
        for classes in (20, 80):
            rows += _against_loop(scenes[classes], classes, settings)
    for recipe in RECIPES:
        calls = {classes: partial(refine, scene, recipe) for classes, scene in scenes.items()}
        taken = alternating(calls, settings)
        rows += [Row(f"{recipe} recipe, C={classes}", value, "s") for classes, value in taken.items()]
        then = NEXT_STEPS[recipe]
        if not settings.cuda:
            torch.set_num_threads(1)
            taken = alternating(calls, settings, cpu_time=True)
            torch.set_num_threads(settings.threads)
            name, why = f"{recipe} recipe: CPU seconds a batch, one thread", busiest(calls[20], settings)
            rows.append(Row(name, taken[20], "s", 0.25, "0.05", True, why, then))
        name, why = f"{recipe} recipe: C=80 against C=20", busiest(calls[80], settings)
        rows.append(Row(name, taken[80] / taken[20], "x", 1.2, "1.0", True, why, then))
    rows.append(Row("points, C=20", seconds(lambda: _refine_from_points(scenes[20]), settings), "s"))
    for name, some in (("few components", make(20)), ("many components", make(20, fragments=60))):
        rows.append(Row(f"{name}, number", len(some.components().area) - 1, "components"))
        rows += [Row(f"{name}, {stage}", value, "s") for stage, value in stages(some, settings).items()]
    for present in (1, 2, 3, 4):
        some = make(20, present=present)
        taken_ = seconds(lambda s=some: refine(s), settings)
        rows.append(Row(f"{present} present classes", taken_, "s"))
    return rows


def _refine_from_points(scene: Scene) -> LabeledInstances:
    return refine_from_points(
        scene.maps.offset_field, scene.classes, scene.cues, rules=PAPER, enlargement=scene.enlargement
    )


def _against_loop(scene: Scene, classes: int, settings: Settings) -> list[Row]:
    """The same batch with the loop over components; its maps are enlarged beforehand, which is not counted."""
    large, tagged = scene.large(), scene.classes.numpy()
    why = busiest(lambda: refine(scene, "release"), settings)
    own = alternating({recipe: partial(refine, scene, recipe) for recipe in RECIPES}, settings)
    rows = []
    for pooling in POOLINGS:
        loop = PerComponent(GEOMETRY, THRESHOLD, pooling)
        taken = once(lambda loop=loop: loop.refine(large, tagged))
        name = f"C={classes}: faster than the loop over components, its maximum by {pooling}"
        # only the release recipe computes exactly what the loop does
        bar = 40 if pooling == "torch" and classes == 20 else None
        gain = taken / own["release"]
        limit = "reading the maps once"
        rows.append(Row(f"{name}: release recipe", gain, "x", bar, limit, False, why, NEXT_STEPS["release"]))
        rows.append(Row(f"{name}: paper recipe", taken / own["paper"], "x"))
        parts = loop.stages.medians()
        rows += [Row(f"C={classes}: loop, {pooling}, {stage}", value, "s") for stage, value in parts.items()]
    loop = PerComponent(GEOMETRY, THRESHOLD)
    taken = once(lambda: loop.transfer(tagged, scene.cues, classes))
    components = scene.components()
    own_transfer = seconds(lambda: scene.pseudo(scene.components()), settings)
    rows.append(Row(f"C={classes}: components and transfer, faster than the loop", taken / own_transfer, "x"))
    alone = seconds(lambda: scene.pseudo(components), settings)
    return [*rows, Row(f"C={classes}: transfer alone", alone, "s")]


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
