"""The training step: its parts, how often it waits for the device, and its memory against the number of classes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, Settings, Stages, count_waits, peak_bytes
from benchmarks.scenes import Scene, make_scene
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.models.bestie import BestieModel
from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.ops.losses import total_loss
from bestie_pl.ops.refinement import refine_from_points, refine_from_tags
from bestie_pl.ops.transfer import transfer
from bestie_pl.recipe import PAPER
from bestie_pl.structures import Batch, Geometry, InstanceMaps, LabeledInstances


@dataclass
class Step:
    """A training step in parts.

    Args:
        model: On its device.
        geometry: Of labels.
        dtype: Half precision that the network runs in; None for float32.
        sampled: Whether losses and refinement read the maps as they leave the network, or enlarged ones.
        plain: Whether the network's activations are laid out channels first, as torch does by itself.
    """

    model: BestieModel
    geometry: Geometry
    dtype: torch.dtype | None = None
    sampled: bool = True
    plain: bool = False

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device.type
        self.optimizer = torch.optim.Adam(self.model.parameters(), 5e-5, fused=device == "cuda")
        self.scaler = torch.amp.GradScaler(device, enabled=self.dtype == torch.float16)
        self.autocast = torch.autocast(device, self.dtype) if self.dtype else nullcontext()
        if self.plain:
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def label(self, semantic: Tensor, tags: Tensor, cues: Any) -> tuple[Any, LabeledInstances]:
        """Components and pseudo labels."""
        components = label_components(tagged_classes(semantic, tags))
        return components, transfer(components, cues, supervision="tags", rules=PAPER, geometry=self.geometry)

    def network(self, images: Tensor) -> InstanceMaps:
        """The maps at stride 4."""
        with self.autocast:
            if self.plain:  # sizes are multiples of 32 here
                return self.model.network((images - self.model.mean) / self.model.std)  # type: ignore[no-any-return]
            return self.model(images)  # type: ignore[no-any-return]

    def network_alone(self, images: Tensor) -> None:
        """Forward and backward without labels, losses and optimiser."""
        maps = self.network(images)
        torch.autograd.backward([m.float().sum() for m in maps])
        self.optimizer.zero_grad()

    def forward(self, images: Tensor) -> tuple[InstanceMaps, Enlargement | None]:
        """The maps that losses and refinement read, and how they are read."""
        maps = self.network(images)
        enlargement = self.model.enlargement(maps, (images.shape[-2], images.shape[-1]))
        return (maps, enlargement) if self.sampled else (enlargement.all(maps), None)

    def refine(self, maps: InstanceMaps, components: Any, enlargement: Enlargement | None) -> LabeledInstances:
        """Refined labels."""
        return refine_from_tags(maps.detach(), components, geometry=self.geometry, rules=PAPER, enlargement=enlargement)

    def losses(
        self,
        maps: InstanceMaps,
        semantic: Tensor,
        pseudo: LabeledInstances,
        refined: LabeledInstances | None,
        enlargement: Enlargement | None,
    ) -> Tensor:
        """The total."""
        return total_loss(
            maps,
            semantic,
            pseudo,
            refined,
            supervision="tags",
            rules=PAPER,
            geometry=self.geometry,
            enlargement=enlargement,
        )[0]

    def __call__(self, images: Tensor, semantic: Tensor, tags: Tensor, cues: Any, stages: Stages) -> None:
        """One step on a batch that lies on the device."""
        with stages("labels"):
            components, pseudo = self.label(semantic, tags, cues)
        with stages("forward"):
            maps, enlargement = self.forward(images)
        with stages("refinement"):
            refined = self.refine(maps, components, enlargement)
        with stages("losses"):
            loss = self.losses(maps, semantic, pseudo, refined, enlargement)
        with stages("backward"):
            self.scaler.scale(loss).backward()
        with stages("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()


def make_step(
    settings: Settings,
    num_classes: int = 5,
    *,
    dtype: torch.dtype | None = None,
    sampled: bool = True,
    plain: bool = False,
) -> Step:
    """HRNet-W48 on a GPU, EfficientNet-Lite0 on a CPU."""
    torch.manual_seed(0)
    if settings.cuda:
        model = BestieModel(num_classes, "hrnet_w48", "heads").cuda()
        return Step(model, Geometry(), dtype, sampled, plain)
    model = BestieModel(num_classes, "tf_efficientnet_lite0", "pyramid")
    return Step(model, Geometry(min_area=200).scaled(0.25), dtype, sampled, plain)


def half(settings: Settings) -> torch.dtype | None:
    """What networks are trained in: bfloat16 on a GPU."""
    return torch.bfloat16 if settings.cuda else None


def run(settings: Settings) -> list[Row]:
    """Row 2: the parts of the step, and what refinement and labels cost of it."""
    rows = []
    network = "HRNet-W48, 416 px, AMP" if settings.cuda else "Lite0, 128 px"
    for sampled in (False, True):
        classes = 20 if settings.cuda else 5
        step = make_step(settings, classes, dtype=half(settings), sampled=sampled)
        clock = Stages(settings.device)
        for images, semantic, tags, cues in _batches(settings, classes, 1 + settings.repeats, clock):
            step(images, semantic, tags, cues, clock)
            clock.next_run()
        parts = clock.medians()
        whole = sum(seconds_ for name, seconds_ in parts.items() if not name.startswith("data"))
        how = "maps read at stride 4" if sampled else "enlarged maps"
        rows += [Row(f"{network}, {how}: {name}", value, "s") for name, value in parts.items()]
        share = 100 * parts["refinement"] / whole
        bar = 5.0 if settings.cuda and sampled else None
        most = max(parts, key=lambda name: parts[name])
        rows.append(
            Row(
                f"{network}, {how}: refinement's share of the step",
                share,
                "%",
                bar,
                "0 %",
                limited_by=f"most of the step is {most}, {100 * parts[most] / whole:.0f} %",
                next_step="refinement in a CUDA graph: its tables have a fixed size, and launching it takes longest",
            )
        )
    return rows


def _batches(
    settings: Settings, classes: int, count: int, clock: Stages
) -> Iterator[tuple[Tensor, Tensor, Tensor, Any]]:
    """Batches of 16 on the device: from files on a CPU, with the time that this takes; made up on a GPU."""
    if settings.cuda:
        scene = make_scene(classes, device="cuda")
        images = torch.rand(16, 3, 416, 416, device="cuda")
        for _ in range(count):
            yield images, scene.semantic, scene.tags, scene.cues
        return
    with tempfile.TemporaryDirectory() as folder:
        shapes = ShapesDataModule(
            folder,
            train_images=32,
            val_images=1,
            test_images=1,
            image_size=128,
            batch_size=16,
            num_workers=0,
            crop_size=128,
        )
        shapes.prepare_data()
        shapes.setup("fit")
        loader = shapes.train_dataloader()
        made = 0
        while made < count:
            iterator = iter(loader)
            for _ in range(min(len(loader), count - made)):
                with clock("data: decoding"):
                    batch: Batch = next(iterator)
                with clock("data: augmentation and labels"):
                    batch = shapes.on_after_batch_transfer(batch, 0)
                assert batch.semantic is not None
                yield batch.images, batch.semantic, batch.tags, replace(batch.cues)
                made += 1


def run_waits(settings: Settings) -> list[Row]:
    """Row 3: how often labels, refinement and losses wait for the device."""
    scene = make_scene(20, batch=2 if settings.quick else 16, device=settings.device)
    step = Step(BestieModel(20, "hrnet_w18_small", "heads"), Geometry())
    components, pseudo = step.label(scene.semantic, scene.tags, scene.cues)
    refined = step.refine(scene.maps, components, scene.enlargement)
    maps = InstanceMaps(*(m.requires_grad_() for m in scene.maps))

    def losses() -> None:
        step.losses(maps, scene.semantic, pseudo, refined, scene.enlargement).backward()

    parts = {
        "labels": count_waits(lambda: step.label(scene.semantic, scene.tags, scene.cues), settings),
        "refinement": count_waits(lambda: step.refine(maps, components, scene.enlargement), settings),
        "refinement, points": count_waits(lambda: _refine_from_points(scene), settings),
        "losses": count_waits(losses, settings),
    }
    total = sum((Counter(parts[name]) for name in ("labels", "refinement")), Counter())
    why = ", ".join(f"{name} {n}" for name, n in total.most_common())
    then = "tables stay as large as guessed, and are looked at after the step"
    rows = [Row("labels and refinement: waits a step", sum(total.values()), "", 2, "0", True, why, then)]
    return rows + [
        Row(f"{part}: {name}", value, "") for part, counts in parts.items() for name, value in counts.items()
    ]


def _refine_from_points(scene: Scene) -> LabeledInstances:
    return refine_from_points(
        scene.maps.offset_field, scene.classes, scene.cues, rules=PAPER, enlargement=scene.enlargement
    )


def run_memory(settings: Settings) -> list[Row]:
    """Row 4: peak memory of a step against the number of classes, the labelled pixels staying the same."""
    rows = []
    small = ("tf_efficientnet_lite0", "pyramid", 16, 128)
    large = ("hrnet_w48", "heads", 16 if settings.cuda else 1, 416)
    networks = [large] if settings.cuda else [small] if settings.quick else [small, large]
    for backbone, decoder, batch, size in networks:
        for sampled in (False, True):
            peaks = {}
            for classes in (20, 80, 200):
                model = BestieModel(classes, backbone, decoder).to(settings.device)  # type: ignore[arg-type]
                scene = make_scene(classes, batch=batch, size=size, device=settings.device)
                step = Step(model, Geometry(), half(settings), sampled)
                peaks[classes] = peak_bytes(lambda s=step, c=scene: _train(s, c), settings)
                alone = peak_bytes(lambda s=step, c=scene: s.network_alone(_images(c)), settings) / peaks[classes]
                del model, step, scene
            why = f"the network alone takes {100 * alone:.0f} % at C=200"
            how = "maps read at stride 4" if sampled else "enlarged maps"
            name = f"{backbone}, batch {batch}, {size} px, {how}"
            rows += [Row(f"{name}: C={classes}", value / 2**20, "MiB") for classes, value in peaks.items()]
            bar = 1.15 if sampled else None
            then = "losses of the heads' half precision maps without their copies in float32"
            rows.append(Row(f"{name}: C=80 against C=20", peaks[80] / peaks[20], "x", bar, "1.0", True, why, then))
            rows.append(Row(f"{name}: C=200 against C=20", peaks[200] / peaks[20], "x"))
    return rows


def _train(step: Step, scene: Scene) -> None:
    components, pseudo = step.label(scene.semantic, scene.tags, scene.cues)
    maps, enlargement = step.forward(_images(scene))
    # labelled pixels as those of the scene, whatever an untrained network says
    refined = step.refine(scene.maps, components, scene.enlargement)
    step.losses(maps, scene.semantic, pseudo, refined, enlargement).backward()
    step.optimizer.step()
    step.optimizer.zero_grad()


def _images(scene: Scene) -> Tensor:
    return torch.zeros(len(scene.semantic), 3, *scene.enlargement.size, device=scene.semantic.device)
