"""Pictures of Gaussians: held-out views beside the truth, and the turntable.

    python -m splatexp.render run=<folder> [what=views|turntable] [frames=120] [fps=30]

draws a finished run again, into its folder: renders/<view>.png (truth | render | error) and
renders/plain/<view>.png, or turntable.mp4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.cameras import Camera
    from splatexp.data.scene import Scene, View
    from splatexp.raster import Rasterizer
    from splatexp.splats import Splats

WHAT = ("views", "turntable")


def draw(splats: Splats, raster: Rasterizer, scene: Scene, camera: Camera) -> Tensor:
    """What `camera`, of any device, sees: [C,H,W,D] in [0,1], on the scene's background, of all SH bands."""
    import torch

    behind = torch.tensor(scene.background or (0.0, 0.0, 0.0)).to(raster.device)
    background = behind.expand(len(camera), -1)
    camera = camera.to(raster.device)
    with torch.no_grad():
        return raster(splats, camera, sh_degree=splats.sh_degree, background=background).image.clamp(0, 1)


def save_view(folder: Path, view: View, image: Tensor, row: Mapping[str, Any]) -> None:
    """Write renders/plain/<view>.png, and renders/<view>.png: truth | render | error, with its numbers.

    image: [1,H,W,3], the render of `view`. row: its metrics.
    """
    from splatexp.figures import save_comparison, save_png

    numbers = [("psnr", "{:.2f} dB"), ("ssim", "SSIM {:.3f}")]
    caption = "  ".join(form.format(row[name]) for name, form in numbers if row.get(name) is not None)
    save_png(folder / "renders" / "plain" / f"{view.stem}.png", image[0])
    save_comparison(folder / "renders" / f"{view.stem}.png", view.values, image[0], view.mask, caption)


def save_turntable(
    path: str | Path, splats: Splats, raster: Rasterizer, scene: Scene, frames: int = 120, fps: int = 30
) -> None:
    """Film the Gaussians on a closed path through the training cameras' places (see `splatexp.turntable`)."""
    from splatexp.figures import save_video
    from splatexp.turntable import turntable

    path_cameras = turntable([view.camera for view in scene.train], frames, splats.means.cpu())

    def film() -> Iterator[Tensor]:
        for index in range(frames):
            yield draw(splats, raster, scene, path_cameras[index])[0]

    save_video(path, film(), fps)


def render(folder: str, what: str = "views", frames: int = 120, fps: int = 30) -> list[str]:
    """Draw the finished run in `folder` again; returns what was written, for people to read.

    Raises: OSError, ValueError with one line for a folder that is not a finished run, or a bad setting.
    """
    from splatexp.choices import check_choice, check_range

    check_choice("what", what, WHAT)
    check_range("frames", frames, 1)
    check_range("fps", fps, 1)
    from splatexp.evaluate import aligning, measure
    from splatexp.finished import open_run
    from splatexp.metrics import psnr, ssim

    run, scene, splats = open_run(folder)
    place = Path(folder).resolve()
    if what == "turntable":
        if scene.fitted:
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
    from splatexp.finished import command

    known = {"run": str, "what": str, "frames": int, "fps": int}
    command(__doc__ or "", known, lambda run, **settings: print(*render(run, **settings), sep="\n"))


if __name__ == "__main__":
    main()
