"""No knob without effect: each one changes what comes out of a short run, or is refused in one line."""

from dataclasses import fields
from functools import cache, partial
from hashlib import sha256

import pytest
import torch
from support import tiny  # noqa: F401  one thread
from support.training import fit

from splatexp.config.build import build, make_loader
from splatexp.config.schema import ConfigError
from splatexp.densify import NoDensification, OpacityDecay, OpacityReset, Rule, RuleStrategy, Survey
from splatexp.densify.growth import Growth
from splatexp.densify.noise import Noise
from splatexp.importance import MLP, Logit, Mask
from splatexp.losses.photometric import Loss
from splatexp.losses.regularizers import (
    SH,
    BoundingBox,
    Erank,
    Flatness,
    Opacity,
    OpacityLogit,
    Scale,
    ScaleBounds,
    ScreenSize,
    Transmittance,
)
from splatexp.poses import SE3, Orbit, Rot6d
from splatexp.raster.additive import Additive
from splatexp.raster.backends import CPU
from splatexp.schedules.curve import Curve
from splatexp.schedules.schedule import Dash, Schedule
from splatexp.testing import toy_scene
from splatexp.train.dropout import Dropout
from splatexp.train.optimizer import Adam, WeightDecay
from splatexp.train.recipe import RECIPE
from splatexp.train.smoothing import Smoothing

STEPS = 32
PARTS = {"raster": CPU(), "schedule": Schedule(sh_degree_interval=10), "densify": NoDensification()}


@cache
def scene():
    made = toy_scene.toy_scene(CPU())
    made.background = None  # photographs: what is transparent is not meant to be
    return made


def outcome(steps=STEPS, regularizers=(), **parts):
    """What is saved after some steps, and a held-out view drawn with them, as a digest."""
    splats, parts = toy_scene.toy_splats(toy_scene.EXTENT), PARTS | parts
    penalties = {type(penalty).__name__: penalty for penalty in regularizers}
    fit(splats, scene(), **parts, regularizer=penalties, steps=steps)
    view = scene().test[0]
    with torch.no_grad():
        image = parts["raster"](splats, view.camera, sh_degree=splats.sh_degree).image
    parts = (tensor.detach().numpy().tobytes() for tensor in (*splats.baked().params.values(), image))
    return f"{len(splats)} rows, {sha256(b''.join(parts)).hexdigest()}"


ruled = partial(RuleStrategy, every=4, start=0, stop=0, max_gaussians=200)
draw = Rule("jitter", "error_mean * footprint", "sample", 0.3)
clone = Rule("clone", "opacity", "top", 0.2)
PLACES = {  # class -> what makes the parts of a run out of one
    RuleStrategy: lambda s: {"densify": s},
    Rule: lambda s: {"densify": ruled(only=s, opacity_reset=OpacityReset(every=16))},
    Growth: lambda s: {"densify": ruled(only=clone, growth=s)},
    Survey: lambda s: {"densify": ruled(survey=s, one=draw, two=Rule("jitter", "hits_sum", "sample", 0.2))},
    OpacityReset: lambda s: {"densify": ruled(opacity_reset=s)},
    OpacityDecay: lambda s: {"densify": ruled(opacity_decay=s)},
    Noise: lambda s: {"densify": ruled(noise=s)},
    NoDensification: lambda s: {"densify": s},
    Curve: lambda s: {"schedule": Schedule(means=s)},
    Schedule: lambda s: {"schedule": s, "densify": ruled(only=clone, stop=14, max_births=9)},
    Dash: lambda s: {"schedule": s},
    Adam: lambda s: {"optimizer": s, "raster": CPU(near=4.0)},
    WeightDecay: lambda s: {"optimizer": Adam(weight_decay=s)},
    Loss: lambda s: {"loss": s},
    Dropout: lambda s: {"dropout": s},
    Smoothing: lambda s: {"smoothing": s},
    CPU: lambda s: {"raster": s},
    Additive: lambda s: {"raster": s},
}
PLACES |= dict.fromkeys((Orbit, Rot6d, SE3), lambda s: {"camera": s})
judge = ruled(only=Rule("clone", "importance", "sample", 0.2))
PLACES |= dict.fromkeys((Logit, MLP, Mask), lambda s: {"importance": s, "densify": judge})
PENALTIES = (
    Opacity,
    Scale,
    ScaleBounds,
    BoundingBox,
    ScreenSize,
    SH,
    Erank,
    Flatness,
    Transmittance,
    OpacityLogit,
)
PLACES |= dict.fromkeys(PENALTIES, lambda s: {"regularizers": [s]})

