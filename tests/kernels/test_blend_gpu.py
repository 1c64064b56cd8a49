"""Blending by the Triton backend, under the interpreter, which computes in float32 as the GPU does."""

import numpy
import pytest
import torch
from kernels.test_blend import GRADED, blended, hold
from kernels.test_blend import test_pixels_stop_before_they_are_opaque as stops
from support.kernel_cases import assert_close, beside_cutoffs, flat

from splatexp_kernels.blend import blend
from splatexp_kernels.tiles import tiles

gather = pytest.importorskip("splatexp_kernels.blend.gpu_gather", reason="Triton is not installed")
CASES = [  # N, C, width, height, D; tile size
    ((0, 1, 20, 24, 3), 16),
    ((1, 2, 1, 1, 1), 16),
    ((40, 2, 11, 9, 2), 8),
    ((120, 1, 20, 24, 3), 16),
    ((60, 1, 17, 9, 4), 16),
    ((30, 1, 17, 9, 5), 16),
    ((40, 1, 33, 20, 1), 32),
]


def tiled(f, tile_size=16, **knobs):
    f.tiles = tiles(
        f.means2d, f.radii, f.depths, f.width, f.height, tile_size=tile_size, backend="gpu", **knobs
    )
    return f


def compared(f, tile_size=16, *, absgrad=True, opaque=False, tile_knobs=None, **knobs):
    """What the backend finds, held against the reference in float64."""
    tiled(f, tile_size, **(tile_knobs or {}))
    mine = f.tiles
    f.tiles = (
        mine if tile_knobs else tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="reference")
    )
    expected, edges = blended(f, "reference", torch.float64, **knobs), beside_cutoffs(f)
    f.tiles = mine
    actual = blended(f, "gpu", torch.float32, **knobs, **({} if absgrad else {"absgrad": None}))
    if not absgrad:
        actual.pop("absgrad", None)
    if opaque:  # a sum of 1 - alpha, which has few bits left
        expected["v_background"] = actual["v_background"]
    hold(actual, expected, f, edges)
    return actual, expected, edges


def crossed():
    """Every case with and without absgrad; one of the two is quick."""
    for i, (case, tile_size) in enumerate(CASES):
        for j, absgrad in enumerate((True, False)):
            marks = () if (i + j) % 2 == 0 else pytest.mark.slow
            name = f"{case}-{tile_size}-{'absgrad' if absgrad else 'plain'}"
            yield pytest.param(case, tile_size, absgrad, marks=marks, id=name)


@pytest.mark.parametrize("case, tile_size, absgrad", list(crossed()))
def test_gpu_agrees_with_reference(case, tile_size, absgrad):
    if case[4] <= 4 or not absgrad:
        compared(flat(*case), tile_size, absgrad=absgrad)
    else:
        with pytest.raises(
            ValueError, match="absgrad: backend 'gpu' offers it for at most 4 channels, got 5"
        ):
            compared(flat(*case), tile_size)


@pytest.mark.parametrize("knobs", [{"per_tile_max": 5}, {"max_splats_per_pixel": 3}], ids=str)
@pytest.mark.parametrize("absgrad", [True, False], ids=["absgrad", "plain"])
def test_gpu_agrees_with_reference_under_caps(knobs, absgrad):
    """Both walk the same tiles, so that the caps strike the same Gaussians."""
    caps = dict(knobs)
    tile_knobs = {"per_tile_max": caps.pop("per_tile_max", 0)}
    actual, *_ = compared(flat(80, 1, 20, 12), absgrad=absgrad, tile_knobs=tile_knobs, **caps)
    plain = blended(tiled(flat(80, 1, 20, 12)), "gpu", torch.float32)
    assert actual["alpha"].sum() < 0.95 * plain["alpha"].sum()


@pytest.mark.parametrize("loss", ["image", "alpha"])
def test_gpu_agrees_with_reference_when_one_output_is_used(loss):
    f, found = flat(40, 1, 20, 9), {}
    for backend, dtype in (("reference", torch.float64), ("gpu", torch.float32)):
        f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
        leaves = [getattr(f, name).to(dtype).requires_grad_() for name in GRADED[:-1]]
        image, alpha = blend(*leaves, f.tiles, f.width, f.height, backend=backend)
        (image if loss == "image" else alpha).sum().backward()
        found[backend] = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    assert found["gpu"][0].abs().max() > 0
    for name, actual, expected in zip(GRADED, found["gpu"], found["reference"], strict=False):
        assert_close(f"v_{name}", actual, expected, 1e-5)


def layers(N, width, height, *, opacity=0.5, conic=(0.002, 0.0, 0.002)):
    """N Gaussians one behind the other that cover the picture, from a seed."""
    f, g = flat(N, 1, width, height, 3), torch.Generator().manual_seed(4)
    f.means2d = torch.rand(1, N, 2, generator=g) * torch.tensor([width, height])
    f.conics = torch.tensor(conic).expand(1, N, 3).contiguous()
    f.opacities = torch.full((1, N), opacity)
    f.radii, f.depths = torch.full((1, N, 2), 1e3), 1.0 + torch.arange(N)[None]
    return f


def test_a_pixel_and_a_tile_stop_before_they_are_opaque():
    stops("gpu")
    actual, *_ = compared(layers(60, 9, 5, opacity=0.9), opaque=True)
    seen = (actual["v_colors"][0] != 0).any(-1)
    assert seen[:3].all() and not seen[12:].any()  # the last blocks were never looked at
    for name in ("v_means2d", "v_conics", "v_colors", "v_opacities", "absgrad"):
        assert (actual[name][0, 12:] == 0).all(), name


