"""What a run says of itself at every logged step, and the sums behind it, which go on when it is resumed."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.gaussians.edit import Edit, Overwrite
from splatexp.gaussians.rows import Rows
from splatexp.losses.photometric import likeness, psnr
from splatexp.raster.rasterizer import Render
from splatexp.system import memory
from splatexp.system.devices import Readback

MEMORY = 0.9  # of the moving averages over logged steps
APART = ("moved", "best", "_unread")  # of a record: not numbers


@dataclass
class Sight:
    """A step as it was: what its picture was compared with, and what that gave."""

    step: int
    terms: Mapping[str, Tensor]  # of the loss, weighted
    total: Tensor  # [] their sum
    render: Render
    target: Tensor  # [C,H,W,3]
    mask: Tensor | None  # [C,H,W,1]
    camera: Camera | None = None  # that the picture was drawn with

    @property
    def psnr(self) -> float:
        """Of the training view, dB."""
        return psnr(self.render.image, self.target, self.mask)

    def ssim(self, weight: float, backend: str) -> float:
        """Of the training view, by the training kernel; taken from the loss where it has the term."""
        if "ssim" in self.terms and weight:
            return 1 - self.terms["ssim"].item() / weight
        return likeness(self.render.image, self.target, self.mask, backend=backend)


def together(sights: Sequence[Sight]) -> Sight:
    """The views of one step as one: their terms are summed, and the last stands for their pictures."""
    if len(sights) == 1:
        return sights[0]
    names, last = sights[0].terms, sights[-1]
    terms = {name: torch.stack([each.terms[name].detach() for each in sights]).sum() for name in names}
    return replace(last, terms=terms, total=torch.stack([each.total for each in sights]).sum())


@dataclass
class Unread:
    """The loss of a step that a device has not told yet."""

    step: int
    terms: Mapping[str, Tensor]
    total: Readback


@dataclass
class Record:
    """Sums over a run: `seconds` of its steps, and what has come together since the last row.

    The host's clock tells `seconds` of a device's steps too, as the loop waits for the device where a row is
    due; `control` and `logging` are then what these took the host.
    """

    seconds: float = 0.0  # of the steps alone: no evaluation, no logs, no files
    control: float = 0.0  # of density control in them
    logging: float = 0.0  # of writing rows, besides
    steps: int = 0  # since the last row
    losses: float | Tensor = 0.0  # their sum since then; on a device, float64
    begun: float = 0.0  # `seconds` at the last row
    psnr_mean: float = math.nan  # moving averages over the rows
    ssim_mean: float = math.nan
    moved: Counter[str] = field(default_factory=Counter)  # rows by rule and by kind of edit, since then
    best: list[float] = field(default_factory=list)  # what an early end compares with, and the step it is of
    ended: bool = False  # before the last step: a resumed run has nothing left to do
    _unread: Unread | None = field(default=None, repr=False)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time that passes to `seconds`, `control` or `logging`."""
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)

    def edited(self, edit: Edit | Overwrite, grown: int) -> None:
        """Count what an edit did; `grown` is by how much the number of rows went up."""
        if not isinstance(edit, Edit):
            return
        self.moved[f"rows_{edit.by}"] += grown
        if edit.kind in ("prune", "merge"):
            self.moved[f"{edit.kind}s"] -= grown
        elif edit.kind == "relocate":
            self.moved["relocated"] += int(edit.fresh.sum())
        else:
            self.moved["births"] += grown

    def weigh(self, step: int, terms: Mapping[str, Tensor], splats: Rows) -> Tensor:
        """The loss of a step, the sum of its terms.

        Raises: FloatingPointError where it is not finite, before anything is updated by it. On a device, to
        ask at once would be to wait: there one learns of it in the next step, so after one update by it, or
        where a row or a checkpoint is due (`confirm`); no checkpoint is written after it.
        """
        total = torch.stack(list(terms.values())).sum()
        if total.is_cpu:
            _refuse(step, total.item(), terms, splats)
        else:
            self.confirm()
            self._unread = Unread(step, {n: term.detach() for n, term in terms.items()}, Readback(total))
        return total

    def confirm(self) -> None:
        """Wait for a loss that a device has not told yet.  Raises: FloatingPointError as `weigh` says."""
        unread, self._unread = self._unread, None
        if unread is not None:
            _refuse(unread.step, unread.total(), unread.terms)

    def stepped(self, total: Tensor, ended: bool = False) -> None:
        """Count a step and its loss []; ended: whether it was the last, before its time."""
        self.ended = ended
        self.steps += 1
        self.losses = self.losses + (total.item() if total.is_cpu else total.double())

    def row(self, sight: Sight, splats: Rows, *, weight: float, backend: str) -> dict[str, float]:
        """The numbers of a logged step that follow from what came out of it; what was summed begins anew.

        weight: of SSIM in the loss.
        """
        quality = {"psnr": sight.psnr, "ssim": sight.ssim(weight, backend)}
        for name, value in quality.items():
            before = getattr(self, f"{name}_mean")
            after = value if math.isnan(before) else MEMORY * before + (1 - MEMORY) * value
            setattr(self, f"{name}_mean", after)
        values = {"loss": float(sight.total), "loss_mean": float(self.losses) / max(1, self.steps)}
        values |= {f"loss_{name}": term.item() for name, term in sight.terms.items()}
        values |= quality | {"psnr_mean": self.psnr_mean, "ssim_mean": self.ssim_mean}
        values["num_gaussians"] = len(splats)
        values |= {name: self.moved[name] for name in ("births", "prunes", "merges", "relocated")}
        values |= {name: n for name, n in self.moved.items() if name.startswith("rows_") and n}
        values |= _spread("footprint", _footprints(sight.render))
        values |= _spread("opacity", sight.render.opacities)
        values |= {"memory_bytes": memory.in_use(), "memory_available_bytes": memory.available() or math.nan}
        if device := memory.device():
            values |= {"device_bytes": device[0], "device_peak_bytes": device[1]}
        pace = self.steps / max(1e-9, self.seconds - self.begun)
        values |= {"seconds": self.seconds, "seconds_densify": self.control, "seconds_log": self.logging}
        values["steps_per_second"] = pace
        self.steps, self.losses, self.begun = 0, 0.0, self.seconds
        self.moved.clear()
        return values

    def state(self) -> dict[str, Any]:
        """Everything, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in APART}
        plain["losses"] = float(self.losses)
        plain = {name: None if math.isnan(value) else value for name, value in plain.items()}
        return plain | {"moved": dict(self.moved), "best": list(self.best)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Record":
        """What `state` gave.  Raises: ValueError for anything else."""
        made = cls()
        try:
            for name in set(vars(made)) - {"_unread"}:
                if name == "best":  # earlier versions had neither
                    made.best = [float(value) for value in state.get("best", [])]
                elif name == "ended":
                    made.ended = bool(state.get("ended"))
                elif name == "moved":
                    made.moved = Counter({str(key): int(n) for key, n in state["moved"].items()})
                else:
                    value = state[name]
                    setattr(made, name, math.nan if value is None else type(getattr(made, name))(value))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"record: not as it was written ({error!r})") from error
        return made


def _refuse(step: int, total: float, terms: Mapping[str, Tensor], splats: Rows | None = None) -> None:
    """Raise FloatingPointError where a loss is not finite; splats: as before it, None: no longer known."""
    if math.isfinite(total):
        return
    parts = ", ".join(f"{name}={term.item():.4g}" for name, term in terms.items())
    bad = ", ".join(f"{n} rows of {name}" for name, n in sick(splats).items()) if splats is not None else ""
    since = f"; not finite before it: {bad}" if bad else "; lower the learning rates"
    raise FloatingPointError(f"step {step}: the loss is not finite ({parts}){since}")


def sick(splats: Rows) -> dict[str, int]:
    """Parameter -> how many of its rows are not finite; those alone that have some."""
    found = {}
    for name, leaf in splats.leaves().items():
        if not leaf.detach().sum().isfinite():  # a cheap look first
            rows = ~leaf.detach().isfinite().reshape(len(leaf), -1).all(1)
            found |= {name: int(rows.sum())} if rows.any() else {}
    return found


def _footprints(render: Render) -> Tensor:
    """Radii px of the rows in view: 3 standard deviations along the longer axis, blur included."""
    with torch.no_grad():
        a, b, c = render.conics.detach()[render.visible].unbind(-1)
        least = 0.5 * (a + c) - torch.hypot(0.5 * (a - c), b)  # eigenvalue of the inverse covariance
        return 3 * least.clamp_min(1e-12).rsqrt()


def _spread(name: str, values: Tensor) -> dict[str, float]:
    """Least, mean and largest of some values; nothing of none."""
    if not len(values):
        return {}
    low, high = values.detach().aminmax()
    return {
        f"{name}_min": float(low),
        f"{name}_mean": float(values.detach().mean()),
        f"{name}_max": float(high),
    }
