import pytest
import torch
from support import tiny

from splatexp.gaussians.splats import PARAMS, Edit
from splatexp.train.optimizer import Adam, WeightDecay

ONES = dict.fromkeys(PARAMS, 1.0)
RATES = {"means": 0.02, "quats": 0.01, "log_scales": 0.03, "opacity_logits": 0.04, "sh0": 0.05, "shN": 0.06}


def gradients(splats, seed):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(getattr(splats, name).shape, generator=random) for name in PARAMS}


def backward(splats, grads):
    """What a backward pass does: add to what is there."""
    for name, grad in grads.items():
        leaf = getattr(splats, name)
        leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad


def run(optimizer, splats, grads, rates=ONES, visible=None):
    visible = [torch.ones(1, len(splats), dtype=torch.bool)] * len(grads) if visible is None else visible
    for step, (grad, seen) in enumerate(zip(grads, visible, strict=True)):
        backward(splats, grad)
        optimizer.step(splats, step, lr_factors=rates, visible=seen, backend="reference")


def assert_same(splats, params, **tolerance):
    for name in PARAMS:
        torch.testing.assert_close(getattr(splats, name).detach(), params[name].detach(), **tolerance)


def test_is_adam_with_factors_by_parameter():
    splats, factors = tiny.splats(), {name: 0.5 + index for index, name in enumerate(PARAMS)}
    leaves = {name: getattr(splats, name).detach().clone().requires_grad_() for name in PARAMS}
    extent = {name: splats.extent if name == "means" else 1.0 for name in PARAMS}
    groups = [{"params": [leaves[name]], "lr": RATES[name] * factors[name] * extent[name]} for name in PARAMS]
    peer, grads = torch.optim.Adam(groups, eps=1e-15), [gradients(splats, seed) for seed in range(4)]
    run(Adam(**RATES), splats, grads, factors)
    for grad in grads:
        for name in PARAMS:
            leaves[name].grad = grad[name]
        peer.step()
    assert_same(splats, leaves, rtol=1e-5, atol=1e-6)


def test_several_steps_are_one_with_their_sum():
    grads = [gradients(tiny.splats(), seed) for seed in range(12)]
    slow, plain = tiny.splats(), tiny.splats()
    run(Adam(**RATES, update_every=[3]), slow, grads)
    sums = [
        {name: grads[i][name] + grads[i + 1][name] + grads[i + 2][name] for name in PARAMS}
        for i in range(0, 12, 3)
    ]
    run(Adam(**RATES), plain, sums)
    assert_same(slow, plain.params, rtol=0, atol=0)
    assert all(getattr(slow, name).grad is None for name in PARAMS)


def test_windows_change_the_pace_and_gradients_wait():
    adam = Adam(update_every=[1, 5, 20], update_until=[10, 31])
    updates = [
        step for step in range(81) if adam.update_count("means", step) > adam.update_count("means", step - 1)
    ]
    assert updates == [*range(10), 14, 19, 24, 29, 39, 59, 79]
    assert [adam.update_count("means", step) for step in (-1, 0, 9, 13, 14, 79)] == [0, 1, 10, 10, 11, 17]
    splats = tiny.splats()
    before = splats.means.detach().clone()
    run(Adam(update_every=[4]), splats, [gradients(splats, seed) for seed in range(3)])
    waiting = sum(gradients(splats, seed)["means"] for seed in range(3))
    assert torch.equal(splats.means.detach(), before) and torch.allclose(splats.means.grad, waiting)


def test_sh_learns_at_its_own_pace():
    adam = Adam(shN_update_every=16)
    assert [step for step in range(64) if adam.update_count("shN", step) > adam.update_count("shN", step - 1)] == [
        15, 31, 47, 63,
    ]  # fmt: skip
    both = Adam(shN_update_every=16, update_every=[1, 5, 32], update_until=[20, 60])
    when = [
        step for step in range(128) if both.update_count("shN", step) > both.update_count("shN", step - 1)
    ]
    assert when == [15, 34, 49, 63, 95, 127], (
        "the first update from every 16 steps on; each where they are rarer"
    )
    grads = [gradients(tiny.splats(), seed) for seed in range(8)]
    slow, plain = tiny.splats(), tiny.splats()
    run(Adam(**RATES, shN_update_every=4), slow, grads)
    run(Adam(**RATES), plain, grads)
    sums = tiny.splats()
    run(Adam(**RATES), sums, [{"shN": sum(grad["shN"] for grad in grads[i : i + 4])} for i in (0, 4)])
    assert_same(slow, plain.params | {"shN": sums.shN})


def test_updates_follow_from_the_step_alone():
    grads = [gradients(tiny.splats(), seed) for seed in range(11)]
    adam = Adam(**RATES, update_every=[1, 3], update_until=[4], shN_update_every=2)
    whole, half, rest = tiny.splats(), tiny.splats(), tiny.splats()
    run(adam, whole, grads)
    run(adam, half, grads[:7])
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    for step in range(7, 11):
        backward(rest, grads[step])
        adam.step(
            rest, step, lr_factors=ONES, visible=torch.ones(1, 60, dtype=torch.bool), backend="reference"
        )
    assert_same(rest, whole.params, rtol=0, atol=0)


