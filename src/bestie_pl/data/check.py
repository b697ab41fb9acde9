"""Reads a data set as training and evaluation do, and collects what is wrong with it instead of stopping at once.

No Lightning here, so that worker processes start fast.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset

from bestie_pl.data.files import as_it_looks, below
from bestie_pl.data.formats.cues import cue_lines, cues_of_rows, parse_cue
from bestie_pl.data.formats.images import check_size, open_image, remarks
from bestie_pl.data.formats.maps import SEMANTIC_MAP, check_classes, read_label_map
from bestie_pl.data.samples import EvaluationSamples, Split, TrainingSamples
from bestie_pl.data.shards import is_file, read_bytes
from bestie_pl.errors import UserError
from bestie_pl.ops.components import label_components, tagged_classes
from bestie_pl.ops.transfer import component_of
from bestie_pl.structures import IGNORE, Cues, Instances

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

    ``object_areas``: pixels of the component of each cue that lies in one, over its cues. ``size`` (H, W) is None for
    an unreadable image. ``cues`` are all that there are, ``used_cues`` those that training
    uses: sure enough, and of a tagged class; ``cues_path`` is where they stand. ``fingerprint`` is the same for files
    with the same bytes.
    """

    name: str
    path: str
    fingerprint: int = 0
    size: tuple[int, int] | None = None
    tags: list[int] = field(default_factory=list)
    cues_path: str = ""
    cues: list[int] = field(default_factory=list)
    used_cues: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    crowds: list[int] = field(default_factory=list)
    components: Counter[tuple[int, int]] = field(default_factory=Counter)
    small_components: Counter[int] = field(default_factory=Counter)
    object_areas: list[float] = field(default_factory=list)
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
        facts = ImageFacts(split.names[index], "")
        with facts.reading("unreadable image"):
            facts.path = split.images[index]
            self._read_image(facts)
        if split.tags is not None:
            facts.tags = split.tags[index].nonzero().flatten().tolist()
        semantic = self._read_semantic(facts)
        known = split.truth is not None and (not self.samples.truth_optional or split.truth.known(index))
        if split.truth is not None and known and facts.size is not None:
            with facts.reading("wrong ground truth"):
                truth = split.truth(index, facts.size)
                _count_objects(facts, truth.instances)
                semantic = truth.semantic if split.semantic_dir is None else semantic
        cues = self._read_cues(facts, index)
        if isinstance(self.samples, TrainingSamples):
            self._read_labels(facts, index, self.samples)
            if semantic is not None:
                self._compare_tags(facts, semantic)
                if cues is not None:
                    self._count_components(facts, semantic, cues)
        return facts

    def _read_image(self, facts: ImageFacts) -> None:
        path = Path(facts.path)
        # what Pillow warns of goes into the report, with the name of the file
        with facts.reading("unreadable image"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            image = open_image(path)
            facts.size = (image.height, image.width)
            for remark in remarks(path, image):
                facts.warn("image of which a part is read", remark)
        for message in sorted({str(warning.message) for warning in said}):
            facts.warn("image that is read with a warning", f"{path}: {message}")
        with facts.reading("unreadable image"):
            path = as_it_looks(path)
            if not is_file(path):
                return
            content = read_bytes(path)
            facts.fingerprint = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
            # decoders take a JPEG's missing end for grey
            body = content.rstrip(b"\0")
            zeros = len(content) - len(body)
            if zeros > TORN and content.startswith(b"\xff\xd8") and not body.endswith(b"\xff\xd9"):
                raise UserError(f"{path}: its last {zeros} bytes are zero and the image has no end: copy it again")

    def _read_cues(self, facts: ImageFacts, index: int) -> Cues | None:
        """Those that training uses; None if it reads none here."""
        split, training = self.split, self.samples if isinstance(self.samples, TrainingSamples) else None
        if facts.size is None or (training is not None and not training.read_cues):
            return None
        cues, facts.cues_path = None, facts.path
        if split.points is not None:
            before = len(facts.problems)
            with facts.reading("wrong points"):
                cues = split.points(index, facts.size)
            if len(facts.problems) > before:
                return None
        if cues is None and split.cues_dir is not None:
            with facts.reading("unreadable cues"):
                path = as_it_looks(below(split.cues_dir, f"{facts.name}.txt"))
                # evaluation reads cues where there are any
                if training is not None or is_file(path):
                    cues, facts.cues_path = _lines_of(path, facts, len(self.class_names)), str(path)
        if cues is None:
            return None
        facts.cues = cues.classes.tolist()
        return None if training is None else self._used(facts, cues, training)

    def _used(self, facts: ImageFacts, cues: Cues, samples: TrainingSamples) -> Cues:
        """The cues that training uses."""
        if untagged := set(facts.cues) - set(facts.tags):
            facts.warn(
                "cue of a class without tag",
                f"{facts.cues_path}: {self._named(untagged)}; training leaves these cues out: add the tag or remove "
                "them",
            )
        tagged = torch.tensor([number in facts.tags for number in facts.cues], dtype=torch.bool)
        used = cues.select((cues.scores > samples.cue_threshold) & tagged)
        facts.used_cues = used.classes.tolist()
        if missing := set(facts.tags) - set(facts.used_cues):
            facts.warn(
                "tag without a cue",
                f"{facts.cues_path}: {self._named(missing)}; no object of it gets a label: add cues, or lower "
                "cue_threshold",
            )
        return used

    def _read_semantic(self, facts: ImageFacts) -> Tensor | None:
        """The semantic map if it is read, and right."""
        if self.split.semantic_dir is None:
            return None
        before, values = len(facts.problems), None
        path = self.split.semantic_dir / f"{facts.name}.png"
        with facts.reading("unreadable semantic map"):
            path = as_it_looks(below(self.split.semantic_dir, f"{facts.name}.png"))
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
        present = {value - 1 for value in np.unique(semantic.numpy()).tolist() if value not in (0, IGNORE)}
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
        inside = row.bincount(minlength=len(components.area))
        # a region that holds several cues is as many objects
        facts.object_areas = (components.area[1:] / inside[1:]).repeat_interleave(inside[1:]).tolist()
        count = inside.clamp(max=2)
        table = torch.stack([components.classes, components.area, count], 1)[1:]
        for number, area, cues_inside in table.tolist():
            if area < self.min_area:
                facts.small_components[number] += 1
            else:
                facts.components[number, cues_inside] += 1
        if beside := int((row == 0).sum()):
            facts.warn(
                "cue beside the regions of its class",
                f"{facts.cues_path}: {beside} of {len(row)} cues; no region gets a label from them: move them, or "
                "improve the semantic map",
            )

    def _read_labels(self, facts: ImageFacts, index: int, samples: TrainingSamples) -> None:
        if samples.labels is not None and facts.size is not None:
            with facts.reading("unreadable predicted instances"):
                samples.labels(index, facts.size, torch.ones(len(self.class_names), dtype=torch.bool))

    def _named(self, numbers: Iterable[int]) -> str:
        return ", ".join(self.class_names[number] for number in sorted(numbers))


def _lines_of(path: Path, facts: ImageFacts, num_classes: int) -> Cues | None:
    """The right lines of a text file of cues; None if there is no such file."""
    assert facts.size is not None
    lines = None
    with facts.reading("unreadable cues"):
        lines = cue_lines(path)
    if lines is None:
        return None
    rows = []
    for line in lines:
        with facts.reading("wrong cue"):
            rows.append(parse_cue(line, facts.size, num_classes))
    return cues_of_rows(rows)


def _count_objects(facts: ImageFacts, instances: Instances) -> None:
    crowd = [False] * len(instances) if instances.crowd is None else instances.crowd.tolist()
    for number, is_crowd in zip(instances.classes.tolist(), crowd, strict=True):
        (facts.crowds if is_crowd else facts.objects).append(number)
    # one by one: pycocotools 2.0.11 counts the masks of a list in 8 bits
    if empty := sum(int(rle.area(code)) == 0 for code in instances.masks):
        facts.warn(
            "object without a pixel",
            f"{facts.path}: {empty} of {len(instances)} objects of the ground truth; scores count them as missed: "
            "remove them",
        )
