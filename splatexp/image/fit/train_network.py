"""Train the network that says where a picture's Gaussians should start (`model.init=network`).

    python -m splatexp.image.teach out=network.safetensors [folder=photos/] [lessons=600] [steps=1500]

Fits Gaussians to small pictures, and teaches the network where they have come to lie and how large they are.

  out=<file>        where it lands; model.init_path=<file> uses it
  folder=<folder>   learn from crops of the pictures in it; without: from pictures that are made up
  lessons=N         how many are fitted          size=128    px, of each
  fit_steps=N       of each fit                  steps=N     of the network's training, 8 lessons each
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

from splatexp.image.fit.network import Net, save
from splatexp.image.fit.network_data import Lesson, lessons
from splatexp.settings.arguments import arguments
from splatexp.settings.checks import check_range
from splatexp.system.rng import generator, seed_everything

KNOWN: dict[str, type] = {"out": str, "folder": str, "lessons": int, "size": int, "fit_steps": int}
KNOWN |= {"steps": int, "seed": int, "threads": int}
BATCH = 8
HELD_OUT = 0.1  # share of the lessons
RATE = 2e-3  # of Adam
SHAPES = 0.3  # what sizes and directions count for beside the density
EVERY = 5.0  # s, between two lines of progress


def main() -> int:
    """The command.  Returns: the exit status; 2 for input that is refused."""
    words = sys.argv[1:]
    if not words or {"-h", "--help", "help"} & set(words):
        print((__doc__ or "").strip())
        return 0 if words else 2
    try:
        teach(**arguments(words, KNOWN))
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is written", file=sys.stderr)
        return 130
    return 0


def teach(
    out: str = "", folder: str = "", lessons: int = 600, size: int = 128, fit_steps: int = 120,
    steps: int = 1500, seed: int = 0, threads: int = 1,
) -> Net:  # fmt: skip
    """Make the lessons, train, write, and tell how much better than an even density the network does.

    Raises: ValueError, OSError with one line.
    """
    import splatexp_kernels

    if not out:
        raise ValueError("out: expected a file for the network, say out=network.safetensors")
    for name, value, least in (("lessons", lessons, 2), ("size", size, 32), ("fit_steps", fit_steps, 1)):
        check_range(name, value, least)
    check_range("steps", steps, 1)
    check_range("threads", threads, 1)
    splatexp_kernels.set_num_threads(threads)
    torch.set_num_threads(threads)
    seed_everything(seed)
    pictures = _pictures(folder, size) if folder else []
    learned = list(_told(lessons, size, fit_steps, seed, pictures))
    held = max(1, round(HELD_OUT * lessons))
    net = train(learned[held:], steps, seed)
    gain = tested(net, learned[:held])
    source = f"{len(pictures)} pictures of a folder" if folder else "pictures made up for it, no photograph"
    notes = f"trained on {lessons - held} fits to {source}; {gain:.3f} nats a Gaussian above an even density"
    save(net, out, notes)
    print(f"{out}: {notes}")
    return net


def _pictures(folder: str, size: int) -> list[Tensor]:
    """The pictures of a folder [H,W,3], those that are large enough.  Raises: ValueError where none is."""
    from splatexp.image.fit.network import seen
    from splatexp.io.image_file import read

    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    found = [seen(torch.from_numpy(read(path).pixels)).movedim(0, -1).contiguous() for path in files]
    found = [picture for picture in found if min(picture.shape[:2]) >= size]
    if not found:
        raise ValueError(f"folder: expected pictures of at least {size} px in {folder}, got none")
    return found


def _told(count: int, size: int, steps: int, seed: int, pictures: list[Tensor]) -> Iterator[Lesson]:
    """The lessons, with a line now and then of how many are ready."""
    last = time.monotonic()
    for index, lesson in enumerate(lessons(count, size, steps, seed, pictures)):
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            print(f"lessons: {index} of {count}", flush=True)
        yield lesson


def train(learned: Sequence[Lesson], steps: int, seed: int) -> Net:
    """A network that has seen lessons of one size, turned and mirrored, so many times eight."""
    net, random = Net().train(), generator("teach", seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    last = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 50)
        which = torch.randint(len(learned), (BATCH,), generator=random)
        batch = [_turned(learned[int(index)], random) for index in which]
        loss, shapes = _losses(net, batch)
        (loss + SHAPES * shapes).backward()
        optimizer.step()
        optimizer.zero_grad()
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            print(
                f"step {step} of {steps}: density {loss.item():.3f}, shapes {shapes.item():.3f}", flush=True
            )
    return net.eval().requires_grad_(False)


@torch.no_grad()
def tested(net: Net, held: Sequence[Lesson]) -> float:
    """By how much the log likelihood of the Gaussians' places exceeds that of an even density, nats each."""
    found = [-_losses(net, [lesson])[0].item() for lesson in held]
    return sum(found) / len(found)


def _losses(net: Net, batch: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Means over lessons: a place's negative log likelihood, less an even density's; log Sigma's error."""
    pictures = torch.stack([lesson.picture.movedim(-1, 0) for lesson in batch])
    out = net(pictures, torch.tensor([lesson.spacing for lesson in batch]))
    size = pictures.shape[-1]
    logs = out[:, 0].flatten(1).log_softmax(1) + 2 * math.log(size)
    density, shapes = [], []
    for each, all_logs, lesson in zip(out, logs, batch, strict=True):
        x, y = lesson.means.long().clamp(0, size - 1).unbind(1)
        density.append(-all_logs[y * size + x].mean())
        shapes.append((each[1:, y, x].T - lesson.logs).abs().mean())
    return torch.stack(density).mean(), torch.stack(shapes).mean()


def _turned(lesson: Lesson, random: torch.Generator) -> Lesson:
    """A lesson mirrored along either axis or about the diagonal, its colours inverted or shuffled."""
    picture, spacing, means, logs = lesson
    size = picture.shape[0]
    coins = (torch.rand(4, generator=random) < 0.5).tolist()
    for axis in (0, 1):
        if coins[axis]:
            picture = picture.flip(1 - axis)
            means = torch.where(torch.arange(2) == axis, size - 1e-3 - means, means)
            logs = logs * torch.tensor([1.0, 1.0, -1.0])
    if coins[2]:
        picture, means, logs = picture.transpose(0, 1), means.flip(1), logs * torch.tensor([1.0, -1.0, 1.0])
    picture = picture[..., torch.randperm(3, generator=random)]
    return Lesson(1 - picture if coins[3] else picture, spacing, means, logs)


if __name__ == "__main__":
    sys.exit(main())
