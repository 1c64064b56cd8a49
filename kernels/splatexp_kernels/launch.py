"""Helpers that the Triton kernels of all ops share: constants, grids, rows of a few words, vectors, rotations.

Importing this module imports Triton, so only a `gpu.py` and `dispatch` do so. Under TRITON_INTERPRET=1 (read
once, here and by each `@triton.jit`) kernels run in numpy, on tensors of any device: exact and slow, for
tests. Everywhere else they are compiled for the current CUDA device.
"""

import triton
import triton.language as tl
from triton import knobs

from splatexp_kernels import constants

INTERPRETED: bool = bool(knobs.runtime.interpret)

# Inside a kernel a global must be a constexpr.
ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
ALPHA_MAX = tl.constexpr(constants.ALPHA_MAX)
T_MIN = tl.constexpr(constants.T_MIN)
COMPENSATION_MIN2 = tl.constexpr(constants.COMPENSATION_MIN2)
FRUSTUM_MARGIN = tl.constexpr(constants.FRUSTUM_MARGIN)
LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(LOG2E x): the hardware has exp2 alone
LN2 = tl.constexpr(0.6931471805599453)


def blocks(count: int, size: int) -> int:
    """Return the number of blocks of `size` that hold `count` items."""
    return triton.cdiv(count, size)


@triton.jit
def stack(vectors):
    """Join a tuple of n vectors [B] to [B, n], n a power of two.

    A thread holds all columns of its rows, so nothing moves until the result is stored: rows of more than 16
    bytes then pass through shared memory, so that neighbouring threads write neighbouring words.
    """
    if len(vectors) == 1:
        return vectors[0].reshape(vectors[0].shape[0], vectors[0].numel // vectors[0].shape[0])
    else:
        return stack(_joined(vectors))


@triton.jit
def _joined(tensors):
    half: tl.constexpr = len(tensors) // 2
    joined = (tl.join(tensors[0], tensors[half]),)
    for k in tl.static_range(1, half):
        joined = joined + (tl.join(tensors[k], tensors[k + half]),)
    return joined


@triton.jit
def columns(x):
    """Split x [B, n], n a power of two, into a tuple of its n columns [B]."""
    return _columns((x,))


@triton.jit
def _columns(tensors):
    if len(tensors[0].shape) == 1:
        return tensors
    else:
        return _columns(_parted(tensors))


@triton.jit
def _parted(tensors):
    even, odd = _evens_and_odds(tensors[0])
    evens, odds = (even,), (odd,)
    for k in tl.static_range(1, len(tensors)):
        even, odd = _evens_and_odds(tensors[k])
        evens, odds = evens + (even,), odds + (odd,)
    return evens + odds


@triton.jit
def _evens_and_odds(x):
    if x.shape[1] == 2:
        return tl.split(x)
    else:
        return tl.split(x.reshape(x.shape[0], x.shape[1] // 2, 2))


@triton.jit
def load_rows(pointers, SIZE: tl.constexpr, mask):
    """Load SIZE words, 2 or 4, in one load from each of [B] pointers, as a tuple; 0 outside the mask."""
    return columns(tl.load(pointers[:, None] + tl.arange(0, SIZE)[None, :], mask[:, None], 0.0))


@triton.jit
def store_rows(pointers, values, mask):
    """Store two or four words in one store to each of [B] pointers."""
    tl.store(pointers[:, None] + tl.arange(0, len(values))[None, :], stack(values), mask[:, None])


@triton.jit
def load3(pointers, mask):
    """Load three consecutive words from each of [B] pointers, as a tuple; 0 outside the mask."""
    return tl.load(pointers, mask, 0.0), tl.load(pointers + 1, mask, 0.0), tl.load(pointers + 2, mask, 0.0)


@triton.jit
def store3(pointers, values, mask):
    """Store three consecutive words to each of [B] pointers."""
    for k in tl.static_range(3):
        tl.store(pointers + k, values[k], mask)


@triton.jit
def dot(a, b):
    """Return the scalar product of two tuples of three numbers."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def plus(a, b):
    """Return a + b."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def times(a, b):
    """Return the elementwise product."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@triton.jit
def combined(a, A, b, B):
    """Return a A + b B, where a and b are scalars."""
    return a * A[0] + b * B[0], a * A[1] + b * B[1], a * A[2] + b * B[2]


@triton.jit
def applied(M, a):
    """Return M a, where M holds the columns of a matrix; or Mᵀ a, where it holds the rows."""
    return plus(combined(a[0], M[0], a[1], M[1]), (a[2] * M[2][0], a[2] * M[2][1], a[2] * M[2][2]))


@triton.jit
def where3(mask, a):
    """Return a where the mask holds, else 0."""
    return tl.where(mask, a[0], 0.0), tl.where(mask, a[1], 0.0), tl.where(mask, a[2], 0.0)


@triton.jit
def unit(quat):
    """Return a quaternion (w, x, y, z) divided by its length, and 1/length; not finite for length 0."""
    w, x, y, z = quat
    inverse = 1 / tl.sqrt(w * w + x * x + y * y + z * z)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@triton.jit
def axes(quat):
    """Return the columns of the rotation matrix of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quat
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    third = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    return first, second, third
