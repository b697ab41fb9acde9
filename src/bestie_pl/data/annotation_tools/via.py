"""Points of what VIA, the VGG Image Annotator, writes: a project, or exported annotations as JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bestie_pl.data.annotation_tools.geometry import (
    Spot,
    box_center,
    from_corner,
    nearest_to_centroid,
    numbers,
    polygon_area,
)
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Object, field_of, label_of
from bestie_pl.data.files import JSON, csv_lines, read_json, read_text, understood
from bestie_pl.data.formats.points import relative_file
from bestie_pl.errors import UserError

CLASS_ATTRIBUTES = ("class", "label", "category", "type", "name")
"""Names of the attribute that says the class, where regions have several; the first of them that there is counts."""

COLUMNS = (
    *("filename", "file_size", "file_attributes", "region_count", "region_id"),
    *("region_shape_attributes", "region_attributes"),
)
WITHOUT_INSIDE = ("polyline",)
HOLDS = "a project of VIA 2, or its annotations exported as JSON or CSV"


@dataclass(frozen=True)
class _File:
    """An image's entry: ``attributes`` of the image, and shape and attributes of each region, as the file has them."""

    name: Any
    where: str
    attributes: Any
    regions: list[tuple[Any, Any]]


def read_via(path: Path) -> Marked:
    """A project of VIA 2, or annotations exported as JSON or CSV: points, rectangles, circles, ellipses and polygons.

    A region's class is its attribute, if regions have one; of several, the one that is named as ``CLASS_ATTRIBUTES``
    says. An attribute of the *image* with the same name gives tags. Every image of the file counts as looked at. VIA
    writes no image sizes.
    """
    files = _csv_files(path) if path.suffix.lower() == ".csv" else _json_files(path)
    if not files:
        raise UserError(f"{path}: lists no image; expected {HOLDS}")
    name = _class_attribute([attributes for file in files for _, attributes in file.regions], path)
    return Marked([_via_image(file, name) for file in files])


def _json_files(path: Path) -> list[_File]:
    content = read_json(path, HOLDS)
    if isinstance(content, dict) and "project" in content and "_via_img_metadata" not in content:
        raise UserError(f"{path}: is a project of VIA 3, which is another format; annotate images with VIA 2")
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "regions" in e for e in entries.values()):
        raise UserError(f"{path}: expected {HOLDS}")
    return [_json_file(entry, key, path) for key, entry in entries.items()]


def _json_file(entry: dict[str, Any], key: str, path: Path) -> _File:
    where = f"{path}: image {entry.get('filename', key)!r:.300}"
    regions = entry["regions"]
    regions = list(regions.values()) if isinstance(regions, dict) else regions  # numbered, in VIA 1
    if not isinstance(regions, list):
        raise UserError(f"{where}: regions: {regions!r:.100}; expected a list")
    pairs = [
        (field_of(region, "shape_attributes", f"{where}, region {k}"), region.get("region_attributes"))
        for k, region in enumerate(regions, 1)
    ]
    return _File(field_of(entry, "filename", where), where, entry.get("file_attributes"), pairs)


def _csv_files(path: Path) -> list[_File]:
    """A row a region; an image without regions has one row with an empty shape."""
    lines = csv_lines(read_text(path, HOLDS), path)
    header = tuple(name.strip().removeprefix("#") for name in next(lines, (0, []))[1])
    if header != COLUMNS:
        raise UserError(f"{path}: columns {', '.join(header)!r:.200}; expected {HOLDS}, with {', '.join(COLUMNS)}")
    files: dict[str, _File] = {}
    for line, row in lines:
        where = f"{path}: line {line}"
        if len(row) != len(COLUMNS):
            raise UserError(f"{where}: {len(row)} fields; expected {len(COLUMNS)}, as in the header")
        name, of_file, shape, of_region = (row[0], *(_object(row[c], f"{where}: {COLUMNS[c]}") for c in (2, 5, 6)))
        file = files.setdefault(name, _File(name, f"{path}: image {name!r:.300}", of_file, []))
        if shape:
            file.regions.append((shape, of_region))
    return list(files.values())


def _object(text: str, where: str) -> Any:
    with understood(where, "a JSON object"):
        return JSON.decode(text)


def _class_attribute(attributes: Iterable[Any], path: Path) -> str | None:
    """The name of the attribute that says regions' classes; None if there are no regions."""
    names: dict[str, None] = {}
    regions = 0
    for own in attributes:
        regions += 1
        names.update(dict.fromkeys(own if isinstance(own, dict) else ()))
    known = {name.lower(): name for name in names}
    found = next((known[name] for name in CLASS_ATTRIBUTES if name in known), None)
    if found is not None or len(names) == 1 or regions == 0:
        return found if found is not None else next(iter(names), None)
    listed = ", ".join(map(repr, names)) or "none"
    raise UserError(
        f"{path}: attributes of regions: {listed:.200}; expected one that says the class of each, named `class`: add "
        "or rename it in VIA"
    )


def _via_image(file: _File, attribute: str | None) -> MarkedImage:
    if not isinstance(file.name, str):
        raise UserError(f"{file.where}: filename: {file.name!r:.100}; expected the name of an image")
    image = MarkedImage(_file_of(file.name), None, file.where)
    for number, (shape, attributes) in enumerate(file.regions, 1):
        where = f"{file.where}, region {number}"
        found = list(_values(attributes, attribute, where))
        if len(found) != 1:
            raise UserError(f"{where}: {attribute}: {', '.join(found) or 'none'}; expected one class: set it in VIA")
        label = label_of(found[0], where)
        image.objects.append(Object(label, _spot(shape, f"{where} ({label})"), where))
    image.tags.update(label_of(tag, file.where) for tag in _values(file.attributes, attribute, file.where))
    return image


def _values(attributes: Any, name: str | None, where: str) -> Iterator[str]:
    """What an attribute says: a text or a choice says one thing, boxes that are ticked any number."""
    value = attributes.get(name) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        yield from (str(option) for option, ticked in value.items() if ticked is True)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        yield from [str(value)] if str(value).strip() else []
    elif value is not None:
        raise UserError(f"{where}: {name}: {value!r:.100}; expected the name of a class")


def _spot(shape: Any, where: str) -> Spot:
    """Positions are pixels from the image's corner."""
    kind = field_of(shape, "name", f"{where}: shape_attributes")

    def values(*names: str) -> list[float]:
        return numbers([shape.get(name) for name in names], len(names), f"{where}: {', '.join(names)}")

    if kind in ("point", "circle", "ellipse"):
        x, y = values("cx", "cy")
        return from_corner(x, y, None, where)
    if kind == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        return box_center(x, y, width, height, None, where)
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        count = len(xs) if isinstance(xs, list) else 1
        pairs = zip(
            numbers(xs, count, f"{where}: all_points_x"), numbers(ys, count, f"{where}: all_points_y"), strict=True
        )
        corners = [value for pair in pairs for value in pair]
        return nearest_to_centroid(polygon_area([corners], None, where))
    why = "has no inside" if kind in WITHOUT_INSIDE else "is no shape of VIA's"
    raise UserError(f"{where}: {kind!r:.50} {why}; use point, rect, circle, ellipse or polygon")


def _file_of(name: str) -> str:
    """The file of an image, which VIA knows by its name, a path or an address."""
    if "://" in name:
        name = unquote(urlsplit(name).path).lstrip("/")
    return relative_file(name)
