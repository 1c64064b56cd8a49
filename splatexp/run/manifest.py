"""run.json: which run this is, on what code, data and machine, and the times it was started and ended."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.evaluation.metrics import protocol_of
from splatexp.io.atomic import write_text
from splatexp.provenance.environment import data_hashes, dirty_diff, provenance
from splatexp.provenance.identity import run_id
from splatexp.tracking import Session

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.run.state import State
    from splatexp.train.recipe import Recipe


class Journal:
    """Writes run.json into the run's folder, and code.diff where the checkout differs from its commit.

    A resumed run adds a part; the rest tells of the latest.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Mapping[str, Any],
        scene: Scene,
        state: State,
        folder: Path,
        overrides: Sequence[str],
    ):
        self.scene, self.state = scene, state
        self.path, self.overrides = folder / "run.json", list(overrides)
        protocol = protocol_of(scene, recipe.data)
        self.id = run_id(recipe.config(), scene.fingerprint, protocol)
        facts = {
            "overrides": self.overrides,
            "protocol": protocol,
            **provenance(),
            "data": data_hashes(scene),
        }
        parts = earlier(folder, "parts") if state.step else []
        parts.append({"start": state.step, "began": _now(), "changes": state.news})
        self.contents = {"id": self.id, "config": config, **facts, "parts": parts}
        self.session = Session(
            id=self.id, folder=folder, config=config, steps=recipe.steps, start=state.step, facts=facts
        )
        self._write()
        if diff := dirty_diff():
            self._attempt(lambda: write_text(folder / "code.diff", diff))

    def notes(self) -> dict[str, Any]:
        """What every checkpoint says of the run it is of."""
        names = ("id", "config", "overrides", "protocol", "code_sha256", "git")
        said = {name: self.contents[name] for name in names}
        view = self.scene.train[self.scene.sample(self.state.step, self.contents["config"]["seed"])]
        return said | {"data_sha256": self.scene.fingerprint, "next_view": view.name}

    def finish(self, code: int) -> None:
        """Note the end of this part; 0: it went well."""
        self.contents["parts"][-1] |= {"ended": _now(), "exit": code}
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.contents, indent=1, default=str) + "\n"
        self._attempt(lambda: write_text(self.path, text))

    def _attempt(self, act: Any) -> None:
        """No run fails for want of its journal."""
        try:
            act()
        except OSError as error:
            warnings.warn(f"{error.strerror or error}; the run goes on", stacklevel=4)


def earlier(folder: Path, name: str) -> list[Any]:
    """A list in the run.json of an earlier process; [] where there is none that can be read."""
    try:
        said = json.loads((folder / "run.json").read_text(encoding="utf-8"))[name]
        return said if isinstance(said, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
