"""Training on a device that is simulated: the CPU's bits, and no wait for it but where something is due.

`test_device.py` runs these in a process of their own: PyTorch has to be told of the device before it
differentiates anything, and never forgets it.
"""

import json
from copy import copy

import pytest
import torch
from support import (
    simulated_device,
    tiny,  # noqa: F401  one thread
)
from support.simulated_device import Held, Module, outside, simulation
from testing.test_conformance import EVERYTHING

from splatexp.config.build import build, compose
from splatexp.data.scene import Scene, View
from splatexp.data.view_cache import ViewCache
from splatexp.densify import RuleStrategy
from splatexp.evaluation.render import render_view
from splatexp.raster.backends import Reference
from splatexp.run import checkpoint, resume, state
from splatexp.system import devices
from splatexp.testing import toy_scene
from splatexp.train.loop import train
from splatexp.train.step_log import StepLog

SIM = simulated_device.device()  # before anything is differentiated
STEPS = 9
PENALTIES = ["erank", "opacity_logit", "opacity", "scale", "screen_size", "sh", "flatness", "transmittance"]
CASES = {
    "adc": [
        f"regularizer=[{','.join(PENALTIES)}]",
        "regularizer.opacity_logit.every=1",
        "regularizer.opacity_logit.stop=0",
    ]
    + [f"regularizer.{name}.start=0" for name in ("erank", "opacity_logit", "flatness")],
    "mcmc": [
        "importance=logit",
        "importance.budget=0.5",
        "optimizer.sparse=true",
        "optimizer.weight_decay.shN=0.1",
    ]
    + [
        "optimizer.weight_decay.log_scales=0.1",
        "optimizer.weight_decay.opacity_logits=0.1",
        "optimizer.update_every=[2]",
    ],
    "error_tag": [
        "densify.prune_unimportant.threshold=0.99",
        "importance.every=2",
        "importance.sample_size=20",
    ],
    "improved": [
        "dropout.p=0.2",
        "smoothing.variance=0.2",
        "smoothing.every=5",
        "schedule.sh_degree_interval=2",
    ],
    "taming": ["importance=mask", "schedule.downscale_factors=[2,1]", "schedule.downscale_until=[4]"],
    "se3": ["camera=se3", "camera.start=0", "camera.focal_lr=1e-3", "batch=2"],
    "orbit": ["camera=orbit", "camera.start=0"],
    "rot6d": ["camera=rot6d", "camera.start=0", "camera.gauge=prior"],
    "everything": [],
}
STILL = ("se3", "orbit", "rot6d")


def scene() -> Scene:
    """The exercise's, some views with a mask, all with an alpha, on random colours."""
    made = toy_scene.toy_scene(Reference())
    mask = torch.ones(toy_scene.SIZE, toy_scene.SIZE, dtype=torch.bool)
    mask[:, :5] = False
    alpha = torch.linspace(0, 255, toy_scene.SIZE).to(torch.uint8).expand(toy_scene.SIZE, -1).contiguous()
    halves = [
        [View(v.name, v.camera, v.image, mask if i % 2 else None, alpha) for i, v in enumerate(half)]
        for half in (made.train, made.test)
    ]
    return Scene("masked", *halves, random_background=True, extent=made.extent)


def fit(name, words, raster, splats, steps=STEPS, **more):
    """Train as a config says, its strategy compressed.  Returns: the result, the strategy, the filter."""
    chosen = "none" if name in (*STILL, "everything") else name
    run = build(compose(["preset=[]", f"densify={chosen}", *words]))
    control = RuleStrategy(**EVERYTHING, every=3, start=0, stop=8) if name == "everything" else run.densify
    control, learned = (
        toy_scene.compress_schedule(each, STEPS / 15000) for each in (control, run.importance)
    )
    penalties = {key: value for key, value in run.regularizer.items() if key != "transmittance"}
    recipe = copy(run)
    recipe.raster, recipe.densify, recipe.importance, recipe.steps = raster, control, learned, steps
    recipe.regularizer = penalties | run.regularizer
    result = train(splats, scene(), recipe, progress=False, log_every=1000, **more)
    return result, control, run.smoothing


@pytest.mark.parametrize("name", CASES)
def test_a_device_gives_the_same_and_is_not_waited_for(name):
    splats, waits = toy_scene.toy_splats(toy_scene.EXTENT), {}
    result, control, smoothing = fit(name, CASES[name], Reference(tile_size=32), splats)
    with simulation() as sim:
        there = toy_scene.toy_splats(toy_scene.EXTENT).to(SIM)

        def look(step, _):
            waits[step] = sim.places[:]
            sim.places.clear()

        other, _, _ = fit(name, CASES[name], Reference(tile_size=32, device="sim:0"), there, on_step=look)
        held = {key: plain(tensor) for key, tensor in there.state_dict().items()}
    assert other.loss == pytest.approx(result.loss, rel=1e-6), "the loss"
    assert bool(splats.generation.any()) == (name not in STILL), "rows come and go"
    assert there.means.device == SIM and there.exp_avg["means"].device == SIM and there.uid.device == SIM
    for key, tensor in splats.state_dict().items():
        if key.partition(".")[2].startswith("importance_"):  # a device reckons its gradient's length itself
            assert torch.allclose(held[key], tensor, rtol=1e-5, atol=1e-7), key
        else:
            assert torch.equal(held[key], tensor), key
    due = {step for step in range(STEPS) if control.changes_rows(step) or smoothing.due(step, STEPS)}
    due |= {step + 1 for step in due if smoothing.due(step, STEPS)}  # whether any is wide is asked then
    ordinary = set(range(1, STEPS - 1)) - due
    assert len(ordinary) >= 2 and not {step: waits[step] for step in ordinary if waits[step]}


