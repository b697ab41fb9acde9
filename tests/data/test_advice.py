"""What ``data check`` says of training sets that are legal and will disappoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bestie_pl.data.advice import TrainingFacts, advice

SOUND: dict[str, Any] = {
    "class_names": ("cat", "dog"),
    "tags": torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).bool(),
    "sizes": [(300, 400)] * 4,
    "areas": [15000.0] * 5,
    "supervision": "points",
    "classifies": False,
    "batch_size": 4,
    "crop_size": 288,
    "image_scale": 1.0,
    "object_scale": 1.0,
    "sigma": 6.0,
}


def kinds(**changes: Any) -> dict[str, str]:
    return {found.kind: found.message for found in advice(TrainingFacts(**(SOUND | changes)))}


def test_a_sound_set() -> None:
    assert kinds() == {} and kinds(supervision="tags") == {} and kinds(tags=torch.zeros(0, 2).bool()) == {}


@pytest.mark.parametrize(
    ("changes", "kind", "remedy"),
    [
        ({"supervision": "tags", "tags": torch.ones(4, 2).bool()}, "every image has every tag", "set points"),
        ({"supervision": "tags", "tags": torch.ones(4, 1).bool(), "class_names": ("cat",)}, "one class only", "points"),
        (
            {"supervision": "tags", "tags": torch.tensor([[1, 0], [1, 1]]).bool(), "batch_size": 2},
            "no negatives",
            "all 2 images have cat",
        ),
        (
            {
                "supervision": "tags",
                "classifies": True,
                "tags": torch.eye(2).bool().repeat_interleave(torch.tensor([9, 20]), 0),
            },
            "few images of a class",
            "cat 9: from tags alone",
        ),
        ({"batch_size": 5}, "fewer images than a batch", "set batch_size: 4"),
        ({"supervision": "tags", "crop_size": 128}, "crop smaller than the images", "set crop_size: 300"),
        ({"supervision": "tags", "image_scale": 2.0}, "crop smaller than the images", "image_scale: 0.96"),
        ({"class_names": ("cat", "Cat")}, "class names that look alike", "differ by case"),
        ({"class_names": ("traffic light", "trafficlight")}, "class names that look alike", "differ by blanks"),
        ({"class_names": ("hazelnut", "hazelnuts")}, "class names that look alike", "one letter"),
        ({"class_names": ("person", "parson")}, "class names that look alike", "one letter"),
        ({"object_scale": 0.2, "sigma": 20.0}, "object_scale far from the objects", "set object_scale: 0.98"),
        ({"object_scale": 4.0}, "object_scale far from the objects", "200 to 1600 px"),
        ({"sigma": 80.0}, "sigma far from the objects", "set sigma: 34.5"),
        ({"sigma": 1.0}, "sigma far from the objects", "between the cells of the maps; set sigma: 4.0"),
        ({"areas": [100.0], "object_scale": 0.1, "sigma": None}, "objects of few cells", "set image_scale: 3"),
    ],
)
def test_a_finding_and_its_remedy(changes: dict[str, Any], kind: str, remedy: str) -> None:
    found = kinds(**changes)
    assert list(found) == [kind] and remedy in found[kind]


def test_images_without_a_class_are_enough_for_one_class() -> None:
    assert kinds(supervision="tags", class_names=("cat",), tags=torch.tensor([[1], [0], [1], [1]]).bool()) == {}


@pytest.mark.parametrize("names", [("car", "cat"), ("class1", "class2"), ("dog", "fox"), ("sheep", "ship")])
def test_names_of_different_things(names: tuple[str, str]) -> None:
    assert kinds(class_names=names) == {}


def test_a_classifier_has_no_lengths() -> None:
    assert kinds(classifies=True, object_scale=9.0, areas=[10.0]) == {}


def test_advice_that_is_followed_is_not_repeated() -> None:
    """``image_scale`` and ``object_scale`` as advised leave nothing to say."""
    changes: dict[str, Any] = {"areas": [150.0], "sigma": None}
    first = kinds(**changes)
    assert "set image_scale: 2" in first["objects of few cells"]
    second = kinds(**changes, image_scale=2.0)
    (message,) = second.values()
    scale = float(message.rpartition(": ")[2])
    assert kinds(**changes, image_scale=2.0, object_scale=scale) == {}
