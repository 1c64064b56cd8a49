"""raster=auto: what it takes, that it says so, and how one that cannot run here is refused."""

import json
import time

import pytest
import torch
from support import tiny
from support.command import python

from splatexp.commands.open_run import open_run
from splatexp.config.build import build, compose, option, save_config
from splatexp.densify import Rule, RuleStrategy
from splatexp.raster.backends import AUTO_ORDER, CPU, Auto, Reference, Triton
from splatexp.raster.gsplat import Gsplat
from splatexp.sweep.job_identity import job_id
from splatexp_kernels import dispatch

CAN = {Triton: "", Gsplat: "", CPU: ""}


@pytest.fixture
def machine(monkeypatch):
    """Say why each of them cannot run, as on another machine."""

    def as_on(reasons):
        for kind, reason in (CAN | reasons).items():
            monkeypatch.setattr(
                kind, "unavailable_reason", classmethod(lambda cls, can_build=True, reason=reason: reason)
            )

    return as_on


@pytest.mark.parametrize(
    ("reasons", "asked", "kind", "why"),
    [
        ({}, {}, Triton, "raster=auto: triton"),
        ({Triton: "no CUDA; buy one", Gsplat: "no CUDA; buy one"}, {}, CPU,
         "raster=auto: cpu (triton: no CUDA; gsplat: the same)"),
        ({Triton: "no Triton; get it"}, {}, Gsplat, "raster=auto: gsplat (triton: no Triton)"),
        ({Triton: "no Triton"}, {"deterministic": True}, CPU,
         "raster=auto: cpu (triton: no Triton; gsplat: deterministic=true, and its last bits vary between"
         " runs)"),
        ({Triton: "no Triton"}, {"needs": {"weighted", "peak"}}, CPU,
         "raster=auto: cpu (triton: no Triton; gsplat: it cannot compute peak, which densify reads)"),
        ({kind: "none" for kind in AUTO_ORDER}, {}, CPU, "raster=auto: cpu (triton: none; gsplat: the same)"),
    ],
)  # fmt: skip
def test_it_takes_the_best_and_says_why(machine, reasons, asked, kind, why):
    machine(reasons)
    taken = Auto(near=0.3, antialiased=True).select(**asked)
    assert (
        taken == kind(near=0.3, antialiased=True) and taken.selection_note == why and not kind.selection_note
    )


def test_a_knob_that_one_lacks_passes_it_over(machine):
    machine({Triton: "no Triton"})
    taken = Auto(per_tile_max=9).select()
    assert (
        taken == CPU(per_tile_max=9)
        and "gsplat: raster.per_tile_max: expected 0 with" in taken.selection_note
    )
    assert "\n" not in taken.selection_note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_is_quick_and_loads_nothing_for_a_gpu(tmp_path):
    assert isinstance(Auto().select(), CPU)
    began = time.perf_counter()
    taken = Auto().select()
    assert time.perf_counter() - began < 0.05
    reason = dispatch.gpu_missing().partition(";")[0]
    assert taken.selection_note == f"raster=auto: cpu (triton: {reason}; gsplat: the same)"
    code = "import sys; from splatexp.config.build import build, compose; run = build(compose([])); "
    code += "print(run.raster.name, [name for name in ('gsplat', 'triton') if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "cpu []"


def test_a_run_is_recorded_as_what_draws_it(machine):
    machine({Triton: "no CUDA", Gsplat: "no CUDA"})
    auto, named = build(compose([])), build(compose(["raster=cpu"]))
    assert auto == named and auto.raster.selection_note and not named.raster.selection_note
    assert job_id(auto) == job_id(named)
    machine({})
    other = build(compose(["raster.near=0.5"]))
    assert other.raster == Triton(near=0.5) and job_id(other) != job_id(
        build(compose(["raster.near=0.5", "raster=cpu"]))
    )


def test_what_cannot_run_here_is_refused_before_anything_is_loaded(machine, tmp_path):
    machine({Triton: "no CUDA device; look for one", Gsplat: "not compiled; compile it"})
    for name, reason in (("triton", "no CUDA device; look for one"), ("gsplat", "not compiled; compile it")):
        run = build(compose([f"raster={name}", "data=colmap", f"data.path={tmp_path}"]))  # no data are there
        with pytest.raises(
            ValueError, match=f"raster: {name} cannot run here: {reason}; available here: raster=cpu$"
        ):
            if name == "triton":  # past the interpreter, which the tests have
                raise run.raster.unavailable_error(run.raster.unavailable_reason())
            run.prepare(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_ends_with_one_line(command, tmp_path, capsys):
    assert command("raster=gsplat", "tracker=[]") == 2
    said = capsys.readouterr()
    line = f"error: raster: gsplat cannot run here: {dispatch.gpu_missing()}; available here: raster=cpu\n"
    assert said.err == line and not said.out and not list(tmp_path.iterdir())


def test_the_result_names_it(tmp_path, capsys):
    """On any machine: what people are told, run.json and metrics.json are of one rasterizer."""
    pytest.importorskip("splatexp_kernels._cpu", exc_type=ImportError, reason="the C++ kernels are not built")
    words = ["steps=2", "data.size=24", "data.train_views=4", "data.test_views=1", "data.points=50"]
    words += ["data.samples=1", "data.cache=false", "evaluate.turntable=false", "tracker=[]"]
    cfg = compose(words)
    run = build(cfg)
    scene, state = run.prepare(tmp_path)
    line, name = state.messages[0], run.raster.name
    assert line == run.raster.selection_note and line.startswith(f"raster=auto: {name}")
    assert run.fit(scene, state, tmp_path)["raster"] == name
    assert json.loads((tmp_path / "metrics.json").read_text())["raster"] == name
    journal = json.loads((tmp_path / "run.json").read_text())
    assert journal["config"]["raster"]["_target_"] == f"splatexp.raster.backends.{type(run.raster).__name__}"
    assert journal["sessions"][0]["messages"][0] == line
    save_config(cfg, tmp_path, words)
    capsys.readouterr()
    assert open_run(tmp_path)[0].raster == run.raster and capsys.readouterr().err == f"{line}\n"


def test_names_are_checked_by_what_draws():
    peak = RuleStrategy(grow=Rule(score="peak_max"))
    run = build(compose(["raster=cpu"]))
    with pytest.raises(ValueError, match="raster=gsplat can gather, got some that read weight_max"):
        type(run)(**(vars(run) | {"densify": peak, "raster": Gsplat()}))
    with pytest.raises(ValueError, match="deterministic: expected false with raster=gsplat"):
        type(run)(
            **(vars(run) | {"deterministic": True, "raster": Gsplat(), "densify": option("densify", "none")})
        )


def test_devices():
    assert CPU().device == Reference().device == Auto().device == torch.device("cpu")
    assert Reference(device="meta").device == torch.device("meta")
    with pytest.raises(ValueError, match="raster.device: expected cpu or cuda, got 'gpu0'"):
        Reference(device="gpu0")
    run = build(compose(["raster=reference", "raster.device=cpu"]))
    assert run.raster == Reference() and tiny.splats().means.device == run.raster.device
