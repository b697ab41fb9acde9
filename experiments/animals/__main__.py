"""From image tags to masks on photographs of animals, beside points and full supervision: results/animals/*.json.

For each seed the whole way from tags (classifier, semantic rounds, instances, another round), points on the same maps
and on maps grown from the points, and full supervision for as many optimiser steps. Every finished stage is kept in
``runs/animals`` and every finished seed in the results: an interrupted call goes on where it stopped, later calls add
seeds.

What was chosen by looking at masks was chosen on the development split, every fifth training photograph by name. Masks
of the other training photographs and of the test photographs are opened to measure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.animals.chain import PARTS, Chain
from experiments.animals.tables import Tables, draw, true_maps
from experiments.runs import ROOT

RESULTS = Path("results/animals")


def main() -> None:
    """Run what is missing and write the tables, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "root", type=Path, help="folder of the photographs; a copy, as cues and maps are written into it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    truth = true_maps(arguments.root)
    for seed in arguments.seeds:
        chain = Chain(seed, ROOT / arguments.runs, arguments.root.absolute(), arguments.threads)
        tables = Tables(chain, truth, ROOT / arguments.results)
        chain.from_tags()
        chain.supervised("full", 1)
        tables.maps()
        tables.scores()
        for part in arguments.parts:
            chain.part(part)
            tables.scores()
        tables.maps()
        draw(chain, ROOT / arguments.results / "test.png")


if __name__ == "__main__":
    main()
