"""Tensors to the device that trains, and numbers back from it, without a wait of one for the other.

A device works on its own: it is handed work in order, and the host goes on. The host waits only where it asks
for a value, so a step asks for as few as it can.
"""

import os

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU it is copied in the device's own time, out of pinned memory."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was handed; the CPU has."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def room(device: torch.device) -> tuple[int, int] | None:
    """Bytes that a device's tensors take, and that they may take besides; None for the CPU.

    What the allocator holds unused counts as free.
    """
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    used = module.memory_allocated(device)
    return used, module.mem_get_info(device)[0] + module.memory_reserved(device) - used


def peak(device: torch.device) -> int | None:
    """Peak bytes of a device's tensors since `memory.forget_peak`; None for the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device).max_memory_allocated(device)


def settle(device: torch.device, deterministic: bool = False) -> None:
    """Have a device reckon in float32 throughout: convolutions take TF32 by default, which costs SSIM digits.

    deterministic: cuBLAS gets the workspace without which PyTorch refuses its products; what the environment
    says of it is left alone.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Readback:
    """A number [] on its way from a device to the host; called, it is a float, and waits if it has to."""

    def __init__(self, value: Tensor):
        self._host = value.detach().to("cpu", non_blocking=True)
        self._arrived = torch.get_device_module(value.device).Event()
        self._arrived.record()

    def __call__(self) -> float:
        self._arrived.synchronize()
        return self._host.item()
