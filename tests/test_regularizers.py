import pytest
import tiny
import torch

from splatexp.raster import Reference
from splatexp.regularizers import Opacity, Scale


def test_penalties_are_means_with_gradients():
    splats = tiny.splats()
    render = Reference()(splats, tiny.cameras(1), sh_degree=0)
    assert Opacity(weight=2.0)(render).item() == pytest.approx(1.4, rel=1e-5)
    assert Opacity(weight=1.0, power=2)(render).item() == pytest.approx(0.49, rel=1e-5)
    scale = Scale(weight=0.5)(render)
    assert scale.item() == pytest.approx(0.5 * splats.scales.mean().item(), rel=1e-5)
    (scale + Opacity()(render)).backward()
    assert (splats.log_scales.grad > 0).all() and (splats.opacity_logits.grad > 0).all()


def test_window_is_half_open():
    window = Opacity(start=10, stop=20)
    assert [window.active(step) for step in (9, 10, 19, 20)] == [False, True, True, False]
    assert Opacity().active(10**9) and not Opacity(weight=0).active(0)


def test_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="weight"):
        Scale(weight=-1)
    assert torch.is_grad_enabled()
