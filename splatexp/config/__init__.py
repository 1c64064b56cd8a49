"""Configuration: all that is known of Hydra: schemas, the registry of options, composing, building a run."""

from splatexp.config.build import build, compose, load_run, option

__all__ = ["build", "compose", "load_run", "option"]
