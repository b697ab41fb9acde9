"""``bestie-pl report``: one page about a run that needs no other file: scores, curves, pictures, settings, versions."""

from __future__ import annotations

import argparse
import base64
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bestie_pl.callbacks.scores import environment
from bestie_pl.data.files import read_text, require_folder, write_text
from bestie_pl.modules.run_folders import newest_checkpoint, runs_of
from bestie_pl.modules.weights import sha256

STAGES = {"test": "the test images", "val": "the validation images"}
HEADLINE = ("map50", "map70", "map75", "coco_ap", "miou")
"""Scores that stand in large figures, where there are any."""

CURVES = (
    ("Losses", "train/", ("train/loss", "train/center", "train/offset", "train/semantic")),
    ("Scores on validation images", "val/", ("val/map", "val/miou", "val/f1", "val_")),
    ("Precision and recall of the labels", "train/", ("train/pseudo/precision", "train/pseudo/recall",
                                                      "train/refined/precision", "train/refined/recall")),
    ("Right labels an epoch", "train/", ("train/pseudo/true_positives", "train/refined/true_positives")),
    ("Labels an image", "labels/", ("labels/",)),
    ("Mean weight of the labels", "weight/", ("weight/",)),
    ("Learning rate", "lr", ("lr",)),
    ("Seconds a step", "seconds/", ("seconds/",)),
)  # fmt: skip
"""Title, prefix that names lose in the legend, and how the columns of ``metrics.csv`` begin."""

SHEETS = {
    "course": "Over the training: one crop, its labels, and what the network makes of it after so many steps",
    "training": "Training crops, with the network as it was in the end",
    "best": "Best test images",
    "worst": "Worst test images",
    "test": "The first test images",
}
"""Pictures of a run, in the order of the page."""

LABEL_COLUMNS = ("labels", "true_positives", "objects", "precision", "recall", "mean_iou")

MAIN_SETTINGS = (
    "supervision", "recipe", "semantic_source", "image_scale", "object_scale", "crop_size", "batch_size", "backbone",
    "decoder", "backbone_weights", "init_from", "optimizer", "lr", "max_steps", "max_epochs", "precision",
    "seed_everything",
)  # fmt: skip
WIDEST_BAR = 160
INK = "#1d2433"


def main(args: list[str]) -> int:
    """Write the page of the run that the command line names.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: The folder holds nothing of a run, a file in it is broken, or matplotlib is not installed.
    """
    options = _parser().parse_args(args)
    run = Path(options.run)
    require_folder(run, "a run's: trainer.default_root_dir of `bestie-pl fit`")
    if find_spec("matplotlib") is None:
        raise ValueError("a report draws its curves with matplotlib: pip install 'bestie-pl[plots]'")
    reference = None if options.reference is None else Path(options.reference)
    if reference is not None:
        require_folder(reference, "the run that this one is compared with, with its scores_test.json")
    output = Path(options.output) if options.output else run / "report.html"
    write_text(output, page(run, reference))
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MB, complete in itself")
    return 0