ABOVE = {"operate": "clone", "score": "opacity", "select": "top", "threshold": 0.2}
PRUNE = {"operate": "prune", "score": "opacity", "select": "below", "threshold": 0.5}
SPLIT = ABOVE | {"operate": "split"}
MERGE = {"operate": "merge", "score": "one", "threshold": 0.5}
CURVE = {"kind": "linear", "end": 0.1}
GROW = {"only": clone}
CHANGES = {  # class -> setting -> (what the others are, its values: two, or one beside the default)
    Rule: {
        "operate": (ABOVE, "split"),
        "score": (ABOVE, "size"),
        "select": (ABOVE, "bottom"),
        "threshold": (ABOVE, 0.4),
        "gate": (ABOVE, ["size > 0.01"]),
        "max_rows": (ABOVE, 3),
        "max_fraction": (ABOVE, 0.02),
        "min_remaining": (PRUNE, 60),
        "every": (ABOVE, 8),
        "start": (ABOVE, 10),
        "stop": (ABOVE, 12),
        "reset_cooldown": (ABOVE, 6),
        "after_reset": (ABOVE, 8),
        "min_age": (ABOVE, 6),
        "min_age_end": (ABOVE | {"min_age": 2, "stop": 100}, 99),
        "size_threshold": (ABOVE | {"operate": "clone_or_split"}, 0.1),
        "shrink": (SPLIT, 3.0),
        "opacity": (SPLIT, "revised"),
        "opacity_factor": (SPLIT | {"opacity": "scaled"}, 0.3),
        "offset": (ABOVE | {"operate": "jitter"}, 0.9),
        "max_distance": (MERGE, 0.1),
        "max_log_ratio": (MERGE | {"max_distance": 0.1}, 0.01),
    },
    Growth: {"kind": ({}, "linear"), "fraction": ({"kind": "compound"}, 0.02)},
    Survey: {
        "views": ({}, 2),
        "downscale": ({}, 2),
        "error": ({}, "l2"),
        "hit_threshold": ({}, 0.5),
        "footprint": ({}, "fast"),
        "r_min": ({}, 9.0),
        "r_max": ({}, 2.0),
    },
    OpacityReset: {
        "kind": ({"every": 8}, "recentre"),
        "every": ({}, 8),
        "value": ({"every": 8}, 0.3),
        "floor": ({"every": 8, "value": 0.3}, 0.2),
        "start": ({"every": 8}, 20),
        "stop": ({"every": 8}, 20),
    },
    OpacityDecay: {
        "kind": ({}, "clip"),
        "amount": ({"kind": "subtract"}, 0.1),
        "floor": ({"kind": "subtract", "amount": 0.2}, 0.4),
        "every": ({"kind": "odds"}, 7),
        "start": ({"kind": "odds"}, 20),
        "stop": ({"kind": "odds"}, 20),
    },
    Noise: {
        "lr": ({}, 1e4),
        "sharpness": ({"lr": 1e4}, 3.0),
        "threshold": ({"lr": 1e4}, 0.5),
        "start": ({"lr": 1e4}, 20),
        "stop": ({"lr": 1e4}, 20),
    },
    NoDensification: {"max_gaussians": ({}, 40)},
    RuleStrategy: {
        "max_gaussians": (GROW | {"every": 4, "start": 0}, 90),
        "every": (GROW | {"start": 3}, 4, 8),
        "start": (GROW | {"every": 4}, 3, 20),
        "stop": (GROW | {"every": 4, "start": 0}, 20),
        "max_births": (GROW | {"every": 4, "start": 0}, 2),
        "min_births": ({"only": Rule("clone", "opacity", "above", 0.94), "every": 4, "start": 0}, 5),
        "max_prunes": ({"only": Rule(**PRUNE), "every": 16, "start": 0}, 3),
        "max_merges": ({"only": Rule(**MERGE), "every": 16, "start": 0}, 1),
        "growth": (GROW | {"every": 4, "start": 0, "max_gaussians": 120}, Growth("sqrt")),
        "exact": ({"only": Rule(**PRUNE), "every": 4, "start": 0, "max_gaussians": 80}, True),
        "survey": ({"only": draw, "every": 4, "start": 0}, Survey(views=1)),
        "opacity_reset": ({}, OpacityReset(every=5)),
        "opacity_decay": ({"every": 4, "start": 0}, OpacityDecay("clip")),
        "noise": ({}, Noise(1e4)),
    },
    Curve: {
        "kind": (CURVE, "cosine"),
        "end": (CURVE, 0.5),
        "start": (CURVE, 10),
        "stop": (CURVE, 10),
        "power": ({"kind": "poly", "end": 0.1}, 1.0),
        "milestones": ({"kind": "step"}, [5], [15]),
        "gamma": ({"kind": "step", "milestones": [5]}, 0.5),
        "values": ({"kind": "piecewise", "milestones": [5]}, [0.5], [2.0]),
        "warmup_steps": ({}, 20),
        "warmup_from": ({"warmup_steps": 20}, 0.5),
    },
    Schedule: {
        "sh_degree_start": ({"sh_degree_interval": 5}, 12),
        "sh_degree_interval": ({}, 9),
        "sh_warmup_from": ({"sh_degree_interval": 9}, 0.1),
        "sh_warmup_steps": ({"sh_degree_interval": 9, "sh_warmup_from": 0.1}, 3),
        "downscale_factors": ({"downscale_until": [9]}, [2, 1], [1, 2]),
        "downscale_until": ({"downscale_factors": [2, 1]}, [9], [20]),
        "min_downscale": ({}, 2),
        "means": ({}, Curve(**CURVE)),
        "others": ({}, Curve(**CURVE)),
        "quats": ({}, Curve(**CURVE)),
        "log_scales": ({}, Curve(**CURVE)),
        "opacity_logits": ({}, Curve(**CURVE)),
        "sh0": ({}, Curve(**CURVE)),
        "shN": ({"sh_degree_interval": 0}, Curve(**CURVE)),
        "lr_count_power": ({}, 0.5),
    },
    Dash: {
        "full_resolution_at": ({"full_resolution_at": 20}, 20, 9),
        "max_downscale": ({"full_resolution_at": 20}, 2),
        "min_spectrum_fraction": ({"full_resolution_at": 20, "max_downscale": 4}, 0.9),
    },
    Adam: {
        **{name: ({}, 0.01) for name in ("means", "quats", "log_scales", "opacity_logits", "sh0")},
        "shN": ({}, 0.01),
        "beta1": ({}, 0.5),
        "beta2": ({}, 0.9),
        "eps": ({}, 0.1),
        "sparse": ({}, True),
        "update_every": ({}, [3]),
        "update_until": ({"update_every": [3, 1]}, [6], [20]),
        "shN_update_every": ({}, 4),
        "weight_decay": ({}, WeightDecay(means=1.0)),
    },
    WeightDecay: {
        name: ({}, 1.0) for name in ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
    },
    Loss: {"l1": ({}, 0.3), "ssim": ({}, 0.9), "l2": ({}, 0.5)},
    Dropout: {"p": ({}, 0.3), "start": ({"p": 0.3}, 20), "stop": ({"p": 0.3}, 9)},
    Smoothing: {
        "variance": ({}, 0.2),
        "every": ({"variance": 0.2}, 3),
        "margin": ({"variance": 0.2}, 20.0),
        "near": ({"variance": 0.2}, 4.0),
        "start": ({"variance": 0.2}, 20),
        "stop": ({"variance": 0.2, "every": 3}, 9),
    },
    CPU: {
        "near": ({}, 4.0),
        "far": ({}, 4.0),
        "eps2d": ({}, 1.0),
        "antialiased": ({}, True),
        "tile_size": ({"per_tile_max": 5}, 8),
        "per_tile_max": ({}, 5),
        "max_splats_per_pixel": ({}, 2),
        "cull_radius_px": ({}, 3.0),
        "amp": ({}, "bf16"),
    },
}
CHANGES[Additive] = CHANGES[CPU] | {"gain": ({}, 0.3)}
del CHANGES[Additive]["max_splats_per_pixel"]
LEARNED = {
    "sparsity": ({"start": 0}, 0.1),
    "squared_sparsity": ({"start": 0, "sparsity": 0.1}, True),
    "binary": ({"start": 0}, 0.1),
    "budget": ({"start": 0}, 0.5),
    "budget_weight": ({"start": 0, "budget": 0.5}, 1.0),
    "start": ({"sparsity": 0.1}, 20, 2),
    "ramp": ({"start": 0, "sparsity": 0.1, "binary": 0.0}, 3),
    "bake_at": ({}, 20),
    "ema_decay": ({"lr": 0.5}, 0.0),
}
CHANGES[Logit] = LEARNED | {"init_logit": ({}, 2.0), "lr": ({}, 0.2)}
DOUBT = {"init_logit": 0.5}  # where a mask is 0 or 1
CHANGES[Mask] = {name: (others | DOUBT, *values) for name, (others, *values) in LEARNED.items()}
CHANGES[Mask] |= {"squared_sparsity": ({"sparsity": 0.1} | DOUBT, False)}
CHANGES[Mask] |= {"init_logit": ({}, 2.0), "lr": ({}, 0.2), "temperature": (DOUBT, 0.2)}
CHANGES[MLP] = LEARNED | {"lr": ({}, 0.1), "lr_end": ({}, 0.1), "weight_decay": ({}, 1.0)}
CHANGES[MLP] |= {
    "max_grad_norm": ({"lr": 0.1}, 1e-9),
    "every": ({}, 3),
    "sample_size": ({}, 8),
    "ema_decay": ({"lr": 0.1, "every": 2}, 0.0),
}
PENALTY = {"weight": ({"start": 0}, 0.5), "anneal": ({"start": 0}, Curve(**CURVE))}
PENALTY |= {"start": ({}, 2, 20), "stop": ({"start": 0}, 9)}
CHANGES |= dict.fromkeys(PENALTIES, PENALTY)
CHANGES[Opacity] = PENALTY | {"power": ({"start": 0}, 2.0), "target": ({"start": 0}, 0.8)}
NEAR = {"start": 0, "weight": 0.5, "half_size": 0.1}
CHANGES[BoundingBox] = {name: (others | NEAR, *values) for name, (others, *values) in PENALTY.items()}
CHANGES[BoundingBox] |= {"start": (NEAR, 2, 20), "weight": (NEAR, 0.9), "half_size": (NEAR, 0.05)}
CHANGES[BoundingBox] |= {"center": (NEAR, [9.0, 0.0, 0.0])}
TIGHT = {"start": 0, "weight": 0.5, "low": 0.2, "high": 0.3}
CHANGES[ScaleBounds] = {name: (others | TIGHT, *values) for name, (others, *values) in PENALTY.items()}
CHANGES[ScaleBounds] |= {"start": (TIGHT, 2, 20), "weight": (TIGHT, 0.9)}
CHANGES[ScaleBounds] |= {"low": (TIGHT, 0.1), "high": (TIGHT | {"low": 1e-3, "high": 2e-3}, 4e-3)}
POSED = {"start": 0, "focal_lr": 0.01}
CHANGES[Orbit] = {
    "lr": (POSED, 0.01),
    "focal_lr": ({"start": 0}, 0.05),
    "max_focal_factor": (POSED, 1.001),
    "dolly": (POSED, False),
    "anneal": (POSED, Curve(**CURVE)),
    "start": ({}, 2, 20),
    "stop": (POSED, 9),
    "beta1": (POSED, 0.5),
    "beta2": (POSED, 0.9),
    "gauge": (POSED, "first"),
    "prior": (POSED | {"gauge": "prior"}, 9.0),
    "focal_prior": (POSED, 9.0),
}
CHANGES[SE3] = CHANGES[Orbit]
CHANGES[Rot6d] = CHANGES[Orbit] | {"gauge": (POSED, "prior")}
CHANGES[Orbit] = CHANGES[Orbit] | {"max_angle": (POSED, 0.01)}
CHANGES[ScreenSize] = PENALTY | {"max_radius": ({"start": 0}, 2.0)}
SOON = {"start": 0, "every": 3}
CHANGES[OpacityLogit] = {
    "weight": (SOON, 0.5),
    "anneal": (SOON, Curve(**CURVE)),
    "start": ({"every": 3, "stop": 0}, 2, 20),
    "stop": (SOON, 9),
    "target": (SOON, 5.0),
    "every": ({"start": 0}, 3),
}
KNOBS = [(cls, name) for cls, changes in CHANGES.items() for name in changes]
_known: dict[str, str] = {}


