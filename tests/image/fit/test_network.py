import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from splatexp.gaussians.covariance import Covariance, rotation_scale
from splatexp.image.fit import network_data, train_network
from splatexp.image.fit.initial import Start
from splatexp.image.fit.network import SHIPPED, Net, covariances, loaded, logarithms, predicted, save, seen
from splatexp.system.rng import generator

torch.set_num_threads(1)


def test_logarithms_there_and_back():
    g = torch.Generator().manual_seed(0)
    u, v, t = torch.rand(3, 50, generator=g, dtype=torch.float64)
    given = rotation_scale(torch.stack([1 + 3 * u, 0.7 + 2 * v, 3.14 * t], -1))
    found = covariances(logarithms(given, 2.5), 2.5)
    for name, expected in given._asdict().items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-5, atol=1e-5)
    round_one = covariances(torch.zeros(1, 3), 2.0)
    torch.testing.assert_close(torch.stack(round_one), torch.tensor([[4.0], [0.0], [4.0], [16.0]]))


def test_whatever_it_says_is_definite_and_bounded():
    wild = 100 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = covariances(wild, 3.0)
    assert (found.det > 0).all() and (found.xx > 0).all() and found.xx.isfinite().all()
    largest = (found.xx + found.yy) / 2 + torch.hypot((found.xx - found.yy) / 2, found.xy)
    assert float(largest.max()) < (3.0 * 2.72**4.6) ** 2


@pytest.mark.parametrize("height,width,channels", [(37, 50, 3), (16, 16, 1), (1, 3, 4), (90, 7, 2)])
def test_the_shipped_network_takes_pictures_of_any_kind(height, width, channels):
    picture = torch.rand(height, width, channels, generator=generator("picture"))
    density, found = predicted(picture, 20)
    assert density.shape == (height, width) and float(density.sum()) == pytest.approx(20, rel=1e-4)
    assert (density > 0).all() and all(part.shape == (height, width) for part in found)
    assert (found.det > 0).all()
    assert seen(picture).shape == (3, height, width)


def test_the_shipped_network_is_small_and_knows_where_detail_is():
    assert SHIPPED.stat().st_size < 1_000_000
    assert sum(p.numel() for p in Net().parameters()) < 200_000
    held = list(network_data.lessons(4, 64, 60, 12345, []))
    gain, nothing = train_network.tested(loaded(), held), train_network.tested(Net(), held)
    assert nothing == pytest.approx(0, abs=1e-4) and gain > 0.2


def test_a_lesson_is_a_fit():
    picture = network_data.made(48, generator("made"))
    assert picture.shape == (48, 48, 3) and 0 <= float(picture.min()) and float(picture.max()) <= 1
    assert float(picture.std()) > 0.05
    means, covariance = network_data.fitted(picture, 60, 40, generator("fit"))
    assert 40 <= len(means) <= 60 and (covariance.det > 0).all()
    assert ((means >= 0) & (means < 48)).all()
    (lesson,) = network_data.lessons(1, 32, 10, 0, [torch.rand(40, 50, 3, generator=generator("p"))])
    assert lesson.picture.shape == (32, 32, 3) and len(lesson.logs) == len(lesson.means)


def test_turned_lessons_stay_true():
    """Whatever is done to a picture is done to its Gaussians: drawn from them it would look the same."""
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    angle = torch.tensor(0.4)
    shape = rotation_scale(torch.tensor([[6.0, 2.0, float(angle)]]))
    conic = torch.stack([shape.yy, -shape.xy, shape.xx], -1)[0] / shape.det

    def look(center, cov):
        u, v = x - center[0], y - center[1]
        conic = torch.stack([cov.yy, -cov.xy, cov.xx]) / cov.det
        return torch.exp(-0.5 * (conic[0] * u * u + 2 * conic[1] * u * v + conic[2] * v * v))

    means = torch.tensor([[10.0, 14.0]])
    assert conic.isfinite().all()
    image = look(means[0], Covariance(*(part[0] for part in shape)))[..., None].expand(-1, -1, 3)
    lesson = network_data.Lesson(image, 4.0, means, logarithms(shape, 4.0))
    different = set()
    for seed in range(12):
        other = train_network._turned(lesson, generator("turn", seed))
        cov = covariances(other.logs[0], 4.0)
        expected = look(other.means[0], cov)
        shown = other.picture[..., 0]
        shown = 1 - shown if float(shown.mean()) > 0.5 else shown
        assert float((shown - expected).abs().max()) < 2e-3
        different.add(tuple(other.means[0].round().tolist()))
    assert len(different) > 3


def test_teaching_writes_a_network_that_can_be_used(tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.safetensors"
    words = [f"out={path}", "lessons=3", "size=32", "fit_steps=8", "steps=3"]
    monkeypatch.setattr(sys, "argv", ["teach", *words])
    assert train_network.main() == 0
    assert "no photograph" in capsys.readouterr().out
    rows = Start("network", path=str(path))(torch.rand(30, 20, 3), 25)
    assert len(rows.means) == 25


@pytest.mark.parametrize(
    "words,message",
    [
        ([], "out: expected a file"),
        (["out=x", "size=8"], "size: expected at least 32, got 8"),
        (["out=x", "folder=/nowhere"], "nowhere"),
        (["out=x", "lesson=3"], "lessons"),
    ],
)
def test_teaching_refuses_in_one_line(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["teach", "threads=1", *words])
    assert train_network.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_network_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="init=network: no network at .*; python -m splatexp"):
        predicted(torch.rand(8, 8, 3), 4, str(tmp_path / "none.safetensors"))
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="expected a network that teach wrote"):
        predicted(torch.rand(8, 8, 3), 4, str(other))
    torn = tmp_path / "torn.safetensors"
    save(Net(), torn, "untaught")
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable network"):
        predicted(torch.rand(8, 8, 3), 4, str(torn))
    with safe_open(SHIPPED, "pt") as held:
        assert "no photograph" in held.metadata()["notes"]