def plain(tensor):
    """As the CPU sees it."""
    return tensor.held if isinstance(tensor, Held) else tensor


def test_the_simulation_refuses_and_notes_what_a_device_would():
    with simulation() as sim:
        ours, theirs = torch.arange(6.0).to(SIM, non_blocking=True), torch.ones(6)
        assert ours.device == SIM and torch.tensor([1.0], device="sim:0").device == SIM
        sim.places.clear()
        assert torch.equal(plain((ours * 2 + torch.tensor(1.0)).flip(0)), 2 * torch.arange(6.0).flip(0) + 1)
        torch.where(ours > 2, ours, 0.0)[1:].sum().add_(1).to("cpu", non_blocking=True)
        assert not sim.places
        asks = {
            "item": lambda: ours[0].item(),
            "bool": lambda: bool(ours[0] > 1),
            "list": lambda: ours.tolist(),
            "nonzero": lambda: ours.nonzero(),
            "mask": lambda: ours[ours > 2],
            "assign": lambda: ours.__setitem__(ours > 2, ours[:3].clone()),
            "fetch": lambda: ours.cpu(),
            "send": lambda: theirs.to(SIM),
            "make": lambda: torch.tensor([1.0, 2.0], device=SIM),
            "where": lambda: torch.where(ours > 2, ours, torch.tensor(0.0)),
            "unique": lambda: ours.unique(),
        }
        for name, ask in asks.items():
            sim.places.clear()
            ask()
            assert sim.places, name
        for mixed in (torch.add, torch.dot, lambda a, b: torch.cat([a, b]), lambda a, b: a[b.long()]):
            with pytest.raises(RuntimeError, match="one device"):
                mixed(ours, theirs)
        with pytest.raises(TypeError, match="numpy"):
            ours.numpy()


SMALL = ["preset=[]", "data.size=24", "data.train_views=5", "data.test_views=1", "data.points=40"]
SMALL += [
    "data.samples=1",
    "data.cache=false",
    "evaluate.turntable=false",
    "evaluate.every=4",
    "tracker=[csv]",
]
SMALL += ["densify=mcmc", "densify.start=0", "densify.every=2", "densify.max_gaussians=50", "threads=1"]
SMALL += ["steps=6", "log_every=2", "checkpoint.every=3", "raster=reference", "raster.tile_size=32"]


def test_a_run_its_checkpoints_and_its_numbers(tmp_path, monkeypatch):
    def last(folder):
        return checkpoint.load_checkpoint(tmp_path / folder / "checkpoints" / "step_00000006.safetensors")[0]

    monkeypatch.setattr(resume, "load_checkpoint", outside(checkpoint.load_checkpoint))
    wanted = build(compose(SMALL))(tmp_path / "cpu")
    with simulation():
        there = [*SMALL, "raster.device=sim:0"]
        result = build(compose(there))(tmp_path / "whole")
        half = tmp_path / "whole" / "checkpoints" / "step_00000003.safetensors"
        build(compose([*there, f"resume={half}", "evaluate.renders=false", "evaluate.turntable=false"]))(
            tmp_path / "rest"
        )
        run = build(compose(there))
        image = render_view(
            toy_scene.toy_splats(4.0).to(SIM), run.raster, run.data.load(), run.data.load().test[0].camera
        )
        assert image.device == SIM and image.shape == (1, 24, 24, 3)
    assert result["psnr"] == pytest.approx(wanted["psnr"], abs=1e-9)
    assert result["ssim"] == pytest.approx(wanted["ssim"], abs=1e-9)
    assert result["peak_device_bytes"] == Module().memory_allocated() and "peak_device_bytes" not in wanted
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["peak_device_bytes"] == 1000
    files = [*tmp_path.glob("cpu/point_cloud.*"), *tmp_path.glob("cpu/renders/**/*.png")]
    assert len(files) == 4
    for path in files:
        twin = tmp_path / "whole" / path.relative_to(tmp_path / "cpu")
        assert path.read_bytes() == twin.read_bytes(), twin
    ours, theirs, rest = map(last, ("cpu", "whole", "rest"))
    assert set(ours) == set(theirs) == set(rest)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and torch.equal(tensor, rest[name]), name


