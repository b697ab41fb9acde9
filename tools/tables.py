"""Write the tables of README.md and docs/*.md from the files that hold the figures (``--check`` only compares)."""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.runs import ROOT
from tools import scaling
from tools.house import drawn

HEAD = {"map25": "mAP25", "map50": "mAP50", "map70": "mAP70", "map75": "mAP75", "miou": "mIoU"}
PAPER = "results/paper.json"
SHARES = "results/shapes/shares.json"
ANIMALS = "results/animals/instances.json"
BENCHMARKS = "benchmarks/results"
Rows = list[list[str]]


def seeds_table(content: dict[str, Any], columns: dict[str, str] = HEAD) -> Rows:
    """Mean and standard deviation over the seeds, a row a setting; a dash where a row has no such figure."""
    rows = [["", *columns.values()]]
    for row in content["rows"]:
        cells = [mean_and_spread(row["all"][key]) if key in row["all"] else "–" for key in columns]
        rows.append([row["name"], *cells])
    return rows


def mean_and_spread(values: Sequence[float]) -> str:
    """In per cent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def demo_table(content: dict[str, Any]) -> Rows:
    """Both runs of the demo, plain and refined at test."""
    rows = [["", *HEAD.values()]]
    for name, run in {"tags": content, "full supervision": content["full_supervision"]}.items():
        for suffix, scores in (("", run), (", refined at test", run["refined_at_test"])):
            rows.append([name + suffix, *(f"{100 * scores[key]:.1f}" for key in HEAD)])
    return rows


def maps_table(content: dict[str, Any]) -> Rows:
    """Mean IoU of semantic maps, a row a source."""
    return [["", "mIoU"]] + [[row["name"], f"{100 * row['miou']:.1f}"] for row in content["rows"]]


def plain_shares_table(content: dict[str, Any]) -> Rows:
    """What each kind of supervision gives, without its variants."""
    rows = [row for row in content["rows"] if row["name"] in PLAIN]
    return seeds_table({"rows": rows}, {"share": "share of full"} | HEAD)


def as_they_are_table(content: dict[str, Any]) -> Rows:
    """The rows of networks that are tested as they are."""
    rows = [row for row in content["rows"] if not row["name"].endswith(" at test")]
    return seeds_table({"rows": rows}, {"share": "share of full"} | HEAD)


def ways_to_test_table(content: dict[str, Any]) -> Rows:
    """mAP50 and its share of full supervision by each way to test, a row a network."""
    ways = ("", ", refined at test", ", views at test", ", views, refined at test")
    found = {row["name"]: row["all"] for row in content["rows"]}
    table = [["mAP50; share of full", "as it is", "refined", "views", "views, refined"]]
    for name in (name for name in found if not name.endswith(" at test")):
        rows = [found[name + way] for way in ways]
        table.append([name, *(f"{mean_and_spread(r['map50'])}; {mean_and_spread(r['share'])}" for r in rows)])
    return table


def photographs_table(content: dict[str, Any]) -> Rows:
    """Instance scores on photographs, for all classes and those with enough images."""
    keys = ("map25", "map50", "map25_many_images", "map50_many_images", "miou")
    head = ["", "AP25", "AP50", "AP25, classes with 100 images", "AP50, the same", "mIoU"]
    return [head] + [[row["name"], *(f"{100 * row[key]:.1f}" for key in keys)] for row in content["rows"]]


def cues_table(content: dict[str, Any]) -> Rows:
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


PLAIN = ("full supervision", "points", "tags", "tags, another round")
"""The rows of the shares that the README shows."""
CUE_THRESHOLD = 0.7
"""That of configs/voc_small/tags.yaml, which is the default."""
CLASSIFIER_COLUMNS = {
    "tag_map": "mAP of the tags",
    "precision": "cues on an object",
    "instances_with_one_cue": "objects with exactly one cue",
    "maps_miou": "mIoU of CAM + PAMR",
}
CUE_COLUMNS = {
    "tag_map": "mAP of the tags",
    "precision": "cues on an object",
    "recall": "objects with a cue",
    "instances_with_one_cue": "objects with exactly one cue",
}
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Rows]]] = {
    "demo": ("results/shapes/demo.json", demo_table),
    "ablation": ("results/shapes/ablation_points.json", seeds_table),
    "nuclei": ("results/nuclei/points.json", seeds_table),
    "table3": ("results/shapes/table3.json", seeds_table),
    "foreground": ("results/shapes/foreground.json", seeds_table),
    "table4": ("results/shapes/table4.json", partial(seeds_table, columns={"maps_miou": "mIoU of the maps"} | HEAD)),
    "table5": ("results/shapes/table5.json", seeds_table),
    "shares": (SHARES, partial(seeds_table, columns={"share": "share of full"} | HEAD)),
    "plain_shares": (SHARES, plain_shares_table),
    "test_time": ("results/shapes/test_time.json", partial(seeds_table, columns=HEAD | {"coco_ap": "COCO AP"})),
    "classifiers": ("results/shapes/classifiers.json", partial(seeds_table, columns=CLASSIFIER_COLUMNS)),
    "animals": (ANIMALS, as_they_are_table),
    "animal_tests": (ANIMALS, ways_to_test_table),
    "shapes_table1": ("results/shapes/table1.json", seeds_table),
    "nuclei_table1": ("results/nuclei/table1.json", seeds_table),
    "animal_table1": ("results/animals/table1.json", seeds_table),
    "animal_table3": ("results/animals/table3.json", seeds_table),
    "animal_table4": ("results/animals/table4.json", seeds_table),
    "animal_classifiers": ("results/animals/classifier.json", partial(seeds_table, columns=CUE_COLUMNS)),
    "animal_variants": ("results/animals/variants.json", seeds_table),
    "animal_maps": (
        "results/animals/maps.json",
        partial(seeds_table, columns={"miou": "mIoU", "undecided": "undecided"}),
    ),
    "photograph_maps": ("results/voc_small/semantic_maps.json", maps_table),
    "photograph_cues": ("results/voc_small/cues.json", cues_table),
    "photographs": ("results/voc_small/instances.json", photographs_table),
}
"""Tables of scores by name: the file behind each, and what makes its rows."""


# ---------------------------------------------------------------- the paper's figures, and ours beside them


def paper_voc_table() -> str:
    """Table 1 of the paper, with each row's share of full supervision."""
    rows = read(PAPER)["voc"]
    keys = ("map25", "map50", "map70", "map75")
    table = [["VOC 2012 val, the paper's", *(HEAD[key] for key in keys), "share of the last row, mAP50"]]
    for row in rows:
        share = f"{100 * row['map50'] / rows[-1]['map50']:.0f} %"
        table.append([row["name"], *(f"{row[key]:.1f}" for key in keys), share])
    return markdown(table, f"`{PAPER}`")


