import dataclasses
import math

import numpy as np
import pytest
import torch

from splatexp.config.build import build, compose
from splatexp.data.single_image import image_camera, image_scene
from splatexp.densify.pursuit import pursue
from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats2d import LAYER, Splats2D
from splatexp.image.codec import gsi, symbols
from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import Limits
from splatexp.image.encode import encode
from splatexp.image.fit.initial import Initializer
from splatexp.image.fit.prefixes import assign_layers, overhead_bytes
from splatexp.image.fit.quantize import (
    CodingGrid,
    cell_shift,
    estimate_bits,
    make_header,
    quantize,
    rgb_to_ycc,
    to_symbols,
    ycc_to_rgb,
)
from splatexp.image.fit.rate import ScalarQuantization
from splatexp.io.image_file import ImageData
from splatexp.raster.image import ImageRaster

torch.set_num_threads(1)
FAST = ("threads=1", "steps=60")


def picture(width=48, height=40, channels=3, bits=8):
    """Blobs and an edge, different in every channel."""
    y, x = np.mgrid[:height, :width]
    planes = [
        0.5
        + 0.3 * np.exp(-((x - 12 - 3 * c) ** 2 + (y - 15) ** 2) / 40)
        - 0.25 * (x + y > 50 + 4 * c)
        + 0.1 * np.sin(x / 3 + c)
        for c in range(channels)
    ]
    return ImageData(np.stack(planes, -1).astype(np.float32).clip(0, 1), bits, "blobs")


def rows(channels=3, form="log_cholesky", count=30):
    random = torch.Generator().manual_seed(1)
    means = torch.rand(count, 2, generator=random) * torch.tensor([56.0, 48.0]) - 4
    shapes = torch.stack(
        [torch.rand(count, generator=random) * 2 - 0.5, torch.randn(count, generator=random),
         torch.rand(count, generator=random) * 2 - 0.5], 1
    )  # fmt: skip
    shapes = PARAMETRIZATIONS[form].shapes(PARAMETRIZATIONS["log_cholesky"].covariance(shapes))
    colors = 0.4 * torch.randn(count, channels, generator=random)
    return Splats2D({"means": means, "shapes": shapes, "colors": colors}, form)


def steps(luma=0.05):
    return torch.tensor([luma, luma, 0.5, 0.7, 0.6]).log().requires_grad_()


def test_a_pursuit_finds_the_gaussians_that_a_picture_is_made_of():
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    planted = [(20.5, 22.5, 2.0, 0.8), (55.5, 40.5, 4.0, -0.5), (62.5, 12.5, 1.0, 0.9)]
    lacking = sum(a * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * s * s)) for u, v, s, a in planted)
    found = pursue(lacking[..., None], 3)
    assert (found.gains[:-1] >= found.gains[1:]).all()
    for u, v, size, height in planted:
        away = (found.means - torch.tensor([u, v])).norm(dim=1)
        nearest = int(away.argmin())
        assert away[nearest] <= 1 and found.deviations[nearest] == size
        assert found.colors[nearest, 0] == pytest.approx(height, rel=0.1)
        assert found.gains[nearest] == pytest.approx(math.pi * size**2 * height**2, rel=0.15)
    assert not len(pursue(torch.zeros(16, 16, 3), 5).means)
    assert len(pursue(lacking[..., None], 3, min_gain=1e6).means) == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_of_a_file_and_back(channels):
    colors = torch.randn(9, channels, dtype=torch.float64)
    assert torch.allclose(ycc_to_rgb(rgb_to_ycc(colors)), colors, atol=1e-6)
    theirs = symbols.ycc_to_rgb(rgb_to_ycc(colors).numpy())
    assert np.allclose(theirs, colors.numpy(), atol=1e-6)


