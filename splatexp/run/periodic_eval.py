"""Periodic evaluation during training, outside the training time: held-out metrics, training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.evaluation.evaluate import EvaluationSettings
    from splatexp.gaussians.splats import Splats
    from splatexp.tracking import Trackers
    from splatexp.train.recipe import Recipe

TRAIN_IMAGES = 4  # training views side by side in a file


class PeriodicEvaluation:
    """Called after every step, it does what `evaluate.every` and `evaluate.train_images_every` ask for."""

    def __init__(
        self, recipe: Recipe, settings: EvaluationSettings, scene: Scene, trackers: Trackers, folder: Path
    ):
        from splatexp.evaluation.metrics import available_metrics

        self.recipe, self.scene = recipe, scene
        self.trackers = trackers
        self.folder = folder / "train_images"
        self.settings = settings
        self.metrics = available_metrics(self.settings.lpips_weights)[0] if self.settings.every else {}

    def __call__(self, step: int, splats: Splats) -> None:
        """Evaluate after step `step` where it is due; the run itself evaluates after the last step."""
        done = step + 1
        if _is_due(done, self.settings.every) and done < self.recipe.steps:
            self._log_metrics(step, splats)
        if _is_due(done, self.settings.train_images_every):
            scene = self.recipe.camera.with_learned_cameras(self.scene, splats)
            save_train_images(self.folder / f"step_{done:08d}.png", splats, self.recipe, scene)

    def _log_metrics(self, step: int, splats: Splats) -> None:
        from splatexp.evaluation.evaluate import (
            mean_metrics,
            measure_views,
            metric_names,
            pose_optimization_steps,
        )

        scene = self.recipe.camera.with_learned_cameras(self.scene, splats)
        rows = measure_views(
            splats,
            self.recipe.raster,
            scene,
            self.metrics,
            pose_steps=pose_optimization_steps(scene, self.settings),
        )
        values = mean_metrics(rows, metric_names(self.metrics, rows), {})
        self.trackers.log(
            step, {f"eval/{name}": value for name, value in values.items() if value is not None}
        )


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def save_train_images(path: Path, splats: Splats, recipe: Recipe, scene: Scene) -> None:
    """Write the first training views into one image: the photographs above, their renders below.

    Every column is scaled to the height of the first.
    """
    import torch

    from splatexp.evaluation.render import render_view
    from splatexp.io.figures import save_png

    columns = []
    for view in scene.train[:TRAIN_IMAGES]:
        render = render_view(splats, recipe.raster, scene, view.camera)[0].cpu()
        column = torch.cat([view.float_image, render])
        height = 2 * scene.train[0].camera.height
        size = (height, max(1, round(column.shape[1] * height / len(column))))
        if size != tuple(column.shape[:2]):
            resized = torch.nn.functional.interpolate(column.permute(2, 0, 1)[None], size, mode="area")
            column = resized[0].permute(1, 2, 0)
        columns.append(column)
    save_png(path, torch.cat(columns, 1))
