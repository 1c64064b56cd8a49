"""Alpha blending in C++; gradients by hand (kernels/README.md, "blend")."""

import torch
from torch.autograd.function import once_differentiable

from splatexp_kernels import _cpu  # type: ignore[attr-defined]
from splatexp_kernels.blend.reference import DEFAULT_FIELDS, Attribution

FIELDS = Attribution._fields
MAPPED, COUNTS = ("weighted", "hits", "covered"), ("hits", "pixels", "dominant")


def blend(
    means2d, conics, colors, opacities, tiles, width, height, *, background, max_splats_per_pixel, absgrad
):
    lists, radii = lists_of(tiles, opacities.shape, width, height)
    size = (width, height)
    images, D = [], _cpu.MAX_CHANNELS
    if absgrad is not None and colors.shape[2] > D:
        raise ValueError(f"absgrad: backend 'cpu' offers it for at most {D} channels, got {colors.shape[2]}")
    for i in range(0, colors.shape[2], D):
        # more channels than the kernel is compiled for are blended in several passes; alpha is of the first
        some = colors if colors.shape[2] <= D else colors[..., i : i + D]
        behind = None if background is None else background[:, i : i + D]
        images.append(
            _Blend.apply(
                means2d, conics, some, opacities, behind, lists, radii, size, max_splats_per_pixel, absgrad
            )
        )
    image = images[0][0] if len(images) == 1 else torch.cat([image for image, _ in images], -1)
    return image, images[0][1]


@torch.no_grad()
def attribute(
    means2d, conics, opacities, tiles, width, height, maps,
    *, threshold, max_splats_per_pixel, want, colors, image, target,
) -> Attribution:  # fmt: skip
    lists, radii = lists_of(tiles, opacities.shape, width, height)
    means2d, conics, opacities = means2d.contiguous(), conics.contiguous(), opacities.contiguous()
    colors = opacities.new_zeros(*opacities.shape, 1) if colors is None else colors.contiguous()
    image, target = (None if picture is None else picture.contiguous() for picture in (image, target))
    records = opacities.new_empty(len(tiles.order), _cpu.record_floats(colors.shape[2]))
    pairs = opacities.new_empty(len(tiles.ids), _cpu.PAIR_FLOATS)
    wanted, parts, at_once = {*DEFAULT_FIELDS, *want}, [], _cpu.MAX_MAPS
    if wanted != {*DEFAULT_FIELDS}:
        at_once = _cpu.MAX_MAPS_RICH
    for i in range(0, max(maps.shape[3], 1), at_once):
        some = maps[..., i : i + at_once].contiguous()
        part = Attribution(*(_zeros(name, opacities, some) if name in wanted else None for name in FIELDS))
        _cpu.attribute(
            lists, means2d, conics, colors, opacities, radii, some, threshold, max_splats_per_pixel,
            records, pairs, *part, image, target,
        )  # fmt: skip
        parts.append(part)
        wanted &= {*DEFAULT_FIELDS, "covered"}  # fields without maps are in the first part
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(
        **{name: torch.cat([getattr(part, name) for part in parts], -1) for name in MAPPED if name in wanted}
    )


def _zeros(name, opacities, maps):
    """Return a field of `Attribution` before any pixel."""
    shape = (*opacities.shape, maps.shape[3]) if name in MAPPED else opacities.shape
    return opacities.new_zeros(shape, dtype=torch.int32 if name in COUNTS else None)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, means2d, conics, colors, opacities, background, lists, radii, size, max_splats_per_pixel, absgrad
    ):
        means2d, conics, colors, opacities = (t.contiguous() for t in (means2d, conics, colors, opacities))
        background = None if background is None else background.contiguous()
        (C, N, D), (width, height) = colors.shape, size
        records = colors.new_empty(lists.visible, _cpu.record_floats(D))
        visited = torch.empty(lists.tiles, dtype=torch.int64)
        image, alpha = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width, 1)
        _cpu.blend_forward(
            lists,
            means2d,
            conics,
            colors,
            opacities,
            radii,
            background,
            max_splats_per_pixel,
            records,
            visited,
            image,
            alpha,
        )
        ctx.lists, ctx.visited, ctx.cap = lists, visited, max_splats_per_pixel
        ctx.absgrad, ctx.shape = absgrad, (C, N, D)
        ctx.save_for_backward(records, image, alpha)
        ctx.set_materialize_grads(False)
        return image, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_alpha):  # type: ignore[override]
        records, image, alpha = ctx.saved_tensors
        C, N, D = ctx.shape
        v_image = torch.zeros_like(image) if v_image is None else v_image.contiguous()
        v_alpha = None if v_alpha is None else v_alpha.contiguous()
        pairs = image.new_empty(ctx.lists.pairs, _cpu.PAIR_FLOATS)
        v_means2d, v_conics = image.new_zeros(C, N, 2), image.new_zeros(C, N, 3)
        v_colors, v_opacities = image.new_zeros(C, N, D), image.new_zeros(C, N)
        v_abs = None if ctx.absgrad is None else image.new_zeros(C, N, 2)
        _cpu.blend_backward(
            ctx.lists, records, ctx.visited, ctx.cap, image, alpha, v_image, v_alpha, pairs,
            v_means2d, v_conics, v_colors, v_opacities, v_abs,
        )  # fmt: skip
        if v_abs is not None:
            ctx.absgrad.copy_(v_abs)
        v_background = (v_image * (1 - alpha)).sum((1, 2)) if ctx.needs_input_grad[4] else None
        return v_means2d, v_conics, v_colors, v_opacities, v_background, None, None, None, None, None


def lists_of(tiles, shape, width, height):
    """Return the tile lists as the extension takes them, and the radii that they were made from."""
    if len(tiles.backend_data) != 3:
        raise ValueError("tiles: expected lists of backend 'cpu', got those of a different backend")
    slots, first, radii = tiles.backend_data
    if tuple(radii.shape[:2]) != tuple(shape):
        raise ValueError(f"tiles: expected those of {list(shape)} Gaussians, got {list(radii.shape[:2])}")
    lists = _cpu.Lists(
        *shape, len(tiles.order), len(tiles.ids), width, height, tiles.tile_width,
        tiles.order, tiles.ids, slots, first, tiles.starts, tiles.ends,
    )  # fmt: skip
    return lists, radii
