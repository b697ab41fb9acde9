"""Reads a data set as training and evaluation do, and collects what is wrong with it instead of stopping at once.

No Lightning here, so that worker processes start fast.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bestie_pl.data.files import (
    SEMANTIC_MAP,
    check_classes,
    check_size,
    cue_lines,
    cues_of_rows,
    open_image,
    parse_cue,
    read_label_map,
)
from bestie_pl.data.predicted_labels import read_predictions
from bestie_pl.data.samples import EvaluationSamples, Split, TrainingSamples
from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.transfer import component_of
from bestie_pl.structures import IGNORE, Cues

TORN = 16
"""An image file that ends in more zero bytes than this and not in its end marker was not copied to its end."""

READ_ERRORS = (ValueError, OSError)
"""What readers raise for files that are broken, missing or forbidden."""


class Problem(NamedTuple):
    """One finding. An ``error`` stops training or spoils scores; what is no error is legal and may cost labels."""

    kind: str
    message: str
    error: bool = True


@dataclass
class ImageFacts:
    """What is read of one image; ``components`` counts those of a class by their number of cues, at most 2.

    ``size`` (H, W) is None for an unreadable image. ``used_cues`` are those that training uses: sure enough, and of a
    tagged class. ``fingerprint`` is the same for files with the same bytes.
    """

    name: str
    path: str
    fingerprint: int = 0
    size: tuple[int, int] | None = None
    tags: list[int] = field(default_factory=list)
    cues: list[int] = field(default_factory=list)
    used_cues: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    components: Counter[tuple[int, int]] = field(default_factory=Counter)
    small_components: Counter[int] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def reading(self, kind: str) -> Iterator[None]:
        """Turn what a reader raises into a problem."""
        try:
            yield
        except READ_ERRORS as error:
            self.problems.append(Problem(kind, str(error)))

    def warn(self, kind: str, message: str) -> None:
        """Add a problem that is no error."""
        self.problems.append(Problem(kind, message, error=False))


@dataclass(frozen=True)
class CheckedImages(Dataset[ImageFacts]):
    """The images of a split, each read whole, with everything that its samples would be made from.

    Args:
        samples: Of training or of evaluation.
        class_names: In the order of the classes' numbers.
        min_area: Components of fewer pixels of the file get no label.
    """

    samples: TrainingSamples | EvaluationSamples
    class_names: tuple[str, ...]
    min_area: float

    @property
    def split(self) -> Split:
        """What is read."""
        return self.samples.split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> ImageFacts:
        split = self.split
        facts = ImageFacts(split.names[index], split.images[index])
        self._read_image(facts)
        if split.tags is not None:
            facts.tags = split.tags[index].nonzero().flatten().tolist()
        semantic = self._read_semantic(facts)
        if split.truth is not None and facts.size is not None:
            with facts.reading("unreadable ground truth"):
                truth = split.truth(index, facts.size)
                facts.objects = truth.instances.classes.tolist()
                semantic = truth.semantic if split.semantic_dir is None else semantic
        cues = self._read_cues(facts)
        if isinstance(self.samples, TrainingSamples):
            self._read_predictions(facts, self.samples)
            if semantic is not None:
                self._compare_tags(facts, semantic)
                if cues is not None:
                    self._count_components(facts, semantic, cues)
        return facts

    def _read_image(self, facts: ImageFacts) -> None:
        path = Path(facts.path)
        with facts.reading("unreadable image"):
            image = open_image(path)
            facts.size = (image.height, image.width)
        with facts.reading("unreadable image"):
            if not path.is_file():
                return
            content = path.read_bytes()
            facts.fingerprint = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
            # decoders take a JPEG's missing end for grey
            body = content.rstrip(b"\0")
            zeros = len(content) - len(body)
            if zeros > TORN and content.startswith(b"\xff\xd8") and not body.endswith(b"\xff\xd9"):
                raise ValueError(f"{path}: its last {zeros} bytes are zero and the image has no end: copy it again")

    def _read_cues(self, facts: ImageFacts) -> Cues | None:
        """Those that training uses; None if they are not read."""
        samples, folder = self.samples, self.split.cues_dir
        if folder is None or facts.size is None:
            return None
        path = folder / f"{facts.name}.txt"
        # evaluation reads cues where there are any
        if not (samples.read_cues if isinstance(samples, TrainingSamples) else path.is_file()):
            return None
        rows = []
        with facts.reading("unreadable cues"):
            for line in cue_lines(path):
                with facts.reading("wrong cue"):
                    rows.append(parse_cue(line, facts.size, len(self.class_names)))
        facts.cues = [int(number) for _, _, number, _ in rows]
        if not isinstance(samples, TrainingSamples):
            return None
        if untagged := set(facts.cues) - set(facts.tags):
            facts.warn(
                "cue of a class without tag",
                f"{path}: {self._named(untagged)}; training leaves these cues out: add the tag or remove them",
            )
        rows = [row for row in rows if row[3] > samples.cue_threshold and row[2] in facts.tags]
        facts.used_cues = [int(number) for _, _, number, _ in rows]
        if missing := set(facts.tags) - set(facts.used_cues):
            facts.warn(
                "tag without a cue",
                f"{path}: {self._named(missing)}; no object of it gets a label: add cues, or lower cue_threshold",
            )
        return cues_of_rows(rows)

    def _read_semantic(self, facts: ImageFacts) -> Tensor | None:
        """The semantic map if it is read, and right."""
        if self.split.semantic_dir is None:
            return None
        before, values = len(facts.problems), None
        path = self.split.semantic_dir / f"{facts.name}.png"
        with facts.reading("unreadable semantic map"):
            values = read_label_map(path, SEMANTIC_MAP)
        if values is None:
            return None
        if facts.size is not None:
            with facts.reading("semantic map of another size"):
                check_size(path, values.shape, facts.size)
        with facts.reading("semantic map with values that are no class"):
            check_classes(path, values, len(self.class_names))
        return torch.from_numpy(values) if len(facts.problems) == before else None

    def _compare_tags(self, facts: ImageFacts, semantic: Tensor) -> None:
        path = facts.path if self.split.semantic_dir is None else self.split.semantic_dir / f"{facts.name}.png"
        present = {value - 1 for value in semantic.unique().tolist() if value not in (0, IGNORE)}
        if untagged := present - set(facts.tags):
            facts.warn(
                "class in a semantic map without tag",
                f"{path}: {self._named(untagged)}; gets no label: add the tag, or make the map with the tags",
            )
        if absent := set(facts.tags) - present:
            facts.warn(
                "tag without a region in the semantic map",
                f"{path}: {self._named(absent)}; no object of it gets a label: improve the map, or correct the tag",
            )

    def _count_components(self, facts: ImageFacts, semantic: Tensor, cues: Cues) -> None:
        tags = torch.zeros(1, len(self.class_names), dtype=torch.bool)
        tags[0, facts.tags] = True
        components = label_components(tagged_classes(semantic[None], tags))
        row = component_of(components, cues)
        count = row.bincount(minlength=len(components.area)).clamp(max=2)
        table = torch.stack([components.classes, components.area, count], 1)[1:]
        for number, area, cues_inside in table.tolist():
            if area < self.min_area:
                facts.small_components[number] += 1
            else:
                facts.components[number, cues_inside] += 1
        if beside := int((row == 0).sum()):
            facts.warn(
                "cue beside the regions of its class",
                f"{self.split.cues_dir}/{facts.name}.txt: {beside} of {len(row)} cues; no region gets a label "
                "from them: move them, or improve the semantic map",
            )

    def _read_predictions(self, facts: ImageFacts, samples: TrainingSamples) -> None:
        if samples.labels_from is not None and facts.size is not None:
            with facts.reading("unreadable predicted instances"):
                read_predictions(samples.labels_from, facts.name, facts.size, self.class_names)

    def _named(self, numbers: Iterable[int]) -> str:
        return ", ".join(self.class_names[number] for number in sorted(numbers))
