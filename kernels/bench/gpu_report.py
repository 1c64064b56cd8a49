"""The report of `python kernels/bench gpu`: printed as it comes, and kept for gpu.json and gpu.md."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


class Report:
    """The results of the parts: printed as they come, and kept for gpu.json and gpu.md."""

    def __init__(self, asked: argparse.Namespace, device: str) -> None:
        self.asked, self.device = asked, device
        self.found: dict[str, Any] = {}
        self.lines: list[str] = []
        self.failed: list[str] = []
        self.on_gpu = device != "cpu"
        self.folder = Path(asked.out) if asked.out else None

    def part(self, name: str, run: Callable[[Report], None]) -> None:
        """Run one part; print what it raises, and continue with the next."""
        self.say("", f"## {name}", "")
        start = datetime.now(timezone.utc)
        with self.guarded(name):
            run(self)
        self.say("", f"{name}: {(datetime.now(timezone.utc) - start).total_seconds():.0f} s")
        self.write()

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Count an exception inside the context as a failure of the part, and continue."""
        try:
            yield
        except Exception:
            self.fail(name, traceback.format_exc())

    def fail(self, name: str, why: str) -> None:
        """Record that a part failed, and why."""
        self.say("```", why.rstrip(), "```")
        if name not in self.failed:
            self.failed.append(name)

    def say(self, *lines: str) -> None:
        """Print lines, and keep them."""
        print(*lines, sep="\n", flush=True)
        self.lines += lines

    def table(self, columns: str) -> None:
        """Begin a Markdown table whose columns are as wide as given between |; rows are printed as they
        come.
        """
        self.widths = [len(name) for name in columns.split("|")]
        self.row(*(name.strip() for name in columns.split("|")))
        self.row(*("-" * (width - 1) + "-:"[i > 0] for i, width in enumerate(self.widths)))

    def row(self, *cells: str) -> None:
        """Add a row to the table: numbers are right-aligned, missing cells at the end are empty."""
        filled = [*cells, *[""] * (len(self.widths) - len(cells))]
        sides = "<" + ">" * (len(filled) - 1)
        padded = (
            f"{cell:{side}{width}}" for cell, side, width in zip(filled, sides, self.widths, strict=True)
        )
        self.say(f"| {' | '.join(padded)} |")

    def write(self) -> None:
        """Write the results so far."""
        if self.folder:
            (self.folder / "gpu.json").write_text(json.dumps(self.found | {"failed": self.failed}, indent=1))
            (self.folder / "gpu.md").write_text("\n".join(self.lines) + "\n")