def test_pictures_that_do_not_fit_come_one_step_ahead(monkeypatch):
    views = scene().train
    with simulation() as sim:
        every = ViewCache(views, SIM)
        monkeypatch.setattr(Module, "free", 4 * 1000)
        stream = ViewCache(views, SIM)
        assert len(every) == len(stream) == 6 and every[2] is every[2] and stream[2] is not stream[2]
        sim.places.clear()
        stream.prefetch(3)
        ahead = stream._next
        assert ahead is not None and stream[1] is not ahead[1] and stream[3] is ahead[1], (
            "a survey in between"
        )
        assert stream._next is None and not sim.places
        for index, behind in ((0, torch.ones(3)), (1, torch.zeros(3))):
            for factor in (1, 2):
                image, mask, camera = views[index].target(factor, behind)
                for other in (every, stream):
                    target, used, taken = other[index].target(factor, behind)
                    assert target.device == taken.viewmats.device == SIM and taken.width == camera.width
                    assert torch.equal(plain(target), image) and torch.equal(plain(taken.Ks), camera.Ks)
                    assert used is None if mask is None else torch.equal(plain(used), mask)
        assert not sim.places
    here = ViewCache(views, torch.device("cpu"))
    here.prefetch(1)
    assert here[0] is views[0] and len(here) == 6


def test_a_loss_that_is_not_finite_is_found_a_step_late_and_never_saved():
    splats, fine, bad = toy_scene.toy_splats(4.0), {"l1": torch.tensor(0.5)}, {"l1": torch.tensor(torch.nan)}
    record = StepLog()
    with pytest.raises(FloatingPointError, match="step 3: the loss is not finite"):
        record.total_loss(3, bad, splats)
    with simulation() as sim:
        fine, bad = ({name: term.to(SIM) for name, term in terms.items()} for terms in (fine, bad))
        sim.places.clear()
        record.end_step(record.total_loss(0, fine, splats))
        record.end_step(record.total_loss(1, bad, splats))
        assert not sim.places
        with pytest.raises(FloatingPointError, match="step 1: the loss is not finite .l1=nan"):
            record.total_loss(2, fine, splats)
        record.total_loss(4, bad, splats)
        with pytest.raises(FloatingPointError, match="step 4"):
            record.check_pending_loss()
        record.check_pending_loss()
        assert (
            record.steps_since_row == 2 and StepLog.from_state_dict(record.state_dict()).steps_since_row == 2
        )


def test_a_step_that_went_wrong_there_leaves_no_checkpoint(tmp_path, monkeypatch):
    with simulation():
        run = build(compose([*SMALL, "raster.device=sim:0", "checkpoint.every=1"]))
        once = type(run.loss).__call__

        def sour(self, image, target, mask=None, *, backend):
            terms = once(self, image, target, mask, backend=backend)
            sour.calls += 1
            return terms | ({"l1": terms["l1"].detach() * torch.nan} if sour.calls == 3 else {})

        sour.calls = 0
        monkeypatch.setattr(type(run.loss), "__call__", sour)
        with pytest.raises(FloatingPointError, match="step 2: the loss is not finite"):
            run(tmp_path)
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == [2, 1]


def test_memory_of_a_device_is_told():
    from splatexp.run.memory_budget import oom_advice

    assert (
        devices.memory_use(torch.device("cpu")) is None and devices.peak_memory(torch.device("cpu")) is None
    )
    with simulation():
        assert devices.memory_use(SIM) == (1000, Module.free) and devices.peak_memory(SIM) == 1000
        assert "0 MB in use, 1.1 GB available" in oom_advice(1000, 64, 64, 0, device=SIM)
        rows = toy_scene.toy_splats(4.0).to(SIM)
        assert rows.to(SIM) is rows
    assert "0 MB in use" not in oom_advice(1000, 64, 64, 0, device=torch.device("cpu"))


def test_memory_that_runs_out_there_is_shrunk_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("splatexp.run.memory_budget.MIN_ROWS", 10)
    monkeypatch.setattr(state, "load_checkpoint", outside(checkpoint.load_checkpoint))
    with simulation():
        run = build(compose([*SMALL, "raster.device=sim:0", "checkpoint.every=1", "oom=shrink"]))
        scene, begun = run.prepare(tmp_path)
        once = type(run.optimizer).step

        def full(self, *args, **kwargs):
            full.calls += 1
            once(self, *args, **kwargs)
            if full.calls == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        full.calls = 0
        monkeypatch.setattr(type(run.optimizer), "step", full)
        with pytest.warns(
            UserWarning, match="out of memory at step 3 .*, back to step 3; continuing with densify"
        ):
            result = run.fit(scene, begun, tmp_path)
        assert begun.splats.means.device == SIM and len(begun.splats) <= begun.oom_reductions[0]["to"]
    assert (
        full.calls == 7
        and result["run"]["oom_reductions"] == begun.oom_reductions
        and begun.oom_reductions[0]["step"] == 3
    )
