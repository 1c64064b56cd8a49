"""Importance as a small network's judgement of what is known of a row."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import Learned, learn
from splatexp.settings.checks import check_range
from splatexp.system.devices import sent
from splatexp.system.rng import generator

WIDTH, FEATURES = 32, 16
LAYERS = tuple(f"importance_{kind}{layer}" for layer in (0, 1, 2) for kind in ("weight", "bias"))
BLOCK = 8192  # rows whose activations fit a core's cache


@dataclass
class MLP(Learned):
    """s = sigmoid(MLP(features)), 16 -> 32 -> 32 -> 1 with SiLU, which begins at sigmoid(4) = 0.98 for all.

    No gradient reaches a row through its features. Between updates s rests and gathers d loss / d s of every
    step; an update learns from a random sample of rows, then judges all. What holds of a kind of row is
    learned from all of that kind, and said of those too that no view sees: so s is not one more opacity.

    Source: the README of Kim and Kwon 2025 names such a network, its code has none: this one is ours.
    """

    rate: float = 1e-3  # of Adam
    rate_end: float = 1e-5  # reached by a cosine at the end of the run, or where s is folded in
    weight_decay: float = 1e-4  # decoupled, of the weights
    clip: float = 1.0  # length of the gradient
    every: int = 10  # steps between updates
    sample: int = 4096  # rows that an update learns from; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate", "rate_end", "weight_decay", "sample"):
            check_range(f"importance.{name}", getattr(self, name), 0)
        check_range("importance.clip", self.clip, 1e-12)
        check_range("importance.every", self.every, 1)

    def _lay(self, splats: Splats, seed: int) -> None:
        random = generator("importance", seed)
        for layer, (width, depth) in enumerate(((WIDTH, FEATURES), (WIDTH, WIDTH), (1, WIDTH))):
            weight = torch.randn(width, depth, generator=random) * (1 / depth**0.5 if layer < 2 else 0.0)
            bias = torch.full((width, 1), 0.0 if layer < 2 else 4.0)
            splats.add_shared(LAYERS[2 * layer], weight.to(splats.means.device))
            splats.add_shared(LAYERS[2 * layer + 1], bias.to(splats.means.device))
        start = torch.full_like(splats.opacity_logits, 4.0).detach()
        splats.importance = start.sigmoid().requires_grad_()

    def _learn(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        if (step + 1) % self.every and not last:
            return False
        known = features(splats, step, steps)
        layers = [splats.shared[name] for name in LAYERS]
        s = splats.importance
        assert s is not None
        if s.grad is not None and len(s):
            gathered = step % self.every + 1
            self._descend(splats, known, s.grad / gathered, step, steps, backend, seed)
        for block, rows in zip(s.detach().split(BLOCK), known.split(BLOCK, dim=1), strict=True):
            block.copy_(judge(rows, layers))
        return True

    def _descend(
        self, splats: Splats, known: Tensor, grad: Tensor, step: int, steps: int, backend: str, seed: int
    ) -> None:
        """One update of the weights by d loss / d s [N]."""
        count = len(grad)
        if 0 < self.sample < count:
            rows = torch.randint(count, (self.sample,), generator=generator("importance", seed, step))
            rows = sent(rows, grad.device)
            known, grad = known[:, rows], grad[rows] * (count / self.sample)
        layers = [splats.shared[name] for name in LAYERS]
        with torch.enable_grad():
            grads = torch.autograd.grad(judge(known, layers), layers, grad)
        norms = [g.norm() for g in grads]
        shrink: float | Tensor
        if grad.is_cpu:
            shrink = min(1.0, self.clip / max(1e-30, math.hypot(*map(float, norms))))
        else:  # a device is not asked for it
            length = torch.stack(norms).double().norm().clamp_min(1e-30)
            shrink = (self.clip / length).clamp_max(1.0).float()
        rate = self._rate(step, steps)
        for name, leaf, g in zip(LAYERS, layers, grads, strict=True):
            if "weight" in name:
                leaf.mul_(1 - rate * self.weight_decay)
            learn(splats, name, g * shrink, step // self.every + 1, rate, backend)

    def _rate(self, step: int, steps: int) -> float:
        part = min(1.0, (step + 1) / (self.bake_at or steps))
        return self.rate_end + (self.rate - self.rate_end) * (0.5 + 0.5 * math.cos(math.pi * part))


def judge(known: Tensor, layers: list[Tensor]) -> Tensor:
    """The importance [N] of rows with features [16,N]."""
    hidden = known
    for weight, bias in zip(layers[:4:2], layers[1:4:2], strict=True):
        hidden = torch.nn.functional.silu(torch.addmm(bias, weight, hidden))
    return torch.addmm(layers[5], layers[4], hidden)[0].sigmoid()


@torch.no_grad()
def features(splats: Splats, step: int, steps: int) -> Tensor:
    """What is known of the rows, [16,N]: mean 0 and deviation 1 over all rows, cut off at 5.

    Log scales, sorted, and log volume; opacity logit; colour (3) and length of the higher bands; error,
    weight and footprint per view, peak weight, gradient per view and views, each as log(1 + x / mean), 0
    where density control does not gather it; age in runs.
    """
    largest, smallest = splats.log_scales.amax(1), splats.log_scales.amin(1)
    volume = splats.log_scales.sum(1) * (3 / splats.log_scales.shape[1])
    rows = [largest, volume - largest - smallest, smallest, volume, splats.opacity_logits]
    rows += [*splats.sh0[:, 0].unbind(1), splats.shN.flatten(1).norm(dim=1)]
    rows += [_per_view(splats, base) for base in ("error", "weight", "footprint")]
    rows += [_relative(splats, "peak.max"), _relative(splats, "grad2d.sum", "views")]
    rows += [_relative(splats, "views")]
    rows.append((step - splats.born) / steps)
    known = torch.stack(rows)
    known -= known.mean(1, keepdim=True)
    spread = known.square().mean(1, keepdim=True).sqrt()  # torch.std takes ten times as long
    return known.div_(spread.clamp_min(1e-3)).clamp_(-5, 5)


def _per_view(splats: Splats, base: str) -> Tensor:
    """A channel's moving average where density control keeps one, else its mean over the last survey."""
    if f"{base}.ema" in splats.stats:
        return _relative(splats, f"{base}.ema")
    return _relative(splats, f"{base}.sum", "surveyed")


def _relative(splats: Splats, name: str, count: str = "") -> Tensor:
    """log(1 + x / mean) of a statistic, divided by a count where one is named; 0 where nobody gathers it."""
    value = splats.stats.get(name)
    if value is None:
        return torch.zeros_like(splats.opacity_logits)
    if count in splats.stats:
        value = value / splats.stats[count].clamp_min(1)
    value = value.clamp_min(0)
    return (value / value.mean().clamp_min(1e-20)).log1p()
