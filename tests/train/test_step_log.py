"""The full record of a run: every number that is promised, in every tracker."""

import csv
import json
import math

import pytest
import torch
from support.logs import events, told
from tracking.test_tracking import offline  # noqa: F401  a home of its own, nobody logged in

from splatexp.config.build import build, compose
from splatexp.densify import OpacityReset, Rule, RuleStrategy
from splatexp.train.step_log import StepLog, StepOutput

SMALL = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
SMALL += ["data.cache=false", "evaluate.turntable=false", "threads=1"]
WORDS = ["densify=adc", "importance=logit", "importance.start=2", "regularizer=[opacity,scale]", "steps=24"]
WORDS += [
    "densify.every=4",
    "densify.start=2",
    "densify.stop=0",
    "densify.opacity_reset.every=8",
    "densify.opacity_reset.stop=0",
]
WORDS += ["densify.max_gaussians=300", "log_every=6", "tracker=[csv,tensorboard,wandb]"]
WORDS += ["tracker.wandb.group=g", "tracker.wandb.job_type=j", "tracker.wandb.tags=[a,b]"]

PROMISED = """train/loss train/loss_mean train/loss_l1 train/loss_ssim train/loss_opacity train/loss_scale
    train/loss_importance_sparsity train/psnr train/ssim train/psnr_mean train/ssim_mean num_gaussians births
    prunes merges relocated footprint_min footprint_mean footprint_max opacity_min opacity_mean opacity_max
    memory_bytes memory_available_bytes sh_degree downscale lr_means lr_quats lr_log_scales lr_opacity_logits
    lr_sh0 lr_shN lambda_opacity lambda_scale lambda_importance_sparsity cap growth_limit opacity_resets
    steps_since_reset seconds seconds_densify seconds_log steps_per_second""".split()


@pytest.mark.filterwarnings("default")
def test_every_tracker_has_all_that_is_promised(tmp_path, capsys, offline):  # noqa: F811
    result = build(compose([*SMALL, *WORDS]))(tmp_path, ["some=override"])
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "11", "17", "23"]
    assert all(math.isfinite(float(row[name])) for row in rows for name in PROMISED)
    assert sum(int(row["births"]) for row in rows) > 0 and int(rows[-1]["opacity_resets"]) == 3
    last = {name: float(value) for name, value in rows[-1].items() if value}

    seen = events(tmp_path)
    for name in [*PROMISED, "eval/psnr", "eval/ssim"]:
        assert seen.Scalars(name)[-1].value == pytest.approx(last[name], rel=1e-6), name
    assert seen.Tags()["images"] and seen.Tensors("config") and seen.Tensors("per_view")

    ((run, table, summary, artifacts, exits),) = told(tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert run.run_id == facts["id"] == result["run"]["id"] and exits == [0]
    assert (run.run_group, run.job_type, list(run.tags)) == ("g", "j", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["steps"] == 24 and config["densify"]["every"] == 4
    told_facts = config["provenance"]
    for name in ("overrides", "command", "code_sha256", "git", "packages", "hardware", "protocol", "data"):
        assert told_facts[name] == facts[name] or name == "command", name
    assert told_facts["overrides"] == ["some=override"] and told_facts["data"]["views"]
    for name in PROMISED:
        assert json.loads(summary[name]) == pytest.approx(last[name], rel=1e-6), name
    assert {artifact.type for artifact in artifacts} == {"run_table", "model"}
    assert any(key.endswith(".path") for row in table for key in row), "pictures"
    parts = facts["sessions"]
    assert (
        parts[0]["exit_code"] == 0
        and parts[0]["start_step"] == 0
        and parts[0]["started_at"] <= parts[0]["ended_at"]
    )


def test_births_prunes_and_relocations_are_counted_by_kind(tmp_path, capsys):
    words = [
        "densify=mcmc",
        "densify.every=3",
        "densify.start=1",
        "densify.stop=0",
        "steps=12",
        "log_every=12",
    ]
    words += [
        "model.init_opacity=0.004",
        "densify.max_gaussians=200",
        "tracker=[csv]",
        "evaluate.renders=false",
    ]
    build(compose([*SMALL, *words]))(tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (
        int(row["num_gaussians"]) == 150 + int(row["births"]) - int(row["prunes"]) and int(row["births"]) > 0
    )
    assert int(row["relocated"]) > 0


def test_a_record_goes_on_where_it_was():
    record = StepLog(seconds=1.5, psnr_mean=20.0)
    record.edit_counts["births"] = 3
    record.end_step(torch.tensor(0.5))
    again = StepLog.from_state_dict(json.loads(json.dumps(record.state_dict(), allow_nan=False)))
    assert (
        again.state_dict() == record.state_dict()
        and math.isnan(again.ssim_mean)
        and again.edit_counts["births"] == 3
    )
    for broken in ({}, record.state_dict() | {"moved": 3}, record.state_dict() | {"steps": "x"}):
        with pytest.raises(ValueError, match="record: expected the log of a run's steps"):
            StepLog.from_state_dict(broken)


def test_ssim_of_a_step_is_that_of_the_loss():
    from types import SimpleNamespace

    from splatexp.losses.photometric import Loss

    image, target = (torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    mask = torch.zeros(1, 24, 24, 1)
    mask[:, :14] = 1
    for part in (None, mask):
        terms = Loss()(image, target, part, backend="reference")
        sight = StepOutput(0, terms, 0.0, SimpleNamespace(image=image), target, part)  # type: ignore[arg-type]
        bare = StepOutput(0, {}, 0.0, SimpleNamespace(image=image), target, part)  # type: ignore[arg-type]
        assert sight.ssim(0.2, "reference") == pytest.approx(bare.ssim(0.0, "reference"), abs=1e-6)


def test_policies_tell_where_they_stand():
    rule = Rule("clone", "opacity", "top", 0.1)
    strategy = RuleStrategy(
        every=10,
        start=0,
        stop=100,
        max_gaussians=50,
        opacity_reset=OpacityReset(every=30, stop=100),
        only=rule,
    )
    from support.tiny import splats

    from splatexp.densify.strategy import Context

    told_at = {step: strategy.metrics(step, splats(20), Context()) for step in (5, 29, 44, 95)}
    assert [told_at[step]["opacity_resets"] for step in told_at] == [0, 1, 1, 3]
    assert [told_at[step]["steps_since_reset"] for step in told_at] == [6, 0, 15, 6]
    assert all(values["cap"] == 50 and values["growth_limit"] <= 50 for values in told_at.values())
