"""What an annotation file says: images with their objects; and shapes on the way to objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bestie_pl.data.annotation_tools.geometry import Pixels, Spot, nearest_to_centroid
from bestie_pl.data.files import read_text
from bestie_pl.data.formats.points import PointSet, PointSetBuilder


class Object(NamedTuple):
    """The point of an object, and ``where`` it is marked: file and place in it, for messages."""

    label: str
    spot: Spot
    where: str
    confidence: float = 1.0


@dataclass
class MarkedImage:
    """An image with its objects. ``size``: (H, W), None if it is not stated; ``where``: it is listed, for messages.

    ``tags``: classes that the image is said to hold, beside those of its objects.
    """

    file: str
    size: tuple[int, int] | None
    where: str
    objects: list[Object] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Marked:
    """What a file holds, and the order of its classes where the format has one."""

    images: list[MarkedImage]
    class_names: Sequence[str] | None = None

    def points(self, path: Path, class_names: Sequence[str] | None = None) -> PointSet:
        """The points of all images; see ``PointSetBuilder`` for ``class_names``."""
        builder = PointSetBuilder(path, class_names if class_names is not None else self.class_names)
        for image in self.images:
            row = builder.image(image.file, image.size, where=image.where)
            for name, (x, y), where, confidence in image.objects:
                builder.point(row, x, y, name, confidence, where)
        return builder.finish()


@dataclass(frozen=True)
class Shape:
    """A shape: where the object's point is, or which pixels it has. Shapes of one ``group`` mark one object."""

    label: str
    group: object
    where: str
    spot: Spot | None = None
    pixels: Pixels | None = None


def add_shapes(image: MarkedImage, shapes: Iterable[Shape]) -> None:
    """Add the objects that shapes mark; parts with the same label and group, not null, are one object."""
    groups: dict[object, list[Shape]] = {}
    for number, shape in enumerate(shapes):
        key = (number,) if shape.group is None else (shape.label, str(shape.group))
        groups.setdefault(key, []).append(shape)
    for parts in groups.values():
        spots = [part.spot for part in parts if part.spot is not None]
        areas = [part.pixels for part in parts if part.pixels is not None]
        label, where = parts[0].label, parts[0].where
        if len(spots) == 1:
            image.objects.append(Object(label, spots[0], where))
        elif areas and not spots:
            image.objects.append(Object(label, nearest_to_centroid(np.concatenate(areas)), where))
        else:
            raise ValueError(
                f"{where}: the group {parts[0].group} of {label!r} has {len(spots)} points or boxes; expected one "
                "object a group, with at most one of them: take the shapes out of the group"
            )


def parse_json(path: Path, holds: str) -> Any:
    """The content of a JSON file; ValueError, which says what it ``holds``, if it is none."""
    try:
        return json.loads(read_text(path, holds))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error}); expected {holds}") from error


def field_of(record: Any, name: str, where: str) -> Any:
    """A field of a JSON object; ValueError if there is none, or null."""
    if not isinstance(record, dict) or record.get(name) is None:
        raise ValueError(f"{where}: no {name}; found {json.dumps(record)[:200]}")
    return record[name]


def size_of(record: dict[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """The image size (H, W) that two fields state, None if neither does; ValueError if they are no whole pixels."""
    sides: list[Any] = [record.get(height), record.get(width)]
    if sides == [None, None]:
        return None
    if not all(type(side) in (int, float) and side > 0 and float(side).is_integer() for side in sides):
        raise ValueError(f"{where}: {height}, {width}: {sides[0]!r}, {sides[1]!r}; expected whole numbers of pixels")
    return int(sides[0]), int(sides[1])
