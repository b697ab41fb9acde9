"""Write the README's tables from the files under ``results`` (``--check`` only compares)."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from experiment import METRICS, ROOT

HEAD = {"map25": "mAP25", "map50": "mAP50", "map70": "mAP70", "map75": "mAP75", "miou": "mIoU"}


def seeds_table(content: dict[str, Any]) -> list[list[str]]:
    """Mean and standard deviation over the seeds, a row a setting."""
    rows = [["", *HEAD.values()]]
    for row in content["rows"]:
        cells = []
        for metric in METRICS:
            values = row["all"][metric]
            mean = sum(values) / len(values)
            spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
            cells.append(f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else ""))
        rows.append([row["name"], *cells])
    return rows


def demo_table(content: dict[str, Any]) -> list[list[str]]:
    """Both runs of the demo."""
    runs = {"points": content, "full supervision": content["full_supervision"]}
    return [["", *HEAD.values()]] + [[name, *(f"{100 * run[m]:.1f}" for m in METRICS)] for name, run in runs.items()]


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[list[str]]]]] = {
    "demo": ("results/shapes/demo.json", demo_table),
    "ablation": ("results/shapes/ablation_points.json", seeds_table),
    "nuclei": ("results/nuclei/points.json", seeds_table),
}


def speed_table() -> str:
    """Every measured row that has a bar."""
    lines = ["| measured on a CPU | value | bar |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "benchmarks/results").glob("*_cpu.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row.get("bar") is not None:
                name = f"{path.stem.removesuffix('_cpu')}: {row['name']}"
                value = f"{row['value']:.3g} {row.get('unit', '')}".rstrip()
                lines.append(f"| {name} | {value} | {row['bar']}{'' if row['met'] else ' (missed)'} |")
    return "\n".join([*lines, "", "<sub>From `benchmarks/results/*_cpu.json`, `make bench`.</sub>"])


def rendered(name: str) -> str:
    """A Markdown table with a line that says where it comes from."""
    if name == "speed":
        return speed_table()
    path, make = TABLES[name]
    content = json.loads((ROOT / path).read_text())
    rows = make(content)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    environment = content["environment"]
    origin = f"`{path}`, {environment['date'][:10]}, {environment['device']}, `{content['command']}`"
    return "\n".join([*lines, "", f"<sub>From {origin}. Scores in per cent.</sub>"])


def main() -> None:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the README is not up to date")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text()
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    updated = pattern.sub(lambda found: f"{found[1]}{rendered(found[2])}\n{found[3]}", text)
    if arguments.check and updated != text:
        raise SystemExit("README.md does not show what the files under results hold: run python tools/tables.py")
    path.write_text(updated)


if __name__ == "__main__":
    main()
