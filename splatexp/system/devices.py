"""Copies to and from the device that trains, without making host and device wait for each other.

A device works through its queue while the host continues. The host waits only where it reads a value, so a
step reads as few values as possible.
"""

import os

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the CPU it is copied asynchronously, out of pinned memory."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work; on the CPU there is nothing to wait for."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def memory_use(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes that a device's tensors take and those that are available; None for the CPU.

    What the allocator holds but does not use counts as available.
    """
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    used = module.memory_allocated(device)
    return used, module.mem_get_info(device)[0] + module.memory_reserved(device) - used


def peak_memory(device: torch.device) -> int | None:
    """Return the peak bytes of a device's tensors since `memory.reset_peak_memory`; None for the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device).max_memory_allocated(device)


def configure_device(device: torch.device, deterministic: bool = False) -> None:
    """Have a device compute in float32 throughout: by default convolutions use TF32, which costs SSIM digits.

    Args:
        deterministic: set the cuBLAS workspace without which PyTorch refuses matrix products in deterministic
            mode, unless the environment sets it.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class AsyncScalar:
    """A number [] that is copied from a device to the host; a call waits for it and returns a float."""

    def __init__(self, value: Tensor):
        self._host = value.detach().to("cpu", non_blocking=True)
        self._arrived = torch.get_device_module(value.device).Event()
        self._arrived.record()

    def __call__(self) -> float:
        self._arrived.synchronize()
        return self._host.item()
