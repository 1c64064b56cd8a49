"""Every launch of a Triton kernel that training makes, recorded while the ops run on a tiny scene.

Run as a program, under TRITON_INTERPRET=1, it writes JSON, a list of launches, to the file that is its
argument. So the kernels that are compiled ahead of time get the arguments of real calls, and no list of them
is kept by hand.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GAUSSIANS, SIZE = 13, (18, 18)  # no multiples of 16: the compiler may assume nothing
TYPES = {
    "float32": "fp32", "float64": "fp64", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "bool": "i1", "uint8": "u8",
}  # fmt: skip


def recorded(ops: Callable[[], None]) -> list[dict[str, Any]]:
    """Return what Triton's interpreter launches during the call: equal launches once, in the order of the
    first.
    """
    from triton.runtime.interpreter import InterpretedFunction

    found: dict[str, dict[str, Any]] = {}
    run = InterpretedFunction.run

    def noted(kernel, *args, grid, warmup, **kwargs):
        entry = launch(kernel.fn, args, kwargs)
        found.setdefault(json.dumps(entry), entry)
        return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = noted
    try:
        ops()
    finally:
        InterpretedFunction.run = run
    return list(found.values())


def launch(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a launch as the compiler needs it: types, constants, which pointers and sizes 16 divides,
    options.
    """
    parameters = inspect.signature(function).parameters
    given = inspect.signature(function).bind(*args, **{k: v for k, v in kwargs.items() if k in parameters})
    given.apply_defaults()
    entry: dict[str, Any] = {"module": function.__module__, "name": function.__name__}
    entry |= {"signature": {}, "constants": {}, "aligned": []}
    entry["options"] = {name: value for name, value in kwargs.items() if name not in parameters}
    for i, (name, value) in enumerate(given.arguments.items()):
        constant = "constexpr" in str(parameters[name].annotation)
        kind = "constexpr" if constant else type_of(value)
        entry["signature"][name] = kind
        if kind == "constexpr":
            entry["constants"][name] = value
        elif kind[0] == "*" or (kind[0] == "i" and value % 16 == 0):
            entry["aligned"].append(i)  # torch allocates at multiples of 512 bytes
    return entry


def type_of(value: Any) -> str:
    """Return the type that Triton gives an argument; None and 1 become constants."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
        return "constexpr"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    if not hasattr(value, "data_ptr"):
        raise TypeError(f"launch: expected a tensor, a number or None, got {type(value).__name__}")
    return "*" + TYPES[str(value.dtype).removeprefix("torch.")]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the launches in a file."""
    return json.loads(path.read_text())


def everything() -> None:
    """Run a training step, all other ops, and all options."""
    import torch

    from splatexp_kernels.project import project
    from splatexp_kernels.sh import sh
    from splatexp_kernels.ssim import ssim

    w, by = step(), {"backend": "gpu"}
    w.step()
    x, viewmats, Ks = w.params, w.viewmats.repeat(2, 1, 1).requires_grad_(), w.Ks.repeat(2, 1, 1)
    flat = x["means"], x["quats"], x["scales"], x["opacities"]
    p = project(*flat, viewmats, Ks, *SIZE, prefilter=True, cull_radius_px=0.1, **by)
    (p.means2d.sum() + p.conics.sum() + p.compensations.sum()).backward()
    shN = torch.zeros(GAUSSIANS, 24, 3, requires_grad=True)
    for degree in (0, 1, 2, 4):
        centers = w.centers.repeat(2, 1).requires_grad_()
        sh(degree, x["means"], centers, x["sh0"], shN, **by).sum().backward()
    for tile_size, D in ((8, 1), (16, 4), (32, 2)):
        blended(
            project(*flat, viewmats, Ks, tile_size + 2, tile_size + 2, **by), x["opacities"], tile_size, D
        )
    ssim(torch.rand(1, 5, 5, 1), torch.rand(1, 5, 5, 1), **by)


def blended(p, opacities, tile_size: int, D: int) -> None:
    """Run `tiles`, `blend` and `attribute` with every cap and absgrad, on 2x2 tiles."""
    import torch

    from splatexp_kernels.blend import attribute, blend
    from splatexp_kernels.tiles import tiles

    size, by, opacities = (tile_size + 2, tile_size + 2), {"backend": "gpu"}, opacities.detach()
    t = tiles(p.means2d, p.radii, p.depths, *size, tile_size=tile_size, per_tile_max=20, **by)
    flat = p.means2d.detach().requires_grad_(), p.conics.detach().requires_grad_()
    seen, colors = opacities.expand(2, -1), torch.rand(2, GAUSSIANS, D, requires_grad=True)
    knobs = {"max_splats_per_pixel": 9, "background": torch.zeros(2, D), **by}
    image, alpha = blend(*flat, colors, seen, t, *size, absgrad=torch.zeros(2, GAUSSIANS, 2), **knobs)
    (image.sum() + alpha.sum()).backward()
    maps = torch.rand(2, size[1], size[0], 2)
    attribute(*flat, seen, t, *size, maps, max_splats_per_pixel=9, **by)


def step() -> Any:
    """Run a training step and the other ops as they are usually called; return the workload."""
    import ops
    from workload import synthetic

    w = synthetic(GAUSSIANS, *SIZE, backend="gpu")
    for work in ops.op_calls(w):
        work.call()
    return w


if __name__ == "__main__":
    sys.path[1:1] = [str(ROOT / "kernels"), str(ROOT)]
    what, target = sys.argv[1:]
    Path(target).write_text(json.dumps(recorded({"step": step, "all": everything}[what])))