def paper_coco_table() -> str:
    """Table 2 of the paper."""
    table = [["COCO val, the paper's", "AP", "AP50", "AP75"]]
    table += [[row["name"], *(f"{row[key]:.1f}" for key in ("ap", "ap50", "ap75"))] for row in read(PAPER)["coco"]]
    return markdown(table, f"`{PAPER}`")


def paper_table3() -> str:
    """Table 3 of the paper beside ours, mAP50."""
    table = [["mAP50", "paper: VOC, tags", "here: shapes, mean pooling", "here: shapes, nGWP pooling"]]
    ours = {row["name"]: mean_and_spread(row["all"]["map50"]) for row in read("results/shapes/table3.json")["rows"]}
    for row in read(PAPER)["table3"]:
        here = [ours[f"{pooling} pooling: {row['ours']}"] for pooling in ("mean", "nGWP")]
        table.append([row["name"], f"{row['map50']:.1f}", *here])
    return markdown(table, f"`{PAPER}` and `results/shapes/table3.json`")


def paper_table4() -> str:
    """Table 4 of the paper above ours."""
    table = [["semantic maps from", "mIoU of the maps", "mAP50"]]
    for row in read(PAPER)["table4"]:
        quality = "–" if row["maps_miou"] is None else f"{row['maps_miou']:.1f}"
        table.append([f"paper, VOC: {row['name']}", quality, f"{row['map50']:.1f}"])
    for row in read("results/shapes/table4.json")["rows"]:
        scores = row["all"]
        quality = mean_and_spread(scores["maps_miou"]) if "maps_miou" in scores else "–"
        table.append([f"here, shapes: {row['name']}", quality, mean_and_spread(scores["map50"])])
    return markdown(table, f"`{PAPER}` and `results/shapes/table4.json`")


