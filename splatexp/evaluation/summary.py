"""The table at the end of a run: metrics, time, memory, and the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = (
    "metrics.json",
    "metrics.csv",
    "cameras.json",
    "point_cloud.ply",
    "point_cloud.splat",
    "turntable.mp4",
    "renders",
)
IMAGE_METRICS = {
    "psnr": "{:.2f} dB",
    "psnr_u8": "{:.2f} dB",
    "ssim": "{:.4f}",
    "psnr_sim3": "{:.2f} dB",
    "psnr_pose_opt": "{:.2f} dB",
    "ssim_pose_opt": "{:.4f}",
}
POSE_METRICS = {"rotation_deg": "{:.3f} degrees", "translation": "{:.4g}", "focal_percent": "{:.2f} %"}


def print_summary(result: Mapping[str, Any], folder: str | Path, console: Any = None) -> None:
    """Print a table of the metrics, times and sizes in `result`, and of the files in `folder`."""
    from rich.console import Console
    from rich.table import Table

    folder = Path(folder)
    scene = result["scene"]
    title = f"{scene['name']}: {scene['test_views']} held-out views"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in _table_rows(result, folder):
        table.add_row(*row)
    (console or Console()).print(table)


def _table_rows(result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    metrics = [*IMAGE_METRICS.items(), *((name, "{:.4f}") for name in result if name.startswith("lpips"))]
    rows = [(name, form.format(result[name])) for name, form in metrics if result.get(name) is not None]
    for name, form in POSE_METRICS.items():
        if (value := result.get(f"pose_{name}")) is not None:
            initial = form.format(result["pose_initial"][name])
            rows.append((f"pose_{name}", f"{form.format(value)} (initially {initial})"))
    reasons: dict[str, list[str]] = {}
    for name, reason in result["skipped"].items():
        reasons.setdefault(reason, []).append(name)
    rows += [(", ".join(names), f"skipped: {reason}") for reason, names in reasons.items()]
    rows.append(("Gaussians", f"{result['num_gaussians']:,}"))
    for name, label in (("train_seconds", "training time"), ("wall_seconds", "total time")):
        if result.get(name) is not None:
            rows.append((label, f"{result[name]:.1f} s"))
    if result.get("peak_memory_bytes"):
        rows.append(("peak memory", _size(result["peak_memory_bytes"])))
    if result.get("peak_device_bytes"):
        rows.append(("peak device memory", _size(result["peak_device_bytes"])))
    rows.append(("protocol", result["protocol"]))
    rows.append(("folder", str(folder.resolve())))
    for name in FILES:
        path = folder / name
        if path.is_file():
            rows.append(("", f"{name}  {_size(path.stat().st_size)}"))
        elif path.is_dir():
            rows.append(("", f"{name}/  {len(list(path.glob('*.png')))} images: truth | render | error"))
    return rows


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
