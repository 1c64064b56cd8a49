"""A description of the contents of a .gsi file, as numbers and as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from splatexp.image.codec import gsi
from splatexp.io.image_file import CHANNEL_NAMES


def describe(path: Path) -> dict[str, Any]:
    """Return header, sections with their bytes, layers with their Gaussians, and the bits of each attribute.

    Raises: OSError; GsiError with one line.
    """
    data = path.read_bytes()
    file = gsi.load(data)
    header, q = file.header, file.header.quantizer
    bits = gsi.bits_by_stream(header, file.layers)
    return {
        "file": str(path),
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height),
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "bits": header.bits,
        "mode": header.mode,
        "top_k": header.top_k,
        "background": [round(value, 5) for value in header.background_color.tolist()],
        "quantizer": {
            "cell": 1 << q.cell_shift,
            "scale_step": q.scale_step / 1024,
            "shear_step": q.shear_step / 1024,
            "positions_per_sigma": 2 ** (q.position_index / 4),
            "color_steps": list(q.color_steps),
        },
        "gaussians": sum(len(layer) for layer in file.layers),
        "layers": [
            {"gaussians": len(layer), "bits": streams}
            for layer, streams in zip(file.layers, bits, strict=True)
        ],
        "layers_declared": file.declared,
        "truncated": file.truncated,
        "truncation": file.truncation,
        "sections": [{"name": section.name, "bytes": section.size} for section in file.sections],
        "metadata_bytes": len(file.metadata),
    }


def to_json(found: dict[str, Any]) -> str:
    """Return the description as JSON, for programs."""
    return json.dumps(found, indent=1)


def to_text(found: dict[str, Any]) -> str:
    """Return the description as text, for people."""
    q, n = found["quantizer"], found["gaussians"]
    blend = found["mode"] + (f", the {found['top_k']} largest" if found["top_k"] else "")
    steps = ", ".join(f"{step:.4g}" for step in q["color_steps"])
    kind = f"{CHANNEL_NAMES[found['channels']]}, {found['bits']} bits"
    lines = [
        f"{found['file']}: {found['bytes']:,} bytes, {found['bpp']:.4f} bpp, {n:,} Gaussians"
        + (f", {8 * found['bytes'] / n:.1f} bits each" if n else ""),
        f"  image       {found['width']} x {found['height']}, {kind}",
        f"  blend       {blend}, on {', '.join(f'{value:.4g}' for value in found['background'])}",
        f"  steps       log2 of scale {q['scale_step']:.4g}, shear {q['shear_step']:.4g}, "
        f"{q['positions_per_sigma']:.3g} positions per sigma, colours {steps}; cells of {q['cell']} px",
        "  sections",
    ]
    lines += [f"    {section['name']:<8}{section['bytes']:>10,} bytes" for section in found["sections"]]
    lines += [f"    {'all':<8}{sum(section['bytes'] for section in found['sections']):>10,} bytes"]
    names = list(dict.fromkeys(name for layer in found["layers"] for name in layer["bits"]))
    lines += ["  bits per Gaussian, each attribute coded alone", _row("layer", "Gaussians", [*names, "all"])]
    for number, layer in enumerate(found["layers"], 1):
        share = [layer["bits"].get(name, 0) / max(layer["gaussians"], 1) for name in names]
        cells = [f"{value:.2f}" for value in (*share, sum(share))]
        lines.append(_row(str(number), f"{layer['gaussians']:,}", cells))
    if found["truncated"]:
        lines.append(f"  {found['truncation']}")
    if found["metadata_bytes"]:
        lines.append(f"  metadata    {found['metadata_bytes']:,} bytes")
    return "\n".join(lines)


def _row(first: str, second: str, cells: list[str]) -> str:
    return f"    {first:<8}{second:>10}" + "".join(f"{cell:>{max(10, len(cell) + 2)}}" for cell in cells)
