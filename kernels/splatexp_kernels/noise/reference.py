"""Langevin noise on the means, in plain torch, with a counter-based generator.

Philox4x32-10 makes four random words of the counter (uid, step), 64 bits each, and the key `seed`, 64 bits.
Source: Kheradmand et al. 2024, eq. 8-9; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3";
Box and Muller 1958.
"""

import math

import torch

from splatexp_kernels.project.reference import rotations

GATE_MIN = 1e-8  # rows that the gate closes further than this rest
WORD = 0xFFFFFFFF


@torch.no_grad()
def noise(means, quats, scales, opacities, uid, *, lr, sharpness, threshold, seed, step) -> None:
    gate = torch.sigmoid(sharpness * (threshold - opacities))
    eta = normals(uid, seed, step).to(means.dtype)
    axes = rotations(quats)
    local = (axes.mT @ eta[:, :, None])[..., 0] * scales**2
    by = lr * gate[:, None] * (axes @ local[:, :, None])[..., 0]
    means += torch.where((gate >= GATE_MIN)[:, None] & by.isfinite(), by, 0)


def normals(uid, seed: int, step: int):
    """Three standard normal deviates per uid [N], [N,3] float64."""
    a, b, c, d = ((word >> 8).double() / 2**24 for word in philox(uid, seed, step))  # exact in float32, too
    one, other = (torch.sqrt(-2 * torch.log(u + 2.0**-24)) for u in (a, c))  # u in (0, 1]
    turn = 2 * math.pi
    return torch.stack([one * torch.cos(turn * b), one * torch.sin(turn * b), other * torch.cos(turn * d)], 1)


def philox(uid, seed: int, step: int):
    """Four words [N] of 32 random bits; int64 holds them, and its products wrap to the right 64 bits."""
    x = [uid & WORD, uid >> 32 & WORD, torch.full_like(uid, step & WORD), torch.full_like(uid, step >> 32)]
    keys = [seed & WORD, seed >> 32]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32 & WORD) ^ x[1] ^ keys[0], b & WORD, (a >> 32 & WORD) ^ x[3] ^ keys[1], a & WORD]
        keys = [(keys[0] + 0x9E3779B9) & WORD, (keys[1] + 0xBB67AE85) & WORD]
    return x
