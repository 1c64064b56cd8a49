"""The interface to Hydra: register schemas, compose a config, build a Run, open a saved config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.utils import setup_globals
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from splatexp.config.compose import ConfigLoader, error_text
from splatexp.config.registry import keys_of, option_classes
from splatexp.config.schema import ConfigError, as_mapping, schema, validate
from splatexp.io.atomic import write_text
from splatexp.settings.messages import explain_error
from splatexp.settings.renames import migrate

if TYPE_CHECKING:
    from splatexp.run.run import Run

# Groups that did not exist when older runs were saved -> the option that those runs had in effect.
DEFAULT_OPTIONS = {"camera": "fixed", "model": "scene", "optimizer": "adam", "rate": "none"}
created_folders: list[Path] = []  # folders that this process has created for runs and sweeps


def conf_dir() -> Path:
    """Return the folder of the YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def register() -> None:
    """Register the schemas with Hydra, under schema/, where they are not listed as options."""
    from splatexp.run.run import Run

    store = ConfigStore.instance().store
    store(group="schema", name="run", node=schema(Run))
    for group, classes in option_classes().items():
        for name, cls in classes.items():
            store(group=f"schema/{group}", name=name, node=as_mapping(OmegaConf.structured(schema(cls))))


def _unique_dir(folder: str) -> str:
    """Create a folder, with a number after its name if it exists: two runs of one second do not share one."""
    for number in count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        try:
            os.makedirs(name)
        except FileExistsError:
            continue
        except OSError:  # Hydra will fail in the same way, with a message
            return name
        created_folders.append(Path(name).absolute())
        return name
    raise AssertionError


OmegaConf.register_new_resolver("unique_dir", _unique_dir, use_cache=True, replace=True)


def make_loader(config_dir: str | None = None) -> ConfigLoader:
    """Return a loader that finds conf/ and, before it, the folder `config_dir`.

    Raises: ConfigError when `config_dir` is not a folder.
    """
    if config_dir is None:
        return _own_loader(str(conf_dir()))
    if not os.path.isdir(config_dir):
        raise ConfigError(f"--config-dir: expected a folder, got {config_dir}")
    register()
    path = create_config_search_path(str(conf_dir()))
    path.prepend("command-line", f"file://{os.path.abspath(config_dir)}")
    return ConfigLoader(path)


@cache
def _own_loader(folder: str) -> ConfigLoader:
    """Return the loader of conf/ alone, one for the whole process: it keeps the list of known keys."""
    register()
    return ConfigLoader(create_config_search_path(folder))


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config of one run for the `key=value` overrides of a command line.  Raises: ConfigError."""
    setup_globals()
    return make_loader().compose_job("config", overrides)


def build(cfg: DictConfig) -> Run:
    """Build the Run that a config describes; nothing after this knows Hydra.

    Raises: ConfigError, one line, for a setting that is missing or that a dataclass refuses.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]}: expected a value, got none; set it with {missing[0]}=...")
    try:
        return instantiate(cfg, _convert_="object")
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, (ValueError, OSError)):
            raise cause or error from None
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        node = OmegaConf.select(cfg, key) if key else cfg
        raise ConfigError(_with_full_key(str(cause), key, node)) from cause


def option(group: str, name: str, **settings: Any) -> Any:
    """Return an option as its file in conf/ has it, for runs of 30,000 steps, with some settings replaced.

    `option("densify", "adc", every=50)`; for groups of which one option is chosen.
    """
    built = instantiate(compose([f"{group}={name}", "preset=[]"])[group], _convert_="object")
    return replace(built, **settings)


def build_from_file(cls: type, path: Path, overrides: Sequence[str]) -> Any:
    """Build a dataclass from a YAML file and `key=value` overrides, which win.

    Raises: ConfigError, one line, for a key that the class does not have and a value that does not fit.
    """
    structure, known = OmegaConf.structured(schema(cls)), {key: [] for key in keys_of(cls)}
    try:
        if bad := [override for override in overrides if "=" not in override]:
            raise ConfigError(f"{bad[0]}: expected key=value")
        cfg = OmegaConf.merge(structure, OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(cfg, DictConfig)
        return build(cfg)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(explain_error(error_text(error), known, lambda group: [])) from error


def save_config(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Write the files that Hydra writes into a run's folder, for a run that Hydra does not start.

    Raises: OSError.
    """
    write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_text(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))


def _with_full_key(message: str, key: str, node: DictConfig) -> str:
    """Return a dataclass's message, `name: ...` or `class.name: ...`, with the full key of the setting."""
    head, _, rest = message.partition(":")
    name = head.rpartition(".")[2]
    is_full = not key and "." in head and OmegaConf.select(node, head) is not None
    if " " not in head and name in node and not is_full:
        return f"{key}.{name}:{rest}".lstrip(".")
    return message if not key or message.startswith(key) else f"{key}: {message}"


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Return the Run that wrote `folder`, from its .hydra/config.yaml, whose values are resolved and scaled.

    Names that have changed since are translated (`splatexp.settings.renames`).

    Raises: FileNotFoundError for a folder that is not a run's; ValueError for a config that this version
    cannot read.
    """
    from splatexp.run.run import Run

    path = Path(folder, ".hydra", "config.yaml")
    if not path.is_file():
        raise FileNotFoundError(
            f"run: expected the folder of a run, got {folder} (no .hydra/config.yaml in it)"
        )
    try:
        saved = OmegaConf.create(migrate(_read_mapping(path)))
        cfg = OmegaConf.merge(OmegaConf.structured(schema(Run)), saved)
        assert isinstance(cfg, DictConfig)
        for group, name in DEFAULT_OPTIONS.items():
            if OmegaConf.is_missing(cfg, group):
                cfg[group] = OmegaConf.structured(schema(option_classes()[group][name]))
        validate(cfg, lambda: make_loader().known_keys)
        return build(cfg)
    except ConfigError as error:
        raise ValueError(f"{path}: {error}") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        known = make_loader().known_keys
        raise ValueError(f"{path}: {explain_error(error_text(error), known, lambda group: [])}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a saved config.  Raises: ConfigError where it is not a mapping."""
    saved = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(saved, dict):
        raise ConfigError(f"expected a mapping of settings, got {type(saved).__name__}")
    return {str(key): value for key, value in saved.items()}
