"""Weights & Biases: all of a run, online or in files that can be sent later."""

from __future__ import annotations

import netrc
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from splatexp.settings.checks import check_choice
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker, columns

if TYPE_CHECKING:
    import numpy as np

WAITS = {"init_timeout": 20, "finish_timeout": 300, "x_transaction_log_flush_interval": 1}  # seconds


@dataclass
class WandB(Tracker):
    """Weights & Biases: online for who is logged in, else offline in wandb/ (`wandb sync` sends it later).

    mode: auto, online, offline. The environment variable WANDB_MODE wins over it.
    """

    project: str = "splatexp"
    entity: str = ""  # "": that of who is logged in
    name: str = ""  # "": wandb makes one up
    group: str = ""
    job_type: str = ""
    tags: list[str] | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        check_choice("tracker.wandb.mode", self.mode, ("auto", "online", "offline"))

    def start(self, session: Session) -> None:
        """Begin the run, or go on with it, also where a sweep has begun others in this process."""
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if _logged_in() else "offline"
        self._session = session
        with self._staged():
            try:
                self._run = self._begin(mode)
            except Exception as error:  # such as no network: what is written offline can be sent later
                if mode == "offline":
                    raise
                import wandb

                wandb.teardown()  # or the attempt would keep the id in use
                self._run = self._begin("offline")
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"wandb is offline, `wandb sync` can send the run: {reason}", stacklevel=2)
        self._run.define_metric("*", step_metric="step")
        self._next = self._run.step

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on each curve.

        wandb drops what comes with a step before that of the last row, as after a resumption, and merges
        what comes with the same. So its own count only follows the step, and the step is a column.
        """
        self._next = max(step, self._next) + 1
        self._run.log({"step": step, **scalars}, step=self._next - 1, commit=True)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture."""
        import wandb

        self._log_media(step, {name: wandb.Image(picture)})

    def table(self, step: int, name: str, rows: Rows) -> None:
        """A table."""
        import wandb

        names: Any = columns(rows)
        data = [[row.get(column) for column in names] for row in rows]
        self._log_media(step, {name: wandb.Table(names, data, allow_mixed_types=True)})

    def file(self, path: Path) -> None:
        """An artifact that is read where it lies."""
        import wandb

        path = Path(path).absolute()
        name = re.sub(r"[^\w.-]", "_", f"{self._session.id}-{path.name}", flags=re.ASCII)
        artifact = wandb.Artifact(name, "model")
        with self._staged():
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        """Close the run."""
        self._run.finish(exit_code=exit_code)

    def _begin(self, mode: Any) -> Any:
        if mode == "offline":  # and nothing is sent at all: wandb would report on itself
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        waits: Any = {name: value for name, value in WAITS.items() if name in wandb.Settings.model_fields}
        quiet = wandb.Settings(silent=True, console="off", **waits)
        wandb.setup(quiet)  # or it would say where it found a key
        session = self._session
        config = {**session.config, "provenance": session.facts}
        return wandb.init(
            mode=mode, project=self.project, entity=self.entity or None, name=self.name or None,
            group=self.group or None, job_type=self.job_type or None, tags=self.tags,
            id=session.id, resume="allow", reinit="create_new",
            config=config, dir=str(session.folder.absolute()), settings=quiet,
        )  # fmt: skip

    def _log_media(self, step: int, media: dict[str, Any]) -> None:
        with self._staged():
            self.log(step, media)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Let wandb stage files, and its process write its log, in the run's folder, not in the user's home.

        It asks the environment where; what is set there already stays.
        """
        folder = self._session.folder.absolute()
        own = {"WANDB_DATA_DIR": str(folder / "wandb"), "WANDB_CACHE_DIR": str(folder)}
        own = {name: place for name, place in own.items() if name not in os.environ}
        os.environ.update(own)
        try:
            yield
        finally:
            for name in own:
                os.environ.pop(name, None)


def _logged_in() -> bool:
    """Whether wandb would find a key where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
