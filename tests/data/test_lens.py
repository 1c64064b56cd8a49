import numpy as np
import pytest
from support.scenes import picture, tiny_scene

from splatexp.data.lens import COLMAP_MODELS, Lens, from_colmap, undistort

POINTS = np.random.default_rng(0).uniform(-0.6, 0.6, (2, 50))
PARAMS = {
    "SIMPLE_PINHOLE": (100, 40, 30),
    "PINHOLE": (100, 110, 40, 30),
    "SIMPLE_RADIAL": (100, 40, 30, 0.07),
    "RADIAL": (100, 40, 30, 0.07, -0.02),
    "OPENCV": (100, 110, 40, 30, 0.07, -0.02, 0.003, -0.004),
    "FULL_OPENCV": (100, 110, 40, 30, 0.07, -0.02, 0.003, -0.004, 0.01, 0.05, -0.03, 0.02),
    "SIMPLE_RADIAL_FISHEYE": (100, 40, 30, 0.07),
    "RADIAL_FISHEYE": (100, 40, 30, 0.07, -0.02),
    "OPENCV_FISHEYE": (100, 110, 40, 30, 0.07, -0.02, 0.01, -0.005),
}


def published(model: str, p: tuple, x: float, y: float) -> tuple[float, float]:
    """The pixel of (x, y, 1), each model written out as its documentation has it."""
    two = model in ("PINHOLE", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE")
    fx, fy, cx, cy = (p[0], p[1], p[2], p[3]) if two else (p[0], p[0], p[1], p[2])
    k = p[4:] if two else p[3:]
    r = np.sqrt(x * x + y * y)
    if model.endswith("FISHEYE"):
        t = np.arctan(r)
        powers = sum(c * t ** (2 * i + 3) for i, c in enumerate(k))
        x, y = x / r * (t + powers), y / r * (t + powers)
    elif "RADIAL" in model:
        d = sum(c * r ** (2 * i + 2) for i, c in enumerate(k))
        x, y = x + x * d, y + y * d
    elif "OPENCV" in model:
        k1, k2, p1, p2, *rest = k
        k3, k4, k5, k6 = rest or (0, 0, 0, 0)
        d = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        x, y = (
            x * d + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
            y * d + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
        )
    return fx * x + cx, fy * y + cy


@pytest.mark.parametrize("model", COLMAP_MODELS)
def test_every_model_is_as_published(model):
    lens = from_colmap(model, 80, 60, PARAMS[model])
    xd, yd = lens.distort(*POINTS)
    ours = np.stack([lens.fx * xd + lens.cx, lens.fy * yd + lens.cy], 1)
    theirs = [published(model, PARAMS[model], x, y) for x, y in POINTS.T]
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("model", [name for name in COLMAP_MODELS if "PINHOLE" not in name])
def test_undistorting_looks_each_pixel_up_where_the_lens_puts_it(model):
    lens = from_colmap(model, 80, 60, PARAMS[model])
    u, v = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    ramp = np.stack(
        [u, v], axis=2
    )  # each pixel holds its own place, and linear interpolation keeps that exact
    looked, inside = undistort(ramp, lens)
    theirs = [
        published(model, PARAMS[model], x, y)
        for x, y in zip(((u - 40) / lens.fx).ravel(), ((v - 30) / lens.fy).ravel(), strict=True)
    ]
    theirs = np.array(theirs).reshape(60, 80, 2)
    within = ((theirs >= 0) & (theirs <= [80, 60])).all(2)
    assert (inside == within).all()
    deep = ((theirs >= 0.5) & (theirs <= [79.5, 59.5])).all(2)
    np.testing.assert_allclose(looked[deep], theirs[deep], atol=1e-4)


def test_a_straight_lens_changes_nothing():
    image = np.random.default_rng(1).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    lens = Lens(17, 12, 20, 21, 8.5, 6)
    same, inside = undistort(image, lens)
    assert not lens.distorted and inside.all()
    np.testing.assert_allclose(same, image, atol=1e-3)


@pytest.mark.parametrize(
    "model, distortion", [("OPENCV", (0.3, 0.05, 0.004, 0.003)), ("OPENCV_FISHEYE", (0.1, 0.02))]
)
def test_what_a_pinhole_would_have_seen(model, distortion):
    view = tiny_scene(size=48).train[0].camera
    params = [130.0, 130.0, 62.0, 50.0, *distortion] + [0.0] * (4 - len(distortion))
    lens, viewmat = from_colmap(model, 128, 96, params), view.viewmats[0].double().numpy()
    straight = picture(Lens(128, 96, 130, 130, 62, 50), viewmat)
    image, inside = undistort(picture(lens, viewmat), lens)
    psnr = -10 * np.log10(np.mean((image[inside] / 255 - straight[inside] / 255.0) ** 2))
    moved = np.roll(straight, 1, axis=1)
    worse = -10 * np.log10(np.mean((image[inside] / 255 - moved[inside] / 255.0) ** 2))
    assert psnr > 32 and psnr > worse + 6  # what is left is the blur of resampling


def test_a_model_that_folds_back_is_used_only_up_to_the_fold():
    lens = Lens(100, 100, 50, 50, 50, 50, radial=(-0.4,))
    assert lens.max_radius(3.0) == pytest.approx(1 / np.sqrt(3 * 0.4), abs=2e-3)
    _, inside = undistort(np.zeros((100, 100, 1)), lens)
    assert inside[50, 50] and not inside[0, 0] and 0.6 < inside.mean() < 0.8


def test_resizing_scales_each_axis_and_keeps_the_distortion():
    lens = from_colmap("OPENCV", 80, 60, PARAMS["OPENCV"]).resized(40, 20)
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (50, pytest.approx(110 / 3), 20, 10)
    assert lens.radial[:2] == (0.07, -0.02)


@pytest.mark.parametrize(
    "size, fits",
    [
        ((4946, 3286), True),
        ((1237, 822), True),
        ((1236, 821), True),
        ((1600, 1063), True),
        ((4945, 3286), False),
    ]
    + [((4900, 3255), False), ((1237, 825), False), ((3286, 4946), False), ((9892, 6572), True)],
)
def test_only_whole_pictures_fit(size, fits):
    assert Lens(4946, 3286, 1, 1, 1, 1).same_aspect(*size) is fits


@pytest.mark.parametrize("model", ["FOV", "THIN_PRISM_FISHEYE", "number 99"])
def test_other_models_are_refused_by_name(model):
    with pytest.raises(
        ValueError, match=f"camera model {model} is not supported; supported are SIMPLE_PINHOLE"
    ):
        from_colmap(model, 8, 8, [])


def test_broken_parameters_are_refused():
    with pytest.raises(ValueError, match="camera model RADIAL: expected 5 parameters, got 4"):
        from_colmap("RADIAL", 8, 8, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="expected finite numbers"):
        from_colmap("PINHOLE", 8, 8, [1, float("nan"), 3, 4])
    with pytest.raises(ValueError, match="positive size and focal length"):
        from_colmap("PINHOLE", 0, 8, [1, 1, 3, 4])
