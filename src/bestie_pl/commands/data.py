"""``bestie-pl data check``: read a whole data set and say all that is wrong with it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]  # a requirement of Lightning

from bestie_pl.data.base import InstanceDataModule
from bestie_pl.data.check import READ_ERRORS, CheckedImages, ImageFacts, Problem
from bestie_pl.data.files import write_text
from bestie_pl.data.samples import EvaluationSamples, TrainingSamples
from bestie_pl.lightning_cli import BestieParser, data_parser, read_data_module

HELP = """usage: bestie-pl data check --config CONFIG [--data.* ...] [--workers N] [--report FILE.json]

Reads every image, map, cue and mask of a configuration's data set. Exit status 1 if there are errors, else 0.
`bestie-pl data check --help` lists the options."""

SHOWN = 5
"""Problems of a kind that are printed; the report has all of them."""
TABLE_ROWS = 30
"""With more classes only their sums are printed; the report has all of them."""
UP_TO = 10
"""Images with as many cues or more are counted together."""


def main(args: list[str]) -> int:
    """Check the data set that the command line names.

    Images in two splits and everything that training or evaluation could not read are errors. What is legal but costs
    labels is a warning: cues and regions of classes without tag, tags without cue or region, cues beside the regions.
    Components are counted at the size of the files, before augmentation.

    Returns:
        1 if there is an error, else 0.
    """
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] != "check":
        raise ValueError(f"unknown command {args[0]!r} of `bestie-pl data`; expected check")
    data, options = read_data_module(_parser(), args[1:])
    if not isinstance(data, InstanceDataModule):
        raise ValueError(f"data must be an InstanceDataModule, whose splits can be read; got {type(data).__name__}")
    if options.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {options.workers}")
    check = DataCheck(data)
    check.run(options.workers)
    print("\n".join(check.lines()))
    if options.report is not None:
        write_text(Path(options.report), json.dumps(check.content(), indent=1, ensure_ascii=False) + "\n")
    return 1 if any(finding.error for finding in check.findings) else 0


class Finding(NamedTuple):
    """A problem and where it was found."""

    split: str
    image: str
    kind: str
    message: str
    error: bool


@dataclass
class SplitSummary:
    """Sums over the images of a split; counters without a suffix are by class."""

    images: int = 0
    unreadable: int = 0
    heights: Counter[int] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    tags: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    cues: Counter[int] = field(default_factory=Counter)
    used_cues: Counter[int] = field(default_factory=Counter)
    components: Counter[tuple[int, int]] = field(default_factory=Counter)
    small_components: Counter[int] = field(default_factory=Counter)
    cues_per_image: Counter[int] = field(default_factory=Counter)

    def add(self, facts: ImageFacts) -> None:
        """Count one image."""
        self.images += 1
        if facts.size is None:
            self.unreadable += 1
        else:
            self.heights[facts.size[0]] += 1
            self.widths[facts.size[1]] += 1
        self.cues_per_image[len(facts.cues)] += 1
        for name in ("tags", "objects", "cues", "used_cues", "components", "small_components"):
            getattr(self, name).update(getattr(facts, name))

    def columns(self, number: int) -> dict[str, int]:
        """The counts of a class, by the headings of the table."""
        return {
            "tagged images": self.tags[number],
            "objects": self.objects[number],
            "cues": self.cues[number],
            "cues used": self.used_cues[number],
            "regions without cue": self.components[number, 0],
            "with one": self.components[number, 1],
            "with more": self.components[number, 2],
            "too small": self.small_components[number],
        }


class DataCheck:
    """All splits of a data module: what they hold, and what is wrong with them."""

    def __init__(self, data: InstanceDataModule) -> None:
        self.data = data
        self.findings: list[Finding] = []
        self.summaries: dict[str, SplitSummary] = {}
        self.same_images: dict[str, str] = {}
        self._seen: dict[int, tuple[str, str, str]] = {}

    def run(self, workers: int) -> None:
        """Read everything, with a progress bar where the output is a terminal."""
        for stage, images in self._splits():
            summary = self.summaries[stage] = SplitSummary()
            # one image is one item: nothing to collate
            loader: Iterable[ImageFacts] = DataLoader(images, None, num_workers=workers, collate_fn=_as_it_is)
            for facts in tqdm(loader, desc=stage, total=len(images), unit=" images", disable=None, leave=False):
                summary.add(facts)
                for problem in facts.problems:
                    self._find(stage, facts.name, problem)
                self._compare(stage, facts)

    def lines(self) -> Iterator[str]:
        """The report for the terminal."""
        for stage, summary in self.summaries.items():
            yield from _describe(stage, summary, self.data.class_names)
        for stage, other in self.same_images.items():
            yield f"{stage}: the images of {other}\n"
        for word, error in (("error", True), ("warning", False)):
            counts = Counter(finding.kind for finding in self.findings if finding.error == error)
            for kind, count in counts.items():
                yield f"{word}: {kind} ({count})"
                found = [f for f in self.findings if f.kind == kind and f.error == error]
                yield from (f"  {finding.split}: {finding.message}" for finding in found[:SHOWN])
                if count > SHOWN:
                    yield f"  ... and {count - SHOWN} more; --report FILE.json lists all"
        errors = sum(finding.error for finding in self.findings)
        yield f"{errors} errors, {len(self.findings) - errors} warnings"

    def content(self) -> dict[str, Any]:
        """The report as plain values."""
        names = self.data.class_names
        splits: dict[str, Any] = {
            stage: {
                "images": summary.images,
                "unreadable": summary.unreadable,
                "heights": _range(summary.heights),
                "widths": _range(summary.widths),
                "cues_per_image": {str(cues): summary.cues_per_image[cues] for cues in sorted(summary.cues_per_image)},
                "classes": {name: summary.columns(number) for number, name in enumerate(names)},
            }
            for stage, summary in self.summaries.items()
        }
        return {
            "data": type(self.data).__name__,
            "root": str(self.data.root),
            "splits": splits | {stage: {"images_of": other} for stage, other in self.same_images.items()},
            "errors": [_plain(finding) for finding in self.findings if finding.error],
            "warnings": [_plain(finding) for finding in self.findings if not finding.error],
        }

    def _splits(self) -> Iterator[tuple[str, CheckedImages]]:
        """The splits that can be opened, each with images of its own."""
        data, read = self.data, dict[str, CheckedImages]()
        data.prepare_data()
        for step in ("fit", "validate", "test", "predict"):
            try:
                data.setup(step)
            except READ_ERRORS as error:
                of_fit = "val" if "train" in data.datasets else "train"
                stage = {"fit": of_fit, "validate": "val"}.get(step, step)
                if not any(finding.message == str(error) for finding in self.findings):
                    self._find(stage, "", Problem("split that cannot be opened", str(error)))
        for stage, samples in data.datasets.items():
            assert isinstance(samples, (TrainingSamples, EvaluationSamples))
            images = CheckedImages(samples, data.class_names, data.geometry.min_area / data.image_scale**2)
            same = (other for other, theirs in read.items() if _covers(other, theirs, stage, images))
            if (other := next(same, None)) is not None:
                self.same_images[stage] = other
                continue
            read[stage] = images
            yield stage, images

    def _find(self, stage: str, image: str, problem: Problem) -> None:
        self.findings.append(Finding(stage, image, *problem))

    def _compare(self, stage: str, facts: ImageFacts) -> None:
        """Find images that were read before, in this split or in another."""
        if facts.fingerprint == 0:
            return
        this = (stage, facts.name, facts.path)
        earlier, name, path = first = self._seen.setdefault(facts.fingerprint, this)
        if first is this or "predict" in (stage, earlier):
            return
        same = f"{facts.path} holds the same bytes as {path}" if facts.path != path else facts.path
        if earlier == stage:
            problem = Problem("image twice in a split", f"{same}; leave one out", error=False)
        else:
            # copies under other names are found in well-known data sets too
            error = facts.name == name and "train" in (stage, earlier)
            problem = Problem("image in two splits", f"{same}, of the split {earlier}; take it out of one", error=error)
        self._find(stage, facts.name, problem)


def _parser() -> BestieParser:
    parser = data_parser("data check", "Read every image, map, cue and mask of a data set and say what is wrong.")
    add = parser.add_argument
    add("--workers", type=int, default=os.cpu_count() or 1, help="Processes that read")
    add("--report", type=str, help="JSON file for all counts and problems")
    return parser


def _as_it_is(facts: ImageFacts) -> ImageFacts:
    return facts


def _covers(other: str, theirs: CheckedImages, stage: str, images: CheckedImages) -> bool:
    """Whether a split was read with another one, whose images it has too."""
    if other == "train" and stage != "predict":
        return False
    if images.split.truth is not None and theirs.split.truth is None:
        return False
    return len(theirs) == len(images) and all(
        a == b for a, b in zip(theirs.split.images, images.split.images, strict=True)
    )


def _describe(stage: str, summary: SplitSummary, class_names: Sequence[str]) -> Iterator[str]:
    """The counts of a split as a table, without columns of zeros."""
    sizes = ""
    if summary.heights:
        sides = (f"{min(side)} to {max(side)}" for side in (summary.widths, summary.heights))
        sizes = f", {' x '.join(sides)} px (width x height)"
    yield f"{stage}: {summary.images} images{sizes}"
    rows = {name: summary.columns(number) for number, name in enumerate(class_names)}
    total: Counter[str] = Counter()
    for row in rows.values():
        total.update(row)
    heads = [head for head, count in total.items() if count]
    shown = rows if len(rows) <= TABLE_ROWS else {}
    if heads:
        yield "  ".join([" " * 18, *heads])
        for name, row in {**shown, f"{len(rows)} classes": total}.items():
            yield "  ".join([f"{name:<18}", *(f"{row[head]:>{len(head)}}" for head in heads)])
    if summary.cues:
        counts = Counter[int]()
        for cues, images in summary.cues_per_image.items():
            counts[min(cues, UP_TO)] += images
        yield "cues in an image: " + ", ".join(f"{n}{'+' if n == UP_TO else ''} in {counts[n]}" for n in sorted(counts))
    yield ""


def _range(sides: Counter[int]) -> list[int] | None:
    return [min(sides), max(sides)] if sides else None


def _plain(finding: Finding) -> dict[str, str]:
    return {name: value for name, value in finding._asdict().items() if name != "error"}