def made(cls, settings):
    """The outcome with an instance of a class in its place, kept."""
    key = f"{cls.__name__} {settings}"
    if key not in _known:
        _known[key] = outcome(**PLACES[cls](cls(**settings)))
    return _known[key]


@pytest.mark.parametrize(("cls", "name"), KNOBS, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_has_an_effect(cls, name):
    others, *values = CHANGES[cls][name]
    one = others | ({name: values[0]} if len(values) > 1 else {})
    assert made(cls, one) != made(cls, others | {name: values[-1]})


def test_no_setting_is_left_out():
    for cls, changes in CHANGES.items():
        names = {field.name for field in fields(cls)}
        names -= {field.name for field in fields(Schedule)} if cls is Dash else set()
        names -= {"max_splats_per_pixel"} if cls is Additive else set()  # refused
        assert set(changes) == names, cls.__name__


QUICK = ["preset=[]", f"steps={STEPS}", "raster=cpu"]
OFTEN = ["densify.every=4", "densify.start=0", "densify.stop=0"]
BUDGETED = [
    *QUICK,
    "densify=budgeted",
    "densify.survey.views=3",
    *OFTEN,
    "densify.max_births=12",
    "densify.max_gaussians=130",
]
BUDGETED += [
    "densify.opacity_reset.every=8",
    "densify.opacity_reset.stop=20",
    "densify.growth.kind=none",
    "densify.exact=false",
]
BUDGETED += [
    f"densify.{name}.{key}=0"
    for name in ("prune_low_opacity", "prune_small_footprint")
    for key in ("min_age", "reset_cooldown")
]
BUDGETED += ["densify.merge.every=4", "densify.merge.max_distance=0.02", "densify.merge.max_log_ratio=0.5"]
BUDGETED += [
    "densify.prune_low_opacity.threshold=0.3",
    "densify.prune_small_footprint.threshold=5",
    "densify.prune_small_footprint.gate=['peak_max < 0.1', 'surveyed > 0']",
]
ADC = [*QUICK, "densify=adc", *OFTEN, "densify.max_gaussians=150"]
IDLE = [*ADC, "densify.grow.threshold=1"]
TILES = [*QUICK, "densify=none", "raster.per_tile_max=9"]
RAMP = [*QUICK, "densify=none", "schedule.sh_degree_interval=9"]
PAID = [*QUICK, "densify=none", "regularizer=[opacity,scale,screen_size,sh]"]
PARAMETERS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
WORDS = [  # of document 000, section 8: what a run is told, and what it is told besides
    *((BUDGETED, f"densify.{word}") for word in (
        "survey.r_min=9", "survey.r_max=2", "survey.footprint=fast", "survey.downscale=1", "survey.error=l2",
        "survey.views=2", "max_births=2", "max_prunes=1", "max_merges=1", "every=8", "split.every=8",
        "prune_low_opacity.threshold=0.1", "prune_low_opacity.every=8", "prune_low_opacity.min_age=9",
        "prune_low_opacity.reset_cooldown=9", "prune_small_footprint.every=8", "merge.every=8",
        "prune_small_footprint.threshold=2", "prune_small_footprint.gate=['peak_max < 0.2']",
        "prune_small_footprint.min_age=9", "merge.max_distance=0.001", "merge.max_log_ratio=0.01",
        "max_gaussians=80", "growth.kind=compound", "opacity_reset.every=12", "opacity_reset.value=0.2",
        "opacity_reset.floor=0.1", "opacity_reset.kind=clamp", "opacity_reset.start=9", "opacity_reset.stop=9",
        "split.shrink=3", "split.offset=0.5", "split.score=error_near*footprint", "split.operate=split",
        "start=9", "stop=20",
    )),
    (BUDGETED, "seed=1"),
    (IDLE, "densify.exact=true"),
    (ADC, "densify.grow.threshold=0.01"),
    (ADC, "densify.grow.opacity=revised"),
    (IDLE, "densify.min_births=5"),
    *((TILES, f"raster.{word}") for word in (
        "tile_size=8", "per_tile_max=4", "cull_radius_px=3", "max_splats_per_pixel=2", "near=4", "far=4",
        "antialiased=true", "eps2d=1", "amp=bf16", "amp=fp16",
    )),
    *((RAMP, f"schedule.{word}") for word in (
        "sh_degree_interval=5", "sh_degree_start=9", "sh_warmup_from=0.1", "means.kind=cosine",
        "means.end=0.5", "others.warmup_steps=9",
    )),
    (RAMP, "schedule.shN={kind: linear, end: 0.1}"),
    (RAMP, "schedule.opacity_logits={kind: step, milestones: [9]}"),
    (RAMP, "schedule={downscale_factors: [2, 1], downscale_until: [9]}"),
    (ADC, "schedule.lr_count_power=0.5"),
    *((RAMP, f"optimizer.{name}=0.02") for name in PARAMETERS),
    *((RAMP, f"optimizer.weight_decay.{name}=1") for name in ("means", "log_scales", "shN", "opacity_logits")),
    (RAMP, "loss.l1=0.5"),
    (RAMP, "loss.ssim=0.5"),
    (RAMP, "loss.l2=0.5"),
    (RAMP, "batch=2"),
    (RAMP, "raster=additive"),
    (RAMP, "camera=orbit"),
    *((PAID, f"regularizer.{name}.weight=0.3") for name in ("opacity", "scale", "screen_size", "sh")),
    (PAID, "regularizer.opacity.anneal={kind: linear, end: 0}"),
    (PAID, "regularizer.opacity.power=2"),
    (PAID, "regularizer.screen_size.max_radius=3"),
    (PAID, "regularizer.sh.start=9"),
]  # fmt: skip


composer = cache(make_loader)


@cache
def said(*words):
    """The outcome of what a command line says."""
    run = build(composer().compose_job("config", words))
    parts = {
        name: getattr(run, name) for name in RECIPE if name not in ("steps", "data", "model", "regularizer")
    }
    return outcome(run.steps, run.regularizer.values(), **parts)


def tiers():
    """The first two words of each base are quick: what they set is shown for every class above."""
    seen = []
    for words, word in WORDS:
        seen.append(id(words))
        yield pytest.param(words, word, marks=() if seen.count(id(words)) <= 2 else pytest.mark.slow)


@pytest.mark.parametrize(
    ("words", "word"), list(tiers()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_every_knob_of_the_command_line_has_an_effect(words, word):
    assert said(*words) != said(*words, word)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("densify.survey.r_min=-1", "densify.survey.r_min: expected at least 0, got -1"),
        ("densify.survey={r_min: 5, r_max: 2}", "densify.survey.r_max: expected 0 or at least survey.r_min=5"),
        ("densify.max_births=-1", "densify.max_births: expected at least 0"),
        ("densify.max_prunes=-1", "densify.max_prunes: expected at least 0"),
        ("densify.max_merges=-1", "densify.max_merges: expected at least 0"),
        ("densify.split.every=-1", "densify.split.every: expected at least 0"),
        ("densify.max_gaussians=-1", "densify.max_gaussians: expected at least 0"),
        ("densify={min_births: 9, max_births: 3}", "densify.min_births: expected at most densify.max_births=3"),
        ("densify={exact: true, max_gaussians: 0}", "densify.max_gaussians: expected a cap above 0 with"),
        (
            "densify.prune_low_opacity.shrink=2",
            "densify.prune_low_opacity.shrink: expected it unset with operate=prune",
        ),
        (
            "densify.split.max_distance=2",
            "densify.split.max_distance: expected it unset with operate=jitter",
        ),
        ("densify.opacity_reset.floor=2", "densify.opacity_reset.floor: expected"),
        ("raster.tile_size=12", "raster.tile_size: expected 8, 16 or 32, got 12"),
        ("raster.per_tile_max=-1", "raster.per_tile_max: expected at least 0"),
        ("raster.max_splats_per_pixel=-1", "raster.max_splats_per_pixel: expected at least 0"),
        ("raster.cull_radius_px=-1", "raster.cull_radius_px: expected at least 0"),
        ("raster.amp=fp8", "raster.amp: expected one of none, bf16, fp16, got 'fp8'"),
        ("raster.near=-1", "raster.near, raster.far: expected 0 <= near < far"),
        ("schedule.sh_degree_interval=-1", "schedule.sh_degree_interval: expected at least 0"),
        ("schedule.means.end=-1", "schedule.means.end: expected at least"),
        ("optimizer.weight_decay.sh0=-1", "optimizer.weight_decay.sh0: expected at least 0"),
        ("loss={l1: 0, ssim: 0}", "loss.l1, loss.ssim, loss.l2: expected at least one above 0"),
        ("regularizer.opacity.weight=-1", "regularizer.opacity.weight: expected at least 0"),
    ],
)  # fmt: skip
def test_what_a_knob_cannot_be_is_refused(word, line):
    with pytest.raises(ConfigError) as caught:
        build(composer().compose_job("config", [*BUDGETED, "regularizer=[opacity]", word]))
    assert line in str(caught.value) and "\n" not in str(caught.value)
