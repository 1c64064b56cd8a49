"""The launchers of a sweep: the packages that they need, the threads of each job, and a launcher for Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from splatexp.config.schema import ConfigError
from splatexp.system.linux_memory import cpu_count

REQUIREMENTS = {  # choice -> (extra of this package, module that it installs)
    "hydra/launcher=joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=submitit_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "ray"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


def check_installed(overrides: Sequence[str]) -> None:
    """Check that the launcher and the sweeper that are chosen are installed.

    Raises: ConfigError with the command that installs what is missing.
    """
    for choice in set(overrides) & set(REQUIREMENTS):
        extra, module = REQUIREMENTS[choice]
        try:
            spec = find_spec(module)
            installed = spec is not None and spec.origin is not None  # a folder of that name has no origin
        except ModuleNotFoundError:  # the parent package is missing
            installed = False
        if not installed:
            raise ConfigError(f"{choice}: not installed; pip install 'splatexp[{extra}]'")


def threads_per_job(launcher: Mapping[str, Any], max_parallel: int) -> int:
    """Return the number of threads of a job; 0 for all that its process may use.

    launcher: the settings of the launcher. max_parallel: the largest number of jobs that run at once.
    """
    kind = launcher["_target_"].rpartition(".")[2]
    if kind == "JoblibLauncher":
        jobs = launcher["n_jobs"] or 1
        jobs = jobs if jobs > 0 else max(1, cpu_count() + 1 + jobs)
        return max(1, cpu_count() // min(jobs, max_parallel))
    if kind == "LocalLauncher":
        return launcher["cpus_per_task"] or max(1, cpu_count() // max_parallel)
    if kind == "SlurmLauncher":
        return launcher["cpus_per_task"] or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    return max(1, int(launcher["num_cpus"])) if kind == "RayLauncher" else 0


@dataclass
class RayConf:
    """The settings of hydra.launcher with hydra/launcher=ray."""

    _target_: str = "splatexp.sweep.launchers.RayLauncher"
    address: str | None = None  # of a Ray cluster; null starts one on this machine for the time of the sweep
    num_cpus: float = 1  # per job
    num_gpus: float = 0  # per job


class RayLauncher(Launcher):
    """A launcher that runs each job as a Ray task."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float):
        self.address = address
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a job needs."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and wait for all of them.

        Raises: the error of the first job whose process was lost.
        """
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two jobs may well print the same line
        import ray  # type: ignore[import-not-found]

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            local: dict[str, Any] = {} if self.address else {"include_dashboard": False}
            ray.init(address=self.address, logging_level=logging.WARNING, **local)
        logging.getLogger(__name__).info(f"Ray runs {len(job_overrides)} jobs")
        remote = ray.remote(max_retries=0, **self.resources)(_run_in_ray)
        context = ray.put((self.hydra_context, self.task_function, self.config))
        state = Singleton.get_state()
        tasks = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            logging.getLogger("hydra").info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
            tasks.append(remote.remote(context, state, list(overrides), number))
        returned = []
        errors = []
        for task in tasks:
            try:
                returned.append(ray.get(task))
            except ray.exceptions.RayError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return returned


def _run_in_ray(context: Any, state: Any, overrides: list[str], number: int) -> JobReturn:
    """Run a job in a process of Ray."""
    hydra_context, task_function, config = context
    setup_globals()
    Singleton.set_state(state)
    cfg = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(cfg):
        cfg.hydra.job.id = number
        cfg.hydra.job.num = number
    return run_job(task_function, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", hydra_context)


def register() -> None:
    """Register hydra/launcher=ray with Hydra."""
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, provider="splatexp")


def make_launcher(cfg: DictConfig, context: HydraContext, task: TaskFunction) -> Launcher:
    """Return the launcher that `hydra/launcher` chooses.

    Hydra's own function builds no launcher from outside its plugin packages, so that of Ray is built here.
    """
    if cfg.hydra.launcher._target_ != RayConf._target_:
        return Plugins.instance().instantiate_launcher(context, task, cfg)
    launcher = instantiate(cfg.hydra.launcher)
    launcher.setup(hydra_context=context, task_function=task, config=cfg)
    return launcher
