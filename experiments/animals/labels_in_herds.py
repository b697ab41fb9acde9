"""Which objects of the development split get a right label: of animals alone of their kind, and of those in a herd.

By the paper's rule (components with exactly one point or cue) and by the nearest one (components with several are
shared out), on the maps that the instances are trained on and on true ones. Run ``python -m experiments.animals ROOT``
first, then ``python -m experiments.animals.labels_in_herds ROOT``; writes results/animals/labels_in_herds.json.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product

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
from experiments.animals.herds import Hits, add_seeds, overlapped
from experiments.animals.tables import CUE_THRESHOLD

RULES_OF = {"the paper's rule": PAPER, "nearest": NEAREST}
MAPS = "Retrained2_maps"
"""Those that ``tags`` and ``points`` are trained on."""


def main() -> None:
    """Add the seeds whose maps are there."""
    add_seeds(__doc__, "labels_in_herds", measured)


def measured(chain: Chain) -> dict[str, dict[str, float] | None]:
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
    hits: dict[str, Hits] = defaultdict(Hits)
    right: dict[str, list[bool]] = defaultdict(list)
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
            row = f"{source}, {of}: {rule}"
            hits[row].add(labels, true)
            right[row] += overlapped(true, labels)
    return {row: {"precision": float(np.mean(right[row]))} | found.shares() for row, found in hits.items()}


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
