import pytest
import torch
from support import tiny

from splatexp.gaussians.splats import PARAMS, Edit, Overwrite, Splats, scale_opacity
from splatexp.io.ply import save_ply
from splatexp.train.frusta import random_points_in_view
from splatexp.train.initialization import SceneModel


def filled(count: int = 40, **settings) -> Splats:
    """Splats whose every row is told from every other by all that it carries."""
    splats = tiny.splats(count, **settings)
    random = torch.Generator().manual_seed(1)
    for name in PARAMS:
        with torch.no_grad():
            getattr(splats, name).normal_(generator=random)
        splats.exp_avg[name].normal_(generator=random)
        splats.exp_avg_sq[name].uniform_(0.1, 1, generator=random)
    splats.row_stat("grad2d").uniform_(0.1, 1, generator=random)
    splats.smoothing.uniform_(0.01, 0.1, generator=random)
    splats.importance = torch.rand(count, generator=random).requires_grad_()
    splats.add_param("tone", torch.randn(count, 2, generator=random))
    splats.exp_avg["tone"].normal_(generator=random)
    splats.add_shared("weights", torch.randn(7, generator=random))
    splats.carried["memory"] = torch.rand(count, generator=random)
    for leaf in (splats.means, splats.importance, splats.extra["tone"], splats.shared["weights"]):
        leaf.grad = torch.rand(leaf.shape, generator=random)
    return splats


@pytest.mark.parametrize("seed", range(5))
def test_rows_move_together(seed):
    splats, random = filled(), torch.Generator().manual_seed(seed)
    before = {name: tensor.clone() for name, tensor in splats.state_dict().items()}
    survivors = torch.randperm(40, generator=random)[:25]
    born = torch.randint(40, (12,), generator=random)
    order = torch.randperm(37, generator=random)
    parents = torch.cat([survivors, born])[order]
    fresh = (torch.arange(37) >= 25)[order]
    means = torch.randn(12, 3, generator=random)
    splats.apply(Edit(parents, fresh, {"means": means}, step=9))

    after = splats.state_dict()
    assert set(after) == set(before) and len(splats) == 37
    old = parents[~fresh]
    alone = {name for name in after if name.endswith("weights")} | {"next_uid", "initial", "extent"}
    assert len(alone) == 7 and all(torch.equal(after[name], before[name]) for name in alone - {"next_uid"})
    for name in set(after) - alone:
        assert len(after[name]) == 37
        assert torch.equal(after[name][~fresh], before[name][old]), f"{name}: survivors keep their bits"
        if name.startswith(("exp_avg", "stats", "grad")):
            assert not after[name][fresh].any(), f"{name}: starts at 0"
    for name in set(PARAMS) - {"means"} | {"smoothing", "importance", "extra.tone", "carried.memory"}:
        assert torch.equal(after[name][fresh], before[name][parents[fresh]])
    for leaf in (*splats.params.values(), splats.importance):
        assert leaf.is_leaf and leaf.requires_grad
    assert torch.equal(after["means"][fresh], means)
    assert after["uid"].unique().numel() == 37 and after["uid"][fresh].min() == 40 and splats.next_uid == 52
    assert (after["born"][fresh] == 9).all()
    assert torch.equal(after["generation"][fresh], before["generation"][parents[fresh]] + 1)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (Edit(torch.tensor([0, 40]), torch.tensor([False, True])), "rows of 40"),
        (Edit(torch.tensor([3, 3]), torch.tensor([False, False])), "row 3 twice"),
        (Edit(torch.tensor([3, 3]), torch.tensor([False, True]), {"means": torch.zeros(2, 3)}), "means"),
        (Edit(torch.tensor([3, 3]), torch.tensor([False, True]), {"mean": torch.zeros(1, 3)}), "mean"),
        (Edit(torch.tensor([3, 3]), torch.tensor([False])), r"\[M\]"),
        (Overwrite("opacity_logits", torch.zeros(3)), "opacity_logits"),
        (Overwrite("opacities", torch.zeros(40)), "opacities: expected a parameter"),
    ],
)
def test_edit_that_does_not_fit_changes_nothing(edit, word):
    splats = filled()
    before = {name: tensor.clone() for name, tensor in splats.state_dict().items()}
    with pytest.raises(ValueError, match=word):
        splats.apply(edit)
    assert all(torch.equal(tensor, before[name]) for name, tensor in splats.state_dict().items())


