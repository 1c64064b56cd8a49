"""Composing a config: what Hydra does, and what it leaves undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.default_element import ConfigDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from splatexp.config.registry import keys_of, known_keys, options, switched
from splatexp.config.schema import (
    FOLLOWS,
    STAYS,
    Refused,
    check,
    leave_out,
    loosen_options,
    scale,
    settle,
    with_others,
)
from splatexp.settings.messages import explain
from splatexp.settings.renames import ALIASES, new_key, new_option, new_value


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
        overrides = [switched(_accepted(word)) for word in overrides]
        try:
            said = OverridesParser.create().parse_overrides(overrides)
            said = [word for word in said if not word.is_sweep_override()]
            keys = {key for word in said for key in _said(word.key_or_group, word.value())}
            _check_values(said)
            gone = [word.key_or_group for word in said if word.is_delete() and "." in word.key_or_group]
            if fixed := sorted(key for key in keys if key.rpartition(".")[2] == "_target_"):
                raise Refused(f"{fixed[0]}: {FOLLOWS}")
            self._steps = _steps(said)
            words = _with_added(self._with_loader(overrides, said), said)
            cfg = super().load_configuration(
                config_name, words, run_mode, from_shell, validate_sweep_overrides
            )
            if config_name is None:  # Hydra's own help
                return cfg
            check(cfg, lambda: self.known)
            if again := [key for key in gone if OmegaConf.select(cfg, key) is not None]:
                raise Refused(f"{again[0]}: {STAYS}")
            settle(cfg)
            if cfg.steps > 0 and cfg.steps != self._steps:
                raise Refused(f"steps: expected a whole number as such, got what is {cfg.steps}")
        except Refused:
            raise
        except OverrideParseException as error:
            remedy = "expected key=value, with special characters quoted: 'key=\"a=b\"'"
            raise Refused(f"{error.override}: {remedy}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise Refused(explain(text(error), self._all_keys(), self.get_group_options)) from error
        return cfg

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        """As Hydra does it, then the presets in their order, and everything fitted to the steps of the run.

        Windows in a preset are written for its own `steps`, or for the usual ones where it has none; what it
        says of options that were not chosen is left out.
        """
        presets = [default for default in defaults if (default.config_path or "").startswith("preset/")]
        rest = [default for default in defaults if default not in presets]
        cfg = super()._compose_config_from_defaults_list(rest, repo)
        if "steps" not in cfg:  # Hydra's own help
            return cfg
        try:
            check(cfg, lambda: self.known)
        except (Refused, OmegaConfBaseException) as error:
            raise Refused(self._explained(error, rest)) from error
        layers: list[Any] = [deepcopy(self._load_single_config(preset, repo).config) for preset in presets]
        said = [layer.get("steps") for layer in layers]
        usual = cfg.steps
        self._steps = self._steps or [usual, *(steps for steps in said if isinstance(steps, int))][-1]
        scale(cfg, self._steps / usual)
        for preset, layer, steps in zip(presets, layers, said, strict=True):
            layer.pop("defaults", None)
            keys = {key for name, part in _plain(layer).items() for key in _said(name, part)}
            try:
                leave_out(layer, cfg, lambda: self.known)
                cfg.merge_with(layer)
                factor = self._steps / (steps if isinstance(steps, int) else usual)
                scale(cfg, factor, lambda key, keys=keys: key in keys)
            except OmegaConfBaseException as error:
                raise Refused(self._explained(error, [preset])) from error
        loosen_options(cfg)
        return cfg

    def _explained(self, error: Exception, defaults: list[ResultDefault]) -> str:
        """An error of composing in one line that names the file that its key is from."""
        line = str(error)
        if not isinstance(error, Refused):
            line = explain(line, self._all_keys(), self.get_group_options)
        own = [default for default in defaults if not (default.config_path or "").startswith("schema/")]
        near = [default for default in own if line.startswith(default.package or "")]
        found = max(reversed(near), key=lambda default: len(default.package or ""), default=None)
        return line if found is None or found.primary else f"{line} (in {found.config_path})"

    @cached_property
    def known(self) -> dict[str, list[str]]:
        """Every key that some choice of options has, also of the files in --config-dir -> those choices."""
        repo = CachingConfigRepository(self.repository)
        chosen: dict[str, dict[str, type]] = {group: {} for group in options()}
        for group, classes in chosen.items():
            for name in self.get_group_options(group):
                try:
                    says = _says(f"{group}/{name}", repo)
                    classes[name] = with_others(get_class(says["_target_"]), says)
                except (HydraException, OmegaConfBaseException, ImportError, ValueError):
                    continue  # it is refused when it is chosen
        return known_keys(chosen)

    def _all_keys(self) -> dict[str, list[str]]:
        """The keys of a run and Hydra's own."""
        from hydra.conf import HydraConf

        return self.known | {key: [] for key in keys_of(HydraConf, "hydra.")}

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
        from splatexp.data import detect_loader

        try:
            return [f"data={detect_loader(path)}", *overrides]
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error


def _says(path: str, repo: IConfigRepository) -> DictConfig:
    """What a file of conf/ says on top of those that it builds on."""
    found = repo.load_config(path)
    if found is None:
        return OmegaConf.create()
    names = [part.path or "" for part in found.defaults_list or [] if isinstance(part, ConfigDefault)]
    names = [name for name in names if name != "_self_"]
    parts = [name[1:] if name[:1] == "/" else f"{path.rpartition('/')[0]}/{name}" for name in names]
    says = OmegaConf.merge(*(_says(part, repo) for part in parts), _plain(found.config))
    assert isinstance(says, DictConfig)
    return says


def _steps(said: list[Override]) -> int:
    """The steps that the command line wants; 0 where it says none, or nothing that is a number."""
    try:
        return max(0, [0, *(int(str(word.value())) for word in said if word.key_or_group == "steps")][-1])
    except ValueError:
        return 0


def _plain(node: Any) -> dict[str, Any]:
    """A mapping as it was written, without its defaults list."""
    written: Any = OmegaConf.to_container(node)
    return {str(key): value for key, value in written.items() if key != "defaults"}


def _with_added(overrides: list[str], said: list[Override]) -> list[str]:
    """The overrides; words on a mapping that a `+` before them makes get theirs."""
    added = [word.key_or_group.rpartition(".")[0] for word in said if word.is_add() or word.is_force_add()]
    made = tuple(f"{place}." for place in added if place)
    return [f"++{word}" if word.startswith(made) else word for word in overrides]


def _said(key: str, value: Any) -> Iterator[str]:
    """The keys that an override sets; `a={b: 1}` sets a.b, `a.0=1` also a."""
    yield key
    yield key.rpartition(".")[0]
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from _said(f"{key}.{name}", part)


def text(error: BaseException) -> str:
    """An error's text and its cause's."""
    return f"{error}\n{error.__cause__ or ''}".strip()


def _accepted(word: str) -> str:
    """Return an override whose old name is still accepted by its new name."""
    head, equals, value = word.partition("=")
    key = head.lstrip("+~")
    new = new_key(key, (ALIASES,))
    return word if new is None else f"{head[: len(head) - len(key)]}{new}{equals}{value}"


def _check_values(said: list[Override]) -> None:
    """Check that no override uses the old name of an option or of a word.  Raises: Refused."""
    for word in said:
        if word.is_delete():
            continue
        key, value = word.key_or_group, word.value()
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                continue
            new = new_option(key, name) or new_value(key, name)
            if new != name:
                raise Refused(f"{key}={name}: {name} is called {new} now")
