"""How much memory training takes, and which settings would take less. Sizes are bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
from splatexp.system.memory import available, in_use

# What training takes beyond its start: least squares over peaks of resident memory (CPU kernels, steps with
# edits of density control; 50,000 to 800,000 rows, 0.1 to 5 million pixels, SH degrees 0 to 4), 15 % off at
# most. Strategies that survey every view take up to a quarter more for a row.
NUMBER_BYTES = 23  # a parameter, its gradient, two moments and, for a while, the copy that an edit makes


ROW_BYTES = 280  # identity, statistics, projection, sorting and tile lists of a row


PIXEL_BYTES = 120  # picture, target, loss, their gradients, and what is listed in the tiles of a pixel


STAYING_NUMBER_BYTES, STAYING_ROW_BYTES = 12, 50  # of these, between steps


KEPT_BYTES = 3  # of a pixel of every picture of the data set


CAP, FACTOR = "densify.max_gaussians", "schedule.least_factor"  # what `shrink` may set


LEAST_ROWS, LEAST_SIDE = 1_000, 64  # fewer rows, and pictures with a shorter side (px), do not shrink


def step_takes(count: int, sh_degree: int, width: int, height: int) -> int:
    """Bytes that a step takes and frees again, about; what stays is parameters, moments and identity."""
    stays = count * (STAYING_ROW_BYTES + STAYING_NUMBER_BYTES * _numbers(sh_degree))
    return rows_take(count, sh_degree) - stays + pixels_take(width, height)


def rows_take(count: int, sh_degree: int) -> int:
    """Bytes that training takes for so many Gaussians, about."""
    return count * (ROW_BYTES + NUMBER_BYTES * _numbers(sh_degree))


def pixels_take(width: int, height: int) -> int:
    """Bytes that a step takes for a picture, about."""
    return width * height * PIXEL_BYTES


def advice(
    count: int, width: int, height: int, sh_degree: int, *, oom: str = "stop",
    factor: int = 1, pictures: int = 0, downscale: int = 1, device: torch.device | None = None,
) -> str:  # fmt: skip
    """One line: what is used and left, and which settings would have taken less, that which helps most first.

    Args:
        count: rows.
        width, height: px, of the pictures as they are drawn, which is reduced by `factor`.
        pictures: so many the data set keeps in memory.
        downscale: of the data, now; 0: it cannot be set.
        oom: what the run does.
        device: where it trains; None: on the CPU.
    """
    rows, pixels = rows_take(count, sh_degree), pixels_take(width, height)
    kept = pictures * width * height * factor**2 * KEPT_BYTES
    fewer = _round(count * 3 // 4)
    saved = {f"{CAP}={fewer:_}": rows - rows_take(fewer, sh_degree)}
    if sh_degree:
        saved[f"model.sh_degree={sh_degree - 1}"] = rows - rows_take(count, sh_degree - 1)
    if downscale:
        saved[f"data.downscale={2 * downscale}"] = (pixels + kept) * 3 // 4
    saved[f"{FACTOR}={2 * factor}"] = pixels * 3 // 4
    most = max(saved.values())
    helps = sorted((name for name in saved if saved[name] * 20 >= most), key=lambda name: -saved[name])
    named = ", ".join(f"{name} ({_size(saved[name])} less)" for name in helps)
    used, left = _room(device)
    other = ", or oom=shrink" if oom != "shrink" else ""
    kept_too = f", {_size(kept)} for {pictures:,} pictures" if kept else ""
    return (
        f"{_size(used)} in use, {'unknown' if left is None else _size(left)} available; "
        f"about {_size(rows)} for {count:,} Gaussians of SH degree {sh_degree}, "
        f"{_size(pixels)} for a step at {width}x{height}{kept_too}; what helps: {named}{other}"
    )


def shrink(
    count: int, width: int, height: int, factor: int = 1, sh_degree: int = 3
) -> tuple[str, int] | None:
    """What to go on with after memory has run out: a setting, CAP or FACTOR, and its new value.

    Rows go to three quarters of what there are, or pictures to half their size, whichever take more; or the
    other, where those are few or small already.

    Args:
        count, width, height, factor: as for `advice`.

    Returns: None where neither can shrink.
    """
    ways = []
    if count >= LEAST_ROWS:
        ways.append((rows_take(count, sh_degree), CAP, count * 3 // 4))
    if min(width, height) >= LEAST_SIDE:
        ways.append((pixels_take(width, height), FACTOR, 2 * factor))
    return max(ways)[1:] if ways else None


def _room(device: torch.device | None) -> tuple[int, int | None]:
    """Bytes in use and available, of a device or else of this process."""
    from splatexp.system.devices import room

    return (device and room(device)) or (in_use(), available())


def _numbers(sh_degree: int) -> int:
    """Numbers that are the parameters of a row."""
    return 11 + 3 * (sh_degree + 1) ** 2


def _round(count: int) -> int:
    """Down to two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return max(1, count // unit * unit)


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