def test_all_rows_may_go():
    splats = filled()
    splats.apply(Edit(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)))
    assert len(splats) == len(splats.baked()) == 0 and splats.sh_degree == 1 and splats.initial_count == 40


def test_overwrite_restarts_one_parameter():
    splats = filled()
    uid, kept, param = splats.uid.clone(), splats.exp_avg["means"].clone(), splats.opacity_logits
    splats.apply(Overwrite("opacity_logits", torch.full((40,), -3.0)))
    assert splats.opacity_logits is param and (param == -3).all()
    assert not splats.exp_avg["opacity_logits"].any() and not splats.exp_avg_sq["opacity_logits"].any()
    assert torch.equal(splats.uid, uid) and torch.equal(splats.exp_avg["means"], kept)


@pytest.mark.parametrize("isotropic", [False, True])
def test_state_survives_a_round_trip(isotropic):
    splats, other = filled(isotropic=isotropic), tiny.splats(3)
    splats.apply(Edit(torch.tensor([0, 5, 5]), torch.tensor([False, False, True])))
    other.load_state_dict(splats.state_dict())
    assert set(other.state_dict()) == set(splats.state_dict()) and other.initial_count == 40
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in splats.state_dict().items())
    assert other.isotropic == isotropic and other.quats.requires_grad != isotropic
    with pytest.raises(ValueError, match="uid"):
        other.load_state_dict({name: tensor for name, tensor in splats.state_dict().items() if name != "uid"})


def test_extra_rows_are_parameters_and_can_be_taken_out():
    splats = filled()
    assert list(splats.params) == [*PARAMS, "tone"] and splats.extra["tone"].requires_grad
    splats.apply(Overwrite("tone", torch.ones(40, 2)))
    assert (splats.extra["tone"] == 1).all() and not splats.exp_avg["tone"].any()
    tones = torch.zeros(1, 2)
    splats.apply(Edit(torch.tensor([3, 3]), torch.tensor([False, True]), {"tone": tones}))
    assert splats.extra["tone"].tolist() == [[1, 1], [0, 0]]
    splats.remove("tone")
    assert list(splats.params) == [*PARAMS] and set(splats.exp_avg) == {*PARAMS, "weights"}
    for name, values in (("means", torch.zeros(2, 3)), ("hue", torch.zeros(3))):
        with pytest.raises(ValueError, match=name):
            splats.add_param(name, values)


def test_what_is_drawn_is_smoothed_and_keeps_its_integral():
    splats = tiny.splats()
    assert all(
        torch.equal(*pair)
        for pair in zip(splats.render_params(), (splats.scales, splats.opacities), strict=True)
    )
    with torch.no_grad():
        splats.log_scales[0] = torch.tensor([0.3, 0.4, 1.2]).log()
        splats.smoothing[0] = 0.4
    scales, opacities = splats.render_params()
    assert scales[0].tolist() == pytest.approx([0.5, 0.32**0.5, 1.6**0.5], rel=1e-5)
    integral = opacities[0] * scales[0].prod() / (splats.opacities[0] * splats.scales[0].prod())
    assert integral.item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(scales[1:], splats.scales[1:]) and torch.equal(opacities[1:], splats.opacities[1:])
    scales.sum().backward()
    assert splats.log_scales.grad[0].tolist() == pytest.approx(
        [0.18, 0.16 / 0.32**0.5, 1.44 / 1.6**0.5], rel=1e-5
    )


@pytest.mark.parametrize("isotropic", [False, True])
def test_baked_rows_are_drawn_the_same(isotropic):
    splats = filled(isotropic=isotropic)
    baked = splats.baked()
    for plain, drawn in zip(baked.render_params(), splats.render_params(), strict=True):
        assert torch.allclose(plain, drawn, rtol=1e-5, atol=1e-7)
    assert baked.isotropic == isotropic and baked.importance is None and not baked.smoothing.any()
    assert torch.equal(baked.uid, splats.uid) and torch.equal(baked.means, splats.means)
    assert not baked.extra and not baked.shared and not baked.stats and not baked.carried


