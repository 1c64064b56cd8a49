"""The processes that train one scene together."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

SAY = "torchrun --nproc_per_node=<GPUs> -m splatexp raster=gsplat raster.distributed=true"


PATIENCE = timedelta(hours=2)  # for a process that loads, compiles or writes while the others wait


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Meet the other processes, once; this one draws on its own GPU from here on.

    Raises: ValueError, one line, without torchrun, with one process, without NCCL or a GPU for each.
    """
    if dist.is_available() and dist.is_initialized():
        return
    try:
        size, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"raster.distributed: expected to be started by torchrun, say {SAY}") from error
    if size < 2:
        raise ValueError(
            "raster.distributed: expected at least 2 processes, each with a GPU, got 1; "
            "raster.distributed=false trains on one"
        )
    if not (dist.is_available() and dist.is_nccl_available()):
        raise ValueError("raster.distributed: expected a torch with NCCL, got one without; Linux has it")
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"raster.distributed: expected a GPU for each process, got {torch.cuda.device_count()} GPUs for "
            f"process {local} of this machine; --nproc_per_node says how many there are"
        )
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=PATIENCE, device_id=torch.device("cuda", local))
    atexit.register(dist.destroy_process_group)  # its threads must end before the interpreter does
    dist.barrier()


def leads() -> bool:
    """Whether this process writes: there is no other, or it is of rank 0."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def one_by_one(act: Callable[[], None]) -> None:
    """Have the leader act before the others do, so that they find what it leaves."""
    if leads():
        act()
    dist.barrier()
    if not leads():
        act()