def page(run: Path, reference: Path | None = None) -> str:
    """The page as HTML, images inlined.

    Args:
        run: Folder of the run.
        reference: Folder of a run that its scores are set beside, usually one with full supervision.

    Raises:
        ValueError: ``run`` holds no scores, log or pictures; a file is broken.
    """
    log = _newest_log(run)
    configuration = read_text(log / "config.yaml", "the configuration") if log and _has(log, "config.yaml") else ""
    scores = {stage: _read_json(run / f"scores_{stage}.json") for stage in STAGES}
    curves = _read_curves(log / "metrics.csv") if log and _has(log, "metrics.csv") else {}
    sheets = _sheets(run / "pictures")
    tables = [*_label_tables(curves), *_tables(run)]
    if not any(scores.values()) and not curves and not sheets and not tables:
        raise ValueError(
            f"{run}: holds no scores, no logs/version_*/metrics.csv and no pictures; give the folder of a run"
        )
    others = {stage: _read_json(reference / f"scores_{stage}.json") if reference else None for stage in STAGES}
    stages = [_stage(title, scores[stage], others[stage]) for stage, title in STAGES.items() if scores[stage]]
    known = next((content for content in scores.values() if content), {})
    settings = _flat(yaml.safe_load(configuration) or {}) if configuration else {}
    versions = known.get("environment") or environment()
    notes = [f"Not weakly supervised: {note}." for note in known.get("ground_truth_used") or ()]
    newest = newest_checkpoint(run)
    weights = None if newest is None else sha256(newest)
    if any(weights and content.get("sha256") not in (None, weights) for content in scores.values() if content):
        notes.append("Scores are those of other weights than the newest training's here: test again.")
    if known.get("oracle"):
        notes.append(f"The {known['oracle']} of the evaluated images were given to the network.")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        files("bestie_pl.cli").joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=f"Run {run.resolve().name}",
        subtitle=_subtitle(known, settings, versions),
        notes=notes,
        stages=stages,
        reference=reference.resolve().name if reference else None,
        curves=[{"title": title, "source": source} for title, source in _draw_curves(curves)],
        tables=tables,
        sheets=[
            {"title": SHEETS.get(path.stem, path.stem), "source": _inline(path.read_bytes(), "image/png")}
            for path in sheets
        ],
        versions=list(versions.items()),
        settings=[(name, settings[name]) for name in MAIN_SETTINGS if settings.get(name) is not None],
        configuration=configuration,
    )


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _newest_log(run: Path) -> Path | None:
    """The log of the newest training; tests and predictions leave logs as well, without curves."""
    logs = runs_of(run)
    trainings = [log for log in logs if _has(log, "metrics.csv") and "train/loss" in (log / "metrics.csv").read_text()]
    return next(iter(trainings or logs), None)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path, "what a run wrote"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error}); run the command that wrote it again") from error
    return content if isinstance(content, dict) else None


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Step and value of each column that has numbers."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in csv.DictReader(StringIO(read_text(path, "the log of a run"))):
        for name, text in row.items():
            if name in ("step", "epoch") or not text or not row.get("step"):
                continue
            try:
                curves.setdefault(name, []).append((float(row["step"]), float(text)))
            except ValueError as error:
                raise ValueError(f"{path}: column {name} holds {text!r}; expected numbers") from error
    return curves


def _stage(title: str, content: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any]:
    scores = _short_names(content)
    others = _short_names(other)
    plain = {name: value for name, value in scores.items() if "/" not in name}
    by_class: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        kind, _, label = name.partition("/")
        if label:
            by_class.setdefault(label, {})[kind] = value
    columns = sorted({kind for parts in by_class.values() for kind in parts})
    return {
        "title": title,
        "headline": [(name, _percent(plain[name])) for name in HEADLINE if name in plain],
        "scores": [
            {
                "name": name,
                "value": _percent(value),
                "other": _percent(others.get(name)),
                "share": _percent(value / others[name]) if others.get(name) else "–",
            }
            for name, value in plain.items()
        ],
        "class_columns": columns,
        "classes": [
            {
                "name": label,
                "parts": [_percent(parts.get(kind)) for kind in columns],
                "width": round(WIDEST_BAR * max(0.0, parts.get(columns[-1], 0.0))),
            }
            for label, parts in by_class.items()
        ],
        "legend": list(((content or {}).get("legend") or {}).items()),
    }


def _short_names(content: Mapping[str, Any] | None) -> dict[str, float]:
    """Scores without ``test/``; ``test_oracle_tags/map50`` keeps what follows the stage, as ``oracle_tags map50``."""
    scores: dict[str, float] = {}
    for name, value in ((content or {}).get("scores") or {}).items():
        stage, _, rest = name.partition("/")
        note = stage.partition("_")[2]
        scores[f"{note} {rest}" if note and "/" not in rest else rest] = float(value)
    return scores


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _sheets(folder: Path) -> list[Path]:
    """Pictures in the order of ``SHEETS``, others after them."""
    order = list(SHEETS)
    rank = {name: number for number, name in enumerate(order)}
    return sorted(folder.glob("*.png"), key=lambda path: (rank.get(path.stem, len(order)), path.stem))


