"""A program: call an op where memory runs out, each time in a child of its own, and again where it does not.

    python starved.py <op>

It prints a list of JSON objects, one for each number of threads and each limit: `error` (None where the limit
was enough), `same` (whether the call after it has the bits of one that was never short) and `died` (the code
that the child ended with, minus a signal; None where it lived).
"""

import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

import splatexp_kernels as sk
from splatexp_kernels.adam import adam
from splatexp_kernels.blend import LEAVE_ONE_OUT_FIELDS, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import tiles

N, SIZE, LIMITS, SECONDS = 60_000, (640, 480), 5, 60
MORSEL = 32 << 10  # bytes, a fraction of what a chunk of the SSIM allocates


def inputs():
    """Gaussians all over a picture, and what the op before made of them."""
    g = torch.Generator().manual_seed(0)
    width, height = SIZE
    x = {
        "means": (torch.rand(N, 3, generator=g) - 0.5) * 4 + torch.tensor([0.0, 0.0, 4.0]),
        "quats": torch.randn(N, 4, generator=g),
        "scales": torch.rand(N, 3, generator=g) * 0.02,
        "opacities": torch.rand(N, generator=g),
        "sh0": torch.randn(N, 1, 3, generator=g),
        "shN": torch.randn(N, 15, 3, generator=g),
        "viewmats": torch.eye(4)[None],
        "Ks": torch.tensor([[[500.0, 0, width / 2], [0, 500.0, height / 2], [0, 0, 1]]]),
        "image": torch.rand(1, height, width, 3, generator=g),
        "target": torch.rand(1, height, width, 3, generator=g),
        "map": torch.zeros(1, height, width, 3),
        "moments": torch.zeros(2, 15 * 3, N),
    }
    scene = (x["means"], x["quats"], x["scales"], x["opacities"], x["viewmats"], x["Ks"])
    x["projected"] = project(*scene, *SIZE)
    x["tiles"] = tiles(x["projected"].means2d, x["projected"].radii, x["projected"].depths, *SIZE)
    return x


def differentiated(function, *leaves):
    """Outputs, and gradients of the sum of the first."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs[0].sum().backward()
    return [*(output.detach() for output in outputs), *(leaf.grad for leaf in leaves)]


def call_project(x):
    rest = x["viewmats"], x["Ks"], *SIZE
    return differentiated(
        lambda means, quats, scales: project(means, quats, scales, x["opacities"], *rest),
        *(x[name] for name in ("means", "quats", "scales")),
    )


def call_sh(x):
    centers = torch.zeros(1, 3)
    return differentiated(
        lambda *leaves: sh(3, leaves[0], centers, leaves[1], leaves[2]), x["means"], x["sh0"], x["shN"]
    )


def call_tiles(x):
    t = tiles(x["projected"].means2d, x["projected"].radii, x["projected"].depths, *SIZE)
    return [t.order, t.ids, t.starts, t.ends]


def call_blend(x):
    p, colors = x["projected"], x["sh0"].reshape(1, N, 3)
    return differentiated(
        lambda *leaves: blend(*leaves, x["tiles"], *SIZE), p.means2d, p.conics, colors, x["opacities"][None]
    )


def call_attribute(x):
    p, colors = x["projected"], x["sh0"].reshape(1, N, 3)
    found = attribute(
        p.means2d, p.conics, x["opacities"][None], x["tiles"], *SIZE, x["image"],
        want=("distance", *LEAVE_ONE_OUT_FIELDS), colors=colors, image=x["image"], target=x["target"],
    )  # fmt: skip
    return [tensor for tensor in found if tensor is not None]


def call_ssim(x):
    return differentiated(lambda image: ssim(image, x["target"]), x["image"])


def call_chunks(x):
    """What every chunk of the SSIM allocates, on whichever thread, and nothing else."""
    sk.extension().ssim_forward(x["image"], x["target"], x["map"], None)
    return [x["map"]]


def call_adam(x):
    """The gradient is transposed, so that the door copies it; what is updated is in place."""
    param, grad = x["shN"].reshape(N, 45), x["moments"][0].fill_(1e-3).T
    exp_avg, exp_avg_sq = x["moments"].reshape(2, N, 45)[1], x["moments"].reshape(2, N, 45)[1].clone()
    visible = x["opacities"][:, None].expand(N, 2)[:, 0] > 0.5
    adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=0.1, visible=visible)
    return [param]


CALLS = {name[5:]: call for name, call in list(globals().items()) if name.startswith("call_")}


def digest(tensors):
    """Of all their bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def address_space():
    """Bytes of addresses in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit(count):
    resource.setrlimit(resource.RLIMIT_AS, (count, resource.RLIM_INFINITY))


def in_a_child(work):
    """What `work` returns in a forked process, as JSON, and the code that it died with or None."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)  # hanging is dying
        os.write(writer, json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (json.loads(text) if text else None), code or None


def start(threads):
    """Threads are there before memory is short."""
    sk.set_num_threads(threads)
    adam(*torch.zeros(4, 1 << 16).unbind(), step=1, lr=0.1)


def unlimited(call, x):
    """The digest of a call that has what it wants, and how much that is."""
    start(1)
    before = address_space()
    outputs = call(x)
    return {"digest": digest(outputs), "bytes": address_space() - before}


def starved(call, x, threads, margin, hungry):
    """Call under a limit that leaves `margin` bytes, then without; `hungry`: nor anything that was free."""
    error, eaten = None, []
    start(threads)
    limit(address_space() + margin)
    try:
        while hungry:
            eaten.append(bytearray(MORSEL))
    except MemoryError:
        pass
    try:
        call(x)
    except (MemoryError, RuntimeError) as caught:
        error = caught
    eaten.clear()
    limit(resource.RLIM_INFINITY)
    return {"error": error and f"{type(error).__name__}: {error}", "digest": digest(call(x))}


def main():
    name = sys.argv[1]
    torch.set_num_threads(1)
    sk.set_num_threads(1)
    x, call, rows = inputs(), CALLS[name], []
    right, died = in_a_child(lambda: unlimited(call, x))
    assert died is None, died
    for threads in (1, 2):
        for i in range(LIMITS):
            job = (call, x, threads, right["bytes"] * i // LIMITS, name == "chunks")
            row, died = in_a_child(lambda job=job: starved(*job))
            same = row is not None and row["digest"] == right["digest"]
            rows.append({"threads": threads, "error": row and row["error"], "same": same, "died": died})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
