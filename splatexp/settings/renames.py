"""Names that have changed since version 0.1: old runs are read by it, and old words are answered by it.

Every table maps old -> new. A row stays for good: runs of that version have to open.

    TARGETS   classes, as `_target_` in a saved config names them
    OPTIONS   options of a group
    KEYS      settings; `*` stands for one part of a dotted key, and the new key has the same parent
    ALIASES   settings whose old name is still accepted
    VALUES    words that a setting takes
    METRICS   columns of metrics.csv and keys of metrics.json
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = {
    "splatexp.checkpoint.Checkpoint": "splatexp.run.checkpoint.Checkpoint",
    "splatexp.data.builtin.Builtin": "splatexp.data.builtin.dataset.Builtin",
    "splatexp.data.colmap.Colmap": "splatexp.data.colmap.Colmap",
    "splatexp.data.image.Image": "splatexp.data.single_image.SingleImage",
    "splatexp.data.perturb.Perturb": "splatexp.data.perturb.Perturb",
    "splatexp.data.photos.Photos": "splatexp.data.photos.Photos",
    "splatexp.data.transforms.Transforms": "splatexp.data.transforms.Transforms",
    "splatexp.densify.growth.Growth": "splatexp.densify.growth.Growth",
    "splatexp.densify.noise.Noise": "splatexp.densify.noise.Noise",
    "splatexp.densify.policy.Fade": "splatexp.densify.opacity_policy.Fade",
    "splatexp.densify.policy.Reset": "splatexp.densify.opacity_policy.Reset",
    "splatexp.densify.rules.Rule": "splatexp.densify.rules.Rule",
    "splatexp.densify.strategy.Fixed": "splatexp.densify.strategy.Fixed",
    "splatexp.densify.strategy.Ruled": "splatexp.densify.strategy.Ruled",
    "splatexp.densify.survey.Survey": "splatexp.densify.survey.Survey",
    "splatexp.dropout.Dropout": "splatexp.train.dropout.Dropout",
    "splatexp.evaluate.Evaluate": "splatexp.evaluation.evaluate.Evaluate",
    "splatexp.image.edge.Edge": "splatexp.image.fit.edge.Edge",
    "splatexp.image.levels.Sequential": "splatexp.image.fit.baselines.sequential_layers.Sequential",
    "splatexp.image.model.PlaneModel": "splatexp.image.fit.model.PlaneModel",
    "splatexp.image.optimizer.PlaneAdam": "splatexp.image.fit.optimizer.PlaneAdam",
    "splatexp.image.optimizer.PlanePace": "splatexp.image.fit.optimizer.PlanePace",
    "splatexp.image.rate.Scalar": "splatexp.image.fit.rate.Scalar",
    "splatexp.image.refine.Refine": "splatexp.image.fit.refine.Refine",
    "splatexp.image.vq.Vector": "splatexp.image.fit.baselines.vector_quantization.Vector",
    "splatexp.importance.learned.NONE": "splatexp.importance.learned.NONE",
    "splatexp.importance.logit.Logit": "splatexp.importance.logit.Logit",
    "splatexp.importance.mask.Mask": "splatexp.importance.mask.Mask",
    "splatexp.importance.mlp.MLP": "splatexp.importance.mlp.MLP",
    "splatexp.losses.Loss": "splatexp.losses.photometric.Loss",
    "splatexp.memory.Memory": "splatexp.system.memory.Memory",
    "splatexp.model.Model": "splatexp.train.initialization.Model",
    "splatexp.optimizer.Adam": "splatexp.train.optimizer.Adam",
    "splatexp.optimizer.Decay": "splatexp.train.optimizer.WeightDecay",
    "splatexp.poses.kinds.Fixed": "splatexp.poses.parametrizations.Fixed",
    "splatexp.poses.kinds.Orbit": "splatexp.poses.parametrizations.Orbit",
    "splatexp.poses.kinds.Rot6d": "splatexp.poses.parametrizations.Rot6d",
    "splatexp.poses.kinds.SE3": "splatexp.poses.parametrizations.SE3",
    "splatexp.raster.Auto": "splatexp.raster.backends.Auto",
    "splatexp.raster.CPU": "splatexp.raster.backends.CPU",
    "splatexp.raster.Reference": "splatexp.raster.backends.Reference",
    "splatexp.raster.Triton": "splatexp.raster.backends.Triton",
    "splatexp.raster.additive.Additive": "splatexp.raster.additive.Additive",
    "splatexp.raster.gsplat.Gsplat": "splatexp.raster.gsplat.Gsplat",
    "splatexp.raster.plane.Plane": "splatexp.raster.plane.Plane",
    "splatexp.rate.NONE": "splatexp.train.rate.NONE",
    "splatexp.regularizers.Erank": "splatexp.losses.regularizers.Erank",
    "splatexp.regularizers.Logit": "splatexp.losses.regularizers.OpacityLogit",
    "splatexp.regularizers.Opacity": "splatexp.losses.regularizers.Opacity",
    "splatexp.regularizers.SH": "splatexp.losses.regularizers.SH",
    "splatexp.regularizers.Scale": "splatexp.losses.regularizers.Scale",
    "splatexp.regularizers.ScaleBounds": "splatexp.losses.regularizers.ScaleBounds",
    "splatexp.regularizers.ScreenScale": "splatexp.losses.regularizers.ScreenSize",
    "splatexp.regularizers.Spatial": "splatexp.losses.regularizers.BoundingBox",
    "splatexp.regularizers.Thin": "splatexp.losses.regularizers.Flatness",
    "splatexp.regularizers.Transmittance": "splatexp.losses.regularizers.Transmittance",
    "splatexp.run.Run": "splatexp.run.run.Run",
    "splatexp.schedules.Curve": "splatexp.schedules.curve.Curve",
    "splatexp.schedules.Dash": "splatexp.schedules.schedule.Dash",
    "splatexp.schedules.Schedule": "splatexp.schedules.schedule.Schedule",
    "splatexp.smoothing.Smoothing": "splatexp.train.smoothing.Smoothing",
    "splatexp.tracking.console.Console": "splatexp.tracking.console.Console",
    "splatexp.tracking.csv_table.Csv": "splatexp.tracking.csv_table.Csv",
    "splatexp.tracking.events.TensorBoard": "splatexp.tracking.tensorboard.TensorBoard",
    "splatexp.tracking.weights.WandB": "splatexp.tracking.wandb.WandB",
    "splatexp.viewer.settings.Viewer": "splatexp.viewer.settings.ViewerSettings",
}
OPTIONS: dict[str, dict[str, str]] = {
    "regularizer": {
        "scalebounds": "scale_bounds",
        "spatial": "bounding_box",
        "screenscale": "screen_size",
        "thin": "flatness",
        "logit": "opacity_logit",
    },
    "model": {"plane": "image"},
    "raster": {"plane": "image"},
    "optimizer": {"plane": "image"},
    "schedule": {"plane": "image"},
    "densify": {
        "error_no_tag": "ablation/error_no_tag",
        "error_tag_300": "ablation/error_tag_300",
        "error_tag_300_25k": "ablation/error_tag_300_25k",
        "error_tag_grad": "ablation/error_tag_grad",
        "error_tag_grad_01": "error_tag",
        "error_tag_grad_03": "ablation/error_tag_grad_03",
        "gsplat": "adc",
    },
}
KEYS: dict[str, str] = {
    "camera.rate": "camera.lr",
    "camera.focal_rate": "camera.focal_lr",
    "camera.focal_max": "camera.max_focal_factor",
    "camera.turn_max": "camera.max_angle",
    "camera.anneal.drop": "camera.anneal.gamma",
    "camera.anneal.warmup": "camera.anneal.warmup_steps",
    "dropout.rate": "dropout.p",
    "smoothing.amount": "smoothing.variance",
    "optimizer.sh_every": "optimizer.shN_update_every",
    "optimizer.decay": "optimizer.weight_decay",
    "schedule.factors": "schedule.downscale_factors",
    "schedule.until": "schedule.downscale_until",
    "schedule.least_factor": "schedule.min_downscale",
    "schedule.sh_start": "schedule.sh_degree_start",
    "schedule.sh_every": "schedule.sh_degree_interval",
    "schedule.sh_drop": "schedule.sh_warmup_from",
    "schedule.sh_drop_steps": "schedule.sh_warmup_steps",
    "schedule.count_power": "schedule.lr_count_power",
    "schedule.reduce_until": "schedule.full_resolution_at",
    "schedule.reduce_max": "schedule.max_downscale",
    "schedule.reduce_share": "schedule.min_spectrum_fraction",
    "schedule.*.drop": "schedule.*.gamma",
    "schedule.*.warmup": "schedule.*.warmup_steps",
    "regularizer.scalebounds": "regularizer.scale_bounds",
    "regularizer.spatial": "regularizer.bounding_box",
    "regularizer.spatial.radius": "regularizer.bounding_box.half_size",
    "regularizer.screenscale": "regularizer.screen_size",
    "regularizer.screenscale.r_max": "regularizer.screen_size.max_radius",
    "regularizer.thin": "regularizer.flatness",
    "regularizer.logit": "regularizer.opacity_logit",
    "regularizer.*.anneal.drop": "regularizer.*.anneal.gamma",
    "regularizer.*.anneal.warmup": "regularizer.*.anneal.warmup_steps",
    "raster.prefilter": "raster.antialiased",
    "data.cutout": "data.masks_as_alpha",
    "data.spread": "data.yaw_range",
    "data.test": "data.test_names",
    "data.truth": "data.true_cameras",
    "data.side_max": "data.max_side",
}
ALIASES: dict[str, str] = {}  # also document 000's own names
VALUES: dict[str, dict[str, str]] = {}  # key pattern -> old word -> new word; keys by their new names
METRICS: dict[str, str] = {}


def new_key(key: str, tables: tuple[Mapping[str, str], ...] = (KEYS, ALIASES)) -> str | None:
    """Return what a dotted key is called now, or None where no part of it has changed its name."""
    old: list[str] = []
    new: list[str] = []
    for part in key.split("."):
        old.append(part)
        new.append(next((name for table in tables if (name := _lookup(old, table))), part))
    return None if new == old else ".".join(new)


def new_option(group: str, name: str) -> str | None:
    """Return what an option of a group is called now, or None where its name has not changed."""
    return OPTIONS.get(group, {}).get(name)


def new_value(key: str, value: Any) -> Any:
    """Return what a value of the setting `key`, by its new name, is called now."""
    parts = key.split(".")
    for pattern, words in VALUES.items():
        if _matches(parts, pattern.split(".")) and isinstance(value, str):
            return words.get(value, value)
    return value


def new_metric(name: str) -> str:
    """Return what a metric or a column of metrics.csv is called now."""
    return METRICS.get(name, name)


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved config of a run, resolved and with `_target_`s, with all names as they are now."""
    return _migrate(config, (), ())


