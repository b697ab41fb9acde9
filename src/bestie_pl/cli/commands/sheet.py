"""``bestie-pl sheet``: activation maps and cues of several classifiers side by side, as in figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bestie_pl.cli.lightning import BestieParser, data_parser, read_data_module
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.samples import STRIDE, collate
from bestie_pl.drawing import CELL, Picture, draw_cues, heat, sheet, to_picture, write_picture
from bestie_pl.models.tensor_file import read_file
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.progress import progress
from bestie_pl.structures import Batch


def main(args: list[str]) -> int:
    """Draw the sheet that the command line asks for.

    Rows are images, columns are pairs of a checkpoint and an alpha. A column shows the activation map of one tagged
    class over the image, with its cues: large white crosses are those that training would use. Only images and tags are
    read. An alpha that is asked for takes the place of the checkpoint's own in the forward pass only, which is quick to
    compare but not the method: the paper trains with the alpha that it uses.

    Raises:
        FileNotFoundError: No such checkpoint, or no data.
        ValueError: No classifier's checkpoint, one of another number of classes, or a number out of its range.
    """
    data, options = read_data_module(_parser(), args)
    labels, alphas, output = options.labels, options.alphas, Path(options.output)
    if not isinstance(data, InstanceDataModule):
        raise ValueError(f"data must be an InstanceDataModule, whose splits state tags; got {type(data).__name__}")
    if options.images < 1:
        raise ValueError(f"--images must be at least 1, got {options.images}")
    if any(not 0 <= alpha <= 1 for alpha in alphas or ()):
        raise ValueError(f"--alphas must be in [0, 1], got {' '.join(f'{alpha:g}' for alpha in alphas)}")
    if labels is not None and len(labels) != len(options.checkpoints):
        raise ValueError(f"{len(labels)} --labels for {len(options.checkpoints)} --checkpoints; give one a checkpoint")
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must be the path of a .png file, got {output}")

    # whatever the configuration is for: images and tags only, no mask is opened
    data.semantic_source, data.label_quality = "none", False
    threshold = data.cue_threshold if options.cue_threshold is None else options.cue_threshold
    columns = list(_columns(options.checkpoints, labels, alphas, data.num_classes))
    data.prepare_data()
    split = data.open_split(options.split)
    if split.tags is None:
        raise ValueError(f"the images of the split {options.split} have no tags; choose a split with tags")
    samples = data.evaluation_samples(split)

    rows, captions = [], []
    for index, number in progress(choose(split.tags, options.images), "sheet"):
        tags = split.tags[index].nonzero().flatten().tolist()
        batch = data.on_after_batch_transfer(collate([samples[index]], multiple=STRIDE), 0)
        batch = replace(batch, tags=torch.arange(data.num_classes)[None] == number)
        image = _fitted(batch)
        rows.append([image, *(_draw(image, column, batch, threshold) for column in columns)])
        captions.append(
            f"{batch.names[0]}: {', '.join(data.class_names[tag] for tag in tags)}"
            + (f" (map of {data.class_names[number]})" if len(tags) > 1 else "")
        )
    titles = ["image", *(column.title for column in columns)]
    write_picture(output, sheet(rows, titles, captions=captions))
    print(f"{output}: {len(rows)} images of {options.split}, {len(columns)} columns")
    return 0


def choose(tags: Tensor, count: int) -> list[tuple[int, int]]:
    """Images evenly spaced over those that have a tag, each with the tag that was chosen least often before it.

    Args:
        tags: (N, C) bool.
        count: Number of images; fewer are returned if fewer have a tag.

    Returns:
        Pairs of an image and a class.

    Raises:
        ValueError: No image has a tag.

    >>> choose(torch.tensor([[1, 0], [0, 0], [1, 1], [1, 1]]).bool(), 3)
    [(0, 0), (2, 1), (3, 0)]
    """
    tagged = tags.any(1).nonzero().flatten().tolist()
    if not tagged:
        raise ValueError("no image of the split has a tag, and maps are drawn of tagged classes; choose another split")
    count = min(count, len(tagged))
    shown = [0] * tags.shape[1]
    pairs = []
    for place in range(count):
        image = tagged[(2 * place + 1) * len(tagged) // (2 * count)]
        number = min(tags[image].nonzero().flatten().tolist(), key=lambda c: shown[c])
        shown[number] += 1
        pairs.append((image, number))
    return pairs


@dataclass(frozen=True)
class _Column:
    title: str
    classifier: PeakAttentionModule
    alpha: float


def _columns(
    checkpoints: Sequence[str], labels: Sequence[str] | None, alphas: Sequence[float] | None, num_classes: int
) -> Iterable[_Column]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for number, path in enumerate(checkpoints):
        classifier = _load(Path(path), num_classes).to(device).eval()
        trained = classifier.alpha
        label = labels[number] if labels is not None else str(classifier.hparams["pooling"])
        for alpha in (trained,) if alphas is None else alphas:
            note = "" if alpha == trained else f" (trained: {trained:g})"
            yield _Column(f"{label}\nalpha {alpha:g}{note}", classifier, alpha)


def _load(path: Path, num_classes: int) -> PeakAttentionModule:
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; --checkpoints takes those of a PeakAttentionModule")
    content = read_file(path)
    settings = content.get("hyper_parameters", {}) if isinstance(content, Mapping) else {}
    if not set(PeakAttentionModule.network_settings) <= set(settings):
        raise ValueError(f"{path} is no classifier's; --checkpoints takes those of a PeakAttentionModule")
    if settings["num_classes"] != num_classes:
        raise ValueError(
            f"{path} was trained with {settings['num_classes']} classes and the data has {num_classes}; "
            "use the data set that it was trained on"
        )
    return PeakAttentionModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def _fitted(batch: Batch) -> Picture:
    """The only image of a batch in its file's proportions, as large as a cell of the sheet."""
    (height, width), original = batch.sizes[0], batch.original_sizes[0]
    scale = CELL / max(original)
    size = [max(1, round(side * scale)) for side in original]
    image = batch.images[:, :, :height, :width]
    return to_picture(F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)[0])


def _draw(image: Picture, column: _Column, batch: Batch, threshold: float) -> Picture:
    """The map and the cues of the only tagged class of the only image of a batch."""
    classifier, size = column.classifier, (image.shape[0], image.shape[1])
    classifier.model.alpha = column.alpha
    batch = batch.to(classifier.device)
    (cues,), (maps,) = classifier.predict_step(batch, 0)
    values = F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    ratio = torch.tensor(size) / torch.tensor(batch.original_sizes[0])
    return draw_cues(heat(image, values), (cues.yx.cpu() + 0.5) * ratio - 0.5, cues.scores.cpu() > threshold)


def _parser() -> BestieParser:
    parser = data_parser("sheet", "Draw activation maps and cues of classifiers side by side; images and tags suffice.")
    add = parser.add_argument
    add("--checkpoints", type=str, nargs="+", required=True, help="Of trained classifiers")
    add("--labels", type=str, nargs="+", help="One a checkpoint, for the headings; its pooling if omitted")
    add("--alphas", type=float, nargs="+", help="A column each, at inference in place of the trained alpha")
    add("--images", type=int, default=8, help="How many, evenly spaced over the split")
    add("--split", type=Literal["train", "val", "test", "predict"], default="train", help="Whose images")
    add("--cue_threshold", type=float, help="Cues above it are drawn large; the data's cue_threshold if omitted")
    add("--output", type=str, default="sheet.png", help="The picture, PNG")
    return parser
