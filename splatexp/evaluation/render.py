"""Rendering Gaussians: views of a scene beside the ground truth, and the turntable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import SceneRasterizer


def render_view(splats: Splats, raster: SceneRasterizer, scene: Scene, camera: Camera) -> Tensor:
    """Render Gaussians without gradients, with all SH bands, on the background of the scene.

    Returns: [C,H,W,D] in [0,1], for cameras on any device.
    """
    import torch

    colour = torch.tensor(scene.background or (0.0, 0.0, 0.0)).to(raster.device)
    background = colour.expand(len(camera), -1)
    camera = camera.to(raster.device)
    with torch.no_grad():
        return raster(splats, camera, sh_degree=splats.sh_degree, background=background).image.clamp(0, 1)


def save_view(folder: Path, view: View, image: Tensor, row: Mapping[str, Any]) -> None:
    """Write renders/plain/<view>.png, and renders/<view>.png: truth | render | error, with the metrics below.

    Args:
        image: [1,H,W,3], the render of `view`.
        row: its metrics.
    """
    from splatexp.io.figures import save_comparison, save_png

    captions = [("psnr", "{:.2f} dB"), ("ssim", "SSIM {:.3f}")]
    caption = "  ".join(form.format(row[name]) for name, form in captions if row.get(name) is not None)
    save_png(folder / "renders" / "plain" / f"{view.stem}.png", image[0])
    save_comparison(folder / "renders" / f"{view.stem}.png", view.float_image, image[0], view.mask, caption)


def save_turntable(
    path: str | Path, splats: Splats, raster: SceneRasterizer, scene: Scene, frames: int = 120, fps: int = 30
) -> None:
    """Write a video of the Gaussians, seen from a closed path through the positions of the training cameras.

    See `splatexp.cameras.turntable`.
    """
    from splatexp.cameras.turntable import turntable
    from splatexp.io.figures import save_video

    cameras = turntable([view.camera for view in scene.train], frames, splats.means.cpu())

    def rendered_frames() -> Iterator[Tensor]:
        for index in range(frames):
            yield render_view(splats, raster, scene, cameras[index])[0]

    save_video(path, rendered_frames(), fps)
