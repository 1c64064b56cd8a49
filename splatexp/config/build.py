"""The doors to Hydra: registering, composing, building a Run, and a run's config read back."""

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

from splatexp.config.compose import Loader, text
from splatexp.config.registry import keys_of, options
from splatexp.config.schema import Refused, check, loosen, schema
from splatexp.io.atomic import write_text
from splatexp.settings.messages import explain
from splatexp.settings.renames import migrate

if TYPE_CHECKING:
    from splatexp.run.run import Run


def conf_dir() -> Path:
    """Where the YAML lies: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def register() -> None:
    """Tell Hydra the schemas. They stand under schema/, where they are not listed as options."""
    from splatexp.run.run import Run

    store = ConfigStore.instance().store
    store(group="schema", name="run", node=schema(Run))
    for group, classes in options().items():
        for name, cls in classes.items():
            store(group=f"schema/{group}", name=name, node=loosen(OmegaConf.structured(schema(cls))))


def _fresh(folder: str) -> str:
    """Make a folder that was not there, numbered where it was: two runs of one second do not share one."""
    for number in count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        try:
            os.makedirs(name)
        except FileExistsError:
            continue
        except OSError:  # Hydra will meet it too, and says so
            return name
        made.append(Path(name).absolute())
        return name
    raise AssertionError


# groups that older runs say nothing of -> what they had
BEFORE = {"camera": "fixed", "model": "scene", "optimizer": "adam", "rate": "none"}
made: list[Path] = []  # folders that this process made for runs and sweeps
OmegaConf.register_new_resolver("fresh", _fresh, use_cache=True, replace=True)


def loader(extra: str | None = None) -> Loader:
    """A Loader that finds conf/ and, before it, the folder `extra`.

    Raises: Refused when `extra` is no folder.
    """
    register()
    path = create_config_search_path(str(conf_dir()))
    if extra is not None:
        if not os.path.isdir(extra):
            raise Refused(f"--config-dir: expected a folder, got {extra}")
        path.prepend("command-line", f"file://{os.path.abspath(extra)}")
    return Loader(path)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of one run, as the command line `overrides` gives it.  Raises: Refused."""
    setup_globals()
    return loader().job("config", overrides)


def build(cfg: DictConfig) -> Run:
    """The Run that a config describes; Hydra ends here.

    Raises: Refused, one line, for a setting that is missing or that a dataclass refuses.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise Refused(f"{missing[0]}: expected a value, got none; say {missing[0]}=...")
    try:
        return instantiate(cfg, _convert_="object")
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, (ValueError, OSError)):
            raise cause or error from None
        place = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        raise Refused(_placed(str(cause), place, OmegaConf.select(cfg, place) if place else cfg)) from cause


def option(group: str, name: str, **settings: Any) -> Any:
    """An option as its file in conf/ has it, for runs of 30,000 steps, but for some settings.

    `option("densify", "adc", every=50)`; of groups that take one option.
    """
    built = instantiate(compose([f"{group}={name}", "preset=[]"])[group], _convert_="object")
    return replace(built, **settings)


def merged(cls: type, path: Path, words: Sequence[str]) -> Any:
    """A dataclass from a YAML file and `key=value` words, which win.

    Raises: Refused, one line, for a key that it does not have and a value that does not fit.
    """
    shape, known = OmegaConf.structured(schema(cls)), {key: [] for key in keys_of(cls)}
    try:
        if bad := [word for word in words if "=" not in word]:
            raise Refused(f"{bad[0]}: expected key=value")
        cfg = OmegaConf.merge(shape, OmegaConf.load(path), OmegaConf.from_dotlist(list(words)))
        assert isinstance(cfg, DictConfig)
        return build(cfg)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise Refused(explain(text(error), known, lambda group: [])) from error


def save(cfg: DictConfig, folder: Path, words: Sequence[str]) -> None:
    """Write what Hydra leaves in a run's folder, where it is not Hydra that runs it.  Raises: OSError."""
    write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_text(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(words))))


def _placed(message: str, place: str, node: DictConfig) -> str:
    """A dataclass's complaint, `name: ...` or `kind.name: ...`, with the whole key before it."""
    head, _, rest = message.partition(":")
    name = head.rpartition(".")[2]
    whole = not place and "." in head and OmegaConf.select(node, head) is not None
    if " " not in head and name in node and not whole:
        return f"{place}.{name}:{rest}".lstrip(".")
    return message if not place or message.startswith(place) else f"{place}: {message}"


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The Run that wrote `folder`, from its .hydra/config.yaml: resolved and scaled then, taken as it is now.

    Raises: FileNotFoundError for another folder; ValueError for a config that this version does not know.
    """
    from splatexp.run.run import Run

    path = Path(folder, ".hydra", "config.yaml")
    if not path.is_file():
        raise FileNotFoundError(
            f"run: expected the folder of a run, got {folder} (no .hydra/config.yaml in it)"
        )
    try:
        saved = OmegaConf.create(migrate(_plain(path)))
        cfg = OmegaConf.merge(OmegaConf.structured(schema(Run)), saved)
        assert isinstance(cfg, DictConfig)
        for group, usual in BEFORE.items():
            if OmegaConf.is_missing(cfg, group):
                cfg[group] = OmegaConf.structured(schema(options()[group][usual]))
        check(cfg, lambda: loader().known)
        return build(cfg)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {explain(text(error), loader().known, lambda group: [])}") from error


def _plain(path: Path) -> dict[str, Any]:
    """Read a saved config.  Raises: Refused where it is no mapping."""
    saved = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(saved, dict):
        raise Refused(f"expected a mapping of settings, got {type(saved).__name__}")
    return {str(key): value for key, value in saved.items()}
