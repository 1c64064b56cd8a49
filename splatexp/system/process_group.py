"""The group of processes that train one scene together."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

LAUNCH_COMMAND = "torchrun --nproc_per_node=<GPUs> -m splatexp raster=gsplat raster.distributed=true"
TIMEOUT = timedelta(hours=2)  # while others wait, a process may load, compile or write


def init_process_group(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, once; from here on this process uses its own GPU.

    Raises: ValueError, one line, without torchrun, with a single process, without NCCL, or without a GPU for
    each process.
    """
    if dist.is_available() and dist.is_initialized():
        return
    try:
        size, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"raster.distributed: expected to be started by torchrun: {LAUNCH_COMMAND}"
        ) from error
    if size < 2:
        raise ValueError(
            "raster.distributed: expected at least 2 processes, each with a GPU, got 1; "
            "raster.distributed=false trains on one GPU"
        )
    if not (dist.is_available() and dist.is_nccl_available()):
        raise ValueError("raster.distributed: expected a torch with NCCL (on Linux), got one without")
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"raster.distributed: expected a GPU for each process, got {torch.cuda.device_count()} GPUs for "
            f"process {local} of this machine; set --nproc_per_node to the number of GPUs"
        )
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=TIMEOUT, device_id=torch.device("cuda", local))
    atexit.register(dist.destroy_process_group)  # its threads must end before the interpreter does
    dist.barrier()


def is_main_process() -> bool:
    """Return whether this process writes files and logs: it is the only one, or has rank 0."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def main_process_first(action: Callable[[], None]) -> None:
    """Call `action` in the main process, then in the others, so that they find what it has left on disk."""
    if is_main_process():
        action()
    dist.barrier()
    if not is_main_process():
        action()
