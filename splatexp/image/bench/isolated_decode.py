"""Decoding and measuring of files in a process that has seen neither them nor their originals before.

Every line of its standard input is JSON, {"file": ..., "original": ...}; every line of its output is the
answer: `psnr` (dB), `ms_ssim`, `decode_seconds`, `num_gaussians` for a .gsi file; or `error`, one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from splatexp.image.files import exit_reason
from splatexp.settings.messages import one_line


def measure_all(pairs: Sequence[tuple[Path, Path]]) -> Iterator[dict[str, Any]]:
    """Yield the measurements of files against their originals, in order, from one new process.

    Raises: ChildProcessError where that process ends before its answers do.
    """
    asked = "".join(
        json.dumps({"file": str(file), "original": str(original)}) + "\n" for file, original in pairs
    )
    command = [sys.executable, "-m", "splatexp.image.bench.isolated_decode"]
    if not pairs:
        return
    done = subprocess.run(command, input=asked, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(pairs):
        said = " ".join(done.stderr.split())[-300:]
        raise ChildProcessError(f"the decoding process {exit_reason(done.returncode)}: {said}".rstrip(": "))
    yield from (json.loads(line) for line in lines)


def measure(file: Path, original: Path) -> dict[str, Any]:
    """Decode a file from its bytes and measure it.

    Raises: OSError, ValueError.
    """
    from splatexp.image.bench import codecs, fidelity
    from splatexp.io import image_file

    image_data, data = image_file.read_image(original), file.read_bytes()
    found: dict[str, Any] = {}
    if file.suffix == ".gsi":
        from splatexp.image.codec import decode, gsi

        began = time.perf_counter()
        parts = gsi.load(data)
        image = decode.decode(parts)
        found["num_gaussians"] = sum(len(layer) for layer in parts.layers)
    else:
        began = time.perf_counter()
        image = codecs.decode(data, image_data.channels)
    found["decode_seconds"] = time.perf_counter() - began
    found["psnr"] = fidelity.psnr(image, image_data.integers())
    return found | {"ms_ssim": fidelity.ms_ssim(image, image_data.integers())}


def main() -> int:
    """Answer all lines of standard input."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = measure(Path(asked["file"]), Path(asked["original"]))
        except (OSError, ValueError) as error:
            answer = {"error": one_line(error)}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
