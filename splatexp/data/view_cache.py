"""Training views on the device that trains: all of them where they fit, else one step ahead of their use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from splatexp.system.devices import room, sent

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import View

SHARE = 0.25  # of the device's free memory that pictures may take: the rows, which still grow, need the rest


class Resident(Sequence["View"]):
    """The views of a scene as they are drawn, each on a device.

    On the CPU they are the views themselves. On a device pictures stay uint8; where those of all views take
    more than SHARE of what is free, they are kept in pinned memory of the host, and copied one step ahead by
    a stream of their own, while the device draws.
    """

    def __init__(self, views: Sequence[View], device: torch.device, share: float = SHARE):
        self.device, self._views = device, views
        self._next: tuple[int, View, Any] | None = None
        self._stream: Any = None
        if device.type == "cpu":
            return
        self._module, free = torch.get_device_module(device), room(device)
        wanted = sum(plane.nbytes for view in views for plane in view.planes.values())
        if free is not None and wanted <= share * free[1]:
            self._views = [view.to(device) for view in views]
            return
        for view in views:
            view.pin()
        self._cameras: list[Camera] = [view.camera.to(device) for view in views]
        self._stream = self._module.Stream(device)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        """The view of an index, on the device."""
        if self._stream is None:
            return self._views[index]
        if self._next is None or self._next[0] != index:  # a survey takes what it likes
            return self._sent(index)
        fetched, self._next = self._next, None
        now = self._module.current_stream(self.device)
        now.wait_event(fetched[2])
        for plane in fetched[1].planes.values():
            plane.record_stream(now)  # so that its memory is not given away while this stream reads it
        return fetched[1]

    def ahead(self, index: int) -> None:
        """Begin to copy the view that is taken next."""
        if self._stream is None:
            return
        with self._module.stream(self._stream):
            view = self._sent(index)
            self._next = index, view, self._stream.record_event()

    def _sent(self, index: int) -> View:
        view = self._views[index]
        planes: dict[str, Any] = {name: sent(plane, self.device) for name, plane in view.planes.items()}
        return replace(view, camera=self._cameras[index], _coarse=None, **planes)
