import pytest
import torch
from support.kernel_cases import assert_close, scene

import splatexp_kernels as sk
from splatexp_kernels import dispatch
from splatexp_kernels.noise import noise
from splatexp_kernels.noise.reference import normals, philox
from splatexp_kernels.project.reference import rotations

FAINT = 0.06  # opacities below it are moved visibly


@pytest.fixture
def backend(any_backend):
    """Every backend: rows are few."""
    return any_backend


def moved(s, backend, dtype, **knobs):
    """Means after one step of noise."""
    means = s.means.to(dtype).clone()
    tensors = [tensor.to(dtype) for tensor in (s.quats, s.scales, s.opacities)]
    knobs = {"lr": 3.0, "seed": 2**40 + 7, "step": 12, **knobs}
    noise(means, *tensors, s.uid, backend=backend, **knobs)
    return means


def faint(N, seed=0):
    s = scene(N, seed=seed)
    s.opacities = FAINT * s.opacities
    s.uid = torch.randperm(N, generator=torch.Generator().manual_seed(1)) * (2**33 + 1)
    return s


WORDS = [  # counter, key, words: of the authors' code, kat_vectors
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "words"), WORDS)
def test_reference_draws_the_words_of_philox(counter, key, words):
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    low = counter[0] | counter[1] << 32
    uid = torch.tensor([low - (low >> 63 << 64)])
    found = philox(uid, key[0] | key[1] << 32, counter[2] | counter[3] << 32)
    assert [int(word) for word in found] == words


def test_reference_draws_normal_deviates():
    eta = normals(torch.arange(200_000), 3, 4)
    assert eta.mean(0).abs().max() < 0.01  # four standard errors
    assert (torch.cov(eta.T) - torch.eye(3)).abs().max() < 0.015
    assert (eta.pow(4).mean(0) - 3).abs().max() < 0.1
    others = [normals(torch.arange(1000), seed, step) for seed, step in ((3, 4), (4, 4), (3, 5))]
    for i, one in enumerate(others):
        for other in others[i + 1 :]:
            assert abs((one * other).mean()) < 0.1 and not (one == other).any()


@pytest.mark.parametrize("knobs", [{}, {"sharpness": 20.0, "threshold": 0.03, "step": 0, "seed": 0}], ids=str)
@pytest.mark.parametrize("N", [0, 1, 15, 16, 17, 500, 5000])
def test_cpu_agrees_with_reference(N, knobs, isa):
    s = faint(N)
    start = s.means.double()
    expected = moved(s, "reference", torch.float64, **knobs) - start
    actual = moved(s, "cpu", torch.float32, **knobs).double() - start
    scale = expected.abs().max().item() if N else 0
    rounding = 3e-7  # of means up to 5 that moved
    assert actual.isfinite().all()
    assert N == 0 or (actual - expected).abs().max() <= 2e-6 * scale + rounding


@pytest.mark.parametrize("knobs", [{}, {"seed": 2**62 + 2**31 + 1, "step": 2**40 + 2**31 + 5}], ids=str)
@pytest.mark.parametrize("N", [0, 1, 63, 130])
def test_gpu_agrees_with_reference(N, knobs):
    s = faint(N)
    start = s.means.double()
    expected = moved(s, "reference", torch.float64, **knobs) - start
    actual = moved(s, "gpu", torch.float32, **knobs).double() - start
    scale = expected.abs().max().item() if N else 0
    assert N == 0 or (actual - expected).abs().max() <= 2e-6 * scale + 3e-7  # as for the CPU


def test_moves_by_the_covariance(backend, monkeypatch):
    if dispatch.interpreted():  # one program of all rows: the interpreter pays for programs
        monkeypatch.setattr("splatexp_kernels.noise.gpu.BLOCK", 2**17)
    dtype = torch.float64 if backend == "reference" else torch.float32
    N = 100_000
    quats, scales = torch.tensor([0.5, 1.0, -0.3, 0.2]), torch.tensor([1.0, 0.5, 0.1])
    means, opacities = torch.zeros(N, 3, dtype=dtype), torch.full((N,), 0.005, dtype=dtype)
    rows = [row.to(dtype).expand(N, -1) for row in (quats, scales)]
    noise(means, *rows, opacities, torch.arange(N), lr=2.0, seed=0, step=0, backend=backend)
    axes = rotations(quats.double()[None])[0]
    sigma = axes @ torch.diag(scales.double() ** 2) @ axes.T
    assert_close("covariance", torch.cov(means.T), sigma @ sigma, 0.03)  # rate 2 and gate 1/2


def test_what_is_opaque_rests(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = faint(200)
    s.opacities[::2] = 0.5
    found = moved(s, backend, dtype, lr=1e6)
    assert torch.equal(found[::2], s.means.to(dtype)[::2])
    assert (found[1::2] != s.means.to(dtype)[1::2]).any(1).all()
    weaker = moved(s, backend, dtype, lr=1e6, sharpness=1.0)
    assert (weaker[::2] != s.means.to(dtype)[::2]).any(1).all()


def test_order_of_rows_does_not_matter(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = faint(1000)
    found = moved(s, backend, dtype)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:777]
    for name in ("means", "quats", "scales", "opacities", "uid"):
        setattr(s, name, getattr(s, name)[order])
    assert torch.equal(moved(s, backend, dtype), found[order])


def test_one_and_two_threads_give_the_same_bits(isa):
    s, before = faint(20_000), sk.get_num_threads()
    found = []
    for threads in (1, 2):
        sk.set_num_threads(threads)
        found.append(moved(s, "cpu", torch.float32))
    sk.set_num_threads(before)
    assert torch.equal(*found)


def test_seed_and_step_matter(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = faint(50)
    plain = moved(s, backend, dtype)
    for knob in ({"seed": 7}, {"seed": 2**40 + 8}, {"step": 13}, {"step": 2**32 + 12}, {"lr": 2.0}):
        assert not torch.equal(moved(s, backend, dtype, **knob), plain), knob
    assert torch.equal(moved(s, backend, dtype), plain)
    assert torch.equal(moved(s, backend, dtype, lr=0.0), s.means.to(dtype))


def test_broken_rows_rest(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = faint(40)
    plain = moved(s, backend, dtype)
    s.quats[3], s.quats[4], s.scales[5], s.scales[6] = 0.0, float("nan"), float("inf"), float("nan")
    s.opacities[7] = float("nan")
    found = moved(s, backend, dtype)
    assert torch.equal(found[3:8], s.means.to(dtype)[3:8])
    assert torch.equal(found[8:], plain[8:]) and torch.equal(found[:3], plain[:3])


def test_reference_refuses():
    s = faint(5)
    rows = [s.quats, s.scales, s.opacities]
    knobs = {"lr": 1.0, "seed": 0, "step": 0, "backend": "reference"}
    with pytest.raises(ValueError, match="means: expected a contiguous tensor"):
        noise(torch.zeros(3, 5).T, *rows, s.uid, **knobs)
    with pytest.raises(TypeError, match="uid: expected int64, got int32"):
        noise(s.means, *rows, s.uid.int(), **knobs)
    with pytest.raises(ValueError, match="uid: expected .5., got .4,."):
        noise(s.means, *rows, s.uid[:4], **knobs)
    for name, value in {"lr": -1.0, "sharpness": -1.0, "threshold": 2.0, "seed": -1, "step": -1}.items():
        with pytest.raises(ValueError, match=f"{name}: expected "):
            noise(s.means, *rows, s.uid, **{**knobs, name: value})
