"""Make a torchvision built for CUDA importable beside a CPU build of torch.

The package registry carries torchvision only as a CUDA build. Beside a CPU torch its compiled operators cannot load,
and ``import torchvision`` ends with ``operator torchvision::nms does not exist``: it describes two of those operators
to torch without asking whether they are there. timm, torchmetrics and pytorch_lightning fall with it.

``make setup`` copies this file, with a one-line ``torchvision_cpu.pth`` that imports it at start-up, into the
environment it builds, and only if torchvision cannot be imported there without it. It declares the two operators, no
more: the Python part of torchvision then works as usual, and calling ``nms`` raises torchvision's own explanation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE = "torchvision.extension"
"""The module that tries to load the compiled operators."""

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""The operators that torchvision 0.28 describes to torch without asking whether they were loaded."""


class _Finder:
    """Acts once, on the import of ``torchvision.extension``."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_declare(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _declare(module)

        spec.loader.exec_module = run_and_declare  # type: ignore[method-assign]
        return spec


def _declare(extension: ModuleType) -> None:
    if extension._has_ops():
        return
    import torch  # here, not above: this file runs at every start of the interpreter

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    extension._declared_operators = library  # type: ignore[attr-defined]  # the declarations end with the object


sys.meta_path.insert(0, _Finder())