def test_gradients_that_wait_move_with_their_rows():
    splats = tiny.splats(3)
    backward(splats, {"sh0": torch.arange(9.0).reshape(3, 1, 3)})
    parents, fresh = torch.tensor([2, 0, 2]), torch.tensor([False, False, True])
    splats.apply(Edit(parents, fresh))
    assert splats.sh0.grad[:, 0, 0].tolist() == [6, 0, 0]


def test_sparse_remembers_who_was_seen_since_the_last_update():
    grads = [gradients(tiny.splats(3), seed) for seed in range(4)]
    visible = [torch.tensor([row]) for row in ([1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1])]
    visible = [row.bool() for row in visible]
    splats = tiny.splats(3)
    before = {name: getattr(splats, name).detach().clone() for name in PARAMS}
    run(
        Adam(**RATES, sparse=True, update_every=[2], shN_update_every=4),
        splats,
        grads[:2],
        visible=visible[:2],
    )
    moved = {name: (getattr(splats, name) != before[name]).flatten(1).any(1) for name in ("means", "sh0")}
    assert all(rows.tolist() == [True, True, False] for rows in moved.values())
    assert torch.equal(splats.shN, before["shN"])
    splats = tiny.splats(3)
    run(Adam(**RATES, sparse=True, shN_update_every=4), splats, grads, visible=visible)
    assert (splats.exp_avg["shN"] != 0).flatten(1).any(1).all(), "each was seen by one of the four"
    assert set(splats.stats) == {"seen_shN"} and not splats.stats["seen_shN"].any()


def test_decay_is_that_of_adamw_and_of_activated_values():
    splats, grads = tiny.splats(), [gradients(tiny.splats(), seed) for seed in range(3)]
    adam = Adam(**RATES, weight_decay=WeightDecay(sh0=0.4, means=0.3))
    leaves = {name: getattr(splats, name).detach().clone().requires_grad_() for name in ("means", "sh0")}
    groups = [
        {"params": [leaves["means"]], "lr": 0.02 * splats.extent, "weight_decay": 0.3},
        {"params": [leaves["sh0"]], "lr": 0.05, "weight_decay": 0.4},
    ]
    peer = torch.optim.AdamW(groups, eps=1e-15)
    run(adam, splats, [{name: grad[name] for name in leaves} for grad in grads])
    for grad in grads:
        for name, leaf in leaves.items():
            leaf.grad = grad[name]
        peer.step()
    assert_same(splats, splats.params | leaves, rtol=1e-5, atol=1e-6)

    splats = tiny.splats()
    scales, opacities = splats.scales.detach(), splats.opacities.detach()
    still = {name: torch.zeros_like(getattr(splats, name)) for name in ("log_scales", "opacity_logits")}
    run(Adam(**RATES, weight_decay=WeightDecay(log_scales=0.5, opacity_logits=0.25)), splats, [still])
    torch.testing.assert_close(splats.scales.detach(), scales * (1 - 0.03 * 0.5))
    torch.testing.assert_close(splats.opacities.detach(), opacities * (1 - 0.04 * 0.25))


def test_decay_stands_extreme_logits_and_lets_rows_rest():
    logits = torch.tensor([-90.0, 0.0, 90.0, 5.0])
    rows = torch.tensor([True, True, True, False])
    WeightDecay().apply("opacity_logits", logits, 0.01, rows)
    assert logits[0].item() == pytest.approx(-90 - 0.01005, rel=1e-6) and logits[3] == 5
    assert logits[2].item() == pytest.approx(torch.tensor(0.99).logit().item(), rel=1e-4)
    assert logits[1].sigmoid().item() == pytest.approx(0.495)


def test_without_gradient_nothing_moves():
    splats = tiny.splats()
    before = splats.shN.detach().clone().fill_(0.5)
    with torch.no_grad():
        splats.shN.fill_(0.5)
    run(Adam(weight_decay=WeightDecay(shN=0.5)), splats, [{"sh0": torch.ones_like(splats.sh0)}])
    assert torch.equal(splats.shN, before)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"update_every": [1, 5]}, "optimizer.update_every: .* one more than optimizer.update_until"),
        ({"update_every": [0]}, "optimizer.update_every"),
        ({"update_every": [1, 2, 3], "update_until": [9, 5]}, "optimizer.update_until"),
        ({"shN_update_every": 0}, "optimizer.shN_update_every"),
        ({"beta1": 1.0}, "optimizer.beta1"),
    ],
)
def test_optimizer_refuses(settings, line):
    with pytest.raises(ValueError, match=line):
        Adam(**settings)


def test_decay_refuses():
    with pytest.raises(ValueError, match="weight_decay.shN: expected at least 0"):
        WeightDecay(shN=-1)
    with pytest.raises(ValueError, match="optimizer.weight_decay.sh0: expected below"):
        splats = tiny.splats()
        run(Adam(sh0=0.5, weight_decay=WeightDecay(sh0=3.0)), splats, [gradients(splats, 0)])
