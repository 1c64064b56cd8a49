"""Importance: what it does to the picture, whom its gradient reaches; it is moved, saved and folded in."""

import pytest
import torch
from support import tiny

from splatexp.gaussians.splats import PARAMS, Edit, Splats
from splatexp.importance import MLP, Logit, Mask, NoImportance, average_importance, bake
from splatexp.importance.mlp import FEATURES, LAYERS, row_features
from splatexp.io.ply import load_ply, save_ply
from splatexp.losses.photometric import Loss
from splatexp.raster.backends import Reference

SCENE = tiny.scene()
KINDS = {
    "logit": Logit(start=4, ramp=6, lr=0.2),
    "mlp": MLP(start=4, ramp=6, lr=0.05, every=3, sample_size=20),
    "mask": Mask(start=4, ramp=6, lr=0.5, init_logit=2.0, sparsity=0.1),
}
EDIT = Edit(torch.tensor([*range(5, 60), 7, 7]), torch.tensor([False] * 55 + [True] * 2), step=9)


def begun(importance, seed: int = 0, **settings) -> Splats:
    splats = tiny.splats(**settings)
    importance.initialize(splats, seed)
    return splats


def fit(
    splats, importance, steps: int, start: int = 0, seed: int = 0, on_step=None
) -> list[dict[str, float]]:
    """A loop as in training, with signed steps for an optimizer and one edit."""
    seen = []
    for step in range(start, steps):
        view = SCENE.train[SCENE.sample(step, seed)]
        target, mask, camera = view.target()
        render = Reference()(splats, camera, sh_degree=1)
        terms = Loss()(render.image, target, mask, backend="reference")
        terms |= importance.loss_terms(splats, render, step, steps)
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            for name in PARAMS:
                leaf = getattr(splats, name)
                leaf -= 0.003 * leaf.grad.sign()
                leaf.grad = None
        importance.update(splats, step, steps, "reference", seed)
        if step == EDIT.step:
            splats.apply(EDIT)
        seen.append({name: term.item() for name, term in terms.items()})
        if on_step is not None:
            on_step(step)
    return seen


