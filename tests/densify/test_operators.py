import math

import pytest
import torch
from support import tiny

from splatexp.densify.merge import find_pairs, shape_difference
from splatexp.densify.opacity_split import OPACITY_RULES, relocation
from splatexp.densify.operators import OPERATORS, OperatorSettings
from splatexp.gaussians.geometry import quats_to_rotations
from splatexp.gaussians.splats import PARAMS, Splats

MULTIPLY = ("clone", "split", "clone_or_split", "jitter")  # a row that comes k times becomes k + 1
DIVIDE = (*MULTIPLY, "long_axis", "steep", "octree")


def filled(count: int = 40, isotropic: bool = False, spread: float = 0.3) -> Splats:
    """Splats of all shapes, turned all ways, whose every row is told from every other."""
    splats, random = tiny.splats(count, isotropic=isotropic), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("quats", "opacity_logits", "sh0", "shN"):
            getattr(splats, name).normal_(generator=random)
        splats.log_scales.normal_(-2, 0.7, generator=random)
        splats.means.normal_(0, spread, generator=random)
    for name in PARAMS:
        splats.exp_avg[name].normal_(generator=random)
    splats.row_stat("grad2d").uniform_(0.1, 1, generator=random)
    return splats


def plan(name, splats, rows, seed=0, step=5, **shape):
    return OPERATORS[name].plan(
        splats, torch.as_tensor(rows), OperatorSettings(**shape), step, torch.Generator().manual_seed(seed)
    )


def born(name, splats, rows, **shape):
    """The fresh rows that an operator makes, activated, float64."""
    after = Splats({key: tensor.detach() for key, tensor in splats.params.items()}, splats.extent)
    edit = plan(name, splats, rows, **shape)
    after.apply(edit)
    return edit, {key: tensor.detach()[edit.fresh].double() for key, tensor in after.params.items()}


def covariances(quats, log_scales):
    half = quats_to_rotations(quats) * log_scales.exp().expand(-1, 3)[:, None, :]
    return half @ half.mT


def moments(params):
    """Total mass / (2 pi)^{3/2}, mean and covariance of a mixture, float64."""
    log_scales = params["log_scales"].double().expand(-1, 3)
    mass = params["opacity_logits"].double().sigmoid() * log_scales.sum(1).exp()
    total, means = mass.sum(), params["means"].double()
    mean = (mass[:, None] * means).sum(0) / total
    apart = means - mean
    second = covariances(params["quats"].double(), log_scales) + apart[:, :, None] * apart[:, None, :]
    return total, mean, (mass[:, None, None] * second).sum(0) / total


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_survivors_keep_their_bits(name, isotropic):
    splats = filled(isotropic=isotropic)
    before = {key: tensor.clone() for key, tensor in splats.state_dict().items()}
    edit = plan(name, splats, range(5, 25), max_distance=0.2, max_log_ratio=3.0)
    splats.apply(edit)
    after, old = splats.state_dict(), edit.parents[~edit.fresh]
    for key in after:
        if after[key].ndim and len(after[key]) == len(splats):  # what is a row
            assert torch.equal(after[key][~edit.fresh], before[key][old]), key
    for param in PARAMS:
        assert after[param].isfinite().all()
        assert not after[f"exp_avg.{param}"][edit.fresh].any()
    assert (after["born"][edit.fresh] == 5).all()
    changed = torch.tensor([row for row in range(40) if row not in old.tolist()])
    if name != "relocate":
        assert set(changed.tolist()) <= set(range(5, 25))
    if name == "merge":
        assert 0 < len(changed) == 2 * edit.fresh.sum() and len(splats) == 40 - len(changed) // 2
    else:
        assert len(splats) == 40 + 20 * OPERATORS[name].births


