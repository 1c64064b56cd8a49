import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import tiny

from splatexp.losses.regularizers import (
    SH,
    Erank,
    Flatness,
    Opacity,
    OpacityLogit,
    Scale,
    ScreenSize,
    Transmittance,
)
from splatexp.raster.backends import Reference
from splatexp.schedules.curve import Curve
from splatexp_kernels.project import project


def drawn(splats, cameras=1):
    return Reference()(splats, tiny.cameras(cameras), sh_degree=0)


def test_penalties_are_means_with_gradients():
    splats = tiny.splats()
    render = drawn(splats)
    assert Opacity(weight=2.0)(render, splats, 0, 1).item() == pytest.approx(1.4, rel=1e-5)
    assert Opacity(weight=1.0, power=2)(render, splats, 0, 1).item() == pytest.approx(0.49, rel=1e-5)
    scale = Scale(weight=0.5)(render, splats, 0, 1)
    assert scale.item() == pytest.approx(0.5 * splats.scales.mean().item(), rel=1e-5)
    (scale + Opacity()(render, splats, 0, 1)).backward()
    assert (splats.log_scales.grad > 0).all() and (splats.opacity_logits.grad > 0).all()


def test_weights_follow_their_curve():
    splats = tiny.splats()
    opacity = Opacity(weight=2.0, anneal=Curve("linear", end=0.0, start=20, stop=40))
    values = [opacity(drawn(splats), splats, step, 100).item() for step in (0, 20, 30, 40, 99)]
    assert values == pytest.approx([1.4, 1.4, 0.7, 0, 0], rel=1e-5)


def test_every_penalty_is_zero_of_nothing():
    render = SimpleNamespace(
        opacities=torch.zeros(0), scales=torch.zeros(0, 3), conics=torch.zeros(1, 0, 3),
        visible=torch.zeros(1, 0, dtype=torch.bool), alpha=torch.ones(1, 2, 2, 1),
    )  # fmt: skip
    splats = tiny.splats()
    splats.load_state_dict({k: v[:0] if v.ndim else v for k, v in splats.state_dict().items()})
    for penalty in (Opacity(), Scale(), ScreenSize(), SH(), Erank(), Flatness(), Transmittance()):
        assert penalty(render, splats, 0, 1).item() == 0
    assert OpacityLogit(weight=1.0)(render, splats, 0, 1).item() == 400


def test_screen_scale_is_the_long_axis_of_the_footprint():
    turn = torch.tensor(0.3)
    rotation = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    conic = (rotation @ torch.diag(torch.tensor([2.0, 5.0]) ** -2) @ rotation.T).flatten()[[0, 1, 3]]
    hidden = torch.full((3,), torch.nan)
    render = SimpleNamespace(
        conics=torch.stack([conic, conic, hidden])[None], visible=torch.tensor([[True, True, False]])
    )
    assert ScreenSize(weight=1.0)(render, None, 0, 1).item() == pytest.approx(15.0**2, rel=1e-5)
    over = ScreenSize(weight=1.0, max_radius=10.0)(render, None, 0, 1)
    assert over.item() == pytest.approx(0.25, rel=1e-5)
    assert ScreenSize(weight=1.0, max_radius=16.0)(render, None, 0, 1).item() == 0
    thread = torch.tensor([[[1.0, 1e-9, 0.0]]], requires_grad=True)  # float32 takes it for endless
    render = SimpleNamespace(conics=thread, visible=torch.ones(1, 1, dtype=torch.bool))
    value = ScreenSize(weight=1.0)(render, None, 0, 1)
    value.backward()
    assert value.item() == pytest.approx(9e6, rel=1e-3) and thread.grad.isfinite().all()
    assert thread.grad[0, 0, 0] < 0, "a narrower conic is a larger footprint"


@pytest.mark.parametrize("r_max", [0.0, 6.0])
def test_screen_scale_differentiates_through_the_projection(r_max):
    splats, camera = tiny.splats(8), tiny.cameras(2)
    random = torch.Generator().manual_seed(1)
    means, quats = splats.means.detach().double(), torch.randn(8, 4, generator=random, dtype=torch.float64)
    scales = torch.rand(8, 3, generator=random, dtype=torch.float64) * 0.6 + 0.05
    penalty = ScreenSize(weight=1.0, max_radius=r_max)

    def value(means, quats, scales):
        _, conics, _, radii, _ = project(
            means, quats, scales, torch.full((8,), 0.9, dtype=torch.float64), camera.viewmats.double(),
            camera.Ks.double(), 20, 16, backend="reference",
        )  # fmt: skip
        assert (radii[..., 0] > 0).any()
        return penalty(SimpleNamespace(conics=conics, visible=radii[..., 0] > 0), None, 0, 1)

    leaves = [leaf.requires_grad_() for leaf in (means, quats, scales)]
    assert torch.autograd.gradcheck(value, leaves, eps=1e-7, atol=1e-4, rtol=1e-4)


