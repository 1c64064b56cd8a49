"""Searches: what is drawn, which way is better, the front and its picture; W&B's command line."""
# ruff: noqa: F811 (the fixture `command` is imported)

import itertools
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.sweeps import column, rows, sweep

from splatexp.config.build import build, compose
from splatexp.config.schema import ConfigError
from splatexp.data.builtin.dataset import Builtin
from splatexp.run.run import OBJECTIVES
from splatexp.sweep import pareto
from splatexp.sweep.optuna_sweeper import distribution

pytest.importorskip("optuna", reason="needs the extra optuna")
SPACE = ["optimizer.means=tag(log,interval(1e-4,1e-2))", "densify=adc,none"]
SEARCH = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]


def drawn(word):
    return distribution(OverridesParser.create().parse_overrides([word])[0])


def test_what_is_drawn_from():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    assert drawn("a=interval(0,3)") == FloatDistribution(0, 3)
    assert drawn("a=int(interval(0,3))") == IntDistribution(0, 3)
    assert drawn("a=tag(log,interval(1e-4,1e-2))") == FloatDistribution(1e-4, 1e-2, log=True)
    assert drawn("a=int(tag(log,interval(10_000,200_000)))") == IntDistribution(10_000, 200_000, log=True)
    assert drawn("a=range(2,9,3)") == IntDistribution(2, 8, step=3)
    assert drawn("a=quick,[quick,mcmc],0.5") == CategoricalDistribution(["quick", "[quick,mcmc]", "0.5"])
    with pytest.raises(ConfigError, match="^a: "):
        drawn("a=tag(log,interval(0,1))")


@pytest.mark.slow
def test_a_search_tells_its_front_and_goes_on_the_same_way(command, tmp_path, capfd):
    words = [*SEARCH, *SPACE, "objective=[psnr,num_gaussians]", "threads=1"]
    assert command(*sweep(*words, folder="first")) == 0
    assert column("first", "status") == ["done"] * 3 and "3 trials, best: #" in capfd.readouterr().out
    points = {int(r["job"]): (float(r["psnr"]), float(r["num_gaussians"])) for r in rows("first")}
    best = pareto.pareto_front(points, ["psnr", "num_gaussians"])
    assert [int(row["job"]) for row in rows("first") if row["pareto_optimal"] == "True"] == best
    picture = ET.parse(tmp_path / "first" / "pareto.svg").getroot()
    titles = [each.text or "" for each in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(title.startswith("job ") for title in titles) == 3 and "densify=" in titles[0] + titles[1]
    assert command(*sweep(*words, folder="second")) == 0
    assert column("second", "status") == ["cached"] * 3
    assert column("second", "optimizer.means") == column("first", "optimizer.means")


def test_a_trial_that_fails_does_not_end_the_search(command, monkeypatch):
    def second(self):
        if next(calls) == 1:
            raise ValueError("no such data")
        return load(self)

    load, calls = Builtin.load, itertools.count()
    monkeypatch.setattr(Builtin, "load", second)
    assert command(*sweep(*SEARCH, *SPACE, folder="all")) == 1
    assert column("all", "status") == ["done", "failed", "done"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["seed=0"], "nothing to search; say key=interval(a,b)"),
        (["seed=0,1", "hydra.sweeper.sampler=tpf"], "hydra.sweeper.sampler: expected one of tpe"),
        (["seed=0,1", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials: expected at least 1"),
        (["seed=0,1", "hydra.sweeper.n_trails=3"], "n_trails"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(command, tmp_path, capfd, words, said):
    assert command("-m", "hydra/sweeper=optuna", *words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())


def test_objectives_are_one_or_several_names():
    for word, names in {"ssim": ("ssim",), "[psnr,train_seconds]": ("psnr", "train_seconds")}.items():
        assert build(compose([f"objective={word}"])).objectives == names
    for word in ("[psnr,pnsr]", "[]", "5", "null", "[psnr,[ssim]]"):
        with pytest.raises(ConfigError, match="^objective: expected"):
            build(compose([f"objective={word}"]))
    assert set(OBJECTIVES) >= pareto.HIGHER_IS_BETTER


def test_the_front_is_what_none_beats():
    names, draw = ["psnr", "num_gaussians", "train_seconds"], random.Random(0)
    points = {job: [draw.randint(0, 5), draw.randint(0, 5), draw.randint(0, 5)] for job in range(60)}
    points[60] = list(points[0])
    beaten = {
        job
        for job, (p, n, t) in points.items()
        for q, m, s in points.values()
        if q >= p and m <= n and s <= t and (q, m, s) != (p, n, t)
    }
    assert set(pareto.pareto_front(points, names)) == set(points) - beaten
    assert pareto.pareto_front({}, names) == [] and pareto.pareto_front({3: [1, 1]}, names[:2]) == [3]


def test_the_picture_holds_what_it_should(tmp_path):
    points = {0: (30.5, 900), 1: (31.0, 90_000), 2: (29.0, 90_000), 7: (30.5, 900)}
    pareto.draw_pareto_front(
        tmp_path / "p.svg", points, ["psnr", "num_gaussians"], {2: "a<b"}, "mine & yours"
    )
    text = (tmp_path / "p.svg").read_text()
    assert "a&lt;b" in text and "mine &amp; yours" in text and "90k" not in text.partition("<svg")[0]
    ET.fromstring(text)
    pareto.draw_pareto_front(
        tmp_path / "one.svg", {0: (1.0, 2.0, 3.0)}, ["ssim", "train_seconds", "psnr"], {}, "one"
    )
    ET.fromstring((tmp_path / "one.svg").read_text())


def test_the_yaml_for_wandb_gives_a_command_that_composes():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, make_launch_sweep_entrypoint

    said = yaml.safe_load((Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml").read_text())
    assert said["metric"] == {"name": "eval/psnr", "goal": "maximize"}
    first = {"optimizer.means": 3e-4, "densify": "mcmc"}
    given = {key: first.get(key, each.get("value")) for key, each in said["parameters"].items()}
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in given.items()}})
    called, words = make_launch_sweep_entrypoint(args, said["command"])
    assert called[-3:] == ["python", "-m", "splatexp"]
    run = build(compose(words))
    assert run.optimizer.means == 3e-4 and run.densify.max_gaussians == 60_000 and run.steps == 1000
    for name in said["parameters"]["densify"]["values"]:
        build(compose([f"densify={name}", *words]))
