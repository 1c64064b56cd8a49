"""Estimates of how much memory training takes, and of which settings would take less. Sizes are bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from splatexp.system.memory import available_memory, resident_memory

if TYPE_CHECKING:
    import torch

# What training takes on top of what the process takes at its start. The constants are a least-squares fit to
# peaks of resident memory (CPU kernels, steps with edits of density control; 50,000 to 800,000 rows, 0.1 to 5
# million pixels, SH degrees 0 to 4), accurate to 15 %. Strategies that survey every view take up to a quarter
# more per row.
PARAMETER_BYTES = (
    23  # a number of a row: itself, its gradient, two moments and, for a while, the copy by an edit
)
ROW_BYTES = 280  # a row besides: identity, statistics, projection, sorting and tile lists
PIXEL_BYTES = 120  # a pixel of the rendered view: image, target, loss, their gradients, tile lists
PERSISTENT_PARAMETER_BYTES = 12  # the part of PARAMETER_BYTES that stays between two steps
PERSISTENT_ROW_BYTES = 50  # the part of ROW_BYTES that stays between two steps
DATASET_PIXEL_BYTES = 3  # a pixel of a view of the data set

MAX_GAUSSIANS_KEY, DOWNSCALE_KEY = "densify.max_gaussians", "schedule.min_downscale"  # settings to be reduced
MIN_ROWS = 1_000  # with fewer rows, their number is not reduced
MIN_SIDE = 64  # px; images with a shorter side are not reduced


def step_bytes(count: int, sh_degree: int, width: int, height: int) -> int:
    """Estimate what a step takes and frees again, without the parameters, moments and identities of rows."""
    per_row = PERSISTENT_ROW_BYTES + PERSISTENT_PARAMETER_BYTES * _parameters_per_row(sh_degree)
    return gaussian_bytes(count, sh_degree) - count * per_row + image_bytes(width, height)


def gaussian_bytes(count: int, sh_degree: int) -> int:
    """Estimate what training takes for `count` Gaussians."""
    return count * (ROW_BYTES + PARAMETER_BYTES * _parameters_per_row(sh_degree))


def image_bytes(width: int, height: int) -> int:
    """Estimate what a step takes for an image of width x height px."""
    return width * height * PIXEL_BYTES


def oom_advice(
    count: int,
    width: int,
    height: int,
    sh_degree: int,
    *,
    oom: str = "stop",
    factor: int = 1,
    views: int = 0,
    downscale: int = 1,
    device: torch.device | None = None,
) -> str:
    """Return one line: what is in use and available, and the settings that would take less, best ones first.

    Args:
        count: number of rows.
        width, height: size in px of the images as they are rendered, which are reduced by `factor`.
        views: number of views of the data set, which are kept in memory.
        downscale: the present `data.downscale`; 0: there is no such setting.
        oom: the present setting `oom`.
        device: the device that trains; None: the CPU.
    """
    rows, pixels = gaussian_bytes(count, sh_degree), image_bytes(width, height)
    dataset = views * width * height * factor**2 * DATASET_PIXEL_BYTES
    fewer = _two_digits(count * 3 // 4)
    savings = {f"{MAX_GAUSSIANS_KEY}={fewer:_}": rows - gaussian_bytes(fewer, sh_degree)}
    if sh_degree:
        savings[f"model.sh_degree={sh_degree - 1}"] = rows - gaussian_bytes(count, sh_degree - 1)
    if downscale:
        savings[f"data.downscale={2 * downscale}"] = (pixels + dataset) * 3 // 4
    savings[f"{DOWNSCALE_KEY}={2 * factor}"] = pixels * 3 // 4
    largest = max(savings.values())
    useful = sorted(
        (name for name in savings if savings[name] * 20 >= largest), key=lambda name: -savings[name]
    )
    remedies = ", ".join(f"{name} ({_size(savings[name])} less)" for name in useful)
    if oom != "shrink":
        remedies += ", or oom=shrink"
    used, left = _used_and_available(device)
    dataset_text = f", {_size(dataset)} for {views:,} images of the data set" if dataset else ""
    return (
        f"{_size(used)} in use, {'unknown' if left is None else _size(left)} available; "
        f"about {_size(rows)} for {count:,} Gaussians of SH degree {sh_degree}, "
        f"{_size(pixels)} for a step at {width}x{height}{dataset_text}; what helps: {remedies}"
    )


def next_reduction(
    count: int, width: int, height: int, factor: int = 1, sh_degree: int = 3
) -> tuple[str, int] | None:
    """Return what to reduce after memory has run out: MAX_GAUSSIANS_KEY or DOWNSCALE_KEY, and its new value.

    The number of rows goes to three quarters, or the images to half their size, whichever of the two takes
    more memory; the other one, where there are few rows or the images are small already. None where neither
    is left.

    Args:
        count, width, height, factor, sh_degree: as for `oom_advice`.
    """
    candidates = []
    if count >= MIN_ROWS:
        candidates.append((gaussian_bytes(count, sh_degree), MAX_GAUSSIANS_KEY, count * 3 // 4))
    if min(width, height) >= MIN_SIDE:
        candidates.append((image_bytes(width, height), DOWNSCALE_KEY, 2 * factor))
    return max(candidates)[1:] if candidates else None


def _used_and_available(device: torch.device | None) -> tuple[int, int | None]:
    """Return the memory in use and available, of a device or else of this process."""
    from splatexp.system.devices import memory_use

    return (device and memory_use(device)) or (resident_memory(), available_memory())


def _parameters_per_row(sh_degree: int) -> int:
    """Return how many numbers the parameters of a Gaussian are."""
    return 11 + 3 * (sh_degree + 1) ** 2


def _two_digits(count: int) -> int:
    """Round down to two significant digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return max(1, count // unit * unit)


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