@pytest.mark.parametrize("form", ["log_cholesky", "cholesky", "log_rotation_scale", "direct"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_trained_is_what_the_file_says(form, channels):
    made, size = rows(channels, form), CodingGrid(48, 40, channels, cell_shift(48, 40, 30))
    found, drawn = quantize(made, steps(), size)
    head = make_header(size, found.steps, (0.5,) * channels, 8, "sum", 0)
    (layer,) = to_symbols(found, made)
    symbols.check(head, layer)
    theirs = symbols.gaussians(head, layer)
    lit = (found.color != 0).any(1)
    assert np.allclose(drawn.means[lit].detach(), theirs.means, atol=1e-4)
    assert np.allclose(drawn.colors[lit].detach(), theirs.colors, atol=2e-5, rtol=2e-4)
    cov = PARAMETRIZATIONS[drawn.parametrization].covariance(drawn.shapes[lit].detach())
    wanted = torch.stack([cov.yy, -cov.xy, cov.xx], -1) / cov.det[:, None]
    assert np.allclose(wanted, theirs.conics, rtol=1e-3, atol=1e-5)
    assert gsi.load(gsi.dump(head, [layer])).layers[0] == layer.sorted()


def test_steps_that_are_halved_halve_the_error_and_cost_about_a_bit_each():
    made, size = rows(), CodingGrid(48, 40, 3, 3)
    colors = [quantize(made, steps(luma), size)[1].colors for luma in (0.02, 0.01)]
    errors = [float((each - made.colors).detach().abs().mean()) for each in colors]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.2)
    coarse, fine = steps(), steps()
    with torch.no_grad():
        fine[2] -= math.log(2)
    rise = estimate_bits(made, fine, size) - estimate_bits(made, coarse, size)
    assert torch.allclose(rise, torch.full((30,), 2.0), atol=1e-4)


def test_rounding_lets_gradients_through_to_rows_and_steps():
    made, size, learned = rows(), CodingGrid(48, 40, 3, 3), steps()
    drawn = quantize(made, learned, size)[1]
    (drawn.means.sum() + drawn.shapes.square().sum() + drawn.colors.square().sum()).backward()
    assert torch.equal(made.means.grad, torch.ones_like(made.means))
    for leaf in (made.shapes, made.colors, learned):
        assert leaf.grad.isfinite().all() and leaf.grad.abs().max() > 0
    estimate_bits(made, learned, size).sum().backward()
    assert learned.grad.isfinite().all()


def test_noise_is_as_wide_as_rounding():
    made, size = rows(), CodingGrid(48, 40, 3, 3)
    exact, drawn = quantize(made, steps(), size)
    noisy, moved = quantize(made, steps(), size, torch.Generator().manual_seed(3))
    assert torch.equal(exact.shape, noisy.shape) and torch.equal(exact.place, noisy.place)
    for name in ("means", "colors"):
        rounded, shaken = ((getattr(each, name) - getattr(made, name)).detach() for each in (drawn, moved))
        assert 0.25 < float(shaken.square().mean() / rounded.square().mean()) < 4  # of thirty rows
        assert not torch.equal(rounded, shaken)


def test_layers_double_and_the_strongest_come_first():
    made = rows(count=32)
    layers, strength = assign_layers(made, 3), made.contribution()
    assert layers.bincount().tolist() == [8, 8, 16]
    assert strength[layers == 0].min() >= strength[layers == 1].max() >= strength[layers == 2].max()


@pytest.fixture(scope="module")
def small():
    return encode(picture(), ["bytes=700", *FAST])


def test_a_file_keeps_to_its_bytes_and_decodes_to_what_was_drawn(small):
    assert len(small.data) <= 700 and small.psnr > small.background_psnr + 6
    truth = np.rint(picture().pixels * 255)
    away = (decode(small.data) - truth) / 255
    assert -10 * math.log10((away**2).mean()) == pytest.approx(small.psnr, abs=1e-6)
    file = gsi.load(small.data)
    assert sum(section.size for section in file.sections) == len(small.data)


def test_the_encoders_picture_is_the_decoders():
    scene, made = image_scene(picture()), rows()
    rate, raster = ScalarQuantization(bytes=900), ImageRaster(backend="cpu")
    rate.initialize(made, scene)
    data = rate.encode(made, scene, raster)
    with torch.no_grad():
        drawn = raster(made, image_camera(48, 40), background=torch.tensor([scene.background])).image[0]
    theirs = decode(data).astype(float) / 255
    assert len(data) <= 900
    assert np.abs(drawn.clamp(0, 1).numpy() - theirs).max() <= 1 / 255


def test_a_quality_is_met():
    made = encode(picture(), ["quality=30", *FAST])
    assert made.psnr == pytest.approx(30, abs=0.3)
    with pytest.raises(ValueError, match="expected one of them"):
        encode(picture(), ["quality=30", "bpp=1"])
    with pytest.raises(ValueError, match="quality: expected a number"):
        encode(picture(), ["quality=high"])
    for words, told in (
        (["bpp=1", "stepz=3"], "step"),
        (["bpp=1", "rate.bpp=3"], "bpp: expected once"),
        (["bpp=nan"], "bpp: expected a number above 0"),
        (["bytes=60"], "bytes: expected at least 73"),
        (["bpp=0.1"], "bpp of 48 x 40 px: expected"),
        (["bpp=1", "tracker=[csv]"], "expected a setting of encode"),
        (["bpp=1", "model.count=50000"], "model.count"),
    ):
        with pytest.raises(ValueError, match=told):
            encode(picture(), words)


def test_a_quality_that_is_missed_is_told():
    with pytest.warns(UserWarning, match="quality: expected 75 dB, reached"):
        encode(picture(17, 9), ["quality=75", "threads=1", "steps=20"])


def test_the_framing_is_what_a_file_without_gaussians_takes():
    for levels, channels in ((1, 3), (3, 1), (16, 4)):
        told = symbols.Quantizer(3, 1000, 1000, 0, (0.1,) * channels)
        head = symbols.Header(48, 40, channels, 8, "sum", 0, (0,) * channels, told)
        data = gsi.dump(head, [symbols.Symbols.empty(channels)] * levels)
        assert len(data) == overhead_bytes(levels, channels)


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (2, 8), (4, 8), (1, 16), (3, 16)])
def test_any_channels_and_bits(channels, bits):
    made = encode(picture(17, 9, channels, bits), ["bytes=300", *FAST])
    shown = decode(made.data)
    assert shown.shape == (9, 17, channels) and shown.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert made.psnr > made.background_psnr + 1