def picture(splats, view: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return Reference()(splats, tiny.cameras()[view], sh_degree=splats.sh_degree).image


def leaves(splats) -> list[torch.Tensor]:
    return [splats.importance, *splats.extra.values(), *splats.shared.values()]


def test_none_stores_nothing_and_costs_nothing():
    splats = begun(NoImportance())
    before = {name: tensor.clone() for name, tensor in splats.state_dict().items()}
    assert splats.importance is None and not NoImportance.is_learned
    assert NoImportance().loss_terms(splats, None, 9, 10) == {}
    NoImportance().update(splats, 9, 10, "reference")
    scales, opacities = splats.render_params()
    assert torch.equal(scales, splats.scales) and torch.equal(opacities, splats.opacities)
    assert set(before) == set(splats.state_dict())
    with pytest.raises(ValueError, match="importance: expected logit, mlp or mask, .* got none"):
        average_importance(splats)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_dims_what_is_drawn(kind):
    splats, plain = begun(KINDS[kind]), tiny.splats()
    with torch.no_grad():
        splats.importance.fill_(0.5)
    assert torch.equal(splats.render_params()[1], 0.5 * plain.opacities)
    assert torch.equal(splats.opacities, plain.opacities), "the raw opacity stays"
    assert picture(splats).sum() < 0.8 * picture(plain).sum()


def test_what_is_not_masked_is_drawn_as_it_is():
    splats = begun(Mask(init_logit=0.0))
    on = splats.importance.detach() > 0
    assert 10 < on.sum() < 50 and torch.equal(splats.importance.detach(), on.float())
    kept = Splats({name: leaf[on] for name, leaf in splats.params.items() if name in PARAMS})
    assert torch.allclose(picture(splats), picture(kept), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_regularisation_reach_importance_alone(kind):
    importance = KINDS[kind]
    splats = begun(importance)
    before = [leaf.detach().clone() for leaf in leaves(splats)]
    params = {name: getattr(splats, name).detach().clone() for name in PARAMS}
    for step in range(20, 30):
        torch.stack(list(importance.loss_terms(splats, None, step, 40).values())).sum().backward()
        assert all(getattr(splats, name).grad is None for name in PARAMS)
        importance.update(splats, step, 40, "reference")
    assert all(torch.equal(getattr(splats, name), params[name]) for name in PARAMS)
    assert all(not getattr(splats, name).grad_fn for name in PARAMS)
    changed = [not torch.equal(old, leaf) for old, leaf in zip(before, leaves(splats), strict=True)]
    assert any(changed[1:]) and (changed[0] or kind == "mask")


def test_the_gradient_of_the_logits_is_the_chain_rule():
    splats, importance = begun(Logit(init_logit=1.0, lr=0.1)), Logit(init_logit=1.0, lr=0.1)
    logits = splats.extra["importance_logits"].detach().clone().requires_grad_()
    weights = torch.linspace(-1, 1, 60)
    (splats.importance * weights).sum().backward()
    (logits.sigmoid() * weights).sum().backward()
    importance.update(splats, 0, 10, "reference")
    moment = splats.exp_avg["importance_logits"]
    assert torch.allclose(moment, 0.1 * logits.grad, rtol=1e-5)
    assert torch.allclose(splats.importance, splats.extra["importance_logits"].sigmoid())
    assert torch.allclose(splats.extra["importance_logits"] - 1, -0.1 * weights.sign(), atol=1e-4)


def test_the_network_learns_from_every_step_between_its_updates():
    weights = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))

    def after(importance, picked) -> torch.Tensor:
        splats = begun(importance)
        with torch.no_grad():  # so that the hidden layers have a gradient as well
            splats.shared["importance_weight2"].fill_(0.1)
        for step in range(4):
            if step in picked:
                (splats.importance * weights[step]).sum().backward()
            importance.update(splats, step, 9, "reference")
        return torch.cat([splats.exp_avg[name].flatten() for name in LAYERS])

    importance = MLP(every=4, sample_size=0, max_grad_norm=1e9)
    parts = [after(importance, [step]) for step in range(4)]
    assert all(part.abs().max() > 0 for part in parts)
    assert torch.allclose(after(importance, range(4)), sum(parts), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("isotropic", [False, True])
def test_features_are_standardised_and_need_no_statistic(isotropic):
    splats = tiny.splats(isotropic=isotropic)
    bare = row_features(splats, 5, 100)
    assert bare.shape == (FEATURES, 60) and bare.isfinite().all() and not bare.requires_grad
    random = torch.Generator().manual_seed(0)
    for name in ("error.sum", "weight.sum", "footprint.sum", "peak.max", "grad2d.sum", "views", "surveyed"):
        splats.row_stat(name).uniform_(0, 1e6, generator=random)
    splats.born[:30] = 4
    with torch.no_grad():
        splats.opacity_logits.normal_(generator=random)
        splats.log_scales.normal_(generator=random)
    known = row_features(splats, 50, 60)
    assert known.abs().max() <= 5 and (known.mean(1).abs() < 0.2).all()
    told = known.std(1, correction=0)
    assert ((told - 1).abs() < 0.2).sum() == (FEATURES if splats.shN.any() else FEATURES - 1), "but for shN"
    assert not torch.equal(known[9], bare[9])
    splats.row_stat("error.ema").uniform_(generator=random)
    assert not torch.equal(row_features(splats, 50, 60)[9], known[9])


@pytest.mark.parametrize("kind", KINDS)
def test_edits_move_rows_and_children_take_after_their_parent(kind):
    importance = KINDS[kind]
    splats = begun(importance)
    fit(splats, importance, 9)
    splats.importance.grad = torch.rand(60)
    before = {name: tensor.clone() for name, tensor in splats.state_dict().items()}
    splats.apply(EDIT)
    for name, tensor in splats.state_dict().items():
        if name.startswith(("importance", "extra.", "carried.")):
            assert torch.equal(tensor, before[name][EDIT.parents]), name
    assert splats.importance.is_leaf and splats.importance.requires_grad
    assert torch.equal(splats.importance.grad[:55], before["grad.importance"][5:])
    assert not splats.importance.grad[55:].any()
    assert (average_importance(splats)[55:] > 0).all() and len(average_importance(splats)) == 57
    fit(splats, importance, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(kind):
    importance, kept = KINDS[kind], {}
    whole, half, rest = begun(importance, 3), begun(importance, 3), tiny.splats(3)
    fit(whole, importance, 20, seed=3)

    def save(step):
        if step == 12:  # between two updates of the network
            kept.update({name: tensor.clone() for name, tensor in half.state_dict().items()})

    fit(half, importance, 20, seed=3, on_step=save)
    rest.load_state_dict(kept)
    fit(rest, importance, 20, start=13, seed=3)
    assert set(whole.state_dict()) == set(rest.state_dict())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, half.state_dict()[name]) and torch.equal(
            tensor, rest.state_dict()[name]
        ), name
    other = begun(importance, 4)
    fit(other, importance, 20, seed=4)
    assert not torch.equal(other.means, whole.means)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isotropic", [False, True])
def test_baking_keeps_the_picture(kind, isotropic, tmp_path):
    importance = KINDS[kind]
    splats = begun(importance, isotropic=isotropic)
    with torch.no_grad():
        splats.opacity_logits.normal_(0, 4, generator=torch.Generator().manual_seed(0))
        splats.importance.uniform_(generator=torch.Generator().manual_seed(1))
        splats.importance[:20] = torch.tensor([0.0, 1.0]).repeat(10)
        splats.smoothing[10:40] = 0.3
    before = picture(splats)
    baked = splats.baked()
    assert torch.allclose(picture(baked), before, atol=2e-6)
    assert baked.importance is None and not baked.extra and not baked.shared and not baked.carried
    assert not baked.smoothing.any() and torch.equal(baked.uid, splats.uid) and baked.isotropic == isotropic
    assert all(leaf.isfinite().all() for leaf in baked.params.values())
    same = (splats.importance == 1) & (splats.smoothing == 0)
    assert torch.equal(baked.opacity_logits[same], splats.opacity_logits[same])
    save_ply(tmp_path / "baked.ply", baked)
    assert torch.allclose(picture(Splats(load_ply(tmp_path / "baked.ply"))), before, atol=2e-6)

    bake(splats)
    assert torch.allclose(picture(splats), before, atol=2e-6)
    assert splats.importance is None and not splats.extra and not splats.shared
    assert torch.equal(average_importance(splats), torch.ones(60)) and splats.smoothing.any()
    assert set(splats.exp_avg) == set(PARAMS)


@pytest.mark.parametrize("kind", KINDS)
def test_from_bake_at_on_the_rows_are_plain(kind):
    importance = type(KINDS[kind])(**{**vars(KINDS[kind]), "bake_at": 12})
    splats, alive = begun(importance), []
    terms = fit(splats, importance, 16, on_step=lambda step: alive.append(splats.importance is not None))
    assert alive == [True] * 11 + [False] * 5
    assert [any(name.startswith("importance") for name in t) for t in terms] == [
        4 <= i < 12 for i in range(16)
    ]
    other = tiny.splats(2)
    other.load_state_dict(splats.state_dict())
    assert other.importance is None and torch.equal(average_importance(other), average_importance(splats))


def test_the_mask_that_is_kept_is_no_draw():
    importance = KINDS["mask"]
    splats = begun(importance)
    fit(splats, importance, 15)
    likely = (splats.extra["importance_logits"] > 0).float()
    assert torch.equal(splats.importance.detach(), likely)
    chance = splats.extra["importance_logits"].sigmoid()
    average = average_importance(splats)
    assert (average - chance).abs().max() < 0.5 and not torch.equal(average, chance)


def test_a_mask_that_is_off_hears_of_the_regularisation_alone():
    splats = begun(Mask(init_logit=0.0))
    render = Reference()(splats, tiny.cameras()[0], sh_degree=1)
    render.image.sum().backward()
    off = splats.importance.detach() == 0
    assert not splats.importance.grad[off].any() and splats.importance.grad[~off].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_regularisation_keeps_importance_from_ending_at_one(kind):
    def mean(**settings) -> float:
        fast = {
            "logit": {"lr": 0.3},
            "mlp": {"lr": 0.1, "every": 2},
            "mask": {"lr": 0.6, "init_logit": 3.0},
        }
        off = {"sparsity": 0.0, "binary": 0.0, "start": 2, "ramp": 3}
        importance = type(KINDS[kind])(**{**fast[kind], **off, **settings})
        splats = begun(importance)
        fit(splats, importance, 40)
        return float(average_importance(splats).mean())

    free = mean()
    assert free > 0.6
    assert mean(sparsity=1.0, squared_sparsity=False) < free - 0.3
    assert mean(sparsity=1.0, squared_sparsity=True) < free - 0.2
    assert abs(mean(budget=0.5, budget_weight=20.0) - 0.5) < 0.2


def test_binary_drives_to_both_ends():
    importance = Logit(init_logit=0.2, lr=0.2, sparsity=0.0, binary=1.0, start=0, ramp=0)
    splats = begun(importance)
    with torch.no_grad():
        splats.extra["importance_logits"][:30] = -0.2
        splats.importance[:30] = torch.tensor(-0.2).sigmoid()
    for step in range(40):
        importance.loss_terms(splats, None, step, 40)["importance_binary"].backward()
        importance.update(splats, step, 40, "reference")
    assert (splats.importance[:30] < 0.05).all() and (splats.importance[30:] > 0.95).all()


def test_terms_rise_from_start_over_ramp():
    importance = Logit(start=10, ramp=4, sparsity=2.0, binary=0.0)
    splats = begun(importance)
    values = [importance.loss_terms(splats, None, step, 99) for step in range(8, 16)]
    assert values[:2] == [{}, {}] and set(values[2]) == {"importance_sparsity"}
    mean = splats.importance.mean().item()
    rise = [value["importance_sparsity"].item() / (2 * mean) for value in values[2:]]
    assert rise == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert set(Logit(start=0, budget=0.5).loss_terms(splats, None, 5, 9)) == {
        "importance_sparsity", "importance_binary", "importance_budget",
    }  # fmt: skip


CHANGES = {
    "sparsity": 0.5,
    "squared_sparsity": None,
    "binary": 0.7,
    "budget": 0.4,
    "start": 9,
    "ramp": 1,
    "ema_decay": 0.2,
    "bake_at": 7,
    "init_logit": 1.5,
    "lr": 0.03,
    "temperature": 3.0,
    "lr_end": 0.02,
    "weight_decay": 5.0,
    "max_grad_norm": 1e-6,
    "every": 2,
    "sample_size": 5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_changes_the_outcome(kind):
    def outcome(**settings) -> dict[str, torch.Tensor]:
        chosen = {"start": 0, "ramp": 3, "sparsity": 0.2, "binary": 0.1} | settings
        importance = type(KINDS[kind])(**{**vars(KINDS[kind]), **chosen})
        splats = begun(importance)
        fit(splats, importance, 12)
        return {**splats.state_dict()}

    plain, budgeted = outcome(), outcome(budget=0.4)
    for name, value in vars(KINDS[kind]).items():
        if name == "budget_weight":
            other, reference = outcome(budget=0.4, budget_weight=3.0), budgeted
        else:
            changed = not value if name == "squared_sparsity" else CHANGES[name]
            other, reference = outcome(**{name: changed}), plain
        same = set(other) == set(reference)
        assert not same or any(not torch.equal(other[key], reference[key]) for key in other), name


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Logit(sparsity=-1), "importance.sparsity: expected at least 0, got -1"),
        (lambda: Logit(budget=1.5), r"importance.budget: expected a number in \[0, 1\]"),
        (lambda: Logit(init_logit=99), "importance.init_logit"),
        (lambda: Logit(ema_decay=float("nan")), "importance.ema_decay"),
        (lambda: MLP(every=0), "importance.every: expected at least 1, got 0"),
        (lambda: MLP(max_grad_norm=0), "importance.max_grad_norm"),
        (lambda: Mask(temperature=0), "importance.temperature"),
    ],
)
def test_refused_in_one_line(make, line):
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_are_no_trouble(kind):
    importance = KINDS[kind]
    splats = begun(importance)
    splats.apply(Edit(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)))
    for step in range(12, 20):
        terms = importance.loss_terms(splats, None, step, 20)
        torch.stack(list(terms.values())).sum().backward()
        importance.update(splats, step, 20, "reference")
    assert len(average_importance(splats)) == len(splats.baked()) == 0


def test_beginning_again_folds_in_what_was_learned():
    splats = begun(KINDS["logit"])
    fit(splats, KINDS["logit"], 8)
    drawn = splats.render_params()[1].detach()
    KINDS["mask"].initialize(splats)
    assert torch.allclose(splats.opacities, drawn, atol=1e-6) and "importance_soft" in splats.carried
