"""The settings of the page that shows a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from splatexp.gaussians.splats import Splats

Between = Callable[[int, "Splats"], None]


@dataclass
class Viewer:
    """A page in the browser that shows a run while it trains; `viewer=true` is short for `viewer.on=true`.

    What it shows has no say in what is trained.
    """

    on: bool = False
    host: str = "127.0.0.1"  # 0.0.0.0: whoever can reach this machine may watch, pause and stop drawing
    port: int = 8080  # where it is busy, the next free one is taken and told
    share: float = 0.5  # of the time that may go into drawing while it trains
    refresh: float = 1.0  # seconds between two pictures of a view that rests, while it trains
    longest: int = 1280  # px, the longer side of a picture

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("viewer.host: expected the address of an interface of this machine, got ''")
        check_range("viewer.port", self.port, 1, 65535)
        check_range("viewer.share", self.share, 0.01, 0.99)
        check_range("viewer.refresh", self.refresh, 0)
        check_range("viewer.longest", self.longest, 16)

    def check(self) -> None:
        """Look, if it is on, whether there can be a page.

        Raises: ImportError, one line, where its package is missing; ValueError for host and port.
        """
        if not self.on:
            return
        if find_spec("viser") is None:
            raise ImportError("viewer: viser is not installed; pip install 'splatexp[viewer]'")
        from splatexp.viewer.ports import free_port

        free_port(self.host, self.port)
