"""What ``bestie-pl fit | validate | test | predict --help`` show: the options that people use, by what they are about.

Lightning's own help takes seconds of imports and fills twelve screens, in the order of its sources; ``--help all`` is
that one. Each option here is compared with what the command takes by a test.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

DATA_MODULES = ("COCODataModule", "FolderDataModule", "ShapesDataModule", "VOCDataModule")
MODULES = (
    "BestieModule",
    "GrownMaps",
    "ImportedMaps",
    "MaskRCNNModule",
    "PeakAttentionModule",
    "SemanticModule",
)

Options = tuple[tuple[str, str], ...]

CONFIGURATION: Options = (
    ("--config FILE", "YAML with everything below; of several the later ones win, and options after it win over it"),
    ("--print_config", "show every setting with its value, and stop"),
    ("--seed_everything N", "seed of all random draws (3407)"),
)
DATA: Options = (
    ("--data CLASS", "kind of data set: " + ", ".join(DATA_MODULES)),
    ("--data.help CLASS", "list all options of one, as in `bestie-pl {verb} --data.help FolderDataModule`"),
    ("--data.init_args.root FOLDER", "where the data set is"),
    ("--data.init_args.num_workers N", "processes that read images (2); 0 reads in the main one"),
)
TRAINING_DATA: Options = (
    ("--data.init_args.supervision KIND", "what is learnt from: tags, points or full"),
    ("--data.init_args.batch_size N", "images a step and device (8)"),
    ("--data.init_args.crop_size PIXELS", "side of the training crops (416)"),
    ("--data.init_args.object_scale X", "size of the objects relative to VOC's, of 50 to 400 px"),
    ("--data.init_args.image_scale X", "enlarge images first, where objects are small"),
)
EVALUATED_DATA: Options = (("--data.init_args.eval_batch_size N", "images at a time and device (4)"),)
PREDICTED_DATA: Options = (("--data.init_args.predict_images FOLDER", "other images than the data set's own choice"),)
NETWORK: Options = (
    ("--model CLASS", "what is trained or used: " + ", ".join(MODULES)),
    ("--model.help CLASS", "list all options of one, as in `bestie-pl {verb} --model.help BestieModule`"),
)
TRAINED_NETWORK: Options = (
    ("--model.init_args.backbone NAME", "a network of timm"),
    ("--model.init_args.init_from FILE", "checkpoint of a training whose weights to start from"),
    ("--model.init_args.optimization.lr X", "highest learning rate"),
)
INFERENCE: Options = (
    ("--model.init_args.inference.threshold X", "least centre score of an instance (0.1)"),
    ("--model.init_args.inference.mirror BOOL", "average over mirrored images: better, and half as fast"),
    ("--model.init_args.inference.scales LIST", "average over sizes of the image, as '[0.75, 1.0, 1.25]'"),
)
LENGTH: Options = (
    ("--trainer.max_steps N", "steps of the training"),
    ("--trainer.max_time DD:HH:MM:SS", "stop after this time"),
    ("--trainer.check_val_every_n_epoch N", "how often to validate"),
    ("--trainer.limit_val_batches N", "validate on so many batches; 0 for not at all"),
    ("--trainer.fast_dev_run true", "one step of everything, to see that it runs; nothing is written"),
)
MACHINE: Options = (
    ("--trainer.accelerator NAME", "cpu, gpu or auto (auto)"),
    ("--trainer.devices N", "processes or GPUs of this machine; --trainer.num_nodes N machines"),
    ("--trainer.precision NAME", "32-true, bf16-mixed or 16-mixed"),
)
OUTPUT: Options = (
    ("--trainer.default_root_dir FOLDER", "where all runs of this kind write (runs)"),
    ("--trainer.logger CLASS", "CSVLogger, WandbLogger or TensorBoardLogger (CSVLogger)"),
    ("--trainer.enable_progress_bar BOOL", "show a progress bar (true)"),
)
CHECKPOINT: Options = (
    ("--ckpt_path FILE", "{weights}: a file, or last for the newest in trainer.default_root_dir"),
    ("--accept_class_names BOOL", "take a checkpoint whose classes have other names, by their numbers"),
)

GROUPS: dict[str, tuple[tuple[str, Options], ...]] = {
    "fit": (
        ("configuration", CONFIGURATION),
        ("data", DATA + TRAINING_DATA),
        ("network and optimiser", NETWORK + TRAINED_NETWORK),
        ("length", LENGTH),
        ("machine", MACHINE),
        ("output", OUTPUT),
        ("going on", CHECKPOINT),
    ),
    **{
        verb: (
            ("configuration", CONFIGURATION),
            ("data", DATA + own),
            ("network and prediction", NETWORK + INFERENCE),
            ("weights", CHECKPOINT),
            ("machine", MACHINE),
            ("output", OUTPUT),
        )
        for verb, own in (
            ("validate", EVALUATED_DATA),
            ("test", EVALUATED_DATA),
            ("predict", PREDICTED_DATA + EVALUATED_DATA),
        )
    },
}
"""Title and options of each group, a verb."""

COLUMN, WIDTH = 42, 110
"""Where the explanations begin, and where they end."""


def brief_help(verb: str, purpose: str) -> str:
    """The text for a verb: usage, groups of options, and where the others are found."""
    return "\n".join(_lines(verb, purpose))


def _lines(verb: str, purpose: str) -> Iterator[str]:
    yield f"usage: bestie-pl {verb} --config FILE [options]"
    yield ""
    yield purpose[0].upper() + purpose[1:] + "."
    weights = "go on from this state" if verb == "fit" else "weights"
    for title, options in GROUPS[verb]:
        yield ""
        yield f"{title}:"
        for option, text in options:
            first, *others = textwrap.wrap(text.format(verb=verb, weights=weights), WIDTH - COLUMN)
            yield f"  {option:<{COLUMN - 2}}{first}"
            yield from (" " * COLUMN + line for line in others)
    yield ""
    yield f"Every option, Lightning's too (takes a moment): bestie-pl {verb} --help all"
