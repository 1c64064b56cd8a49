"""One run, from its settings to its files: checkpoints, resuming, memory, the manifest."""

from splatexp.run.run import Run

__all__ = ["Run"]
