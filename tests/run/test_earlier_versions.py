"""Runs and configs of version 0.1 open: through one table of names, to the same settings and the same bits."""

import json
import lzma
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from splatexp.config.build import build, compose, load_run
from splatexp.config.schema import ConfigError
from splatexp.settings import renames
from splatexp.settings.serialize import to_config

GOLDEN = Path(__file__).parents[1] / "golden" / "v0_1"
CONFIGS = json.loads(lzma.open(GOLDEN / "configs.json.xz").read())
INCOMPLETE = (  # options that need others beside them, or a path
    "data=",
    "model=image",
    "raster=image",
    "optimizer=image",
    "schedule=image",
    "rate=",
    "densify=image",
    "densify=pursuit",
    "regularizer=[edge]",
    "preset=image_codec",
)


def folder_of(config, folder):
    """The folder of a run with this .hydra/config.yaml."""
    path = folder / ".hydra" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def today(overrides):
    """The overrides of a config of version 0.1, by the names of today."""
    for word in overrides:
        group, _, names = word.partition("=")
        new = [renames.new_option(group, name) or name for name in names.strip("[]").split(",")]
        yield f"{group}=[{','.join(new)}]" if names.startswith("[") else f"{group}={new[0]}"


def entries():
    """The configs: the usual one and those of presets are quick, those of single options slow."""
    for entry in CONFIGS:
        name = " ".join(entry["overrides"])
        quick = not name or name.startswith("preset")
        yield pytest.param(entry, id=name or "usual", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("entry", list(entries()))
def test_a_config_of_version_0_1_means_what_it_meant(entry, tmp_path, monkeypatch):
    """The saved config of each preset and option gives the settings that the same words give today."""
    monkeypatch.chdir(tmp_path)
    words = list(today(entry["overrides"]))
    text = json.dumps(entry["config"]).replace("/data/", f"{tmp_path}/")
    folder = folder_of(json.loads(text), tmp_path / "run")
    try:
        now = build(compose(words))
    except (ConfigError, ValueError) as error:  # an option that needs others beside it, such as a path
        assert any(word.startswith(INCOMPLETE) for word in words), error
        with pytest.raises(ValueError, match="expected"):
            load_run(folder)
        return
    saved, usual = to_config(load_run(folder)), to_config(now)
    saved["job_cache"] = usual["job_cache"]  # the folder's usual name has changed
    assert saved == usual


@pytest.fixture
def run(tmp_path):
    """A copy of a golden run -> its folder; its data lie in the folder above."""

    def copied(name):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        shutil.copy(GOLDEN / "small.png", tmp_path)
        for path in (folder / ".hydra" / "config.yaml", folder / "run.json"):
            path.write_text(path.read_text().replace("/data/", f"{tmp_path}/"))
        return folder

    return copied


def call(monkeypatch, command, *words):
    """Run `python -m splatexp.<command> words...` in this process."""
    monkeypatch.setattr(sys, "argv", [command, *words])
    import_module(f"splatexp.{command}").main()


@pytest.mark.parametrize("name", ["scene", "image"])
def test_a_run_of_version_0_1_is_measured_and_drawn_again(name, run, monkeypatch, capsys):
    folder = run(name)
    before = json.loads((folder / "metrics.json").read_text())
    call(monkeypatch, "evaluate", f"run={folder}", "renders=false")
    after = json.loads((folder / "metrics.json").read_text())
    assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-4)
    assert after["ssim"] == pytest.approx(before["ssim"], abs=1e-5)
    assert after["run"]["id"] == before["run"]["id"] and after["trained_with"]
    call(monkeypatch, "render", f"run={folder}")
    assert len(list((folder / "renders" / "plain").glob("*.png"))) == len(before["per_view"])


def test_a_run_of_version_0_1_can_be_looked_at(run):
    from splatexp.commands.view import open_latest

    opened, scene, rows, steps, _ = open_latest(run("scene"))
    assert steps == 60 and len(rows) == 116 and len(scene.train) == 4
    assert {"prune_low_opacity", "prune_unimportant"} <= set(opened.densify.rules)


@pytest.mark.parametrize(
    "name, middle, last",
    [("scene", "step_00000030", "step_00000060"), ("image", "step_00000020", "step_00000040")],
)
def test_a_checkpoint_of_version_0_1_goes_on_to_the_same_bits(name, middle, last, run, monkeypatch, capfd):
    folder = run(name)
    whole = load_file(folder / "checkpoints" / f"{last}.safetensors")
    (folder / "checkpoints" / f"{last}.safetensors").unlink()
    call(monkeypatch, "resume", f"run={folder}")
    said = capfd.readouterr().err
    changed = [line for line in said.splitlines() if "->" in line and not line.startswith("data.path: ")]
    assert f"{middle}.safetensors" in said and not changed, said
    again = load_file(folder / "checkpoints" / f"{last}.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    if name == "scene":
        assert (folder / "point_cloud.ply").read_bytes() == (GOLDEN / name / "point_cloud.ply").read_bytes()
    else:
        written = folder / "image.gsi"
        assert written.read_bytes() == (GOLDEN / name / "picture.gsi").read_bytes()


@pytest.mark.parametrize(
    "word, says",
    [
        (
            "densify.faint.threshold=0.1",
            "densify.faint.threshold: renamed to densify.prune_low_opacity.threshold",
        ),
        ("densify.grow.share=0.1", "densify.grow.share: renamed to densify.grow.max_fraction"),
        ("ledger=here", "ledger: renamed to job_cache"),
        ("raster=plane", "raster=plane: renamed to raster=image"),
        ("densify=error_no_tag", "densify=error_no_tag: renamed to densify=ablation/error_no_tag"),
        (
            "densify.grow.select=multinomial",
            "densify.grow.select=multinomial: renamed to densify.grow.select=sample",
        ),
    ],
)
def test_who_types_an_old_name_is_told_the_new_one(word, says):
    with pytest.raises(ConfigError) as refused:
        compose([word])
    assert str(refused.value) == says


@pytest.mark.parametrize(
    "old, new",
    [
        ("clone_max", "max_births"),
        ("densify_add", "min_births"),
        ("prune_max", "max_prunes"),
        ("merge_max", "max_merges"),
    ],
)
def test_the_names_of_the_first_design_are_still_taken(old, new):
    assert (
        compose([f"densify.{old}=7", "densify.max_births=9" if old == "densify_add" else "seed=1"]).densify[
            new
        ]
        == 7
    )


def test_no_row_of_the_table_names_what_is_not_there():
    for new in set(renames.TARGETS.values()):
        module, _, name = new.rpartition(".")
        assert hasattr(import_module(module), name), new
    for group, names in renames.OPTIONS.items():
        for old, new in names.items():
            assert renames.new_option(group, new) is None and old != new
