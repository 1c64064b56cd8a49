import math

import pytest
import torch

from splatexp.cameras.pinhole import Camera
from splatexp.data.scene import Scene
from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats2d import Splats2D
from splatexp.image.fit.edge import Edge, structure_tensor
from splatexp.image.fit.initial import Initializer
from splatexp.image.fit.refine import Refinement, highest_entropy_tiles, tiles_of
from splatexp.raster.image import ImageRaster
from splatexp.train.step_log import StepLog, StepOutput

torch.set_num_threads(1)
WIDTH, HEIGHT = 40, 32
CAMERA = Camera(torch.eye(4)[None], torch.eye(3)[None], WIDTH, HEIGHT)
BEHIND = torch.tensor([[0.4, 0.3]])


def picture():
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    wave = 0.5 + 0.3 * torch.sin(x * 0.5) * torch.cos(y * 0.3)
    return torch.stack([wave, wave.roll(5, 1)], -1)[None]


def begun(form="log_cholesky", count=60):
    rows = Initializer("grid")(picture()[0], count, background=BEHIND[0])
    params = {
        "means": rows.means,
        "shapes": PARAMETRIZATIONS[form].shapes(rows.covariance),
        "colors": 0.7 * rows.colors,
    }
    return Splats2D(params, form)


def sight(rows, raster, step=0):
    render = raster(rows, CAMERA, background=BEHIND)
    return StepOutput(step, {}, torch.zeros(()), render, picture(), None, CAMERA)


def error(rows, raster):
    with torch.no_grad():
        return float((raster(rows, CAMERA, background=BEHIND).image - picture()).square().mean())


@pytest.mark.parametrize("mode,top_k", [("sum", 0), ("normalized", 0), ("normalized", 4), ("alpha", 0)])
def test_the_colours_of_least_squares_are_put_in_place(mode, top_k):
    raster = ImageRaster(mode=mode, top_k=top_k, backend="cpu")
    rows = raster.with_required_params(begun())
    rows.exp_avg["colors"] += 1
    refine, best = Refinement(solve_every=5, solve_steps=100, solve_ridge=0.0), []
    before = error(rows, raster)
    assert not refine(rows, sight(rows, raster), raster, 3, 20, best)
    assert error(rows, raster) == before
    assert not refine(rows, sight(rows, raster), raster, 4, 20, best)
    after = error(rows, raster)
    assert after < 0.5 * before and not rows.exp_avg["colors"].any()
    rows.colors.grad = None
    (raster(rows, CAMERA, background=BEHIND).image - picture()).square().sum().backward()
    assert float(rows.colors.grad.abs().max()) < 0.05 * HEIGHT  # it is at the bottom
    with torch.no_grad():
        rows.colors += 0.1
    assert refine(rows, sight(rows, raster), raster, 19, 20, best)
    assert error(rows, raster) == pytest.approx(after, rel=1e-2)


@pytest.mark.parametrize("form", ["log_cholesky", "cholesky", "log_rotation_scale"])
def test_l_bfgs_comes_after_the_last_step_and_lowers_the_error(form):
    raster = ImageRaster(backend="cpu")
    rows, refine = begun(form), Refinement(lbfgs_steps=15)
    before, places = error(rows, raster), rows.means.detach().clone()
    assert not refine(rows, sight(rows, raster), raster, 0, 2, [])
    assert error(rows, raster) == before
    assert refine(rows, sight(rows, raster), raster, 1, 2, [])
    assert error(rows, raster) < 0.1 * before
    assert not torch.equal(rows.means.detach(), places) and rows.means.grad is None
    other = begun(form)
    refine(other, sight(other, raster), raster, 1, 2, [])
    assert torch.equal(other.colors, rows.colors)


def test_it_ends_when_the_busiest_tiles_gain_no_more():
    raster, rows = ImageRaster(backend="cpu"), begun()
    refine = Refinement(patience=30, min_delta=0.1, check_every=10, tile_size=8)
    best, ended = [], None
    for step in range(200):
        if step <= 60 and step % 10 == 0:
            with torch.no_grad():
                rows.colors *= 1.05  # it gains until step 60
        if refine(rows, sight(rows, raster), raster, step, 1000, best):
            ended = step
            break
    assert ended == 90 and best[1] == 60.0
    resumed = list(best)
    assert refine(rows, sight(rows, raster), raster, 100, 1000, resumed)
    assert not Refinement(patience=0)(rows, sight(rows, raster), raster, 100, 1000, [])


