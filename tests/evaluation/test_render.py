"""Pictures, films, the turntable's path, and the two command lines for finished runs."""

import math
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.result_cases import Flat, scene, splats

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.cameras.turntable import estimate_up, turntable
from splatexp.commands import render as render_command
from splatexp.evaluation import render
from splatexp.evaluation.evaluate import EvaluationSettings
from splatexp.io import figures
from splatexp.io.figures import colormap, save_comparison, save_png, save_video
from splatexp.settings.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
UP = torch.tensor([0.0, 0.0, 1.0])


def _ring(
    angles: torch.Tensor, radius: float = 4, height: float = 1.5, outward: bool = False
) -> list[Camera]:
    """Cameras at `angles` on a level circle around the z axis, looking at the origin or away from it."""
    eyes = torch.stack([radius * angles.cos(), radius * angles.sin(), torch.full_like(angles, height)], 1)
    viewmats = look_at(eyes, torch.zeros(3), UP)
    if outward:
        flipped = torch.diag(torch.tensor([-1.0, 1, -1, 1]))  # half a turn around its own vertical
        viewmats = flipped @ viewmats
    K = torch.tensor([[[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]])
    return [Camera(viewmat[None], K, 33, 25) for viewmat in viewmats]


def _azimuths(path: Camera) -> torch.Tensor:
    return torch.atan2(path.centers[:, 1], path.centers[:, 0])


def test_turntable_goes_round_where_the_cameras_do() -> None:
    cameras = _ring(torch.arange(12) * (2 * math.pi / 12))
    path = turntable(cameras, 16)
    assert (path.width, path.height) == (32, 24)  # even, for video
    assert path.centers.norm(dim=1) == pytest.approx(math.hypot(4, 1.5), rel=1e-4)
    assert path.centers[:, 2] == pytest.approx(1.5, rel=1e-4)
    steps = torch.cat([_azimuths(path), _azimuths(path)[:1]]).diff().remainder(2 * math.pi)
    assert steps == pytest.approx(2 * math.pi / 16, rel=1e-3)  # even steps, and the last leads to the first
    to_origin = torch.nn.functional.normalize(-path.centers, dim=1)
    assert (to_origin * path.forwards).sum(1) == pytest.approx(1.0, abs=1e-5)
    assert path.viewmats[:, 1, 2].max() < -0.9  # y points down: the pictures stand upright


def test_turntable_swings_inside_the_arc_of_a_half_circle() -> None:
    angles = torch.linspace(-1.2, 1.2, 9)
    path = turntable(_ring(angles), 40)
    assert _azimuths(path).abs().max() < 1.2 and _azimuths(path).abs().max() > 0.8
    moves = torch.cat([path.centers, path.centers[:1]]).diff(dim=0).norm(dim=1)
    assert moves.max() < 1.0  # closed: no jump from the last frame to the first


def test_turntable_follows_an_ellipse_and_a_look_outward() -> None:
    angles = torch.arange(24) * (2 * math.pi / 24)
    eyes = torch.stack([6 * angles.cos(), 3 * angles.sin(), torch.ones(24)], 1)
    oval = [Camera(look_at(eye[None], torch.zeros(3), UP), torch.eye(3)[None], 33, 25) for eye in eyes]
    spans = turntable(oval, 60).centers.amax(0) - turntable(oval, 60).centers.amin(0)
    assert spans[0] > 1.3 * spans[1]
    room = turntable(_ring(angles, radius=0.5, height=0.0, outward=True), 8)
    assert ((room.centers * room.forwards).sum(1) > 0).all()


def test_turntable_of_parallel_cameras_looks_at_the_points() -> None:
    viewmats = torch.eye(4).repeat(9, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.5, 0.5, 9)
    cameras = [Camera(viewmat[None], torch.eye(3)[None] * 30, 32, 24) for viewmat in viewmats]
    path = turntable(cameras, 10, torch.tensor([[0.0, 0, 9], [0, 0, 10], [0, 0, 11], [0, 0, -4]]))
    assert path.forwards[:, 2].min() > 0.99
    assert estimate_up(cameras).tolist() == pytest.approx([0, -1, 0])
    assert turntable(cameras[:1], 3).viewmats.isfinite().all()
    with pytest.raises(ValueError, match="expected at least one each, got 0 and 3"):
        turntable([], 3)


def test_upright_is_found_where_all_cameras_look_down() -> None:
    tilted = _ring(torch.linspace(-1.2, 1.2, 9), height=5.0)
    assert float(estimate_up(tilted).float() @ UP) > 0.9995  # their mean up leans back by far more


def test_colormap_rises_evenly_in_lightness() -> None:
    values = colormap() / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]).T
    lightness = np.cbrt(lms) @ [0.2105, 0.7936, -0.0041]
    assert lightness[0] < 0.15 and lightness[-1] > 0.95
    assert np.abs(lightness - np.linspace(0.12, 0.97, 256)).max() < 0.02  # 8 bits are coarse in the dark