def test_sh_penalty_leaves_the_first_band_alone():
    splats = tiny.splats(4)
    with torch.no_grad():
        splats.shN[:] = 0.5
    value = SH(weight=2.0)(drawn(splats), splats, 0, 1)
    value.backward()
    assert value.item() == pytest.approx(2.0 * 0.25 * 9) and splats.sh0.grad is None
    assert torch.allclose(splats.shN.grad, torch.full_like(splats.shN, 2.0 * 2 * 0.5 / 4))


def test_effective_rank_tells_needles_from_discs_and_balls():
    scales = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1e-9], [1.0, 0.1, 0.05]], dtype=torch.float64)
    value = Erank(weight=1.0).penalty
    assert value(SimpleNamespace(scales=scales[:1]), None).item() == 0
    assert value(SimpleNamespace(scales=scales[1:2]), None).item() == pytest.approx(0, abs=1e-6)
    q = scales[2] ** 2 / (scales[2] ** 2).sum()
    by_hand = -math.log(math.exp(-(q * q.log()).sum()) - 1 + 1e-7)
    assert value(SimpleNamespace(scales=scales[2:]), None).item() == pytest.approx(by_hand, rel=1e-9)
    assert value(SimpleNamespace(scales=scales), None).item() == pytest.approx(by_hand / 3, rel=1e-6)
    leaf = scales[2:].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: value(SimpleNamespace(scales=s), None), [leaf])
    extreme = torch.tensor([[1.0, 1e-20, 1e-30], [0.0, 0.0, 1.0]], requires_grad=True)
    value(SimpleNamespace(scales=extreme), None).backward()
    assert extreme.grad.isfinite().all()


def test_thin_takes_the_smallest_axis():
    scales = torch.tensor([[3.0, 1.0, 2.0], [4.0, 5.0, 0.5]], requires_grad=True)
    value = Flatness()(SimpleNamespace(scales=scales), None, 0, 1)
    value.backward()
    assert value.item() == 0.75 and scales.grad.tolist() == [[0, 0.5, 0], [0, 0, 0.5]]


def test_transmittance_fills_photographs_but_not_backgrounds():
    splats = tiny.splats()
    render = drawn(splats)
    value = Transmittance()(render, splats, 0, 1)
    assert value.item() == pytest.approx(0.1 * (1 - render.alpha.mean().item()), rel=1e-5)
    value.backward()
    assert splats.opacity_logits.grad.sum() < 0, "more opaque is cheaper"
    Transmittance().check(tiny.scene())
    for more in ({"background": (1.0, 1.0, 1.0)}, {"background": (0.0, 0.0, 0.0)}):
        with pytest.raises(
            ValueError,
            match="transmittance: expected a scene without a background, got tiny with a background",
        ):
            Transmittance().check(replace(tiny.scene(), **more))
    Opacity().check(tiny.scene(random_background=True))


def test_logits_feel_one_pull_now_and_then():
    splats = tiny.splats(5)
    with torch.no_grad():
        splats.opacity_logits[:] = torch.tensor([-3.0, -1.0, 0.0, 1.0, 8.0])
    logit = OpacityLogit(weight=0.5, start=10, stop=30, every=5)
    assert [step for step in range(40) if logit.active(step)] == [10, 15, 20, 25]
    value = logit(drawn(splats), splats, 10, 40)
    value.backward()
    assert value.item() == pytest.approx(0.5 * 21**2)
    assert torch.allclose(splats.opacity_logits.grad, torch.full((5,), 0.5 * 2 * 21 / 5))


def test_window_is_half_open():
    window = Opacity(start=10, stop=20)
    assert [window.active(step) for step in (9, 10, 19, 20)] == [False, True, True, False]
    assert Opacity().active(10**9) and not Opacity(weight=0).active(0)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Scale(weight=-1), "weight"),
        (lambda: Opacity(power=0), "power"),
        (lambda: ScreenSize(max_radius=-1), "max_radius"),
        (lambda: OpacityLogit(every=0), "every"),
    ],
)
def test_regularizers_refuse(make, line):
    with pytest.raises(ValueError, match=line):
        make()
