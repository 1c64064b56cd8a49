import math

import pytest
import torch

from splatexp.data.single_image import image_camera, image_scene
from splatexp.gaussians.splats2d import LAYER, Splats2D
from splatexp.image.fit.baselines.sequential_layers import SequentialLayers
from splatexp.image.fit.initial import Initializer
from splatexp.image.fit.prefixes import measure_file
from splatexp.image.fit.rate import encode_rows
from splatexp.io.image_file import ImageData
from splatexp.raster.image import ImageRaster

torch.set_num_threads(1)
STEPS = 30


def begun(count=40):
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    wave = 0.5 + 0.4 * torch.sin(x * 0.4) * torch.cos(y * 0.3)
    scene = image_scene(ImageData(wave[..., None].expand(-1, -1, 3).contiguous().numpy(), 8, "wave"))
    rows = Initializer("grid")(scene.train[0].float_image, count, background=torch.tensor(scene.background))
    covariance = rows.covariance
    shapes = torch.stack([covariance.xx.log() / 2, 0 * covariance.xx, covariance.yy.log() / 2], 1)
    return scene, Splats2D({"means": rows.means, "shapes": shapes, "colors": rows.colors}, "log_cholesky")


def test_rows_of_earlier_layers_learn_no_more():
    scene, rows = begun()
    rate = SequentialLayers(bpp=1.0, layers=3, quantize_start=20)
    rate.initialize(rows, scene)
    rows.born[20:] = 10  # as if they had come with the second layer
    for moments in (rows.exp_avg, rows.exp_avg_sq):
        for name in rows.params:
            moments[name] += 1
    for step, free in ((9, 0), (10, 20), (19, 20), (20, 40)):
        rate.before_step(rows, scene, step, STEPS)
        rows.drop_gradients()
        sum(drawn.sum() for drawn in rows.drawn()[:3]).backward()
        for leaf in rows.params.values():
            held = (leaf.grad == 0).all(1)
            assert held[:free].all() and not held[free:].any(), step
    assert rows.carried[LAYER].tolist() == [0] * 20 + [1] * 20
    assert not rows.exp_avg["means"].any() and not rows.exp_avg_sq["colors"].any()
    assert (rows.quantizer is None) == (step < 20)


def test_each_layer_doubles_what_there_is():
    scene, rows = begun()
    rate = SequentialLayers(bpp=1.0, layers=3)
    rate.initialize(rows, scene)
    counts = [rate.max_rows(rows, step, STEPS) for step in (0, 9, 10, 19, 20, 29)]
    assert counts[0] == counts[1] and counts[2] == counts[3] and counts[4] == counts[5]
    assert counts[2] == pytest.approx(2 * counts[0], abs=2) and counts[4] == pytest.approx(
        4 * counts[0], abs=3
    )


def test_a_file_is_measured_prefix_by_prefix():
    scene, rows = begun()
    rate, raster = SequentialLayers(bpp=1.0, layers=2, quantize_start=1), ImageRaster(backend="cpu")
    rate.initialize(rows, scene)
    rows.born[:10] = 20
    rate.before_step(rows, scene, 29, STEPS)
    data = encode_rows(rows, scene, raster)
    found = measure_file(data, scene)
    assert found["bits"] == 8 * len(data) and found["bpp"] == pytest.approx(8 * len(data) / (32 * 48))
    one, two = found["psnr_layers_1"], found["psnr_layers_2"]
    assert found["psnr_layers"] == pytest.approx((one + two) / 2) and one != two
    image = raster(rows, image_camera(48, 32), background=torch.tensor([scene.background])).image[0].detach()
    error = float((image.clamp(0, 1) - scene.train[0].float_image).square().mean())
    assert two == pytest.approx(-10 * math.log10(error), abs=0.05)
    rows.carried[LAYER].zero_()
    assert set(measure_file(encode_rows(rows, scene, raster), scene)) == {"bits", "bpp"}


def test_what_was_hung_on_leaves_does_not_add_up():
    scene, rows = begun()
    rate = SequentialLayers(bpp=1.0, layers=2, quantize_start=5)
    rate.initialize(rows, scene)
    for _ in range(3):
        rate.before_step(rows, scene, 3, STEPS)
    assert len(rate._held) == len(rows.params)
