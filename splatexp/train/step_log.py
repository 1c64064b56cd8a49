"""The log of a run's steps: the values of every logged row, and the sums behind them.

The sums are part of every checkpoint, so that the rows of a resumed run continue those before the
interruption.
"""

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
from splatexp.losses.photometric import training_psnr, training_ssim
from splatexp.raster.rasterizer import Render
from splatexp.system import memory
from splatexp.system.devices import AsyncScalar

EMA_DECAY = 0.9  # weight of the past in the moving averages over logged rows

# Field of `StepLog` -> its key in a checkpoint; these are the keys of version 0.1.
SAVED_NAMES = {
    "seconds": "seconds",
    "densify_seconds": "control",
    "log_seconds": "logging",
    "steps_since_row": "steps",
    "loss_sum": "losses",
    "seconds_at_row": "begun",
    "psnr_mean": "psnr_mean",
    "ssim_mean": "ssim_mean",
}


@dataclass
class StepOutput:
    """The render of one view in a step, its target, and the loss."""

    step: int
    terms: Mapping[str, Tensor]  # weighted terms of the loss, by name
    total: Tensor  # [] sum of the terms
    render: Render
    target: Tensor  # [C,H,W,3]
    mask: Tensor | None  # [C,H,W,1]
    camera: Camera | None = None  # the camera of the render

    @property
    def psnr(self) -> float:
        """Return the PSNR of the training view in dB."""
        return training_psnr(self.render.image, self.target, self.mask)

    def ssim(self, weight: float, backend: str) -> float:
        """Return the SSIM of the training view, taken from the loss where the loss has such a term.

        Args:
            weight: of SSIM in the loss.
            backend: of the SSIM kernel, where it has to be computed.
        """
        if "ssim" in self.terms and weight:
            return 1 - self.terms["ssim"].item() / weight
        return training_ssim(self.render.image, self.target, self.mask, backend=backend)


def merge_outputs(outputs: Sequence[StepOutput]) -> StepOutput:
    """Merge the views of one step: sum their loss terms, and keep the render and target of the last view."""
    if len(outputs) == 1:
        return outputs[0]
    names, last = outputs[0].terms, outputs[-1]
    terms = {name: torch.stack([each.terms[name].detach() for each in outputs]).sum() for name in names}
    return replace(last, terms=terms, total=torch.stack([each.total for each in outputs]).sum())


@dataclass
class PendingLoss:
    """The loss of a step whose value is still being copied from a device."""

    step: int
    terms: Mapping[str, Tensor]
    total: AsyncScalar


