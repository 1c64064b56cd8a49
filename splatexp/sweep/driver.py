"""A sweep from its start to its end: planned, launched, stopped, summed up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins import basic_sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from splatexp.config.build import build, made
from splatexp.config.compose import Loader
from splatexp.config.schema import Refused
from splatexp.sweep import pareto
from splatexp.sweep.cache import CARD
from splatexp.sweep.job import ERROR, OUTPUT, job, remove, say
from splatexp.sweep.launchers import launcher_of
from splatexp.sweep.optuna_sweeper import Optuna, OptunaConf
from splatexp.sweep.sweep_folder import PLAN, WELL, Sweep, lives, table, write_csv
from splatexp.system.signals import Signals, Stopped

PICTURE = "pareto.svg"


def multirun(app: Any, composer: Loader, name: str, words: list[str]) -> int:
    """Run a sweep.  Returns: the exit status, 1 where a job has failed.

    Every setting is checked before there is a folder.
    Raises: Refused; KeyboardInterrupt when it was stopped.
    """
    for each in one_at_a_time(composer, words):
        if build(composer.job(name, each)).raster.distributed:
            raise Refused("raster.distributed: expected false in a sweep, whose jobs have one process each")
    cfg = app.compose_config(name, [*words, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, True)
    said: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    callbacks = Callbacks(cfg)
    callbacks.on_multirun_start(config=cfg, config_name=name)
    try:
        sweep = plan(composer, cfg, said)
        sweeper = _sweeper(cfg, HydraContext(composer, callbacks), sweep)
        with _Stopping(sweep) as signals:
            try:
                sweeper.sweep(said)
            except KeyboardInterrupt as stop:  # a launcher may have raised one of its own
                sweep.stop()
                _sum_up(sweep)
                raise Stopped(signals.caught) if signals.caught else stop from None
        callbacks.on_multirun_end(config=cfg, config_name=name)
        return _sum_up(sweep)
    except Refused:
        for folder in made:
            remove(folder, {"multirun.yaml", PLAN, ".submitit"})
        raise


def one_at_a_time(composer: Loader, words: list[str]) -> Iterator[list[str]]:
    """Jobs in which every value of a sweep occurs (of a long one the first 64), the others at their first."""
    try:
        parsed = OverridesParser.create(composer).parse_overrides(words)
    except OverrideParseException:  # composing it will say so
        yield words
        return
    choices = []
    for word in parsed:
        values = islice(word.sweep_string_iterator(), 64) if word.is_discrete_sweep() else ()
        if isinstance(interval := word.value() if word.is_sweep_override() else None, IntervalSweep):
            values = (str(interval.start),)
        choices.append([f"{word.get_key_element()}={value}" for value in values] or [word.input_line or ""])
    first = [values[0] for values in choices]
    yield first
    for place, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def plan(composer: Loader, cfg: DictConfig, said: list[str]) -> Sweep:
    """What the jobs will read about their sweep, written into its folder.

    Raises: Refused where another sweep is in that folder, and for what its sweeper cannot do.
    """
    sweeper, folder = cfg.hydra.sweeper, Path(str(cfg.hydra.sweep.dir)).absolute()
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(composer).parse_overrides([*given, *said])
    several = [word for word in parsed if word.is_sweep_override()]
    jobs, at_once = None, sweeper.get("n_jobs", 1)
    if _is_basic(cfg):
        for word in several:
            if not word.is_discrete_sweep():
                raise Refused(f"{word.get_key_element()}: an interval needs hydra/sweeper=optuna")
        jobs = math.prod(_count(word) for word in several)
        at_once = min(jobs, sweeper.max_batch_size or jobs)
    words = [word for word in said if word.partition("=")[0] != "force"]
    sweep = Sweep(folder, words, [word.get_key_element() for word in several], jobs, at_once)
    try:
        earlier = Sweep.read(folder)
    except (OSError, ValueError):
        earlier = None
    if earlier and earlier.words != words:
        raise Refused(f"{folder}: another sweep is there; hydra.sweep.dir=<folder> begins elsewhere")
    if earlier and not earlier.ended and earlier.host == sweep.host and lives(earlier.pid):
        raise Refused(f"{folder}: process {earlier.pid} runs this sweep; wait for it or stop it")
    sweep.write()
    return sweep


def _sweeper(cfg: DictConfig, context: HydraContext, sweep: Sweep) -> Any:
    """What `hydra/sweeper` chose, with the launcher that `hydra/launcher` did."""
    chosen = cfg.hydra.sweeper
    if _is_basic(cfg):
        sweeper: Any = basic_sweeper.BasicSweeper(chosen.max_batch_size, chosen.params)
    elif chosen._target_ == OptunaConf._target_:
        sweeper = Optuna(**{key: value for key, value in chosen.items() if key != "_target_"})
    else:
        return Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=job, config=cfg)
    sweeper.hydra_context, sweeper.config = context, cfg
    sweeper.launcher = Thorough(launcher_of(cfg, context, job), sweep)
    return sweeper


def _is_basic(cfg: DictConfig) -> bool:
    return cfg.hydra.sweeper._target_ == basic_sweeper.BasicSweeperConf._target_


def _count(word: Override) -> int:
    return sum(1 for _ in word.sweep_string_iterator())


class Thorough:
    """A launcher that goes on when the process of a job was lost: what is not done is run one at a time."""

    def __init__(self, launcher: Any, sweep: Sweep):
        self.launcher, self.sweep = launcher, sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs.  Raises: Refused where none could be begun."""
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        try:
            return self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except Refused:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if not set(numbers) & set(self._cards()):
                raise Refused(f"no job could be begun: {reason[:300]}") from error
        say(f"the process of a job was lost ({reason[:200]}); the others go on, one at a time")
        return [self._again(number, words) for number, words in zip(numbers, job_overrides, strict=True)]

    def _cards(self) -> dict[int, dict[str, Any]]:
        return {card["job"]: card for card in self.sweep.cards()}

    def _again(self, number: int, words: Sequence[str]) -> JobReturn:
        card = self._cards().get(number)
        if card is None or card["status"] == "running":
            try:
                return self.launcher.launch([words], initial_job_idx=number)[0]
            except Exception as error:
                card = self._cards().get(number, {})
                line = f"its process was lost: {' '.join(str(error).split())[:300] or type(error).__name__}"
                if card:
                    self.sweep.card(Path(card["at"]), status="failed", error=line)
                    Path(card["at"], ERROR).write_text(f"{line}\n", encoding="utf-8")
                say(f"job {number} failed: {line}")
        values = tuple((card.get("objective") or {}).values())
        returned = JobReturn()
        returned.status = JobStatus.COMPLETED
        returned.return_value = values if len(values) > 1 else values[0] if values else None
        return returned


