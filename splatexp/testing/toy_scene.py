"""A small scene on which every kind of rule has something to do, and strategies compressed to short runs."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.data.scene import Scene, View
from splatexp.gaussians.splats import Splats
from splatexp.raster.rasterizer import SceneRasterizer
from splatexp.system.rng import generator

STEPS = 120  # length of a run
MIN_EVERY = 3  # steps between events at least, so that statistics of several steps are combined
CAP = 120  # upper limit of every strategy's max_gaussians
MIN_REMAINING = 30  # upper limit of every rule's min_remaining
ROWS, VIEWS, SIZE, EXTENT = 72, 6, 24, 4.0
# Settings in steps that do not stretch with the length of a run
INTERVALS = ("every", "reset_cooldown", "min_age", "min_age_end", "after_reset")


def toy_scene(raster: SceneRasterizer, seed: int = 0) -> Scene:
    """Return six training views of 24 x 24 px and a held-out one, on a circle around recoloured Gaussians."""
    truth, views = toy_splats(EXTENT, seed), []
    with torch.no_grad():
        truth.sh0.copy_(truth.sh0.flip(0))
        truth.means += 0.1 * torch.randn(truth.means.shape, generator=generator("exercise", seed, "truth"))
    angles = torch.arange(VIEWS + 1) * (2 * torch.pi / (VIEWS + 1))
    eyes = torch.stack([4 * angles.cos(), 4 * angles.sin(), torch.ones(VIEWS + 1)], 1)
    viewmats = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    K = torch.tensor([[1.2 * SIZE, 0, SIZE / 2], [0, 1.2 * SIZE, SIZE / 2], [0, 0, 1]])
    for index in range(VIEWS + 1):
        camera = Camera(viewmats[index : index + 1], K[None], SIZE, SIZE)
        with torch.no_grad():
            image = raster(truth, camera, sh_degree=0, background=torch.zeros(1, 3)).image[0]
        views.append(View(f"{index}.png", camera, (image.clamp(0, 1) * 255).round().to(torch.uint8)))
    return Scene("exercise", views[:VIEWS], views[VIEWS:], background=(0.0, 0.0, 0.0), extent=EXTENT)


def toy_splats(extent: float, seed: int = 0) -> Splats:
    """Return Gaussians of all sizes, shapes and opacities in a cube of side 2, and some that call for a rule.

    The last ones are 8 with an opacity low enough to be pruned, 4 huge ones, 4 that no view sees, and 8 that
    each lie close to one of the first 8 and resemble it.
    """
    random = generator("exercise", seed, "rows")
    means = torch.rand(ROWS, 3, generator=random) * 2 - 1
    sizes = extent * 10 ** (-3.3 + 2 * torch.rand(ROWS, 1, generator=random))  # 0.0005 to 0.05 extents
    log_scales = (sizes * 2 ** (2 * torch.rand(ROWS, 3, generator=random) - 1)).log()
    opacities = 0.05 + 0.9 * torch.rand(ROWS, generator=random)
    quats = torch.randn(ROWS, 4, generator=random)
    twins, unseen, huge, transparent = (
        slice(ROWS - n, ROWS - m) for n, m in ((8, 0), (12, 8), (16, 12), (24, 16))
    )
    opacities[transparent] = 0.002
    log_scales[huge] = (0.2 * extent * torch.tensor([1.0, 0.8, 0.6])).log()
    means[unseen] += torch.tensor([0.0, 0.0, 6.0])  # above what the cameras see
    means[twins] = means[:8] + 5e-4 * extent * torch.nn.functional.normalize(means[twins], dim=1)
    log_scales[:8] = log_scales[:8].mean(1, keepdim=True)
    log_scales[twins] = log_scales[:8] + 0.05
    params = {
        "means": means,
        "quats": quats,
        "log_scales": log_scales,
        "opacity_logits": opacities.logit(),
        "sh0": 3 * torch.rand(ROWS, 1, 3, generator=random) - 1.5,
        "shN": 0.1 * torch.randn(ROWS, 3, 3, generator=random),
    }
    return Splats(params, extent)


def compress_schedule(settings: Any, factor: float, every: int = MIN_EVERY) -> Any:
    """Return a strategy, or a part of one, with windows and intervals multiplied by a factor, and few rows.

    Intervals become multiples of the interval between events, which is at least `every`; every window keeps
    at least one event.
    """
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    own = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    measured = {field.name for field in fields(settings) if field.metadata.get("unit") == "steps"}
    if "max_gaussians" in own:  # a strategy: its events set the interval
        every = max(every, round(own.get("every", 0) * factor))
        own["max_gaussians"] = min(own["max_gaussians"] or CAP, CAP)
    for name, value in own.items():
        if name in measured:
            own[name] = (
                [_window(v, factor) for v in value] if isinstance(value, list) else _window(value, factor)
            )
        elif name in INTERVALS and value:
            own[name] = max(1, round(value * factor / every)) * every
        elif name == "min_remaining":
            own[name] = min(value, MIN_REMAINING)
        else:
            own[name] = compress_schedule(value, factor, every)
    if own.get("stop") and "start" in own:
        interval = own.get("every") or every
        own["stop"] = max(own["stop"], own["start"] // interval * interval + interval + 1)
    return replace(settings, **own)


def _window(value: int, factor: float) -> int:
    """Return a window or milestone, compressed; 0 keeps its special meaning."""
    return max(1, round(value * factor)) if value > 0 else value
