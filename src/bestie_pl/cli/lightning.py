"""``bestie-pl fit | validate | test | predict``: LightningCLI with our defaults."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # public, but not said as mypy expects it
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger

from bestie_pl.callbacks.cues import CueWriter
from bestie_pl.callbacks.pictures import PictureWriter
from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.scores import ScoreWriter
from bestie_pl.callbacks.semantic_maps import SemanticMapWriter

# imported so that the command line and configurations find them by their short names
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.grown_maps import GrownMaps
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.layer_sync import SyncBatchNorm
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.semantic import SemanticModule

__all__ = [
    "BestieCLI",
    "BestieModule",
    "COCODataModule",
    "CueWriter",
    "FolderDataModule",
    "GrownMaps",
    "ImportedMaps",
    "PeakAttentionModule",
    "PictureWriter",
    "PredictionWriter",
    "ScoreWriter",
    "SemanticMapWriter",
    "SemanticModule",
    "ShapesDataModule",
    "VOCDataModule",
    "data_parser",
    "read_data_module",
    "run",
]

SHARED = ("num_classes", "class_names", "supervision", "recipe", "object_scale", "min_area")
"""What data and model must agree on. The data owns it; a module of one's own defines these attributes too."""

SEED = 3407
OTHER_KEYS = (
    "trainer",
    "model",
    "optimizer",
    "lr_scheduler",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
)
"""What else than data and seed stands in a configuration of ``fit | validate | test | predict``."""


class BestieParser(LightningArgumentParser):
    """The same parser; its errors name the field, without usage and the halves of a Union that do not apply."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one message and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        kept = [line for line in message.splitlines() if not _NOISE.match(line)]
        command = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write("bestie-pl: error: " + "\n".join(kept) + f"\nOptions: {command.prog} --help\n")
        self.exit(2)


_NOISE = re.compile(
    r"\s*(Does not validate against any|Subtypes:|Errors:$|- Expected a <class 'NoneType'>|Given value)"
)


class BestieCLI(LightningCLI):
    """LightningCLI whose model takes what it shares with the data from the data, and that always keeps a checkpoint."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the shared settings."""
        for name in SHARED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint's hyper-parameters must not undo what the user asks for now."""

    def before_predict(self) -> None:
        """Writers take the predictions; keeping those of a whole data set in memory as well helps nobody."""
        self.config_init["predict"]["return_predictions"] = False

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The configured trainer, with everything that it writes in one folder, ``trainer.default_root_dir``.

        Without a configured logger the log goes to ``logs/version_N``; without a configured ModelCheckpoint the newest
        state goes to ``checkpoints`` after each epoch and when the run is interrupted, and ``last.ckpt`` links to it.
        """
        config = self._get(self.config_init, "trainer", default={})
        root = Path(config.get("default_root_dir") or "runs")
        kwargs["default_root_dir"] = str(root)
        if config.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(root, name="logs")
        callbacks: list[pl.Callback] = _as_list(config.get("callbacks"))
        if config.get("enable_checkpointing") is not False:
            _add_default(
                callbacks,
                ModelCheckpoint(
                    filename="{step}", save_last="link", save_on_train_epoch_end=True, save_on_exception=True
                ),
            )
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(root / "checkpoints")
        for writer in (ScoreWriter(), PictureWriter(), PredictionWriter(), SemanticMapWriter()):
            _add_default(callbacks, writer)
        if config.get("sync_batchnorm"):
            kwargs |= {"sync_batchnorm": False, "plugins": [*_as_list(config.get("plugins")), SyncBatchNorm()]}
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _add_default(callbacks: list[pl.Callback], default: pl.Callback) -> None:
    """Append a callback unless the configuration has one of its class."""
    if not any(isinstance(callback, type(default)) for callback in callbacks):
        callbacks.append(default)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Leave out Lightning's advertisements, and of an exception's report all but where the checkpoint went."""
    message = record.getMessage()
    if (saved := re.search(r"was raised with message: .*saved checkpoint to (.*)", message, re.DOTALL)) is not None:
        record.msg, record.args = f"saved checkpoint to {saved[1]}", ()
    return "💡 Tip" not in message


def data_parser(command: str, purpose: str) -> BestieParser:
    """A parser of the same configurations for a command that needs their data alone; it may take more options."""
    parser = BestieParser(prog=f"bestie-pl {command}", description=purpose)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Configuration of a training; its data is read")
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
    parser.add_argument("--seed_everything", type=bool | int, default=SEED, help=argparse.SUPPRESS)
    for name in OTHER_KEYS:
        # a plain dict is left alone; with Any, jsonargparse would make the objects that it describes
        parser.add_argument(f"--{name}", type=dict | str | bool | None, help=argparse.SUPPRESS)
    return parser


def read_data_module(parser: BestieParser, args: list[str]) -> tuple[pl.LightningDataModule, Any]:
    """The data module that the command line describes, and the values of all options; seeds as a training does."""
    options = parser.parse_args(args)
    if options.seed_everything is not False:
        seed = None if options.seed_everything is True else options.seed_everything
        pl.seed_everything(seed, workers=True, verbose=False)
    return parser.instantiate_classes(options).data, options


def run(args: list[str] | None = None) -> None:
    """Parse the command line (or ``args``) and do what it says."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*|.*args parameter is intended.*")
    warnings.filterwarnings("ignore", message=r".*smaller than the logging interval.*")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_worth_saying)
    torch.set_float32_matmul_precision("high")
    BestieCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=BestieParser,
        parser_kwargs={"prog": "bestie-pl"},
        seed_everything_default=SEED,
        # Weights & Biases, and no logger at all, have one folder for all runs
        save_config_kwargs={"overwrite": True},
        # every image is evaluated once: the data modules bring their own samplers
        trainer_defaults={"use_distributed_sampler": False},
        load_from_checkpoint_support=False,
        args=args,
    )
