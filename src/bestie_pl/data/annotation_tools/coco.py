"""Points of COCO annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bestie_pl.data.annotation_tools.geometry import (
    Spot,
    box_center,
    coded_area,
    nearest_to_centroid,
    numbers,
    polygon_area,
)
from bestie_pl.data.annotation_tools.marked import Marked, MarkedImage, Object, field_of, label_of, size_of
from bestie_pl.data.files import is_set, read_json
from bestie_pl.data.formats.points import relative_file
from bestie_pl.errors import UserError


def read_coco(path: Path) -> Marked:
    """A COCO annotation file. Classes are numbered by ascending category id, as ``COCODataModule`` does.

    The object's point is its keypoint, if the annotation has exactly one that is labelled; else a pixel of its
    segmentation, else the centre of its box. Annotations with ``iscrowd`` give a tag only.
    """
    content = read_json(path, "a COCO annotation file")
    if not isinstance(content, dict) or not content.get("images") or not content.get("categories"):
        raise UserError(f"{path}: expected a COCO annotation file with `images`, `annotations` and `categories`")
    names = {
        field_of(c, "id", f"{path}: categories"): label_of(c.get("name", c["id"]), f"{path}: categories")
        for c in content["categories"]
    }
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: categories: two have the same name; rename one")
    images: dict[int, MarkedImage] = {}
    for entry in content["images"]:
        where = f"{path}: image {entry.get('file_name', entry.get('id'))!r}"
        size = size_of(entry, "height", "width", where)
        number = field_of(entry, "id", where)
        if number in images:
            raise UserError(f"{where}: id: {number} is another image's; ids must be unique")
        images[number] = MarkedImage(relative_file(str(field_of(entry, "file_name", where))), size, where)
    for annotation in content.get("annotations", ()):
        where = f"annotation {annotation.get('id')}"
        image, name = images.get(annotation.get("image_id", -1)), names.get(annotation.get("category_id", -1))
        if image is None or name is None:
            raise UserError(
                f"{path}: {where}: image_id {annotation.get('image_id')}, category_id {annotation.get('category_id')}; "
                "expected those of an image and a category of the file"
            )
        if is_set(annotation.get("iscrowd"), f"{path}: {where}: iscrowd"):
            image.tags.add(name)
        else:
            where = f"{image.where}, {where}"
            image.objects.append(Object(name, _coco_spot(annotation, image.size, where), where))
    if content.get("annotations") and not any(image.objects for image in images.values()):
        count = len(content["annotations"])
        raise UserError(
            f"{path}: annotations: all {count} have iscrowd 1, and a crowd is no object; set it to 0 for single objects"
        )
    return Marked(list(images.values()), tuple(names[number] for number in sorted(names)))


def _coco_spot(annotation: dict[str, Any], size: tuple[int, int] | None, where: str) -> Spot:
    keypoints = annotation.get("keypoints") or []
    keypoints = numbers(keypoints, len(keypoints) // 3 * 3, f"{where}: keypoints")
    labelled = [keypoints[k : k + 2] for k in range(0, len(keypoints), 3) if keypoints[k + 2] > 0]
    if len(labelled) == 1:
        return labelled[0][0], labelled[0][1]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        if size is None or segmentation.get("size") != list(size):
            raise UserError(f"{where}: segmentation: of size {segmentation.get('size')!r:.50}; the image's is {size}")
        return nearest_to_centroid(coded_area(segmentation.get("counts"), size, f"{where}: segmentation"))
    if segmentation:
        return nearest_to_centroid(polygon_area(segmentation, size, f"{where}: segmentation"))
    box = annotation.get("bbox")
    if not box:
        raise UserError(f"{where}: neither one labelled keypoint nor a segmentation nor a bbox [x, y, width, height]")
    x, y, width, height = numbers(box, 4, f"{where}: bbox")
    return box_center(x, y, width, height, size, f"{where}: bbox")
