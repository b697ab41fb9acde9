"""The network as a file that runs without this package, and such a file in the place of the network."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from bestie_pl.models.bestie import SIZE_STEP, STRIDE, BestieModel
from bestie_pl.ops.enlargement import Enlargement
from bestie_pl.structures import InstanceMaps

ExportFormat = Literal["onnx", "torch"]
FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "torch": "model.pt2"}

OPSET = 18
"""Of ONNX: the first that has everything the networks need, so that old runtimes take the file."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LEAST_SIDE = 2 * SIZE_STEP
"""Of the images that a file takes: what is followed with several cells cannot enlarge a single one."""
EXAMPLE = (2, 3, 3 * SIZE_STEP, 2 * SIZE_STEP)
"""Shape of the images that the network is followed with: no two numbers alike, none of them 1."""

INPUT = "images"
OUTPUTS = InstanceMaps._fields


class _Core(nn.Module):
    """RGB images in [0, 1] whose sides 32 divides, 64 at least -> maps at stride 4: normalisation and network."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: BestieModel) -> None:
        super().__init__()
        # a copy in the usual memory format: to follow strides of unknown sizes takes minutes otherwise
        self.network = deepcopy(model.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        fix_padding(self.network)
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("std", model.std.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # a plain tuple: whoever reads the file does not know our classes
        return tuple(self.network((images - self.mean) / self.std))


def fix_padding(network: nn.Module) -> None:
    """Give TensorFlow's "same" convolutions a constant padding.

    timm computes it from the size of each input, which no file format can hold where sizes are unknown. Of sides that
    the stride divides, and 32 divides those of the images, it is the same for all: what the kernel is longer than the
    stride, the larger half at the end. Changes ``network``.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv2dSame):
                reach = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
                rows, columns = (max(0, r - s) for r, s in zip(reach, layer.stride, strict=True))
                sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d(sides), _without_padding(layer)))


def _without_padding(layer: nn.Conv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def follow(model: BestieModel) -> ExportedProgram:
    """The network as a graph, for any number of images of any size from 64 on that 32 divides."""
    height, width = (SIZE_STEP * Dim(name, min=2, max=1024) for name in ("rows", "columns"))
    core = _Core(model).eval().cpu()
    return torch.export.export(
        core, (torch.rand(EXAMPLE),), dynamic_shapes={INPUT: {0: Dim("batch", min=1, max=4096), 2: height, 3: width}}
    )


def write_program(model: BestieModel, path: Path) -> None:
    """Write what ``torch.export`` makes of the network to ``path``, a new file."""
    content = BytesIO()
    torch.export.save(follow(model), content)
    path.write_bytes(content.getvalue())


def write_onnx(model: BestieModel, path: Path) -> None:
    """Write the network as one ONNX file of opset 18 to ``path``, a new file.

    Raises:
        ValueError: A package of the extra ``onnx`` is missing.
    """
    require_onnx()
    program = torch.onnx.export(
        follow(model), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
    )
    assert program is not None
    program.save(path, external_data=False)


def require_onnx() -> None:
    """Raise ValueError unless the packages for ONNX are installed."""
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'bestie-pl[onnx]'; or use --format torch")


class ExportedModel(nn.Module):
    """A file that ``write_program`` or ``write_onnx`` made, in the place of the ``BestieModel`` that it was made of.

    Runs on the CPU; where ONNX Runtime has something faster, there.

    Args:
        path: Ends in ``.pt2`` or ``.onnx``.
        like: A model with the same settings; its weights are not used.

    Raises:
        ValueError: The file is damaged, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, like: BestieModel) -> None:
        super().__init__()
        self.align_corners = like.align_corners
        self._run = (_open_onnx if path.suffix == ".onnx" else _open_program)(path)
        self._enlargement = like.enlargement
        # no parameters of it: the model that it stands for is left out of this module
        self._mean = like.mean.clone()

    def forward(self, images: Tensor) -> InstanceMaps:
        """See ``BestieModel.forward``. Sides of up to 32 px are filled up to 64, where the network fills up to 32."""
        height, width = images.shape[-2:]
        bottom, right = (max(LEAST_SIDE - side, -side % SIZE_STEP) for side in (height, width))
        # the mean colour is what normalisation makes 0
        filled = F.pad(images - self._mean, (0, right, 0, bottom)) + self._mean
        h, w = -(-height // STRIDE), -(-width // STRIDE)
        return InstanceMaps(*(values[..., :h, :w] for values in self._run(filled)))

    def enlargement(self, maps: InstanceMaps, size: tuple[int, int]) -> Enlargement:
        """See ``BestieModel.enlargement``."""
        return self._enlargement(maps, size)


def _open_program(path: Path) -> Callable[[Tensor], Any]:
    try:
        program = torch.export.load(path).module()
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path}: cannot be read as a torch program ({type(error).__name__}); export again") from error
    return lambda images: program(images)


def _open_onnx(path: Path) -> Callable[[Tensor], Any]:
    require_onnx()
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # its own classes, of no common base but this
        raise ValueError(f"{path}: cannot be read by ONNX Runtime ({error}); export again") from error
    return lambda images: [
        torch.from_numpy(values) for values in session.run(list(OUTPUTS), {INPUT: images.cpu().numpy()})
    ]