@pytest.mark.parametrize("name", OPERATORS)
def test_an_edit_follows_from_its_seed(name):
    shape = {"max_distance": 0.2, "max_log_ratio": 3.0}
    one, two = (plan(name, filled(), [3, 8, 1, 30, 7, 2, 21, 22], seed=4, **shape) for _ in range(2))
    assert torch.equal(one.parents, two.parents) and torch.equal(one.fresh, two.fresh)
    assert all(torch.equal(one.values[key], two.values[key]) for key in two.values)
    turned = plan(name, filled(), [22, 7, 1, 30, 8, 21, 2, 3], seed=4, **shape)
    assert torch.equal(one.parents, turned.parents), "the order of the rows does not matter"
    assert all(torch.equal(one.values[key], turned.values[key]) for key in turned.values)


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_to_do_is_no_edit(name):
    assert plan(name, filled(), torch.zeros(0, dtype=torch.int64)) is None
    if name in ("relocate", "merge"):
        assert plan(name, filled(1), [0]) is None
        assert plan("relocate", filled(), range(40)) is None


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("name", DIVIDE + ("prune",))
@pytest.mark.parametrize("count", [1, 40])
def test_all_rows_may_be_selected(name, isotropic, count):
    splats = filled(count, isotropic)
    splats.apply(plan(name, splats, range(count)))
    assert len(splats) == count * (1 + OPERATORS[name].births)
    assert all(tensor.isfinite().all() for tensor in splats.params.values())


@pytest.mark.parametrize("rule", OPACITY_RULES)
@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("name", [*DIVIDE, "relocate", "merge"])
def test_extremes_stay_finite(name, isotropic, rule):
    if name == "merge":
        rule = ""
    splats = filled(40, isotropic)
    with torch.no_grad():
        splats.opacity_logits[:10] = torch.tensor([-90.0, 90.0, -40, 40, -17, 17, 17, 17, 0, 0])
        splats.log_scales[:20:3] = math.log(1e-12)
        splats.means[:4] = splats.means[:1]
    rows = range(15, 40) if name == "relocate" else range(20)
    shape = {"max_distance": 1.0, "max_log_ratio": 60.0} if name == "merge" else {}
    splats.apply(plan(name, splats, rows, opacity=rule, **shape))
    assert all(tensor.isfinite().all() for tensor in splats.params.values())
    assert splats.scales.isfinite().all() and (splats.scales >= 0).all()


@pytest.mark.parametrize("rule", OPACITY_RULES)
@pytest.mark.parametrize("name", MULTIPLY)
def test_a_row_that_comes_k_times_becomes_k_more(name, rule):
    splats = filled()
    edit, children = born(name, splats, [4, 9, 4, 4], opacity=rule)
    assert len(edit.parents) == 44
    assert (edit.parents == 4).sum() == 4 and (edit.parents == 9).sum() == 2
    survives = 4 in edit.parents[~edit.fresh]
    assert survives == (name == "clone" and rule == "copy"), "clone_or_split: both rows are large"
    opacity = splats.opacities[[4, 9]].double()
    expected = {
        "copy": opacity,
        "scaled": 0.6 * opacity,
        "revised": 1 - (1 - opacity) ** torch.tensor([0.25, 0.5]).double(),
    }
    expected["mcmc"] = expected["revised"]
    each = children["opacity_logits"].sigmoid()
    of = edit.parents[edit.fresh]
    torch.testing.assert_close(each, torch.where(of == 4, *expected[rule]).to(each), atol=1e-6, rtol=0)


def test_copies_let_through_what_one_row_did():
    splats = filled()
    for name, n in (("clone", 2), ("split", 2), ("octree", 8), ("long_axis", 2), ("steep", 2)):
        edit, children = born(name, splats, range(40), opacity="revised")
        parents = splats.opacities.detach().double()[edit.parents[edit.fresh]]
        # float32 logits: 1 - o is good to about 1e-7 of itself, times n
        torch.testing.assert_close(
            (1 - children["opacity_logits"].sigmoid()) ** n, 1 - parents, rtol=2e-6, atol=0
        )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 51])
