import time

import pytest
import torch
from support import tiny, training

from splatexp.config.build import option
from splatexp.densify import NoDensification, OpacityReset, Rule
from splatexp.gaussians.splats import PARAMS
from splatexp.losses.regularizers import Opacity
from splatexp.raster.backends import Reference
from splatexp.schedules.schedule import Schedule
from splatexp.train.initialization import SceneModel
from splatexp.train.optimizer import Adam

BUSY = option(
    "densify", "adc",
    every=5, start=4, stop=26, max_gaussians=66, min_births=3,
    opacity_reset=OpacityReset(every=10, stop=26), large=Rule("prune", "size", "above", 0.5, start=10),
)  # fmt: skip


def fit(splats, scene, steps, **more):
    parts = {"raster": Reference(), "densify": NoDensification(), "schedule": Schedule(sh_degree_interval=8)}
    return training.fit(splats, scene, steps=steps, **(parts | more))


def test_training_lowers_the_loss_and_counts_its_seconds():
    class Numbers:
        rows = []

        def log(self, step, scalars):
            self.rows.append((step, scalars))

    scene, tracker = tiny.scene(), Numbers()
    splats = SceneModel(sh_degree=1, init_opacity=0.5)(scene)
    result = fit(
        splats, scene, 30, tracker=tracker, log_every=10, regularizer={"opacity": Opacity()},
        on_step=lambda step, splats: time.sleep(0.02),
    )  # fmt: skip
    assert [step for step, _ in tracker.rows] == [9, 19, 29]
    first, last = tracker.rows[0][1], tracker.rows[-1][1]
    assert last["train/loss"] < first["train/loss"] and last["train/psnr"] > first["train/psnr"]
    assert last["train/loss"] == pytest.approx(
        sum(last[f"train/loss_{name}"] for name in ("l1", "ssim", "opacity")), rel=1e-5
    )
    assert {"seconds", "num_gaussians", "sh_degree", "lr_means"} <= set(last)
    assert result.loss == last["train/loss"] and result.steps == 30
    began = time.perf_counter()
    again = fit(splats, scene, 10, on_step=lambda step, splats: time.sleep(0.05))
    assert again.seconds < time.perf_counter() - began - 0.5, "on_step is off the clock"


def test_resumed_is_uninterrupted():
    scene = tiny.scene(random_background=True)
    whole, half, rest = (SceneModel(sh_degree=1)(scene) for _ in range(3))
    fit(whole, scene, 30, densify=BUSY, seed=4)
    kept = {}

    def save(step, splats):
        if step == 16:
            kept.update({name: tensor.clone() for name, tensor in splats.state_dict().items()})

    fit(half, scene, 30, densify=BUSY, seed=4, on_step=save)
    rest.load_state_dict(kept)
    fit(rest, scene, 30, densify=BUSY, seed=4, start=17)
    assert whole.generation.any() and len(whole) <= 66
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, half.state_dict()[name]) and torch.equal(
            tensor, rest.state_dict()[name]
        ), name


def test_cap_holds_after_every_step():
    scene, counts = tiny.scene(), []
    fit(
        SceneModel(sh_degree=0)(scene),
        scene,
        30,
        densify=BUSY,
        on_step=lambda step, splats: counts.append(len(splats)),
    )
    assert max(counts) == 66 and min(counts) >= 50


def test_loss_that_is_not_finite_stops_before_it_harms():
    scene = tiny.scene()
    splats = SceneModel(sh_degree=0)(scene)
    with torch.no_grad():
        splats.sh0[:] = float("inf")
    means = splats.means.detach().clone()
    with pytest.raises(FloatingPointError, match=r"step 0: .*l1="):
        fit(splats, scene, 5)
    assert torch.equal(splats.means, means)


def test_coarse_resolution_and_masks_train():
    scene = tiny.scene()
    for view in scene.train:
        view.mask = torch.ones(16, 20, dtype=torch.bool)
        view.mask[:, :10] = False
    splats = SceneModel(sh_degree=0)(scene)
    assert fit(splats, scene, 6, schedule=Schedule(downscale_factors=[2, 1], downscale_until=[3])).loss > 0


def test_sparse_rows_rest_when_unseen():
    scene = tiny.scene()
    splats = SceneModel(sh_degree=0)(scene)
    with torch.no_grad():
        splats.means[0] = torch.tensor([0.0, 0.0, 50.0])
    before = {name: splats.params[name].detach().clone() for name in PARAMS}
    splats.exp_avg["means"].fill_(1.0)
    fit(splats, scene, 3, optimizer=Adam(sparse=True))
    assert all(torch.equal(splats.params[name][0], before[name][0]) for name in PARAMS)
    assert (splats.exp_avg["means"][0] == 1).all() and not torch.equal(splats.means[1], before["means"][1])


def test_learning_rates_go_by_their_parameter():
    scene = tiny.scene()
    splats = SceneModel(sh_degree=1)(scene)
    before = {name: splats.params[name].detach().clone() for name in PARAMS}
    rates = {"means": 0.02, "quats": 0, "log_scales": 0.03, "opacity_logits": 0.04, "sh0": 0.05, "shN": 0.06}
    fit(splats, scene, 1, optimizer=Adam(**rates), schedule=Schedule(sh_degree_interval=0))
    for name in PARAMS:  # Adam's first step is one learning rate wherever there is a gradient
        moved = (splats.params[name].detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(rates[name] * (scene.extent if name == "means" else 1), rel=1e-3), name
