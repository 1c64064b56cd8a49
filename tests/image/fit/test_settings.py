"""No knob of pictures without effect: each changes what comes out of a short run, or is refused."""

from dataclasses import fields
from functools import cache
from hashlib import sha256

import pytest
import torch
from support import (
    image_cases,
    tiny,  # noqa: F401  one thread
)
from support.training import fit

from splatexp.config.build import build, compose
from splatexp.data.single_image import SingleImage
from splatexp.densify import NoDensification, Rule, RuleStrategy
from splatexp.densify.opacity_policy import OpacityReset
from splatexp.image.fit.model import ImageModel
from splatexp.image.fit.optimizer import ImageAdam, ImageSchedule
from splatexp.losses.photometric import Loss
from splatexp.raster.image import ImageRaster
from splatexp.schedules.curve import Curve

STEPS = 16
PARTS = {
    "data": SingleImage(path="drawn.png"),
    "model": ImageModel(count=30),
    "raster": ImageRaster(backend="cpu"),
    "optimizer": ImageAdam(),
}
PARTS |= {"schedule": ImageSchedule(), "loss": Loss(l1=0, ssim=0, l2=1), "densify": NoDensification()}
scene = cache(image_cases.scene)


def outcome(**parts):
    """All rows after some steps, as a digest."""
    parts = PARTS | parts
    rows = parts["raster"].with_required_params(parts["model"](scene()))
    fit(rows, scene(), **parts, steps=STEPS)
    values = b"".join(row.detach().numpy().tobytes() for row in rows.params.values())
    return f"{len(rows)} rows, {sha256(values).hexdigest()}"


def births(**settings):
    rule = Rule(**{"operate": "birth", "score": "error", "select": "sample", "threshold": 0.01} | settings)
    return RuleStrategy(
        every=4, start=0, stop=0, max_gaussians=60, opacity_reset=OpacityReset(every=0), births=rule
    )


GRADIENT = {"init": "gradient", "count": 30}
CURVE = Curve("linear", end=0.1)
ALPHA = {"raster": ImageRaster(mode="alpha", backend="cpu")}
PLACES = {
    ImageModel: lambda s: {"model": s},
    ImageRaster: lambda s: {"raster": s},
    ImageAdam: lambda s: {"optimizer": s},
    ImageSchedule: lambda s: {"schedule": s, "densify": births()},
}
CHANGES = {  # class -> setting -> (what the others are, values: two, or one beside the default)
    ImageModel: {
        "init": ({"count": 30}, "gradient", "random"),
        "count": (GRADIENT, 31),
        "covariance": (GRADIENT, "direct"),
        "uniform_fraction": (GRADIENT, 0.9),
        "density_power": (GRADIENT, 0.3),
        "density_blur": (GRADIENT, 3.0),
        "size_factor": (GRADIENT, 0.9),
        "solve_steps": (GRADIENT, 5),
    },
    ImageRaster: {
        "mode": ({"backend": "cpu"}, "normalized"),
        "top_k": ({"backend": "cpu"}, 2),
        "amp": ({"backend": "cpu"}, "bf16"),
        "backend": ({}, "cpu", "reference"),
    },
    ImageAdam: {
        "means": ({}, 0.1),
        "shapes": ({}, 0.01),
        "colors": ({}, 0.1),
        "opacity_logits": (ALPHA, 0.01),
        "relative_to_size": ({}, False),
        "beta1": ({}, 0.5),
        "beta2": ({}, 0.9),
        "eps": ({}, 0.1),
        "update_every": ({}, [3]),
        "update_until": ({"update_every": [3, 1]}, [6], [10]),
    },
    ImageSchedule: {
        "downscale_factors": ({"downscale_until": [9]}, [2, 1], [1, 2]),
        "downscale_until": ({"downscale_factors": [2, 1]}, [9], [12]),
        "min_downscale": ({}, 2),
        "means": ({}, CURVE),
        "others": ({}, CURVE),
        "shapes": ({}, CURVE),
        "colors": ({}, CURVE),
        "opacity_logits": (ALPHA, CURVE),
        "lr_count_power": ({}, 0.5),
    },
}
ELSEWHERE = {  # settings that other tests look at, or that do their work where this run has none
    ImageModel: {"init_path"},  # of the network's checkpoint: test_image_initial.py
    ImageRaster: {"tile_size"},  # the same picture at another pace: below
    ImageAdam: {"refine", "sparse"},  # test_image_refine.py; below
    ImageSchedule: set(),
}


def test_no_setting_is_left_out():
    for cls, changes in CHANGES.items():
        assert set(changes) == {field.name for field in fields(cls)} - ELSEWHERE[cls], cls.__name__


KNOBS = [(cls, name) for cls, changes in CHANGES.items() for name in changes]


@pytest.mark.parametrize(("cls", "name"), KNOBS, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_has_an_effect(cls, name):
    others, *values = CHANGES[cls][name]
    besides = others if others is ALPHA else {}
    others = {} if others is ALPHA else others
    one = others | ({name: values[0]} if len(values) > 1 else {})
    two = others | {name: values[-1]}
    assert outcome(**PLACES[cls](cls(**one)), **besides) != outcome(**PLACES[cls](cls(**two)), **besides)


def test_tiles_of_any_size_draw_the_same():
    rows, camera = image_cases.rows(), scene().train[0].camera
    images = [ImageRaster(tile_size=size, backend="cpu")(rows, camera).image for size in (8, 16, 32)]
    assert all(torch.allclose(image, images[0], atol=1e-5) for image in images)


def test_what_nobody_sees_rests_where_updates_are_sparse():
    for sparse in (False, True):
        rows = image_cases.rows()
        with torch.no_grad():
            rows.means[3] = 500.0
        rows.exp_avg["means"].fill_(1.0)
        image = ImageRaster(backend="cpu")(rows, scene().train[0].camera)
        image.image.square().sum().backward()
        rates = dict.fromkeys((*rows.params, "opacity_logits"), 1.0)
        ImageAdam(sparse=sparse).step(rows, 0, lr_factors=rates, visible=image.visible, backend="cpu")
        assert (float(rows.means[3, 0].detach()) == 500.0) == sparse


@pytest.mark.parametrize(
    ("name", "value"),
    [("score", "one"), ("select", "top"), ("threshold", 0.005), ("shrink", 6.0), ("max_rows", 2)],
)
def test_every_setting_of_births_has_an_effect(name, value):
    assert outcome(densify=births()) != outcome(densify=births(**{name: value}))


@pytest.mark.parametrize("words", [["preset=image"], ["preset=image_codec", "rate.bpp=0.2"]])
@pytest.mark.parametrize("steps", [100, 2000])
def test_rates_fall_within_the_run(words, steps, tmp_path):
    image_cases.save(tmp_path / "a.png")
    run = build(compose([*words, f"data.path={tmp_path / 'a.png'}", f"steps={steps}"]))
    first, last = (run.schedule.lr_factors(step, steps, 10, 10, 0) for step in (0, steps - 1))
    assert all(last[name] < 0.1 * first[name] for name in ("means", "shapes", "colors"))