@pytest.mark.parametrize("opacity", [0.05, 0.4, 0.9, 0.999])
def test_relocation_keeps_the_line_integral(n, opacity):
    one = torch.tensor([opacity], dtype=torch.float64)
    each, scales = relocation(one, torch.tensor([[0.3, 1.0, 2.0]], dtype=torch.float64), torch.tensor([n]))
    if n == 51 and opacity < 0.3:
        assert each.item() == 0.005, "raised, so that no copy is dead: that adds to the integral"
        return
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    for width, narrow in zip((0.3, 1.0, 2.0), scales[0].tolist(), strict=True):
        composited = 1 - (1 - each * torch.exp(-0.5 * (x / narrow) ** 2)) ** n
        before = opacity * width * math.sqrt(2 * math.pi)
        assert torch.trapezoid(composited, x).item() == pytest.approx(before, rel=1e-9)
    assert (1 - (1 - each) ** n).item() == pytest.approx(opacity, rel=1e-12)


def test_relocation_of_two_has_a_closed_form():
    opacity, scale = torch.tensor([0.2, 0.7, 0.95]).double(), torch.tensor([[1.0], [0.5], [3.0]]).double()
    each, scales = relocation(opacity, scale, torch.full((3,), 2))
    expected = scale[:, 0] * opacity / (2 * each - each**2 / 2**0.5)
    torch.testing.assert_close(scales[:, 0], expected, rtol=1e-13, atol=0)


def test_relocation_at_its_limits():
    opacities = torch.tensor([0.0, 1.0, 1.0, 0.5, 1e-30])
    each, scales = relocation(opacities, torch.ones(5, 3), torch.tensor([51, 51, 2, 400, 7]))
    assert each.dtype == torch.float32 and ((each >= 0.005) & (each < 1)).all()
    assert scales.isfinite().all() and (scales > 0).all()
    same = relocation(opacities[3:4], torch.ones(1, 3), torch.tensor([51]))
    assert torch.equal(each[3:4], same[0]) and torch.equal(scales[3:4], same[1])
    assert [len(part) for part in relocation(opacities[:0], scales[:0], opacities[:0].long())] == [0, 0]


def test_dead_rows_move_to_live_ones():
    splats = filled()
    with torch.no_grad():
        splats.opacity_logits[:30] = -7.0
        splats.opacity_logits[30:] = torch.tensor([0.0] * 9 + [-200.0])
    edit, moved = born("relocate", splats, range(30))
    assert len(edit.parents) == 40 and edit.parents.min() >= 30 and 39 not in edit.parents[edit.fresh]
    sources, copies = edit.parents[edit.fresh].unique(return_counts=True)
    assert copies.sum() == 30 + len(sources) and copies.min() >= 2
    each, scales = relocation(splats.opacities[sources], splats.scales[sources], copies)
    of = torch.searchsorted(sources, edit.parents[edit.fresh])
    torch.testing.assert_close(moved["opacity_logits"].sigmoid().float(), each[of], rtol=1e-5, atol=0)
    torch.testing.assert_close(moved["log_scales"].exp().float(), scales[of], rtol=1e-5, atol=0)
    assert torch.equal(moved["means"].float(), splats.means.detach()[sources][of])
    assert set(edit.parents[~edit.fresh].tolist()) == set(range(30, 40)) - set(sources.tolist())


def test_live_rows_are_drawn_by_their_opacity():
    splats = filled(2002)
    with torch.no_grad():
        splats.opacity_logits[:2] = torch.tensor([0.2, 0.6]).logit()
    copies = plan("relocate", splats, range(2, 2002), opacity="copy").parents.bincount()
    # 2000 draws: one standard deviation of a share is 0.01
    assert copies.tolist() == pytest.approx([501, 1501], abs=80)


