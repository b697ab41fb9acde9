"""What ``bestie-pl init`` writes, beside the defaults for a folder: writes results/*/init*.json.

``nuclei`` and ``shapes`` have points, nuclei given foreground maps too; the photographs of animals are taken once with
points alone (``animals_points``) and once with tags alone (``animals_tags``). On one side run the stages that ``init``
writes for the folder, on the other those of ``configs/folder``; both have the same labels, seed, batch and crop size,
and as many steps in all. Every command that ended is kept in ``runs/init``: an interrupted call goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as codec

from bestie_pl.cli.commands.init import SEMANTIC_SHARE
from bestie_pl.data.files import write_json
from bestie_pl.data.generator.dataset import SHAPE_CLASSES, generate_shapes
from bestie_pl.structures import IGNORE
from experiments.runs import METRICS, ROOT, command

BATCH = 8
SIDES = ("init", "default")
SPLITS = ("train", "val", "test")


class Task(NamedTuple):
    """A data set and its labels.

    ``links``: files and folders of the data that both sides get; ``stages``: names of those that ``init`` writes;
    ``split``: the one that is scored; ``crop``, ``steps``: of both sides, None for what they say themselves.
    """

    links: tuple[str, ...]
    stages: tuple[str, ...]
    split: str
    crop: int | None
    steps: int
    output: str


TASKS = {
    "nuclei": Task(
        ("images", "semantic", "instances_train.json", "instances_val.json"),
        ("instances",),
        *("val", 128, 100, "results/nuclei/init.json"),
    ),
    "shapes": Task(
        ("images", "instances_train.json", "instances_val.json", "instances_test.json"),
        ("maps", "semantic", "instances"),
        *("test", 128, 150, "results/shapes/init.json"),
    ),
    "animals_points": Task(
        ("images", "instances_train.json", "instances_test.json"),
        ("maps", "semantic", "instances"),
        *("test", None, 150, "results/animals/init_points.json"),
    ),
    "animals_tags": Task(
        ("images", "tags.csv", "instances_test.json"),
        ("classifier", "semantic", "instances"),
        *("test", None, 150, "results/animals/init_tags.json"),
    ),
}


class Line(NamedTuple):
    """A command: the verb, the name of its stage, and the words after them."""

    verb: str
    stage: str
    words: list[str]


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("data", type=Path, help="folder of the data set; of shapes, where it is or will be written")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of the last training; default: 100 for nuclei, else 150")
    parser.add_argument("--images", type=int, nargs=3, default=(300, 50, 100), help="of shapes' splits")
    parser.add_argument("--jobs", type=int, default=2, help="sides at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/init"))
    parser.add_argument("--output", type=Path, help="default: in the folder of the data set's results")
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    data = arguments.data.resolve()
    if arguments.task == "shapes":
        generate_shapes(data, **dict(zip(SPLITS, arguments.images, strict=True)))
        data = shapes_folder(data, (ROOT / arguments.runs / "shapes_folder").absolute())
    steps = task.steps if arguments.steps is None else arguments.steps

    def run(side: str) -> dict[str, Any]:
        root = (ROOT / arguments.runs / arguments.task / f"seed{arguments.seed}" / side).absolute()
        return Side(root, task, data).run(list(lines(root, task, side, steps=steps, seed=arguments.seed)))

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(SIDES, pool.map(run, SIDES), strict=True))
    content = {
        "command": f"python -m experiments.init {arguments.task} {os.path.relpath(arguments.data.resolve(), ROOT)}",
        "environment": results["init"]["environment"],
        "seed": arguments.seed,
        "steps": steps,
        "scores": {side: {m: result["scores"][f"test/{m}"] for m in METRICS} for side, result in results.items()},
        "seconds": {side: result["seconds"] for side, result in results.items()},
    }
    output = ROOT / (arguments.output or task.output)
    write_json(output, content)
    print(json.dumps(content, indent=1))


@dataclass(frozen=True)
class Side:
    """One side in a folder of its own: links to the data, labels, maps and runs."""

    root: Path
    task: Task
    data: Path

    def run(self, planned: list[Line]) -> dict[str, Any]:
        """Run the commands that have not ended yet; the scores of the last one, and what each took."""
        self._once("init", lambda: command("init", str(self._laid_out()), "--device", "cpu", "--overwrite", threads=1))
        for line in planned:
            name = f"{line.stage}_{line.verb}"
            log = self.root / "logs" / f"{name}.txt"
            self._once(name, partial(command, line.verb, *line.words, threads=1, log=log))
        scores: dict[str, Any] = json.loads((self.root / "runs/instances/scores_test.json").read_text())
        seconds = {f"{line.stage}, {line.verb}": self._marker(f"{line.stage}_{line.verb}") for line in planned}
        return {**scores, "seconds": {name: json.loads(path.read_text()) for name, path in seconds.items()}}

    def _laid_out(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        for name in self.task.links:
            (self.root / name).unlink(missing_ok=True)
            (self.root / name).symlink_to(self.data / name)
        return self.root

    def _marker(self, name: str) -> Path:
        return self.root / "ended" / f"{name}.json"

    def _once(self, name: str, run: Callable[[], object]) -> None:
        if not self._marker(name).exists():
            start = time.monotonic()
            run()
            write_json(self._marker(name), round(time.monotonic() - start, 1))


def lines(root: Path, task: Task, side: str, *, steps: int, seed: int) -> Iterator[Line]:
    """The commands of a side, in order."""
    semantic = max(1, round(SEMANTIC_SHARE * steps))
    lengths = {"classifier": steps, "semantic": semantic, "instances": steps}
    stages = list(task.stages)
    if side == "default" and "maps" in stages:  # its way from points has no semantic round
        stages.remove("semantic")
        lengths["instances"] += semantic
    for stage in stages:
        own = ["--config", str(root / "configs" / f"{stage}.yaml")]
        given = [
            *(own if side == "init" else _default(root, task, stage)),
            f"--seed_everything={seed}",
            f"--data.init_args.batch_size={BATCH}",
            "--data.init_args.num_workers=0",
            "--trainer.limit_val_batches=0",  # nothing is chosen by scores
            "--trainer.enable_progress_bar=false",
        ]
        if task.crop is not None:
            given.append(f"--data.init_args.crop_size={task.crop}")
        if stage != "maps":
            yield Line("fit", stage, [*given, "--trainer.max_epochs=-1", f"--trainer.max_steps={lengths[stage]}"])
            given = [*given, "--ckpt_path=last"]
        yield Line("test" if stage == "instances" else "predict", stage, given)


def _default(root: Path, task: Task, stage: str) -> list[str]:
    """Options of a stage of ``configs/folder``, as the comments there say."""
    points = "tags.csv" not in task.links
    config = "points" if points else "tags" if stage == "instances" else stage
    given = ["--config", f"configs/folder/{config}.yaml", f"--data.init_args.root={root}"]
    given += [
        f"--trainer.default_root_dir={root / 'runs' / stage}",
        "--data.init_args.annotations=instances_{split}.json",
    ]
    given += [f"--data.init_args.{which}_split={task.split}" for which in ("val", "test")]
    if stage == "maps":
        given += ["--data.init_args.predict_split=train", "--model=GrownMaps"]
        given += ["--trainer.callbacks=SemanticMapWriter", "--trainer.callbacks.output_dir=semantic_maps"]
    elif "semantic" in task.links:
        given.append("--data.init_args.semantic_dir=semantic")
    elif config == "tags":
        given.append(f"--model.init_args.init_from={root / 'runs/semantic/checkpoints/last.ckpt'}")
    return given


def shapes_folder(shapes: Path, folder: Path) -> Path:
    """The generated set as somebody's own folder: images, and what they are as COCO's files; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").unlink(missing_ok=True)
    (folder / "images").symlink_to(shapes.absolute() / "JPEGImages")
    for split in SPLITS:
        names = (shapes / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, name in enumerate(names, 1):
            ids, classes = (
                np.asarray(Image.open(shapes / kind / f"{name}.png"))
                for kind in ("SegmentationObject", "SegmentationClass")
            )
            height, width = ids.shape
            images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
            for value in sorted(set(np.unique(ids).tolist()) - {0, IGNORE}):
                mask = ids == value
                code = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(classes[mask][0]),
                        "iscrowd": 0,
                        "area": int(mask.sum()),
                        "bbox": codec.toBbox(code).tolist(),
                        "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(SHAPE_CLASSES, 1)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_json(folder / f"instances_{split}.json", content)
    return folder


if __name__ == "__main__":
    main()
