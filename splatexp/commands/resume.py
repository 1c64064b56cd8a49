"""Go on with a run that was interrupted.

    python -m splatexp.resume run=<folder>

takes up the run in `folder` from its newest checkpoint, with the settings that it was started with.
"""

import sys
from dataclasses import replace
from pathlib import Path

from splatexp.run.checkpoint import found
from splatexp.run.manifest import earlier


def again(run: str) -> None:
    """Go on with the run in a folder from its newest checkpoint, as it was started.

    Raises: OSError, ValueError with one line where there is nothing to go on with.
    """
    from splatexp.config.build import load_run

    folder = Path(run)
    if not found(folder / "checkpoints"):
        raise FileNotFoundError(f"run: expected the folder of a run with checkpoints, got {folder}")
    going = replace(load_run(folder), resume="auto")
    scene, state = going.prepare(folder)
    for line in state.news:
        print(line, file=sys.stderr)
    going.fit(scene, state, folder, earlier(folder, "overrides"))


def main() -> None:
    """The command `python -m splatexp.resume`."""
    from splatexp.settings.arguments import command

    try:
        command(__doc__ or "", {"run": str}, again)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