def test_a_flat_picture_takes_no_gaussians_and_one_pixel_is_a_picture():
    flat = encode(ImageData(np.full((64, 64, 3), 0.4, np.float32), 8, "flat"), ["quality=33", *FAST])
    assert flat.num_gaussians == 0 and math.isinf(flat.psnr) and (decode(flat.data) == 102).all()
    one = encode(ImageData(np.full((1, 1, 1), 0.5, np.float32), 8, "one"), ["bytes=90", *FAST])
    assert decode(one.data).shape == (1, 1, 1)


def test_each_prefix_of_a_layered_file_is_a_better_picture():
    made = encode(picture(), ["bytes=900", "layers=3", *FAST])
    truth = np.rint(picture().pixels * 255)
    errors = [((decode(made.data, layers=count) - truth) ** 2).mean() for count in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    ends = np.cumsum([section.size for section in gsi.load(made.data).sections])
    cut = gsi.load(made.data[: int(ends[-2])])
    assert cut.truncated and np.array_equal(decode(cut), decode(made.data, layers=len(cut.layers)))


def test_at_a_price_rows_that_are_not_worth_their_bits_go():
    dear, cheap = (
        encode(picture(), [f"rd_lambda={price}", "threads=1", "steps=150"]) for price in (0.01, 0.0005)
    )
    assert 0 < dear.num_gaussians < cheap.num_gaussians and dear.psnr < cheap.psnr


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    from PIL import Image

    path = tmp_path / "blobs.png"
    Image.fromarray(np.rint(picture().pixels * 255).astype(np.uint8)).save(path)
    words = ["preset=image_codec", f"data.path={path}", "rate.bytes=700", "model.count=10", "tracker=[]"]
    words += [*FAST, "checkpoint.every=45", "rate.quantize_start=40", "rate.step_size_lr=0.004"]
    run = build(compose(words))
    result = run(tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step_00000045.safetensors"
    again = dataclasses.replace(run, resume=str(checkpoint))
    again(tmp_path / "again")
    files = [(tmp_path / name / "image.gsi").read_bytes() for name in ("whole", "again")]
    assert files[0] == files[1] and len(files[0]) <= 700
    assert result["bytes_on_disk"]["image.gsi"] == len(files[0])


def test_what_decoders_refuse_is_not_begun(monkeypatch):
    scene = image_scene(picture())
    height, width, channels = scene.train[0].float_image.shape
    ScalarQuantization(bpp=1.0).check(scene)
    monkeypatch.setattr("splatexp.image.fit.rate.LIMITS", Limits(gaussians=height * width // 34 - 1))
    with pytest.raises(ValueError, match="Gaussians that rate.bytes or rate.bpp allow: expected"):
        ScalarQuantization(bpp=1.0).check(scene)
    ScalarQuantization(bpp=0.9).check(scene)
    monkeypatch.setattr("splatexp.image.fit.rate.LIMITS", Limits(image_bytes=height * width * channels - 1))
    with pytest.raises(ValueError, match="bytes of the decoded image: expected"):
        encode(picture(), ["bpp=1"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "expected one of them, got none"),
        ({"bpp": 1.0, "bytes": 9}, "got bytes, bpp"),
        ({"bpp": 1.0, "layers": 17}, "layers"),
        ({"bpp": -1.0}, "bpp"),
        ({"bpp": 1.0, "step_size_lr": 0.004}, "quantize_start"),
        ({"bpp": 1.0, "bits_per_gaussian": 2.0}, "bits_per_gaussian"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        ScalarQuantization(**settings)


def test_layers_are_carried_by_rows(small):
    scene, made = image_scene(picture()), Initializer("grid")(image_scene(picture()).train[0].float_image, 16)
    shapes = PARAMETRIZATIONS["log_cholesky"].shapes(made.covariance)
    plane = Splats2D({"means": made.means, "shapes": shapes, "colors": made.colors}, "log_cholesky")
    rate = ScalarQuantization(bpp=2.0, layers=2)
    rate.initialize(plane, scene)
    rate.before_step(plane, scene, 0, 100)
    assert plane.carried[LAYER].bincount().tolist() == [8, 8]
