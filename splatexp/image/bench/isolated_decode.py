"""Files of codecs held against their pictures, in a process that has seen neither.

Every line of its standard input is JSON, {"file": ..., "truth": ...}; every line of its output the answer:
`psnr` (dB), `ms_ssim`, `decode_seconds`, `count` of Gaussians where there are some; or `error`, one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from splatexp.image.files import ended


def judged(pairs: Sequence[tuple[Path, Path]]) -> Iterator[dict[str, Any]]:
    """The answers for files and their pictures, in order, from one fresh process.

    Raises: ChildProcessError where that process ends before its answers do.
    """
    asked = "".join(json.dumps({"file": str(file), "truth": str(truth)}) + "\n" for file, truth in pairs)
    command = [sys.executable, "-m", "splatexp.image.bench.isolated_decode"]
    if not pairs:
        return
    done = subprocess.run(command, input=asked, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(pairs):
        said = " ".join(done.stderr.split())[-300:]
        raise ChildProcessError(f"the decoding process {ended(done.returncode)}: {said}".rstrip(": "))
    yield from (json.loads(line) for line in lines)


def judge(file: Path, truth: Path) -> dict[str, Any]:
    """Decode a file from its bytes and measure it.  Raises: OSError, ValueError."""
    from splatexp.image.bench import codecs, fidelity
    from splatexp.io import image_file

    picture, data = image_file.read(truth), file.read_bytes()
    found: dict[str, Any] = {}
    if file.suffix == ".gsi":
        from splatexp.image.codec import decode, gsi

        began = time.perf_counter()
        parts = gsi.load(data)
        image = decode.decode(parts)
        found["count"] = sum(len(layer) for layer in parts.layers)
    else:
        began = time.perf_counter()
        image = codecs.decoded(data, picture.channels)
    found["decode_seconds"] = time.perf_counter() - began
    found["psnr"] = fidelity.psnr(image, picture.integers())
    return found | {"ms_ssim": fidelity.ms_ssim(image, picture.integers())}


def main() -> int:
    """Answer standard input."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = judge(Path(asked["file"]), Path(asked["truth"]))
        except (OSError, ValueError) as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
