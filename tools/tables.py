"""Write the README's tables from the files under ``results`` (``--check`` only compares)."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.runs import ROOT

HEAD = {"map25": "mAP25", "map50": "mAP50", "map70": "mAP70", "map75": "mAP75", "miou": "mIoU"}


def seeds_table(content: dict[str, Any], columns: dict[str, str] = HEAD) -> list[list[str]]:
    """Mean and standard deviation over the seeds, a row a setting; a dash where a row has no such figure."""
    rows = [["", *columns.values()]]
    for row in content["rows"]:
        cells = [mean_and_spread(row["all"][key]) if key in row["all"] else "–" for key in columns]
        rows.append([row["name"], *cells])
    return rows


def mean_and_spread(values: list[float]) -> str:
    """In per cent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def demo_table(content: dict[str, Any]) -> list[list[str]]:
    """Both runs of the demo, plain and refined at test."""
    rows = [["", *HEAD.values()]]
    for name, run in {"tags": content, "full supervision": content["full_supervision"]}.items():
        for suffix, scores in (("", run), (", refined at test", run["refined_at_test"])):
            rows.append([name + suffix, *(f"{100 * scores[key]:.1f}" for key in HEAD)])
    return rows


def maps_table(content: dict[str, Any]) -> list[list[str]]:
    """Mean IoU of semantic maps, a row a source."""
    return [["", "mIoU"]] + [[row["name"], f"{100 * row['miou']:.1f}"] for row in content["rows"]]


def photographs_table(content: dict[str, Any]) -> list[list[str]]:
    """Instance scores on photographs, for all classes and those with enough images."""
    keys = ("map25", "map50", "map25_many_images", "map50_many_images", "miou")
    head = ["", "AP25", "AP50", "AP25, classes with 100 images", "AP50, the same", "mIoU"]
    return [head] + [[row["name"], *(f"{100 * row[key]:.1f}" for key in keys)] for row in content["rows"]]


def cues_table(content: dict[str, Any]) -> list[list[str]]:
    """Cues on photographs above the threshold that training uses, a row a classifier."""
    columns = {
        "precision": "cues on an object",
        "recall": "objects with a cue",
        "instances_with_one_cue": "objects with exactly one cue",
    }
    table = [["", "mAP of the tags", "cues an image", *columns.values()]]
    for row in content["rows"]:
        figures = next(line for line in row["thresholds"] if abs(line["threshold"] - CUE_THRESHOLD) < 1e-6)
        cells = [f"{100 * row['tag_map']:.1f}", f"{figures['cues_per_image']:.2f}"]
        table.append([row["name"], *cells, *(f"{100 * figures[key]:.1f}" for key in columns)])
    return table


CUE_THRESHOLD = 0.7
"""That of configs/voc_small/tags.yaml, which is the default."""
CLASSIFIER_COLUMNS = {
    "tag_map": "mAP of the tags",
    "precision": "cues on an object",
    "instances_with_one_cue": "objects with exactly one cue",
    "maps_miou": "mIoU of CAM + PAMR",
}
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[list[str]]]]] = {
    "demo": ("results/shapes/demo.json", demo_table),
    "ablation": ("results/shapes/ablation_points.json", seeds_table),
    "nuclei": ("results/nuclei/points.json", seeds_table),
    "table3": ("results/shapes/table3.json", seeds_table),
    "table4": ("results/shapes/table4.json", partial(seeds_table, columns={"maps_miou": "mIoU of the maps"} | HEAD)),
    "table5": ("results/shapes/table5.json", seeds_table),
    "shares": ("results/shapes/shares.json", partial(seeds_table, columns={"share": "share of full"} | HEAD)),
    "test_time": ("results/shapes/test_time.json", partial(seeds_table, columns=HEAD | {"coco_ap": "COCO AP"})),
    "classifiers": ("results/shapes/classifiers.json", partial(seeds_table, columns=CLASSIFIER_COLUMNS)),
    "photograph_maps": ("results/voc_small/semantic_maps.json", maps_table),
    "photograph_cues": ("results/voc_small/cues.json", cues_table),
    "photographs": ("results/voc_small/instances.json", photographs_table),
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


def stages_table() -> str:
    """Images a second, with what takes the time."""
    content = json.loads((ROOT / "benchmarks/results/stages_cpu.json").read_text())
    lines = ["| stage on a CPU | images/s | most time in |", "| --- | --- | --- |"]
    lines += [f"| {row['name']} | {row['value']:.3g} | {row['limited_by']} |" for row in content["rows"]]
    origin = f"`benchmarks/results/stages_cpu.json`, {content['machine']['threads']} threads, `{content['command']}`"
    return "\n".join([*lines, "", f"<sub>From {origin}.</sub>"])


def rendered(name: str) -> str:
    """A Markdown table with a line that says where it comes from."""
    if name in ("speed", "stages"):
        return {"speed": speed_table, "stages": stages_table}[name]()
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
        raise SystemExit("README.md does not show what the files under results hold: run python -m tools.tables")
    path.write_text(updated)


if __name__ == "__main__":
    main()
