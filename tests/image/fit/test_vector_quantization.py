import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from splatexp.gaussians.splats2d import Splats2D
from splatexp.image.fit.baselines import vector_quantization
from splatexp.image.fit.baselines.vector_quantization import COLORS, SHAPES, Decoded, VectorQuantization

torch.set_num_threads(1)
without = pytest.mark.skipif(bool(vector_quantization.missing()), reason=vector_quantization.missing())
SCENE = SimpleNamespace(train=[SimpleNamespace(camera=SimpleNamespace(width=64, height=48))])


def rows(count=200, form="log_cholesky"):
    g = torch.Generator().manual_seed(0)
    means = torch.rand(count, 2, generator=g) * torch.tensor([64, 48])
    shapes = torch.randn(count, 3, generator=g) * 0.4 + torch.tensor([0.7, 0.0, 0.5])
    return Splats2D({"means": means, "shapes": shapes, "colors": torch.randn(count, 3, generator=g)}, form)


def books(values, words, stages):
    """Words that are rows of the values: no k-means is needed for what is tested with them."""
    return torch.stack([values[stage * words : (stage + 1) * words] * 0.5**stage for stage in range(stages)])


def test_each_stage_takes_the_nearest_word_to_what_is_left():
    shapes, _ = vector_quantization.coded_values(rows())
    held = books(shapes, 16, 2)
    indices, made = vector_quantization.encode(shapes, held)
    first = (shapes[:, None] - held[0]).square().sum(-1).argmin(1)
    left = shapes - held[0][first]
    second = (left[:, None] - held[1]).square().sum(-1).argmin(1)
    assert torch.equal(indices, torch.stack([first, second], 1))
    torch.testing.assert_close(made, held[0][first] + held[1][second])


def test_index_bits_are_those_of_an_adaptive_coder():
    told = torch.tensor([0, 2, 2, 1, 2, 2, 0, 2])
    counts, bits = [1.0] * 4, 0.0
    for index in told.tolist():
        bits -= math.log2(counts[index] / sum(counts))
        counts[index] += 1
    assert vector_quantization.index_bits(told, 4) == pytest.approx(bits)
    assert vector_quantization.index_bits(torch.zeros(0, dtype=torch.long), 4) == pytest.approx(0)


def test_place_bits_are_choices_less_the_order():
    steps = torch.tensor([[0.5, 0.25], [1.0, 1.0], [2.0, 0.5]])
    choices = [128 * 192, 64 * 48, 32 * 96]
    expected = sum(map(math.log2, choices)) - math.log2(6)
    assert vector_quantization.position_bits(steps, (64, 48)) == pytest.approx(expected)
    assert vector_quantization.position_bits(torch.full((3, 2), 1e6), (64, 48)) == 0


@pytest.mark.parametrize("form", ["log_cholesky", "cholesky", "rotation_scale"])
def test_rows_are_drawn_as_decoded_and_learn_as_they_are(form):
    plain = rows()
    shapes = vector_quantization.PARAMETRIZATIONS[form].shapes(plain.covariance).detach()
    params = {"means": plain.means.detach(), "shapes": shapes, "colors": plain.colors.detach()}
    given = Splats2D(params, form)
    shapes, colors = vector_quantization.coded_values(given)
    decoded = Decoded(books(shapes, 16, 2), books(colors, 16, 2), 4.0, (64, 48))
    drawn = decoded(given)
    assert drawn.parametrization == "log_cholesky"
    told = vector_quantization.encode(shapes, decoded.shapes)[1]
    torch.testing.assert_close(drawn.shapes, told, rtol=1e-4, atol=1e-4)
    steps = torch.stack([told[:, 0].exp() * (1 + told[:, 1] ** 2) ** -0.5, told[:, 2].exp()], 1) / 4
    assert ((drawn.means - given.means).abs() <= steps * 0.5001 + 1e-5).all()
    grads = torch.autograd.grad(drawn.means.sum() + drawn.colors.sum(), [given.means, given.colors])
    assert all((grad == 1).all() for grad in grads)
    (grad,) = torch.autograd.grad(drawn.shapes.sum(), given.shapes)
    assert (grad != 0).any() and grad.isfinite().all()
    parts = decoded.bits(given)
    assert set(parts) == {"positions", "shapes", "colors", "codebooks"} and min(parts.values()) > 0
    assert parts["codebooks"] == 2 * 16 * 6 * 16


