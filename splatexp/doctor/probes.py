"""Probes that the doctor runs in other processes: `python -m splatexp.doctor.probes <name> <file>`.

A probe appends what it finds to the file as lines of JSON, so that one that crashes leaves what it knew.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.doctor.checks import error_line

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.cameras.pinhole import Camera
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import SceneRasterizer

Report = Callable[..., None]

TIMED, TIMED_SIZE = 10_000, 256  # Gaussians, px
TIMED_SECONDS = 0.3


def raster(report: Report) -> None:
    """Time a step with the reference and the CPU kernels, and compare the results."""
    import torch

    from splatexp.raster.backends import CPU, Auto, Reference

    torch.set_num_threads(1)  # as a run has it
    report(auto=Auto().select().selection_note)
    scene = _scene(60, 32)
    began = time.perf_counter()
    expected = _step(Reference(), *scene)
    report(reference_seconds=time.perf_counter() - began)
    import splatexp_kernels

    report(
        isa=splatexp_kernels.isa(), isas=splatexp_kernels.isas(), threads=splatexp_kernels.get_num_threads()
    )
    found = _step(CPU(), *scene)
    parts = [_distance(a, b) for a, b in zip(found, expected, strict=True)]
    report(difference=max(parts))
    scene, times, end = _scene(TIMED, TIMED_SIZE), [], time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < end or len(times) < 3:  # the first one starts the threads
        began = time.perf_counter()
        _step(CPU(), *scene)
        times.append(time.perf_counter() - began)
    report(step_seconds=min(times))


def gpu(report: Report) -> None:
    """Report what torch knows about the GPU, and whether it computes."""
    import torch

    report(torch=torch.__version__, cuda=torch.version.cuda, hip=torch.version.hip)
    if not torch.cuda.is_available():
        torch.cuda.init()  # which error_line why
    device = torch.cuda.get_device_properties(0)
    report(name=device.name, memory=device.total_memory, count=torch.cuda.device_count())
    report(capability=f"{device.major}.{device.minor}")
    total = float((torch.ones(1000, device="cuda") * 2).sum())
    if total != 2000:
        raise ArithmeticError(f"the sum of a thousand twos is {total:g} on the GPU")


def triton(report: Report) -> None:
    """Import Triton, and compare its kernels with the reference where there is a GPU."""
    import triton  # type: ignore[import-not-found]

    report(version=triton.__version__)
    from splatexp.raster.backends import Triton

    _against_the_reference(report, Triton())


def gsplat(report: Report) -> None:
    """Import gsplat, and compare it with the reference where a GPU and the CUDA extension are there."""
    import gsplat

    report(version=gsplat.__version__)
    from splatexp.raster.gsplat import Gsplat
    from splatexp.raster.gsplat_build import find_compiled

    report(compiled=find_compiled())
    _against_the_reference(report, Gsplat())


def _against_the_reference(report: Report, raster: SceneRasterizer) -> None:
    """Compare a small step of a GPU rasterizer with the reference, or report why it cannot run here."""
    from splatexp.raster.backends import Reference

    reason = raster.unavailable_reason(can_build=False)
    report(missing=reason)
    if not reason:
        raster.ensure_available()
        expected, found = _step(Reference(), *_scene(60, 32)), _step(raster, *_scene(60, 32))
        report(difference=max(_distance(a, b) for a, b in zip(found, expected, strict=True)))


def wandb(report: Report) -> None:
    """Import Weights & Biases."""
    import wandb

    report(version=wandb.__version__)


def tensorboard(report: Report) -> None:
    """Write an event file, which shows whether TensorBoard fits the installed protobuf."""
    import tensorboard
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    report(version=tensorboard.__version__)
    messages: Any = event_pb2
    with tempfile.TemporaryDirectory(prefix="splatexp-doctor-") as folder:
        writer = EventFileWriter(folder)
        writer.add_event(messages.Event(step=0))
        writer.close()


def video(report: Report) -> None:
    """Encode a video of two frames."""
    import numpy as np
    from imageio_ffmpeg import get_ffmpeg_exe, get_ffmpeg_version

    from splatexp.io.figures import save_video

    report(path=get_ffmpeg_exe(), version=get_ffmpeg_version())
    with tempfile.TemporaryDirectory(prefix="splatexp-doctor-") as folder:
        save_video(Path(folder) / "film.mp4", np.zeros((2, 16, 16, 3), np.uint8))


def main() -> None:
    """Run one probe; an error is reported too."""
    name, path = sys.argv[1:]

    def report(**facts: Any) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    probes = {each.__name__: each for each in (raster, gpu, triton, gsplat, wandb, tensorboard, video)}
    try:
        probes[name](report)
    except Exception as error:
        report(failure=error_line(error))


def _scene(count: int, size: int) -> tuple[Splats, Camera]:
    """Return Gaussians of various shapes in a cube, and a camera that sees them."""
    import torch

    from splatexp.cameras.pinhole import Camera, look_at
    from splatexp.train.initialization import SceneModel

    random = torch.Generator().manual_seed(0)
    points, colors = torch.rand(2, count, 3, generator=random)
    splats = SceneModel(sh_degree=1, init_opacity=0.5).from_points(2 * points - 1, colors, extent=2.0)
    with torch.no_grad():
        splats.log_scales += torch.rand(count, 3, generator=random) - 0.5
    eye, up = torch.tensor([[4.0, 0.0, 1.0]]), torch.tensor([0.0, 0.0, 1.0])
    K = torch.tensor([[[1.0 * size, 0, size / 2], [0, 1.0 * size, size / 2], [0, 0, 1]]])
    return splats, Camera(look_at(eye, torch.zeros(3), up), K, size, size)


def _step(raster: SceneRasterizer, splats: Splats, camera: Camera) -> list[Tensor]:
    """Render, and return the image and the gradients of a loss against grey."""
    import torch

    from splatexp.losses.photometric import Loss

    splats, camera = splats.to(raster.device), camera.to(raster.device)
    for param in splats.params.values():
        param.grad = None
    image = raster(splats, camera, sh_degree=1).image
    loss: Any = sum(Loss()(image, torch.full_like(image, 0.5), backend=raster.backend).values())
    loss.backward()
    grads = [param.grad for param in splats.params.values() if param.grad is not None]
    return [tensor.detach().cpu() for tensor in (image, *grads)]


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


if __name__ == "__main__":
    main()
