"""Train the network that places an image's first Gaussians (`model.init=network`).

    python -m splatexp.image.fit.train_network out=network.safetensors [folder=photos/] [examples=600]

It fits Gaussians to small images, and trains the network to predict where they lie and how large they are.

  out=<file>        file of the network; model.init_path=<file> uses it
  folder=<folder>   train on crops of the images in it; default: on synthetic images
  examples=N        number of fits                size=128    px, of each image
  fit_steps=N       steps of each fit             steps=N     of the network's training, 8 examples each
  seed=0            threads=1
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from splatexp.image.fit.network import InitializerNetwork, save_network
from splatexp.image.fit.network_data import Example, make_examples
from splatexp.settings.arguments import parse_arguments
from splatexp.settings.checks import check_range
from splatexp.settings.messages import one_line
from splatexp.system.rng import generator, seed_everything

OPTIONS: dict[str, type] = {
    "out": str,
    "folder": str,
    "examples": int,
    "size": int,
    "fit_steps": int,
    "steps": int,
    "seed": int,
    "threads": int,
}
BATCH_SIZE = 8
HELD_OUT = 0.1  # fraction of the examples
LEARNING_RATE = 2e-3  # of Adam
SHAPE_WEIGHT = 0.3  # of the loss of sizes and directions, relative to that of the density
PROGRESS_SECONDS = 5.0  # between two lines of progress


def main() -> int:
    """Run the command.

    Returns: the exit status; 2 for input that is refused.
    """
    words = sys.argv[1:]
    if not words or {"-h", "--help", "help"} & set(words):
        print((__doc__ or "").strip())
        return 0 if words else 2
    try:
        train_network(**parse_arguments(words, OPTIONS))
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is written", file=sys.stderr)
        return 130
    return 0


def train_network(
    out: str = "",
    folder: str = "",
    examples: int = 600,
    size: int = 128,
    fit_steps: int = 120,
    steps: int = 1500,
    seed: int = 0,
    threads: int = 1,
) -> InitializerNetwork:
    """Make the examples, train a network, save it, and print how much better than a uniform density it is.

    Raises: ValueError, OSError, with one line.
    """
    import splatexp_kernels

    if not out:
        raise ValueError("out: expected a file for the network, say out=network.safetensors")
    for name, value, least in (("examples", examples, 2), ("size", size, 32), ("fit_steps", fit_steps, 1)):
        check_range(name, value, least)
    check_range("steps", steps, 1)
    check_range("threads", threads, 1)
    splatexp_kernels.set_num_threads(threads)
    torch.set_num_threads(threads)
    seed_everything(seed)
    images = _images(folder, size) if folder else []
    learned = list(_with_progress(examples, size, fit_steps, seed, images))
    held = max(1, round(HELD_OUT * examples))
    net = fit_network(learned[held:], steps, seed)
    gain = evaluate_network(net, learned[:held])
    source = f"{len(images)} images of a folder" if folder else "synthetic images, no photograph"
    notes = (
        f"trained on {examples - held} fits to {source}; {gain:.3f} nats per Gaussian above a uniform density"
    )
    save_network(net, out, notes)
    print(f"{out}: {notes}")
    return net


def _images(folder: str, size: int) -> list[Tensor]:
    """Return the images of a folder [H,W,3] that are large enough.

    Raises: ValueError where there is none.
    """
    from splatexp.image.fit.network import network_input
    from splatexp.io.image_file import read_image

    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    found = [
        network_input(torch.from_numpy(read_image(path).pixels)).movedim(0, -1).contiguous() for path in files
    ]
    found = [image for image in found if min(image.shape[:2]) >= size]
    if not found:
        raise ValueError(f"folder: expected images of at least {size} px in {folder}, found none")
    return found


def _with_progress(count: int, size: int, steps: int, seed: int, images: list[Tensor]) -> Iterator[Example]:
    """Yield the examples, and print now and then how many are ready."""
    last = time.monotonic()
    for index, example in enumerate(make_examples(count, size, steps, seed, images)):
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"examples: {index} of {count}", flush=True)
        yield example


def fit_network(learned: Sequence[Example], steps: int, seed: int) -> InitializerNetwork:
    """Return a network that was trained on examples of one size, randomly mirrored and transposed."""
    net, random = InitializerNetwork().train(), generator("teach", seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    last = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 50)
            )
        which = torch.randint(len(learned), (BATCH_SIZE,), generator=random)
        batch = [_augmented(learned[int(index)], random) for index in which]
        loss, shapes = _losses(net, batch)
        (loss + SHAPE_WEIGHT * shapes).backward()
        optimizer.step()
        optimizer.zero_grad()
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(
                f"step {step} of {steps}: density {loss.item():.3f}, shapes {shapes.item():.3f}", flush=True
            )
    return net.eval().requires_grad_(False)


@torch.no_grad()
def evaluate_network(net: InitializerNetwork, held: Sequence[Example]) -> float:
    """Return the gain in log likelihood of the Gaussians' positions over a uniform density, nats per
    Gaussian.
    """
    found = [-_losses(net, [example])[0].item() for example in held]
    return sum(found) / len(found)


def _losses(net: InitializerNetwork, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return two means over examples: the negative log likelihood of positions, less that of a uniform
    density; the error of log Sigma.
    """
    images = torch.stack([example.image.movedim(-1, 0) for example in batch])
    out = net(images, torch.tensor([example.spacing for example in batch]))
    size = images.shape[-1]
    logs = out[:, 0].flatten(1).log_softmax(1) + 2 * math.log(size)
    density, shapes = [], []
    for each, all_logs, example in zip(out, logs, batch, strict=True):
        x, y = example.means.long().clamp(0, size - 1).unbind(1)
        density.append(-all_logs[y * size + x].mean())
        shapes.append((each[1:, y, x].T - example.logs).abs().mean())
    return torch.stack(density).mean(), torch.stack(shapes).mean()


def _augmented(example: Example, random: torch.Generator) -> Example:
    """Return an example mirrored along either axis or transposed, its colours inverted or permuted."""
    image, spacing, means, logs = example
    size = image.shape[0]
    coins = (torch.rand(4, generator=random) < 0.5).tolist()
    for axis in (0, 1):
        if coins[axis]:
            image = image.flip(1 - axis)
            means = torch.where(torch.arange(2) == axis, size - 1e-3 - means, means)
            logs = logs * torch.tensor([1.0, 1.0, -1.0])
    if coins[2]:
        image, means, logs = image.transpose(0, 1), means.flip(1), logs * torch.tensor([1.0, -1.0, 1.0])
    image = image[..., torch.randperm(3, generator=random)]
    return Example(1 - image if coins[3] else image, spacing, means, logs)


if __name__ == "__main__":
    sys.exit(main())
