"""``bestie-pl fit | validate | test | predict``: LightningCLI with our defaults."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # public, but not said as mypy expects it
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden

from bestie_pl.callbacks.checkpoints import NewestState, WholeFileIO
from bestie_pl.callbacks.cues import CueWriter
from bestie_pl.callbacks.finite import StopAtNonFinite
from bestie_pl.callbacks.interruption import Interruption, end_with_parent
from bestie_pl.callbacks.monitoring import TrainingMonitor
from bestie_pl.callbacks.pictures import PictureWriter
from bestie_pl.callbacks.predictions import PredictionWriter
from bestie_pl.callbacks.resume import ResumableWriter
from bestie_pl.callbacks.run_folder import RunFolder, run_folder
from bestie_pl.callbacks.scores import ScoreWriter, environment
from bestie_pl.callbacks.screen import Screen
from bestie_pl.callbacks.semantic_maps import SemanticMapWriter
from bestie_pl.cli.messages import in_a_sentence

# imported so that the command line and configurations find them by their short names
from bestie_pl.data.coco import COCODataModule
from bestie_pl.data.files import write_text
from bestie_pl.data.folder import FolderDataModule
from bestie_pl.data.shapes import ShapesDataModule
from bestie_pl.data.voc import VOCDataModule
from bestie_pl.errors import UserError
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.grown_maps import GrownMaps
from bestie_pl.modules.imported_maps import ImportedMaps
from bestie_pl.modules.layer_sync import SyncBatchNorm
from bestie_pl.modules.mask_rcnn import MaskRCNNModule
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.run_folders import CHECKPOINTS, LAST, LOGS, claim_run, find_checkpoint, run_number, sweep
from bestie_pl.modules.semantic import SemanticModule
from bestie_pl.modules.weights import check_checkpoint, provide_weights

__all__ = [
    "BestieCLI",
    "BestieModule",
    "COCODataModule",
    "CueWriter",
    "FolderDataModule",
    "GrownMaps",
    "ImportedMaps",
    "NewestState",
    "MaskRCNNModule",
    "PeakAttentionModule",
    "PictureWriter",
    "PredictionWriter",
    "ScoreWriter",
    "SemanticMapWriter",
    "SemanticModule",
    "TrainingMonitor",
    "ShapesDataModule",
    "VOCDataModule",
    "data_parser",
    "read_data_module",
    "run",
]

SHARED = {
    **{name: name for name in ("num_classes", "class_names", "supervision", "recipe", "object_scale")},
    "min_area": "geometry.min_area",
}
"""What data and model must agree on. The data owns it; a module of one's own defines these attributes too."""

KNOWN_CLASSES = [
    *(name for name in __all__ if name[0].isupper() and name != "BestieCLI"),
    *(*pl.callbacks.__all__, *pl.loggers.__all__),
]
"""What a configuration may name without the module that holds it."""

SEED = 3407
FOLDER_VARIABLE = "BESTIE_RUN_FOLDER"
"""How a run's folder reaches the processes that Lightning starts for the other ranks."""

FIRST_VARIABLE = "BESTIE_FIRST_PROCESS"
"""How they know which process started them."""

PRECISIONS = {"bf16-true": "bf16-mixed", "16-true": "16-mixed", "64-true": "32-true", "64": "32-true"}
"""What a precision is refused for, and what to use instead."""

OTHER_KEYS = (
    "trainer",
    "model",
    "optimizer",
    "lr_scheduler",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
    "accept_class_names",
)
"""What else than data and seed stands in a configuration of ``fit | validate | test | predict``."""