@dataclass
class StepLog:
    """Sums over a run: the `seconds` of its steps, and what has accumulated since the last logged row.

    All times are measured by the host's clock. The loop waits for the device where a row is due, so
    `seconds` include the device's work; `densify_seconds` and `log_seconds` are then the host's share of it.
    """

    seconds: float = 0.0  # of the steps alone, without evaluation, logging and files
    densify_seconds: float = 0.0  # of density control, a part of `seconds`
    log_seconds: float = 0.0  # of writing rows, not a part of `seconds`
    steps_since_row: int = 0
    loss_sum: float | Tensor = 0.0  # over the steps since the last row; on a device, a float64 tensor
    seconds_at_row: float = 0.0  # value of `seconds` at the last row
    psnr_mean: float = math.nan  # moving average over the rows
    ssim_mean: float = math.nan
    # rows added (or removed, then negative) since the last row, by rule and by kind of edit
    edit_counts: Counter[str] = field(default_factory=Counter)
    # the best value so far and its step, for an optimizer that may stop a run early
    best: list[float] = field(default_factory=list)
    stopped_early: bool = False  # a resumed run then has nothing left to do
    _pending: PendingLoss | None = field(default=None, repr=False)

    @contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `seconds`, `densify_seconds` or `log_seconds`."""
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)

    def count_edit(self, edit: Edit | Overwrite, grown: int) -> None:
        """Count an edit that was applied.

        Args:
            grown: by how much the number of rows has grown.
        """
        if not isinstance(edit, Edit):
            return
        self.edit_counts[f"rows_{edit.rule}"] += grown
        if edit.operator in ("prune", "merge"):
            self.edit_counts[f"{edit.operator}s"] -= grown
        elif edit.operator == "relocate":
            self.edit_counts["relocated"] += int(edit.fresh.sum())
        else:
            self.edit_counts["births"] += grown

    def total_loss(self, step: int, terms: Mapping[str, Tensor], splats: Rows) -> Tensor:
        """Return the loss of a step, the sum of its terms, and check that it is finite.

        On the CPU the check comes before the loss updates anything. On a device a check at once would wait
        for the device; so the value is copied in the background and checked in the next step, or where a row
        or a checkpoint is due (`check_pending_loss`). The loss may then have updated the rows once, but no
        checkpoint is written after it.

        Raises: FloatingPointError for a loss that is not finite.
        """
        total = torch.stack(list(terms.values())).sum()
        if total.is_cpu:
            _check_finite(step, total.item(), terms, splats)
        else:
            self.check_pending_loss()
            detached = {name: term.detach() for name, term in terms.items()}
            self._pending = PendingLoss(step, detached, AsyncScalar(total))
        return total

    def check_pending_loss(self) -> None:
        """Wait for the loss that is still being copied from a device, and check it.

        Raises: FloatingPointError where it is not finite.
        """
        pending = self._pending
        self._pending = None
        if pending is not None:
            _check_finite(pending.step, pending.total(), pending.terms)

    def end_step(self, total: Tensor, stopped_early: bool = False) -> None:
        """Count a step and its loss [].

        Args:
            stopped_early: whether the optimizer ended the run with this step, before its last one.
        """
        self.stopped_early = stopped_early
        self.steps_since_row += 1
        self.loss_sum = self.loss_sum + (total.item() if total.is_cpu else total.double())

    def metrics(self, output: StepOutput, splats: Rows, *, weight: float, backend: str) -> dict[str, float]:
        """Return the values of a logged row that follow from the step, and restart the sums.

        Args:
            weight: of SSIM in the loss.
            backend: of the SSIM kernel.
        """
        quality = {"psnr": output.psnr, "ssim": output.ssim(weight, backend)}
        for name, value in quality.items():
            before = getattr(self, f"{name}_mean")
            after = value if math.isnan(before) else EMA_DECAY * before + (1 - EMA_DECAY) * value
            setattr(self, f"{name}_mean", after)
        training = {
            "loss": float(output.total),
            "loss_mean": float(self.loss_sum) / max(1, self.steps_since_row),
        }
        training |= {f"loss_{name}": term.item() for name, term in output.terms.items()}
        training |= quality | {"psnr_mean": self.psnr_mean, "ssim_mean": self.ssim_mean}
        values: dict[str, float] = {f"train/{name}": value for name, value in training.items()}
        values["num_gaussians"] = len(splats)
        values |= {name: self.edit_counts[name] for name in ("births", "prunes", "merges", "relocated")}
        values |= {name: n for name, n in self.edit_counts.items() if name.startswith("rows_") and n}
        values |= _min_mean_max("footprint", _footprints(output.render))
        values |= _min_mean_max("opacity", output.render.opacities)
        values["memory_bytes"] = memory.resident_memory()
        values["memory_available_bytes"] = memory.available_memory() or math.nan
        if device := memory.device_memory():
            values |= {"gpu_memory_bytes": device[0], "gpu_memory_peak_bytes": device[1]}
        values["seconds"] = self.seconds
        values["seconds_densify"] = self.densify_seconds
        values["seconds_log"] = self.log_seconds
        values["steps_per_second"] = self.steps_since_row / max(1e-9, self.seconds - self.seconds_at_row)
        self.steps_since_row = 0
        self.loss_sum = 0.0
        self.seconds_at_row = self.seconds
        self.edit_counts.clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return all fields for a checkpoint, as values that JSON can hold."""
        numbers = {key: float(getattr(self, name)) for name, key in SAVED_NAMES.items()}
        state: dict[str, Any] = {key: None if math.isnan(n) else n for key, n in numbers.items()}
        state["steps"] = self.steps_since_row
        return state | {
            "moved": dict(self.edit_counts),
            "best": list(self.best),
            "ended": self.stopped_early,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "StepLog":
        """Return the log that `state_dict` described.

        Raises: ValueError where a value is missing or of another type.
        """
        log = cls()
        try:
            for name, key in SAVED_NAMES.items():
                value = math.nan if state[key] is None else type(getattr(log, name))(state[key])
                setattr(log, name, value)
            log.edit_counts = Counter({str(key): int(n) for key, n in state["moved"].items()})
            log.best = [float(value) for value in state.get("best", [])]  # not in the earliest checkpoints
            log.stopped_early = bool(state.get("ended"))  # likewise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"record: expected the log of a run's steps, got {dict(state)} ({error!r})"
            ) from error
        return log


def _check_finite(step: int, total: float, terms: Mapping[str, Tensor], splats: Rows | None = None) -> None:
    """Check that a loss is finite.

    Args:
        splats: the rows before the step, for the message; None where they have changed since.

    Raises: FloatingPointError.
    """
    if math.isfinite(total):
        return
    parts = ", ".join(f"{name}={term.item():.4g}" for name, term in terms.items())
    bad = {} if splats is None else non_finite_rows(splats)
    if bad:
        reason = "not finite before it: " + ", ".join(
            f"{count} rows of {name}" for name, count in bad.items()
        )
    else:
        reason = "lower the learning rates"
    raise FloatingPointError(f"step {step}: the loss is not finite ({parts}); {reason}")


def non_finite_rows(splats: Rows) -> dict[str, int]:
    """Return how many rows of each parameter are not finite; parameters without such rows are left out."""
    found = {}
    for name, leaf in splats.leaves().items():
        if not leaf.detach().sum().isfinite():  # a cheap test first
            rows = ~leaf.detach().isfinite().reshape(len(leaf), -1).all(1)
            found |= {name: int(rows.sum())} if rows.any() else {}
    return found


def _footprints(render: Render) -> Tensor:
    """Return the radii of the visible rows, px: 3 standard deviations along the longer axis, blurred."""
    with torch.no_grad():
        a, b, c = render.conics.detach()[render.visible].unbind(-1)
        smaller = 0.5 * (a + c) - torch.hypot(0.5 * (a - c), b)  # eigenvalue of the inverse covariance
        return 3 * smaller.clamp_min(1e-12).rsqrt()


def _min_mean_max(name: str, values: Tensor) -> dict[str, float]:
    """Return `<name>_min`, `<name>_mean` and `<name>_max`; an empty dict for no values."""
    if not len(values):
        return {}
    low, high = values.detach().aminmax()
    return {
        f"{name}_min": float(low),
        f"{name}_mean": float(values.detach().mean()),
        f"{name}_max": float(high),
    }
