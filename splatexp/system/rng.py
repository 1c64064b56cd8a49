"""Random numbers that depend on a key alone, such as (seed, step, what for): a resumed run draws the same."""

import random
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream follows from the key."""
    digest = blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def seed_everything(seed: int) -> None:
    """Start the global generators of Python, NumPy and torch, on every device, from a seed.

    Nothing here draws from them; a plug-in may.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators() -> dict[str, Tensor]:
    """Where the global generators stand."""
    _, words, spare = random.getstate()
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.from_numpy(np.append(keys, [place, has_gauss]).astype(np.int64)),
        "numpy_spare": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state |= {f"cuda{index}": each for index, each in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_generators(state: Mapping[str, Tensor]) -> None:
    """Put the global generators where they stood.  Raises: ValueError for what is no state of one."""
    try:
        spare = state["python_spare"].tolist()
        random.setstate((3, tuple(state["python"].tolist()), spare[0] if spare else None))
        *keys, place, has_gauss = state["numpy"].tolist()
        gauss = float(state["numpy_spare"])
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
        torch.set_rng_state(state["torch"])
        for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            if f"cuda{index}" in state:
                torch.cuda.set_rng_state(state[f"cuda{index}"], index)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"random generators: not as they were saved ({reason})") from error
