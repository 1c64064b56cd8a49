"""The settings of the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from splatexp.gaussians.splats import Splats

StepCallback = Callable[
    [int, "Splats"], None
]  # is called after every step with its number (from 0) and the rows


@dataclass
class ViewerSettings:
    """A web page that shows a run while it trains; `viewer=true` is short for `viewer.enabled=true`.

    The viewer only reads the Gaussians: a run gives the same bits with and without it.
    """

    enabled: bool = False
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets everyone who reaches this machine in
    port: int = 8080  # where this port is busy, the next free one is taken
    max_time_fraction: float = 0.5  # of the time, at most, goes into rendering for clients while training
    refresh_seconds: float = 1.0  # time between two images of a view that does not move, in training
    max_resolution: int = 1280  # longer side of a rendered image, px

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("viewer.host: expected the address of an interface of this machine, got ''")
        check_range("viewer.port", self.port, 1, 65535)
        check_range("viewer.max_time_fraction", self.max_time_fraction, 0.01, 0.99)
        check_range("viewer.refresh_seconds", self.refresh_seconds, 0)
        check_range("viewer.max_resolution", self.max_resolution, 16)

    def check(self) -> None:
        """Check that a page can be served, if the viewer is enabled.

        Raises: ImportError, one line, where viser is not installed; ValueError for a host or port that cannot
        be used.
        """
        if not self.enabled:
            return
        if find_spec("viser") is None:
            raise ImportError("viewer: viser is not installed; pip install 'splatexp[viewer]'")
        from splatexp.viewer.ports import free_port

        free_port(self.host, self.port)
