"""A device that is not the CPU, for machines that have only one: the CPU under another name.

Tensors on it say that they are on ``meta`` and keep their values in a tensor of the CPU. An operation on tensors of
both devices is refused, as it is on a GPU, and so are arrays of tensors that are not on the CPU. What a device computes
and how fast it is cannot be tested this way; that nothing is left on the wrong one can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

SECOND = torch.device("meta")
"""Its name; PyTorch lets nobody else have tensors there."""

aten = torch.ops.aten
MOVES = (aten._to_copy, aten.copy_)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Those may mix devices: indices can come from the host."""


class SecondTensor(Tensor):
    """A tensor on the second device, whose values are in ``inner``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SecondTensor:
        assert type(inner) is not cls
        made: SecondTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=SECOND,
            layout=inner.layout,
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"second device: {self.inner}"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        raise TypeError("a tensor of another device cannot become an array; use Tensor.cpu() first")

    def __array__(self, *arguments: Any, **named: Any) -> NoReturn:
        self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs)


class _Operations(TorchDispatchMode):
    """Operations that make tensors on the second device from none there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs)


class _Conversions(TorchFunctionMode):
    """What PyTorch does before it asks for operations: lists and numbers become tensors, autocast a setting."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = kwargs.pop("device", None) or "cpu"
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
        if func is Tensor.__getitem__:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(at) if isinstance(at, list) else at for at in places))
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    """Switched on or off for the CPU, which computes."""

    def __init__(self, device_type: str, *arguments: Any, **named: Any) -> None:
        super().__init__("cpu" if device_type == SECOND.type else device_type, *arguments, **named)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """In here the second device exists."""
    with pytest.MonkeyPatch.context() as patch, _Conversions(), _Operations():
        patch.setattr(torch, "autocast", _Autocast)
        # modules move there as they move to an XLA device: with new parameters
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        yield SECOND


class OneDevice(SingleDeviceStrategy):
    """Lightning's strategy for one device, the second one included."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, _AnyDevice())


class _AnyDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Nothing to do."""


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
    kwargs = dict(kwargs or {})
    kind = func.overloadpacket
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = any(isinstance(tensor, SecondTensor) for tensor in tensors)
    if kind is aten.copy_:
        goes_there = isinstance(args[0], SecondTensor)
    else:
        goes_there = there if kwargs.get("device") is None else torch.device(kwargs["device"]) == SECOND
    if not there and not goes_there:
        return func(*args, **kwargs)
    # single numbers go along with tensors of any device
    here = any(not isinstance(tensor, SecondTensor) and tensor.dim() > 0 for tensor in tensors)
    if there and here and kind not in MOVES and not (kind in INDEXING and isinstance(args[0], SecondTensor)):
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{func}: expected all tensors on one device, found {found}")
    if goes_there and "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    assert not any(tensor.is_meta and not isinstance(tensor, SecondTensor) for tensor in tensors), "made unnoticed"
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not goes_there:
        return args[0] if kind is aten.copy_ else result
    result = tree_map(lambda value: SecondTensor(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if there else result


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, SecondTensor) else value
