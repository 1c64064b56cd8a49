"""Training views on the device that trains: all of them where they fit, else fetched one step ahead of their
use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from splatexp.system.devices import memory_use, to_device

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import View

# of the device's free memory may hold images: the Gaussians, whose number still grows, need the rest
MAX_MEMORY_FRACTION = 0.25


class ViewCache(Sequence["View"]):
    """The views of a scene as training takes them, on one device.

    On the CPU they are the views themselves. On a GPU images stay uint8; where those of all views take more
    than MAX_MEMORY_FRACTION of the free memory, they stay in pinned host memory and are copied one step ahead
    on a stream of their own, while the device renders.
    """

    def __init__(
        self, views: Sequence[View], device: torch.device, max_fraction: float = MAX_MEMORY_FRACTION
    ):
        self.device, self._views = device, views
        self._next: tuple[int, View, Any] | None = None
        self._stream: Any = None
        if device.type == "cpu":
            return
        self._module, free = torch.get_device_module(device), memory_use(device)
        wanted = sum(tensor.nbytes for view in views for tensor in view.tensors.values())
        if free is not None and wanted <= max_fraction * free[1]:
            self._views = [view.to(device) for view in views]
            return
        for view in views:
            view.pin()
        self._cameras: list[Camera] = [view.camera.to(device) for view in views]
        self._stream = self._module.Stream(device)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        """Return the view of an index, on the device."""
        if self._stream is None:
            return self._views[index]
        if self._next is None or self._next[0] != index:  # a survey takes views in an order of its own
            return self._sent(index)
        fetched, self._next = self._next, None
        now = self._module.current_stream(self.device)
        now.wait_event(fetched[2])
        for tensor in fetched[1].tensors.values():
            tensor.record_stream(now)  # its memory must not be reused while this stream reads it
        return fetched[1]

    def prefetch(self, index: int) -> None:
        """Start to copy the view that will be taken next."""
        if self._stream is None:
            return
        with self._module.stream(self._stream):
            view = self._sent(index)
            self._next = index, view, self._stream.record_event()

    def _sent(self, index: int) -> View:
        view = self._views[index]
        tensors: dict[str, Any] = {
            name: to_device(tensor, self.device) for name, tensor in view.tensors.items()
        }
        return replace(view, camera=self._cameras[index], _coarse=None, **tensors)
