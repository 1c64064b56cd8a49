"""Runs of a picture: what goes together, and what a picture has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from splatexp.data.single_image import Image
from splatexp.image.fit.model import PlaneModel
from splatexp.image.fit.optimizer import PlaneAdam, PlanePace
from splatexp.raster.plane import Plane
from splatexp.train.rate import NONE

if TYPE_CHECKING:
    from splatexp.run.run import Run

KINDS = {"data": Image, "model": PlaneModel, "raster": Plane, "optimizer": PlaneAdam, "schedule": PlanePace}
NAMES = {"data": "image", "model": "plane", "raster": "plane", "optimizer": "plane", "schedule": "plane"}
OPERATORS = ("birth", "prune")
# scores that need neither a scene nor opacities
WORDS = {"one", "age", "generation", "random", "views", "surveyed", "removal", "removal_loss", "weight"}
WORDS |= {f"{base}{how}" for base in ("error", "edge") for how in ("", "_mean", "_sum")}


def is_picture(run: Run) -> bool:
    """Whether a run is of a picture.

    Raises: ValueError, one line, for parts of one that are put together with parts of a scene, and for
    settings of what a picture, or a scene, has not.
    """
    given = {name for name, kind in KINDS.items() if isinstance(getattr(run, name), kind)}
    if given and (lacks := sorted(set(KINDS) - given)):
        one, other = sorted(given)[0], lacks[0]
        raise ValueError(
            f"{other}: expected {NAMES[other]} with {one}={NAMES[one]}, got another; preset=image has all "
            "that goes together"
        )
    (_check if given else _check_scene)(run)
    return bool(given)


def _check(run: Run) -> None:
    """Hold the settings of a picture's run against what a picture has."""
    for name, wrong, rest in (
        ("camera", run.camera.learns, "fixed, for a picture has none"),
        ("importance", run.importance.learns, "none"),
        ("dropout.rate", run.dropout.rate, "0"),
        ("smoothing.amount", run.smoothing.amount, "0"),
        ("batch", run.batch > 1, "1, for a picture is one view"),
        ("viewer.on", run.viewer.on, "false"),
        ("evaluate.turntable", run.evaluate.turntable, "false"),
        ("evaluate.align", run.evaluate.align, "false"),
        ("checkpoint.cut_sh", run.checkpoint.cut_sh, "false"),
    ):
        if wrong:
            raise ValueError(f"{name}: expected {rest} with data=image, got another")
    for name, penalty in run.regularizer.items():
        if not getattr(penalty, "of_pictures", False):
            raise ValueError(f"regularizer: expected none that is of scenes with data=image, got {name}")
    if 0 < run.densify.max_gaussians < run.model.count:  # type: ignore[attr-defined]
        got = f"got {run.model.count}"  # type: ignore[attr-defined]
        raise ValueError(
            f"model.count: expected at most densify.max_gaussians={run.densify.max_gaussians}, {got}"
        )
    _check_rules(run)


def _check_scene(run: Run) -> None:
    """Hold the settings of a scene's run against what pictures alone have."""
    for name, rule in getattr(run.densify, "rules", {}).items():
        if rule.operate == "birth":
            raise ValueError(f"densify.{name}.operate: expected birth with data=image alone, got it without")
    if type(run.rate) is not NONE:
        raise ValueError("rate: expected none but with data=image, got another")
    for name, penalty in run.regularizer.items():
        if getattr(penalty, "of_pictures", False):
            raise ValueError(f"regularizer: expected {name} with data=image alone, got it without")


def _check_rules(run: Run) -> None:
    """Hold density control against it."""
    densify = run.densify
    rules = getattr(densify, "rules", {})
    for name, rule in rules.items():
        if rule.operate not in OPERATORS:
            words = " or ".join(OPERATORS)
            raise ValueError(f"densify.{name}.operate: expected {words} with data=image, got {rule.operate}")
        if unknown := sorted(rule.words - WORDS):
            raise ValueError(f"densify.{name}: expected scores that pictures have, got {unknown[0]}")
    if not rules:
        return
    if densify.exact:
        raise ValueError("densify.exact: expected false with data=image, got true")
    for name, wrong in (
        ("reset.every", densify.reset.every),
        ("fade.kind", densify.fade.kind != "none"),
        ("noise.rate", densify.noise.rate),
    ):
        if wrong:
            raise ValueError(
                f"densify.{name}: expected none with data=image, which has no opacities, got one"
            )
