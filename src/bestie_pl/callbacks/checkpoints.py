"""The newest state of a training, complete at any time, and how it is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import STEP_OUTPUT

from bestie_pl.callbacks.run_folder import root_of, run_folder
from bestie_pl.data.files import in_one_move
from bestie_pl.data.samplers import NETWORK, draw_seed
from bestie_pl.modules.run_folders import CHECKPOINTS, LAST, link_last, replace_link, sweep


class NewestState(ModelCheckpoint):
    """Keep the newest state of a training: ``step=N.ckpt`` in the run's ``checkpoints``, one file after each epoch.

    ``checkpoints/last.ckpt`` in the folder of all runs leads to it. A state is also kept when the training fails
    between two steps: an image that cannot be read, a worker that died. In the middle of a step there is no state to
    keep: statistics of batch normalisation have seen a batch that the weights have not. Values that are not finite are
    never written over a good state.

    A training that goes on from such a state equals one that was never stopped, to the last digit on a CPU, as long as
    data, seed, batch size and number of processes stay. What the network draws at random (dropout) follows from seed,
    process and number of the step, as the data module's augmentation does.

    Args:
        dirpath: Another folder; nothing links to it then.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath, filename="{step}", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self._own_folder = dirpath is None
        self._step = 0
        self._between_steps = False
        self._failed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the folder; all processes take the first one's."""
        if self._own_folder:
            self.dirpath = str(run_folder(trainer) / CHECKPOINTS)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed training is a run of its own: the states of the one before stay where they are."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first state is that of the start."""
        super().on_train_start(trainer, pl_module)
        self._step, self._between_steps, self._failed = trainer.global_step, True, False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the network's random draws follow from the step."""
        self._between_steps = False
        torch.manual_seed(draw_seed(trainer.global_rank, trainer.fit_loop.total_batch_idx, NETWORK))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """After an optimiser step there is a state to keep; gradients that are still being added up are in none."""
        self._between_steps = trainer.global_step != self._step
        self._step = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def keep(self, trainer: pl.Trainer) -> None:
        """Save now, in all processes, unless this step is saved."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what the failure has left whole. Of several processes the others would not come to save too."""
        if trainer.world_size == 1 and self._between_steps and not self._failed and trainer.training:
            self.keep(trainer)
            if self._last_checkpoint_saved:
                rank_zero_info(f"saved checkpoint to {self._last_checkpoint_saved}")

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._failed = True  # until it is done
        bad = [name for name, values in trainer.lightning_module.state_dict().items() if not _is_finite(values)]
        if bad:
            raise ValueError(
                f"the network has values that are not finite after step {trainer.global_step}, in "
                f"{', '.join(bad[:5])}; nothing was written over the checkpoint before. Use a smaller learning rate"
            )
        super()._save_checkpoint(trainer, filepath)
        root = root_of(trainer)
        if trainer.is_global_zero and self._own_folder:
            if root is not None:
                link_last(root)
            else:
                replace_link(Path(filepath).with_name(LAST), Path(filepath))
        self._failed = False


class WholeFileIO(TorchCheckpointIO):
    """Write checkpoints beside where they belong, and move them there when they are whole and on the disk.

    Lightning writes to the system's temporary folder first, which may be small, or on another disk and then copied.
    What is read is tensors and plain values, from a web address too, where Lightning would run the code in a file.
    """

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file; only where ``weights_only`` is False objects of any kind are made of it."""
        return super().load_checkpoint(path, map_location, True if weights_only is None else weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write one file.

        Raises:
            ValueError: It cannot be written, with the reason; what was there before is as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            sweep(target.parent)
            with in_one_move(target) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise ValueError(
                f"{target}: the checkpoint cannot be written ({_in_words(reason)}); make room or choose another "
                "trainer.default_root_dir. A checkpoint before it is whole: --ckpt_path last goes on from it"
            ) from error


def _is_finite(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or bool(values.isfinite().all())


def _in_words(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
