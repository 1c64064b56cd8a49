"""Random numbers that follow from a key, as (purpose, seed, step): a resumed run draws the same ones."""

import random
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from splatexp.settings.messages import one_line


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose stream follows from the key."""
    digest = blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on every device.

    splatexp itself does not draw from them; a plug-in may.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Tensor]:
    """Return the state of the global generators as tensors."""
    _, words, spare = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.from_numpy(np.append(keys, [position, has_gauss]).astype(np.int64)),
        "numpy_spare": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state |= {f"cuda{index}": cuda for index, cuda in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Set the state of the global generators.  Raises: ValueError for a state that they refuse."""
    try:
        spare = state["python_spare"].tolist()
        random.setstate((3, tuple(state["python"].tolist()), spare[0] if spare else None))
        *keys, position, has_gauss = state["numpy"].tolist()
        gauss = float(state["numpy_spare"])
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(state["torch"])
        for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            if f"cuda{index}" in state:
                torch.cuda.set_rng_state(state[f"cuda{index}"], index)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"random: expected the states of the random generators, got others ({one_line(error)})"
        ) from error
