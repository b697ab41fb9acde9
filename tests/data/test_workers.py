"""Processes that read images end with the process that they read for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, signal, sys
from bestie_pl.data.module import InstanceDataModule
from bestie_pl.data.shapes import ShapesDataModule

if __name__ == "__main__":
    sizes = dict(train_images=16, val_images=5, test_images=5, image_size=64, clutter=1, generator_seed=0)
    data = ShapesDataModule(sys.argv[1], **sizes, batch_size=4, num_workers=1, crop_size=32)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(1)
    assert worker.is_alive(), "it is needed for the step"
    next(batches)
    print("end", flush=True)
"""


def test_a_script_that_holds_a_loader_ends(shapes_folder: Path, tmp_path: Path) -> None:
    """Workers outlive one SIGTERM, which Python also sends to those that are left: it waited for them for ever."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = subprocess.run([sys.executable, script, str(shapes_folder)], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0 and ended.stdout == "end\n", ended.stderr
