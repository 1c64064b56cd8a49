"""Composing a config: what Hydra does, and what splatexp needs beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import ConfigDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from splatexp.config.registry import expand_switch, keys_of, known_keys, option_classes
from splatexp.config.schema import (
    CANNOT_DELETE,
    TARGET_IS_FIXED,
    ConfigError,
    drop_unused,
    extended_class,
    options_as_mappings,
    resolve,
    scale_windows,
    validate,
)
from splatexp.settings.messages import explain_error
from splatexp.settings.renames import ALIASES, new_key, new_option, new_value


class _Repository(ConfigRepository):
    """Hydra's repository, of which a deep copy shares the sources.

    Hydra deep-copies the repository for every composition and for every list of options, so that it can give
    the copy other sources. The sources hold the whole ConfigStore, and copying it takes longer than reading
    the files.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Repository:
        return copy(self)


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's loader, which also checks keys behind `+`, scales windows with `steps`, and explains errors."""

    def __init__(self, path: ConfigSearchPathImpl) -> None:
        super().__init__(path)
        self.repository = _Repository(path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, validate and resolve a config.  Raises: ConfigError."""
        overrides = [expand_switch(_without_alias(override)) for override in overrides]
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            parsed = [override for override in parsed if not override.is_sweep_override()]
            _check_values(parsed)
            keys = {key for override in parsed for key in _keys_set(override.key_or_group, override.value())}
            deleted = [
                override.key_or_group
                for override in parsed
                if override.is_delete() and "." in override.key_or_group
            ]
            if targets := sorted(key for key in keys if key.rpartition(".")[2] == "_target_"):
                raise ConfigError(f"{targets[0]}: {TARGET_IS_FIXED}")
            self._steps = _steps(parsed)
            overrides = _force_add_below_added(self._with_data_option(overrides, parsed), parsed)
            cfg = super().load_configuration(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
            if config_name is None:  # Hydra's own help
                return cfg
            validate(cfg, lambda: self.known_keys)
            if undeletable := [key for key in deleted if OmegaConf.select(cfg, key) is not None]:
                raise ConfigError(f"{undeletable[0]}: {CANNOT_DELETE}")
            resolve(cfg)
            if cfg.steps > 0 and cfg.steps != self._steps:
                raise ConfigError(
                    f"steps: expected a plain whole number, got an expression of value {cfg.steps}"
                )
        except ConfigError:
            raise
        except OverrideParseException as error:
            remedy = "expected key=value, with special characters quoted: 'key=\"a=b\"'"
            raise ConfigError(f"{error.override}: {remedy}") from error
        except (HydraException, OmegaConfBaseException) as error:
            message = explain_error(error_text(error), self._all_keys(), self.get_group_options)
            raise ConfigError(message) from error
        return cfg

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        """Compose as Hydra does, then merge the presets in order and scale all windows to the run's steps.

        The windows in a preset are written for its own `steps`, or for the default ones where it has none.
        Its settings for options that were not chosen are dropped.
        """
        presets = [default for default in defaults if (default.config_path or "").startswith("preset/")]
        rest = [default for default in defaults if default not in presets]
        cfg = super()._compose_config_from_defaults_list(rest, repo)
        if "steps" not in cfg:  # Hydra's own help
            return cfg
        try:
            validate(cfg, lambda: self.known_keys)
        except (ConfigError, OmegaConfBaseException) as error:
            raise ConfigError(self._explain(error, rest)) from error
        layers: list[Any] = [deepcopy(self._load_single_config(preset, repo).config) for preset in presets]
        preset_steps = [layer.get("steps") for layer in layers]
        default_steps = cfg.steps
        if not self._steps:
            self._steps = [default_steps, *(steps for steps in preset_steps if isinstance(steps, int))][-1]
        scale_windows(cfg, self._steps / default_steps)
        for preset, layer, steps in zip(presets, layers, preset_steps, strict=True):
            layer.pop("defaults", None)
            keys = {key for name, part in _without_defaults(layer).items() for key in _keys_set(name, part)}
            try:
                drop_unused(layer, cfg, lambda: self.known_keys)
                cfg.merge_with(layer)
                factor = self._steps / (steps if isinstance(steps, int) else default_steps)
                scale_windows(cfg, factor, lambda key, keys=keys: key in keys)
            except OmegaConfBaseException as error:
                raise ConfigError(self._explain(error, [preset])) from error
        options_as_mappings(cfg)
        return cfg

    def _explain(self, error: Exception, defaults: list[ResultDefault]) -> str:
        """Return one line for an error of composing; it names the file in which the key stands."""
        line = str(error)
        if not isinstance(error, ConfigError):
            line = explain_error(line, self._all_keys(), self.get_group_options)
        own = [default for default in defaults if not (default.config_path or "").startswith("schema/")]
        matching = [default for default in own if line.startswith(default.package or "")]
        found = max(reversed(matching), key=lambda default: len(default.package or ""), default=None)
        return line if found is None or found.primary else f"{line} (in {found.config_path})"

    @cached_property
    def known_keys(self) -> dict[str, list[str]]:
        """Every key that exists with some choice of options, also in --config-dir -> the choices it needs."""
        repo, cache = CachingConfigRepository(self.repository), {}
        chosen: dict[str, dict[str, type]] = {group: {} for group in option_classes()}
        for group, classes in chosen.items():
            for name in self.get_group_options(group):
                try:
                    settings = _settings_in_file(f"{group}/{name}", repo, cache)
                    classes[name] = extended_class(get_class(settings["_target_"]), settings)
                except (HydraException, OmegaConfBaseException, ImportError, ValueError):
                    continue  # a file that cannot be read is refused when it is chosen
        return known_keys(chosen)

    def _all_keys(self) -> dict[str, list[str]]:
        """Return the keys of a run and Hydra's own."""
        from hydra.conf import HydraConf

        return self.known_keys | {key: [] for key in keys_of(HydraConf, "hydra.")}

    def compose_job(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """Return the config of one run, without Hydra's own part.  Raises: ConfigError."""
        cfg = self.load_configuration(config_name, list(overrides), RunMode.RUN)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _with_data_option(self, overrides: list[str], parsed: list[Override]) -> list[str]:
        """Return the overrides with a `data=` put before them for a `data.path` that came without.

        Raises: ConfigError for a group without the name of an option, and for a folder that no loader reads.
        """
        values = {override.key_or_group: override.value() for override in parsed if not override.is_delete()}
        if "" in values:
            raise ConfigError(f"={values['']}: expected key=value")
        for group in ("preset", *option_classes()):
            if group in values and not isinstance(values[group], (str, list, dict)):
                names = ", ".join(self.get_group_options(group))
                raise ConfigError(f"{group}: expected the name of an option ({names}), got {values[group]}")
        path = values.get("data.path")
        if "data" in values or not isinstance(path, str):
            return overrides
        from splatexp.data import detect_loader

        try:
            return [f"data={detect_loader(path)}", *overrides]
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from error


def _settings_in_file(path: str, repo: IConfigRepository, cache: dict[str, DictConfig]) -> DictConfig:
    """Return what a file of conf/ sets, merged onto the files on which it builds; `cache` keeps them."""
    if path in cache:
        return cache[path]
    found = repo.load_config(path)
    if found is None:
        return OmegaConf.create()
    names = [part.path or "" for part in found.defaults_list or [] if isinstance(part, ConfigDefault)]
    names = [name for name in names if name != "_self_"]
    parents = [name[1:] if name[:1] == "/" else f"{path.rpartition('/')[0]}/{name}" for name in names]
    layers = [_settings_in_file(parent, repo, cache) for parent in parents]
    settings = OmegaConf.merge(*layers, _without_defaults(found.config))
    assert isinstance(settings, DictConfig)
    cache[path] = settings
    return settings


def _steps(parsed: list[Override]) -> int:
    """Return the `steps` of the command line; 0 where it has none, or no whole number."""
    try:
        values = [int(str(override.value())) for override in parsed if override.key_or_group == "steps"]
    except ValueError:
        return 0
    return max(0, values[-1]) if values else 0


def _without_defaults(node: Any) -> dict[str, Any]:
    """Return a mapping as it was written, without its defaults list."""
    written: Any = OmegaConf.to_container(node)
    return {str(key): value for key, value in written.items() if key != "defaults"}


def _force_add_below_added(overrides: list[str], parsed: list[Override]) -> list[str]:
    """Return the overrides, with `++` before those of settings in a mapping that another adds with `+`."""
    added = [
        override.key_or_group.rpartition(".")[0]
        for override in parsed
        if override.is_add() or override.is_force_add()
    ]
    prefixes = tuple(f"{parent}." for parent in added if parent)
    return [f"++{override}" if override.startswith(prefixes) else override for override in overrides]


def _keys_set(key: str, value: Any) -> Iterator[str]:
    """Yield the keys that an override sets: `a={b: 1}` sets also a.b, and `a.0=1` also a."""
    yield key
    yield key.rpartition(".")[0]
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from _keys_set(f"{key}.{name}", part)


def error_text(error: BaseException) -> str:
    """Return the message of an error and that of its cause."""
    return f"{error}\n{error.__cause__ or ''}".strip()


def _without_alias(override: str) -> str:
    """Return an override with the new name of its key, where the old name is still accepted."""
    head, equals, value = override.partition("=")
    key = head.lstrip("+~")
    new = new_key(key, (ALIASES,))
    return override if new is None else f"{head[: len(head) - len(key)]}{new}{equals}{value}"


def _check_values(parsed: list[Override]) -> None:
    """Check that no override uses the old name of an option or of a value.  Raises: ConfigError."""
    for override in parsed:
        if override.is_delete():
            continue
        key, value = override.key_or_group, override.value()
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                continue
            new = new_option(key, name) or new_value(key, name)
            if new != name:
                raise ConfigError(f"{key}={name}: renamed to {key}={new}")
