"""Which objects of the development split get a right label: of animals alone of their kind, and of those in a herd.

By the paper's rule (components with exactly one point or cue) and by the nearest one (components with several are
shared out), on the maps that the instances are trained on and on true ones. ``python -m experiments.animals.labels
ROOT`` after ``python -m experiments.animals ROOT``; writes results/animals/herd_labels.json.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bestie_pl import FolderDataModule
from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.points import read_points
from bestie_pl.ops.components import label_components
from bestie_pl.ops.masks import encode, paint
from bestie_pl.ops.transfer import transfer
from bestie_pl.progress import progress
from bestie_pl.recipe import NEAREST, PAPER, Rules
from bestie_pl.structures import IGNORE, Cues, Geometry, Instances
from experiments.animals.chain import Chain
from experiments.animals.herds import overlapped
from experiments.animals.tables import CUE_THRESHOLD
from experiments.runs import ROOT, add_seed

RULES_OF = {"the paper's rule": PAPER, "nearest": NEAREST}
MAPS = "Retrained2_maps"
"""Those that ``tags`` and ``points`` are trained on."""


def main() -> None:
    """Add the seeds whose maps are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--output", type=Path, default=Path("results/animals/herd_labels.json"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        chain = Chain(seed, ROOT / arguments.runs, arguments.root.absolute(), threads=1)
        add_seed(
            ROOT / arguments.output,
            seed,
            measured(chain),
            command="python -m experiments.animals.labels ROOT",
            metric="in a herd",
        )


def measured(chain: Chain) -> dict[str, dict[str, float]]:
    """Shares of objects with a right label, and of labels that are right, for each supervision, map and rule."""
    data = FolderDataModule(
        str(chain.root),
        annotations="instances_train.json",
        test_split="dev.txt",
        supervision="full",
        eval_batch_size=1,
        num_workers=0,
    )
    data.setup("test")
    points = read_points(chain.root / "points.json", data.class_names)
    row_of = {file: row for row, file in enumerate(points.files)}
    hits: dict[str, dict[str, list[bool]]] = {}
    for batch in progress(list(data.test_dataloader()), f"seed {chain.seed}", "photographs"):
        assert batch.references is not None
        name, true = batch.names[0], batch.references[0]
        semantic = np.array(Image.open(chain.root / chain.below_root(MAPS) / f"{name}.png"))
        maps = {"our maps": torch.from_numpy(semantic), "true maps": true_map(true)}
        rows = points.rows(row_of[f"{name}.jpg"])
        given = points.classes[rows].long()
        cues = read_cues(chain.root / chain.below_root("cues") / f"{name}.txt", true.size, len(data.class_names))
        sources = {
            "points": Cues(torch.zeros_like(given), points.yx[rows], given, points.scores[rows]),
            "tags": cues.select((cues.scores >= CUE_THRESHOLD) & batch.tags[0][cues.classes]),
        }
        for (source, seeds), (of, map_), (rule, rules) in product(sources.items(), maps.items(), RULES_OF.items()):
            labels = labels_of(map_, seeds, rules)
            row = hits.setdefault(f"{source}, {of}: {rule}", {"alone": [], "in a herd": [], "precision": []})
            row["precision"] += overlapped(true, labels)
            for number, hit in zip(true.classes, overlapped(labels, true), strict=True):
                row["alone" if int((true.classes == number).sum()) == 1 else "in a herd"].append(hit)
    return {
        name: {kind: float(np.mean(values)) for kind, values in row.items()}
        | {f"objects {kind}": float(len(row[kind])) for kind in ("alone", "in a herd")}
        for name, row in hits.items()
    }


def true_map(true: Instances) -> Tensor:
    """Classes (H, W) of an image's objects, 0 where there is none."""
    return torch.cat([torch.zeros(1).long(), true.classes + 1])[paint(true).long()]


def labels_of(semantic: Tensor, cues: Cues, rules: Rules) -> Instances:
    """The pseudo labels of an image, at its own size."""
    components = label_components(torch.where(semantic == IGNORE, 0, semantic).int()[None])
    labels = transfer(components, cues, supervision="points", rules=rules, geometry=Geometry())
    ids = labels.ids[0].where((labels.weight > 0)[labels.ids[0].long()], 0)
    rows, masks = encode(ids)
    return Instances(masks, labels.classes[rows], labels.weight[rows], (ids.shape[0], ids.shape[1]))


if __name__ == "__main__":
    main()