def paper_table5() -> str:
    """Table 5 of the paper beside ours, mAP50."""
    ours = {row["name"]: mean_and_spread(row["all"]["map50"]) for row in read("results/shapes/table5.json")["rows"]}
    table = [["mAP50", "paper: VOC, tags", "here: shapes, tags"]]
    table += [[row["name"], f"{row['map50']:.1f}", ours[row["name"]]] for row in read(PAPER)["table5"]]
    return markdown(table, f"`{PAPER}` and `results/shapes/table5.json`")


INIT = {
    "nuclei: points, foreground maps given": "results/nuclei/init.json",
    "shapes: points alone": "results/shapes/init.json",
    "animals: points alone": "results/animals/init_points.json",
    "animals: tags alone": "results/animals/init_tags.json",
}
"""What ``bestie-pl init`` was tried on, and what came of it."""


def init_table() -> str:
    """What ``bestie-pl init`` writes beside the defaults for a folder."""
    table = [["", "steps", "mAP25, default", "mAP25, `init`", "mAP50, default", "mAP50, `init`"]]
    for name, path in INIT.items():
        content = read(path)
        scores = [content["scores"][side][key] for key in ("map25", "map50") for side in ("default", "init")]
        table.append([name, str(content["steps"]), *(f"{100 * value:.1f}" for value in scores)])
    files = ", ".join(f"`{path}`" for path in INIT.values())
    return markdown(table, f"{files}, `python -m experiments.init`. Scores in per cent")


def herds_table() -> str:
    """Objects of the test photographs that are found, alone of their kind and among others."""
    path = "results/animals/herds.json"
    table = [["found at an overlap of 0.5", "alone of their kind", "in a herd"]]
    for row in read(path)["rows"]:
        table.append([row["name"], *(mean_and_spread(row["all"][kind]) for kind in ("alone", "in a herd"))])
    return markdown(table, f"`{path}`, `python -m experiments.animals.herds ROOT`. Per cent of 87 and 81 objects")


def herd_labels_table() -> str:
    """Objects of the development split that have a right label, alone of their kind and among others."""
    path = "results/animals/labels_in_herds.json"
    kinds = ("alone", "in a herd", "precision")
    table = [["pseudo labels", "alone of their kind", "in a herd", "labels that are right"]]
    for row in read(path)["rows"]:
        table.append([row["name"], *(mean_and_spread(row["all"][kind]) for kind in kinds)])
    command = "python -m experiments.animals.labels_in_herds ROOT"
    return markdown(table, f"`{path}`, `{command}`. Per cent; 61 and 71 objects")


def thresholds_table() -> str:
    """Otsu's threshold beside the one that masks would choose."""
    path = "results/thresholds.json"
    table = [["", "Otsu", "best, with masks", "IoU with Otsu's", "with the best", "with 0.2", "with 0.35"]]
    for name, rows in read(path)["sets"].items():
        for row in rows:
            scores = (f"{100 * row[key]:.1f}" for key in ("iou_otsu", "iou_by_masks", "iou_0.2", "iou_0.35"))
            table.append([f"{name}: {row['name']}", f"{row['otsu']:.2f}", f"{row['by_masks']:.2f}", *scores])
    return markdown(table, f"`{path}`, `python -m experiments.thresholds`. IoU in per cent")