def test_long_axis_numbers():
    splats = filled(2)
    with torch.no_grad():
        splats.log_scales[0] = torch.tensor([0.1, 0.4, 0.2]).log()
        splats.opacity_logits[0] = 0.0
    edit, children = born("long_axis", splats, [0])
    turn = quats_to_rotations(splats.quats.detach())[0]
    steps = (children["means"].float() - splats.means.detach()[0]) @ turn
    expected = torch.tensor([[0.0, 1.35 * 0.4, 0.0], [0.0, -1.35 * 0.4, 0.0]])
    torch.testing.assert_close(steps, expected, atol=1e-6, rtol=0)
    scales = [0.1 * 0.893028555, 0.4 * 0.55, 0.2 * 0.893028555]
    assert children["log_scales"][1].exp().tolist() == pytest.approx(scales, rel=1e-6)
    assert children["opacity_logits"].sigmoid().tolist() == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="rule.offset"):
        plan("long_axis", splats, [0], offset=1.0)


def test_octree_fills_the_box():
    splats = filled()
    edit, children = born("octree", splats, [7])
    turn, scales = quats_to_rotations(splats.quats.detach())[7], splats.scales.detach()[7]
    corners = (children["means"].float() - splats.means.detach()[7]) @ turn / scales
    torch.testing.assert_close(corners.abs(), torch.full((8, 3), 0.5), atol=1e-5, rtol=0)
    assert len({tuple(corner) for corner in corners.sign().tolist()}) == 8
    torch.testing.assert_close(children["log_scales"].exp().float(), (scales / 1.6).expand(8, 3))
    torch.testing.assert_close(children["means"].mean(0).float(), splats.means.detach()[7])


def test_steep_children_part_on_the_shortest_axis():
    splats = filled()
    with torch.no_grad():
        splats.log_scales[:20] -= 10  # small: their scales stay
    for offset in (0.0, 0.7):
        edit, children = born("steep", splats, range(40), offset=offset)
        steps = children["means"].float() - splats.means.detach().repeat_interleave(2, 0)
        torch.testing.assert_close(steps[::2], -steps[1::2], atol=1e-6, rtol=0)
        turns, scales = quats_to_rotations(splats.quats.detach()), splats.scales.detach()
        local = torch.einsum("nij,ni->nj", turns, steps[::2])[20:] / scales.amin(1)[20:, None]
        shortest = torch.nn.functional.one_hot(scales.argmin(1), 3)[20:].bool()
        assert local[~shortest].abs().max() < 1e-4 and local[shortest].min() > 0
        if offset:
            torch.testing.assert_close(local[shortest], torch.full((20,), 0.7), atol=1e-4, rtol=0)
    factor = torch.tensor([1.0, 1 / 1.6]).repeat_interleave(40)[:, None]
    torch.testing.assert_close(children["log_scales"].exp().float(), factor * scales.repeat_interleave(2, 0))
    torch.testing.assert_close(
        children["opacity_logits"].sigmoid().float(), 0.5 * splats.opacities.detach().repeat_interleave(2)
    )


def test_jitter_halves_and_moves_a_little():
    splats = filled()
    edit, children = born("jitter", splats, [3] * 5000)
    assert len(children["means"]) == 5001
    torch.testing.assert_close(children["log_scales"].exp().float()[:1], splats.scales.detach()[3:4] / 2)
    steps = (children["means"].float() - splats.means.detach()[3]) @ quats_to_rotations(
        splats.quats.detach()
    )[3]
    # 5001 draws: the error of a standard deviation is 1 %
    torch.testing.assert_close(steps.std(0), 0.1 * splats.scales.detach()[3], rtol=0.05, atol=0)
    assert torch.equal(children["sh0"][0].float(), splats.sh0.detach()[3])


def test_isotropic_rows_divide_without_an_axis_of_their_own():
    splats = filled(3000, isotropic=True)
    edit, children = born("long_axis", splats, range(3000))
    steps = children["means"].float() - splats.means.detach().repeat_interleave(2, 0)
    ways = steps[::2] / splats.scales.detach()[:, :1]
    torch.testing.assert_close(ways.norm(dim=1), torch.full((3000,), 1.35), rtol=1e-3, atol=0)
    assert ways.mean(0).abs().max() < 0.1, "drawn, not always the same"  # three standard deviations: 0.04
    ratio = children["log_scales"][::2, 0].exp() / splats.log_scales.detach()[:, 0].double().exp()
    torch.testing.assert_close(ratio**3, torch.full_like(ratio, 0.55 * (1 - 0.45**2)), rtol=1e-5, atol=0)


