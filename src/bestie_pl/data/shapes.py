"""The data set that the library makes itself: generated scenes, read like any other data set in VOC layout."""

from __future__ import annotations

from typing import Any

from bestie_pl.data.generator.dataset import SHAPE_CLASSES, generate_shapes
from bestie_pl.data.voc import VOCDataModule


class ShapesDataModule(VOCDataModule):
    """Generated scenes of five classes; see ``generate_shapes`` for what is in them.

    The first run writes the data set to ``root``; later runs with the same numbers read it.

    Args:
        root: Folder of the data set; made if it is absent.
        train_images: Number of training images.
        val_images: Number of validation images.
        test_images: Number of test images.
        image_size: Side of the images in pixels.
        generator_seed: Of the scenes; independent of the training's seed.
        clutter: Strength of textures and number of things that belong to no class, in [0, 1].
        **kwargs: See ``VOCDataModule`` and ``InstanceDataModule``.
    """

    def __init__(
        self,
        root: str = "data/shapes",
        *,
        train_images: int = 1000,
        val_images: int = 100,
        test_images: int = 200,
        image_size: int = 128,
        generator_seed: int = 0,
        clutter: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root, train_split="train", val_split="val", test_split="test", class_names=SHAPE_CLASSES, **kwargs
        )
        self.generator: dict[str, Any] = {
            "train": train_images,
            "val": val_images,
            "test": test_images,
            "size": image_size,
            "seed": generator_seed,
            "clutter": clutter,
        }

    def prepare_data(self) -> None:
        """Write the data set unless it is there; one process does it."""
        generate_shapes(self.root, **self.generator)
