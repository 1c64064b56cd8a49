"""hydra/sweeper=optuna: a search in which Optuna chooses the next jobs by the results of the earlier ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from splatexp.config.schema import ConfigError
from splatexp.settings.checks import check_choice, check_range
from splatexp.sweep.pareto import HIGHER_IS_BETTER

SAMPLERS = {"tpe": "TPESampler", "nsgaii": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}


@dataclass
class OptunaSweeperConf:
    """The settings of hydra.sweeper with hydra/sweeper=optuna."""

    _target_: str = "splatexp.sweep.optuna_sweeper.OptunaSweeper"
    n_trials: int = 20
    n_jobs: int = 1  # trials that are drawn and run together: as many as the launcher runs side by side
    sampler: str = "tpe"  # tpe, nsgaii, gp or random
    seed: int = 0  # of the sampler; the same seed and the same results give the same trials


class OptunaSweeper:
    """A sweeper that lets Optuna choose the values which the command line leaves open.

    `key=interval(a,b)` is drawn from a range, `key=tag(log,interval(a,b))` from one on a logarithmic scale,
    `key=range(a,b,step)` and `key=a,b,c` from the values that they list. `objective` names the metrics to be
    optimized; whether more or less of a metric is better is known by its name.
    """

    def __init__(self, n_trials: int, n_jobs: int, sampler: str, seed: int):
        try:
            check_range("hydra.sweeper.n_trials", n_trials, 1)
            check_range("hydra.sweeper.n_jobs", n_jobs, 1)
            check_choice("hydra.sweeper.sampler", sampler, SAMPLERS)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.sampler = sampler
        self.seed = seed
        self.hydra_context: Any = None
        self.config: Any = None
        self.launcher: Any = None

    def sweep(self, arguments: list[str]) -> None:
        """Draw trials, run them and tell Optuna the results, until `n_trials` have been run.

        Raises: ConfigError where no value is left open.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        space = {
            _key(override): distribution(override) for override in overrides if override.is_sweep_override()
        }
        if not space:
            raise ConfigError("hydra/sweeper=optuna: nothing to search; say key=interval(a,b) or key=a,b")
        fixed = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
        study = optuna.create_study(
            directions=[
                "maximize" if name in HIGHER_IS_BETTER else "minimize"
                for name in _objective_names(self.config.objective)
            ],
            sampler=self._make_sampler(),
        )
        for number in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - number))]
            jobs = [[*fixed, *(f"{key}={trial.params[key]}" for key in space)] for trial in trials]
            returned = self.launcher.launch(jobs, initial_job_idx=number)
            for trial, job in zip(trials, returned, strict=True):
                values = _objective_values(job.return_value)
                study.tell(trial, values, state=None if values else optuna.trial.TrialState.FAIL)
        logging.getLogger("hydra").info(f"{len(study.trials)} trials, best: {_best_trials(study)}")

    def _make_sampler(self) -> Any:
        import optuna

        settings: dict[str, Any] = {"seed": self.seed}
        if self.sampler == "tpe":  # the first trials are drawn at random
            settings |= {"n_startup_trials": min(10, 1 + self.n_trials // 3)}
        return getattr(optuna.samplers, SAMPLERS[self.sampler])(**settings)


def distribution(override: Override) -> Any:
    """Return the Optuna distribution of an override with several values.

    Raises: ConfigError for values that Optuna refuses.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        is_int = isinstance(value.start, int) and isinstance(value.end, int)
        cls: Any = IntDistribution if is_int else FloatDistribution
        try:
            return cls(value.start, value.end, log="log" in value.tags)
        except ValueError as error:
            raise ConfigError(f"{_key(override)}: {' '.join(str(error).split())}") from error
    values = list(override.sweep_string_iterator())
    is_range = override.is_range_sweep() and not value.shuffle
    if is_range and all(isinstance(each, int) for each in override.sweep_iterator()):
        return IntDistribution(int(values[0]), int(values[-1]), step=value.step)
    return CategoricalDistribution(values)


def _key(override: Override) -> str:
    return override.get_key_element()


def _objective_names(objective: Any) -> list[str]:
    return [objective] if isinstance(objective, str) else list(objective)


def _objective_values(returned: Any) -> list[float] | None:
    """Return what a job returned as a list; None where the job failed or did not measure an objective."""
    values: Sequence[Any] = returned if isinstance(returned, (tuple, list)) else [returned]
    return None if any(each is None for each in values) else [float(each) for each in values]


def _best_trials(study: Any) -> str:
    completed = [trial for trial in study.trials if trial.values]
    best = study.best_trials if completed else []
    return " ".join(f"#{trial.number}" for trial in best) or "none"


def register() -> None:
    """Register hydra/sweeper=optuna with Hydra."""
    ConfigStore.instance().store(
        group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="splatexp"
    )
