"""Adam in Triton, in one pass over memory.

Neighbouring threads take neighbouring words, whatever a row's length; words of rows that are not updated are
not read.
"""

import torch
import triton
import triton.language as tl

from splatexp_kernels.launch import blocks

BLOCK = 1024  # words of a program, eight for each thread of four warps, so that many loads are under way


def adam(param, grad, exp_avg, exp_avg_sq, *, step, lr, beta1, beta2, eps, visible) -> None:
    count = param.numel()
    if not count:
        return
    visible = None if visible is None else visible.contiguous().view(torch.uint8)
    _step[(blocks(count, BLOCK),)](
        param, grad.contiguous(), exp_avg, exp_avg_sq, visible, count,
        lr / (1 - beta1**step), beta1, 1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** -0.5, eps,
        COLUMNS=count // len(param), BLOCK=BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _step(
    param, grad, exp_avg, exp_avg_sq, visible, count, rate, beta1, rest1, beta2, rest2, correction, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update a block of words. The number of columns is constant, so that a word's row costs no division.

    The hint keeps a thread from taking four neighbours, which a mask would store one by one.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.max_contiguous(tl.arange(0, BLOCK), 1)
    moves = i < count - start
    if visible is not None:
        row = visible + start // COLUMNS + ((start % COLUMNS).to(tl.int32) + i) // COLUMNS
        moves &= tl.load(row, moves, 0) != 0
    param, grad, exp_avg, exp_avg_sq = param + start, grad + start, exp_avg + start, exp_avg_sq + start
    g = tl.load(grad + i, moves, 0.0)
    mean = beta1 * tl.load(exp_avg + i, moves, 0.0) + rest1 * g
    square = beta2 * tl.load(exp_avg_sq + i, moves, 0.0) + rest2 * g * g
    moved = tl.load(param + i, moves, 0.0) - rate * mean / (tl.sqrt(square) * correction + eps)
    tl.store(param + i, moved, moves)
    tl.store(exp_avg + i, mean, moves)
    tl.store(exp_avg_sq + i, square, moves)
