import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from splatexp.gaussians.covariance import Covariance, rotation_scale
from splatexp.image.fit import network_data, train_network
from splatexp.image.fit.initial import Initializer
from splatexp.image.fit.network import (
    SHIPPED,
    InitializerNetwork,
    exp_covariances,
    load_network,
    log_covariances,
    network_input,
    predict,
    save_network,
)
from splatexp.system.rng import generator

torch.set_num_threads(1)


def test_logarithms_there_and_back():
    g = torch.Generator().manual_seed(0)
    u, v, t = torch.rand(3, 50, generator=g, dtype=torch.float64)
    given = rotation_scale(torch.stack([1 + 3 * u, 0.7 + 2 * v, 3.14 * t], -1))
    found = exp_covariances(log_covariances(given, 2.5), 2.5)
    for name, expected in given._asdict().items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-5, atol=1e-5)
    round_one = exp_covariances(torch.zeros(1, 3), 2.0)
    torch.testing.assert_close(torch.stack(round_one), torch.tensor([[4.0], [0.0], [4.0], [16.0]]))


def test_whatever_it_says_is_definite_and_bounded():
    wild = 100 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = exp_covariances(wild, 3.0)
    assert (found.det > 0).all() and (found.xx > 0).all() and found.xx.isfinite().all()
    largest = (found.xx + found.yy) / 2 + torch.hypot((found.xx - found.yy) / 2, found.xy)
    assert float(largest.max()) < (3.0 * 2.72**4.6) ** 2


@pytest.mark.parametrize("height,width,channels", [(37, 50, 3), (16, 16, 1), (1, 3, 4), (90, 7, 2)])
def test_the_shipped_network_takes_pictures_of_any_kind(height, width, channels):
    picture = torch.rand(height, width, channels, generator=generator("picture"))
    density, found = predict(picture, 20)
    assert density.shape == (height, width) and float(density.sum()) == pytest.approx(20, rel=1e-4)
    assert (density > 0).all() and all(part.shape == (height, width) for part in found)
    assert (found.det > 0).all()
    assert network_input(picture).shape == (3, height, width)


def test_the_shipped_network_is_small_and_knows_where_detail_is():
    assert SHIPPED.stat().st_size < 1_000_000
    assert sum(p.numel() for p in InitializerNetwork().parameters()) < 200_000
    held = list(network_data.make_examples(4, 64, 60, 12345, []))
    gain, nothing = (
        train_network.evaluate_network(load_network(), held),
        train_network.evaluate_network(InitializerNetwork(), held),
    )
    assert nothing == pytest.approx(0, abs=1e-4) and gain > 0.2


def test_a_lesson_is_a_fit():
    picture = network_data.synthetic_image(48, generator("made"))
    assert picture.shape == (48, 48, 3) and 0 <= float(picture.min()) and float(picture.max()) <= 1
    assert float(picture.std()) > 0.05
    means, covariance = network_data.fit_gaussians(picture, 60, 40, generator("fit"))
    assert 40 <= len(means) <= 60 and (covariance.det > 0).all()
    assert ((means >= 0) & (means < 48)).all()
    (example,) = network_data.make_examples(1, 32, 10, 0, [torch.rand(40, 50, 3, generator=generator("p"))])
    assert example.image.shape == (32, 32, 3) and len(example.logs) == len(example.means)


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
    example = network_data.Example(image, 4.0, means, log_covariances(shape, 4.0))
    different = set()
    for seed in range(12):
        other = train_network._augmented(example, generator("turn", seed))
        cov = exp_covariances(other.logs[0], 4.0)
        expected = look(other.means[0], cov)
        shown = other.image[..., 0]
        shown = 1 - shown if float(shown.mean()) > 0.5 else shown
        assert float((shown - expected).abs().max()) < 2e-3
        different.add(tuple(other.means[0].round().tolist()))
    assert len(different) > 3


def test_teaching_writes_a_network_that_can_be_used(tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.safetensors"
    words = [f"out={path}", "examples=3", "size=32", "fit_steps=8", "steps=3"]
    monkeypatch.setattr(sys, "argv", ["train_network", *words])
    assert train_network.main() == 0
    assert "no photograph" in capsys.readouterr().out
    rows = Initializer("network", init_path=str(path))(torch.rand(30, 20, 3), 25)
    assert len(rows.means) == 25


@pytest.mark.parametrize(
    "words,message",
    [
        ([], "out: expected a file"),
        (["out=x", "size=8"], "size: expected at least 32, got 8"),
        (["out=x", "folder=/nowhere"], "nowhere"),
        (["out=x", "example=3"], "examples"),
    ],
)
def test_teaching_refuses_in_one_line(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_network", "threads=1", *words])
    assert train_network.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_network_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="init=network: expected a network at .*; python -m splatexp"):
        predict(torch.rand(8, 8, 3), 4, str(tmp_path / "none.safetensors"))
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="expected a file that splatexp.image.fit.train_network wrote"):
        predict(torch.rand(8, 8, 3), 4, str(other))
    torn = tmp_path / "torn.safetensors"
    save_network(InitializerNetwork(), torn, "untaught")
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot read the network"):
        predict(torch.rand(8, 8, 3), 4, str(torn))
    with safe_open(SHIPPED, "pt") as held:
        assert "no photograph" in held.metadata()["notes"]
