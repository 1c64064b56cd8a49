"""What is looked at while a run trains, off its clock: held-out numbers, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.evaluation.evaluate import Evaluate
    from splatexp.gaussians.splats import Splats
    from splatexp.tracking import Trackers
    from splatexp.train.recipe import Recipe

SHEET = 4  # views side by side on a sheet


def looks(
    recipe: Recipe, settings: Evaluate, scene: Scene, trackers: Trackers, folder: Path
) -> Callable[[int, Splats], None]:
    """To be called after every step; it looks where `evaluate.every` and `evaluate.pictures` say so."""
    from splatexp.evaluation.evaluate import aligning, means, measure, names_of
    from splatexp.evaluation.metrics import metric_set

    metrics = metric_set(settings.lpips_weights)[0] if settings.every else {}

    def due(step: int, every: int) -> bool:
        return every > 0 and (step + 1) % every == 0

    def look(step: int, splats: Splats) -> None:
        if due(step, settings.every) and step + 1 < recipe.steps:
            now = recipe.camera.placed(scene, splats)
            rows = measure(splats, recipe.raster, now, metrics, align=aligning(now, settings))
            seen = {f"test_{name}": value for name, value in means(rows, names_of(metrics, rows), {}).items()}
            trackers.log(step, {name: value for name, value in seen.items() if value is not None})
        if due(step, settings.pictures):
            sheet(
                folder / "pictures" / f"step_{step + 1:08d}.png",
                splats,
                recipe,
                recipe.camera.placed(scene, splats),
            )

    return look


def sheet(path: Path, splats: Splats, recipe: Recipe, scene: Scene) -> None:
    """Write the first training views in one picture: photographs above, what is drawn of them below.

    Each has the height of the first.
    """
    import torch

    from splatexp.evaluation.render import draw
    from splatexp.io.figures import save_png

    columns = []
    for view in scene.train[:SHEET]:
        image = draw(splats, recipe.raster, scene, view.camera)[0].cpu()
        column = torch.cat([view.values, image])
        height = 2 * scene.train[0].camera.height
        size = (height, max(1, round(column.shape[1] * height / len(column))))
        if size != tuple(column.shape[:2]):
            resized = torch.nn.functional.interpolate(column.permute(2, 0, 1)[None], size, mode="area")
            column = resized[0].permute(1, 2, 0)
        columns.append(column)
    save_png(path, torch.cat(columns, 1))
