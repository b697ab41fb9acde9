"""Scores of instances, semantic maps and training labels, each with one reduction over the processes."""

from bestie_pl.metrics.coco import COCOInstanceAP
from bestie_pl.metrics.labels import LabelQuality
from bestie_pl.metrics.semantic import SemanticIoU
from bestie_pl.metrics.voc import VOCInstanceAP

__all__ = ["COCOInstanceAP", "LabelQuality", "SemanticIoU", "VOCInstanceAP"]
