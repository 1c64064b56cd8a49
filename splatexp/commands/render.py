"""Draw a finished run again, into its folder.

    python -m splatexp.render run=<folder> [what=views|turntable] [frames=120] [fps=30]

This writes renders/<view>.png (truth | render | error) and renders/plain/<view>.png, or turntable.mp4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import View
from splatexp.evaluation.render import save_turntable, save_view

WHAT = ("views", "turntable")


def render(folder: str, what: str = "views", frames: int = 120, fps: int = 30) -> list[str]:
    """Draw the finished run in `folder` again; returns what was written, for people to read.

    Raises: OSError, ValueError with one line for a folder that is not a finished run, or a bad setting.
    """
    from splatexp.settings.checks import check_choice, check_range

    check_choice("what", what, WHAT)
    check_range("frames", frames, 1)
    check_range("fps", fps, 1)
    from splatexp.commands.open_run import open_run
    from splatexp.evaluation.evaluate import aligning, measure
    from splatexp.evaluation.metrics import psnr, ssim

    run, scene, splats = open_run(folder)
    place = Path(folder).resolve()
    if what == "turntable":
        if scene.test_is_train:
            raise ValueError("what: expected views, for a picture has no turntable")
        save_turntable(place / "turntable.mp4", splats, run.raster, scene, frames, fps)
        return [f"{place / 'turntable.mp4'}: {frames} frames"]

    def save(view: View, image: Tensor, row: Mapping[str, Any]) -> None:
        save_view(place, view, image, row)

    align = aligning(scene, run.evaluate)
    rows = measure(splats, run.raster, scene, {"psnr": psnr, "ssim": ssim}, save, align)
    return [f"{place / 'renders'}: {len(rows)} held-out views, truth | render | error"]


def main() -> None:
    """The command `python -m splatexp.render`."""
    from splatexp.settings.arguments import command

    known = {"run": str, "what": str, "frames": int, "fps": int}
    command(__doc__ or "", known, lambda run, **settings: print(*render(run, **settings), sep="\n"))
