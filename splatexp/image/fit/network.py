"""A small network that predicts where an image needs Gaussians, how large they are and which way they point.

It sees an image at its own resolution and the spacing that the Gaussians are to have, and predicts a density
and the logarithm of Sigma. `python -m splatexp.image.fit.train_network` trains one; the one that is shipped
was trained on synthetic images and no photograph.

Notation: an image [H,W,D]; s is the mean spacing of N Gaussians, sqrt(H W / N) px.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from splatexp.gaussians.covariance import Covariance

SHIPPED = Path(__file__).with_name("network.safetensors")
FORMAT = "splatexp initialiser 1"
WIDTHS = (16, 32, 48, 64)  # channels, halving the resolution each time
SPACING = 6.0  # px, the spacing that the network's input is relative to
LIMIT = 3.0  # of the predicted log Sigma, in e-folds of a standard deviation relative to s


class InitializerNetwork(nn.Module):
    """A U-Net of 3 x 3 convolutions with about 130,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        before = (4, *WIDTHS[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(before, WIDTHS, strict=True)
        )
        fine = WIDTHS[-2::-1]
        coarse = (WIDTHS[-1], *fine[:-1])
        self.up = nn.ModuleList(nn.Conv2d(i + o, o, 3, padding=1) for i, o in zip(coarse, fine, strict=True))
        self.head = nn.Conv2d(WIDTHS[0], 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, spacing: Tensor) -> Tensor:
        """Predict from images [B,3,H,W] and spacings s [B], px, the log density up to a constant, and
        log(Sigma / s^2).

        Returns: [B,4,H,W]. Of the logarithm of the matrix: half its trace, half the difference of its
            diagonal, its off-diagonal entry.
        """
        height, width = image.shape[2:]
        block = 2 ** len(WIDTHS)
        room = (0, -width % block, 0, -height % block)
        hint = ((spacing / SPACING).log2() / 2).view(-1, 1, 1, 1).expand(-1, 1, height, width)
        x = pad(torch.cat([image * 4 - 2, hint], 1), room, mode="replicate")
        levels = []
        for layer in self.down:
            x = torch.relu(layer(x))
            levels.append(x)
        x = levels.pop()
        for layer in self.up:
            x = interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = torch.relu(layer(torch.cat([x, levels.pop()], 1)))
        x = interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return x[:, :, :height, :width]


def exp_covariances(logs: Tensor, spacing: Tensor | float) -> Covariance:
    """Return Sigma of logarithms [...,3] of Sigma / s^2 as the network predicts them; axes are at most
    e^LIMIT from s.
    """
    trace, turn = logs[..., 0], torch.hypot(logs[..., 1], logs[..., 2])
    size = trace.clamp(-2 * LIMIT, 2 * LIMIT).exp() * spacing**2
    stretch = turn.clamp_max(LIMIT)
    even, odd = stretch.cosh(), stretch.sinh() / turn.clamp_min(1e-6)
    xx, yy = even + odd * logs[..., 1], even - odd * logs[..., 1]
    return Covariance(size * xx, size * odd * logs[..., 2], size * yy, size.square())


def log_covariances(cov: Covariance, spacing: float) -> Tensor:
    """Invert `exp_covariances`; return [...,3]."""
    trace = cov.det.log() / 2 - 2 * math.log(spacing)
    half = (cov.xx - cov.yy) / 2
    away = torch.hypot(half, cov.xy)
    turn = torch.atanh((away / ((cov.xx + cov.yy) / 2)).clamp_max(1 - 1e-6))
    share = turn / away.clamp_min(1e-12)
    return torch.stack([trace, half * share, cov.xy * share], -1)


def network_input(image: Tensor) -> Tensor:
    """Return the network's input [3,H,W] of an image [H,W,D]: grey is repeated three times, alpha is
    dropped.
    """
    channels = image.movedim(-1, 0)
    return channels[:1].expand(3, -1, -1) if len(channels) < 3 else channels[:3]


@torch.no_grad()
def predict(image: Tensor, count: int, path: str = "") -> tuple[Tensor, Covariance]:
    """Predict the density [H,W], which sums to `count`, and Sigma [H,W], px^2, of a Gaussian at each pixel.

    Args:
        path: the network's file; "": the one that is shipped.

    Raises: FileNotFoundError, ValueError, with one line, for a network that cannot be used.
    """
    height, width, _ = image.shape
    spacing = (height * width / count) ** 0.5
    found = load_network(path)(network_input(image)[None].float(), torch.tensor([spacing]))[0]
    density = found[0].flatten().softmax(0).view(height, width) * count
    return density, exp_covariances(found[1:].movedim(0, -1), spacing)


@lru_cache(maxsize=2)
def load_network(path: str = "") -> InitializerNetwork:
    """Return a network from its file.

    Raises: as `predict`.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path) if path else SHIPPED
    if not file.is_file():
        raise FileNotFoundError(
            f"init=network: expected a network at {file}, found none; "
            "python -m splatexp.image.fit.train_network out=<file> trains one"
        )
    net = InitializerNetwork()
    try:
        with safe_open(file, "pt") as held:
            if (held.metadata() or {}).get("format") != FORMAT:
                raise ValueError(
                    f"{file}: expected a file that splatexp.image.fit.train_network wrote, got "
                    "a different format"
                )
            net.load_state_dict({name: held.get_tensor(name).float() for name in held.keys()})
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{file}: cannot read the network ({' '.join(str(error).split())[:200]})") from error
    return net.eval().requires_grad_(False)


def save_network(net: InitializerNetwork, path: str | Path, notes: str = "") -> None:
    """Write a network in half precision, whole or not at all.

    Raises: OSError.
    """
    from safetensors.torch import save_file

    from splatexp.io.atomic import atomic_write

    tensors = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    with atomic_write(path) as temp:
        save_file(tensors, temp, {"format": FORMAT, "notes": notes})
