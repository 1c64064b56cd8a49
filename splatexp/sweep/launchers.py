"""Where the jobs of a sweep run: which package each choice needs, its share of the processors, and Ray."""

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

from splatexp.config.schema import Refused
from splatexp.system.cgroups import processors

NEEDS = {  # choice -> extra, and the module that it installs
    "hydra/launcher=joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=submitit_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "ray"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


def check_installed(words: Sequence[str]) -> None:
    """Refuse a launcher or sweeper whose package is missing, with what installs it.  Raises: Refused."""
    for word in set(words) & set(NEEDS):
        extra, module = NEEDS[word]
        try:
            spec = find_spec(module)
            there = spec is not None and spec.origin is not None  # a bare folder of that name is none
        except ModuleNotFoundError:  # not even the package around it
            there = False
        if not there:
            raise Refused(f"{word}: not installed; pip install 'splatexp[{extra}]'")


def share(launcher: Mapping[str, Any], at_once: int) -> int:
    """Threads of one job among those that a launcher has run at once; 0: all that its process may use."""
    kind = launcher["_target_"].rpartition(".")[2]
    if kind == "JoblibLauncher":
        jobs = launcher["n_jobs"] or 1
        jobs = jobs if jobs > 0 else max(1, processors() + 1 + jobs)
        return max(1, processors() // min(jobs, at_once))
    if kind == "LocalLauncher":
        return launcher["cpus_per_task"] or max(1, processors() // at_once)
    if kind == "SlurmLauncher":
        return launcher["cpus_per_task"] or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    return max(1, int(launcher["num_cpus"])) if kind == "Ray" else 0


@dataclass
class RayConf:
    """The keys of hydra.launcher with hydra/launcher=ray."""

    _target_: str = "splatexp.sweep.launchers.Ray"
    address: str | None = None  # of a cluster; none: one is started here, for as long as the sweep lasts
    num_cpus: float = 1  # of each job
    num_gpus: float = 0


class Ray(Launcher):
    """Each job is a task of Ray's."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float):
        self.address, self.resources = address, {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a job needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and wait for all.  Raises: what the first of those raised whose process was lost."""
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of two jobs may be alike
        import ray  # type: ignore[import-not-found]

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            here: dict[str, Any] = {} if self.address else {"include_dashboard": False}
            ray.init(address=self.address, logging_level=logging.WARNING, **here)
        logging.getLogger(__name__).info(f"Ray runs {len(job_overrides)} jobs")
        run = ray.remote(max_retries=0, **self.resources)(_run)
        context, state = ray.put((self.hydra_context, self.task_function, self.config)), Singleton.get_state()
        started = []
        for number, words in enumerate(job_overrides, initial_job_idx):
            logging.getLogger("hydra").info(f"\t#{number} : {' '.join(filter_overrides(words))}")
            started.append(run.remote(context, state, list(words), number))
        returned, lost = [], []
        for job in started:
            try:
                returned.append(ray.get(job))
            except ray.exceptions.RayError as error:
                lost.append(error)
        if lost:
            raise lost[0]
        return returned


def _run(context: Any, state: Any, words: list[str], number: int) -> JobReturn:
    """A job in a process of Ray's."""
    hydra_context, task_function, config = context
    setup_globals()
    Singleton.set_state(state)
    cfg = hydra_context.config_loader.load_sweep_config(config, words)
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    places = ("hydra.sweep.dir", "hydra.sweep.subdir")
    return run_job(task_function, cfg, *places, hydra_context)


def register() -> None:
    """Tell Hydra of the choice."""
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, provider="splatexp")


def launcher_of(cfg: DictConfig, context: HydraContext, task: TaskFunction) -> Launcher:
    """What `hydra/launcher` chose; Hydra itself takes none from outside its own packages."""
    if cfg.hydra.launcher._target_ != RayConf._target_:
        return Plugins.instance().instantiate_launcher(context, task, cfg)
    launcher = instantiate(cfg.hydra.launcher)
    launcher.setup(hydra_context=context, task_function=task, config=cfg)
    return launcher
