"""Names that have changed since version 0.1: old runs are read by it, and old words are answered by it.

Every table maps old -> new. A row stays for good: runs of that version have to open.

    TARGETS   classes, as `_target_` in a saved config names them
    OPTIONS   options of a group
    KEYS      settings; `*` stands for one part of a dotted key, and the new key has the same parent
    ALIASES   settings whose old name is still accepted
    VALUES    words that a setting takes
    METRICS   keys of metrics.json, which are what `objective` names
    COLUMNS   columns of metrics.csv; `*` stands for a part of a name
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = {
    "splatexp.checkpoint.Checkpoint": "splatexp.run.checkpoint.CheckpointSettings",
    "splatexp.data.builtin.Builtin": "splatexp.data.builtin.dataset.Builtin",
    "splatexp.data.colmap.Colmap": "splatexp.data.colmap.Colmap",
    "splatexp.data.image.Image": "splatexp.data.single_image.SingleImage",
    "splatexp.data.perturb.Perturb": "splatexp.data.perturb.Perturb",
    "splatexp.data.photos.Photos": "splatexp.data.photos.Photos",
    "splatexp.data.transforms.Transforms": "splatexp.data.transforms.Transforms",
    "splatexp.densify.growth.Growth": "splatexp.densify.growth.Growth",
    "splatexp.densify.noise.Noise": "splatexp.densify.noise.Noise",
    "splatexp.densify.policy.Fade": "splatexp.densify.opacity_policy.OpacityDecay",
    "splatexp.densify.policy.Reset": "splatexp.densify.opacity_policy.OpacityReset",
    "splatexp.densify.rules.Rule": "splatexp.densify.rules.Rule",
    "splatexp.densify.strategy.Fixed": "splatexp.densify.strategy.NoDensification",
    "splatexp.densify.strategy.Ruled": "splatexp.densify.strategy.RuleStrategy",
    "splatexp.densify.survey.Survey": "splatexp.densify.survey.Survey",
    "splatexp.dropout.Dropout": "splatexp.train.dropout.Dropout",
    "splatexp.evaluate.Evaluate": "splatexp.evaluation.evaluate.EvaluationSettings",
    "splatexp.image.edge.Edge": "splatexp.image.fit.edge.Edge",
    "splatexp.image.levels.Sequential": "splatexp.image.fit.baselines.sequential_layers.SequentialLayers",
    "splatexp.image.model.PlaneModel": "splatexp.image.fit.model.ImageModel",
    "splatexp.image.optimizer.PlaneAdam": "splatexp.image.fit.optimizer.ImageAdam",
    "splatexp.image.optimizer.PlanePace": "splatexp.image.fit.optimizer.ImageSchedule",
    "splatexp.image.rate.Scalar": "splatexp.image.fit.rate.ScalarQuantization",
    "splatexp.image.refine.Refine": "splatexp.image.fit.refine.Refinement",
    "splatexp.image.vq.Vector": "splatexp.image.fit.baselines.vector_quantization.VectorQuantization",
    "splatexp.importance.learned.NONE": "splatexp.importance.learned.NoImportance",
    "splatexp.importance.logit.Logit": "splatexp.importance.logit.Logit",
    "splatexp.importance.mask.Mask": "splatexp.importance.mask.Mask",
    "splatexp.importance.mlp.MLP": "splatexp.importance.mlp.MLP",
    "splatexp.losses.Loss": "splatexp.losses.photometric.Loss",
    "splatexp.memory.Memory": "splatexp.system.memory.MemorySettings",
    "splatexp.model.Model": "splatexp.train.initialization.SceneModel",
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
    "splatexp.raster.plane.Plane": "splatexp.raster.image.ImageRaster",
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
    "checkpoint.cut_sh": "checkpoint.truncate_sh",
    "evaluate.align": "evaluate.optimize_poses",
    "evaluate.align_steps": "evaluate.pose_steps",
    "evaluate.pictures": "evaluate.train_images_every",
    "ledger": "job_cache",
    "viewer.on": "viewer.enabled",
    "viewer.share": "viewer.max_time_fraction",
    "viewer.refresh": "viewer.refresh_seconds",
    "viewer.longest": "viewer.max_resolution",
    "tracker.console.seconds": "tracker.console.interval_seconds",
    # of a study
    "common": "common_overrides",
    "builtin": "builtin_overrides",
    "budgets": "gaussian_budgets",
    "densify.reset": "densify.opacity_reset",
    "densify.fade": "densify.opacity_decay",
    "densify.growth.rate": "densify.growth.fraction",
    "densify.noise.rate": "densify.noise.lr",
    "densify.survey.factor": "densify.survey.downscale",
    "densify.survey.hit": "densify.survey.hit_threshold",
    # settings of rules
    "densify.*.grace": "densify.*.min_age",
    "densify.*.grace_end": "densify.*.min_age_end",
    "densify.*.pause": "densify.*.reset_cooldown",
    "densify.*.most": "densify.*.max_rows",
    "densify.*.share": "densify.*.max_fraction",
    "densify.*.keep": "densify.*.min_remaining",
    "densify.*.dense": "densify.*.size_threshold",
    "densify.*.dim": "densify.*.opacity_factor",
    "densify.*.distance": "densify.*.max_distance",
    "densify.*.similarity": "densify.*.max_log_ratio",
    # rules
    "densify.faint": "densify.prune_low_opacity",
    "densify.large": "densify.prune_large",
    "densify.specks": "densify.prune_small_footprint",
    "densify.weak": "densify.prune_unimportant",
    "densify.weakest": "densify.prune_unimportant",
    "densify.bare": "densify.prune_low_opacity_late",
    "densify.harmful": "densify.prune_inconsistent",
    "densify.recover": "densify.prune_after_reset",
    "densify.slim": "densify.prune_low_weight",
    "densify.half": "densify.prune_low_score",
    "densify.early": "densify.prune_low_weight_early",
    "densify.late": "densify.prune_low_weight_late",
    "densify.unseen": "densify.prune_unseen",
    "densify.soft": "densify.prune_soft",
    "densify.hard": "densify.prune_hard",
    "densify.prune": "densify.prune_low_opacity",
    "importance.rate": "importance.lr",
    "importance.rate_end": "importance.lr_end",
    "importance.initial": "importance.init_logit",
    "importance.clip": "importance.max_grad_norm",
    "importance.sample": "importance.sample_size",
    "importance.decay": "importance.ema_decay",
    "importance.squared": "importance.squared_sparsity",
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
    "model.form": "model.covariance",
    "model.uniform": "model.uniform_fraction",
    "model.power": "model.density_power",
    "model.blur": "model.density_blur",
    "model.spread": "model.size_factor",
    "model.solve": "model.solve_steps",
    "optimizer.by_size": "optimizer.relative_to_size",
    "optimizer.refine.lbfgs": "optimizer.refine.lbfgs_steps",
    "optimizer.refine.gain": "optimizer.refine.min_delta",
    "optimizer.refine.busiest": "optimizer.refine.tile_fraction",
    "optimizer.refine.tile": "optimizer.refine.tile_size",
    "optimizer.refine.every": "optimizer.refine.check_every",
    "regularizer.edge.most": "regularizer.edge.max_penalty",
    "rate.levels": "rate.layers",
    "rate.price_start": "rate.rd_start",
    "rate.start": "rate.quantize_start",
    "rate.first": "rate.initial_fraction",
    "rate.per": "rate.bits_per_gaussian",
    "rate.learn": "rate.step_size_lr",
    "rate.shape_words": "rate.shape_codebook_size",
    "rate.color_words": "rate.color_codebook_size",
    "rate.places": "rate.positions_per_sigma",
    "rate.every": "rate.codebook_every",
    "rate.stop": "rate.codebook_stop",
}
ALIASES: dict[str, str] = {
    "densify.clone_max": "densify.max_births",
    "densify.densify_add": "densify.min_births",
    "densify.prune_max": "densify.max_prunes",
    "densify.merge_max": "densify.max_merges",
    "rate.price": "rate.rd_lambda",
}  # also document 000's own names
VALUES: dict[str, dict[str, str]] = {
    "densify.*.select": {
        "mass": "top_mass",
        "beyond_mass": "outside_top_mass",
        "multinomial": "sample",
        "multinomial_inverse": "sample_inverse",
        "multinomial_repl": "sample_with_replacement",
    },
    "rate.rounding": {"through": "straight_through"},
    "objective": {
        "psnr_carried": "psnr_sim3",
        "ssim_carried": "ssim_sim3",
        "psnr_aligned": "psnr_pose_opt",
        "ssim_aligned": "ssim_pose_opt",
    },
}  # key pattern -> old word -> new word; keys by their new names
METRICS: dict[str, str] = {
    "psnr_carried": "psnr_sim3",
    "psnr_u8_carried": "psnr_u8_sim3",
    "ssim_carried": "ssim_sim3",
    "lpips_vgg_carried": "lpips_vgg_sim3",
    "lpips_alex_carried": "lpips_alex_sim3",
    "lpips_vgg01_carried": "lpips_vgg01_sim3",
    "psnr_aligned": "psnr_pose_opt",
    "psnr_u8_aligned": "psnr_u8_pose_opt",
    "ssim_aligned": "ssim_pose_opt",
    "lpips_vgg_aligned": "lpips_vgg_pose_opt",
    "lpips_alex_aligned": "lpips_alex_pose_opt",
    "lpips_vgg01_aligned": "lpips_vgg01_pose_opt",
    "left_out": "skipped",
    "truth_sha256": "target_sha256",  # of a view in per_view
    "shrunk": "oom_reductions",  # in run
    "resumed": "resumed_at",  # in run
    "pose_given": "pose_initial",
    "price": "rd_lambda",
    "step_luma": "step_size_luma",
    "step_chroma": "step_size_chroma",
    "step_scale": "step_size_scale",
    "step_shear": "step_size_shear",
    "step_place": "step_size_position",
    "bits_places": "bits_positions",
}
COLUMNS: dict[str, str] = {
    "loss": "train/loss",
    "loss_focal_prior": "train/loss_camera_focal_prior",
    "loss_scalebounds": "train/loss_scale_bounds",
    "loss_spatial": "train/loss_bounding_box",
    "loss_screenscale": "train/loss_screen_size",
    "loss_thin": "train/loss_flatness",
    "loss_logit": "train/loss_opacity_logit",
    "loss_*": "train/loss_*",
    "psnr": "train/psnr",
    "psnr_mean": "train/psnr_mean",
    "ssim": "train/ssim",
    "ssim_mean": "train/ssim_mean",
    "test_*": "eval/*",  # what `*` stands for is a key of METRICS
    "factor": "downscale",
    "limit": "growth_limit",
    "fade": "opacity_decay",
    "resets": "opacity_resets",
    "since_reset": "steps_since_reset",
    "rows_faint": "rows_prune_low_opacity",
    "rows_large": "rows_prune_large",
    "rows_specks": "rows_prune_small_footprint",
    "rows_weak": "rows_prune_unimportant",
    "rows_weakest": "rows_prune_unimportant",
    "rows_bare": "rows_prune_low_opacity_late",
    "rows_harmful": "rows_prune_inconsistent",
    "rows_recover": "rows_prune_after_reset",
    "rows_slim": "rows_prune_low_weight",
    "rows_half": "rows_prune_low_score",
    "lambda_scalebounds": "lambda_scale_bounds",
    "lambda_spatial": "lambda_bounding_box",
    "lambda_screenscale": "lambda_screen_size",
    "lambda_thin": "lambda_flatness",
    "lambda_logit": "lambda_opacity_logit",
    "lr_focal": "lr_camera_focal",
    "camera_turn_mean": "camera_rotation_mean_deg",
    "camera_turn_max": "camera_rotation_max_deg",
    "camera_focal": "camera_focal_factor",
    "device_bytes": "gpu_memory_bytes",
    "device_peak_bytes": "gpu_memory_peak_bytes",
}


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
    """Return what a key of metrics.json is called now."""
    return METRICS.get(name, name)


def new_column(name: str) -> str:
    """Return what a column of metrics.csv is called now."""
    if name in COLUMNS:
        return COLUMNS[name]
    for old, new in COLUMNS.items():
        start, star, _ = old.partition("*")
        if star and name.startswith(start):
            return new.replace("*", new_metric(name.removeprefix(start)))
    return name


def migrate_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a metrics.json with all names as they are now."""
    migrated = {new_metric(name): value for name, value in result.items()}
    if isinstance(migrated.get("run"), Mapping):
        migrated["run"] = {new_metric(name): value for name, value in migrated["run"].items()}
    if isinstance(migrated.get("per_view"), list):
        migrated["per_view"] = [
            {new_metric(name): value for name, value in row.items()} if isinstance(row, Mapping) else row
            for row in migrated["per_view"]
        ]
    return migrated


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved config of a run, resolved and with `_target_`s, with all names as they are now.

    A config of this version is returned as it is: a rule of a user's own may bear a name of that time.
    """
    return _migrate(config, (), ()) if config.get("_target_") in TARGETS else dict(config)


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
            value = [
                _migrate(each, path, place) if isinstance(each, Mapping) else new_value(".".join(place), each)
                for each in value
            ]
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
