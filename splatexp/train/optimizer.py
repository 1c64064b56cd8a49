"""Adam over the parameters of Gaussians: one fused update per parameter, with moments held by the rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import PARAMS
from splatexp.schedules.curve import check_phases
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.raster.rasterizer import Rasterizer
    from splatexp.train.step_log import StepOutput


@dataclass
class WeightDecay:
    """Decoupled weight decay by parameter, as a multiple of the learning rate; 0 is off.

    An update multiplies the parameter by 1 - decay * learning rate. For scales and opacities, that holds of
    the activated values.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay", algorithm 2 (AdamW).
    Differs: decay of the stored values would lead to scales of 1 and opacities of 0.5.
    """

    means: float = 0.0
    quats: float = 0.0
    log_scales: float = 0.0
    opacity_logits: float = 0.0
    sh0: float = 0.0
    shN: float = 0.0

    def __post_init__(self) -> None:
        for name in PARAMS:
            check_range(f"optimizer.weight_decay.{name}", getattr(self, name), 0)

    @torch.no_grad()
    def apply(self, name: str, param: Tensor, fraction: float, rows: Tensor | None) -> None:
        """Decrease a parameter by a fraction of its activated value, in place.

        Args:
            name: of the parameter, which says how it is activated.
            fraction: in (0, 1).
            rows: [N] bool, the rows that decay; None for all.
        """
        # indexing by a mask waits for a device to count the rows, so there the new value of all is computed
        old = param[rows] if rows is not None and param.is_cpu else param
        if name == "log_scales":
            new = old + math.log1p(-fraction)
        elif name == "opacity_logits":  # the logit of (1 - fraction) * sigmoid(old)
            new = old + math.log1p(-fraction) - softplus(old + math.log(fraction))
        else:
            new = old * (1 - fraction)
        if rows is None:
            param.copy_(new)
        elif param.is_cpu:
            param[rows] = new
        else:
            param.copy_(torch.where(rows.view(-1, *(1 for _ in param.shape[1:])), new, param))


@dataclass
class Optimizer:
    """Adam for rows of any kind; a parameter without a gradient is not updated.

    With `update_every` above 1, gradients accumulate in `.grad` (as a sum, not a mean) and move with their
    rows; an update uses the sum and drops it. Gradients that no update has used by the end of a run are
    lost. Density control reads `means2d.grad` of each step's render, so it is not affected, except for the
    statistics `grad3d` and `opacity_pull`, which read the sum so far.

    Source: Kingma and Ba 2015; several steps per update: "Improved-GS" (arXiv 2508.12313).
    """

    PARAM_NAMES: ClassVar[tuple[str, ...]] = ()  # each is also a field, the parameter's learning rate
    # name of the statistic that marks the rows seen since the last update -> the parameters that it is for
    SEEN_STATS: ClassVar[dict[str, tuple[str, ...]]] = {}

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    sparse: bool = False  # do not update rows (nor their moments) that no view has seen since the last update
    update_every: list[int] = field(
        default_factory=lambda: [1]
    )  # steps per update, one value for each phase of the run
    update_until: list[int] = field(
        default_factory=list, metadata=STEPS
    )  # step at which each phase but the last ends

    def __post_init__(self) -> None:
        for name in (*self.PARAM_NAMES, "eps"):
            check_range(f"optimizer.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(f"optimizer.{name}", getattr(self, name), 0, 1 - 1e-9)
        check_phases(
            ("optimizer.update_every", "optimizer.update_until"), self.update_every, self.update_until
        )

    def update_count(self, name: str, step: int) -> int:
        """Return the number of updates of a parameter up to and including a step; -1 is before the first.

        The count follows from the step alone, so that a resumed run corrects the bias of its moments like an
        uninterrupted one. Updates that are skipped because a parameter has no gradient yet (as SH bands of a
        later degree) are counted too.
        """
        interval = self._min_interval(name)
        count, begin = 0, 0
        for every, until in zip(self.update_every, [*self.update_until, step + 1], strict=True):
            end = max(begin, min(until, step + 1))
            slower = max(every, interval)
            count += end // every * every // slower - begin // every * every // slower
            begin = end
        return count

    def _min_interval(self, name: str) -> int:
        """Return the smallest number of steps between two updates of a parameter."""
        return 1

    def learning_rates(self, factors: Mapping[str, float], splats: Rows) -> dict[str, float]:
        """Return the learning rates as `lr_<parameter>`, for the log.

        Args:
            factors: of the learning rates, by parameter.
        """
        rates = {f"lr_{name}": getattr(self, name) * factor for name, factor in factors.items()}
        return rates | {"lr_means": rates["lr_means"] * splats.extent}

    def end_step(
        self,
        splats: Rows,
        output: "StepOutput",
        raster: "Rasterizer",
        step: int,
        steps: int,
        best: list[float],
    ) -> bool:
        """Finish a step after all updates and edits, and return whether it was the last step of the run.

        Args:
            output: the step's render, from before the update.
            best: `StepLog.best`, for an optimizer that may stop a run early.
        """
        return step + 1 == steps

    def step(
        self, splats: Rows, step: int, *, lr_factors: Mapping[str, float], visible: Tensor, backend: str
    ) -> None:
        """Update the parameters that are due at a step, in place, and drop their gradients.

        The other parameters keep their gradients for a later update.

        Args:
            step: of the run, from 0.
            lr_factors: factors of the learning rates, by parameter.
            visible: [C,N] bool, the rows that each view has seen; read where `sparse` is true.
            backend: of the Adam kernel.
        """
        due = {name: self.update_count(name, step) for name in self.PARAM_NAMES if name in splats.params}
        due = {name: count for name, count in due.items() if count > self.update_count(name, step - 1)}
        seen = self._seen_rows(splats, due, visible.any(0)) if self.sparse else {}
        for name, count in due.items():
            param = splats.params[name]
            if param.grad is None:
                continue
            lr = getattr(self, name) * lr_factors[name] * (splats.extent if name == "means" else 1.0)
            self._update(splats, name, count, lr, seen.get(name), backend)
            param.grad = None

    def _update(
        self, splats: Rows, name: str, count: int, lr: float, rows: Tensor | None, backend: str
    ) -> None:
        """Update a parameter that has a gradient.

        Args:
            count: the number of this update, from 1.
            rows: [N] bool, the rows to update; None for all.
        """
        param = splats.params[name]
        adam(
            param,
            param.grad,
            splats.exp_avg[name],
            splats.exp_avg_sq[name],
            step=count,
            lr=lr,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            visible=rows,
            backend=backend,
        )

    def _seen_rows(self, splats: Rows, due: Mapping[str, int], now: Tensor) -> dict[str, Tensor]:
        """Return the rows [N] bool that a view has seen since the last update, by parameter that is due.

        Where an update covers several steps, the rows seen so far are a statistic that moves with the rows.

        Args:
            due: the parameters that are due.
            now: [N] bool, the rows that the views of this step have seen.
        """
        rows = {}
        for stat, names in self.SEEN_STATS.items():
            if self.update_every == [1] and self._min_interval(names[0]) == 1:
                rows |= dict.fromkeys(names, now)
                continue
            past = splats.row_stat(stat)
            past.masked_fill_(now, 1.0)
            if names[0] in due:
                rows |= dict.fromkeys(names, past > 0)
                past.zero_()
        return rows


@dataclass
class Adam(Optimizer):
    """Adam with the learning rates of 3DGS, one per parameter; see `Optimizer`.

    Source: Kerbl et al. 2023; rarer updates of SH: Mallick et al. 2024, "Taming 3DGS".
    Differs: the learning rate of opacities is 0.05, as in the first version of the code of 3DGS, not 0.025.
    """

    PARAM_NAMES = PARAMS
    SEEN_STATS = {"seen": tuple(name for name in PARAMS if name != "shN"), "seen_shN": ("shN",)}

    means: float = 1.6e-4  # multiplied by the scene's extent
    quats: float = 1e-3
    log_scales: float = 5e-3
    opacity_logits: float = 0.05
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20
    shN_update_every: int = 1  # smallest number of steps between two updates of shN
    weight_decay: WeightDecay = field(default_factory=WeightDecay)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimizer.shN_update_every", self.shN_update_every, 1)

    def _min_interval(self, name: str) -> int:
        return self.shN_update_every if name == "shN" else 1

    def _update(
        self, splats: Rows, name: str, count: int, lr: float, rows: Tensor | None, backend: str
    ) -> None:
        fraction = lr * getattr(self.weight_decay, name)
        if fraction:
            if fraction >= 1:
                raise ValueError(
                    f"optimizer.weight_decay.{name}: expected below 1 / learning rate = {1 / lr:g}, "
                    f"got {getattr(self.weight_decay, name)}"
                )
            self.weight_decay.apply(name, splats.params[name], fraction, rows)
        super()._update(splats, name, count, lr, rows, backend)