class _Stopping(Signals):
    """A signal stops the whole sweep: jobs in other processes are saved first."""

    def __init__(self, sweep: Sweep):
        super().__init__()
        self.sweep = sweep

    def _catch(self, number: int, frame: FrameType | None) -> None:
        again, self.caught = bool(self.caught), number
        if not again:
            self.sweep.stop()
        raise Stopped(number, ", at once" if again else "")


def _sum_up(sweep: Sweep) -> int:
    """Say and write how all went.  Returns: the exit status.

    Raises: Refused where no job could be begun, for one and the same reason; nothing is left of them then.
    """
    sweep.ended = True
    sweep.write()
    cards = sweep.cards()
    for card in cards:
        if card["status"] == "running" and card["host"] == sweep.host and not lives(card["pid"]):
            card["status"] = "lost"
    if cards and all(card.get("unusable") for card in cards) and len({card["error"] for card in cards}) == 1:
        for card in cards:
            remove(Path(card["at"]), {".hydra", CARD, ERROR, OUTPUT})
        raise Refused(cards[0]["error"])
    points, names = _points(cards)
    front = pareto.front(points, names) if len(names) > 1 else None
    print(table(cards, sweep, front or ()))
    try:
        lines = [str(write_csv(cards, sweep, front))]
        if front:
            told = {card["job"]: sweep.choice(card["overrides"]) for card in cards}
            pareto.draw(sweep.folder / PICTURE, points, names, told, f"{sweep.name}, {len(points)} jobs")
            lines.append(str(sweep.folder / PICTURE))
    except OSError as error:
        lines = [f"no table was written: {error.strerror}"]
    counts: dict[str, int] = {}
    for card in cards:
        counts[card["status"]] = counts.get(card["status"], 0) + 1
    if sweep.jobs and sweep.jobs > len(cards):
        counts["not begun"] = sweep.jobs - len(cards)
    star = "  * no other job is better in everything" if front else ""
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}{star}\n{'  '.join(lines)}")
    return 0 if set(counts) <= WELL else 1


def _points(cards: Sequence[Mapping[str, Any]]) -> tuple[dict[int, list[float]], list[str]]:
    """The objectives of the jobs that have them all, and their names."""
    found = {card["job"]: card["objective"] for card in cards if card.get("objective")}
    names = [str(name) for name in next(iter(found.values()), {})]
    whole = {job: list(each.values()) for job, each in found.items() if None not in each.values()}
    return whole, names if whole else []
