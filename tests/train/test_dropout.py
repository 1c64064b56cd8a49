import pytest
import torch

from splatexp.train.dropout import Dropout


def test_share_rises_on_a_line():
    dropout = Dropout(p=0.2, start=10, stop=30)
    assert [dropout.probability(step, 100) for step in (0, 10, 20, 30, 99)] == pytest.approx(
        [0, 0, 0.1, 0.2, 0.2]
    )
    assert Dropout(p=0.2).probability(5_000, 10_000) == pytest.approx(0.1), "DropGaussian: 0.2 it / 10,000"


def test_survivors_make_up_for_the_others():
    factors = Dropout(p=0.4).opacity_factors(50, 100, 100_000, seed=3)
    assert factors.shape == (100_000,) and factors.dtype == torch.float32
    assert factors.unique().tolist() == pytest.approx([0.0, 1.25])
    assert factors.mean().item() == pytest.approx(1, abs=0.01)  # 6 standard errors of 0.0016


def test_draws_follow_from_seed_and_step():
    dropout = Dropout(p=0.5)
    first = dropout.opacity_factors(50, 100, 200, seed=3)
    assert torch.equal(first, dropout.opacity_factors(50, 100, 200, seed=3))
    assert not torch.equal(first > 0, dropout.opacity_factors(50, 100, 200, seed=4) > 0)
    assert not torch.equal(first > 0, dropout.opacity_factors(51, 100, 200, seed=3) > 0)


def test_nothing_is_drawn_where_nothing_drops():
    assert Dropout().opacity_factors(50, 100, 10, seed=0) is None
    assert Dropout(p=0.2, start=50).opacity_factors(50, 100, 10, seed=0) is None
    assert Dropout(p=0.2, start=50).opacity_factors(51, 100, 0, seed=0).shape == (0,)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"p": 1.0}, "dropout.p"),
        ({"start": -1}, "dropout.start"),
        ({"start": 9, "stop": 5}, "dropout.stop"),
    ],
)
def test_dropout_refuses(settings, line):
    with pytest.raises(ValueError, match=line):
        Dropout(**{"p": 0.1, **settings})
