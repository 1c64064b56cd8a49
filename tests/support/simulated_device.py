"""A device that is none: tensors that claim to be on `sim:0` and hold theirs on the CPU.

PyTorch's key for devices of others, PrivateUse1, is given a name and a module; a dispatch mode has every op
on its tensors done by the CPU, to the CPU's bits. It refuses what a device refuses: an op on tensors of two
places, NumPy. It notes where the host would wait: for a value, for a shape that values decide, for a copy
that is not told to go on by itself. So the path to a GPU can be walked where there is none.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "equal"}
READS |= {"unique_consecutive", "unique_dim_consecutive", "is_nonzero", "histc", "linalg_eigh"}
# what copies a number [] of the CPU
SCALARS = {"where", "index_put", "index_put_", "_index_put_impl_", "cat", "stack"}


class Held(Tensor):
    """A tensor of the device; `held` is the CPU's that does its work."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device(), requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.held})"

    def tolist(self):
        """Read all of it."""
        current().waits("tolist")
        return self.held.tolist()

    def record_stream(self, stream) -> None:
        """Memory that is let go waits for nothing here."""

    def numpy(self, *args, **kwargs):
        """What a device's tensor says."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return current().run(func, args, kwargs or {})


@cache
def device() -> torch.device:
    """`sim:0`, of which PyTorch is told the first time; it never forgets."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("sim", backend_module=Module())
    return torch.device("sim", 0)


class Module:
    """What `torch.get_device_module` gives: streams in which all is done at once, and a memory of 1 GB."""

    free = 1 << 30

    def __init__(self) -> None:
        self.Stream = lambda device=None: SimpleNamespace(record_event=Event, wait_event=lambda event: None)
        self.Event = Event
        self.stream = lambda stream: nullcontext()
        self.current_stream = lambda device=None: self.Stream()

    def mem_get_info(self, device=None) -> tuple[int, int]:
        """Bytes free and in all."""
        return self.free, 1 << 30

    def memory_allocated(self, device=None) -> int:
        """Bytes."""
        return 1000

    memory_reserved = max_memory_allocated = memory_allocated

    def synchronize(self, device=None) -> None:
        """Wait for all."""
        current().waits("synchronize")

    def is_initialized(self) -> bool:
        """Whether it is in use."""
        return True

    is_available = is_initialized

    def current_device(self) -> int:
        """The only one."""
        return 0

    def device_count(self) -> int:
        """One."""
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """It draws nothing."""


class Event:
    """Something in a stream; all is done at once."""

    def record(self, stream=None) -> None:
        """Note the place."""

    def synchronize(self) -> None:
        """Wait for it, which is no wait in the step after."""


class Simulation(TorchDispatchMode):
    """While it is on, the device can be used; `places` tell where in the package the host waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def waits(self, what: str) -> None:
        """Note that the host waits, and where; in the reference kernels it may: a device has its own."""
        where = ""
        for frame, line in traceback.walk_stack(None):
            name = frame.f_code.co_filename
            if "/splatexp_kernels/" in name:
                return
            if not where and "/splatexp/" in name:
                where = f"{name.rpartition('/splatexp/')[2]}:{line}"
        self.places.append(f"{where or 'backward'} {what}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Do an op by the CPU."""
        flat: list[Tensor] = []
        plain = _held((args, kwargs), flat)
        inside = any(isinstance(leaf, Held) for leaf in flat)
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        name = func.overloadpacket.__name__
        self._check(func, name, flat, args, kwargs, inside, to)
        if name in ("pin_memory", "_pin_memory"):
            return args[0].clone()
        if to is not None:
            plain[1]["device"] = torch.device("cpu")
        out = func(*plain[0], **plain[1])
        if name == "_to_copy" and to is not None and out is plain[0][0]:
            out = out.clone()
        if (inside if to is None else to.type == "sim") is False:
            return out
        return _claimed(out, {id(leaf.held): leaf for leaf in flat if isinstance(leaf, Held)})

    def _check(self, func, name, flat, args, kwargs, inside, to) -> None:
        """Refuse what mixes places; note what waits."""
        copies = name in ("_to_copy", "copy_", "_copy_from", "_copy_from_and_resize")
        if name == "_to_copy" and to is not None:
            moves = inside != (to.type == "sim")
        else:
            moves = copies and inside and not all(isinstance(leaf, Held) for leaf in flat)
        if moves:
            later = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
            if not later:
                self.waits(f"copies {tuple(flat[-1].shape)}")
        elif inside and not copies:
            alien = [leaf for leaf in flat if not isinstance(leaf, Held)]
            indices = name in ("index", "index_put", "index_put_", "_index_put_impl_")
            if any(leaf.dim() or indices for leaf in alien):
                raise RuntimeError(f"{name}: expected all tensors on one device, got {device()} and cpu")
            if alien and name in SCALARS:
                self.waits(f"{name} copies a number")
            if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
                self.waits(name)
            chosen = args[1] if indices else ()
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in chosen):
                self.waits(f"{name} by a mask")


def _held(values, found: list[Tensor]):
    """Arguments with the CPU's tensors for the device's; all tensors go into `found`."""
    if isinstance(values, Tensor):
        found.append(values)
        return values.held if isinstance(values, Held) else values
    if isinstance(values, (tuple, list)):
        return type(values)([_held(value, found) for value in values])
    if isinstance(values, dict):
        return {key: _held(value, found) for key, value in values.items()}
    return values


def _claimed(values, known: dict[int, Held]):
    """Results as the device's; what an op has written into stays what it was."""
    if isinstance(values, Tensor):
        return known[id(values)] if id(values) in known else Held(values)
    if isinstance(values, (tuple, list)):
        return type(values)([_claimed(value, known) for value in values])
    return values


def outside(function):
    """The function, done as if there were no device: what reads files makes tensors in ways of its own."""

    def plainly(*args):
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(False)
        try:
            with _disable_current_modes():
                return function(*args)
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)

    return plainly


_running: list[Simulation] = []


def current() -> Simulation:
    """The simulation that is on."""
    if not _running:
        raise RuntimeError(f"a tensor of {device()} is used outside a simulation")
    return _running[-1]


@contextmanager
def simulation() -> Iterator[Simulation]:
    """A context in which the device can be used."""
    device()
    mode = Simulation()
    _running.append(mode)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device=...) comes by here too
    try:
        with mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        _running.pop()
