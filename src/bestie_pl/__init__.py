"""Weakly-supervised instance segmentation from image tags or one point per object.

The public names below are imported when they are first used, so ``import bestie_pl`` costs milliseconds and no torch.
Docstrings cite the paper by section and equation, and the authors' release by the rules of docs/release-rules.md:
"release 4.7" is rule 4.7 there.

>>> import bestie_pl
>>> bestie_pl.Geometry(sigma=3.0).sigma
3.0
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in _HOME, for type checkers and editors
    from bestie_pl.callbacks.cues import CueWriter as CueWriter
    from bestie_pl.callbacks.monitoring import TrainingMonitor as TrainingMonitor
    from bestie_pl.callbacks.semantic_maps import SemanticMapWriter as SemanticMapWriter
    from bestie_pl.data.coco import COCODataModule as COCODataModule
    from bestie_pl.data.folder import FolderDataModule as FolderDataModule
    from bestie_pl.data.module import InstanceDataModule as InstanceDataModule
    from bestie_pl.data.shapes import ShapesDataModule as ShapesDataModule
    from bestie_pl.data.voc import VOCDataModule as VOCDataModule
    from bestie_pl.metrics.coco import COCOInstanceAP as COCOInstanceAP
    from bestie_pl.metrics.cues import CueQuality as CueQuality
    from bestie_pl.metrics.labels import LabelQuality as LabelQuality
    from bestie_pl.metrics.semantic import SemanticIoU as SemanticIoU
    from bestie_pl.metrics.voc import VOCInstanceAP as VOCInstanceAP
    from bestie_pl.models.bestie import BestieModel as BestieModel
    from bestie_pl.models.mask_rcnn import MaskRCNNModel as MaskRCNNModel
    from bestie_pl.models.peak_attention import PeakAttentionModel as PeakAttentionModel
    from bestie_pl.modules.bestie import BestieModule as BestieModule
    from bestie_pl.modules.grown_maps import GrownMaps as GrownMaps
    from bestie_pl.modules.imported_maps import ImportedMaps as ImportedMaps
    from bestie_pl.modules.mask_rcnn import MaskRCNNModule as MaskRCNNModule
    from bestie_pl.modules.peak_attention import PeakAttentionModule as PeakAttentionModule
    from bestie_pl.modules.semantic import SemanticModule as SemanticModule
    from bestie_pl.prediction.result import Result as Result
    from bestie_pl.predictor import BestiePredictor as BestiePredictor
    from bestie_pl.structures import Batch as Batch
    from bestie_pl.structures import Cues as Cues
    from bestie_pl.structures import Geometry as Geometry
    from bestie_pl.structures import InstanceMaps as InstanceMaps
    from bestie_pl.structures import Instances as Instances
    from bestie_pl.structures import LabeledInstances as LabeledInstances

__version__ = "0.1.0"

_HOME = {
    "Batch": "structures",
    "BestieModel": "models.bestie",
    "BestieModule": "modules.bestie",
    "BestiePredictor": "predictor",
    "COCODataModule": "data.coco",
    "COCOInstanceAP": "metrics.coco",
    "CueQuality": "metrics.cues",
    "CueWriter": "callbacks.cues",
    "Cues": "structures",
    "FolderDataModule": "data.folder",
    "Geometry": "structures",
    "GrownMaps": "modules.grown_maps",
    "ImportedMaps": "modules.imported_maps",
    "InstanceDataModule": "data.module",
    "InstanceMaps": "structures",
    "Instances": "structures",
    "LabelQuality": "metrics.labels",
    "LabeledInstances": "structures",
    "MaskRCNNModel": "models.mask_rcnn",
    "MaskRCNNModule": "modules.mask_rcnn",
    "PeakAttentionModel": "models.peak_attention",
    "PeakAttentionModule": "modules.peak_attention",
    "Result": "prediction.result",
    "SemanticIoU": "metrics.semantic",
    "SemanticMapWriter": "callbacks.semantic_maps",
    "SemanticModule": "modules.semantic",
    "ShapesDataModule": "data.shapes",
    "TrainingMonitor": "callbacks.monitoring",
    "VOCDataModule": "data.voc",
    "VOCInstanceAP": "metrics.voc",
}
"""Module that each public name comes from."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
