"""`attribute` in Triton: the walk of `blend`, each field summed over a tile's pixels, then over the tiles.

It runs now and then, so it stays plain: a field is a sum within a block, [G, P] to [G], of about five
instructions a pair of pixel and Gaussian. Sums lie field by field, [F, pairs], each at its pair's slot: no
atomics on floats. `dominant` alone adds ones to integers, whose order cannot matter.
"""

import torch
import triton
import triton.language as tl

from splatexp_kernels.blend.gpu_tile import (
    AT_ONCE,
    CHUNK,
    ROWS,
    alphas_of,
    block_of,
    composited,
    exp2,
    items_of,
    pixels_of,
    private_of,
    quads_of,
    reciprocal,
    records_of,
    slot_of,
    zeros,
)
from splatexp_kernels.blend.reference import DEFAULT_FIELDS, LEAVE_ONE_OUT_FIELDS, Attribution
from splatexp_kernels.launch import ALPHA_MAX, ALPHA_MIN, T_MIN, blocks

MAX_MAPS, MAX_MAPS_RICH = 4, 2  # at a time, the second where more is wanted than always comes
GAUSSIANS, GAUSSIANS_LEFT_OUT = 8, 4  # of a block: what fits into registers
WARPS = {8: 1, 16: 4, 32: 16}  # by tile size: two pixels a thread
REGISTERS = {8: 168, 16: 168, 32: 128}  # of a thread at most
MAPPED = ("weighted", "hits", "covered")
COUNTS = ("hits", "pixels", "dominant")


@torch.no_grad()
def attribute(
    means2d, conics, opacities, tiles, width, height, maps,
    *, threshold, max_splats_per_pixel, want, colors, image, target,
) -> Attribution:  # fmt: skip
    lists = private_of(tiles, opacities.shape)
    records = records_of(
        tiles, means2d, conics, opacities[..., None] if colors is None else colors, opacities
    )
    pictures = None if colors is None else (image.contiguous(), target.contiguous())
    parts, want = [], {*want}
    at_once = MAX_MAPS_RICH if want - {*DEFAULT_FIELDS} else MAX_MAPS
    for i in range(0, max(maps.shape[3], 1), at_once):
        some = maps[..., i : i + at_once].contiguous()
        parts.append(
            _attributed(records, tiles, lists, some, pictures, threshold, max_splats_per_pixel, want)
        )
        want, pictures = want & {"covered"}, None  # what has no maps is in the first part
    if len(parts) == 1:
        return parts[0]
    names = [name for name in MAPPED if getattr(parts[0], name) is not None]
    return parts[0]._replace(
        **{name: torch.cat([getattr(part, name) for part in parts], -1) for name in names}
    )