@pytest.mark.parametrize("width", [6, 40, 200])
def test_comparison_shows_truth_render_and_error(tmp_path: Path, width: int) -> None:
    truth, shown = torch.zeros(20, width, 3), torch.zeros(20, width, 3)
    shown[:, : width // 2] = 1.0
    mask = torch.ones(20, width, dtype=torch.bool)
    mask[0] = False
    save_comparison(tmp_path / "a.png", truth, shown, mask, caption="31.20 dB  SSIM 0.931")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape[1] == 3 * width + 2 * figures.GAP and sheet.shape[0] > 20
    middle, left = width + figures.GAP, 2 * (width + figures.GAP)
    assert not sheet[:20, :width].any() and (sheet[:20, middle : middle + width // 2] == 255).all()
    assert (sheet[1, left] == colormap()[-1]).all() and (sheet[1, left + width - 1] == colormap()[0]).all()
    assert (sheet[0, left : left + width] == figures.BACKGROUND).all()


def test_png_holds_the_rounded_values(tmp_path: Path) -> None:
    image = torch.rand(5, 7, 3)
    save_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), (image * 255).round().byte().numpy())


def _frames(path: Path, size: tuple[int, int]) -> np.ndarray:
    """All frames of a film, uint8 [F,H,W,3]."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def test_video_keeps_size_frames_and_colours(tmp_path: Path) -> None:
    colors = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.6, 0.9], [0.5, 0.5, 0.5]])
    save_video(tmp_path / "a.mp4", (color.expand(30, 34, 3) for color in colors), fps=10)
    frames = _frames(tmp_path / "a.mp4", (34, 30))  # not padded to 48 x 32
    for color, pixels in zip(colors, frames, strict=True):
        assert np.abs(pixels[10:20, 10:20] / 255 - color.numpy()).max() < 0.03
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_video_refuses_what_cannot_be_filmed(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="expected at least one, got none"):
        save_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match="even width and height, got 33 x 24"):
        save_video(tmp_path / "a.mp4", [torch.zeros(24, 33, 3)])
    failing = [sys.executable, "-c", "import sys; sys.exit('No space left')"]
    monkeypatch.setattr(figures, "_ffmpeg", lambda *arguments: failing)
    with pytest.raises(OSError, match="could not write .*a.mp4: ffmpeg: No space left"):
        save_video(tmp_path / "a.mp4", [torch.zeros(24, 32, 3)] * 100)
    assert not list(tmp_path.iterdir())


def test_film_of_the_gaussians_through_the_reference(tmp_path: Path) -> None:
    from splatexp.raster.backends import Reference

    model, world = splats(degree=1), scene()
    path = turntable([view.camera for view in world.train], 2, model.means)
    image = render.render_view(model, Reference(), world, path[:1])
    assert image.shape == (1, 24, 32, 3) and 0 <= image.min() < image.max() <= 1 and not image.requires_grad
    render.save_turntable(tmp_path / "turntable.mp4", model, Reference(), world, frames=2)
    assert (tmp_path / "turntable.mp4").stat().st_size > 500


def test_render_draws_a_finished_run(tmp_path: Path, monkeypatch, capsys) -> None:
    class Run:
        raster, evaluate = Flat(), EvaluationSettings()

    monkeypatch.setattr(
        import_module("splatexp.commands.open_run"),
        "open_run",
        lambda folder: (Run(), scene(masked=True), splats()),
    )
    monkeypatch.setattr("sys.argv", ["render", f"run={tmp_path}"])
    render_command.main()
    assert "2 held-out views" in capsys.readouterr().out
    for folder in ("renders", "renders/plain"):
        assert len(list((tmp_path / folder).glob("*.png"))) == 2
    monkeypatch.setattr("sys.argv", ["render", f"run={tmp_path}", "what=turntable", "frames=2"])
    render_command.main()
    assert (tmp_path / "turntable.mp4").is_file()


@pytest.mark.parametrize(
    "words, says",
    [
        (["rnu=x"], "rnu: no such key; did you mean run?"),
        (["run=x", "--what=views", "frame=3"], "frame: no such key; did you mean frames?"),
        (["run=x", "what=view"], "what: expected one of views, turntable, got 'view'; did you mean 'views'?"),
        (["run=x", "frames=many"], "frames: expected a whole number, got 'many'"),
        (["run=x", "frames=0"], "frames: expected at least 1, got 0"),
        (["run"], "run: expected run=<value>, got no value"),
        ([], "run: expected the folder of a run, got none; set it with run=<folder>"),
        (["run=/no/such/place"], "run: expected the folder of a run, got /no/such/place (no such folder)"),
    ],
)
def test_bad_words_are_one_line_and_status_2(words: list[str], says: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["render", *words])
    with pytest.raises(SystemExit) as stopped:
        render_command.main()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {says}\n")


def test_arguments_have_types() -> None:
    known = {"run": str, "on": bool, "frames": int}
    assert parse_arguments(["run=a=b", "on=True", "frames=3"], known) == {
        "run": "a=b",
        "on": True,
        "frames": 3,
    }
    with pytest.raises(ValueError, match="on: expected true or false, got 'maybe'"):
        parse_arguments(["on=maybe"], known)


@pytest.mark.parametrize("module", ["render", "evaluate"])
def test_help_answers_at_once(module: str) -> None:
    code = "import runpy, sys; sys.argv = ['x', '--help']; "
    code += f"runpy.run_module('splatexp.{module}', run_name='__main__'); assert 'torch' not in sys.modules"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and f"python -m splatexp.{module} run=<folder>" in done.stdout, done.stderr
    assert time.perf_counter() - began < 10  # 0.1 s on an idle machine
