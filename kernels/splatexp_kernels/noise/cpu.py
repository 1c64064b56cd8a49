"""Langevin noise in C++."""

from splatexp_kernels import _cpu  # type: ignore[attr-defined]


def noise(means, quats, scales, opacities, uid, *, lr, sharpness, threshold, seed, step) -> None:
    quats, scales, opacities = quats.contiguous(), scales.contiguous(), opacities.contiguous()
    _cpu.noise(means, quats, scales, opacities, uid.contiguous(), lr, sharpness, threshold, seed, step)