def _migrate(config: Mapping[str, Any], old: tuple[str, ...], new: tuple[str, ...]) -> dict[str, Any]:
    own = str(config.get("_target_", "splatexp.")).startswith("splatexp.")  # else its keys are not ours
    migrated: dict[str, Any] = {}
    for key, value in config.items():
        path = (*old, str(key))
        name = str(key)
        for table in (KEYS, ALIASES) if own else ():
            name = _lookup(path, table) or name
        place = (*new, name)
        if key == "_target_":
            value = TARGETS.get(value, value)
        elif isinstance(value, Mapping):
            value = _migrate(value, path, place)
        elif isinstance(value, list):
            value = [_migrate(each, path, place) if isinstance(each, Mapping) else each for each in value]
        else:
            value = new_value(".".join(place), value)
        migrated[name] = value
    return migrated


def _lookup(path: list[str] | tuple[str, ...], table: Mapping[str, str]) -> str | None:
    """Return the new last part of a path by a table like KEYS; a row without `*` comes first."""
    exact = table.get(".".join(path))
    if exact is None:
        exact = next((new for old, new in table.items() if _matches(path, old.split("."))), None)
    return exact and exact.rpartition(".")[2]


def _matches(path: list[str] | tuple[str, ...], pattern: list[str]) -> bool:
    return len(path) == len(pattern) and all(
        wanted in ("*", part) for part, wanted in zip(path, pattern, strict=True)
    )