def test_the_busiest_tiles_are_those_of_many_values():
    grey = torch.full((20, 30), 0.5)
    grey[8:16, 16:24] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    grey[0:4, 0:8] = 0.9  # a tile of two values
    tiles = tiles_of(grey, 8)
    assert tiles.shape == (12, 64) and int(tiles.isnan().sum()) == 12 * 64 - 600
    assert highest_entropy_tiles(grey, 8, 0.01).tolist() == [6]
    assert highest_entropy_tiles(grey, 8, 2 / 12).tolist() == [6, 0]
    assert sorted(highest_entropy_tiles(grey, 8, 1.0).tolist()) == list(range(12))


def test_by_default_it_only_knows_the_last_step():
    rows, raster = begun(), ImageRaster(backend="cpu")
    before = {name: leaf.detach().clone() for name, leaf in rows.params.items()}
    assert not Refinement()(rows, sight(rows, raster), raster, 5, 10, [])
    assert Refinement()(rows, sight(rows, raster), raster, 9, 10, [])
    assert all(torch.equal(before[name], leaf) for name, leaf in rows.params.items())
    for name in (
        "solve_every",
        "solve_steps",
        "lbfgs_steps",
        "patience",
        "min_delta",
        "tile_size",
        "check_every",
    ):
        with pytest.raises(ValueError, match=f"optimizer.refine.{name}: expected at least"):
            Refinement(**{name: -1})


def image_scene(image):
    class View:
        float_image = image

    return Scene.__new__(Scene), View


def test_across_an_edge_it_costs_and_along_it_does_not():
    step = torch.zeros(HEIGHT, WIDTH, 1)
    step[:, WIDTH // 2 :] = 1.0
    tensor = structure_tensor(step, 1.5)
    assert (tensor[..., 1:] == 0).all() and float(tensor[10, WIDTH // 2, 0]) > 0.05 > float(tensor[10, 5, 0])
    penalty = Edge(weight=1.0, max_penalty=100.0)
    scene, view = image_scene(step)
    scene.train, scene.name = [view], "step"
    penalty.check(scene)
    means = torch.tensor([[WIDTH / 2, 10.0], [5.0, 10.0]])
    rows = Splats2D({"means": means, "shapes": torch.zeros(2, 3), "colors": torch.ones(2, 1)}, "log_cholesky")
    found = penalty.penalty(None, rows)
    assert found.item() == pytest.approx(float(tensor[10, WIDTH // 2, 0]) / 2, rel=1e-5)
    found.backward()
    grad = rows.shapes.grad
    assert grad[0, 0] > 0.05 and grad[0, 2] == 0 and not grad[1].any()
    assert rows.means.grad is None  # it shapes, and does not push away
    assert Edge(max_penalty=1e-3, weight=1.0) != penalty
    capped = Edge(weight=1.0, max_penalty=1e-3)
    capped.check(scene)
    assert capped.penalty(None, rows).item() == pytest.approx(0.5e-3)


def test_edges_are_of_pictures():
    penalty = Edge()
    with pytest.raises(RuntimeError, match=r"expected check\(scene\)"):
        penalty.penalty(None, begun())
    scene, view = image_scene(picture()[0])
    scene.train, scene.name = [view, view], "fox"
    with pytest.raises(ValueError, match="regularizer.edge: expected one image, got 2 of fox"):
        penalty.check(scene)
    with pytest.raises(ValueError, match="regularizer.edge.blur: expected at least 0.1, got nan"):
        Edge(blur=math.nan)


def test_where_an_early_end_stands_is_part_of_the_record():
    record = StepLog(best=[31.5, 40.0])
    state = record.state_dict()
    assert StepLog.from_state_dict(state).best == [31.5, 40.0]
    del state["best"]  # as earlier versions wrote it
    assert StepLog.from_state_dict(state).best == []