def cost_table() -> str:
    """Seconds that an image costs its annotator, and what a network makes of them."""
    paper = read(PAPER)
    voc, shapes = paper["voc"], {row["name"]: row["all"] for row in read(SHARES)["rows"]}
    full = next(row["map50"] for row in voc if row["supervision"] == "masks")
    table = [
        [
            "label",
            "seconds an image",
            "images an hour",
            "in the time of 100 masked images",
            "share of full, paper on VOC",
            "share of full, here on shapes",
            "the same, refined at test",
        ]
    ]
    for label, seconds in paper["seconds_an_image"].items():
        shares = [f"{100 * row['map50'] / full:.0f} %" for row in voc if row["name"] == label]
        name = "full supervision" if label == "masks" else label
        ours = [
            f"{mean_and_spread(shapes[row]['share'])} %" if row in shapes else "–"
            for row in (name, f"{name}, refined at test")
        ]
        published = "100 %" if label == "masks" else (shares or ["–"])[0]
        instead = 100 * paper["seconds_an_image"]["masks"] / seconds
        table.append([label, f"{seconds:.1f}", f"{3600 / seconds:.0f}", f"{instead:,.0f}", published, *ours])
    return markdown(table, f"`{PAPER}` and `{SHARES}`; shares are of mAP50")


# ---------------------------------------------------------------- speed


def speed_table() -> str:
    """Every row measured on a CPU that has a bar."""
    table = [["measured on a CPU", "value", "bar"]]
    for stem, row in measured("cpu"):
        if row.get("bar") is not None:
            table.append([f"{stem}: {row['name']}", value_of(row), bar_of(row)])
    return markdown(table, f"`{BENCHMARKS}/*_cpu.json`, `make bench`")


GPU_ROWS = (
    ("refinement", "paper recipe, C=20"),
    ("refinement", "release recipe, C=20"),
    ("refinement", "points, C=20"),
    ("step", "HRNet-W48, 416 px, AMP, maps read at stride 4: refinement"),
    ("pipeline", "network alone, HRNet-W48 AMP, 416 px: forward and backward"),
    ("throughput", "HRNet-W48, 416 px, float16: whole step"),
    ("pipeline", "paper: augmentation and pseudo labels on the device"),
    ("inference", "batch 8: network hrnet_w48"),
    ("inference", "batch 8: post-processing"),
    ("graphed", "HRNet-W48, 416 px, bfloat16, eager: whole step"),
    ("graphed", "HRNet-W48, 416 px, bfloat16, graphed: whole step"),
    ("graphed", "HRNet-W48, 416 px, bfloat16: graphed against eager"),
    *(("batches", f"HRNet-W48, 416 px, bfloat16, batch {batch}: whole step") for batch in (16, 32, 64)),
    ("batches", "HRNet-W48, 416 px, bfloat16, batch 64: memory"),
)
"""Rows without a bar that say what the others are made of."""


def gpu_table() -> str:
    """Every row measured on a GPU that has a bar, and a few without."""
    table = [["measured on a GPU", "value", "bar", "limited by"]]
    for stem, row in measured("cuda"):
        if row.get("bar") is not None or (stem, row["name"]) in GPU_ROWS:
            bar = "" if row.get("bar") is None else bar_of(row)
            table.append([f"{stem}: {row['name']}", value_of(row), bar, reason(row)])
    machine = read(f"{BENCHMARKS}/step_cuda.json")["machine"]
    device = f"{machine['gpu']}, {machine['processor']}, torch {machine['torch']}, {machine['date'][:10]}"
    return markdown(table, f"`{BENCHMARKS}/*_cuda.json`: {device}")


def gpu_fit_table() -> str:
    """Losses of the short training on a GPU, every fifth step, without and with the network as a CUDA graph."""
    paths = (f"{BENCHMARKS}/fit_cuda.csv", f"{BENCHMARKS}/fit_graphed_cuda.csv")
    table = [["step", "loss", "loss, graphed", "semantic", "centre, pseudo", "offset, pseudo", "centre, refined"]]
    plain, graphed = ([row for row in _lines(path) if row["train/loss"]] for path in paths)
    for row, other in zip(plain, graphed, strict=True):
        terms = ("semantic", "center_pseudo", "offset_pseudo", "center_refined")
        losses = [row["train/loss"], other["train/loss"], *(row[f"train/{term}"] for term in terms)]
        if (int(row["step"]) + 1) % 5 == 0:
            table.append([str(int(row["step"]) + 1), *(f"{float(loss):.2f}" for loss in losses)])
    medians = [
        statistics.median(float(row["seconds/compute"]) for row in _lines(path) if row["seconds/compute"])
        for path in paths
    ]
    table.append(["seconds a step, median", *(f"{value:.3f}" for value in medians), *("" for _ in terms)])
    return markdown(table, " and ".join(f"`{path}`" for path in paths))


