"""What the command line does with one file."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from splatexp.atomic import replaced
from splatexp.image.batch import Pair


def encode(pair: Pair, words: Sequence[str]) -> str:
    """Encode a picture, decode what came, and say how it went.  Raises: OSError, ValueError."""
    from splatexp.image import fidelity, gsi, pictures
    from splatexp.image.decode import decode as decoded
    from splatexp.image.encode import encode as encoded
    from splatexp.progress import Bar

    picture, began = pictures.read(pair.source), time.perf_counter()
    with Bar(0, 1, show=sys.stderr.isatty()) as bar:

        def told(done: int, steps: int) -> None:
            if bar.due:
                bar.progress.update(bar.task, total=steps)
                bar.draw(done, pair.source.name)

        data = encoded(picture, words, on_step=told).data
    seconds = time.perf_counter() - began
    with replaced(pair.target) as temp:
        temp.write_bytes(data)
    file = gsi.load(data)
    rate = 8 * len(data) / (picture.width * picture.height)
    db = fidelity.psnr(decoded(file), picture.integers())
    count = sum(len(layer) for layer in file.layers)
    return (
        f"{pair.source} -> {pair.target}: {len(data):,} bytes, {rate:.3f} bpp, {db:.2f} dB, "
        f"{count:,} Gaussians, {seconds:.1f} s"
    )


def encode_apart(pair: Pair, words: Sequence[str]) -> str:
    """`encode` in a process of its own, with one thread.  Raises: ValueError with its last line."""
    command = [sys.executable, "-m", "splatexp.image", "encode", str(pair.source), str(pair.target)]
    threads = [] if any(word.startswith("threads=") for word in words) else ["threads=1"]
    done = subprocess.run([*command, *words, *threads], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise ValueError(said[-1].removeprefix("error: "))
    return done.stdout.strip()


def decode(
    pair: Pair,
    layers: int | None = None,
    scale: float = 1.0,
    crop: tuple[int, int, int, int] | None = None,
) -> str:
    """Decode a file and write the picture.  Returns: what there is to say, which is little.

    Warns: UserWarning of a file that is not all there.
    Raises: OSError, ValueError, with one line.
    """
    from splatexp.image import gsi, pictures
    from splatexp.image.decode import decode as decoded

    file = gsi.load(Path(pair.source).read_bytes())
    pixels = decoded(file, layers=layers, scale=scale, crop=crop)
    pictures.write(pair.target, pixels, 8 * pixels.dtype.itemsize)
    if file.lacks:
        warnings.warn(f"{pair.source}: {file.lacks}", stacklevel=2)
    return f"{pair.source} -> {pair.target}: {pixels.shape[1]} x {pixels.shape[0]}"
