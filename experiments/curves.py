"""Draw figures 6 and 7 of the paper from a curves.json: label quality and mAP50 over training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.runs import ROOT


def main() -> None:
    """Write ``figure6.png`` and ``figure7.png`` beside the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/shapes"))
    folder: Path = ROOT / parser.parse_args().folder
    rows = json.loads((folder / "curves.json").read_text())["rows"]
    poolings = sorted({row["name"].split(": ")[0] for row in rows})
    draw(rows, poolings, folder / "figure6.png", "objects of the training crops with a right label (%)", labels)
    draw(rows, poolings, folder / "figure7.png", "mAP50 on validation images (%)", scores)


def draw(rows: list[dict[str, Any]], poolings: list[str], path: Path, what: str, lines_of: Any) -> None:
    """One panel a pooling, lines for its rows."""
    figure, panels = plt.subplots(1, len(poolings), figsize=(5.5 * len(poolings), 4), sharey=True, squeeze=False)
    for axes, pooling in zip(panels[0], poolings, strict=True):
        for row in rows:
            if row["name"].startswith(pooling):
                lines_of(axes, row["name"].split(": ")[1], row["by_seed"])
        axes.set(title=pooling, xlabel="optimiser step")
        axes.legend(fontsize=7)
    panels[0][0].set_ylabel(what)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def labels(axes: Axes, name: str, seeds: list[dict[str, Any]]) -> None:
    """True positives, as a share of all objects as the last epoch is cut short; later rows have PAM's pseudo labels."""
    if name in ("none", "PAM"):
        line(axes, f"{name}: pseudo", seeds, "train/pseudo/recall", "--", 100)
    line(axes, f"{name}: refined", seeds, "train/refined/recall", "-", 100)


def scores(axes: Axes, name: str, seeds: list[dict[str, Any]]) -> None:
    """mAP50 in per cent."""
    line(axes, name, seeds, "val/map50", "-", 100)


def line(axes: Axes, label: str, seeds: list[dict[str, Any]], key: str, style: str, factor: float) -> None:
    """Mean over the seeds, at the steps that all of them logged."""
    series = [dict(map(tuple, seed[key])) for seed in seeds if key in seed]
    if series:
        steps = sorted(set.intersection(*(set(s) for s in series)))
        axes.plot(steps, [factor * sum(s[step] for s in series) / len(series) for step in steps], style, label=label)


if __name__ == "__main__":
    main()