def _label_tables(curves: Mapping[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Quality of the labels on the crops of the first epoch and of the last, where the run knew the truth."""
    rows = []
    for kind in ("pseudo", "refined"):
        found = {name: curves[column] for name in LABEL_COLUMNS if (column := f"train/{kind}/{name}") in curves}
        if "precision" not in found or "labels" not in found:
            continue
        steps = [step for step, _ in found["labels"]]
        for step in dict.fromkeys((steps[0], steps[-1])):
            values = {name: dict(points).get(step) for name, points in found.items()}
            counts = {name: values[name] for name in values if name in LABEL_COLUMNS[:3]}
            whole = {name: None if value is None else int(value) for name, value in counts.items()}
            rows.append({"labels of": kind, "after steps": int(step) + 1, **values, **whole})
    return [_table("Labels against the truth, on the crops of an epoch", rows)] if rows else []


def _tables(run: Path) -> list[dict[str, Any]]:
    """Quality of cues and of semantic maps, where the run made some and knew the truth."""
    tables = []
    if cues := _read_json(run / "cue_report.json"):
        rows = [row for row in cues.get("thresholds", []) if isinstance(row, dict)]
        if rows:
            tables.append(_table("Cues, at several thresholds", rows))
    if maps := _read_json(run / "semantic_maps.json"):
        found = {**maps.get("figures", {}), "miou": maps.get("miou")}
        tables.append(_table("Semantic maps", [{name: value for name, value in found.items() if value is not None}]))
    return tables


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = [name for name, value in rows[0].items() if not isinstance(value, (list, dict))]
    cells = [[_short(row.get(name)) for name in columns] for row in rows]
    return {"title": title, "columns": [name.replace("_", " ") for name in columns], "rows": cells}


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _subtitle(known: Mapping[str, Any], settings: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    parts = [
        f"supervision {known.get('supervision') or settings.get('supervision')}",
        f"recipe {known.get('recipe') or settings.get('recipe')}",
        f"{settings.get('backbone')}" if settings.get("backbone") else "",
        str(versions.get("date", "")),
        str(versions.get("device", "")),
    ]
    return " · ".join(part for part in parts if part and "None" not in part)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The innermost names of a configuration; of equal ones the first."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        for key, inner in (_flat(value) if isinstance(value, dict) else {name: value}).items():
            found.setdefault(key, inner)
    return found


def _draw_curves(curves: Mapping[str, list[tuple[float, float]]]) -> Iterable[tuple[str, str]]:
    """Title and inlined picture of each group that has a curve of at least two points."""
    from matplotlib.figure import Figure

    for title, prefix, beginnings in CURVES:
        chosen = {name: points for name, points in curves.items() if name.startswith(beginnings) and len(points) > 1}
        if not chosen:
            continue
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in chosen.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name.removeprefix(prefix), linewidth=1.6)
        positive = [value for points in chosen.values() for _, value in points if value > 0]
        if title == "Losses" and positive and max(positive) > 30 * min(positive):
            axes.set_yscale("log")
        axes.set_title(title, loc="left", color=INK)
        axes.set_xlabel("step", color=INK)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(chosen) > 1:
            figure.legend(fontsize=8, frameon=False, ncols=min(4, len(chosen)), loc="outside lower center")
        content = BytesIO()
        figure.savefig(content, format="svg")
        yield title, _inline(content.getvalue(), "image/svg+xml")


def _inline(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bestie-pl report",
        description="Write one HTML page about a run, with its scores, curves, pictures, settings and versions.",
    )
    parser.add_argument("run", help="folder of the run, trainer.default_root_dir")
    parser.add_argument("--reference", help="folder of a run to compare the scores with, such as full supervision")
    parser.add_argument("--output", help="file to write (default: report.html in the run's folder)")
    return parser
