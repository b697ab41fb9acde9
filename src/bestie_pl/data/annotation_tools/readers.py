"""The readers of all formats by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bestie_pl.data.annotation_tools.coco import read_coco
from bestie_pl.data.annotation_tools.cvat import read_cvat
from bestie_pl.data.annotation_tools.label_studio import read_label_config, read_label_studio
from bestie_pl.data.annotation_tools.labelme import read_labelme
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Object
from bestie_pl.data.annotation_tools.via import read_via
from bestie_pl.data.files import understood
from bestie_pl.data.formats.points import read_points
from bestie_pl.errors import UserError


def read_marked(paths: Sequence[Path], source: str, label_config: Path | None = None) -> Marked:
    """What one or several files of a format hold.

    Args:
        paths: Files; for ``labelme`` also folders.
        source: A key of ``READERS``.
        label_config: For ``labelstudio``, the labelling configuration, where tasks hold several images.

    Raises:
        FileNotFoundError: No such file.
        UserError: Not of the format, or a shape that has no point; names file, image and field.
    """
    read = READERS[source]
    if label_config is not None:
        if source != "labelstudio":
            raise UserError(
                f"--label-config is Label Studio's labelling configuration; leave it out with --from {source}"
            )
        read = partial(read_label_studio, keys=read_label_config(label_config))
    parts = []
    for path in paths:
        with understood(path, f"what --from {source} reads; export it again"):
            parts.append(read(path))
    orders = [part.class_names for part in parts]
    if any(order != orders[0] for order in orders):
        raise UserError(f"{paths[0]} and other files have different categories; convert one after the other")
    return Marked([image for part in parts for image in part.images], orders[0])


def _read_own(path: Path) -> Marked:
    """A file of the documented form."""
    points = read_points(path)
    images = []
    columns = [points.yx.tolist(), points.classes.tolist(), points.scores.tolist()]
    for n, (file, (height, width)) in enumerate(zip(points.files, points.sizes.tolist(), strict=True)):
        image = MarkedImage(file, (height, width) if height else None, f"{path}: image {file!r}")
        own = zip(*(column[points.rows(n)] for column in columns), strict=True)
        for k, ((y, x), number, score) in enumerate(own, 1):
            where = f"{image.where}, point {k}"
            image.objects.append(Object(points.class_names[number], (x, y), where, score))
        images.append(image)
    return Marked(images, points.class_names if path.suffix.lower() == ".json" else None)


READERS: dict[str, Callable[[Path], Marked]] = {
    "coco": read_coco,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "labelstudio": read_label_studio,
    "via": read_via,
    "csv": _read_own,
    "json": _read_own,
}
