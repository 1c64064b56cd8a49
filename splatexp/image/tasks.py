"""The work of the command line on a single file."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from splatexp.image.files import FilePair, exit_reason
from splatexp.io.atomic import atomic_write

STOP_SECONDS = 5.0  # that a process has to end by itself


def encode(pair: FilePair, words: Sequence[str]) -> str:
    """Encode an image, decode the result, and return a message about it.

    Raises: OSError, ValueError.
    """
    from splatexp.image.bench import fidelity
    from splatexp.image.codec import gsi
    from splatexp.image.codec.decode import decode as decoded
    from splatexp.image.encode import encode as encoded
    from splatexp.io import image_file
    from splatexp.train.progress import ProgressBar

    image, began = image_file.read_image(pair.source), time.perf_counter()
    with ProgressBar(0, 1, show=sys.stderr.isatty()) as bar:

        def report(done: int, steps: int) -> None:
            if bar.due:
                bar.progress.update(bar.task, total=steps)
                bar.draw(done, pair.source.name)

        data = encoded(image, words, on_step=report).data
    seconds = time.perf_counter() - began
    with atomic_write(pair.target) as temp:
        temp.write_bytes(data)
    file = gsi.load(data)
    rate = 8 * len(data) / (image.width * image.height)
    db = fidelity.psnr(decoded(file), image.integers())
    count = sum(len(layer) for layer in file.layers)
    return (
        f"{pair.source} -> {pair.target}: {len(data):,} bytes, {rate:.3f} bpp, {db:.2f} dB, "
        f"{count:,} Gaussians, {seconds:.1f} s"
    )


class EncoderProcesses:
    """Encodings that run in processes of their own, with one thread each; `stop` ends them early."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._over = threading.Lock(), False

    def encode(self, pair: FilePair, words: Sequence[str]) -> str:
        """Encode as the function `encode` does, in a process of its own.

        Warns: UserWarning of what the process warns of.
        Raises: ValueError with the process's last line, or how it was killed.
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
            self.stop()
            raise
        finally:
            self._running.discard(process)
        for line in err.splitlines():
            if line.startswith("warning: "):
                warnings.warn(f"{pair.source}: {line.removeprefix('warning: ')}", stacklevel=2)
        if status := process.returncode:
            said = err.strip().splitlines() if status > 0 else []
            raise ValueError(said[-1].removeprefix("error: ") if said else exit_reason(status))
        return out.strip()

    def stop(self) -> None:
        """Stop the processes that run, by SIGINT, so that they remove unfinished files; start no more."""
        with self._lock:
            self._over, running = True, list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _path(path: Path) -> str:
    """Return a path as a word of the command line that cannot be read as a setting."""
    return f"./{path}" if "=" in path.parts[0] or path.parts[0].startswith("~") else str(path)


def decode(
    pair: FilePair,
    layers: int | None = None,
    scale: float = 1.0,
    crop: tuple[int, int, int, int] | None = None,
) -> str:
    """Decode a file and write the image; return a message about it.

    Warns: UserWarning for a file that is truncated.
    Raises: OSError, ValueError, with one line.
    """
    from splatexp.image.codec import gsi
    from splatexp.image.codec.decode import decode as decoded
    from splatexp.io import image_file

    file = gsi.load(Path(pair.source).read_bytes())
    pixels = decoded(file, layers=layers, scale=scale, crop=crop)
    image_file.write_image(pair.target, pixels, 8 * pixels.dtype.itemsize)
    if file.truncation:
        warnings.warn(f"{pair.source}: {file.truncation}", stacklevel=2)
    return f"{pair.source} -> {pair.target}: {pixels.shape[1]} x {pixels.shape[0]}"
