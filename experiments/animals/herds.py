"""Which objects of the test photographs are found: those alone of their kind in the picture, and those in a herd.

``python -m experiments.animals.herds ROOT`` after ``python -m experiments.animals ROOT``; writes
results/animals/herds.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
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
    add_seeds(__doc__, "herds", found_by_networks)


def add_seeds(purpose: str, name: str, measure: Callable[[Chain], Mapping[str, dict[str, float] | None]]) -> None:
    """Read the command line, and put the rows that ``measure`` finds of each seed into a table."""
    parser = argparse.ArgumentParser(description=purpose.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--output", type=Path, default=Path(f"results/animals/{name}.json"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        chain = Chain(seed, ROOT / arguments.runs, arguments.root.absolute(), threads=1)
        command = f"python -m experiments.animals.{name} ROOT"
        add_seed(ROOT / arguments.output, seed, measure(chain), command=command, metric="in a herd")


def found_by_networks(chain: Chain) -> dict[str, dict[str, float] | None]:
    """``shares_found`` of each network that was tested."""
    rows: dict[str, dict[str, float] | None] = {}
    batches = test_batches(chain.root)
    for name, (stage, _) in progress(list(KINDS.items()), f"seed {chain.seed}", "networks"):
        checkpoint = chain.folder / stage / "checkpoints/last.ckpt"
        rows[name] = shares_found(checkpoint, batches) if chain.report(stage, "scores_test") else None
    return rows


def shares_found(checkpoint: Path, batches: Sequence[Batch]) -> dict[str, float]:
    """Shares of both kinds of objects that some prediction of their class overlaps by at least one half."""
    module = BestieModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    hits = Hits()
    for batch in batches:
        assert batch.references is not None
        hits.add(module.predict_instances(batch)[0][0], batch.references[0])
    return hits.shares()


class Hits:
    """Which true objects are found, by whether they are alone of their kind in their picture."""

    def __init__(self) -> None:
        self.found: dict[str, list[bool]] = {"alone": [], "in a herd": []}

    def add(self, found: Instances, true: Instances) -> None:
        """Those of one picture."""
        for number, hit in zip(true.classes, overlapped(found, true), strict=True):
            self.found["alone" if int((true.classes == number).sum()) == 1 else "in a herd"].append(hit)

    def shares(self) -> dict[str, float]:
        """Share and number of both kinds."""
        return {kind: float(np.mean(values)) for kind, values in self.found.items()} | {
            f"objects {kind}": float(len(values)) for kind, values in self.found.items()
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
