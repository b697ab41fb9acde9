"""``bestie-pl data check``: read a whole data set and say all that is wrong with it. ``data shards`` is beside it."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from bestie_pl.cli.commands import shards
from bestie_pl.cli.lightning import BestieParser, data_parser, read_data_module
from bestie_pl.data.advice import Advice, TrainingFacts, advice
from bestie_pl.data.check import READ_ERRORS, CheckedImages, ImageFacts, Problem
from bestie_pl.data.files import write_text
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.formats.classes import alike
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import EvaluationSamples, TrainingSamples
from bestie_pl.errors import UserError, expected_one_of
from bestie_pl.progress import progress

HELP = """usage: bestie-pl data check --config CONFIG [--data.* ...] [--workers N] [--json FILE]
       bestie-pl data shards IMAGES [--labels FOLDER ...] --out FOLDER [--megabytes N]

check reads every image, map, cue and mask of a configuration's data set. Exit status 1 if there are errors, else 0.
shards writes images, and the labels beside them, into tar files.
`bestie-pl data check --help` and `bestie-pl data shards --help` list the options."""

COMMANDS = ("check", "shards")
SHOWN = 5
"""Problems of a kind that are printed; the report has all of them."""
TABLE_ROWS = 30
"""With more classes only their sums are printed; the report has all of them."""


def main(args: list[str]) -> int:
    """Check the data set that the command line names.

    Errors are: whatever training or evaluation could not read, and an image of the training split that is in another
    one too. Warnings are what is legal and costs labels: cues and regions of classes without tag, tags without cue or
    region, cues beside the regions, classes without a training image; also the same file under two names or in two
    splits for evaluation, and a list of images to predict that cannot be opened, which a data set need not have.
    Advice is what is sound and will disappoint, with the setting that helps (``bestie_pl.data.advice``).
    Regions, the connected components of a class in the semantic map, are counted at the size of the files, before
    augmentation.

    Returns:
        1 if there is an error, else 0.
    """
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] == "shards":
        return shards.main(args[1:])
    if args[0] != "check":
        raise UserError(f"unknown command {args[0]!r} of `bestie-pl data`; {expected_one_of(args[0], COMMANDS)}")
    data, options = read_data_module(_parser(), args[1:])
    if not isinstance(data, InstanceDataModule):
        raise UserError(f"data must be an InstanceDataModule, whose splits can be read; got {type(data).__name__}")
    if options.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {options.workers}")
    scored = _setting(options.trainer, "limit_val_batches") != 0
    check = DataCheck(data, sigma=_setting(options.model, "sigma"), scored=scored)
    check.run(options.workers)
    # names of files need not be UTF-8
    print("\n".join(check.lines()).encode(errors="backslashreplace").decode())
    if options.json is not None:
        write_text(Path(options.json), json.dumps(check.content(), indent=1, ensure_ascii=False) + "\n")
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
    crowds: Counter[int] = field(default_factory=Counter)
    cues: Counter[int] = field(default_factory=Counter)
    used_cues: Counter[int] = field(default_factory=Counter)
    components: Counter[tuple[int, int]] = field(default_factory=Counter)
    small_components: Counter[int] = field(default_factory=Counter)
    cues_per_image: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    object_areas: list[float] = field(default_factory=list)

    def add(self, facts: ImageFacts) -> None:
        """Count one image."""
        self.images += 1
        if facts.size is None:
            self.unreadable += 1
        else:
            self.heights[facts.size[0]] += 1
            self.widths[facts.size[1]] += 1
            self.sizes[facts.size] += 1
        self.object_areas += facts.object_areas
        self.cues_per_image[len(facts.cues)] += 1
        for name in ("tags", "objects", "crowds", "cues", "used_cues", "components", "small_components"):
            getattr(self, name).update(getattr(facts, name))

    def columns(self, number: int) -> dict[str, int]:
        """The counts of a class, by the headings of the table."""
        return {
            "tagged images": self.tags[number],
            "objects": self.objects[number],
            "crowds": self.crowds[number],
            "cues": self.cues[number],
            "cues used": self.used_cues[number],
            "regions, no cue": self.components[number, 0],
            "regions, 1 cue": self.components[number, 1],
            "regions, 2+ cues": self.components[number, 2],
            "regions too small": self.small_components[number],
        }


class DataCheck:
    """All splits of a data module: what they hold, and what is wrong with them."""

    def __init__(self, data: InstanceDataModule, *, sigma: float | None = None, scored: bool = True) -> None:
        self.data, self.sigma, self.scored = data, sigma, scored
        self.findings: list[Finding] = []
        self.advice: list[Advice] = []
        self.summaries: dict[str, SplitSummary] = {}
        self.same_images: dict[str, str] = {}
        self._read: dict[str, CheckedImages] = {}
        self._seen: dict[int, tuple[str, int]] = {}

    def run(self, workers: int) -> None:
        """Read everything, with a progress bar where the output is a terminal."""
        for group in alike(self.data.class_names):
            message = f"{', '.join(group)}; is it one class? Write it in one way"
            self._find("", "", Problem("class names that differ by little", message, error=False))
        if isinstance(self.data, FolderDataModule):
            known = dict.fromkeys(self.data.splits.values())
            for split, count in self.data.unused.items():
                named = f"of the split {split!r}" if split else "of no split"
                message = f"{count} {named}; {expected_one_of(split, known)}"
                self._find("", "", Problem("images that no stage uses", message, error=False))
        for stage, images in self._splits():
            summary = self.summaries[stage] = SplitSummary()
            # one image is one item: nothing to collate
            loader: Iterable[ImageFacts] = DataLoader(images, None, num_workers=workers, collate_fn=_as_it_is)
            # at once: it takes seconds until the first worker has an image
            for number, facts in enumerate(progress(loader, stage, total=len(images), patience=0)):
                summary.add(facts)
                for problem in facts.problems:
                    self._find(stage, facts.name, problem)
                self._compare(stage, number, facts)
            if stage == "train" and (absent := [n for k, n in enumerate(self.data.class_names) if not summary.tags[k]]):
                message = f"{', '.join(absent)}; nothing teaches them: correct the tags or the names of the classes"
                self._find(stage, "", Problem("class without a training image", message, error=False))
            if stage == "train" and isinstance(images.samples, TrainingSamples):
                self.advice = list(advice(self._facts(images, summary)))

    def lines(self) -> Iterator[str]:
        """The report for the terminal."""
        for stage, summary in self.summaries.items():
            yield from _describe(stage, summary, self.data.class_names)
        for other in self.summaries:
            if stages := [stage for stage, first in self.same_images.items() if first == other]:
                yield f"{', '.join(stages)}: the images of {other}\n"
        for word, error in (("error", True), ("warning", False)):
            counts = Counter(finding.kind for finding in self.findings if finding.error == error)
            for kind, count in counts.items():
                yield f"{word}: {kind} ({count})"
                found = [f for f in self.findings if f.kind == kind and f.error == error]
                yield from (f"  {f.split or 'data set'}: {f.message}" for f in found[:SHOWN])
                if count > SHOWN:
                    yield f"  ... and {count - SHOWN} more; --json FILE lists all"
        yield from (f"advice: {kind}\n  train: {message}" for kind, message in self.advice)
        errors = sum(finding.error for finding in self.findings)
        yield f"{_counted(errors, 'error')}, {_counted(len(self.findings) - errors, 'warning')}"

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
            "advice": [found._asdict() for found in self.advice],
        }

    def _splits(self) -> Iterator[tuple[str, CheckedImages]]:
        """The splits that can be opened, each with images of its own."""
        data = self.data
        data.prepare_data()
        # without ground truth, nobody means to validate or test
        for step in ("fit", "validate", "test", "predict") if data.has_truth else ("fit", "predict"):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Not weakly supervised")  # this is about the files
                    data.setup(step)
            except READ_ERRORS as error:
                of_fit = "val" if "train" in data.datasets else "train"
                stage = {"fit": of_fit, "validate": "val"}.get(step, step)
                if stage in ("val", "test") and data.tags_only and not self.scored:
                    continue  # nobody means to score this classifier, so its data set need not have these splits
                if not any(finding.message == str(error) for finding in self.findings):
                    problem = Problem("split that cannot be opened", str(error), error=stage != "predict")
                    self._find(stage, "", problem)
        for stage, samples in data.datasets.items():
            assert isinstance(samples, (TrainingSamples, EvaluationSamples))
            images = CheckedImages(samples, data.class_names, data.geometry.min_area / data.image_scale**2)
            same = (other for other, theirs in self._read.items() if _covers(other, theirs, stage, images))
            if (other := next(same, None)) is not None:
                self.same_images[stage] = other
            elif len(images):
                self._read[stage] = images
                yield stage, images

    def _facts(self, images: CheckedImages, summary: SplitSummary) -> TrainingFacts:
        data, tags = self.data, images.split.tags
        assert tags is not None  # training needs them
        return TrainingFacts(
            class_names=data.class_names,
            tags=tags,
            sizes=list(summary.sizes.elements()),
            areas=summary.object_areas,
            supervision=data.supervision,
            classifies=data.tags_only,
            batch_size=data.batch_size,
            crop_size=data.crop_size,
            image_scale=data.image_scale,
            object_scale=data.object_scale,
            sigma=self.sigma,
        )

    def _find(self, stage: str, image: str, problem: Problem) -> None:
        self.findings.append(Finding(stage, image, *problem))

    def _compare(self, stage: str, number: int, facts: ImageFacts) -> None:
        """Find images that were read before, in this split or in another."""
        if facts.fingerprint == 0:
            return
        earlier, row = first = self._seen.setdefault(facts.fingerprint, (stage, number))
        if first == (stage, number) or "predict" in (stage, earlier):
            return
        theirs = self._read[earlier].split
        name, path = theirs.names[row], theirs.images[row]
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
    add("--json", type=str, help="File for all counts and problems")
    return parser


def _setting(part: Any, name: str) -> float | None:
    """A number among the settings of a part of the configuration, wherever it stands."""
    if not isinstance(part, dict):
        return None
    if isinstance(value := part.get(name), int | float):
        return float(value)
    return next((found for inner in part.values() if (found := _setting(inner, name)) is not None), None)


def _as_it_is(facts: Any) -> Any:
    return facts


def _covers(other: str, theirs: CheckedImages, stage: str, images: CheckedImages) -> bool:
    """Whether a split was read with another one, whose images it has too."""
    if other == "train" and stage != "predict":
        return False
    if images.split.truth is not None and theirs.split.truth is None:
        return False
    try:
        pairs = zip(theirs.split.images, images.split.images, strict=True)
        return len(theirs) == len(images) and all(a == b for a, b in pairs)
    except READ_ERRORS:  # a name that leads nowhere is reported where it is read
        return False


def _describe(stage: str, summary: SplitSummary, class_names: Sequence[str]) -> Iterator[str]:
    """The counts of a split as a table, without columns of zeros."""
    sizes = ""
    if summary.heights:
        sizes = f", {_span(summary.widths)} x {_span(summary.heights)} px (width x height)"
    broken = f", {summary.unreadable} of them unreadable" if summary.unreadable else ""
    yield f"{stage}: {_counted(summary.images, 'image')}{broken}{sizes}"
    rows = {name: summary.columns(number) for number, name in enumerate(class_names)}
    total: Counter[str] = Counter()
    for row in rows.values():
        total.update(row)
    heads = [head for head, count in total.items() if count]
    if len(rows) > TABLE_ROWS:
        rows = {f"{len(rows)} classes": total}
    elif len(rows) > 1:
        rows = {**rows, "all": total}
    if heads:
        width = max(map(len, rows))
        yield "  ".join([" " * width, *heads])
        for name, row in rows.items():
            yield "  ".join([f"{name:<{width}}", *(f"{row[head]:>{len(head)}}" for head in heads)])
    if summary.cues:
        counts = sorted(summary.cues_per_image.elements())
        without = f"; none in {_counted(counts.count(0), 'image')}" if counts[0] == 0 else ""
        yield f"cues in an image: {_span(counts)}, median {counts[len(counts) // 2]}{without}"
    yield ""


def _span(values: Collection[int]) -> str:
    least, most = min(values), max(values)
    return f"{least} to {most}" if least < most else str(least)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _range(sides: Counter[int]) -> list[int] | None:
    return [min(sides), max(sides)] if sides else None


def _plain(finding: Finding) -> dict[str, str]:
    return {name: value for name, value in finding._asdict().items() if name != "error"}
