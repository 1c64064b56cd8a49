"""Everything that is known of Hydra: registering, composing, building a Run, and a run's config read back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from splatexp.explain import explain
from splatexp.options import keys_of, known_keys, options
from splatexp.schema import Refused, check, fit, scale, schema, settle

if TYPE_CHECKING:
    from splatexp.run import Run


def conf_dir() -> Path:
    """Where the YAML lies: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else inside.parents[1] / "conf"


@cache
def register() -> None:
    """Tell Hydra the schemas. They stand under schema/, where they are not listed as options."""
    from splatexp.run import Run

    store = ConfigStore.instance().store
    store(group="schema", name="run", node=schema(Run))
    for group, classes in options().items():
        for name, cls in classes.items():
            store(group=f"schema/{group}", name=name, node=schema(cls))


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


made: list[Path] = []  # folders that this process made for runs and sweeps
OmegaConf.register_new_resolver("fresh", _fresh, use_cache=True, replace=True)


class Loader(ConfigLoaderImpl):
    """Hydra's composition and what it leaves undone: keys behind `+`, scaling with `steps`, clear errors."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, check and settle.  Raises: Refused."""

        def load(words: list[str]) -> DictConfig:
            return super(Loader, self).load_configuration(
                config_name, words, run_mode, from_shell, validate_sweep_overrides
            )

        try:
            said = OverridesParser.create().parse_overrides(overrides)
            said = [word for word in said if not word.is_sweep_override()]
            overrides = self._with_loader(overrides, said)
            cfg = load(overrides)
            if config_name is None:  # Hydra's own help
                return cfg
            check(cfg)
            rest = [word for word in overrides if word.lstrip("+").partition("=")[0] != "steps"]
            if len(rest) < len(overrides):
                keys = {key for word in said for key in _said(word.key_or_group, word.value())}
                scale(cfg, cfg.steps / load(rest).steps, keys)
            settle(cfg)
        except Refused:
            raise
        except OverrideParseException as error:
            remedy = "expected key=value, with special characters quoted: 'key=\"a=b\"'"
            raise Refused(f"{error.override}: {remedy}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise Refused(explain(_text(error), _all_keys(), self.get_group_options)) from error
        return cfg

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        """As Hydra does it, but each preset and what was composed before it are fitted to each other."""
        presets = [default for default in defaults if (default.config_path or "").startswith("preset/")]
        rest = [default for default in defaults if default not in presets]
        cfg = super()._compose_config_from_defaults_list(rest, repo)
        for preset in presets:
            layer = deepcopy(self._load_single_config(preset, repo).config)
            assert isinstance(layer, DictConfig)
            layer.pop("defaults", None)
            try:
                fit(layer, cfg)
                cfg.merge_with(layer)
            except OmegaConfBaseException as error:
                raise Refused(explain(f"In '{preset.config_path}': \n{error}", _all_keys(), list)) from error
        return cfg

    def job(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """The config of one run, without Hydra's own part.  Raises: Refused."""
        cfg = self.load_configuration(config_name, list(overrides), RunMode.RUN)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _with_loader(self, overrides: list[str], said: list[Override]) -> list[str]:
        """The overrides, and `data=` for a `data.path` that came without.

        Raises: Refused for a group that gets no name, and for a folder that no loader knows.
        """
        values = {word.key_or_group: word.value() for word in said if not word.is_delete()}
        if "" in values:
            raise Refused(f"={values['']}: expected key=value")
        for group in ("preset", *options()):
            if group in values and not isinstance(values[group], (str, list, dict)):
                names = ", ".join(self.get_group_options(group))
                raise Refused(f"{group}: expected the name of an option ({names}), got {values[group]}")
        path = values.get("data.path")
        if "data" in values or not isinstance(path, str):
            return overrides
        from splatexp.data import detect

        try:
            return [f"data={detect(path)}", *overrides]
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error


@cache
def _all_keys() -> dict[str, list[str]]:
    """The keys of a run and Hydra's own."""
    from hydra.conf import HydraConf

    return known_keys() | {key: [] for key in keys_of(HydraConf, "hydra.")}


def _said(key: str, value: Any) -> Iterator[str]:
    """The keys that an override sets; `a={b: 1}` sets a.b, `a.0=1` also a."""
    yield key
    yield key.rpartition(".")[0]
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from _said(f"{key}.{name}", part)


def _text(error: BaseException) -> str:
    """An error's text and its cause's."""
    return f"{error}\n{error.__cause__ or ''}".strip()


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


def _placed(message: str, place: str, node: DictConfig) -> str:
    """A dataclass's complaint, `name: ...` or `kind.name: ...`, with the whole key before it."""
    head, _, rest = message.partition(":")
    name = head.rpartition(".")[2]
    if " " not in head and name in node:
        return f"{place}.{name}:{rest}".lstrip(".")
    return message if not place or message.startswith(place) else f"{place}: {message}"


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The Run that wrote `folder`, from its .hydra/config.yaml: resolved and scaled then, taken as it is now.

    Raises: FileNotFoundError for another folder; ValueError for a config that this version does not know.
    """
    from splatexp.run import Run

    path = Path(folder, ".hydra", "config.yaml")
    if not path.is_file():
        raise FileNotFoundError(
            f"run: expected the folder of a run, got {folder} (no .hydra/config.yaml in it)"
        )
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(schema(Run)), OmegaConf.load(path))
        assert isinstance(cfg, DictConfig)
        check(cfg)
        return build(cfg)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {explain(_text(error), known_keys(), lambda group: [])}") from error