class BestieParser(LightningArgumentParser):
    """The same parser; its errors are one sentence that names the setting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one message and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        command = getattr(ex, "subcommand_parser", None) or self
        said = in_a_sentence(message, [action.dest for action in command._actions], KNOWN_CLASSES)
        sys.stderr.write(f"bestie-pl: error: {said}\nOptions: {command.prog.replace(' [options]', '')} --help\n")
        self.exit(2)


class BestieCLI(LightningCLI):
    """LightningCLI whose model takes what it shares with the data from the data, and whose runs do not mix."""

    run: RunFolder | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the shared settings."""
        for ours, theirs in SHARED.items():
            parser.link_arguments(f"data.{ours}", f"model.init_args.{theirs}", apply_on="instantiate")

        parser.add_argument(
            "--accept_class_names",
            type=bool,
            default=False,
            help="Take a checkpoint whose classes have other names than the data's, by their numbers",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint's hyper-parameters must not undo what the user asks for now."""

    def before_instantiate_classes(self) -> None:
        """Give this run a folder of its own, which loggers use that would else share one."""
        config = self._get(self.config, "trainer", default={})
        root = Path(config.get("default_root_dir") or "runs")
        folder = None if config.get("fast_dev_run") else _own_folder(root)
        self.run = None if folder is None else RunFolder(root, folder)
        if self.run is not None:
            for logger in _as_list(config.get("logger")):
                _into(self.run, logger)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The configured trainer, with everything that a run writes in one folder, ``ROOT/logs/version_N``.

        ``ROOT`` is ``trainer.default_root_dir``, where ``checkpoints/last.ckpt``, scores, reports and pictures lead to
        those of the newest run, and where ``predict`` writes. Without a configured logger there is a CSVLogger.
        """
        config = self._get(self.config_init, "trainer", default={})
        if (precision := str(config.get("precision"))) in PRECISIONS:
            raise ValueError(
                f"trainer.precision {precision} keeps weights and offsets in it, and offsets need float32; use "
                f"{PRECISIONS[precision]}"
            )
        root = Path(config.get("default_root_dir") or "runs")
        kwargs["default_root_dir"] = str(root)
        callbacks: list[pl.Callback] = _as_list(config.get("callbacks"))
        plugins = _as_list(config.get("plugins"))
        if self.run is not None:
            callbacks.insert(0, self.run)
            if config.get("logger") in (None, True):
                kwargs["logger"] = CSVLogger(root, name=LOGS, version=run_number(self.run.folder))
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False  # one line of Screen says it
        if config.get("enable_progress_bar") is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False  # a file would hold every state of it
        if config.get("enable_checkpointing") is not False:
            _add_default(callbacks, NewestState())
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None and self.run is not None:
                callback.dirpath = str(self.run.folder / CHECKPOINTS)
        for default in (
            *(Interruption(), StopAtNonFinite(), TrainingMonitor(), ScoreWriter(), PictureWriter()),
            *(PredictionWriter(), SemanticMapWriter(), CueWriter(), Screen()),
        ):
            _add_default(callbacks, default)
        if config.get("fast_dev_run"):  # what it would write could pass for a real run's
            writers = (ScoreWriter, PictureWriter, ResumableWriter)
            callbacks = [callback for callback in callbacks if not isinstance(callback, writers)]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeFileIO())
        if config.get("sync_batchnorm"):
            kwargs["sync_batchnorm"] = False
            plugins.append(SyncBatchNorm())
        try:
            return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise UserError(_of_trainer(error, config)) from error

    def before_fit(self) -> None:
        """Go on from a checkpoint that is there and fits, or not at all."""
        if not is_overridden("training_step", self.model):
            raise UserError(f"{type(self.model).__name__} has nothing to train: use `bestie-pl predict`")
        self._find_weights("fit")

    def before_validate(self) -> None:
        """Evaluate weights that come from somewhere."""
        self._find_weights("validate")

    def before_test(self) -> None:
        """See ``before_validate``."""
        self._find_weights("test")

    def before_predict(self) -> None:
        """The same; and writers take the predictions: to keep a whole data set's in memory as well helps nobody."""
        self.config_init["predict"]["return_predictions"] = False
        self._find_weights("predict")

    def _find_weights(self, verb: str) -> None:
        settings = self.config_init[verb]
        self.model.accept_class_names = bool(settings.get("accept_class_names"))
        given = settings.get("ckpt_path")
        if given is None:
            if verb != "fit":
                self.model.weights_from = provide_weights(self.model)  # for the files that say so
            return
        root = Path(self.trainer.default_root_dir)
        path = find_checkpoint(root / CHECKPOINTS / LAST if given == "last" else Path(given))
        if given == "last" and not path.is_file():
            raise FileNotFoundError(
                f"no complete checkpoint of a run in {root}: --ckpt_path last goes on from the newest one; "
                + ("leave it out to train from the start" if verb == "fit" else "train first, or give the file")
            )
        if "://" not in str(given):
            check_checkpoint(path, self.model, to_train=verb == "fit")
            settings["ckpt_path"] = str(path)


class ConfigWriter(SaveConfigCallback):
    """Write the whole configuration to the run's folder, and give it to every logger, with seed and versions."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The first process writes, after all know the folder."""
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        written = self.parser.dump(self.config, skip_none=False)
        write_text(run_folder(trainer) / self.config_filename, written)
        content = {
            **yaml.safe_load(written),
            "command": str(getattr(stage, "value", stage)),
            "environment": environment(),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(content)


def _own_folder(root: Path) -> Path:
    """The folder of this run, which its first process makes; the others learn of it, from their starter or later."""
    if not _is_first():
        return Path(os.environ.get(FOLDER_VARIABLE, root))
    sweep(root / CHECKPOINTS)
    try:
        folder = claim_run(root)
    except OSError as error:
        raise UserError(
            f"{root}: the folder of a run cannot be made in it ({error.strerror}); give another "
            "trainer.default_root_dir"
        ) from error
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


def _is_first() -> bool:
    """Whether this is the first process of a run, as the environment says."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _of_trainer(error: Exception, config: Any) -> str:
    """What Lightning's Trainer objects to, with the remedy where it names none."""
    accelerator = config.get("accelerator")
    if "backend found" in str(error) or "can not run on your system" in str(error):
        return (
            f"trainer.accelerator {accelerator}: torch finds no such device on this machine; use trainer.accelerator "
            "auto or cpu, or install the driver and the torch that go with the device"
        )
    return f"trainer: {error}"


def _into(run: RunFolder, logger: Any) -> None:
    """Let a configured logger write into the run's folder, unless its settings name another place."""
    settings = logger.get("init_args") if hasattr(logger, "get") else None
    if settings is None:
        return
    kind = str(logger.get("class_path")).rpartition(".")[2]
    if kind == "WandbLogger" and settings.get("save_dir") in (None, "."):
        settings["save_dir"] = str(run.folder)
    elif kind in ("CSVLogger", "TensorBoardLogger") and settings.get("version") is None:
        settings["version"] = run_number(run.folder)
        if Path(settings.get("save_dir") or "") == run.root and settings.get("name") == "lightning_logs":
            settings["name"] = LOGS


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _add_default(callbacks: list[pl.Callback], default: pl.Callback) -> None:
    """Append a callback unless the configuration has one of its class."""
    if not any(isinstance(callback, type(default)) for callback in callbacks):
        callbacks.append(default)


NOT_WORTH_SAYING = re.compile(
    r"💡 Tip|(GPU|TPU|HPU) available: False|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES|Seed set to|Restoring states from"
)
"""Of Lightning's messages: advertisements, devices that are absent, and what the run's configuration says anyway."""


def _worth_saying(record: logging.LogRecord) -> bool:
    return NOT_WORTH_SAYING.search(record.getMessage()) is None


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as users need it; Python's own form shows the file and line that gave it."""
    return f"bestie-pl: warning: {message}\n"


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
    # scores are exchanged by the metrics themselves
    warnings.filterwarnings("ignore", message=r".*self\.log\('(val|test).*sync_dist=True.*")
    warnings.formatwarning = _one_line
    for package in ("pytorch_lightning", "lightning_fabric"):
        for module in ("rank_zero", "seed"):
            logging.getLogger(f"{package}.utilities.{module}").addFilter(_worth_saying)
    torch.set_float32_matmul_precision("high")
    if _is_first():
        os.environ.pop(FOLDER_VARIABLE, None)
        os.environ[FIRST_VARIABLE] = str(os.getpid())
    else:  # started by the first one, or by another program
        first = os.environ.get(FIRST_VARIABLE)
        end_with_parent(None if first is None else int(first))
    try:
        _run(args)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"a process that reads images died, perhaps for want of memory ({str(error).splitlines()[0]}); use fewer "
            "data.num_workers"
        ) from error
    finally:
        claimed = os.environ.get(FOLDER_VARIABLE)
        if claimed is not None and _is_first():
            with suppress(OSError):  # it is not empty: a run that has begun
                Path(claimed).rmdir()


def _run(args: list[str] | None) -> None:
    BestieCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=BestieParser,
        parser_kwargs={"prog": "bestie-pl"},
        seed_everything_default=SEED,
        save_config_callback=ConfigWriter,
        # every image is evaluated once: the data modules bring their own samplers
        trainer_defaults={"use_distributed_sampler": False},
        load_from_checkpoint_support=False,
        args=args,
    )