def near(count: int = 60, isotropic: bool = False) -> Splats:
    """Faint splats in a small place."""
    splats = filled(count, isotropic, spread=0.05)
    with torch.no_grad():
        splats.opacity_logits -= 4
    return splats


def test_merge_keeps_mass_mean_and_covariance():
    splats = near()
    edit, joined = born("merge", splats, range(60), max_distance=1.0, max_log_ratio=9.0)
    assert len(joined["means"]) >= 20
    pairs = find_pairs(splats, torch.arange(60), 1.0 * splats.extent, 9.0)
    gone = set(range(60)) - set(edit.parents[~edit.fresh].tolist())
    assert set(pairs.flatten().tolist()) == gone
    for index, pair in enumerate(pairs):
        two = moments({key: tensor.detach()[pair] for key, tensor in splats.params.items()})
        one = moments({key: tensor[index : index + 1] for key, tensor in joined.items()})
        assert one[0].item() == pytest.approx(two[0].item(), rel=3e-6)  # float32 logarithms
        torch.testing.assert_close(one[1], two[1], atol=1e-7, rtol=0)
        # float32 axes: an error of 1e-7 of the largest variance turns up in all entries
        torch.testing.assert_close(one[2], two[2], atol=1e-6 * two[2].max().item(), rtol=0)
        weights = splats.opacities[pair] * splats.scales[pair].prod(1)
        color = (weights[:, None] * splats.sh0[pair, 0]).sum(0) / weights.sum()
        torch.testing.assert_close(joined["sh0"][index, 0].float(), color.detach())
        assert edit.parents[edit.fresh][index] == pair[weights.argmax()]
    torch.testing.assert_close(
        torch.linalg.det(quats_to_rotations(joined["quats"])), torch.ones(len(pairs)).double()
    )


def test_merge_of_isotropic_rows_keeps_the_mean_variance():
    splats = near(isotropic=True)
    edit, joined = born("merge", splats, range(60), max_distance=1.0, max_log_ratio=9.0)
    pairs = find_pairs(splats, torch.arange(60), 1.0 * splats.extent, 9.0)
    for index, pair in enumerate(pairs):
        two = moments({key: tensor.detach()[pair] for key, tensor in splats.params.items()})
        one = moments({key: tensor[index : index + 1] for key, tensor in joined.items()})
        assert one[0].item() == pytest.approx(two[0].item(), rel=3e-6)
        torch.testing.assert_close(one[1], two[1], atol=1e-7, rtol=0)
        assert one[2].trace().item() == pytest.approx(two[2].trace().item(), rel=1e-5)


def test_merge_cuts_opacity():
    splats = tiny.splats(2, init_opacity=0.9)
    with torch.no_grad():
        splats.means.zero_()
        splats.log_scales[:] = torch.tensor([0.3, 0.2, 0.1]).log()
    edit, joined = born("merge", splats, [0, 1])
    assert joined["opacity_logits"].sigmoid().item() == pytest.approx(0.99)
    assert joined["log_scales"].exp()[0].sort().values.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_merge_of_flat_rows_stays_flat():
    splats = tiny.splats(2, init_opacity=0.3)
    with torch.no_grad():
        splats.means[:] = torch.tensor([[0.0, 0, 0], [0.002, 0, 0]])
        splats.log_scales[:] = torch.tensor([0.01, 0.01, 1e-12]).log()
    _, joined = born("merge", splats, [0, 1])
    scales = joined["log_scales"].exp()[0].sort().values
    assert scales.tolist() == pytest.approx([1e-12, 0.01, (0.01**2 + 0.001**2) ** 0.5], rel=1e-4)
    mass = joined["opacity_logits"].sigmoid().item() * scales.prod().item()
    assert mass == pytest.approx(2 * 0.3 * 1e-16, rel=1e-4)


