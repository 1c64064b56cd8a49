"""The report of a bench: a page in Markdown, the curves as a PNG, every row as CSV, the numbers as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from splatexp.image.bench import chart, codecs
from splatexp.image.bench.bdrate import Curve, at_rate, bd_psnr, bd_rate
from splatexp.io.atomic import atomic_write, write_text

if TYPE_CHECKING:
    from splatexp.image.bench.settings import BenchSettings, Row

RATES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)  # bpp of the table
LOW, HIGH = 0.1, 1.0  # bpp between which curves are compared
COLUMNS = (
    "codec",
    "setting",
    "image",
    "width",
    "height",
    "bytes",
    "bpp",
    "psnr",
    "ms_ssim",
    "num_gaussians",
    "encode_seconds",
    "decode_seconds",
    "version",
    "file",
    "error",
)
BASE = "jpeg"
HEADS = (
    "",
    "setting",
    "images",
    "bpp",
    "PSNR",
    "MS-SSIM",
    "Gaussians",
    "encode, s",
    "decode, s",
    "cold command, s",
)
FORMATS = {
    "bpp": ".4f",
    "psnr": ".2f",
    "ms_ssim": ".4f",
    "num_gaussians": ",.0f",
    "encode_seconds": ".2f",
    "decode_seconds": ".3f",
    "cold_seconds": ".2f",
}
ABOUT = """
Rates are the bytes of whole files times 8 over pixels. Every file was decoded from disk, in a process that
had not seen the image before, to integers of its bits; PSNR is over all pixels and channels, and its mean is
over images.

![Rate and distortion of the codecs](curves.png)
"""
ABOUT_RATES = """
Interpolated image by image, PSNR over the logarithm of the rate, and never beyond a curve's ends. `*`: not
all images have points on both sides, for example because a codec's smallest file is larger than that; then
the value is that of the curve of means.
"""
ABOUT_DIFFERENCES = """
Bjontegaard differences, image by image, by PCHIP over the range that both curves cover within these rates.
Negative rates are savings.
"""
ABOUT_SETTINGS = """
Seconds are wall time of one image, with one thread. Encoding a .gsi includes the start of a process; decoding
does not, but `cold command` does: all of `python -m splatexp.image decode`, the median of three, for the first
image.
"""
Rows = Sequence[Mapping[str, Any]]


def write_report(settings: BenchSettings, rows: Sequence[Row], cold: Mapping[str, float]) -> list[Path]:
    """Write the whole report.

    Returns: the files.
    """
    place, found = settings.output, summary(rows, cold)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(place / "results.csv", table.getvalue())
    write_text(place / "results.json", json.dumps(found, indent=1) + "\n")
    files = [place / "report.md", place / "curves.png", place / "results.csv", place / "results.json"]
    good = [row for row in rows if "error" not in row]
    if good:
        count = len({row["image"] for row in good})
        panels = [_panel("PSNR, dB", "psnr", found), _panel("MS-SSIM as -10 log10(1 - it)", "ms_ssim", found)]
        name = Path(settings.folder).resolve().name
        caption = (
            f"{name}, means over {count} image{'s' * (count > 1)}, setting by setting; bytes of whole files"
        )
        with atomic_write(files[1]) as temp:
            temp.write_bytes(chart.draw_chart(panels, caption))
    else:
        files.pop(1)
    write_text(files[0], _page(settings, found))
    return files


def label(codec: str) -> str:
    """Return the name of a codec for people."""
    return ".gsi" if codec == "gsi" else codecs.CODECS[codec].label


def summary(rows: Rows, cold: Mapping[str, float]) -> dict[str, Any]:
    """Return all numbers of the page: `settings` (means over images), `at_rates`, `bjontegaard` (against
    JPEG).
    """
    good = [row for row in rows if "error" not in row]
    codecs = list(dict.fromkeys(row["codec"] for row in good))
    settings = [_mean(codec, setting, good, cold) for codec, setting in _settings(good)]
    curves = {codec: _curves(good, codec) for codec in codecs}
    failed = [[row[key] for key in ("path", "codec", "setting", "error")] for row in rows if "error" in row]
    versions = {codec: sorted({row["version"] for row in good if row["codec"] == codec}) for codec in codecs}
    base = curves.get(BASE)
    return {
        "images": sorted({row["image"] for row in good}),
        "settings": settings,
        "at_rates": {
            codec: [_at(curves[codec], settings, codec, rate) for rate in RATES] for codec in codecs
        },
        "bjontegaard": {c: _against(base, curves[c]) for c in codecs if c != BASE} if base else {},
        "failed": failed,
        "versions": versions,
    }


def _settings(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["codec"], row["setting"]) for row in rows))


def _mean(codec: str, setting: str, rows: Rows, cold: Mapping[str, float]) -> dict[str, Any]:
    """Return the means over the images of one setting."""
    these = [row for row in rows if (row["codec"], row["setting"]) == (codec, setting)]
    found: dict[str, Any] = {"codec": codec, "setting": setting, "images": len(these)}
    for key in ("bpp", "psnr", "ms_ssim", "num_gaussians", "encode_seconds", "decode_seconds"):
        values = [row.get(key) for row in these]
        if None not in values:
            found[key] = fmean(values)  # type: ignore[arg-type]
    if codec == "gsi" and setting in cold:
        found["cold_seconds"] = cold[setting]
    return found


def _curves(rows: Rows, codec: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points (bpp, PSNR) of each image."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["codec"] == codec:
            found.setdefault(row["image"], []).append((row["bpp"], row["psnr"]))
    return found


def _at(curves: Mapping[str, Curve], settings: Rows, codec: str, rate: float) -> dict[str, Any]:
    """Return the mean PSNR at a rate over images, each interpolated, and how many of them have points on both
    sides.

    Where not all have, `psnr` is that of the curve of means, and `whole` is false.
    """
    values = [at_rate(curve, rate) for curve in curves.values()]
    there = [value for value in values if value is not None]
    if len(there) == len(values):
        return {"bpp": rate, "psnr": fmean(there), "whole": True, "images": len(there)}
    means = [(row["bpp"], row["psnr"]) for row in settings if row["codec"] == codec]
    return {"bpp": rate, "psnr": at_rate(means, rate), "whole": False, "images": len(there)}


def _against(base: Mapping[str, Curve], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Return the Bjontegaard differences image by image and their means, from `LOW` to `HIGH` bpp."""
    both = [name for name in curves if name in base]
    rates = [bd_rate(base[name], curves[name], LOW, HIGH) for name in both]
    gains = [bd_psnr(base[name], curves[name], LOW, HIGH) for name in both]
    found: dict[str, Any] = {}
    for key, values in (("bd_rate", rates), ("bd_psnr", gains)):
        there = [value for value in values if value is not None]
        found[key] = {"images": len(there)}
        if there:
            found[key] |= {"mean": fmean(there), "median": median(there), "better": _wins(key, there)}
    return found


