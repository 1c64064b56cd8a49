"""An encoder that fits nothing, for tests of the tools around one.

Equal Gaussians on a grid, as many as `bytes` or `bpp` ask for, each with the mean of its cell; `layers=2`
puts every other one into a second layer.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image

from splatexp.image.codec import gsi
from splatexp.image.codec.symbols import Header, Quantizer, Symbols, place_counts

BITS = 24  # of a Gaussian, about
SCALE = 512  # steps of scale: half octaves


def check_settings(words):
    """Hold the words against what it knows.  Raises: ValueError."""
    if unknown := sorted(
        {word.split("=")[0] for word in words} - {"bpp", "bytes", "quality", "layers", "threads"}
    ):
        raise ValueError(f"{unknown[0]}: no such key")


def encode(picture, words=(), *, on_step=lambda done, steps: None):
    """Something with the file's bytes.  Raises: ValueError for settings that it does not know."""
    check_settings(words)
    settings = dict(word.split("=", 1) for word in words)
    height, width, channels = picture.pixels.shape
    size = float(settings.get("bytes", float(settings.get("bpp", 0.5)) * height * width / 8))
    spacing = max(1.0, (height * width / max(1, 8 * size / BITS)) ** 0.5)
    across, down = max(1, round(width / spacing)), max(1, round(height / spacing))
    colors = [_mean(picture.pixels[..., c], across, down) for c in range(channels)]
    if channels >= 3:
        red, green, blue = colors[:3]
        y = 0.299 * red + 0.587 * green + 0.114 * blue
        colors[:3] = y, (blue - y) / 1.772, (red - y) / 1.402
    n, shift = across * down, int(np.clip(np.ceil(np.log2(spacing)), 0, 8))
    scales = [
        round(np.log2(0.55 * side / count) * 1024 / SCALE)
        for side, count in ((width, across), (height, down))
    ]
    area = 2.0 ** (sum(scales) * SCALE / 1024)
    quantizer = Quantizer(shift, SCALE, 64, 8, (0.02 * area**0.5,) * channels)
    shape, classes = np.tile([*scales, 0], (n, 1)), np.zeros(n, int)
    means = np.stack(
        np.meshgrid((np.arange(across) + 0.5) * width / across, (np.arange(down) + 0.5) * height / down), -1
    )
    cells = means.reshape(n, 2) / (1 << shift)
    place = np.floor(cells % 1 * place_counts(quantizer, classes, shape)).astype(int)
    steps = np.round(np.stack(colors, -1).reshape(n, channels) / 0.02).astype(int)
    rows = Symbols(classes, shape, np.floor(cells).astype(int) + 1, place, steps)
    header = Header(width, height, channels, picture.bits, "normalized", 0, (0,) * channels, quantizer)
    odd = (np.add.outer(np.arange(down), np.arange(across)) % 2 == 1).ravel()
    layers = [rows.take(~odd), rows.take(odd)] if settings.get("layers") == "2" else [rows]
    on_step(1, 1)
    return SimpleNamespace(data=gsi.dump(header, layers))


def install(monkeypatch) -> None:
    """Have it take the encoder's place, also where an encoding would be a process of its own."""
    from splatexp.image import tasks

    module = ModuleType("splatexp.image.encode")
    module.encode, module.check_settings = encode, check_settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "splatexp.image.encode", module)
    monkeypatch.setattr(tasks.EncoderProcesses, "encode", lambda self, pair, words: tasks.encode(pair, words))


def _mean(values, across, down):
    return np.asarray(Image.fromarray(values).resize((across, down), Image.Resampling.BOX), np.float64)