@without
def test_more_words_are_nearer_and_dearer():
    given, found = rows(600), []
    for words, stages in ((4, 1), (16, 1), (16, 2), (64, 2)):
        shapes, _ = vector_quantization.coded_values(given)
        held = vector_quantization.learn_codebooks(shapes, torch.ones(600), stages, words, seed=0)
        assert held.shape == (stages, words, 3) and torch.equal(held, held.half().float())
        found.append(
            (
                float((vector_quantization.encode(shapes, held)[1] - shapes).square().mean()),
                vector_quantization.book_bits(held),
            )
        )
    assert all(after[0] < before[0] and after[1] > before[1] for before, after in pairwise(found))
    again = vector_quantization.learn_codebooks(shapes, torch.ones(600), 2, 64, seed=0)
    assert torch.equal(held, again)
    further = vector_quantization.learn_codebooks(shapes, torch.ones(600), 2, 64, seed=0, before=held)
    error = (vector_quantization.encode(shapes, further)[1] - shapes).square().mean()
    assert float(error) <= found[-1][0] * 1.02


@without
def test_weights_say_whose_words_come_first_and_few_values_need_few_words():
    values = torch.cat([torch.randn(50, 2) * 0.1, torch.randn(50, 2) * 0.1 + 9])
    weights = torch.cat([torch.full((50,), 1e-6), torch.ones(50)])
    held = vector_quantization.learn_codebooks(values, weights, 1, 4, seed=0)
    assert (held[0] > 5).all(1).sum() >= 3
    same = vector_quantization.learn_codebooks(torch.ones(20, 2), torch.ones(20), 2, 4, seed=0)
    assert torch.equal(vector_quantization.encode(torch.ones(20, 2), same)[1], torch.ones(20, 2))


@without
def test_a_run_learns_codebooks_when_they_are_due_and_keeps_them_in_its_state():
    given, rate = (
        rows(),
        VectorQuantization(
            shape_codebook_size=8, color_codebook_size=8, quantize_start=4, codebook_every=3, codebook_stop=9
        ),
    )
    rate.initialize(given, SCENE)
    seen = []
    for step in range(12):
        rate.before_step(given, SCENE, step, 12)
        assert (given.quantizer is None) == (step < 4)
        seen.append(given.shared[SHAPES].clone())
        with torch.no_grad():
            given.shapes += 0.05
    changed = [step for step in range(1, 12) if not torch.equal(seen[step], seen[step - 1])]
    assert changed == [4, 7]
    status = rate.metrics(given, 11)
    assert status["bits"] == pytest.approx(sum(v for name, v in status.items() if name != "bits"))
    state = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    other = Splats2D.from_state_dict(state)
    assert torch.equal(other.shared[COLORS], given.shared[COLORS])
    rate.before_step(other, SCENE, 11, 12)
    assert all(torch.equal(a, b) for a, b in zip(other.drawn()[:4], given.drawn()[:4], strict=True))


def test_what_cannot_be_done_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="rate.stages: expected a number in"):
        VectorQuantization(stages=0)
    monkeypatch.setattr(
        vector_quantization, "missing", lambda: "scikit-learn is missing; pip install brings it"
    )
    with pytest.raises(ValueError, match="rate: vector cannot be used here: scikit-learn is missing"):
        VectorQuantization().initialize(rows(), SCENE)
    with pytest.raises(ImportError, match="scikit-learn is missing"):
        vector_quantization.learn_codebooks(torch.zeros(3, 2), torch.ones(3), 1, 2, 0)


@without
def test_forms_that_may_be_no_covariance_are_refused():
    with pytest.raises(ValueError, match="model.covariance: expected one of log_cholesky, .*, got direct"):
        VectorQuantization().initialize(rows(form="direct"), SCENE)
