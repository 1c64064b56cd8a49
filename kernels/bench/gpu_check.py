"""All checks of the Triton kernels on a device, and their results.

They cover outputs and gradients at awkward sizes, with uninitialised memory filled with NaN, every call twice
for equal bits, and Gaussians with NaN that must not affect others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import checks
import rasterizers
from compare import KINDS, Ratios, flat, picture, scene

Case = tuple[str, str, Callable[[], Ratios]]  # op, what is special, the check


@dataclass
class Finding:
    """The result of one check."""

    op: str
    what: str
    worst: float  # largest error over what is allowed; above 1 the check fails
    of: str  # tensor that has it
    error: str = ""  # why there are no errors to measure

    @property
    def ok(self) -> bool:
        """Return whether the check passed."""
        return not self.error and self.worst <= 1


def findings(device: str, tiny: bool) -> Iterator[Finding]:
    """Yield the finding of every check in turn; a check that raises is a finding, too."""
    for op, what, check in cases(device, tiny):
        try:
            ratios = check()
            of = max(ratios, key=ratios.__getitem__, default="")
            yield Finding(op, what, ratios.get(of, 0.0), of)
        except Exception as error:
            yield Finding(op, what, float("inf"), "", f"{type(error).__name__}: {error}"[:2000])


def cases(device: str, tiny: bool) -> Iterator[Case]:
    """Yield op, special condition, and a call that returns the ratios."""
    sizes = [(0, 1, 17, 33), (63, 2, 17, 33)]
    if not tiny:
        sizes += [(1, 2, 1, 1), (130, 3, 64, 48), (500, 1, 64, 48), (5000, 2, 200, 152)]
    for size, prefilter in product(sizes, (False, True)):
        name = f"{size} prefilter={prefilter}"
        yield "project", name, lambda n=size, on=prefilter: checks.projected(device, scene(*n), on)
    yield "project", "broken rows", lambda: checks.broken(device)
    for size, degree in product(sizes, (3,) if tiny else range(5)):
        yield "sh", f"{size} degree {degree}", lambda n=size, d=degree: checks.colored(device, scene(*n), d)
    for size in sizes[:5]:
        for tile_size, cap in ((16, 0),) if tiny else ((8, 0), (16, 0), (32, 0), (16, 5)):
            name = f"{size} tile_size={tile_size} per_tile_max={cap}"
            yield "tiles", name, lambda n=size, t=tile_size, c=cap: checks.listed(device, flat(*n), t, c)
    blends = [(12, 1, 20, 8, 3, 16, 0)] if tiny else list(_blends())
    for *size, D, tile_size, cap in blends:
        name = f"{(*size, D)} tile_size={tile_size} max_splats_per_pixel={cap}"
        n = (*size, D)
        yield "blend", name, lambda n=n, t=tile_size, c=cap: checks.blended(device, flat(*n), t, c)
    for *size, D, tile_size, cap in blends:
        if D == 3 and not cap:
            name, n = f"{(*size, D)} tile_size={tile_size}", (*size, D)
            yield "attribute", name, lambda n=n, t=tile_size: checks.attributed(device, flat(*n), t)
    for (mode, top), size in product(
        KINDS, [(12, 1, 20, 8)] if tiny else [(63, 2, 17, 33), (300, 1, 48, 40)]
    ):
        name = f"{size} {mode} top_k={top}"
        yield "blend2d", name, lambda n=size, m=mode, k=top: checks.planar(device, picture(*n), m, k)
    for shape in [(1, 9, 13, 3)] if tiny else [(1, 1, 1, 1), (2, 7, 13, 1), (1, 17, 33, 3), (2, 211, 190, 3)]:
        yield "ssim", str(shape), lambda shape=shape: checks.similar(device, shape)
    for shape in [(63, 3)] if tiny else [(0, 3), (1, 1), (63, 3), (500, 15, 3), (70001,)]:
        yield "adam", str(shape), lambda shape=shape: checks.stepped(device, shape)
    for N in (63,) if tiny else (0, 1, 63, 5000):
        yield "noise", str(N), lambda N=N: checks.shaken(device, N)
    whole = (20, 1, 20, 8) if tiny else (200, 2, 33, 17)
    yield "all in a row", str(whole), lambda: checks.chained(device, scene(*whole))
    yield "all in a row", "broken Gaussians", lambda: checks.chained_broken(device, *whole)
    if not rasterizers.missing(device):
        beside = (20, 1, 20, 8) if tiny else (2000, 2, 128, 96)
        yield "gsplat", str(beside), lambda: checks.beside_gsplat(device, scene(*beside))
    if not tiny:
        large = 20000, 2, 320, 240
        yield "all in a row", str(large), lambda: checks.chained(device, scene(*large))


def _blends() -> Iterator[tuple[int, ...]]:
    """Yield N, C, width, height, D, tile size and cap of the cases for `blend`."""
    yield from ((N, 1, 64, 48, 3, tile, cap) for N in (0, 1, 500) for tile in (8, 16, 32) for cap in (0, 3))
    yield from ((63, 2, 17, 33, D, 16, 0) for D in (1, 2, 3, 4, 5, 8, 9))
    yield 500, 2, 33, 17, 3, 16, 0
