"""The command line: compose, build, run, and return the metric that a sweep optimises."""

from __future__ import annotations

import os
import sys
import warnings
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

from splatexp import __version__
from splatexp.config.build import build, conf_dir, created_folders, make_loader
from splatexp.config.schema import ConfigError
from splatexp.settings.messages import one_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from omegaconf import DictConfig

HELP = """splatexp {version}: train, measure and compare Gaussian splatting models. Every setting is key=value.

  python -m splatexp                                            the built-in scene
  python -m splatexp data.path=photos                           a COLMAP or NeRF folder of your photographs
  python -m splatexp preset=balanced data.path=photos steps=7000 seed=1
  python -m splatexp -m preset=quick,balanced seed=0,1          a sweep: one run for every combination
  python -m splatexp -m hydra/launcher=joblib seed=0,1,2        jobs in parallel; also submitit_slurm, ray
  python -m splatexp preset=image data.path=photo.png           fit an image with 2D Gaussians
  python -m splatexp.study study=density scenes=[photos]        compare variants, with confidence intervals
  python -m splatexp.evaluate run=<folder>                      measure a finished run again
  python -m splatexp.render run=<folder>                        render its views again
  python -m splatexp.resume run=<folder>                        continue an interrupted run
  python -m splatexp viewer=true                                watch the training in the browser
  python -m splatexp.view run=<folder>                          view a run, finished or not, in the browser
  python -m splatexp.doctor                                     check this machine, and say how to fix it

Config groups with their options, and an example of each
{groups}
Runs are written to multirun/ in the current directory, or to hydra.run.dir=<folder>.
  --cfg job [<overrides>]   show every setting and its value      --info defaults   show which files set them
  -m, --multirun            run a sweep                           --hydra-help      Hydra's own help
"""
EXAMPLES = {
    "preset": "preset=memory_low",
    "data": "data=transforms data.path=lego data.downscale=2",
    "model": "model.init=random",
    "densify": "densify=adc densify.grow.score=absgrad densify.max_gaussians=1_000_000",
    "importance": "importance=mlp",
    "schedule": "schedule=progressive",
    "optimizer": "optimizer.means=3e-4",
    "raster": "raster.antialiased=true",
    "rate": "preset=image_codec rate.bpp=0.2",
    "camera": "camera=se3 data.path=lego",
    "regularizer": "regularizer=[opacity,scale] regularizer.opacity.weight=0.001",
    "tracker": "tracker=[console,csv]",
}


UNSUPPORTED_FLAGS = {
    "experimental_rerun": "give the overrides in <folder>/.hydra/overrides.yaml again",
    "config_path": "--config-dir adds a folder of your own",
}


def main() -> int:
    """Run the command of sys.argv and return the exit status, 2 for input that is refused."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return _command()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        return _command()
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:  # as in `--cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the run's folder cannot be created
        print(f"error: cannot write the run's folder: {error}", file=sys.stderr)
        return 2


def _command() -> int:
    """Parse the flags and run the command as `hydra.main` does, with our loader and without hiding errors."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse
    if "--version" in sys.argv[1:]:
        print(f"splatexp {__version__}")
        return 0
    args = parser.parse_args()
    if args.help:
        print(_help())
        return 0
    for flag, remedy in UNSUPPORTED_FLAGS.items():
        if getattr(args, flag):
            _refuse(f"--{flag.replace('_', '-')} is not supported: {remedy}")
    return _dispatch(args, parser)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message} (see --help)")


def _dispatch(args: Namespace, parser: ArgumentParser) -> int:
    """Do what the flags ask for and return the exit status."""
    import hydra.version
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    from splatexp.sweep import launchers, optuna_sweeper
    from splatexp.sweep.job import remove_if_unused

    hydra.version.setbase("1.3")
    config_name, overrides = args.config_name or "config", args.overrides
    launchers.check_installed(overrides)
    launchers.register()
    optuna_sweeper.register()
    config_loader = make_loader(args.config_dir)
    app = Hydra("splatexp", config_loader)
    GlobalHydra.instance().initialize(app)
    try:
        if args.hydra_help:
            app.hydra_help(config_name=config_name, args_parser=parser, args=args)
        elif args.cfg:
            app.show_cfg(config_name, overrides, args.cfg, args.package, args.resolve)
        elif args.info:
            app.show_info(args.info, config_name, overrides)
        elif args.shell_completion:
            app.shell_completion(config_name, overrides)
        elif args.multirun:
            from splatexp.sweep.driver import run_sweep

            return run_sweep(app, config_loader, config_name, overrides)
        else:
            _run(app, config_name, overrides)
    finally:
        GlobalHydra.instance().clear()
        for folder in created_folders:  # those that stayed empty, as with `--cfg all --resolve`
            remove_if_unused(folder, set())
    return 0


def _run(app: Any, config_name: str, overrides: list[str]) -> None:
    """Run one job. Every setting is checked before a folder is created."""
    from splatexp.run import distributed
    from splatexp.sweep.job import run_job

    run = build(app.config_loader.compose_job(config_name, overrides))
    config_errors: list[ConfigError] = []

    def run_or_note_error(cfg: DictConfig) -> Any:
        try:
            return run_job(cfg)
        except ConfigError as error:  # raised after Hydra has returned, since Hydra would print it itself
            config_errors.append(error)
            return None

    with distributed.worker_folder(run.raster) as worker_overrides:
        app.run(config_name, run_or_note_error, [*overrides, *worker_overrides, "hydra.mode=RUN"])
    if config_errors:
        raise config_errors[0]


def _help() -> str:
    """Return the help text; it lists the files of conf/, so that no option has to be imported."""
    lines = []
    for group, example in {**EXAMPLES, "study": "python -m splatexp.study study=schedules"}.items():
        folder = conf_dir() / group
        listed = []
        for pattern in ("*.yaml", "*/*.yaml"):  # the options, and those in a subfolder, such as ablations
            paths = sorted(path.relative_to(folder).with_suffix("") for path in folder.glob(pattern))
            listed += wrap(" ".join(path.as_posix() for path in paths), 100, break_on_hyphens=False)
        listed.append(example)
        lines.append(f"  {group:<12}" + f"\n{'':<14}".join(listed) + "\n")
    return HELP.format(version=__version__, groups="".join(lines))


if __name__ == "__main__":
    sys.exit(main())
