import pytest
import torch
from support.kernel_cases import assert_close

from splatexp_kernels.adam import adam

SHAPES = [(0, 3), (1, 1), (63, 3), (500, 15, 3), (1000,), (4099, 1)]


@pytest.fixture
def backend(any_backend):
    """Every backend: rows are few."""
    return any_backend


def stepped(shape, backend, dtype, *, steps=5, visible=None, **knobs):
    """Parameter and moments after some steps with equal gradients for every backend."""
    g = torch.Generator().manual_seed(0)
    param = torch.randn(*shape, generator=g).to(dtype)
    moments = torch.zeros(2, *shape, dtype=dtype)
    knobs = {"lr": 0.01, **knobs}
    for step in range(1, steps + 1):
        grad = (torch.randn(*shape, generator=g) * 10.0 ** (-step)).to(dtype)
        adam(param, grad, *moments, step=step, visible=visible, backend=backend, **knobs)
    return {"param": param, "exp_avg": moments[0], "exp_avg_sq": moments[1]}


def test_reference_agrees_with_torch():
    g = torch.Generator().manual_seed(0)
    param = torch.randn(63, 3, generator=g).double().requires_grad_()
    optimizer = torch.optim.Adam([param], lr=0.01, betas=(0.8, 0.95), eps=1e-7)
    for step in range(1, 6):
        param.grad = (torch.randn(63, 3, generator=g) * 10.0 ** (-step)).double()
        optimizer.step()
    found = stepped((63, 3), "reference", torch.float64, beta1=0.8, beta2=0.95, eps=1e-7)
    assert_close("param", found["param"], param.detach(), 1e-13)
    assert_close("exp_avg", found["exp_avg"], optimizer.state[param]["exp_avg"], 1e-13)
    assert_close("exp_avg_sq", found["exp_avg_sq"], optimizer.state[param]["exp_avg_sq"], 1e-13)


@pytest.mark.parametrize("knobs", [{}, {"lr": 1.0, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3}], ids=str)
@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_agrees_with_reference(shape, share, knobs, isa):
    g = torch.Generator().manual_seed(1)
    visible = None if share is None else torch.rand(shape[0], generator=g) < share
    expected = stepped(shape, "reference", torch.float64, visible=visible, **knobs)
    actual = stepped(shape, "cpu", torch.float32, visible=visible, **knobs)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 1e-6)  # five steps of float32


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("shape", [(0, 3), (5, 0, 3), (1, 1), (63, 3), (130, 15, 3), (1100,)], ids=str)
def test_gpu_agrees_with_reference(shape, share):
    g = torch.Generator().manual_seed(1)
    visible = None if share is None else torch.rand(shape[0], generator=g) < share
    knobs = {"visible": visible, "beta1": 0.8, "beta2": 0.95}
    expected = stepped(shape, "reference", torch.float64, **knobs)
    actual, again = (stepped(shape, "gpu", torch.float32, **knobs) for _ in range(2))
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 1e-6)  # as for the CPU
        assert torch.equal(actual[name], again[name]), name


def test_invisible_rows_rest(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    visible = torch.arange(200) % 3 == 0
    masked = stepped((200, 3), backend, dtype, visible=visible)
    whole = stepped((200, 3), backend, dtype)
    start = stepped((200, 3), backend, dtype, steps=0)
    for name in masked:
        assert torch.equal(masked[name][~visible], start[name][~visible])
        assert torch.equal(masked[name][visible], whole[name][visible])


def test_knobs(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    plain = stepped((63, 3), backend, dtype)
    for knob in ({"lr": 0.02}, {"beta1": 0.5}, {"beta2": 0.5}, {"eps": 1e-2}):
        assert not torch.equal(stepped((63, 3), backend, dtype, **knob)["param"], plain["param"]), knob
    still = stepped((63, 3), backend, dtype, lr=0.0)
    assert torch.equal(still["param"], stepped((63, 3), backend, dtype, steps=0)["param"])


def test_gradients_of_zero_move_nothing(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    param = torch.ones(20, 3, dtype=dtype)
    grad, first, second = torch.zeros(3, 20, 3, dtype=dtype)
    adam(param, grad, first, second, step=1, lr=0.1, backend=backend)
    assert (param == 1).all() and (first == 0).all() and (second == 0).all()


def test_first_step_is_the_learning_rate(backend):
    """Bias correction: whatever its size, a first gradient moves by lr against its sign."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    grad = torch.tensor([1e-8, -1e-3, 1.0, -1e6], dtype=dtype)
    param, first, second = torch.zeros(3, 4, dtype=dtype)
    adam(param, grad, first, second, step=1, lr=0.1, backend=backend)
    assert_close("param", param, -0.1 * grad.sign(), 1e-5)


def test_takes_parameters_that_require_gradients(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    param = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    grad = torch.ones(3, 5, dtype=dtype).T  # strided
    first, second = torch.zeros(2, 5, 3, dtype=dtype)
    adam(param, grad, first, second, step=1, lr=0.1, backend=backend)
    assert_close("param", param.detach(), torch.full((5, 3), 0.9), 1e-6)