def _attributed(records, tiles, lists, maps, pictures, threshold, cap, want) -> Attribution:
    (slots, ranks, offsets, _, bounds), (C, H, W, M) = lists, maps.shape
    left_out = pictures is not None
    fields = [
        "weight_sum",
        "weight_max",
        "pixels",
        *["weighted", "hits"] * M,
        *["covered"] * M * ("covered" in want),
    ]
    fields += ["distance"] * ("distance" in want) + [*LEAVE_ONE_OUT_FIELDS] * left_out
    F, tile, N = len(fields), tiles.tile_width, tiles.backend_data[-1].shape[1]
    sums = maps.new_empty(F, len(ranks))
    found = maps.new_zeros(F, C * N)
    dominant = torch.zeros(C * N if "dominant" in want else 1, dtype=torch.int32, device=maps.device)
    image, target = pictures if left_out else (maps, maps)
    _attribute[(len(tiles.starts),)](
        *quads_of(records), tiles.ids, slots, tiles.starts, tiles.ends, bounds, tiles.order,
        maps, image, target, sums, dominant,
        len(ranks), W, H, tiles.tiles_x, tiles.tiles_y, len(tiles.order), cap, float(threshold),
        M=M, F=F, TILE=tile, G=GAUSSIANS_LEFT_OUT if left_out else GAUSSIANS, CAP=cap > 0,
        COVERED="covered" in want, DISTANCE="distance" in want, DOMINANT="dominant" in want,
        LEAVE_ONE_OUT_FIELDS=left_out, num_warps=WARPS[tile], maxnreg=REGISTERS[tile],
    )  # fmt: skip
    if len(ranks) >= CHUNK:
        _fold[(len(ranks) // CHUNK,)](sums, ranks, len(ranks), F=F, CHUNK=CHUNK, num_warps=1)
    if len(tiles.order):
        _gather[(blocks(len(tiles.order), ROWS),)](
            sums, tiles.order, offsets, found, len(tiles.order), len(ranks), C * N,
            F=F, CHUNK=CHUNK, ROWS=ROWS, AT_ONCE=AT_ONCE,
        )  # fmt: skip
    return _named(fields, found.view(F, C, N), dominant.view(C, N) if "dominant" in want else None, M, want)


def _named(fields, found, dominant, M, want) -> Attribution:
    """The fields of `Attribution` out of [F, C, N]; what a launch computes besides is dropped."""
    values = {"dominant": dominant}
    for name in dict.fromkeys(fields + ["weighted", "hits"] + ["covered"] * ("covered" in want)):
        rows = [found[i] for i, field in enumerate(fields) if field == name]
        empty = found.new_zeros(*found.shape[1:], 0)
        value = (torch.stack(rows, -1) if rows else empty) if name in MAPPED else rows[0]
        values[name] = value.int() if name in COUNTS else value
    return Attribution(
        **{name: v for name, v in values.items() if name not in LEAVE_ONE_OUT_FIELDS or name in want}
    )


@triton.jit(do_not_specialize=["pairs", "visible", "cap"])
def _attribute(
    first, second, third, ids, slots, starts, ends, bounds, order, maps, image, target, sums, dominant,
    pairs, width, height, across, down, visible, cap, threshold,
    M: tl.constexpr, F: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, CAP: tl.constexpr,
    COVERED: tl.constexpr, DISTANCE: tl.constexpr, DOMINANT: tl.constexpr, LEAVE_ONE_OUT_FIELDS: tl.constexpr,
):  # fmt: skip
    """Walks a tile's list as `blend` does; a block's sums over the tile's pixels go to its slots."""
    P: tl.constexpr = TILE * TILE
    CHANNELS: tl.constexpr = 3 if LEAVE_ONE_OUT_FIELDS else 0
    tile, start_pixel, place, inside, x, y = pixels_of(width, height, across, down, TILE)
    through, taken = tl.where(inside, 1.0, 0.0), tl.zeros([P], tl.int32)
    values = _channels(maps + start_pixel * M, place, inside, M)
    behind = _channels(image + start_pixel * 3, place, inside, CHANNELS)
    wanted = _channels(target + start_pixel * 3, place, inside, CHANNELS)
    residual = _minus(behind, wanted)
    best, best_at = tl.zeros([P], tl.float32), tl.zeros([P], tl.int32)
    start = tl.load(starts + tile)
    count = (tl.load(ends + tile) - start).to(tl.int32)
    k = 0
    going = k < count
    while going:
        splats, shades = block_of(
            (first, second, third), ids + start, k, count, visible, 3 if LEAVE_ONE_OUT_FIELDS else 1, G
        )
        alpha, exponent, dx, dy = alphas_of(splats, x, y)
        weights, through, taken = composited(alpha, through, taken, cap, G, P, CAP)
        found = _plain(weights, values, dx, dy, threshold, M, COVERED, DISTANCE)
        if LEAVE_ONE_OUT_FIELDS:
            extra, behind = _left_out(weights, alpha, splats, shades, behind, residual)
            found = found + extra
        row = k + tl.arange(0, G)
        slot = sums + tl.load(slots + start + row, row < count, 0)
        for f in tl.static_range(F):
            tl.store(slot + tl.cast(pairs, tl.int64) * f, found[f], row < count)
        if DOMINANT:
            most = tl.max(weights, 0)
            at = tl.min(
                tl.where(weights == most[None, :], tl.arange(0, G)[:, None], G), 0
            )  # the nearest of equals
            best_at = tl.where(most > best, k + at, best_at)
            best = tl.maximum(best, most)
        k += G
        going = (k < count) & (tl.max(through, 0) > T_MIN)
    if DOMINANT:
        rank = tl.load(ids + start + best_at, best > 0, 0)
        tl.atomic_add(dominant + tl.load(order + rank, best > 0, 0), 1, best > 0)
    listed = (tl.load(bounds + tile + 1) - start).to(tl.int32)
    k = tl.minimum(k, count)
    while k < listed:  # never looked at
        row = k + tl.arange(0, 64)
        slot = sums + tl.load(slots + start + row, row < listed, 0)
        for f in tl.static_range(F):
            tl.store(slot + tl.cast(pairs, tl.int64) * f, tl.zeros([64], tl.float32), row < listed)
        k += 64


@triton.jit
def _channels(picture, place, inside, D: tl.constexpr):
    """The D channels of a tile's pixels; 0 outside the picture."""
    channels = ()
    for c in tl.static_range(D):
        channels = channels + (tl.load(picture + place * D + c, inside, 0.0),)
    return channels


@triton.jit
def _minus(a, b):
    difference = ()
    for c in tl.static_range(len(a)):
        difference = difference + (a[c] - b[c],)
    return difference


@triton.jit
def _plain(
    weights, values, dx, dy, threshold, M: tl.constexpr, COVERED: tl.constexpr, DISTANCE: tl.constexpr
):
    """A block's sums [G] over the pixels, in the order of the fields."""
    used = weights > 0
    found = (tl.sum(weights, 1), tl.max(weights, 1), tl.sum(used.to(tl.float32), 1))
    for m in tl.static_range(M):
        found = found + (tl.sum(weights * values[m][None, :], 1),)
        found = found + (tl.sum((used & (values[m] > threshold)[None, :]).to(tl.float32), 1),)
    if COVERED:
        for m in tl.static_range(M):
            found = found + (tl.sum(tl.where(used, values[m][None, :], 0.0), 1),)
    if DISTANCE:
        found = found + (tl.sum(tl.where(used, tl.sqrt(dx * dx + dy * dy), 0.0), 1),)
    return found


@triton.jit
def _left_out(weights, alpha, splats, shades, behind, residual):
    """The fields LEAVE_ONE_OUT_FIELDS of a block (kernels/README.md, "blend": dC), and what lies behind
    it.
    """
    odds = tl.where(weights > 0, alpha * reciprocal(1 - alpha), 0.0)
    squares, cross, slope = tl.zeros_like(alpha), tl.zeros_like(alpha), tl.zeros_like(alpha)
    rest = ()
    for c in tl.static_range(3):
        share = weights * shades[c]
        loss = share - odds * (behind[c][None, :] - tl.cumsum(share, 0))
        squares += loss * loss
        cross += loss * residual[c][None, :]
        slope += loss
        rest = rest + (behind[c] - tl.sum(share, 0),)
    slope = tl.where(alpha < ALPHA_MAX, slope / tl.maximum(alpha, ALPHA_MIN) * exp2(splats[5]), 0.0)
    return (tl.sum(squares, 1), tl.sum(squares - 2 * cross, 1), tl.sum(slope * slope, 1)), rest


@triton.jit(do_not_specialize=["pairs"])
def _fold(sums, ranks, pairs, F: tl.constexpr, CHUNK: tl.constexpr):
    """A chunk that one Gaussian has to itself becomes one slot: large Gaussians do not hold up `_gather`."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    if tl.load(ranks + begin + CHUNK - 1) == tl.load(ranks + begin):
        for f in tl.static_range(F):
            at = sums + tl.cast(pairs, tl.int64) * f + begin
            values = tl.load(at + tl.arange(0, CHUNK))
            tl.store(at, tl.max(values, 0) if f == 1 else tl.sum(values, 0))


@triton.jit(do_not_specialize=["count", "pairs", "rows"])
def _gather(
    sums, order, offsets, found, count, pairs, rows,
    F: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Adds up the slots of ROWS Gaussians, AT_ONCE of each at a time; of field 1 the largest."""
    rank = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    held = rank < count
    rank = tl.where(held, rank, 0)
    begin = tl.load(offsets + rank)
    head, whole, items = items_of(begin, tl.load(offsets + rank + 1), CHUNK)
    items = tl.where(held, items, 0)
    totals = zeros([ROWS, AT_ONCE], F)
    item = tl.zeros([ROWS, AT_ONCE], tl.int64) + tl.arange(0, AT_ONCE)[None, :]
    most = tl.max(items, 0)
    k = most * 0
    while k < most:
        here = item < items[:, None]
        slot, folded = slot_of(item, begin[:, None], head[:, None], whole[:, None], CHUNK)
        totals = _merged(totals, sums + tl.where(here, slot, 0), here, pairs, F)
        item += AT_ONCE
        k += AT_ONCE
    row = tl.load(order + rank, held, 0).to(tl.int64)
    for f in tl.static_range(F):
        total = tl.max(totals[f], 1) if f == 1 else tl.sum(totals[f], 1)
        tl.store(found + tl.cast(rows, tl.int64) * f + row, total, held)


@triton.jit
def _merged(totals, slots, here, pairs, F: tl.constexpr):
    more = ()
    for f in tl.static_range(F):
        value = tl.load(slots + tl.cast(pairs, tl.int64) * f, here, 0.0)
        more = more + (tl.maximum(totals[f], value) if f == 1 else totals[f] + value,)
    return more
