"""Order-free blending by the Triton backend, under the interpreter, in float32 as on the GPU."""

import pytest
import torch
from support.blend2d_cases import KINDS, blended, edges_of, hold, listed, picture

gpu = pytest.importorskip("splatexp_kernels.blend2d.gpu", reason="Triton is not installed")
from kernels.test_blend2d import refused  # noqa: E402
from kernels.test_blend2d import test_a_needle_too_thin_for_float32_stays_bounded as bounded  # noqa: E402
from kernels.test_blend2d import test_equal_weights_are_taken_in_the_order_of_tiles as ties  # noqa: E402
from kernels.test_blend2d import test_nothing_comes_of_the_culled as culled  # noqa: E402

CASES = [  # N, C, width, height, D; tile size
    ((0, 1, 20, 24, 3), 16),
    ((1, 2, 1, 1, 1), 16),
    ((30, 2, 11, 9, 2), 8),
    ((60, 1, 20, 14, 3), 16),
    ((40, 1, 17, 9, 5), 16),
    ((30, 1, 33, 20, 4), 32),
]


def crossed():
    """Every case with every kind; a third of them is quick, in which each case and each kind is there."""
    for i, (case, tile_size) in enumerate(CASES):
        for j, (mode, top_k) in enumerate(KINDS):
            marks = () if (i + j) % 3 == 0 else pytest.mark.slow
            yield pytest.param(case, tile_size, mode, top_k, marks=marks)


@pytest.mark.parametrize("case, tile_size, mode, top_k", list(crossed()), ids=str)
def test_gpu_agrees_with_reference(case, tile_size, mode, top_k):
    f = picture(*case, most=1.0 if mode == "alpha" else 2.0)
    expected = blended(listed(f, "reference"), "reference", mode=mode, top_k=top_k)
    actual = blended(listed(f, "gpu", tile_size=tile_size), "gpu", mode=mode, top_k=top_k)
    hold(actual, expected, edges_of(f, mode, top_k))


@pytest.mark.parametrize("mode, top_k", KINDS[:3])
@pytest.mark.parametrize("knobs", [{"background": False}, {"total": False}], ids=str)
def test_gpu_agrees_with_reference_without_what_is_optional(knobs, mode, top_k):
    f = picture(30, 1, 17, 9)
    expected = blended(listed(f, "reference"), "reference", mode=mode, top_k=top_k, **knobs)
    hold(
        blended(listed(f, "gpu"), "gpu", mode=mode, top_k=top_k, **knobs), expected, edges_of(f, mode, top_k)
    )


def test_gpu_agrees_with_reference_under_a_cap():
    """What a cut list leaves out gets gradients of 0, not what its memory held before."""
    f = listed(picture(60, 1, 20, 9), "gpu", per_tile_max=20)
    expected = blended(f, "reference", mode="sum")
    hold(blended(f, "gpu", mode="sum"), expected, edges_of(f, "sum", 0))
    assert (expected["v_colors"] == 0).all(-1).sum() > 10


def test_the_order_of_gaussians_does_not_matter():
    f = listed(picture(40, 1, 20, 9), "gpu")
    before = blended(f, "gpu", mode="normalized", top_k=4)
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    for name in ("means2d", "conics", "colors", "weights", "radii"):  # not the depths
        setattr(f, name, getattr(f, name)[:, shuffle].contiguous())
    after = blended(listed(f, "gpu"), "gpu", mode="normalized", top_k=4)
    assert (after["image"] - before["image"]).abs().max() < 1e-5


def test_twice_the_same_bits():
    f = listed(picture(40, 1, 20, 9), "gpu")
    one, two = (blended(f, "gpu", mode="normalized", top_k=3) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gpu_keeps_what_every_backend_must():
    ties("gpu")
    culled("normalized", 2, "gpu", size=(16, 12))
    bounded("sum", 3, "gpu", N=20, size=(16, 12))


def test_gpu_says_what_it_cannot_do():
    f = listed(picture(5, 1, 9, 9), "gpu")
    refused("top_k: backend 'gpu' offers at most 32, got 33", f, backend="gpu", top_k=33)
