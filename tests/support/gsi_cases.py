"""Layers of symbols for the tests of .gsi files: every kind of header, and Gaussians as pictures have."""

from __future__ import annotations

from splatexp.image.codec.fuzz import header_of, layer_of

__all__ = ["cases", "header_of", "layer_of"]


def cases():
    """Named (header, layers): what a decoder must be able to read."""
    found = {
        "rgb": (header_of(), [90]),
        "grey": (header_of(channels=1), [60]),
        "grey_alpha": (header_of(channels=2, background=(20000, 65535)), [60]),
        "rgba": (header_of(channels=4, background=(0, 30000, 65535, 50000)), [60]),
        "sixteen": (header_of(bits=16), [60]),
        "grey_sixteen": (header_of(channels=1, bits=16, background=(12345,)), [40]),
        "normalized": (header_of(mode="normalized", step=1.0), [120]),
        "top": (header_of(mode="normalized", top_k=4, step=1.0), [120]),
        "top_sum": (header_of(top_k=3), [80]),
        "layers": (header_of(), [30, 40, 50]),
        "sixteen_layers": (header_of(), [5] * 16),
        "empty": (header_of(), [0]),
        "empty_layers": (header_of(), [0, 20, 0]),
        "one": (header_of(), [1]),
        "pixel": (header_of(1, 1), [3]),
        "row": (header_of(200, 1), [20]),
        "column": (header_of(1, 200), [20]),
        "tiny_cells": (header_of(cell_shift=0, position_index=0), [60]),
        "huge_cells": (header_of(300, 260, cell_shift=8, position_index=12), [60]),
        "one_place": (header_of(position_index=-200), [60]),
        "all_places": (header_of(position_index=200), [60]),
        "fine_steps": (header_of(scale_step=1, shear_step=1, step=2.0**-8), [60]),
        "coarse_steps": (header_of(scale_step=8192, shear_step=8192, step=1.0), [60]),
        "odd_sides": (header_of(61, 19), [70]),
        "crowd": (header_of(40, 40, cell_shift=4), [900]),
    }
    for name, (header, counts) in found.items():
        found[name] = header, [layer_of(header, n, i) for i, n in enumerate(counts)]
    found["classes"] = header_of(), [layer_of(header_of(), 90, precision=(0, 12))]
    found["needles"] = header_of(), [layer_of(header_of(), 60, log2=(-4, 5), shear=30)]
    return found
