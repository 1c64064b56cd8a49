"""Opacity policies: periodic changes of all opacities that do not depend on any rule."""

from dataclasses import dataclass, field

import torch

from splatexp.gaussians.splats import Overwrite, Splats
from splatexp.settings.checks import STEPS, check_choice, check_range


def is_due(step: int, every: int, start: int, stop: int) -> bool:
    """Return whether an event follows a step, which is counted from 0.

    With done = step + 1 steps completed, an event follows where done is a multiple of `every` and
    start < done < stop. `every` 0 means never, `stop` 0 means no end. This is how the papers count:
    "500 < iteration < 15,000".
    """
    done = step + 1
    return every > 0 and done % every == 0 and start < done and (done < stop or not stop)


@dataclass
class OpacityReset:
    """Bring every opacity into [floor, value] every so many steps, and set its Adam moments to 0.

    kind:
        clamp     o is clamped into [floor, value].
        recentre  o becomes floor + (value - floor) o, which keeps the order of the opacities.

    Source: Kerbl et al. 2023, section 5.2 (clamp with floor 0).
    """

    kind: str = "clamp"
    every: int = 3000  # steps between resets; 0: never
    value: float = 0.01  # highest opacity after a reset
    floor: float = 0.0  # lowest opacity after a reset
    start: int = field(default=0, metadata=STEPS)  # resets come after more than this many steps
    stop: int = field(default=15_000, metadata=STEPS)  # and after fewer than this many; 0: until the end

    def __post_init__(self) -> None:
        check_choice("opacity_reset.kind", self.kind, ("clamp", "recentre"))
        check_range("opacity_reset.every", self.every, 0)
        check_range("opacity_reset.value", self.value, 1e-6, 1 - 1e-6)
        check_range("opacity_reset.floor", self.floor, 0, self.value)
        check_range("opacity_reset.start", self.start, 0)
        check_range("opacity_reset.stop", self.stop, 0)

    def is_due(self, step: int) -> bool:
        """Return whether a reset follows a step."""
        return is_due(step, self.every, self.start, self.stop)

    def in_cooldown(self, step: int, cooldown: int) -> bool:
        """Return whether a reset came in the last `cooldown` steps before the event after a step."""
        if not self.every:
            return False
        last = step // self.every * self.every  # steps done at the last multiple before this event
        return 0 < last and step + 1 - last <= cooldown and self.is_due(last - 1)

    def plan(self, splats: Splats) -> Overwrite:
        """Return the opacity logits after a reset."""
        if self.kind == "recentre":
            opacities = self.floor + (self.value - self.floor) * splats.opacities.detach()
            return Overwrite("opacity_logits", opacities.clamp(1e-6, 1 - 1e-6).logit())
        bounds = torch.tensor([self.floor, self.value]).logit()  # a floor of 0 gives -inf, which is no bound
        return Overwrite("opacity_logits", splats.opacity_logits.detach().clamp(*bounds.tolist()))


DEFAULT_AMOUNTS = {"none": 0.0, "subtract": 0.001, "odds": 0.99, "clip": 0.8}


@dataclass
class OpacityDecay:
    """Lower all opacities a little at a time, as a gentle alternative to resets; Adam moments stay.

    kind:
        subtract  o becomes o - amount.              Source: Rota Bulo et al. 2024, section 3.4
        odds      o / (1 - o) is multiplied by amount.  Source: Kotovenko et al. 2025, "EDGS"
        clip      o becomes at most amount.          Source: Ye et al. 2024, "AbsGS"
        none      opacities are left alone.
    """

    kind: str = "none"
    amount: float = 0.0  # 0: 0.001 with subtract, 0.99 with odds, 0.8 with clip
    floor: float = 1e-4  # subtract lowers no opacity below this, and raises none
    every: int = 0  # steps between decays; 0: at every event of the strategy
    start: int = field(default=0, metadata=STEPS)  # decays come after more than this many steps
    stop: int = field(default=0, metadata=STEPS)  # and after fewer than this many; 0: as the strategy

    def __post_init__(self) -> None:
        check_choice("opacity_decay.kind", self.kind, DEFAULT_AMOUNTS)
        check_range("opacity_decay.amount", self.amount, 0, 1)
        check_range("opacity_decay.floor", self.floor, 1e-6, 1)
        for name in ("every", "start", "stop"):
            check_range(f"opacity_decay.{name}", getattr(self, name), 0)
        if self.kind == "none" and self.amount:
            raise ValueError(
                f"opacity_decay.amount: expected 0 with opacity_decay.kind=none, got {self.amount}"
            )

    def is_due(self, step: int, event: bool, stop: int) -> bool:
        """Return whether a decay follows a step.

        Args:
            event: whether the strategy has an event after this step.
            stop: end of the strategy, in steps; 0: it has none.
        """
        if self.kind == "none":
            return False
        if self.every:
            return is_due(step, self.every, self.start, self.stop or stop)
        return event and is_due(step, 1, self.start, self.stop)

    def amount_at(self, step: int, stop: int) -> float:
        """Return the amount that is in force at a step, or 0, for a strategy that ends at `stop`."""
        in_window = is_due(step, 1, self.start, self.stop or stop)
        return (self.amount or DEFAULT_AMOUNTS[self.kind]) if in_window and self.kind != "none" else 0.0

    def plan(self, splats: Splats) -> Overwrite:
        """Return the opacity logits after a decay."""
        logits, amount = splats.opacity_logits.detach(), self.amount or DEFAULT_AMOUNTS[self.kind]
        if self.kind == "odds":
            logits = logits + torch.tensor(amount).log().item()
        elif self.kind == "clip":
            logits = logits.clamp_max(torch.tensor(amount).clamp_max(1 - 1e-6).logit().item())
        else:
            opacities = splats.opacities.detach()
            lower = (opacities - amount).clamp_min(self.floor).logit()
            logits = torch.where(opacities > self.floor, lower, logits)
        return Overwrite("opacity_logits", logits, reset_moments=False)