def _wins(key: str, values: Sequence[float]) -> int:
    return sum(value < 0 if key == "bd_rate" else value > 0 for value in values)


def _panel(title: str, key: str, found: Mapping[str, Any]) -> chart.Panel:
    panel = chart.Panel(title)
    for codec in dict.fromkeys(row["codec"] for row in found["settings"]):
        these = [row for row in found["settings"] if row["codec"] == codec and key in row]
        values = [row[key] if key == "psnr" else _decibel(row[key]) for row in these]
        rates = [row["bpp"] for row in these]
        panel.curves[codec] = (label(codec), list(zip(rates, values, strict=True)))
    return panel


def _decibel(similarity: float) -> float:
    return -10 * math.log10(max(1 - similarity, 1e-6))


def _page(settings: BenchSettings, found: Mapping[str, Any]) -> str:
    """Return the page."""
    codecs, at = list(found["at_rates"]), found["at_rates"]
    name, count = Path(settings.folder).resolve().name, len(found["images"])
    parts = [f"# Codecs on {name}: {count} image{'s' * (count != 1)}", ABOUT]
    there = [i for i in range(len(RATES)) if any(at[codec][i]["psnr"] is not None for codec in codecs)]
    parts += ["## PSNR at equal rates, dB", ""]
    lines = [[label(codec), *(_cell(at[codec][i]) for i in there)] for codec in codecs]
    parts += [*_table(["", *(f"{RATES[i]:g} bpp" for i in there)], lines), ABOUT_RATES]
    if found["bjontegaard"]:
        heads = ["", "BD-rate, mean", "median", "images with less", "BD-PSNR, mean", "images with more"]
        lines = [[label(codec), *_differences(found["bjontegaard"][codec])] for codec in found["bjontegaard"]]
        parts += [f"## Against {label(BASE)}, {LOW:g} to {HIGH:g} bpp", "", *_table(heads, lines)]
        parts += [ABOUT_DIFFERENCES]
    lines = []
    for row in found["settings"]:
        cells = [f"{row[key]:{form}}" if key in row else "" for key, form in FORMATS.items()]
        lines.append([label(row["codec"]), f"`{row['setting']}`", str(row["images"]), *cells])
    parts += ["## Every setting", "", *_table(HEADS, lines), ABOUT_SETTINGS]
    return "\n".join([*parts, *_notes(settings, found)])


def _cell(at: Mapping[str, Any]) -> str:
    return "" if at["psnr"] is None else f"{at['psnr']:.2f}{'' if at['whole'] else '*'}"


def _differences(found: Mapping[str, Any]) -> list[str]:
    rate, gain = found["bd_rate"], found["bd_psnr"]
    cells = ["no overlap", "", "", "", ""]
    if rate["images"]:
        cells[:2] = f"{rate['mean']:+.1f} %", f"{rate['median']:+.1f} %"
        cells[2] = f"{rate['better']} of {rate['images']}"
    if gain["images"]:
        cells[3:] = f"{gain['mean']:+.2f} dB", f"{gain['better']} of {gain['images']}"
    return cells


def _notes(settings: BenchSettings, found: Mapping[str, Any]) -> list[str]:
    """Return what the versions of the codecs were, and what failed."""
    parts = ["## Made with", ""]
    for codec, versions in found["versions"].items():
        said = f"code {', '.join(v[:12] for v in versions)}" if codec == "gsi" else versions[0]
        more = (
            f"; settings of encode: `{' '.join(settings.extra)}`" if codec == "gsi" and settings.extra else ""
        )
        several = f"; **results of {len(versions)} versions of the code**" if len(versions) > 1 else ""
        parts += [f"- {label(codec)}: {said}{more}{several}"]
    if found["failed"]:
        parts += [
            "",
            "## Left out",
            "",
            *(f"- {p}, {label(c)} `{s}`: {why}" for p, c, s, why in found["failed"]),
        ]
    return [*parts, ""]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
