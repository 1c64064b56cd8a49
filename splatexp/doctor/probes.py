"""What the doctor tries in processes of their own: `python -m splatexp.doctor.probes <name> <file>`.

Each probe says what it finds as it goes, in lines of JSON in the file: one that dies leaves what it knew.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.doctor.rows import says

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.cameras.pinhole import Camera
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import Rasterizer

Say = Callable[..., None]

TIMED, TIMED_SIZE = 10_000, 256  # Gaussians, px
TIMED_SECONDS = 0.3


def raster(say: Say) -> None:
    """A step, forward and backward, by the reference kernels and the CPU kernels: times, differences."""
    import torch

    from splatexp.raster.backends import CPU, Auto, Reference

    torch.set_num_threads(1)  # as a run has it
    say(auto=Auto().chosen().why)
    scene = _scene(60, 32)
    began = time.perf_counter()
    expected = _step(Reference(), *scene)
    say(reference_seconds=time.perf_counter() - began)
    import splatexp_kernels

    say(isa=splatexp_kernels.isa(), isas=splatexp_kernels.isas(), threads=splatexp_kernels.get_num_threads())
    found = _step(CPU(), *scene)
    parts = [_distance(a, b) for a, b in zip(found, expected, strict=True)]
    say(difference=max(parts))
    scene, times, end = _scene(TIMED, TIMED_SIZE), [], time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < end or len(times) < 3:  # the first one starts the threads
        began = time.perf_counter()
        _step(CPU(), *scene)
        times.append(time.perf_counter() - began)
    say(step_seconds=min(times))


def gpu(say: Say) -> None:
    """What torch knows of a GPU: its own build, the devices, and whether one computes."""
    import torch

    say(torch=torch.__version__, cuda=torch.version.cuda, hip=torch.version.hip)
    if not torch.cuda.is_available():
        torch.cuda.init()  # which says why
    device = torch.cuda.get_device_properties(0)
    say(name=device.name, memory=device.total_memory, count=torch.cuda.device_count())
    say(capability=f"{device.major}.{device.minor}")
    total = float((torch.ones(1000, device="cuda") * 2).sum())
    if total != 2000:
        raise ArithmeticError(f"the sum of a thousand twos is {total:g} on the GPU")


def triton(say: Say) -> None:
    """Triton, and our kernels in it where there is a GPU for them."""
    import triton  # type: ignore[import-not-found]

    say(version=triton.__version__)
    from splatexp.raster.backends import Triton

    _against_the_reference(say, Triton())


def gsplat(say: Say) -> None:
    """gsplat, and where there is a GPU its CUDA extension, if that is compiled: this would take minutes."""
    import gsplat

    say(version=gsplat.__version__)
    from splatexp.raster.gsplat import Gsplat
    from splatexp.raster.gsplat_build import compiled

    say(compiled=compiled())
    _against_the_reference(say, Gsplat())


def _against_the_reference(say: Say, raster: Rasterizer) -> None:
    """A small step by a rasterizer for a GPU: how far it is from the reference, or why it cannot run here."""
    from splatexp.raster.backends import Reference

    reason = raster.missing(build=False)
    say(missing=reason)
    if not reason:
        raster.require()
        expected, found = _step(Reference(), *_scene(60, 32)), _step(raster, *_scene(60, 32))
        say(difference=max(_distance(a, b) for a, b in zip(found, expected, strict=True)))


def wandb(say: Say) -> None:
    """Weights & Biases."""
    import wandb

    say(version=wandb.__version__)


def tensorboard(say: Say) -> None:
    """What the tracker of that name needs: a writer, and messages that fit the installed protobuf."""
    import tensorboard
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    say(version=tensorboard.__version__)
    messages: Any = event_pb2
    with tempfile.TemporaryDirectory(prefix="splatexp-doctor-") as folder:
        writer = EventFileWriter(folder)
        writer.add_event(messages.Event(step=0))
        writer.close()


def film(say: Say) -> None:
    """Two frames, encoded."""
    import numpy as np
    from imageio_ffmpeg import get_ffmpeg_exe, get_ffmpeg_version

    from splatexp.io.figures import save_video

    say(path=get_ffmpeg_exe(), version=get_ffmpeg_version())
    with tempfile.TemporaryDirectory(prefix="splatexp-doctor-") as folder:
        save_video(Path(folder) / "film.mp4", np.zeros((2, 16, 16, 3), np.uint8))


def main() -> None:
    """Run one probe; how it failed is said too."""
    name, path = sys.argv[1:]

    def say(**facts: Any) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    probes = {each.__name__: each for each in (raster, gpu, triton, gsplat, wandb, tensorboard, film)}
    try:
        probes[name](say)
    except Exception as error:
        say(failure=says(error))


def _scene(count: int, size: int) -> tuple[Splats, Camera]:
    """Gaussians of all shapes in a cube, and a camera that has it in view."""
    import torch

    from splatexp.cameras.pinhole import Camera, look_at
    from splatexp.train.initialization import Model

    random = torch.Generator().manual_seed(0)
    points, colors = torch.rand(2, count, 3, generator=random)
    splats = Model(sh_degree=1, init_opacity=0.5).at(2 * points - 1, colors, extent=2.0)
    with torch.no_grad():
        splats.log_scales += torch.rand(count, 3, generator=random) - 0.5
    eye, up = torch.tensor([[4.0, 0.0, 1.0]]), torch.tensor([0.0, 0.0, 1.0])
    K = torch.tensor([[[1.0 * size, 0, size / 2], [0, 1.0 * size, size / 2], [0, 0, 1]]])
    return splats, Camera(look_at(eye, torch.zeros(3), up), K, size, size)


def _step(raster: Rasterizer, splats: Splats, camera: Camera) -> list[Tensor]:
    """Towards grey: the picture, and the gradient of every parameter."""
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
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


if __name__ == "__main__":
    main()
