"""A device that is none: a stand-in for a GPU on machines without one.

Its tensors say that they are elsewhere, and are computed on the CPU. As on a GPU, an operator that
is given tensors of both places fails, and what Python wants to know of a tensor has to be
waited for, which is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils import _device, backend_registration
from torch.utils import _pytree as pytree

DEVICE = "elsewhere"
IS_AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_ops = torch.ops.aten
_MAY_MIX = {
    _ops._to_copy.default,
    _ops.copy_.default,
    _ops._has_compatible_shallow_copy_type.default,
}
_THAT_KNOW = {
    _ops._local_scalar_dense.default,
    _ops.nonzero.default,
    _ops.masked_select.default,
}
_INDEXING = {_ops.index.Tensor, _ops.index_put.default, _ops.index_put_.default}
# By themselves these begin with an empty tensor and resize it, which `Elsewhere` does not notice.
_FACTORIES = {
    "arange": _ops.arange.default,
    "arange.start": _ops.arange.start,
    "arange.start_step": _ops.arange.start_step,
    "linspace": _ops.linspace.default,
}
_new_tensor = torch.tensor
_libraries: list[Library] = []  # end what they registered when they are collected


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks a device's own module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Waits:
    """How often somebody waited for the device."""

    count = 0


class Recordings:
    """As when a graph is captured: nothing may come or go, or be waited for."""

    is_on = False

    @classmethod
    @contextmanager
    def recording(cls) -> Iterator[None]:
        cls.is_on = True
        try:
            yield
        finally:
            cls.is_on = False

    @classmethod
    def check(cls, is_forbidden: bool) -> None:
        if cls.is_on and is_forbidden:
            raise RuntimeError("operation not permitted when stream is capturing")


class Elsewhere(Tensor):
    """A tensor of the device; `here` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        with torch.inference_mode(False):
            made: Elsewhere = torch.Tensor._make_wrapper_subclass(
                cls,
                here.shape,
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device=torch.device(DEVICE, 0),
            )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(op, args, kwargs or {})

    def tolist(self) -> Any:
        Recordings.check(True)
        Waits.count += 1
        return self.here.tolist()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):  # torch makes tensors of lists in a way that needs C++
            index = tuple(
                tensor(i, device=self.device) if isinstance(i, list) else i for i in index
            )
        return super().__getitem__(index)


def tensor(*args: Any, **kwargs: Any) -> Tensor:
    """torch.tensor, which cannot make tensors of a device that has no C++."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != DEVICE:
        return _new_tensor(*args, **kwargs)
    return _new_tensor(*args, **{**kwargs, "device": None}).to(device)


def register() -> None:
    """Makes the device known to torch, for good; `torch.tensor` must be replaced, too."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, _Module())
    _device._device_constructors()  # remembers what torch.tensor is
    every, aten = Library("_", "IMPL"), Library("aten", "IMPL")
    every.fallback(_kernel, "PrivateUse1")
    for name, op in _FACTORIES.items():
        aten.impl(name, partial(_kernel, op), "PrivateUse1")
    _libraries.extend((every, aten))


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    return _compute(op, args, kwargs)


def _compute(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operator gives. Raises RuntimeError for tensors of both places."""
    if op is _ops._fused_sdp_choice.default:
        return 0  # attention by plain operators
    parts = op.decompose(*args, **kwargs)
    if parts is not NotImplemented:
        return parts
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    are_elsewhere = [isinstance(each, Elsewhere) for each in tensors if each.dim() > 0]
    if op not in _MAY_MIX and any(are_elsewhere) and not all(are_elsewhere):
        raise RuntimeError(f"{op}: tensors of two devices, {[each.shape for each in tensors]}")
    if _must_know(op, args):
        Recordings.check(True)
        Waits.count += 1
    is_elsewhere = any(isinstance(each, Elsewhere) for each in tensors)
    if kwargs.get("device") is not None:
        is_elsewhere = torch.device(kwargs["device"]).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if op in _MAY_MIX:
        Recordings.check(any(isinstance(each, Elsewhere) != is_elsewhere for each in tensors))
    args_here, kwargs_here = pytree.tree_map(_here, (args, kwargs))
    same = {id(_here(each)): each for each in tensors}  # of operators in place

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        if id(result) in same:
            return same[id(result)]
        return Elsewhere(result) if is_elsewhere else result

    return pytree.tree_map(placed, op(*args_here, **kwargs_here))


def _must_know(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether what the operator does, or the size of its result, depends on values."""
    if op in _THAT_KNOW:
        return True
    indices = args[1] if op in _INDEXING else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


def main() -> None:
    """`outrider distill` with the device. It must be known before a process trains anything."""
    from outrider.distill.__main__ import main as distill

    register()
    torch.tensor = tensor
    distill()


if __name__ == "__main__":
    main()
