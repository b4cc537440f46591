"""A stand-in for a device that this machine lacks: tensors that say they are on it, and compute on the CPU.

    with stand_in("mps") as device:
        model.to(device)(torch.zeros(2, 3, device=device))

Every tensor on the device holds one on the CPU, so that values are exact. As a real device does, it refuses operations
on tensors of two devices, NumPy's view of a tensor, and collectives of tensors on the CPU (NCCL); "mps" also refuses
float64. Kernels of the device are not seen, such as which operations it lacks or how it rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

#: What C++ takes the device for: one that needs no initialization, and whose backward passes run in the same thread.
INNER = torch.device("lazy", 0)
COPIES = ("_to_copy", "copy_")
#: Operators whose indices, the second argument, may be on the CPU.
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
COLLECTIVES = ("c10d", "_c10d_functional")


class DeviceTensor(Tensor):
    """Tensor on a stand-in; `inner` is on the CPU."""

    inner: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, place: torch.device) -> DeviceTensor:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = Tensor._make_wrapper_subclass(cls, inner.shape, device=INNER, **layout)
        self.inner, self.place = inner, place
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if hasattr(self, "_is_param") else copied
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {self.place}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Reached outside of the context only, and in functions that switch modes off.
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeviceTensor))
        return compute(first.place, func, args, kwargs or {})


def compute(place: torch.device, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Result of an operator of ATen or c10d, by the tensors on the CPU."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [t for t in tensors if isinstance(t, DeviceTensor)]
    others = [t for t in tensors if not isinstance(t, DeviceTensor)]
    if others and func.namespace in COLLECTIVES and "barrier" not in name:
        raise RuntimeError(f"No backend type associated with device type cpu ({name})")
    indices = {id(t) for t in tree_leaves(args[1])} if name in INDEXING else set()
    if ours and name not in COPIES and any(t.ndim and id(t) not in indices for t in others):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {place} and cpu ({name})")
    target = kwargs.get("device")
    here = isinstance(args[0], DeviceTensor) if name == "copy_" else bool(ours)
    if target is not None:
        here = torch.device(target).type in (place.type, INNER.type)
        kwargs = {**kwargs, "device": torch.device("cpu") if here else target}
    known = {id(t.inner): t for t in ours}
    result = func(*_inner(args), **_inner(kwargs))

    def place_of(t: Tensor) -> Tensor:
        if id(t) in known:
            return known[id(t)]
        if place.type == "mps" and t.dtype == torch.float64:
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype ({name})")
        return DeviceTensor(t, place)

    return tree_map_only(Tensor, place_of, result) if here else result


def _inner(values: Any) -> Any:
    return tree_map_only(DeviceTensor, lambda t: t.inner, values)


class _Operators(TorchDispatchMode):
    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(self.place, func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """torch.tensor and torch.as_tensor, whose copy to the device no mode of operators sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def stand_in(kind: str) -> Iterator[torch.device]:
    """Makes a device exist inside the context: "mps", or "maia" for any other one, which has float64."""
    place = torch.device(kind, 0)
    with pytest.MonkeyPatch.context() as patch, _Operators(place), _Constructors():
        optimizer = sys.modules["torch.optim.optimizer"]
        fused = [*optimizer._get_fused_kernels_supported_devices(), kind]  # type: ignore[attr-defined]
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: fused)
        yield place


@contextmanager
def one_rank(objects_on_device: bool = False) -> Iterator[None]:
    """A process group of this process alone, in which collectives are carried out by gloo.

    Args:
        objects_on_device: send pickled objects as tensors on the stand-in, as NCCL does, and not on the CPU.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if objects_on_device:
                patch.setattr(dist.distributed_c10d, "_get_object_coll_device", lambda group=None: str(INNER))
            # Else Lightning does not reduce what is logged with sync_dist.
            patch.setattr(_AcceleratorConnector, "is_distributed", True)
            yield
    finally:
        dist.destroy_process_group()


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class OnStandIn(SingleDeviceStrategy):
    """Trains on a stand-in, with the collectives of several devices: to be used in `one_rank`."""

    reduce = DDPStrategy.reduce
    all_gather = ParallelStrategy.all_gather
    broadcast = DDPStrategy.broadcast
    reduce_boolean_decision = ParallelStrategy.reduce_boolean_decision

    def __init__(self, place: torch.device) -> None:
        super().__init__(device=place, accelerator=_Accelerator())
