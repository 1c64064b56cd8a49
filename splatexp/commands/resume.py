"""Continue a run that was interrupted.

    python -m splatexp.resume run=<folder>

continues the run in `folder` from its newest checkpoint, with the settings that it was started with.
"""

import sys
from dataclasses import replace
from pathlib import Path

from splatexp.run.checkpoint import list_checkpoints
from splatexp.run.manifest import read_manifest_list


def resume_run(run: str) -> None:
    """Continue the run in the folder `run` from its newest checkpoint, with the settings it was started with.

    Raises: OSError or ValueError, one line, where there is no run to continue.
    """
    from splatexp.config.build import load_run

    folder = Path(run)
    if not list_checkpoints(folder / "checkpoints"):
        raise FileNotFoundError(f"run: expected the folder of a run with checkpoints, got {folder}")
    settings = replace(load_run(folder), resume="auto")
    scene, state = settings.prepare(folder)
    for line in state.messages:
        print(line, file=sys.stderr)
    settings.fit(scene, state, folder, read_manifest_list(folder, "overrides"))


def main() -> None:
    """Run the command `python -m splatexp.resume`."""
    from splatexp.commands.command_line import run_command

    try:
        run_command(__doc__ or "", {"run": str}, resume_run)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
