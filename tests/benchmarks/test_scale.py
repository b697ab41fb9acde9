"""The made-up large data sets are data sets: what is measured on them is real reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from benchmarks.scale import KINDS, MANY_CLASSES, SHARING, Kind, private_growth, write_coco
from bestie_pl.data.files import Packed
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.data.samples import Split


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_made_up_data_sets_open(tmp_path: Path, kind: Kind) -> None:
    kind.write(tmp_path / "set", 40)
    data = kind.open(str(tmp_path / "set"))
    split = data.open_split("train")
    assert len(split) == len(split.names) == len(split.images) == 40
    assert split.tags is not None and split.tags.any(1).float().mean() > 0.9
    if split.points is not None:
        assert data.num_classes <= MANY_CLASSES
        points = [split.points(index, (640, 640)) for index in range(40)]
        for index, own in enumerate(points):
            assert (own is None) == (index % 2 == 0)
            assert own is None or split.tags[index][own.classes].all()
        assert sum(len(own) for own in points if own is not None) > 40
    if split.truth is not None:
        assert isinstance(split.truth, COCOTruth)
        assert sum(len(split.truth(index, (480, 640)).instances) for index in range(40)) == 40 * 860_001 // 118_287


def test_pycocotools_reads_the_made_up_annotations(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", 30)
    coco = COCO(str(tmp_path / "set" / "annotations" / "instances_train2017.json"))
    assert len(coco.imgs) == 30 and len(coco.cats) == 80
    assert coco.annToMask(next(a for a in coco.anns.values() if a["iscrowd"])).any()


@pytest.mark.skipif(not SHARING.exists(), reason="the system does not tell what memory is shared")
def test_workers_share_names_and_tags_and_would_copy_lists() -> None:
    names = [f"train_{n % 16:x}/{n:016x}" for n in range(80_000)]
    tags = torch.zeros(len(names), 20, dtype=torch.bool)
    assert private_growth(Split(Packed(names), Packed(names), tags)) < 1
    assert private_growth(Split(names, names, tags)) > 4  # type: ignore[arg-type]
