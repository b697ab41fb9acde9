"""Files of tensors from elsewhere: read without running anything of them, and compared with a network by name."""

from __future__ import annotations

import errno
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

LEVELS = ("state_dict", "model")
"""Where training programs keep the tensors of a network, beside epoch, optimiser and the like."""

PREFIXES = ("module.", "model.")
"""What wrappers (DataParallel, a LightningModule) put before every name."""


def read_file(path: Path) -> Any:
    """Content of a file of tensors and plain values (``.safetensors``, or what ``torch.save`` wrote), on the CPU.

    Tensors stay in the file until they are looked at, and take no more memory than it has bytes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, something else, or holds objects that could only be made by running code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; expected a file of tensors")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        whole = zipfile.is_zipfile(path)
        if whole:
            _refuse_inflation(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # the unpickler meets damaged files with a dozen classes, AssertionError among them
        # torch calls the seek before the start of a cut file an invalid argument
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"{path} is no file of tensors and plain values only, and nothing else is loaded: {_reason(error)}"
        ) from error


def _refuse_inflation(path: Path) -> None:
    """Raise ValueError if an archive claims more than it has: ``torch.save`` compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise ValueError(f"it claims {claimed} bytes of tensors in a file of {path.stat().st_size}")


def _reason(error: Exception) -> str:
    """Without torch's advice to load the file unsafely."""
    if needs := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return f"it needs {needs[1]}, which may run code; have its maker save the state dict alone"
    text = re.sub(r".*WeightsUnpickler error: ", "", str(error), flags=re.DOTALL).strip()
    return f"it is damaged or of another kind ({type(error).__name__}: {text.splitlines()[0] if text else ''})"


def split_content(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a network by name, without levels and prefixes around them, and all that stood beside them.

    Raises:
        ValueError: There are no tensors by name.
    """
    beside: dict[str, Any] = {}
    for level in LEVELS:
        if isinstance(content, Mapping) and isinstance(content.get(level), Mapping):
            beside |= {str(key): value for key, value in content.items() if key != level}
            content = content[level]
    entries = content if isinstance(content, Mapping) else {}
    others = [f"{key!r} ({type(value).__name__})" for key, value in entries.items() if not isinstance(value, Tensor)]
    if not entries or others:
        raise ValueError(
            f"{path} holds no tensors by name and nothing else (a state dict), at its top or under 'model' or "
            f"'state_dict'{f'; found {_some(others)}' if others else ''}"
        )
    tensors: dict[str, Tensor] = {str(key): value for key, value in entries.items()}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors, beside


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unknown: Iterable[str] = ()) -> str:
    """What is missing, of another shape, or ``unknown``, by name; empty if ``found`` fills ``wanted``.

    >>> differences({"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.zeros(1)})
    '1 tensors missing: b; 1 tensors of another shape: a (2,) instead of (3,)'
    """
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    kinds = (
        ("missing", sorted(wanted.keys() - found.keys())),
        ("of another shape", shapes),
        ("unknown", sorted(unknown)),
    )
    return "; ".join(f"{len(names)} tensors {what}: {_some(names)}" for what, names in kinds if names)


def refuse_infinite(tensors: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raise ValueError if some of the tensors hold values that are not finite; names them."""
    bad = [name for name, values in tensors.items() if values.is_floating_point() and not values.isfinite().all()]
    if bad:
        raise ValueError(
            f"{origin} holds values that are not finite, in {', '.join(bad[:5])}; use an earlier checkpoint"
        )


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
