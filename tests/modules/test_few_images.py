"""More processes than evaluated images: every process joins wherever the others wait."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quick
import torch

from bestie_pl.data.files import Packed
from bestie_pl.data.module import Stage
from bestie_pl.data.samples import Split
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.mask_rcnn import MaskRCNNModule
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule


class OneImage(ShapesDataModule):
    """Evaluates a single image."""

    def open_split(self, stage: Stage) -> Split:
        split = super().open_split(stage)
        if stage == "train":
            return split
        tags = None if split.tags is None else split.tags[:1]
        return replace(split, names=Packed(split.names[:1]), images=Packed(split.images[:1]), tags=tags)


make_trainer = partial(quick.make_trainer, max_steps=1)


SMALL: dict[str, Any] = {"backbone": "mobilenetv3_small_100", "backbone_weights": None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [BestieModule, SemanticModule, PeakAttentionModule, MaskRCNNModule])
def test_more_processes_than_images(kind: Any, shapes_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifies = kind is PeakAttentionModule
    pointed = kind in (BestieModule, MaskRCNNModule)
    settings: dict[str, Any] = (
        {"width": 16} if kind in (PeakAttentionModule, MaskRCNNModule) else {"decoder": "pyramid"}
    )
    if kind is MaskRCNNModule:
        settings |= {"anchor_sizes": (16, 32, 48, 64, 96), "settings": {"min_size": 64, "rpn_post_nms_top_n_test": 20}}
    module = kind(5, **SMALL, **settings, **({"supervision": "points"} if pointed else {}))
    sizes = {"train_images": 16, "val_images": 5, "test_images": 5, "image_size": 64, "num_workers": 0}
    # the scenes have points and no cues, and the semantic module needs neither
    supervision = "points" if pointed else "tags"
    labels = {"supervision": supervision, "semantic_source": "none" if classifies else "folder"}
    data = OneImage(str(shapes_folder), **sizes, crop_size=64, batch_size=2, **labels)  # type: ignore[arg-type]
    (one,) = make_trainer(tmp_path, devices=1).test(module, data, verbose=False)
    (two,) = make_trainer(tmp_path, devices=2, strategy="ddp_fork").test(module, data, verbose=False)
    assert one == two and one
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp_fork")
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
