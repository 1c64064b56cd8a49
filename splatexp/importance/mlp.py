"""Importance as the prediction of a small network from features of each row."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import LearnedImportance, adam_update
from splatexp.settings.checks import check_range
from splatexp.system.devices import to_device
from splatexp.system.rng import generator

WIDTH, FEATURES = 32, 16
LAYERS = tuple(f"importance_{kind}{layer}" for layer in (0, 1, 2) for kind in ("weight", "bias"))
BLOCK = 8192  # rows whose activations fit into a core's cache


@dataclass
class MLP(LearnedImportance):
    """Predict s = sigmoid(MLP(features)), 16 -> 32 -> 32 -> 1 with SiLU, which starts at sigmoid(4) = 0.98.

    No gradient flows into the rows through their features. Between updates s stays fixed and accumulates
    d loss / d s of every step; an update trains on a random sample of the rows and then predicts all of them.
    What holds for a kind of row is learned from all rows of that kind and applied to rows that no view sees,
    too: so s is not just a second opacity.

    Source: the README of Kim and Kwon 2025 mentions such a network, but its code has none; this one is new.
    """

    lr: float = 1e-3  # Adam's learning rate at the start
    lr_end: float = 1e-5  # reached along a cosine at the end of the run, or where s is folded in
    weight_decay: float = 1e-4  # decoupled, of the weights (not of the biases)
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    every: int = 10  # steps between updates
    sample_size: int = 4096  # rows that an update trains on; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "lr_end", "weight_decay", "sample_size"):
            check_range(f"importance.{name}", getattr(self, name), 0)
        check_range("importance.max_grad_norm", self.max_grad_norm, 1e-12)
        check_range("importance.every", self.every, 1)

    def _create(self, splats: Splats, seed: int) -> None:
        random = generator("importance", seed)
        for layer, (width, depth) in enumerate(((WIDTH, FEATURES), (WIDTH, WIDTH), (1, WIDTH))):
            weight = torch.randn(width, depth, generator=random) * (1 / depth**0.5 if layer < 2 else 0.0)
            bias = torch.full((width, 1), 0.0 if layer < 2 else 4.0)
            splats.add_shared(LAYERS[2 * layer], weight.to(splats.means.device))
            splats.add_shared(LAYERS[2 * layer + 1], bias.to(splats.means.device))
        start = torch.full_like(splats.opacity_logits, 4.0).detach()
        splats.importance = start.sigmoid().requires_grad_()

    def _update(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        if (step + 1) % self.every and not last:
            return False
        inputs = row_features(splats, step, steps)
        layers = [splats.shared[name] for name in LAYERS]
        s = splats.importance
        assert s is not None
        if s.grad is not None and len(s):
            accumulated = step % self.every + 1
            self._update_weights(splats, inputs, s.grad / accumulated, step, steps, backend, seed)
        for block, rows in zip(s.detach().split(BLOCK), inputs.split(BLOCK, dim=1), strict=True):
            block.copy_(predict_importance(rows, layers))
        return True

    def _update_weights(
        self, splats: Splats, inputs: Tensor, grad: Tensor, step: int, steps: int, backend: str, seed: int
    ) -> None:
        """Update the weights once by d loss / d s [N]."""
        count = len(grad)
        if 0 < self.sample_size < count:
            random = generator("importance", seed, step)
            rows = torch.randint(count, (self.sample_size,), generator=random)
            rows = to_device(rows, grad.device)
            inputs, grad = inputs[:, rows], grad[rows] * (count / self.sample_size)
        layers = [splats.shared[name] for name in LAYERS]
        with torch.enable_grad():
            grads = torch.autograd.grad(predict_importance(inputs, layers), layers, grad)
        norms = [g.norm() for g in grads]
        scale: float | Tensor
        if grad.is_cpu:
            scale = min(1.0, self.max_grad_norm / max(1e-30, math.hypot(*map(float, norms))))
        else:  # on a GPU the norm is not read back, which would wait for it
            norm = torch.stack(norms).double().norm().clamp_min(1e-30)
            scale = (self.max_grad_norm / norm).clamp_max(1.0).float()
        lr = self._lr_at(step, steps)
        for name, leaf, g in zip(LAYERS, layers, grads, strict=True):
            if "weight" in name:
                leaf.mul_(1 - lr * self.weight_decay)
            adam_update(splats, name, g * scale, step // self.every + 1, lr, backend)

    def _lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate at a step of a run of `steps`."""
        progress = min(1.0, (step + 1) / (self.bake_at or steps))
        return self.lr_end + (self.lr - self.lr_end) * (0.5 + 0.5 * math.cos(math.pi * progress))


def predict_importance(inputs: Tensor, layers: list[Tensor]) -> Tensor:
    """Return the importance [N] of rows with features [16,N].

    Args:
        layers: weights and biases in the order of LAYERS.
    """
    hidden = inputs
    for weight, bias in zip(layers[:4:2], layers[1:4:2], strict=True):
        hidden = torch.nn.functional.silu(torch.addmm(bias, weight, hidden))
    return torch.addmm(layers[5], layers[4], hidden)[0].sigmoid()


@torch.no_grad()
def row_features(splats: Splats, step: int, steps: int) -> Tensor:
    """Return the features [16,N] of the rows, with mean 0 and deviation 1 over the rows, cut off at 5.

    They are: log scales, sorted, and log volume; opacity logit; colour (3) and norm of the higher SH bands;
    error, weight and footprint per view, peak weight, gradient per view and views, each as log(1 + x / mean),
    or 0 where density control does not gather it; and the age as a fraction of the run.
    """
    largest, smallest = splats.log_scales.amax(1), splats.log_scales.amin(1)
    volume = splats.log_scales.sum(1) * (3 / splats.log_scales.shape[1])
    rows = [largest, volume - largest - smallest, smallest, volume, splats.opacity_logits]
    rows += [*splats.sh0[:, 0].unbind(1), splats.shN.flatten(1).norm(dim=1)]
    rows += [_per_view(splats, base) for base in ("error", "weight", "footprint")]
    rows += [_relative(splats, "peak.max"), _relative(splats, "grad2d.sum", "views")]
    rows += [_relative(splats, "views")]
    rows.append((step - splats.born) / steps)
    features = torch.stack(rows)
    features -= features.mean(1, keepdim=True)
    deviation = features.square().mean(1, keepdim=True).sqrt()  # torch.std takes ten times as long
    return features.div_(deviation.clamp_min(1e-3)).clamp_(-5, 5)


def _per_view(splats: Splats, base: str) -> Tensor:
    """Return a channel's moving average where there is one, else its mean over the last survey."""
    if f"{base}.ema" in splats.stats:
        return _relative(splats, f"{base}.ema")
    return _relative(splats, f"{base}.sum", "surveyed")


def _relative(splats: Splats, name: str, count: str = "") -> Tensor:
    """Return log(1 + x / mean) of a statistic, or 0 where it is not gathered.

    Args:
        count: the statistic is first divided by this one, where it is named and gathered.
    """
    value = splats.stats.get(name)
    if value is None:
        return torch.zeros_like(splats.opacity_logits)
    if count in splats.stats:
        value = value / splats.stats[count].clamp_min(1)
    value = value.clamp_min(0)
    return (value / value.mean().clamp_min(1e-20)).log1p()
