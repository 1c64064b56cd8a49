"""hydra/sweeper=optuna: the next jobs of a sweep follow from how the earlier ones went."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from splatexp.config.schema import Refused
from splatexp.settings.checks import check_choice, check_range
from splatexp.sweep.pareto import GROWS

SAMPLERS = {"tpe": "TPESampler", "nsgaii": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}


@dataclass
class OptunaConf:
    """The keys of hydra.sweeper with hydra/sweeper=optuna."""

    _target_: str = "splatexp.sweep.optuna_sweeper.Optuna"
    n_trials: int = 20
    n_jobs: int = 1  # so many are drawn, and run, at once: as many as the launcher runs side by side
    sampler: str = "tpe"  # tpe, nsgaii, gp, random
    seed: int = 0  # the same draws again, as long as the results are the same


class Optuna:
    """Draws what the command line leaves open, and keeps to what it says.

    `key=interval(a,b)` is drawn from a range, `key=tag(log,interval(a,b))` on a logarithmic scale,
    `key=range(a,b,step)` and `key=a,b,c` from what they list. `objective` says what is sought; which way is
    better follows from its name.
    """

    def __init__(self, n_trials: int, n_jobs: int, sampler: str, seed: int):
        try:
            check_range("hydra.sweeper.n_trials", n_trials, 1)
            check_range("hydra.sweeper.n_jobs", n_jobs, 1)
            check_choice("hydra.sweeper.sampler", sampler, SAMPLERS)
        except ValueError as error:
            raise Refused(str(error)) from error
        self.n_trials, self.n_jobs, self.sampler, self.seed = n_trials, n_jobs, sampler, seed
        self.hydra_context: Any = None
        self.config: Any = None
        self.launcher: Any = None

    def sweep(self, arguments: list[str]) -> None:
        """Ask, run, tell, until there were enough.  Raises: Refused where nothing is left open."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        said = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        space = {_key(word): distribution(word) for word in said if word.is_sweep_override()}
        if not space:
            raise Refused("hydra/sweeper=optuna: nothing to search; say key=interval(a,b) or key=a,b")
        settled = [word.input_line or "" for word in said if not word.is_sweep_override()]
        names = _names(self.config.objective)
        study = optuna.create_study(
            directions=["maximize" if name in GROWS else "minimize" for name in names],
            sampler=self._sampler(),
        )
        for number in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - number))]
            words = [[*settled, *(f"{key}={trial.params[key]}" for key in space)] for trial in trials]
            jobs = self.launcher.launch(words, initial_job_idx=number)
            for trial, job in zip(trials, jobs, strict=True):
                values = _numbers(job.return_value)
                failed = None if values else optuna.trial.TrialState.FAIL
                study.tell(trial, values, state=failed)
        logging.getLogger("hydra").info(f"{len(study.trials)} trials, the best: {_best(study)}")

    def _sampler(self) -> Any:
        import optuna

        settings: dict[str, Any] = {"seed": self.seed}
        if self.sampler == "tpe":  # that many are drawn at random first
            settings |= {"n_startup_trials": min(10, 1 + self.n_trials // 3)}
        return getattr(optuna.samplers, SAMPLERS[self.sampler])(**settings)


def distribution(word: Override) -> Any:
    """What Optuna draws from, for an override with several values.  Raises: Refused."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = word.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind: Any = IntDistribution if whole else FloatDistribution
        try:
            return kind(value.start, value.end, log="log" in value.tags)
        except ValueError as error:
            raise Refused(f"{_key(word)}: {' '.join(str(error).split())}") from error
    values = list(word.sweep_string_iterator())
    if word.is_range_sweep() and not value.shuffle and all(isinstance(v, int) for v in word.sweep_iterator()):
        steps = [int(each) for each in values]
        return IntDistribution(steps[0], steps[-1], step=value.step)
    return CategoricalDistribution(values)


def _key(word: Override) -> str:
    return word.get_key_element()


def _names(objective: Any) -> list[str]:
    return [objective] if isinstance(objective, str) else list(objective)


def _numbers(value: Any) -> list[float] | None:
    """What a job returned as numbers; None where it failed or did not measure one of them."""
    values: Sequence[Any] = value if isinstance(value, (tuple, list)) else [value]
    return None if any(each is None for each in values) else [float(each) for each in values]


def _best(study: Any) -> str:
    found = [trial for trial in study.trials if trial.values]
    best = study.best_trials if found else []
    return " ".join(f"#{trial.number}" for trial in best) or "none"


def register() -> None:
    """Tell Hydra of the choice."""
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="splatexp")
