"""Render the views of a finished run again, into its folder.

    python -m splatexp.render run=<folder> [what=views|turntable] [frames=120] [fps=30]

This writes renders/<view>.png (truth | render | error) and renders/plain/<view>.png, or turntable.mp4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.evaluation.render import save_turntable, save_view
from splatexp.settings.checks import check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import View

WHAT = ("views", "turntable")


def render_run(folder: str, what: str = "views", frames: int = 120, fps: int = 30) -> list[str]:
    """Render the finished run in `folder` again and return lines that tell what was written.

    Raises: OSError or ValueError, one line, for a folder that is not a finished run, or a bad setting.
    """
    check_choice("what", what, WHAT)
    check_range("frames", frames, 1)
    check_range("fps", fps, 1)
    from splatexp.commands.open_run import open_run
    from splatexp.evaluation.evaluate import measure_views, pose_optimization_steps
    from splatexp.evaluation.metrics import psnr, ssim

    run, scene, splats = open_run(folder)
    target = Path(folder).resolve()
    if what == "turntable":
        if scene.test_is_train:
            raise ValueError("what: expected views with data=image, which has no turntable, got turntable")
        save_turntable(target / "turntable.mp4", splats, run.raster, scene, frames, fps)
        return [f"{target / 'turntable.mp4'}: {frames} frames"]

    def save(view: View, image: Tensor, row: Mapping[str, Any]) -> None:
        save_view(target, view, image, row)

    metrics = {"psnr": psnr, "ssim": ssim}
    rows = measure_views(
        splats, run.raster, scene, metrics, save, pose_optimization_steps(scene, run.evaluate)
    )
    return [f"{target / 'renders'}: {len(rows)} held-out views, truth | render | error"]


def main() -> None:
    """Run the command `python -m splatexp.render`."""
    from splatexp.commands.command_line import run_command

    known = {"run": str, "what": str, "frames": int, "fps": int}
    run_command(__doc__ or "", known, lambda run, **settings: print(*render_run(run, **settings), sep="\n"))
