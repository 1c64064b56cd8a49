"""Opacity policies: what happens to all opacities now and then, whatever the rules do."""

from dataclasses import dataclass, field

import torch

from splatexp.gaussians.splats import Overwrite, Splats
from splatexp.settings.checks import STEPS, check_choice, check_range


def due(step: int, every: int, start: int, stop: int) -> bool:
    """Whether an event follows a step (from 0): with so many steps done, start < done < stop.

    `every` 0 is never, `stop` 0 without an end. This is how the papers count: "500 < iteration < 15,000".
    """
    done = step + 1
    return every > 0 and done % every == 0 and start < done and (done < stop or not stop)


@dataclass
class Reset:
    """Now and then every opacity goes into [floor, value], and its moments to 0.

    kind: clamp (what lies outside goes to the nearer end), recentre (all are squeezed, in their order).
    Source: Kerbl et al. 2023, section 5.2 (clamp with floor 0).
    """

    kind: str = "clamp"
    every: int = 3000  # 0: never
    value: float = 0.01
    floor: float = 0.0
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=15_000, metadata=STEPS)

    def __post_init__(self) -> None:
        check_choice("reset.kind", self.kind, ("clamp", "recentre"))
        check_range("reset.every", self.every, 0)
        check_range("reset.value", self.value, 1e-6, 1 - 1e-6)
        check_range("reset.floor", self.floor, 0, self.value)
        check_range("reset.start", self.start, 0)
        check_range("reset.stop", self.stop, 0)

    def due(self, step: int) -> bool:
        """Whether it follows a step."""
        return due(step, self.every, self.start, self.stop)

    def within(self, step: int, pause: int) -> bool:
        """Whether one came in the last `pause` steps before a step."""
        if not self.every:
            return False
        last = step // self.every * self.every  # steps done at the last multiple before this event
        return 0 < last and step + 1 - last <= pause and self.due(last - 1)

    def plan(self, splats: Splats) -> Overwrite:
        """The new logits."""
        if self.kind == "recentre":
            opacities = self.floor + (self.value - self.floor) * splats.opacities.detach()
            return Overwrite("opacity_logits", opacities.clamp(1e-6, 1 - 1e-6).logit())
        ends = torch.tensor([self.floor, self.value]).logit()  # of 0 it is -inf: no floor
        return Overwrite("opacity_logits", splats.opacity_logits.detach().clamp(*ends.tolist()))


AMOUNTS = {"none": 0.0, "subtract": 0.001, "odds": 0.99, "clip": 0.8}


@dataclass
class Fade:
    """A gentle pressure on opacities instead of resets; moments stay.

    kind: subtract (o - amount; Rota Bulo et al. 2024, section 3.4), odds (o / (1 - o) times amount; Kotovenko
    et al. 2025, "EDGS"), clip (no more than amount; Ye et al. 2024, "AbsGS"), none.
    """

    kind: str = "none"
    amount: float = 0.0  # 0: 0.001 to subtract, 0.99 of the odds, 0.8 to clip at
    floor: float = 1e-4  # subtracting goes no lower, and lifts nothing
    every: int = 0  # steps; 0: with every event
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: with the strategy

    def __post_init__(self) -> None:
        check_choice("fade.kind", self.kind, AMOUNTS)
        check_range("fade.amount", self.amount, 0, 1)
        check_range("fade.floor", self.floor, 1e-6, 1)
        for name in ("every", "start", "stop"):
            check_range(f"fade.{name}", getattr(self, name), 0)
        if self.kind == "none" and self.amount:
            raise ValueError(f"fade.amount: expected 0 with kind=none, got {self.amount}")

    def due(self, step: int, event: bool, stop: int) -> bool:
        """Whether it follows a step that is an event or not, of a strategy that ends so."""
        on = due(step, self.every, self.start, self.stop or stop)
        return self.kind != "none" and (on if self.every else event and due(step, 1, self.start, self.stop))

    def strength(self, step: int, stop: int) -> float:
        """The amount while it is in force, of a strategy that ends so; else 0."""
        on = due(step, 1, self.start, self.stop or stop)
        return (self.amount or AMOUNTS[self.kind]) if on and self.kind != "none" else 0.0

    def plan(self, splats: Splats) -> Overwrite:
        """The new logits."""
        logits, amount = splats.opacity_logits.detach(), self.amount or AMOUNTS[self.kind]
        if self.kind == "odds":
            logits = logits + torch.tensor(amount).log().item()
        elif self.kind == "clip":
            logits = logits.clamp_max(torch.tensor(amount).clamp_max(1 - 1e-6).logit().item())
        else:
            opacities = splats.opacities.detach()
            lower = (opacities - amount).clamp_min(self.floor).logit()
            logits = torch.where(opacities > self.floor, lower, logits)
        return Overwrite("opacity_logits", logits, restart=False)
