"""The table of renamed settings: what it finds, and that users are told of every row."""

from pathlib import Path

import pytest

from splatexp.settings import renames

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "old, new",
    [
        ("ledger", "job_cache"),
        ("densify.faint", "densify.prune_low_opacity"),
        ("densify.faint.grace", "densify.prune_low_opacity.min_age"),
        ("densify.mine.grace", "densify.mine.min_age"),
        ("densify.clone_max", "densify.max_births"),
        ("steps", None),
        ("densify.grow.threshold", None),
    ],
)
def test_a_key_is_followed_part_by_part(old, new):
    assert renames.new_key(old) == new


def test_a_config_is_migrated_only_where_version_0_1_wrote_it():
    rules = {"_target_": "patient.Patient", "faint": {"_target_": "splatexp.densify.rules.Rule", "grace": 3}}
    saved = {"_target_": "splatexp.run.Run", "ledger": "here", "densify": rules, "steps": 9}
    migrated = renames.migrate(saved)
    assert migrated["job_cache"] == "here" and "ledger" not in migrated
    assert migrated["densify"] == {
        "_target_": "patient.Patient",
        "faint": {"_target_": "splatexp.densify.rules.Rule", "min_age": 3},
    }, "a class from outside keeps the names of its fields; a rule in it is ours"
    assert renames.migrate(migrated) == migrated, "what this version writes is left alone"


def test_the_changelog_tells_every_row():
    for group, names in renames.OPTIONS.items():
        for old, new in names.items():
            assert f"| `{group}={old}` | `{group}={new}` |" in CHANGELOG
    for old, new in renames.KEYS.items():
        assert f"| `{old}` | `{new}` |" in CHANGELOG
    for old, new in renames.ALIASES.items():
        assert f"| `{old}` | `{new}`; the old name is still accepted |" in CHANGELOG
    for key, words in renames.VALUES.items():
        for old, new in words.items():
            assert f"| `{key}={old}` | `{key}={new}` |" in CHANGELOG
    for old, new in {**renames.METRICS, **renames.COLUMNS}.items():
        assert f"| `{old}` in metrics." in CHANGELOG and f"| `{new}` |" in CHANGELOG
