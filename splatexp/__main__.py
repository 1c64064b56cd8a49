"""The command line: compose, build, run, and return the metric that a sweep optimises."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

from splatexp import __version__
from splatexp.config import build, conf_dir, loader, made
from splatexp.loader import Loader
from splatexp.schema import Refused

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from omegaconf import DictConfig

HELP = """splatexp {version}: Gaussian splatting, trained, measured and compared. Every setting is key=value.

  python -m splatexp                                            the built-in scene
  python -m splatexp data.path=photos                           a COLMAP or NeRF folder of your photographs
  python -m splatexp preset=balanced data.path=photos steps=7000 seed=1
  python -m splatexp -m preset=quick,balanced seed=0,1          every combination, one run each
  python -m splatexp.evaluate run=<folder>                      measure a finished run again
  python -m splatexp.render run=<folder>                        draw it again

Choices, and an example of each
{groups}
Runs land in multirun/ of the current directory, or where hydra.run.dir=<folder> says.
  --cfg job [<overrides>]   show every setting and its value      --info defaults   where they come from
  -m, --multirun            run a sweep                           --hydra-help      more of Hydra
"""
EXAMPLES = {
    "preset": "preset=memory_low",
    "data": "data=transforms data.path=lego data.downscale=2",
    "densify": "densify=adc densify.grow.score=absgrad densify.max_gaussians=1_000_000",
    "importance": "importance=mlp",
    "schedule": "schedule=progressive",
    "raster": "raster.prefilter=true",
    "regularizer": "regularizer=[opacity,scale] regularizer.opacity.weight=0.001",
    "tracker": "tracker=[console,csv]",
}


REFUSED = {
    "experimental_rerun": "give the words of <folder>/.hydra/overrides.yaml again",
    "config_path": "--config-dir adds a folder of your own",
}


def main() -> int:
    """Run the command of sys.argv.  Returns: the exit status, 2 for input that is refused."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return _command()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        return _command()
    except Refused as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:  # as in `--cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # no place for the run's folder
        print(f"error: cannot write the run's folder: {error}", file=sys.stderr)
        return 2


def _command() -> int:
    """Read the flags; what Hydra's own `main` does is done with our loader, and every error comes through."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse
    if "--version" in sys.argv[1:]:
        return _say(f"splatexp {__version__}")
    args = parser.parse_args()
    if args.help:
        return _say(_help())
    for flag, remedy in REFUSED.items():
        if getattr(args, flag):
            _refuse(f"--{flag.replace('_', '-')} is not supported: {remedy}")
    return _dispatch(args, parser)


def _refuse(message: str) -> NoReturn:
    raise Refused(f"{message} (see --help)")


def _dispatch(args: Namespace, parser: ArgumentParser) -> int:
    """Do what the flags ask for.  Raises: whatever goes wrong."""
    import hydra.version
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    hydra.version.setbase("1.3")
    composer = loader(args.config_dir)
    app = Hydra("splatexp", composer)
    GlobalHydra.instance().initialize(app)
    name, words = args.config_name or "config", args.overrides
    try:
        if args.hydra_help:
            app.hydra_help(config_name=name, args_parser=parser, args=args)
        elif args.cfg:
            app.show_cfg(name, words, args.cfg, args.package, args.resolve)
        elif args.info:
            app.show_info(args.info, name, words)
        elif args.shell_completion:
            app.shell_completion(name, words)
        else:
            _run(app, composer, name, words, args.multirun)
    finally:
        GlobalHydra.instance().clear()
        for folder in made:  # where nothing came into it, such as for `--cfg all --resolve`
            _remove(folder, set())
    return 0


def _run(app: Any, composer: Loader, name: str, words: list[str], several: bool) -> None:
    """Run one job, or a sweep of them. Every setting is checked before there is a folder."""
    for each in one_at_a_time(composer, words) if several else [words]:
        build(composer.job(name, each))
    if several:
        try:
            app.multirun(name, job, [*words, "hydra.mode=MULTIRUN"])
        except Refused:
            for folder in made:
                _remove(folder, {"multirun.yaml"})
            raise
        return
    refused: list[Refused] = []

    def once(cfg: DictConfig) -> float | None:
        try:
            return job(cfg)
        except Refused as error:  # kept from Hydra, which would print a line of its own
            refused.append(error)
            return None

    app.run(name, once, [*words, "hydra.mode=RUN"])
    if refused:
        raise refused[0]


def one_at_a_time(composer: Loader, words: list[str]) -> Iterator[list[str]]:
    """Jobs in which every value of a sweep occurs (of a long one the first 64), the others at their first."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep
    from hydra.errors import OverrideParseException

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


def job(cfg: DictConfig) -> float | None:
    """One run in the folder that Hydra made for it.

    Raises: Refused for input that cannot be used (then the folder is gone again) and for a disk that is full.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    run = build(cfg)
    try:
        scene, state = run.prepare(folder)
    except (OSError, ValueError, ImportError) as error:
        _remove(folder, {".hydra"})
        raise Refused(_line(error)) from error
    for line in state.news:
        print(line, file=sys.stderr)
    try:
        return run.fit(scene, state, folder, list(hydra.overrides.task))[run.objective]
    except (OSError, FloatingPointError, MemoryError) as error:
        raise Refused(_line(error)) from error


def _line(error: Exception) -> str:
    """What an error says; an OSError that says it all in words comes without its number."""
    if isinstance(error, OSError) and error.strerror and not error.filename:
        return error.strerror
    return str(error) or type(error).__name__


def _remove(folder: Path, but: set[str]) -> None:
    """Remove a folder that holds nothing `but` what Hydra wrote, and those above it that are empty then."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - but:
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if Path.cwd() not in parent.parents or any(parent.iterdir()):
            return
        parent.rmdir()


def _help() -> str:
    """The help text; the options are the files of conf/, so that no option has to be imported."""
    lines = []
    for group, example in EXAMPLES.items():
        names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        listed = [*wrap(" ".join(names), 100, break_on_hyphens=False), example]
        lines.append(f"  {group:<12}" + f"\n{'':<14}".join(listed) + "\n")
    return HELP.format(version=__version__, groups="".join(lines))


def _say(text: str) -> int:
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
