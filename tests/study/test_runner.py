"""Studies from their files to the page: what is planned, what is run, what is not run again."""

import json
from pathlib import Path

import pytest
from support.command import python

from splatexp.config.build import build, build_from_file, compose, conf_dir
from splatexp.study.plan import Budget, Study, gaussians_for_bytes
from splatexp.study.runner import StudyRequest, check_variants, run_study

READY = sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))
TINY = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
TINY += [
    "data.cache=false",
    "evaluate.turntable=false",
    "tracker=[csv]",
    "densify.every=10",
    "densify.start=5",
]


DEGREES = {"plain": ["densify=adc"], "flat": ["densify=adc", "model.sh_degree=1"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder."""
    monkeypatch.chdir(tmp_path)


def order(folder="out", **more):
    settings = {"title": "Tiny", "baseline": "plain", "steps": 20, "seeds": 2, "common_overrides": TINY}
    settings["variants"] = {"plain": [], "fast means": ["optimizer.means=0.002"]}
    return StudyRequest(**(settings | more), folder=folder)


LONG = {"density", "head", "image", "image_coded", "regularizers", "schedules"}  # many variants to compose


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in READY]
)
def test_every_ready_study_is_well_formed(name):
    Path("lego").mkdir()
    Path("lego", "transforms.json").write_text("{}")
    words = ["seeds=2"] + (["scenes=[lego]"] if name == "head" else [])  # of photographs alone
    made = build_from_file(StudyRequest, conf_dir() / "study" / f"{name}.yaml", words)
    check_variants(made)
    tasks = list(made.tasks())
    assert len(tasks) == 2 * len(made.variants) * len(made.gaussian_budgets or [0]) and made.title
    assert len({task.folder for task in tasks}) == len(tasks)
    assert tasks[0].variant.startswith(made.baseline)


def test_a_study_runs_what_is_missing_and_reports(capsys):
    pages, failed = run_study(order())
    assert pages == [Path("out/report.html")] and not failed
    assert {path.name for path in Path("out").iterdir()} >= {"report.md", "report.tex", "results.csv", "runs"}
    assert "fast means" in Path("out/report.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("metrics.json")}
    assert len(times) == 4
    run_study(order(seeds=3))
    again = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("metrics.json")}
    assert len(again) == 6 and times.items() <= again.items(), "what is done is not run again"
    run_study(order("other", seeds=1))
    assert not list(Path("other").rglob("metrics.json")), "another study shares it"
    assert Path("other/report.html").exists()


@pytest.mark.slow
def test_with_other_settings_the_old_runs_are_kept(capsys):
    run_study(order(seeds=1))
    before = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("metrics.json")}
    assert run_study(order(seeds=1, steps=25))[1] == 0
    after = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("metrics.json")}
    assert (
        len(after) == 4
        and before.items() <= after.items()
        and "25 steps" in Path("out/report.md").read_text()
    )


def test_one_run_that_fails_does_not_end_the_study(capsys):
    variants = {"plain": [], "broken": ["data.size=3"]}
    pages, failed = run_study(order(variants=variants, seeds=1))
    assert failed == 1 and pages and "broken  builtin  seed 0  failed: " in capsys.readouterr().err


@pytest.mark.slow  # two processes that import all, and eight runs
def test_runs_in_several_processes_are_those_of_one(capsys):
    run_study(order(jobs=2))
    run_study(order("single", force=True))
    for path in Path("out/runs").rglob("metrics.json"):
        other = Path("single", *path.parts[1:])
        assert json.loads(path.read_text())["per_view"] == json.loads(other.read_text())["per_view"]


@pytest.mark.slow
def test_budgets_are_kept(capsys):
    growing = {"plain": ["densify=adc", "densify.stop=0"], "other": ["densify=mcmc", "densify.stop=0"]}
    run_study(order(variants=growing, seeds=1, gaussian_budgets=[160, 200]))
    counts = [
        json.loads(path.read_text())["num_gaussians"] for path in Path("out/runs").rglob("metrics.json")
    ]
    assert sorted(counts) == [160, 160, 200, 200]
    assert Path("out/report.html").exists() and Path("out/160/report.html").exists()
    size = 2048 + 4 * (14 + 3 * 16) * 170
    assert gaussians_for_bytes(size, 3) == 170 and gaussians_for_bytes(size, 0) > 170
    degrees = {name: [*words, "densify.stop=0"] for name, words in DEGREES.items()}
    run_study(order("bytes", variants=degrees, seeds=1, budget=Budget(bytes=size)))
    sizes = [path.stat().st_size for path in Path("bytes/runs").rglob("point_cloud.ply")]
    assert len(sizes) == 2 and all(abs(each - size) < 2048 for each in sizes)


@pytest.mark.slow
def test_seconds_are_reached_by_steps(capsys):
    run_study(order(variants={"plain": []}, seeds=1, budget=Budget(seconds=0.4)))
    runs = [json.loads(path.read_text()) for path in Path("out/runs").rglob("metrics.json")]
    assert len(runs) > 1 and min(abs(run["train_seconds"] - 0.4) for run in runs) < 0.25


@pytest.mark.parametrize(
    "words, text",
    [
        (["scenes=[nowhere]"], "scenes: expected builtin, a folder"),
        (["seeds=0"], "seeds: expected"),
        (["baseline=nobody"], "baseline: expected one of the variants (adc, "),
        (["budget.gaussians=5", "budget.bytes=9000"], "budget: expected one of"),
        (["study=nothing"], "study: expected one of density, error_driven"),
        (["only=[nobody]"], "only: expected variants (adc, "),
        (["colour=3"], "colour: no such key"),
        (["steps=many"], "steps: expected a whole number"),
        (["common_overrides=[densify.colour=3]"], "adc: densify.colour: no such key"),
    ],
)
def test_bad_input_is_one_line(words, text, capsys, monkeypatch):
    from splatexp.study.__main__ import main

    monkeypatch.setattr("sys.argv", ["study", "study=error_driven", *words])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and said.count("\n") == 1


@pytest.mark.slow  # two commands, each in a process that imports all
def test_the_command(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"title: T\nbaseline: a\nsteps: 5\ncommon_overrides: {TINY}\nvariants: {{a: []}}\n"
    )
    done = python("-m", "splatexp.study", "study=mine.yaml", "seeds=1", cwd=tmp_path)
    assert (
        done.stdout == "multirun/studies/mine/report.html\n"
        and "1/1  a  builtin  seed 0  psnr" in done.stderr
    )
    assert (tmp_path / "multirun/studies/mine/report.html").exists()
    run = tmp_path / "multirun/studies/mine/runs/a/builtin/0"
    assert build(compose([])) and (run / ".hydra" / "config.yaml").exists()
    again = python("-m", "splatexp.evaluate", f"run={run}", cwd=tmp_path)
    assert "psnr" in again.stdout
    assert isinstance(Study(variants={"a": []}, baseline="a"), Study)
