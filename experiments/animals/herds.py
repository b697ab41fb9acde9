"""Which objects of the test photographs are found: those alone of their kind in the picture, and those in a herd.

``python -m experiments.animals.herds ROOT`` after ``python -m experiments.animals ROOT``; writes
results/animals/herds.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as codec

from bestie_pl import BestieModule
from bestie_pl.progress import progress
from bestie_pl.structures import Batch, Instances
from experiments.animals.chain import Chain
from experiments.animals.tables import KINDS, test_batches
from experiments.runs import ROOT, add_seed

OVERLAP = 0.5


def main() -> None:
    """Add the seeds whose networks are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--output", type=Path, default=Path("results/animals/herds.json"))
    arguments = parser.parse_args()
    batches = test_batches(arguments.root)
    for seed in arguments.seeds:
        chain = Chain(seed, ROOT / arguments.runs, arguments.root.absolute(), threads=1)
        rows: dict[str, dict[str, float] | None] = {}
        for name, (stage, _) in progress(list(KINDS.items()), f"seed {seed}", "networks"):
            checkpoint = chain.folder / stage / "checkpoints/last.ckpt"
            rows[name] = shares_found(checkpoint, batches) if chain.report(stage, "scores_test") else None
        add_seed(
            ROOT / arguments.output,
            seed,
            rows,
            command="python -m experiments.animals.herds ROOT",
            metric="in a herd",
        )


def shares_found(checkpoint: Path, batches: Sequence[Batch]) -> dict[str, float]:
    """Shares of both kinds of objects that some prediction of their class overlaps by at least one half."""
    module = BestieModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    hits: dict[str, list[bool]] = {"alone": [], "in a herd": []}
    for batch in batches:
        assert batch.references is not None
        found, true = module.predict_instances(batch)[0][0], batch.references[0]
        for number, hit in enumerate(overlapped(found, true)):
            own = true.classes == true.classes[number]
            hits["alone" if int(own.sum()) == 1 else "in a herd"].append(hit)
    return {kind: float(np.mean(values)) for kind, values in hits.items()} | {
        f"objects {kind}": float(len(values)) for kind, values in hits.items()
    }


def overlapped(found: Instances, true: Instances) -> list[bool]:
    """Of each true object, whether it is found."""
    if not len(found) or not len(true):
        return [False] * len(true)
    overlap = codec.iou(list(found.masks), list(true.masks), [0] * len(true))
    same = (found.classes[:, None] == true.classes).numpy()
    return ((overlap >= OVERLAP) & same).any(0).tolist()


if __name__ == "__main__":
    main()
