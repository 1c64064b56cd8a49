"""Langevin noise in Triton, with the random numbers of every backend (kernels/README.md, "noise").

One thread takes one Gaussian. What the gate holds back is not read: of a trained scene that is nearly all.
"""

import triton
import triton.language as tl

from splatexp_kernels.launch import (
    LN2,
    LOG2E,
    applied,
    axes,
    blocks,
    dot,
    load3,
    load_rows,
    plus,
    store3,
    times,
    unit,
)
from splatexp_kernels.noise import reference

BLOCK = 128  # Gaussians of a program, one for each thread of four warps
GATE_MIN = tl.constexpr(reference.GATE_MIN)
TURN = tl.constexpr(6.283185307179586)
FINITE = tl.constexpr(3e38)


def noise(means, quats, scales, opacities, uid, *, lr, sharpness, threshold, seed, step) -> None:
    quats, scales, opacities, uid = (t.contiguous() for t in (quats, scales, opacities, uid))
    words = (_word(seed), _word(seed >> 32), _word(step), _word(step >> 32))
    _move[(blocks(len(means), BLOCK),)](
        means, quats, scales, opacities, uid, len(means), *words,
        float(lr), float(sharpness), float(threshold), BLOCK=BLOCK,
    )  # fmt: skip


def _word(number: int) -> int:
    """The lower 32 bits, as a signed number: always of one type in a kernel's signature."""
    low = number & reference.WORD
    return low - (low >> 31 << 32)


@triton.jit
def _philox(uid, key0, key1, step0, step1):
    """Four words of 32 random bits: Philox4x32-10 of the counter (uid, step) under a key."""
    a, b = uid.to(tl.uint32), (uid >> 32).to(tl.uint32)
    c, d = tl.zeros_like(a) + step0.to(tl.uint32), tl.zeros_like(a) + step1.to(tl.uint32)
    key0, key1 = tl.zeros_like(a) + key0.to(tl.uint32), tl.zeros_like(a) + key1.to(tl.uint32)
    for _ in tl.static_range(10):
        first, second = tl.umulhi(a, 0xD2511F53), tl.umulhi(c, 0xCD9E8D57)
        a, b, c, d = second ^ b ^ key0, c * 0xCD9E8D57, first ^ d ^ key1, a * 0xD2511F53
        key0, key1 = key0 + 0x9E3779B9, key1 + 0xBB67AE85
    return a, b, c, d


@triton.jit
def _uniform(word):
    """The upper 24 bits over 2^24: in [0, 1), and exact."""
    return (word >> 8).to(tl.int32).to(tl.float32) * (1 / 16777216)


@triton.jit
def _radius(u):
    """Length of a pair of normal deviates. Source: Box and Muller 1958."""
    return tl.sqrt(tl.maximum(tl.log2(u + 1 / 16777216) * (-2 * LN2), 0.0))


@triton.jit
def _cos_sin(u):
    """Of u turns, u in [0, 1): Taylor series around the nearest quarter (tl.cos uses local memory)."""
    quarter = tl.floor(4 * u + 0.5)
    x = (u - 0.25 * quarter) * TURN
    xx = x * x
    s = x * (1 + xx * (-1 / 6 + xx * (1 / 120 + xx * (-1 / 5040 + xx * (1 / 362880)))))
    c = 1 + xx * (-1 / 2 + xx * (1 / 24 + xx * (-1 / 720 + xx * (1 / 40320))))
    odd = (quarter == 1) | (quarter == 3)
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    back, down = (quarter == 1) | (quarter == 2), (quarter == 2) | (quarter == 3)
    return tl.where(back, -cosine, cosine), tl.where(down, -sine, sine)


@triton.jit(do_not_specialize=["N", "key0", "key1", "step0", "step1"])
def _move(
    means, quats, scales, opacities, uid, N, key0, key1, step0, step1, lr, sharpness, threshold,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of Gaussians."""
    start, n = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    held = n < N - start
    opacity = tl.load(opacities + start + n, held, 0.0)
    gate = 1 / (1 + tl.exp2((opacity - threshold) * sharpness * LOG2E))
    moves = held & (gate >= GATE_MIN)
    a, b, c, d = _philox(tl.load(uid + start + n, moves, 0), key0, key1, step0, step1)
    one, other = _radius(_uniform(a)), _radius(_uniform(c))
    cosine, sine = _cos_sin(_uniform(b))
    third, _ = _cos_sin(_uniform(d))
    eta = one * cosine, one * sine, other * third

    q, _ = unit(load_rows(quats + start * 4 + n * 4, 4, moves))
    s, R = load3(scales + start * 3 + n * 3, moves), axes(q)
    by = applied(R, times(times(s, s), (dot(R[0], eta), dot(R[1], eta), dot(R[2], eta))))
    by = times(by, (lr * gate, lr * gate, lr * gate))
    moves &= (tl.abs(by[0]) < FINITE) & (tl.abs(by[1]) < FINITE) & (tl.abs(by[2]) < FINITE)
    rows = means + start * 3 + n * 3
    store3(rows, plus(load3(rows, moves), by), moves)
