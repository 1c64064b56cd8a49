"""What the command line does with one file."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from splatexp.image.files import Pair, ended
from splatexp.io.atomic import replaced

PATIENCE = 5.0  # seconds that a process has to end by itself


def encode(pair: Pair, words: Sequence[str]) -> str:
    """Encode a picture, decode what came, and say how it went.  Raises: OSError, ValueError."""
    from splatexp.image.bench import fidelity
    from splatexp.image.codec import gsi
    from splatexp.image.codec.decode import decode as decoded
    from splatexp.image.encode import encode as encoded
    from splatexp.io import image_file
    from splatexp.train.progress import Bar

    picture, began = image_file.read(pair.source), time.perf_counter()
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


class Apart:
    """Encodings, each in a process of its own with one thread, which `end` ends before their time."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._over = threading.Lock(), False

    def encode(self, pair: Pair, words: Sequence[str]) -> str:
        """What `encode` does.

        Warns: UserWarning of what the process warns of.
        Raises: ValueError with its last line, or how it was killed.
        """
        names = [_path(pair.source), _path(pair.target)]
        threads = [] if any(word.startswith("threads=") for word in words) else ["threads=1"]
        command = [sys.executable, "-m", "splatexp.image", "encode", *names, *words, *threads]
        with self._lock:
            if self._over:
                raise ValueError("stopped")
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._running.add(process)
        try:
            out, err = process.communicate()
        except BaseException:
            self.end()
            raise
        finally:
            self._running.discard(process)
        for line in err.splitlines():
            if line.startswith("warning: "):
                warnings.warn(f"{pair.source}: {line.removeprefix('warning: ')}", stacklevel=2)
        if status := process.returncode:
            said = err.strip().splitlines() if status > 0 else []
            raise ValueError(said[-1].removeprefix("error: ") if said else ended(status))
        return out.strip()

    def end(self) -> None:
        """End those that run, by SIGINT, so that they remove what is half written; start no more."""
        with self._lock:
            self._over, running = True, list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _path(path: Path) -> str:
    """A path as a word that is taken for no setting."""
    return f"./{path}" if "=" in path.parts[0] or path.parts[0].startswith("~") else str(path)


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
    from splatexp.image.codec import gsi
    from splatexp.image.codec.decode import decode as decoded
    from splatexp.io import image_file

    file = gsi.load(Path(pair.source).read_bytes())
    pixels = decoded(file, layers=layers, scale=scale, crop=crop)
    image_file.write(pair.target, pixels, 8 * pixels.dtype.itemsize)
    if file.lacks:
        warnings.warn(f"{pair.source}: {file.lacks}", stacklevel=2)
    return f"{pair.source} -> {pair.target}: {pixels.shape[1]} x {pixels.shape[0]}"
