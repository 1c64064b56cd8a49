"""Adam over the parameters of Gaussians, one fused update each, with the moments that `Splats` carries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import PARAMS
from splatexp.schedules.curve import check_turns
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.raster.rasterizer import Drawing
    from splatexp.train.step_log import Sight


@dataclass
class Decay:
    """Weight decay by parameter: an update draws towards 0 by this share of its learning rate; 0: off.

    Scales and opacities decay as activated.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay", algorithm 2 (AdamW).
    Differs: the logarithm and the logit themselves would decay towards a scale of 1 and an opacity of 0.5.
    """

    means: float = 0.0
    quats: float = 0.0
    log_scales: float = 0.0
    opacity_logits: float = 0.0
    sh0: float = 0.0
    shN: float = 0.0

    def __post_init__(self) -> None:
        for name in PARAMS:
            check_range(f"decay.{name}", getattr(self, name), 0)

    @torch.no_grad()
    def apply(self, name: str, param: Tensor, share: float, rows: Tensor | None) -> None:
        """Take `share`, in (0, 1), from a parameter in place, in the rows [N] bool alone where given."""
        # a device would have to tell how many rows there are: there all are reckoned
        old = param[rows] if rows is not None and param.is_cpu else param
        if name == "log_scales":
            new = old + math.log1p(-share)
        elif name == "opacity_logits":  # logit of (1 - share) * sigmoid
            new = old + math.log1p(-share) - softplus(old + math.log(share))
        else:
            new = old * (1 - share)
        if rows is None:
            param.copy_(new)
        elif param.is_cpu:
            param[rows] = new
        else:
            param.copy_(torch.where(rows.view(-1, *(1 for _ in param.shape[1:])), new, param))


@dataclass
class Updates:
    """Adam's updates of rows of any kind; a parameter without a gradient rests.

    Between updates that `update_every` holds back, gradients add up in `.grad` (a sum, not a mean) and move
    with their rows; an update takes the sum and drops it. What has not been taken by the end of a run is
    lost. Density control is not concerned, for it reads `means2d.grad` of each step's render, but for the
    channels `grad3d` and `opacity_pull`, which see the sum so far.

    Source: Kingma and Ba 2015; several steps per update: "Improved-GS" (arXiv 2508.12313).
    """

    NAMES: ClassVar[tuple[str, ...]] = ()  # of the parameters; each field of such a name is a learning rate
    SEEN: ClassVar[dict[str, tuple[str, ...]]] = {}  # statistic of the rows that were seen -> whose

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    sparse: bool = False  # rows that no view has seen since the last update rest, and so do their moments
    update_every: list[int] = field(default_factory=lambda: [1])  # steps per update, in turn
    update_until: list[int] = field(default_factory=list, metadata=STEPS)  # where each but the last ends

    def __post_init__(self) -> None:
        for name in (*self.NAMES, "eps"):
            check_range(f"optimizer.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(f"optimizer.{name}", getattr(self, name), 0, 1 - 1e-9)
        check_turns(
            ("optimizer.update_every", "optimizer.update_until"), self.update_every, self.update_until
        )

    def updates(self, name: str, step: int) -> int:
        """How often a parameter is updated up to and with a step; -1 is before the first.

        It follows from the step alone, so that a resumed run corrects the bias of its moments as one that
        was not interrupted. A parameter that had no gradient (bands of a degree still to come) is counted as
        if it had been 0.
        """
        least = self._every(name)
        count, begin = 0, 0
        for every, until in zip(self.update_every, [*self.update_until, step + 1], strict=True):
            end = max(begin, min(until, step + 1))
            slower = max(every, least)
            count += end // every * every // slower - begin // every * every // slower
            begin = end
        return count

    def _every(self, name: str) -> int:
        """Steps between updates of a parameter at least."""
        return 1

    def rates(self, factors: Mapping[str, float], splats: Rows) -> dict[str, float]:
        """The learning rates `lr_<parameter>` that factors by parameter give, for the record."""
        rates = {f"lr_{name}": getattr(self, name) * factor for name, factor in factors.items()}
        return rates | {"lr_means": rates["lr_means"] * splats.extent}

    def finish(
        self, splats: Rows, sight: "Sight", raster: "Drawing", step: int, steps: int, best: list[float]
    ) -> bool:
        """Do what else is due, in place, when all of a step is done.  Returns: whether it was the last.

        Args:
            sight: the step's picture, as it was before the update.
            best: of `Record`, for an optimizer that may end a run early.
        """
        return step + 1 == steps

    def step(
        self, splats: Rows, step: int, *, rates: Mapping[str, float], visible: Tensor, backend: str
    ) -> None:
        """Update what is due at a step, in place, and drop its gradient; the others keep theirs.

        Args:
            step: of the run, from 0.
            rates: factors of the learning rates, by parameter.
            visible: [C,N] bool; used where `sparse`.
        """
        due = {name: self.updates(name, step) for name in self.NAMES if name in splats.params}
        due = {name: count for name, count in due.items() if count > self.updates(name, step - 1)}
        seen = self._seen(splats, due, visible.any(0)) if self.sparse else {}
        for name, count in due.items():
            param = splats.params[name]
            if param.grad is None:
                continue
            rate = getattr(self, name) * rates[name] * (splats.extent if name == "means" else 1.0)
            self._update(splats, name, count, rate, seen.get(name), backend)
            param.grad = None

    def _update(
        self, splats: Rows, name: str, count: int, rate: float, rows: Tensor | None, backend: str
    ) -> None:
        """The update of a number, from 1, of a parameter that has a gradient; rows [N] bool; None: all."""
        param = splats.params[name]
        adam(
            param, param.grad, splats.exp_avg[name], splats.exp_avg_sq[name], step=count, lr=rate,
            beta1=self.beta1, beta2=self.beta2, eps=self.eps, visible=rows, backend=backend,
        )  # fmt: skip

    def _seen(self, splats: Rows, due: Mapping[str, int], now: Tensor) -> dict[str, Tensor]:
        """Rows [N] bool that a view has seen since the last update, of each parameter that is due.

        Where steps are collected the rows seen so far are a statistic, which edits move with its rows.
        """
        rows = {}
        for stat, names in self.SEEN.items():
            if self.update_every == [1] and self._every(names[0]) == 1:
                rows |= dict.fromkeys(names, now)
                continue
            past = splats.row_stat(stat)
            past.masked_fill_(now, 1.0)
            if names[0] in due:
                rows |= dict.fromkeys(names, past > 0)
                past.zero_()
        return rows


@dataclass
class Adam(Updates):
    """Learning rates per parameter, as in the code of 3DGS; see `Updates`.

    Source: Kerbl et al. 2023; SH at a slower pace: Mallick et al. 2024, "Taming 3DGS".
    Differs: opacities learn at 0.05 as the paper's first code did, not at 0.025.
    """

    NAMES = PARAMS
    SEEN = {"seen": tuple(name for name in PARAMS if name != "shN"), "seen_shN": ("shN",)}

    means: float = 1.6e-4  # times the scene's extent
    quats: float = 1e-3
    log_scales: float = 5e-3
    opacity_logits: float = 0.05
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20
    sh_every: int = 1  # shN: with the first update from every so many steps on
    decay: Decay = field(default_factory=Decay)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimizer.sh_every", self.sh_every, 1)

    def _every(self, name: str) -> int:
        return self.sh_every if name == "shN" else 1

    def _update(
        self, splats: Rows, name: str, count: int, rate: float, rows: Tensor | None, backend: str
    ) -> None:
        if share := rate * getattr(self.decay, name):
            if share >= 1:
                raise ValueError(f"optimizer.decay.{name}: expected below 1 / {rate:g}, got {share / rate}")
            self.decay.apply(name, splats.params[name], share, rows)
        super()._update(splats, name, count, rate, rows, backend)
