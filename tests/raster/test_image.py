"""Rows of the plane: drawn, edited, born, pruned, updated, saved."""

import pytest
import torch
from support import (
    image_cases,
    tiny,  # noqa: F401  one thread
)

from splatexp.data.single_image import image_camera
from splatexp.densify import Context, Rule, RuleStrategy
from splatexp.densify.births import residual_image
from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats import Edit, Splats
from splatexp.gaussians.splats2d import LAYER, OPACITY, RenderParams, Splats2D
from splatexp.image.fit.optimizer import ImageAdam
from splatexp.raster.image import ImageRaster
from splatexp.run.state import TrainingState

BEHIND = torch.tensor([[0.2, 0.4, 0.6]])


def summed(rows, width=40, height=32, background=BEHIND):
    """The picture by its definition, float64."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    xx, xy, yy, det = (part.double() for part in rows.covariance)
    dx, dy = (axis[None] - at[:, None, None].double() for axis, at in zip((x, y), rows.means.T, strict=True))
    power = (yy[:, None, None] * dx**2 - 2 * xy[:, None, None] * dx * dy + xx[:, None, None] * dy**2) / det[
        :, None, None
    ]
    weights = rows.weights.double()[:, None, None] * (-power / 2).exp()
    weights = torch.where(weights < 1 / 255, 0, weights)
    return torch.einsum("nhw,nd->hwd", weights, rows.colors.double()) + background[0].double()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_a_sum_is_what_its_definition_says_in_every_form(backend, form):
    rows = image_cases.rows(form=form)
    image = ImageRaster(backend=backend)(rows, image_camera(40, 32), background=BEHIND).image[0]
    assert torch.allclose(image.double(), summed(rows), atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels(channels):
    rows, behind = image_cases.rows(channels=channels), torch.full((1, channels), 0.3)
    image = ImageRaster()(rows, image_camera(40, 32), background=behind).image[0]
    assert torch.allclose(image.double(), summed(rows, background=behind), atol=2e-5)


def test_a_camera_of_the_plane_enlarges_and_cuts_out():
    rows, raster = image_cases.rows(), ImageRaster()
    whole = raster(rows, image_camera(80, 64, zoom=2.0), background=BEHIND).image
    part = raster(rows, image_camera(20, 10, zoom=2.0, corner=(30.0, 16.0)), background=BEHIND).image
    assert torch.allclose(part, whole[:, 16:26, 30:50], atol=1e-5)
    twice = image_cases.rows()
    with torch.no_grad():
        twice.means *= 2
        twice.shapes[:, ::2] += torch.tensor(2.0).log()
    assert torch.allclose(raster(twice, image_camera(80, 64), background=BEHIND).image, whole, atol=1e-5)


def test_alpha_composites_rows_in_their_order_and_adds_opacities():
    raster = ImageRaster(mode="alpha")
    rows = raster.with_required_params(image_cases.rows())
    assert torch.equal(rows.weights, torch.full((30,), 0.5)) and raster.with_required_params(rows) is rows
    image = raster(rows, image_camera(40, 32), background=BEHIND).image
    turned = image_cases.rows()
    with torch.no_grad():
        for name, row in turned.params.items():
            row.copy_(rows.params[name].flip(0))
    other = raster(raster.with_required_params(turned), image_camera(40, 32), background=BEHIND).image
    assert (image - other).abs().max() > 0.01
    image.sum().backward()
    assert rows.extra[OPACITY].grad.abs().min() > 0
    with pytest.raises(
        ValueError, match=r"raster.mode: expected alpha, since the rows have opacities, got sum"
    ):
        ImageRaster().with_required_params(rows)


def test_what_is_drawn_may_be_something_else_than_the_rows():
    rows, raster = image_cases.rows(), ImageRaster()
    rows.quantizer = lambda r: RenderParams(
        r.means.round(), r.shapes, 2 * r.colors, r.weights, r.parametrization
    )
    image = raster(rows, image_camera(40, 32)).image
    plain = image_cases.rows()
    with torch.no_grad():
        plain.means.round_(), plain.colors.mul_(2)
    assert torch.equal(image, raster(plain, image_camera(40, 32)).image)
    image.sum().backward()
    assert rows.colors.grad is not None and rows.shapes.grad is not None


def test_what_pictures_do_not_have_is_refused():
    with pytest.raises(ValueError, match="raster: image has no absgrad, depth or dropout"):
        ImageRaster()(image_cases.rows(), image_camera(40, 32), absgrad=True)
    for knobs, said in (
        ({"mode": "max"}, "raster.mode: expected one of sum, normalized, alpha, got 'max'"),
        ({"tile_size": 9}, "raster.tile_size: expected 8, 16 or 32, got 9"),
        ({"mode": "alpha", "top_k": 3}, "raster.top_k: expected 0 with raster.mode=alpha, got 3"),
        ({"backend": "tpu"}, "raster.backend: expected one of auto, reference, cpu, gpu, got 'tpu'"),
    ):
        with pytest.raises(ValueError, match=said):
            ImageRaster(**knobs)
    with pytest.raises(ValueError, match=r"colors: expected \[4, 3\], got \(5, 3\)"):
        Splats2D({"means": torch.zeros(4, 2), "shapes": torch.zeros(4, 3), "colors": torch.zeros(5, 3)})


def test_rows_come_back_from_a_state_with_form_layer_and_moments():
    rows = ImageRaster(mode="alpha").with_required_params(image_cases.rows(form="direct"))
    rows.carried[LAYER][7:] = 1
    for moments in rows.exp_avg.values():
        moments.normal_(generator=torch.Generator().manual_seed(3))
    rows.apply(Edit(torch.tensor([2, 9, 9]), torch.tensor([False, False, True]), step=5))
    state = TrainingState(rows)
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    again = TrainingState.from_checkpoint(tensors, {"step": 1, **state.metadata()}).splats
    assert isinstance(again, Splats2D) and again.parametrization == "direct"
    assert again.carried[LAYER].tolist() == [0, 1, 1]
    for name, tensor in rows.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    broken = {name: t for name, t in rows.state_dict().items() if name != "shapes"}
    with pytest.raises(ValueError, match="params: expected means, shapes, colors, got means, colors"):
        Splats2D.from_state_dict(broken)
    assert isinstance(tiny.splats(), Splats) and not isinstance(again, Splats)


def context(scene, **more):
    return Context(scene=scene, raster=ImageRaster(), steps=100, **more)


def test_what_leaving_a_row_out_costs_is_told_by_a_survey():
    scene, rows, raster = image_cases.scene(), image_cases.rows(), ImageRaster()
    with torch.no_grad():  # well inside: the integral of its square is then that over the picture
        rows.means.copy_(torch.rand(30, 2, generator=torch.Generator().manual_seed(1)) * 6 + 15)
        rows.shapes.copy_(torch.tensor([0.3, 0.2, 0.5]))
    survey = RuleStrategy(every=1, start=0).survey
    survey({"removal_loss.sum", "removal.sum"}, rows, 0, context(scene))
    view, behind = scene.train[0], torch.tensor(scene.background)[None]

    def error(colors):
        drawn = image_cases.rows()
        with torch.no_grad():
            drawn.means.copy_(rows.means), drawn.shapes.copy_(rows.shapes), drawn.colors.copy_(colors)
            return (
                (raster(drawn, view.camera, background=behind).image - view.float_image)
                .double()
                .square()
                .sum()
            )

    whole = error(rows.colors)
    for row in range(0, 30, 7):
        colors = rows.colors.detach().clone()
        colors[row] = 0
        rise = float(error(colors) - whole)
        assert float(rows.row_stat("removal_loss.sum")[row]) == pytest.approx(rise, rel=0.02, abs=0.02)


def test_rows_are_born_where_the_picture_is_wrong_in_the_colour_that_it_lacks():
    scene, rows = image_cases.scene(), image_cases.rows(4)
    with torch.no_grad():
        rows.colors.zero_()
    rows.carried[LAYER][3:] = 2
    lacking = residual_image(rows, context(scene))
    assert torch.allclose(lacking, scene.train[0].float_image - torch.tensor(scene.background), atol=1e-6)
    rule = Rule("birth", "error", "top", 1.0, shrink=1e9)
    edit = rule.plan(6, rows, torch.Generator(), max_rows=50, context=context(scene))
    assert rows.apply(edit) == 50 and len(rows) == 54
    worst = lacking.square().mean(-1).flatten().topk(50).indices
    there = rows.means[4:].detach().floor().long()
    assert set((there[:, 1] * 40 + there[:, 0]).tolist()) == set(worst.tolist())
    assert torch.allclose(rows.colors[4:].detach(), lacking[there[:, 1], there[:, 0]], atol=1e-6)
    assert rows.sigmas()[4:].tolist() == pytest.approx([0.3] * 50)
    assert rows.born[4:].tolist() == [6] * 50 and rows.carried[LAYER].tolist() == [0] * 3 + [2] * 51
    assert residual_image(rows, context(scene)).square().sum() < lacking.square().sum()


def test_births_and_removals_keep_to_the_curve_and_the_cap():
    scene, rows = image_cases.scene(), image_cases.rows(10)
    rules = {
        "weak": Rule("prune", "removal_loss", "below", 0.0, min_remaining=1),
        "births": Rule("birth", "error", "sample", 1.0),
    }
    strategy = RuleStrategy(every=10, start=0, stop=0, max_gaussians=60, **rules)
    strategy.growth.kind = "linear"
    strategy.opacity_reset.every = 0
    counts = []
    for step in range(100):
        for edit in strategy.plan(step, rows, context(scene)):
            rows.apply(edit)
        counts.append(len(rows))
    assert max(counts) <= 60 and counts[-1] == 60 and counts[30] < 45
    assert len(rows.uid.unique()) == 60


def test_the_weakest_go_where_there_are_too_many():
    rows = image_cases.rows()
    strength = rows.contribution()
    for edit in RuleStrategy(every=0, max_gaussians=12).plan(0, rows):
        rows.apply(edit)
    assert torch.equal(rows.contribution(), strength[strength.topk(12).indices.sort().values])


@pytest.mark.parametrize(
    ("form", "powers"),
    [
        ("log_cholesky", (0, 0, 0)),
        ("cholesky", (1, 1, 1)),
        ("rotation_scale", (1, 1, 0)),
        ("direct", (2, 2, 2)),
    ],
)
def test_steps_are_in_shares_of_the_size_or_in_pixels(form, powers):
    for relative_to_size in (True, False):
        rows = image_cases.rows(form=form)
        before, sizes = {name: row.detach().clone() for name, row in rows.params.items()}, rows.sigmas()
        for row in rows.params.values():
            row.grad = torch.ones_like(row)
        rates = dict.fromkeys((*rows.params, OPACITY), 1.0)
        optimizer = ImageAdam(means=0.5, shapes=0.1, colors=0.02, relative_to_size=relative_to_size)
        optimizer.step(
            rows, 0, lr_factors=rates, visible=torch.ones(1, 30, dtype=torch.bool), backend="reference"
        )
        moved = {name: before[name] - row.detach() for name, row in rows.params.items()}
        unit = sizes[:, None] if relative_to_size else torch.ones(30, 1)
        assert torch.allclose(moved["means"], 0.5 * unit.expand(-1, 2), rtol=1e-4)
        assert torch.allclose(moved["colors"], torch.full_like(moved["colors"], 0.02), rtol=1e-3)
        wanted = 0.1 * unit ** torch.tensor(powers)
        assert torch.allclose(moved["shapes"], wanted, rtol=1e-3)