def _lines(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(newline="") as file:
        return list(csv.DictReader(file))


def stages_table() -> str:
    """Images a second, with what takes the time."""
    content = read(f"{BENCHMARKS}/stages_cpu.json")
    table = [["stage on a CPU", "images/s", "most time in"]]
    table += [[row["name"], f"{row['value']:.3g}", row["limited_by"]] for row in content["rows"]]
    threads = content["machine"]["threads"]
    return markdown(table, f"`{BENCHMARKS}/stages_cpu.json`, {threads} threads, `{content['command']}`")


def measured(device: str) -> list[tuple[str, dict[str, Any]]]:
    """Name of the benchmark and row, of all result files of a device."""
    return [
        (path.stem.removesuffix(f"_{device}"), row)
        for path in sorted((ROOT / BENCHMARKS).glob(f"*_{device}.json"))
        for row in json.loads(path.read_text())["rows"]
    ]


def value_of(row: dict[str, Any]) -> str:
    """With its unit; short times in milliseconds."""
    if row.get("unit") == "s" and row["value"] < 0.05:
        return f"{1000 * row['value']:.3g} ms"
    return f"{row['value']:.3g} {row.get('unit', '')}".rstrip()


def bar_of(row: dict[str, Any]) -> str:
    """The bar, and whether it was missed."""
    return f"{row['bar']}{'' if row['met'] else ' (missed)'}"


def reason(row: dict[str, Any]) -> str:
    """What limits a row, without the names of CUDA kernels, which fill half a page each."""
    return re.sub(r"(, )?(void at::.*?|sm\d+_\w+) \d+ %(?=,|$)", "", row.get("limited_by", "")).removeprefix(", ")


def scaling_table(name: str) -> str:
    """One of docs/scaling.md."""
    return markdown(*scaling.TABLES[name]())


OTHER: dict[str, Callable[[], str]] = {
    "thresholds": thresholds_table,
    "herds": herds_table,
    "herd_labels": herd_labels_table,
    "speed": speed_table,
    "stages": stages_table,
    "gpu": gpu_table,
    "gpu_fit": gpu_fit_table,
    "paper_voc": paper_voc_table,
    "paper_coco": paper_coco_table,
    "paper_table3": paper_table3,
    "paper_table4": paper_table4,
    "paper_table5": paper_table5,
    "cost": cost_table,
    "init": init_table,
    "house": drawn,
    **{name: partial(scaling_table, name) for name in scaling.TABLES},
}
"""Tables that several files are behind, and the drawing of the package."""


# ---------------------------------------------------------------- Markdown


def read(path: str) -> dict[str, Any]:
    """A JSON file of the repository."""
    content: dict[str, Any] = json.loads((ROOT / path).read_text())
    return content


def markdown(rows: Rows, origin: str) -> str:
    """Rows, the first of them the head, with a line that says where they come from."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join([*lines, "", f"<sub>From {origin}.</sub>"])


def rendered(name: str) -> str:
    """The table of a name.

    Raises:
        ValueError: There is none.
    """
    if name in OTHER:
        return OTHER[name]()
    if name not in TABLES:
        raise ValueError(f"no table {name!r}; there are {', '.join(sorted(TABLES | OTHER))}")
    path, make = TABLES[name]
    content = read(path)
    environment = content["environment"]
    origin = f"`{path}`, {environment['date'][:10]}, {environment['device']}, `{content['command']}`"
    return markdown(make(content), origin + ". Scores in per cent")


def pages() -> list[Path]:
    """The Markdown files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def updated(text: str) -> str:
    """A page with what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` made anew."""
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{rendered(found[2])}\n{found[3]}", text)


def main() -> None:
    """Make all pages anew, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a page is not up to date")
    arguments = parser.parse_args()
    old = []
    for path in pages():
        text = path.read_text()
        new = updated(text)
        if new != text:
            old.append(path.relative_to(ROOT).as_posix())
            if not arguments.check:
                path.write_text(new)
    if arguments.check and old:
        raise SystemExit(f"{', '.join(old)}: not what the result files hold; run python -m tools.tables")


if __name__ == "__main__":
    main()
