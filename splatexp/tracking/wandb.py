"""The tracker `wandb`: Weights & Biases, online or in local files that can be uploaded later."""

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
from splatexp.settings.messages import first_line
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker, columns

if TYPE_CHECKING:
    import numpy as np

TIMEOUTS = {"init_timeout": 20, "finish_timeout": 300, "x_transaction_log_flush_interval": 1}  # seconds


@dataclass
class WandB(Tracker):
    """Weights & Biases: online for users who are logged in, otherwise offline in wandb/ in the run's folder.

    `wandb sync` uploads an offline run later.
    """

    project: str = "splatexp"
    entity: str = ""  # user or team; "" is the user who is logged in
    name: str = ""  # of the run; "" lets wandb choose one
    group: str = ""
    job_type: str = ""
    tags: list[str] | None = None
    mode: str = "auto"  # auto, online or offline; the environment variable WANDB_MODE overrides it

    def __post_init__(self) -> None:
        check_choice("tracker.wandb.mode", self.mode, ("auto", "online", "offline"))

    def start(self, session: Session) -> None:
        """Start or resume the run, also in a process in which a sweep has started others."""
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if logged_in() else "offline"
        self._session = session
        with self._staged():
            try:
                self._run = self._begin(mode)
            except Exception as error:  # such as no network
                if mode == "offline":
                    raise
                import wandb

                wandb.teardown()  # the failed attempt would keep the id in use
                self._run = self._begin("offline")
                warnings.warn(
                    f"wandb is offline, `wandb sync` can upload the run later: {first_line(error)}",
                    stacklevel=2,
                )
        self._run.define_metric("*", step_metric="step")
        self._next_step = self._run.step  # in wandb's own count

    def log(self, step: int, scalars: Scalars) -> None:
        """Add a point to each curve.

        wandb drops rows with a step before the last one, as a resumed run logs them, and merges rows with the
        same step. So wandb's own count of steps only increases, and the true step is a column.
        """
        self._next_step = max(step, self._next_step) + 1
        self._run.log({"step": step, **scalars}, step=self._next_step - 1, commit=True)

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image."""
        import wandb

        self._log_media(step, {name: wandb.Image(image)})

    def log_table(self, step: int, name: str, rows: Rows) -> None:
        """Log a table."""
        import wandb

        names: Any = columns(rows)
        data = [[row.get(column) for column in names] for row in rows]
        self._log_media(step, {name: wandb.Table(names, data, allow_mixed_types=True)})

    def log_file(self, path: Path) -> None:
        """Log a file as an artifact; wandb reads it where it lies and makes no copy."""
        import wandb

        path = Path(path).absolute()
        name = re.sub(r"[^\w.-]", "_", f"{self._session.id}-{path.name}", flags=re.ASCII)
        artifact = wandb.Artifact(name, "model")
        with self._staged():
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        """Finish the run."""
        self._run.finish(exit_code=exit_code)

    def _begin(self, mode: Any) -> Any:
        if mode == "offline":  # wandb would send reports of its own errors
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        timeouts: Any = {
            name: value for name, value in TIMEOUTS.items() if name in wandb.Settings.model_fields
        }
        quiet = wandb.Settings(silent=True, console="off", **timeouts)
        wandb.setup(quiet)  # otherwise wandb prints where it has found an API key
        session = self._session
        config = {**session.config, "provenance": session.provenance}
        return wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity or None,
            name=self.name or None,
            group=self.group or None,
            job_type=self.job_type or None,
            tags=self.tags,
            id=session.id,
            resume="allow",
            reinit="create_new",
            config=config,
            dir=str(session.folder.absolute()),
            settings=quiet,
        )

    def _log_media(self, step: int, media: dict[str, Any]) -> None:
        with self._staged():
            self.log(step, media)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Let wandb stage files and write its logs in the run's folder, not in the user's home.

        wandb reads the folders from environment variables; those that the user has set are kept.
        """
        folder = self._session.folder.absolute()
        variables = {"WANDB_DATA_DIR": str(folder / "wandb"), "WANDB_CACHE_DIR": str(folder)}
        variables = {name: value for name, value in variables.items() if name not in os.environ}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name, None)


def logged_in() -> bool:
    """Return whether wandb finds an API key in the environment or where `wandb login` stores it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