def test_gaussians_as_wide_as_ten_pictures():
    """Their means lie far outside: moments about a tile's centre are moved by thousands of pixels."""
    f = layers(12, 20, 18, opacity=0.2)
    g = torch.Generator().manual_seed(6)
    size = 10 ** (2.5 + torch.rand(12, generator=g))
    angle = 2 * torch.pi * torch.rand(12, generator=g)
    f.means2d = (torch.stack([angle.cos(), angle.sin()], -1) * size[:, None])[None] + 9
    f.conics = torch.stack([size**-2, 0.3 * size**-2, 0.8 * size**-2], -1)[None]
    f.radii[:] = 1e5
    actual, expected, _ = compared(f, absgrad=False)
    assert expected["alpha"].min() > 0.1 and f.means2d.abs().max() > 1000
    for name in ("v_means2d", "v_conics", "v_opacities"):  # also one by one: their scales differ by 100
        relative = (actual[name].double() / expected[name] - 1).abs()
        assert relative.median() < 1e-5, (name, relative.median())


def test_gaussians_as_small_as_a_pixel_in_the_corners_of_tiles():
    """The opposite: moments about a tile's centre all but cancel, the second ones by (10 px / 0.55 px)^2."""
    f = layers(16, 32, 16, opacity=0.7, conic=(3.3, 0.4, 3.0))
    f.means2d = torch.tensor([[0.6, 0.7], [15.4, 15.2], [16.7, 0.4], [31.4, 15.5]]).repeat(4, 1)[None]
    f.means2d += 0.2 * torch.rand(1, 16, 2, generator=torch.Generator().manual_seed(1))
    f.radii[:] = 2.5
    expected, (_, touched) = blended(tiled(f), "reference", torch.float64), beside_cutoffs(f)
    actual = blended(f, "gpu", torch.float32, absgrad=None)
    assert touched.float().mean() < 0.3
    for name, tolerance in (("means2d", 1e-5), ("conics", 2e-4), ("colors", 1e-5), ("opacities", 1e-5)):
        assert_close(f"v_{name}", actual[f"v_{name}"], expected[f"v_{name}"], tolerance, where=~touched)


def test_products_of_eleven_bits_suffice(monkeypatch):
    """As tensor cores take them: every factor of a tf32 product is cut to 11 bits."""
    from triton.runtime import interpreter

    dot, seen = interpreter.InterpreterBuilder.create_dot, []

    def cut(handle):
        data = (handle.data.view(numpy.int32) & -8192).view(numpy.float32)
        return interpreter.TensorHandle(data, handle.dtype)

    def tf32(self, a, b, total, precision, imprecise):
        assert "TF32" in str(precision) and "3" not in str(precision).replace("TF32", "")
        seen.append((a.data != cut(a).data).any())
        assert (b.data == cut(b).data).all() or b.data.shape[-1] == 8
        return dot(self, cut(a), cut(b), total, precision, imprecise)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", tf32)
    compared(flat(60, 1, 20, 12))
    assert any(seen)


def test_one_gaussian_in_many_tiles(monkeypatch):
    """Whole chunks of its slots are folded into one each before they are added up: the same sums."""
    f = layers(4, 26, 17, opacity=0.3)
    f.conics[0, 1], f.radii[0, 1], f.means2d[0, 1] = torch.tensor([0.1, 0, 0.1]), 11.0, 9.0  # few of its own
    whole, *_ = compared(f, 8)
    monkeypatch.setattr(gather, "CHUNK", 4)
    folded = blended(f, "gpu", torch.float32)
    for name in ("v_means2d", "v_conics", "v_colors", "v_opacities", "absgrad"):
        assert_close(name, folded[name], whole[name], 1e-6)
    assert not torch.equal(folded["v_conics"], whole["v_conics"])  # another order: it did fold


def test_the_same_bits_every_time():
    first, second = (blended(tiled(flat(40, 1, 17, 9)), "gpu", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_not_seen_is_not_read():
    f = flat(40, 1, 17, 9)
    plain = blended(tiled(f), "gpu", torch.float32)
    hidden = (f.radii == 0).any(-1)
    assert hidden.any()
    for name in ("means2d", "conics", "colors", "opacities", "depths", "radii"):
        getattr(f, name)[hidden] = torch.nan
    found = blended(tiled(f), "gpu", torch.float32)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    for name in ("v_means2d", "v_conics", "v_colors", "v_opacities", "absgrad"):
        assert (found[name][hidden] == 0).all(), name


def test_an_empty_picture_is_background():
    for f in (flat(0, 2, 9, 5), flat(7, 2, 9, 5)):
        f.radii[:] = 0
        found = blended(tiled(f), "gpu", torch.float32)
        assert torch.equal(found["image"], f.background[:, None, None].expand(-1, 5, 9, -1))
        assert (
            (found["alpha"] == 0).all() and (found["v_means2d"] == 0).all() and (found["absgrad"] == 0).all()
        )


def test_gpu_and_cpu_refuse_each_others_tiles():
    f = flat(9, 1, 9, 5)
    inputs = [f.means2d, f.conics, f.colors, f.opacities]
    for made, other in (("gpu", "cpu"), ("cpu", "gpu"), ("reference", "gpu")):
        t = tiles(f.means2d, f.radii, f.depths, 9, 5, backend=made)
        with pytest.raises(ValueError, match=f"tiles: expected lists of backend '{other}', got those"):
            blend(*inputs, t, 9, 5, backend=other)
    t = tiles(f.means2d[:, :5], f.radii[:, :5], f.depths[:, :5], 9, 5, backend="gpu")
    with pytest.raises(ValueError, match=r"tiles: expected those of \[1, 9\] Gaussians, got \[1, 5\]"):
        blend(*inputs, t, 9, 5, backend="gpu")
