"""What a study reads of its runs, how settings differ, and what is unfair in comparing them."""

from dataclasses import replace

import pytest
from support.study_cases import STEPS, VIEWS, finished, settings, study

from splatexp.settings.serialize import flatten_config
from splatexp.study.fairness import find_issues, name_runs
from splatexp.study.report import briefly
from splatexp.study.results import ABSENT, changes, differences, format_setting, read_result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), renders=False)


# what is read ----------------------------------------------------------------------------------------------


def test_a_run_is_read_back(tmp_path):
    run = finished(tmp_path, "adc", "fox", 2, count=500)
    assert (run.label, run.pair_key, run.size) == ("adc / fox / seed 2", ("fox", 2), 248 * 500)
    assert run.config["densify.grow.score"] == "grad2d" and run.config["densify"] == "RuleStrategy"
    assert [view["view"] for view in run.views] == list(VIEWS)
    assert len(run.log_rows) == STEPS // 10 and run.log_rows[-1]["num_gaussians"] == "500"


def test_what_hydra_wrote_says_the_same_as_the_journal(tmp_path):
    import yaml

    run = finished(tmp_path, "adc")
    (tmp_path / "run.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings()))
    assert not differences(run.config, read_result(tmp_path, "adc", "fox", 0).config)


def test_a_run_without_rows_can_be_read(tmp_path):
    finished(tmp_path, "adc")
    (tmp_path / "metrics.csv").unlink()
    assert read_result(tmp_path, "adc", "fox", 0).log_rows == []


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("metrics.json", None, "expected a finished run"),
        ("metrics.json", "{", "expected JSON, got"),
        ("metrics.json", "[]", "expected an object, got list"),
        ("metrics.json", "{}", "expected views in per_view, got None"),
        ("metrics.json", '{"per_view": [1]}', "expected views in per_view"),
        ("run.json", None, "expected run.json or .hydra/config.yaml in it"),
        ("run.json", "{", "expected JSON, got"),
        ("run.json", "{}", "expected the config of a run, got NoneType"),
    ],
)
def test_what_is_no_finished_run_is_one_line(tmp_path, name, text, words):
    finished(tmp_path, "adc", renders=False)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises((OSError, ValueError), match=words) as error:
        read_result(tmp_path, "adc", "fox", 0)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_broken_hydra_config_is_one_line(tmp_path):
    finished(tmp_path, "adc", renders=False)
    (tmp_path / "run.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ValueError, match="expected YAML, got") as error:
        read_result(tmp_path, "adc", "fox", 0)
    assert "\n" not in str(error.value)


# settings --------------------------------------------------------------------------------------------------


def test_settings_that_cannot_change_a_number_are_no_difference():
    one = flatten_config(settings(scene="fox", seed=0))
    silent = {"threads": 8, "log_every": 5, "tracker": {}, "resume": "auto", "evaluate": {"renders": False}}
    other = flatten_config(settings(scene="elsewhere", seed=3, **silent))
    assert differences(one, other) == {}


def test_a_difference_has_both_sides():
    one, other = (
        flatten_config(settings(steps=10)),
        flatten_config(settings(score="size", steps=20, oom="shrink")),
    )
    told = {"steps": (10, 20), "densify.grow.score": ("grad2d", "size"), "oom": (ABSENT, "shrink")}
    assert differences(one, other) == told
    assert differences(other, one) == {key: pair[::-1] for key, pair in told.items()}


@pytest.mark.parametrize(
    "one, other, same",
    [(1, 1.0, True), ([1], (1,), True), (True, 1, False), ([1, 2], [1], False), ("inf", float("inf"), True)],
)
def test_what_counts_as_the_same_value(one, other, same):
    assert (differences({"steps": one}, {"steps": other}) == {}) == same


def test_a_part_that_one_side_lacks_is_one_line():
    rule = {"_target_": "splatexp.densify.rules.Rule", "operate": "prune", "share": 0.0, "gate": []}
    curve = {"_target_": "splatexp.schedules.curve.Curve", "kind": "constant"}
    other = settings()
    other["densify"] = other["densify"] | {"tag": rule | {"anneal": curve}}
    lines = changes(flatten_config(settings()), flatten_config(other))
    assert lines == {"densify.tag": (ABSENT, "Rule(operate=prune, anneal=Curve, anneal.kind=constant)")}


def test_a_class_that_is_exchanged_tells_its_own_settings():
    one = {"importance": {"_target_": "splatexp.importance.learned.NONE"}}
    other = {"importance": {"_target_": "splatexp.importance.logit.Logit", "start": 300}}
    lines = changes(flatten_config(one), flatten_config(other))
    assert lines == {"importance": ("NONE", "Logit(start=300)")}


def test_many_changes_are_told_in_brief():
    few = [("densify.stop", "1", "2"), ("steps", "3", "4")]
    assert briefly(few) == ["densify.stop 2", "steps 4"]
    many = [(f"densify.{name}.x", "1", "2") for name in "abcde"] + [("steps", "3", "4")]
    assert briefly(many) == ["densify: a, b, c and 2 more", "steps"]


def test_values_as_the_command_line_has_them():
    values = (True, None, 1e-15, 0.1 + 0.2, [1, "a"], "", "word")
    assert [format_setting(value) for value in values] == [
        "true",
        "null",
        "1e-15",
        "0.3",
        "[1,a]",
        "''",
        "word",
    ]


# what is unfair --------------------------------------------------------------------------------------------


def altered(result, /, **metrics):
    return replace(result, metrics=result.metrics | metrics)


def pair(tmp_path):
    base = finished(tmp_path / "base", "adc", renders=False)
    other = finished(tmp_path / "other", "error", renders=False, config=settings("error_max"))
    return base, other


def test_a_fair_comparison_has_no_doubts(results):
    assert find_issues(results, "adc") == []


def test_a_count_within_one_percent_is_fair(tmp_path):
    base, other = pair(tmp_path)
    assert find_issues([base, altered(other, num_gaussians=60500)], "adc") == []
    (issue,) = find_issues([base, altered(other, num_gaussians=61000)], "adc")
    assert issue.topic == "number of Gaussians" and "error +1.7 %" in issue.message and issue.severe


@pytest.mark.parametrize(
    "about, grave, change, words",
    [
        ("protocol", True, {"protocol": "splatexp-1.every8.x2.0"}, "x2.0 in error"),
        ("data", True, {"scene": {"name": "fox", "data_sha256": "ab" * 32}}, "abababababab in error"),
        ("code", True, {"code_sha256": "ef" * 32}, "efefefefefef in error"),
        ("code", True, {"trained_with": {"code_sha256": "ef" * 32}}, "efefefefefef in error"),
        ("packages", True, {"packages": {"python": "3.11.7", "torch": "2.9.0"}}, "torch 2.9.0 in error"),
        ("hardware", False, {"hardware": {"cpu": "Xeon", "threads": 1}}, "cpu Xeon"),
        (
            "reduced runs",
            True,
            {"run": {"oom_reductions": [{"step": 3}], "resumed_at": []}},
            "error: ran out of memory",
        ),
        ("resumed runs", False, {"run": {"oom_reductions": [], "resumed_at": [30]}}, "error: interrupted"),
        ("uncommitted code", False, {"git": "abc123-dirty"}, "error: ran on a checkout"),
    ],
)  # fmt: skip
def test_every_unfairness_is_found(tmp_path, about, grave, change, words):
    base, other = pair(tmp_path)
    found = {issue.topic: issue for issue in find_issues([base, altered(other, **change)], "adc")}
    assert words in found[about].message and found[about].severe == grave


def test_other_steps_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    (issue,) = find_issues([base, replace(other, config=other.config | {"steps": 7})], "adc")
    assert issue.topic == "steps" and "fox: 100 in adc; 7 in error" in issue.message


def test_other_pictures_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    views = [view | {"target_sha256": "other"} for view in other.views[:1]] + other.views[1:]
    (issue,) = find_issues([base, altered(other, per_view=views)], "adc")
    assert issue.topic == "ground truth" and "1 views" in issue.message and VIEWS[0] in issue.message


def test_other_views_are_unfair(tmp_path):
    base, other = pair(tmp_path)
    (issue,) = find_issues([base, altered(other, per_view=other.views[1:])], "adc")
    assert issue.topic == "held-out views"


def test_a_missing_value_is_told(tmp_path):
    base, other = pair(tmp_path)
    views = [view | {"ssim": None} for view in other.views]
    (issue,) = find_issues([base, altered(other, per_view=views)], "adc")
    assert issue.topic == "missing values" and "no ssim" in issue.message
    assert find_issues([base, altered(other, per_view=views)], "adc", ("psnr",)) == []


def test_missing_runs_are_named(results):
    gone = [run for run in results if run.label != "error / fox / seed 1"]
    gone = [run for run in gone if run.pair_key != ("bonsai", 2)]
    (issue,) = find_issues(gone, "adc")
    assert issue.topic == "missing runs"
    assert "error / fox / seed 1" in issue.message and "every variant / bonsai / seed 2" in issue.message


def test_settings_that_hang_on_the_scene_are_told(results):
    odd = [
        replace(run, config=run.config | {"densify.max_gaussians": 9})
        if (run.variant, run.scene) == ("error", "fox")
        else run
        for run in results
    ]
    (issue,) = find_issues(odd, "adc")
    assert issue.topic == "per-scene overrides" and issue.severe and "densify.max_gaussians" in issue.message
    alike = [replace(run, config=run.config | {"densify.cap": len(run.scene)}) for run in results]
    (issue,) = find_issues(alike, "adc")
    assert (
        issue.topic == "per-scene overrides"
        and not issue.severe
        and "densify.cap 3 in fox, 6 in bonsai" in issue.message
    )


def test_settings_that_hang_on_the_seed_are_told(results):
    odd = [replace(run, config=run.config | {"densify.cap": run.seed}) for run in results]
    assert {issue.topic for issue in find_issues(odd, "adc")} == {"settings"}


def test_a_variant_without_a_change_is_told(tmp_path):
    base = finished(tmp_path / "base", "adc", renders=False)
    (issue,) = find_issues([base, replace(base, variant="same")], "adc")
    assert issue.topic == "settings" and "same has the same settings as adc" in issue.message


def test_runs_are_named_in_few_words(results):
    pick = [run for run in results if run.variant == "error" or run.pair_key == ("fox", 0)]
    assert (
        name_runs(pick, results) == "adc / fox / seed 0, error, coarse / fox / seed 0, alike / fox / seed 0"
    )
    pick = [run for run in results if run.variant == "adc" and run.scene == "fox"]
    assert name_runs(pick, results) == "adc / fox"
    assert (
        name_runs(results[1:], results).endswith("more")
        or len(name_runs(results[1:], results).split(", ")) <= 6
    )
