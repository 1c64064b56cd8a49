"""Finished runs made up for the tests of a study: small pictures and the numbers that follow from them."""

import csv
import json
from pathlib import Path

import numpy as np
import torch

from splatexp.io.figures import save_comparison, save_png
from splatexp.study.results import Result, read_result

WIDTH, HEIGHT, STEPS = 320, 200, 100
VIEWS = ("0001.jpg", "test/r_7.png", "odd name.tar.png")


def truth(view: int, scene: int = 0) -> np.ndarray:
    """A picture with something in it: a floor of tiles, a ball, a far wall."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    tiles = ((x // 20 + y // 20 + view) % 2)[..., None] * np.array([0.25, 0.2, 0.15])
    wall = np.stack([0.5 + 0.4 * y / HEIGHT, 0.55 + 0 * y, 0.65 - 0.3 * x / WIDTH], -1)
    ball = np.hypot(x - 90 - 40 * view, y - 100) < 45
    shade = np.clip(1 - np.hypot(x - 75 - 40 * view, y - 80) / 90, 0.1, 1)[..., None]
    image = np.where(ball[..., None], shade * np.array([0.9, 0.3 + 0.3 * scene, 0.2]), 0.6 * wall + tiles)
    return np.clip(image, 0, 1).astype(np.float32)


def rendered(image: np.ndarray, amount: float, seed: int, spot: tuple[int, int] | None = None) -> np.ndarray:
    """The picture with noise of `amount`; at `spot` (left, top) 60 x 40 px of it are gone."""
    dice = np.random.default_rng(seed)
    image = image + amount * dice.standard_normal(image.shape).astype(np.float32)
    if spot:
        image[spot[1] : spot[1] + 40, spot[0] : spot[0] + 60] = 0.5
    return np.clip(image, 0, 1).astype(np.float32)


def settings(score: str = "grad2d", scene: str = "fox", seed: int = 0, **changes) -> dict:
    """The resolved config of a run, as run.json holds it, much shortened."""
    rule = {
        "_target_": "splatexp.densify.rules.Rule",
        "operate": "clone_or_split",
        "score": score,
        "share": 0.0,
    }
    densify = {"_target_": "splatexp.densify.strategy.RuleStrategy", "max_gaussians": 60000, "grow": rule}
    config = {
        "_target_": "splatexp.run.run.Run", "steps": STEPS, "seed": seed, "threads": 1,
        "data": {"_target_": "splatexp.data.colmap.Colmap", "path": f"/data/{scene}", "downscale": 1},
        "densify": densify, "optimizer": {"_target_": "splatexp.train.optimizer.Adam", "eps": 1e-15},
        "tracker": {"csv": {"_target_": "splatexp.tracking.Csv"}}, "log_every": 10,
    }  # fmt: skip
    return config | changes


def finished(
    folder: Path, variant: str, scene: str = "fox", seed: int = 0, *, amount: float = 0.05,
    count: int = 60000, config: dict | None = None, renders: bool = True, spots: dict | None = None,
    views=VIEWS, **changes,
) -> Result:  # fmt: skip
    """Write a finished run and read it back.

    amount: of noise in its view_images. spots: view -> where a part of it is missing. changes: to metrics.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, name in enumerate(views):
        image = truth(index, len(scene) % 2)
        render = rendered(image, amount, 100 * seed + index, (spots or {}).get(name))
        mse = float(((image - render) ** 2).mean())
        row = {
            "view": name,
            "width": WIDTH,
            "height": HEIGHT,
            "masked": False,
            "target_sha256": f"{index:064x}",
        }
        row |= {"psnr": -10 * np.log10(mse), "psnr_u8": -10 * np.log10(mse), "ssim": 1 - 8 * mse}
        rows.append(row)
        if renders:
            stem = name.rsplit(".", 1)[0].replace("/", "_")
            save_png(folder / "renders" / "plain" / f"{stem}.png", render)
            pair = torch.from_numpy(image), torch.from_numpy(render)
            save_comparison(folder / "renders" / f"{stem}.png", *pair, caption="")
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("psnr", "psnr_u8", "ssim")}
    data = scene.encode().hex().ljust(64, "0")
    metrics = means | {
        "num_gaussians": count, "train_seconds": 90.0 + seed, "wall_seconds": 95.0,
        "peak_memory_bytes": 5 * 10**8,
        "bytes_on_disk": {"point_cloud.ply": 248 * count, "point_cloud.splat": 32 * count},
        "protocol": "splatexp-1.every8.x1.dac41b64", "skipped": {}, "overrides": [f"seed={seed}"],
        "scene": {"name": scene, "train_views": 9, "test_views": len(rows), "data_sha256": data},
        "run": {"id": f"{variant}{seed}".encode().hex()[:16], "resumed_at": [], "oom_reductions": []},
        "command": ["python", "-m", "splatexp", f"seed={seed}"], "code_sha256": "c0de" * 16, "git": "abc123",
        "packages": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "threads": 1, "isa": "avx512", "gpu": None},
        "per_view": rows,
    } | changes  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics, default=float))
    plain = settings(scene=scene, seed=seed) if config is None else config
    (folder / "run.json").write_text(json.dumps({"id": "x", "config": plain}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["step", "train/loss", "train/loss_mean", "train/psnr_mean", "num_gaussians"]
        )
        writer.writeheader()
        for step in range(9, STEPS, 10):
            row = {
                "step": step,
                "train/loss": 0.2 / (step + 1),
                "train/loss_mean": 0.3 / (step + 1) + amount / 10,
            }
            writer.writerow(
                row | {"train/psnr_mean": 20 + step / 10, "num_gaussians": count * (step + 1) // STEPS}
            )
    return read_result(folder, variant, scene, seed)


def study(root: Path, seeds: int = 3, scenes=("fox", "bonsai"), **changes) -> list[Result]:
    """A baseline, a variant that is clearly better, one clearly worse, and one that changes nothing much."""
    results = []
    for scene in scenes:
        for variant, amount, score in (
            ("adc", 0.05, "grad2d"),
            ("error", 0.04, "error_max"),
            ("coarse", 0.065, "size"),
            ("alike", 0.05, "edge"),
        ):
            for seed in range(seeds):
                wobble = 0.0003 * ((seed * 7 + len(variant) + len(scene)) % 5 - 2)
                known = {"amount": amount + wobble, "config": settings(score, scene, seed)} | changes
                results.append(finished(root / f"{variant}-{scene}-{seed}", variant, scene, seed, **known))
    return results
