"""What an annotation file says: images with their objects; and shapes on the way to objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bestie_pl.data.annotation_tools.geometry import Area, Spot, nearest_to_centroid
from bestie_pl.data.formats.classes import class_name
from bestie_pl.data.formats.images import check_pixels
from bestie_pl.data.formats.points import PointSet, PointSetBuilder
from bestie_pl.errors import UserError


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
    """A shape: where the object's point is, or its area. Shapes of one ``group`` mark one object."""

    label: str
    group: object
    where: str
    spot: Spot | None = None
    area: Area | None = None


def add_shapes(image: MarkedImage, shapes: Iterable[Shape]) -> None:
    """Add the objects that shapes mark; parts with the same label and group, not null, are one object."""
    groups: dict[object, list[Shape]] = {}
    for number, shape in enumerate(shapes):
        key = (number,) if shape.group is None else (shape.label, str(shape.group))
        groups.setdefault(key, []).append(shape)
    for parts in groups.values():
        spots = [part.spot for part in parts if part.spot is not None]
        areas = [part.area for part in parts if part.area is not None]
        label, where = parts[0].label, parts[0].where
        if len(spots) == 1:
            image.objects.append(Object(label, spots[0], where))
        elif areas and not spots:
            image.objects.append(Object(label, nearest_to_centroid(np.concatenate(areas)), where))
        else:
            raise UserError(
                f"{where}: the group {parts[0].group} of {label!r} has {len(spots)} points or boxes; expected one "
                "object a group, with at most one of them: take the shapes out of the group"
            )


def label_of(value: object, where: str) -> str:
    """The class name that a label gives; UserError if it is no text."""
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not class_name(str(value)):
        raise UserError(f"{where}: label: {value!r:.100}; expected the name of a class: quote it if it is one")
    return class_name(str(value))


def field_of(record: Any, name: str, where: str) -> Any:
    """A field of a JSON object; UserError if there is none, or null."""
    if not isinstance(record, dict) or record.get(name) is None:
        raise UserError(f"{where}: no {name}; found {record!r:.200}")
    return record[name]


def size_of(record: dict[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """The image size (H, W) that two fields state, None if neither does; UserError if no image can have it."""
    sides: list[Any] = [record.get(height), record.get(width)]
    if sides == [None, None]:
        return None
    whole = [int(side) if type(side) is float and side.is_integer() else side for side in sides]
    return check_pixels(whole[0], whole[1], f"{where}: {height}, {width}")
