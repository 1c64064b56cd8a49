"""A tiny scene with something to do for every kind of rule, and strategies compressed to its short runs."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.data.scene import Scene, View
from splatexp.gaussians.splats import Splats
from splatexp.raster.rasterizer import Rasterizer
from splatexp.system.rng import generator

STEPS = 120  # of a run
EVERY = 3  # steps between events at least, so that statistics of several steps meet
CAP = 120  # no strategy may have more rows
KEEP = 30  # and none needs more
ROWS, VIEWS, SIZE, EXTENT = 72, 6, 24, 4.0
CADENCES = (
    "every",
    "pause",
    "grace",
    "grace_end",
    "after_reset",
)  # steps too, which do not stretch with a run


def scene(raster: Rasterizer, seed: int = 0) -> Scene:
    """Six training views of 24 x 24 pixels and one held out, on a circle round Gaussians of other colours."""
    truth, views = rows(EXTENT, seed), []
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


def rows(extent: float, seed: int = 0) -> Splats:
    """Gaussians of all sizes, shapes and opacities in a cube of side 2, and some that call for a rule.

    The last are 8 as faint as to be pruned, 4 huge ones, 4 that no view sees, 8 each hardly apart from one
    of the first 8.
    """
    random = generator("exercise", seed, "rows")
    means = torch.rand(ROWS, 3, generator=random) * 2 - 1
    sizes = extent * 10 ** (-3.3 + 2 * torch.rand(ROWS, 1, generator=random))  # 0.0005 to 0.05 extents
    log_scales = (sizes * 2 ** (2 * torch.rand(ROWS, 3, generator=random) - 1)).log()
    opacities = 0.05 + 0.9 * torch.rand(ROWS, generator=random)
    quats = torch.randn(ROWS, 4, generator=random)
    twins, unseen, huge, faint = (slice(ROWS - n, ROWS - m) for n, m in ((8, 0), (12, 8), (16, 12), (24, 16)))
    opacities[faint] = 0.002
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


def compressed(settings: Any, factor: float, every: int = EVERY) -> Any:
    """A strategy, or what is nested in one, with windows and cadences shorter by a factor, and few rows.

    Cadences become multiples of that of the events, which is at least `every`; windows keep an event.
    """
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    own = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    measured = {field.name for field in fields(settings) if field.metadata.get("unit") == "steps"}
    if "max_gaussians" in own:  # a strategy: its events are the beat
        every = max(every, round(own.get("every", 0) * factor))
        own["max_gaussians"] = min(own["max_gaussians"] or CAP, CAP)
    for name, value in own.items():
        if name in measured:
            own[name] = (
                [_window(v, factor) for v in value] if isinstance(value, list) else _window(value, factor)
            )
        elif name in CADENCES and value:
            own[name] = max(1, round(value * factor / every)) * every
        elif name == "keep":
            own[name] = min(value, KEEP)
        else:
            own[name] = compressed(value, factor, every)
    if own.get("stop") and "start" in own:
        beat = own.get("every") or every
        own["stop"] = max(own["stop"], own["start"] // beat * beat + beat + 1)
    return replace(settings, **own)


def _window(value: int, factor: float) -> int:
    """A window or milestone; 0 means something else."""
    return max(1, round(value * factor)) if value > 0 else value
