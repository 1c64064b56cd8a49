"""What a study reads of its runs, how settings differ, and what is unfair in comparing them."""

from dataclasses import replace

import pytest
from support.study_cases import STEPS, VIEWS, finished, settings, study

from splatexp.settings.serialize import flat
from splatexp.study.fairness import doubts, named
from splatexp.study.report import briefly
from splatexp.study.results import ABSENT, changes, differences, read, shown


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), renders=False)


# what is read ----------------------------------------------------------------------------------------------


def test_a_run_is_read_back(tmp_path):
    run = finished(tmp_path, "adc", "fox", 2, count=500)
    assert (run.name, run.key, run.size) == ("adc / fox / seed 2", ("fox", 2), 248 * 500)
    assert run.config["densify.grow.score"] == "grad2d" and run.config["densify"] == "Ruled"
    assert [view["view"] for view in run.views] == list(VIEWS)
    assert len(run.rows) == STEPS // 10 and run.rows[-1]["num_gaussians"] == "500"


def test_what_hydra_wrote_says_the_same_as_the_journal(tmp_path):
    import yaml

    run = finished(tmp_path, "adc")
    (tmp_path / "run.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings()))
    assert not differences(run.config, read(tmp_path, "adc", "fox", 0).config)


def test_a_run_without_rows_can_be_read(tmp_path):
    finished(tmp_path, "adc")
    (tmp_path / "metrics.csv").unlink()
    assert read(tmp_path, "adc", "fox", 0).rows == []


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("metrics.json", None, "expected a finished run"),
        ("metrics.json", "{", "not a readable result file"),
        ("metrics.json", "[]", "expected an object, got list"),
        ("metrics.json", "{}", "expected views in per_view, got None"),
        ("metrics.json", '{"per_view": [1]}', "expected views in per_view"),
        ("run.json", None, "no run.json and no"),
        ("run.json", "{", "not a readable result file"),
        ("run.json", "{}", "expected the config of a run, got NoneType"),
    ],
)
def test_what_is_no_finished_run_is_one_line(tmp_path, name, text, words):
    finished(tmp_path, "adc", renders=False)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises((OSError, ValueError), match=words) as error:
        read(tmp_path, "adc", "fox", 0)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_broken_hydra_config_is_one_line(tmp_path):
    finished(tmp_path, "adc", renders=False)
    (tmp_path / "run.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ValueError, match="not readable") as error:
        read(tmp_path, "adc", "fox", 0)
    assert "\n" not in str(error.value)


# settings --------------------------------------------------------------------------------------------------


def test_settings_that_cannot_change_a_number_are_no_difference():
    one = flat(settings(scene="fox", seed=0))
    silent = {"threads": 8, "log_every": 5, "tracker": {}, "resume": "auto", "evaluate": {"renders": False}}
    other = flat(settings(scene="elsewhere", seed=3, **silent))
    assert differences(one, other) == {}


def test_a_difference_has_both_sides():
    one, other = flat(settings(steps=10)), flat(settings(score="size", steps=20, new=1))
    told = {"steps": (10, 20), "densify.grow.score": ("grad2d", "size"), "new": (ABSENT, 1)}
    assert differences(one, other) == told
    assert differences(other, one) == {key: pair[::-1] for key, pair in told.items()}


@pytest.mark.parametrize(
    "one, other, same",
    [(1, 1.0, True), ([1], (1,), True), (True, 1, False), ([1, 2], [1], False), ("inf", float("inf"), True)],
)
def test_what_counts_as_the_same_value(one, other, same):
    assert (differences({"key": one}, {"key": other}) == {}) == same


def test_a_part_that_one_side_lacks_is_one_line():
    rule = {"_target_": "splatexp.densify.rules.Rule", "operate": "prune", "share": 0.0, "gate": []}
    curve = {"_target_": "splatexp.schedules.curve.Curve", "kind": "constant"}
    other = settings()
    other["densify"] = other["densify"] | {"tag": rule | {"anneal": curve}}
    lines = changes(flat(settings()), flat(other))
    assert lines == {"densify.tag": (ABSENT, "Rule(operate=prune, anneal=Curve, anneal.kind=constant)")}


def test_a_class_that_is_exchanged_tells_its_own_settings():
    one = {"importance": {"_target_": "splatexp.importance.learned.NONE"}}
    other = {"importance": {"_target_": "splatexp.importance.logit.Logit", "start": 300}}
    lines = changes(flat(one), flat(other))
    assert lines == {"importance": ("NONE", "Logit(start=300)")}


def test_many_changes_are_told_in_brief():
    few = [("densify.stop", "1", "2"), ("steps", "3", "4")]
    assert briefly(few) == ["densify.stop 2", "steps 4"]
    many = [(f"densify.{name}.x", "1", "2") for name in "abcde"] + [("steps", "3", "4")]
    assert briefly(many) == ["densify: a, b, c and 2 more", "steps"]


def test_values_as_the_command_line_has_them():
    values = (True, None, 1e-15, 0.1 + 0.2, [1, "a"], "", "word")
    assert [shown(value) for value in values] == ["true", "null", "1e-15", "0.3", "[1,a]", "''", "word"]


# what is unfair --------------------------------------------------------------------------------------------


def altered(result, /, **metrics):
    return replace(result, metrics=result.metrics | metrics)


def pair(tmp_path):
    base = finished(tmp_path / "base", "adc", renders=False)
    other = finished(tmp_path / "other", "error", renders=False, config=settings("error_max"))
    return base, other


def test_a_fair_comparison_has_no_doubts(results):
    assert doubts(results, "adc") == []


def test_a_count_within_one_percent_is_fair(tmp_path):
    base, other = pair(tmp_path)
    assert doubts([base, altered(other, num_gaussians=60500)], "adc") == []
    (doubt,) = doubts([base, altered(other, num_gaussians=61000)], "adc")
    assert doubt.about == "number of Gaussians" and "error +1.7 %" in doubt.text and doubt.grave


@pytest.mark.parametrize(
    "about, grave, change, words",
    [
        ("protocol", True, {"protocol": "splatexp-1.every8.x2.0"}, "x2.0 in error"),
        ("data", True, {"scene": {"name": "fox", "data_sha256": "ab" * 32}}, "abababababab in error"),
        ("code", True, {"code_sha256": "ef" * 32}, "efefefefefef in error"),
        ("code", True, {"trained_with": {"code_sha256": "ef" * 32}}, "efefefefefef in error"),
        ("packages", True, {"packages": {"python": "3.11.7", "torch": "2.9.0"}}, "torch 2.9.0 in error"),
        ("hardware", False, {"hardware": {"cpu": "Xeon", "threads": 1}}, "cpu Xeon"),
        ("shrunk runs", True, {"run": {"shrunk": [{"step": 3}], "resumed": []}}, "error: ran out of memory"),
        ("resumed runs", False, {"run": {"shrunk": [], "resumed": [30]}}, "error: interrupted"),
        ("uncommitted code", False, {"git": "abc123-dirty"}, "error: ran on a checkout"),
    ],
)  # fmt: skip
def test_every_unfairness_is_found(tmp_path, about, grave, change, words):
    base, other = pair(tmp_path)
    found = {doubt.about: doubt for doubt in doubts([base, altered(other, **change)], "adc")}
    assert words in found[about].text and found[about].grave == grave


def test_other_steps_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    (doubt,) = doubts([base, replace(other, config=other.config | {"steps": 7})], "adc")
    assert doubt.about == "steps" and "fox: 100 in adc; 7 in error" in doubt.text


def test_other_pictures_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    views = [view | {"truth_sha256": "other"} for view in other.views[:1]] + other.views[1:]
    (doubt,) = doubts([base, altered(other, per_view=views)], "adc")
    assert doubt.about == "ground truth" and "1 views" in doubt.text and VIEWS[0] in doubt.text


def test_other_views_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    (doubt,) = doubts([base, altered(other, per_view=other.views[1:])], "adc")
    assert doubt.about == "held-out views"


def test_a_missing_value_is_told(tmp_path):
    base, other = pair(tmp_path)
    views = [view | {"ssim": None} for view in other.views]
    (doubt,) = doubts([base, altered(other, per_view=views)], "adc")
    assert doubt.about == "missing values" and "no ssim" in doubt.text
    assert doubts([base, altered(other, per_view=views)], "adc", ("psnr",)) == []


def test_missing_runs_are_named(results):
    gone = [run for run in results if run.name != "error / fox / seed 1"]
    gone = [run for run in gone if run.key != ("bonsai", 2)]
    (doubt,) = doubts(gone, "adc")
    assert doubt.about == "missing runs"
    assert "error / fox / seed 1" in doubt.text and "every variant / bonsai / seed 2" in doubt.text


def test_settings_that_hang_on_the_scene_are_told(results):
    odd = [
        replace(run, config=run.config | {"densify.max_gaussians": 9})
        if (run.variant, run.scene) == ("error", "fox")
        else run
        for run in results
    ]
    (doubt,) = doubts(odd, "adc")
    assert doubt.about == "per-scene overrides" and doubt.grave and "densify.max_gaussians" in doubt.text
    alike = [replace(run, config=run.config | {"cap": len(run.scene)}) for run in results]
    (doubt,) = doubts(alike, "adc")
    assert (
        doubt.about == "per-scene overrides" and not doubt.grave and "cap 3 in fox, 6 in bonsai" in doubt.text
    )


def test_settings_that_hang_on_the_seed_are_told(results):
    odd = [replace(run, config=run.config | {"cap": run.seed}) for run in results]
    assert {doubt.about for doubt in doubts(odd, "adc")} == {"settings"}


def test_a_variant_without_a_change_is_told(tmp_path):
    base = finished(tmp_path / "base", "adc", renders=False)
    (doubt,) = doubts([base, replace(base, variant="same")], "adc")
    assert doubt.about == "settings" and "same has the settings of adc" in doubt.text


def test_runs_are_named_in_few_words(results):
    pick = [run for run in results if run.variant == "error" or run.key == ("fox", 0)]
    assert named(pick, results) == "adc / fox / seed 0, error, coarse / fox / seed 0, alike / fox / seed 0"
    pick = [run for run in results if run.variant == "adc" and run.scene == "fox"]
    assert named(pick, results) == "adc / fox"
    assert named(results[1:], results).endswith("more") or len(named(results[1:], results).split(", ")) <= 6
