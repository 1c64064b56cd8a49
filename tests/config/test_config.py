"""Composing, refusing, scaling, building: everything that is known of Hydra."""

import ast
import copy
import dataclasses
import os
import textwrap
from functools import cache
from pathlib import Path

import pytest
import yaml

import splatexp
from splatexp.config.build import build, compose, conf_dir, load_run, make_loader, option
from splatexp.config.registry import option_classes, takes_several
from splatexp.config.schema import ConfigError
from splatexp.densify import NoDensification, Rule, RuleStrategy
from splatexp.run.run import Run
from splatexp.settings.messages import unknown_key

GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir())
PRESETS = sorted(path.stem for path in (conf_dir() / "preset").glob("*.yaml"))
DENSIFY = [
    str(path.relative_to(conf_dir() / "densify").with_suffix(""))
    for path in (conf_dir() / "densify").rglob("*.yaml")
]
SEVERAL = [group for group in option_classes() if takes_several(group)]


def choose(group: str, name: str) -> str:
    return f"{group}=[{name}]" if group in SEVERAL else f"{group}={name}"


FILES = [
    (group, str(path.relative_to(conf_dir() / group).with_suffix("")))
    for group in GROUPS
    for path in sorted((conf_dir() / group).rglob("*.yaml"))
    if group != "study"
]
OF_IMAGES = [(group, "image") for group in GROUPS if group != "preset"]
OF_IMAGES += [("densify", "pursuit"), ("rate", "vector"), ("regularizer", "edge")]
CODED = ["preset=image_codec", "rate.bpp=1"]
IMAGE_OVERRIDES = dict.fromkeys(OF_IMAGES, ["preset=image"]) | {("preset", "image_codec"): ["rate.bpp=1"]}
IMAGE_OVERRIDES |= {("rate", "scalar"): CODED, ("rate", "sequential"): CODED}
IMAGES = [preset for preset in PRESETS if preset.startswith("image")]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_and_builds(group, name):
    words = [choose(group, name)] + (["data.path=/x"] if name in ("colmap", "transforms", "photos") else [])
    words += ["camera=orbit"] if name == "photos" else []  # its cameras are guesses
    words += IMAGE_OVERRIDES.get((group, name), [])
    run = build(compose(words))
    assert isinstance(run, Run)
    if group in option_classes():
        option = getattr(run, group)[name] if group in SEVERAL else getattr(run, group)
        assert isinstance(option, tuple(option_classes()[group].values()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "words",
    [
        ["densify=none"],
        pytest.param(["schedule=full"], marks=pytest.mark.slow),
        pytest.param(["schedule=warmup", "tracker=[]"], marks=pytest.mark.slow),
    ],
)
def test_presets_go_with_every_other_choice(preset, words):
    words = [*words, *IMAGE_OVERRIDES.get(("preset", preset), [])]
    if preset in IMAGES and words[0] != "densify=none":
        with pytest.raises(ConfigError, match="schedule: expected image with data=image, got Schedule"):
            build(compose([f"preset={preset}", *words]))
        return
    assert build(compose([f"preset={preset}", *words])).steps > 0


def test_every_schema_has_a_file_and_every_preset_a_comment():
    for group, classes in option_classes().items():
        texts = [path.read_text() for path in (conf_dir() / group).glob("*.yaml")]
        assert all(any(f"/schema/{group}/{name}@_here_" in text for text in texts) for name in classes)
    for path in (conf_dir() / "preset").glob("*.yaml"):
        assert path.read_text().startswith("# @package _global_\n# ")


def test_the_values_of_the_presets():
    def run(name: str) -> Run:
        return build(compose([f"preset={name}"]))

    low, balanced, high, inria = (run(name) for name in ("memory_low", "balanced", "quality_high", "inria"))
    three = (low, balanced, high)
    assert [r.data.downscale for r in three] == [4, 2, 1]
    assert [r.densify.max_gaussians for r in three] == [1_500_000, 3_000_000, 6_000_000]
    assert [r.densify.max_births for r in three] == [20_000, 50_000, 75_000]
    assert [r.densify.min_births for r in three] == [100, 250, 500]
    assert [r.densify.prune_low_opacity.threshold for r in three] == [0.03, 0.02, 0.015]
    assert [r.model.sh_degree for r in three] == [2, 3, 4]
    assert [r.raster.cull_radius_px for r in three] == [1.5, 1.0, 0.0]
    assert (
        high.schedule.downscale(0) > 1 and high.schedule.downscale(high.steps - 1) == 1
    )  # full resolution late
    control = inria.densify
    assert (inria.steps, control.start, control.stop, control.every) == (30_000, 500, 15_000, 100)
    # otherwise the prune after a reset would remove everything
    assert all(r.densify.opacity_reset.value > r.densify.prune_low_opacity.threshold for r in three)


@pytest.mark.parametrize("name", sorted(DENSIFY))
def test_what_presets_say_of_low_opacities_is_an_opacity(name):
    rule = getattr(option("densify", name), "prune_low_opacity", None)
    assert rule is None or (rule.operate, rule.score, rule.select) == ("prune", "opacity", "below")


def test_composing_gives_plain_objects():
    run = build(compose(["regularizer=[opacity,scale]", "tracker=[csv]"]))
    assert list(run.regularizer) == ["opacity", "scale"] and list(run.tracker) == ["csv"]
    assert type(run.regularizer) is dict and type(run.schedule.downscale_factors) is list
    assert type(run) is Run and isinstance(run.densify, RuleStrategy)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stpes=5", "stpes: no such key; did you mean steps?"),
        ("+stpes=5", "stpes: no such key; did you mean steps?"),
        ("++stpes=5", "stpes: no such key; did you mean steps?"),
        ("densify.grwo.threshold=1", "densify.grwo: no such key; did you mean densify.grow?"),
        ("+densify.grow.treshold=1", "did you mean densify.grow.threshold?"),
        ("++loss={ssmi: 1}", "did you mean loss.ssim?"),
        ("max_gaussians=10", "did you mean densify.max_gaussians?"),
        ("densfy=adc", "did you mean densify?"),
        ("+densfy=adc", "did you mean densify?"),
        ("densify=acd", "densify=acd: densify has no such option; did you mean adc?"),
        ("preset=qiuck", "did you mean quick?"),
        ("tracker=[csv,tensorbord]", "did you mean tensorboard?"),
        ("regularizer=[opacty]", "did you mean opacity?"),
        ("regularizer.scale.weight=1", "regularizer.scale: needs regularizer=[scale]"),
        ("data.masks=false", "data.masks: needs data=colmap or data=photos or data=transforms"),
        ("tracker.csv.x=1", "tracker.csv.x: no such key; tracker.csv has no settings below it"),
        ("tracker.csv=null", "tracker.csv: expected"),
        ("steps=abc", "steps: expected a whole number, got 'abc'"),
        ("steps=1e3", "write 1_000"),
        ("steps=0", "steps: expected at least 1, got 0"),
        ("steps=1,2", "need -m"),
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("steps=${nothing}", "steps: Interpolation key 'nothing' not found"),
        ("raster.antialiased=flase", "expected true or false"),
        ("model.init=sfmm", "model.init: expected one of auto, sfm, random, ply, got 'sfmm'; did you"),
        ("schedule.means.kind=cosin", "schedule.means.kind: expected"),
        ("schedule.downscale_until=5", "expected a list"),
        ("objective=pnsr", "did you mean 'psnr'?"),
        ("hydra.rn.dir=x", "did you mean hydra.run?"),
        ("evaluate/every=3", "write it as evaluate.every="),
        ("loss=l1", "loss: expected its settings one by one"),
        ("~steps", "steps: a setting cannot be deleted"),
        ("~data", "data"),
        ("data=null", "expected the name of an option"),
        ("data=colmap", "data.path: expected a value, got none"),
        ("densify._target_=os.system", "cannot be set"),
        ("+densify@data=none", "Merge error"),
        ("densify.grow.scroe=edge", "densify.grow.scroe: no such key; did you mean densify.grow.score?"),
        ("densify.grwo.operate=prune", "densify.grwo: no such key; did you mean densify.grow?"),
        ("+densify.grwo.score=age", "densify.grow? (a new entry needs densify.grwo.operate)"),
        ("+densify.plan.operate=prune", "densify.plan: expected a name that is not taken"),
        ("+densify.a-b.operate=prune", "densify.a-b: expected a name that is not taken"),
        ("+densify.extra.operate=prnue", "densify.extra.operate: expected one of"),
        ("+densify.extra={operate: prune, scroe: age}", "densify.extra.scroe: no such key; did you mean"),
        ("~densify.every", "densify.every: a setting cannot be deleted"),
        ("~densify.opacity_reset", "densify.opacity_reset: a setting cannot be deleted"),
        ("~densify.grow.max_rows", "densify.grow.max_rows: a setting cannot be deleted"),
        ("~model.sh_degree", "model.sh_degree: a setting cannot be deleted"),
        ("~densify.prune_lagre", "densify.prune_lagre: no such key; did you mean densify.prune_large?"),
        ("densify.prune_large=null", "densify.prune_large: expected a value, got null"),
        ("densify={_target_: os.system}", "cannot be set"),
        ("preset=[quick,qiuck]", "preset=qiuck: preset has no such option; did you mean quick?"),
        ("steps=${log_every}", "steps: expected a plain whole number, got an expression of value 50"),
    ],
)
def test_refused_in_one_line(word, said):
    with pytest.raises(ConfigError) as caught:
        build(compose([word]))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_misspelt_key_or_value_in_a_preset_is_refused(tmp_path):
    folder = tmp_path / "preset"
    folder.mkdir()
    cases = {
        "stpes: 5": "stpes: no such key; did you mean steps? (in preset/mine)",
        "densify:\n  grwo: {threshold: 1}": "did you mean densify.grow? (in preset/mine)",
        "steps: abc": "steps: expected a whole number, got 'abc' (in preset/mine)",
        "defaults:\n  - override /dnsify: adc": "did you mean densify? (in preset/mine)",
        "defaults:\n  - override /densify: acd": "did you mean adc?",
    }
    for text, said in cases.items():
        (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        with pytest.raises(ConfigError) as caught:
            make_loader(str(tmp_path)).compose_job("config", ["preset=mine"])
        assert said in str(caught.value)


def test_an_option_from_outside_needs_only_its_target(tmp_path):
    file = tmp_path / "densify" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("_target_: splatexp.densify.strategy.NoDensification\nmax_gaussians: 7\n")
    cfg = make_loader(str(tmp_path)).compose_job("config", ["preset=inria", "densify=mine"])
    assert build(cfg).densify == NoDensification(max_gaussians=7)
    file.write_text("_target_: splatexp.densify.strategy.NoDensification\nmax_gausians: 7\n")
    with pytest.raises(ConfigError, match=r"did you mean densify.max_gaussians\?"):
        make_loader(str(tmp_path)).compose_job("config", ["densify=mine"])


@pytest.fixture
def folder(tmp_path):
    """A folder for --config-dir: `write(place, text)` fills it, `job(*words)` builds a run with it."""

    class Folder:
        def write(self, place, text):
            file = tmp_path / f"{place}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(text))

        def job(self, *words):
            return build(make_loader(str(tmp_path)).compose_job("config", words))

    return Folder()


def test_a_strategy_is_one_file_and_an_ablation_one_override(folder):
    folder.write(
        "densify/mine",
        """\
        defaults:
          - /schema/densify/rules@_here_
          - _self_
        every: 50
        weed: {operate: prune, score: opacity, select: below, threshold: 0.01, start: 6_000}
        grow: {operate: clone, score: absgrad}
        """,
    )
    mine = folder.job(
        "preset=inria", "densify=mine", "densify.grow.threshold=1e-3", "densify.weed.max_rows=10"
    )
    weed = Rule("prune", "opacity", "below", 0.01, start=6_000, max_rows=10)
    assert mine.densify == RuleStrategy(every=50, weed=weed, grow=Rule("clone", "absgrad", threshold=1e-3))
    assert list(mine.densify.rules) == ["weed", "grow"]  # in the order of the file
    short = folder.job("densify=mine", "steps=3000", "densify.stop=7").densify
    assert (short.weed.start, short.start, short.stop) == (600, 50, 7)  # a rule's windows stretch too


def test_a_strategy_may_build_on_another(folder):
    folder.write(
        "densify/mine",
        """\
        defaults: [adc, _self_]
        grow: {score: absgrad}
        prune_large: null
        old: {operate: prune, score: age, threshold: 900}
        """,
    )
    adc, mine = option("densify", "adc"), folder.job("preset=inria", "densify=mine").densify
    assert (
        list(mine.rules) == ["grow", "prune_low_opacity", "old"]
        and mine.prune_low_opacity == adc.prune_low_opacity
    )
    assert mine.grow == dataclasses.replace(adc.grow, score="absgrad") and mine.old.threshold == 900
    with pytest.raises(ConfigError, match="densify.old: needs densify=mine"):
        folder.job("densify.old.threshold=3")
    folder.write(
        "preset/words", "# @package _global_\ndensify: {old: {max_rows: 5}, prune_large: {max_rows: 6}}"
    )
    both = [folder.job("preset=words", f"densify={name}").densify for name in ("mine", "adc")]
    assert (
        both[0].old.max_rows == 5 and both[1].prune_large.max_rows == 6
    )  # what the strategy does not have is left out
    assert folder.job("preset=words", "densify=none").densify == NoDensification()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grow: {scroe: age}", "densify.grow.scroe: no such key; did you mean densify.grow.score?"),
        (
            "opacity_rset: {every: 0}",
            "densify.opacity_rset: no such key; did you mean densify.opacity_reset?",
        ),
        ("evry: 3", "densify.evry: no such key; did you mean densify.every?"),
        ("every: often", "densify.every: expected a whole number, got 'often'"),
        ("plan: {operate: prune}", "densify.plan: expected a name that is not taken"),
    ],
)
def test_a_strategy_with_a_mistake_is_refused_with_its_file(folder, text, said):
    folder.write("densify/mine", f"defaults: [adc, _self_]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        folder.job("densify=mine")
    line = str(caught.value)
    assert line.startswith(said) and line.endswith("(in densify/mine)") and "\n" not in line


def test_the_command_line_adds_and_deletes_rules():
    plain = option("densify", "adc")
    words = ["+densify.extra.operate=prune", "densify.extra.score=age", "densify.extra.max_rows=3"]
    run = build(compose(["preset=inria", "~densify.prune_large", *words]))
    extra = Rule("prune", "age", max_rows=3)
    assert run.densify == RuleStrategy(
        grow=plain.grow, prune_low_opacity=plain.prune_low_opacity, extra=extra
    )
    again = build(compose(["preset=inria", "+densify.extra={operate: prune, score: age, max_rows: 3}"]))
    assert again.densify == RuleStrategy(**plain.rules, extra=extra)


def test_rules_by_name_are_fields():
    rules = {"first": Rule("clone"), "second": Rule("prune", "age")}
    one, other = RuleStrategy(every=7, **rules), RuleStrategy(every=7, **dict(reversed(rules.items())))
    assert one == RuleStrategy(every=7, **rules) and one != other  # the order counts
    assert isinstance(one, RuleStrategy) and list(one.rules) == ["first", "second"] == list(
        reversed(other.rules)
    )
    assert dataclasses.replace(one, every=8) == RuleStrategy(every=8, **rules)
    assert copy.deepcopy(one) == one and dataclasses.asdict(one)["second"]["score"] == "age"
    with pytest.raises(TypeError, match="evry"):
        RuleStrategy(evry=3)
    with pytest.raises(ValueError, match="plan: expected a name that is not taken"):
        RuleStrategy(plan=Rule())


def test_presets_can_be_several_and_later_ones_win(folder):
    folder.write("preset/paper", "# @package _global_\ndensify: {start: 6_000}\nraster: {near: 0.5}\n")
    run = folder.job("preset=[quick,paper]", "schedule=progressive")
    assert (run.steps, run.densify.start, run.raster.near) == (2000, 400, 0.5)
    assert run.schedule.downscale_until == [200, 800] and run.densify.stop == 1_300
    assert folder.job("preset=[quick,paper]", "steps=3000").densify.start == 600
    alone = folder.job("preset=paper")
    assert (alone.steps, alone.densify.start, alone.densify.stop) == (30_000, 6_000, 15_000)
    last = folder.job("preset=[quick,inria]")
    assert (last.steps, last.densify.start, last.raster.near) == (30_000, 500, 0.2)
    assert (
        list(last.densify.rules) == ["grow", "prune_low_opacity", "prune_large"]
        and last.densify.prune_large.threshold == 0.1
    )
    assert folder.job("preset=[]").densify == option("densify", "adc")


def test_quick_is_quick_with_any_strategy():
    for steps, start, stop in ((2000, 200, 1300), (3000, 300, 1950)):
        control = build(compose([f"steps={steps}"])).densify
        assert (control.start, control.stop, control.max_gaussians) == (start, stop, 200_000)
        assert (control.grow.threshold, control.prune_large.threshold, control.opacity_reset.every) == (
            3e-4,
            100,
            0,
        )
    other = build(compose(["densify=adc"])).densify
    assert (other.start, other.stop, other.max_gaussians) == (33, 1000, 200_000)  # the paper's windows


def test_steps_stretch_windows_but_not_what_was_said():
    plain = build(compose(["preset=inria", "schedule=progressive"]))
    short = build(compose(["preset=inria", "schedule=progressive", "steps=3000", "densify.start=321"]))
    assert plain.densify.stop == 15_000 and short.densify.stop == 1_500
    assert plain.schedule.downscale_until == [3_000, 12_000] and short.schedule.downscale_until == [
        300,
        1_200,
    ]
    assert short.densify.start == 321
    assert short.densify.every == plain.densify.every  # a cadence is no window
    assert short.densify.prune_large.start == 300 and short.densify.grow.start == 0
    said = build(
        compose(["preset=inria", "steps=3000", "densify={start: 55}", "schedule.sh_degree_interval=7"])
    )
    assert said.densify.start == 55 and said.schedule.sh_degree_interval == 7


def test_windows_of_options_fit_the_steps_of_a_preset():
    run = build(compose(["preset=quick"]))
    share = run.steps / 30_000
    assert run.densify.prune_large.start == round(3000 * share)
    chosen = build(compose(["preset=quick", "schedule=progressive"]))
    assert chosen.schedule.downscale_until == [round(3_000 * share), round(12_000 * share)]
    assert build(compose(["preset=quick", "steps=5"])).densify.start >= 1


def test_paths_are_absolute_and_the_loader_follows_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sparse" / "0").mkdir(parents=True)
    for name in ("cameras.bin", "images.bin"):
        (tmp_path / "photos" / "sparse" / "0" / name).write_bytes(b"")
    (tmp_path / "lego").mkdir()
    (tmp_path / "lego" / "transforms.json").write_text("{}")
    colmap, nerf = compose(["data.path=photos"]), compose(["data.path=./lego"])
    assert colmap.data._target_.endswith("Colmap") and colmap.data.path == str(tmp_path / "photos")
    assert nerf.data._target_.endswith("Transforms") and nerf.data.path == str(tmp_path / "lego")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(ConfigError, match=name):
            compose([f"data.path={name}"])


def test_a_run_comes_back_from_its_folder(tmp_path):
    from omegaconf import OmegaConf

    words = ["preset=memory_low", "steps=500", "regularizer=[scale]", "tracker=[csv,wandb]", "seed=3"]
    words += ["+densify.odd.operate=prune", "densify.odd.score=age"]
    cfg = compose(words)
    (tmp_path / ".hydra").mkdir()
    file = tmp_path / ".hydra" / "config.yaml"
    OmegaConf.save(cfg, file)
    assert load_run(tmp_path) == build(cfg)
    assert list(load_run(tmp_path).densify.rules) == ["grow", "prune_low_opacity", "prune_large", "odd"]
    text = file.read_text()
    cases = {text + "stpes: 5\n": "did you mean steps", text + "  - :": "config.yaml", "[": "config.yaml"}
    for broken, said in cases.items():
        file.write_text(broken)
        with pytest.raises(ValueError, match=said):
            load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        load_run(tmp_path / "nowhere")


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    from omegaconf import OmegaConf

    texts = [OmegaConf.create({"dir": f"${{unique_dir:{tmp_path}/10-11-12}}"}) for _ in range(3)]
    names = [cfg.dir for cfg in texts]
    assert [os.path.basename(name) for name in names] == ["10-11-12", "10-11-12-2", "10-11-12-3"]
    assert texts[0].dir == names[0] and all(os.path.isdir(name) for name in names)


def test_the_nearest_key_is_a_sister_before_it_is_of_another_family():
    keys = {"a": [], "a.start": [], "b": [], "b.stop": ["c=b"], "other": []}
    assert unknown_key("a.stat", keys) == "a.stat: no such key; did you mean a.start?"
    assert unknown_key("other.stp", keys) == "other.stp: no such key; did you mean b.stop?"
    assert unknown_key("b.stop", keys) == "b.stop: needs c=b"
    assert unknown_key("zzz", keys) == "zzz: no such key; there are a, b, other"


def test_every_key_is_read_by_the_code():
    keys = make_loader().known_keys
    inner = {key.rpartition(".")[0] for key in keys} | {
        f"tracker.{name}" for name in option_classes()["tracker"]
    }
    leaves = [key for key in keys if key not in inner and key != "preset"]
    assert not [key for key in leaves if key.rpartition(".")[2] not in names_in_code()]


def test_every_field_of_every_option_is_a_key():
    known = make_loader().known_keys
    for group, classes in option_classes().items():
        for name, cls in classes.items():
            place = f"{group}.{name}" if group in SEVERAL else group
            assert all(f"{place}.{field.name}" in known for field in dataclasses.fields(cls))


@cache
def names_in_code() -> set[str]:
    """Attributes that the package reads and words that it looks up, but not in `__post_init__`."""
    names = set()
    for path in Path(splatexp.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        checks = [node for node in ast.walk(tree) if getattr(node, "name", "") == "__post_init__"]
        for node in set(ast.walk(tree)) - {part for check in checks for part in ast.walk(check)}:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_only_yaml_in_conf():
    files = [path for path in conf_dir().rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml"}
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in files)
