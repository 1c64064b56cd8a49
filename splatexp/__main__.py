"""The command line: compose, build, run, and return the metric that a sweep optimises."""

from __future__ import annotations

import os
import sys
import warnings
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

from splatexp import __version__
from splatexp.config.build import build, conf_dir, loader, made
from splatexp.config.schema import Refused

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from omegaconf import DictConfig

HELP = """splatexp {version}: Gaussian splatting, trained, measured and compared. Every setting is key=value.

  python -m splatexp                                            the built-in scene
  python -m splatexp data.path=photos                           a COLMAP or NeRF folder of your photographs
  python -m splatexp preset=balanced data.path=photos steps=7000 seed=1
  python -m splatexp -m preset=quick,balanced seed=0,1          every combination, one run each, once
  python -m splatexp -m hydra/launcher=joblib seed=0,1,2        side by side; also submitit_slurm, ray
  python -m splatexp preset=image data.path=photo.png           a picture as a sum of Gaussians
  python -m splatexp.study study=density scenes=[photos]        which is better, by how much, and is it noise
  python -m splatexp.evaluate run=<folder>                      measure a finished run again
  python -m splatexp.render run=<folder>                        draw it again
  python -m splatexp.resume run=<folder>                        go on with an interrupted one
  python -m splatexp viewer=true                                watch it in the browser while it trains
  python -m splatexp.view run=<folder>                          look at a run, finished or not, in the browser

Choices, and an example of each
{groups}
Runs land in multirun/ of the current directory, or where hydra.run.dir=<folder> says.
  --cfg job [<overrides>]   show every setting and its value      --info defaults   where they come from
  -m, --multirun            run a sweep                           --hydra-help      more of Hydra
"""
EXAMPLES = {
    "preset": "preset=memory_low",
    "data": "data=transforms data.path=lego data.downscale=2",
    "model": "model.init=random",
    "densify": "densify=adc densify.grow.score=absgrad densify.max_gaussians=1_000_000",
    "importance": "importance=mlp",
    "schedule": "schedule=progressive",
    "optimizer": "optimizer.means=3e-4",
    "raster": "raster.prefilter=true",
    "rate": "preset=image_codec rate.bpp=0.2",
    "camera": "camera=se3 data.path=lego",
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

    from splatexp.sweep import launchers, optuna_sweeper
    from splatexp.sweep.job import remove

    hydra.version.setbase("1.3")
    name, words = args.config_name or "config", args.overrides
    launchers.check_installed(words)
    launchers.register()
    optuna_sweeper.register()
    composer = loader(args.config_dir)
    app = Hydra("splatexp", composer)
    GlobalHydra.instance().initialize(app)
    try:
        if args.hydra_help:
            app.hydra_help(config_name=name, args_parser=parser, args=args)
        elif args.cfg:
            app.show_cfg(name, words, args.cfg, args.package, args.resolve)
        elif args.info:
            app.show_info(args.info, name, words)
        elif args.shell_completion:
            app.shell_completion(name, words)
        elif args.multirun:
            from splatexp.sweep.driver import multirun

            return multirun(app, composer, name, words)
        else:
            _run(app, name, words)
    finally:
        GlobalHydra.instance().clear()
        for folder in made:  # where nothing came into it, such as for `--cfg all --resolve`
            remove(folder, set())
    return 0


def _run(app: Any, name: str, words: list[str]) -> None:
    """Run one job. Every setting is checked before there is a folder."""
    from splatexp.run import distributed
    from splatexp.sweep.job import job

    run = build(app.config_loader.job(name, words))
    refused: list[Refused] = []

    def once(cfg: DictConfig) -> Any:
        try:
            return job(cfg)
        except Refused as error:  # kept from Hydra, which would print a line of its own
            refused.append(error)
            return None

    with distributed.aside(run.raster) as further:
        app.run(name, once, [*words, *further, "hydra.mode=RUN"])
    if refused:
        raise refused[0]


def _help() -> str:
    """The help text; the options are the files of conf/, so that no option has to be imported."""
    lines = []
    for group, example in {**EXAMPLES, "study": "python -m splatexp.study study=schedules"}.items():
        names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        listed = [*wrap(" ".join(names), 100, break_on_hyphens=False), example]
        lines.append(f"  {group:<12}" + f"\n{'':<14}".join(listed) + "\n")
    return HELP.format(version=__version__, groups="".join(lines))


def _say(text: str) -> int:
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
