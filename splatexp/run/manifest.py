"""run.json, the manifest of a run: which run it is, on which code, data and machine, and when it was run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.evaluation.metrics import scene_protocol
from splatexp.io.atomic import write_text
from splatexp.provenance.environment import data_hashes, provenance
from splatexp.provenance.git import dirty_diff
from splatexp.provenance.identity import run_id
from splatexp.tracking import Session

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.run.state import TrainingState
    from splatexp.train.recipe import Recipe


class Manifest:
    """Writes run.json into the run's folder, and code.diff where the checkout differs from its commit.

    A resumed run appends an entry to `sessions`; everything else describes the latest session.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Mapping[str, Any],
        scene: Scene,
        state: TrainingState,
        folder: Path,
        overrides: Sequence[str],
    ):
        self.scene, self.state = scene, state
        self.path = folder / "run.json"
        self.overrides = list(overrides)
        protocol = scene_protocol(scene, recipe.data)
        self.id = run_id(recipe.config(), scene.fingerprint, protocol)
        facts = {
            "overrides": self.overrides,
            "protocol": protocol,
            **provenance(),
            "data": data_hashes(scene),
        }
        sessions = read_manifest_list(folder, "sessions") if state.step else []
        sessions.append({"start_step": state.step, "started_at": _now(), "messages": state.messages})
        self.contents = {"id": self.id, "config": config, **facts, "sessions": sessions}
        self.session = Session(
            id=self.id, folder=folder, config=config, steps=recipe.steps, start=state.step, provenance=facts
        )
        self._write()
        if diff := dirty_diff():
            self._warn_if_it_fails(lambda: write_text(folder / "code.diff", diff))

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return what every checkpoint says of the run."""
        names = ("id", "config", "overrides", "protocol", "code_sha256", "git")
        metadata = {name: self.contents[name] for name in names}
        next_view = self.scene.train[self.scene.sample(self.state.step, self.contents["config"]["seed"])]
        return metadata | {"data_sha256": self.scene.fingerprint, "next_view": next_view.name}

    def finish(self, exit_code: int) -> None:
        """Note the end of this session; 0 means success."""
        self.contents["sessions"][-1] |= {"ended_at": _now(), "exit_code": exit_code}
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.contents, indent=1, default=str) + "\n"
        self._warn_if_it_fails(lambda: write_text(self.path, text))

    def _warn_if_it_fails(self, write: Callable[[], None]) -> None:
        """Call `write`; the run continues without the file if it cannot be written."""
        try:
            write()
        except OSError as error:
            warnings.warn(f"{error.strerror or error}; the run continues", stacklevel=4)


def read_manifest_list(folder: Path, name: str) -> list[Any]:
    """Return a list from the run.json of an earlier session; [] where there is none that can be read.

    Runs of version 0.1 call the list of sessions `parts`.
    """
    try:
        contents = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        values = contents[name] if name in contents or name != "sessions" else contents["parts"]
        return values if isinstance(values, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