def test_nearest_pairs_come_first_and_ties_go_by_uid():
    splats = tiny.splats(6)
    with torch.no_grad():
        splats.log_scales.fill_(-3.0)
        splats.means.zero_()
        splats.means[:, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 10.5])
    everyone = torch.arange(6)
    assert find_pairs(splats, everyone, 1.0, 1.0).tolist() == [[4, 5], [0, 1], [2, 3]]
    assert find_pairs(splats, everyone, 1.0, 1.0, max_pairs=2).tolist() == [[4, 5], [0, 1]]
    assert find_pairs(splats, everyone, 0.99, 1.0).tolist() == [[4, 5]]
    assert find_pairs(splats, everyone[1:4], 1.0, 1.0).tolist() == [[1, 2]]
    splats.uid.copy_(torch.tensor([9, 8, 7, 6, 5, 4]))
    assert find_pairs(splats, everyone, 1.0, 1.0).tolist() == [[5, 4], [3, 2], [1, 0]]
    splats.means.detach().zero_()
    assert len(find_pairs(splats, everyone, 1e-9, 1.0)) == 3, "coincident rows are pairs too"


def test_alike_means_size_shape_and_orientation():
    splats = tiny.splats(5)
    with torch.no_grad():
        splats.log_scales[:] = torch.tensor([0.0, -1.0, -2.0])
        splats.log_scales[1] += 0.25
        splats.log_scales[3] = torch.tensor([-1.0, -2.0, 0.0])
        splats.quats[2] = torch.tensor([0.5, 0.5, 0.5, 0.5])  # x to y to z to x
        splats.quats[3] = torch.tensor([2.0, 2.0, 2.0, 2.0])
    pairs = torch.tensor([[0, 4], [0, 1], [1, 0], [0, 2], [0, 3]])
    # row 3 has other scales on other axes, which come to the same shape
    expected = [0.0, 0.25, 0.25, 2.0, 0.0]
    assert shape_difference(splats, pairs).tolist() == pytest.approx(expected, abs=1e-6)


def test_knobs_are_those_that_are_read():
    """Every knob that an operator lists changes its edit."""
    other = {
        "size_threshold": 9.0,
        "shrink": 1.3,
        "opacity_factor": 0.3,
        "offset": 0.2,
        "max_distance": 0.01,
        "max_log_ratio": 0.5,
    }
    for name, operator in OPERATORS.items():
        splats = near() if name == "merge" else filled()
        with torch.no_grad():
            splats.log_scales[::2] -= 2
        base = {"max_distance": 1.0, "max_log_ratio": 9.0} if name == "merge" else {}
        rows, rule = (range(20), "revised") if name == "relocate" else (range(40), "mcmc")
        for knob in operator.setting_names:
            settings = dict(base)
            if knob == "opacity_factor":
                settings["opacity"] = "scaled"
            before = plan(name, splats, rows, **settings)
            value = {"opacity": rule, "max_pairs": 1}.get(knob) or other[knob]
            after = plan(name, splats, rows, **{**settings, knob: value})
            same = torch.equal(before.parents, after.parents) and all(
                torch.equal(before.values[key], after.values[key]) for key in before.values
            )
            assert not same, f"{name}: {knob}"
            operator.check(OperatorSettings(**{**settings, knob: value}))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: OperatorSettings(opacity="revise"), "did you mean 'revised'"),
        (lambda: OperatorSettings(opacity_factor=1.5), "rule.opacity_factor"),
        (lambda: OperatorSettings(shrink=-1.0), "rule.shrink"),
        (
            lambda: OPERATORS["prune"].check(OperatorSettings(shrink=1.6)),
            "rule.shrink: expected it unset with operate=prune",
        ),
        (
            lambda: OPERATORS["clone"].check(OperatorSettings(opacity_factor=0.5)),
            "rule.opacity_factor: expected it unset with opacity=copy",
        ),
        (
            lambda: OPERATORS["long_axis"].check(OperatorSettings(opacity="mcmc", opacity_factor=0.5)),
            "rule.opacity_factor",
        ),
    ],
)
def test_shapes_are_held(make, line):
    with pytest.raises(ValueError, match=line):
        make()