def test_dimmed_logits_are_exact_at_both_ends():
    logits = torch.tensor([-80.0, -20.0, -3.0, 0.0, 5.0, 20.0, 60.0])
    assert torch.equal(scale_opacity(logits, torch.ones(7)), logits)
    for share in (0.9999999, 0.5, 1e-6):
        share = torch.full((7,), share)
        wanted = (logits.double().sigmoid() * share).logit().clamp_min(-30)
        assert torch.allclose(scale_opacity(logits, share).double(), wanted, rtol=1e-5, atol=1e-6)
    assert (scale_opacity(logits, torch.zeros(7)) == -30).all()


def test_first_rows_are_as_wide_as_the_points_are_apart():
    points = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 12]])
    colors = torch.tensor([[0.0, 0.5, 1.0]]).repeat(4, 1)
    splats = SceneModel(sh_degree=0, init_scale=2).from_points(points, colors, 1.0)
    assert splats.scales[0].tolist() == pytest.approx([2 * (169 / 3) ** 0.5] * 3, rel=1e-5)
    assert splats.opacities.tolist() == pytest.approx([0.1] * 4, rel=1e-5)
    assert (0.5 + 0.28209479177387814 * splats.sh0[0, 0]).tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


@pytest.mark.parametrize("points", [torch.zeros(9, 3), torch.zeros(1, 3), torch.eye(3)[[0, 0, 0, 0, 1, 2]]])
def test_coincident_points_get_a_width(points):
    scales = SceneModel().from_points(points, torch.zeros_like(points), 1.0).scales
    assert scales.isfinite().all() and (scales > 1e-4).all()


def test_isotropic_rows_share_one_scale_and_do_not_turn():
    splats = tiny.splats(isotropic=True)
    assert splats.log_scales.shape == (60, 1) and splats.scales.shape == (60, 3)
    assert not splats.quats.requires_grad


def test_init_takes_the_points_or_draws_them():
    scene = tiny.scene()
    assert len(SceneModel()(scene)) == 60
    some = SceneModel(init_points=20)(scene, seed=3)
    assert len(some) == 20 and torch.equal(some.means, SceneModel(init_points=20)(scene, seed=3).means)
    scene.points = None
    assert len(SceneModel(init_points=500)(scene)) == 500
    with pytest.raises(ValueError, match="model.init: expected random"):
        SceneModel(init="sfm")(scene)


def test_random_points_depend_on_the_seed_alone():
    scene = tiny.scene()
    draw = [SceneModel(init="random", init_points=50)(scene, seed=seed).means for seed in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_random_points_fill_the_visual_hull():
    scene = tiny.scene(random_background=True)
    points, colors = random_points_in_view(scene, 400, torch.Generator().manual_seed(0))
    assert points.shape == colors.shape == (400, 3)
    for view in scene.train:
        local = points @ view.camera.viewmats[0, :3, :3].T + view.camera.viewmats[0, :3, 3]
        x, y = (local @ view.camera.Ks[0].T / local[:, 2:])[:, :2].floor().long().unbind(1)
        inside = (x >= 0) & (x < 20) & (y >= 0) & (y < 16)
        assert (view.alpha[y[inside], x[inside]] > 127).all()


def test_init_from_a_file(tmp_path):
    splats = filled()
    save_ply(tmp_path / "a.ply", splats)
    again = SceneModel(init="ply", init_path=str(tmp_path / "a.ply"), sh_degree=1)(tiny.scene())
    assert all(torch.equal(again.params[name], splats.params[name]) for name in PARAMS)
    richer = SceneModel(init="ply", init_path=str(tmp_path / "a.ply"), sh_degree=2, init_points=7)(
        tiny.scene()
    )
    assert richer.shN.shape == (7, 8, 3) and not richer.shN[:, 3:].any()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"init": "smf"}, "did you mean 'sfm'"),
        ({"init": "ply"}, "init_path"),
        ({"init_path": "a.ply"}, "init_path"),
        ({"sh_degree": 5}, r"sh_degree: expected a number in \[0, 4\], got 5"),
        ({"init_opacity": 1.0}, "init_opacity"),
    ],
)
def test_model_refuses(settings, line):
    with pytest.raises(ValueError, match=line):
        SceneModel(**settings)
