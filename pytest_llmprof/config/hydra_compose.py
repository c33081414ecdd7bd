"""The one place where Hydra composes presets. It leaves a Hydra that the user runs in this process alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ResultDefault
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf

from pytest_llmprof.config.files import check_defaults, check_package, read_keys
from pytest_llmprof.config.unread import check_reachable
from pytest_llmprof.errors import ConfigError

# The version that Hydra behaves as is one for the process, so one composition runs at a time.
_LOCK = threading.RLock()


class Layer(NamedTuple):
    """What one file set."""

    choice: str
    """The key in the defaults list whose preset brought the file in, "" for none."""
    keys: dict[str, Any]
    """From the root down."""
    path: str
    """The file, as `group/option`."""
    above: str
    """The file whose defaults list names it, likewise."""
    package: str
    """Where in the configuration its keys lie."""


class _Tree(FileConfigSource):  # type: ignore[misc]
    """One configuration tree, with *roots* beside its files: configurations in memory, by name."""

    def __init__(self, directory: Path, roots: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__("llmprof", f"file://{directory}")
        self.roots = roots

    def __deepcopy__(self, memo: object) -> _Tree:
        """Hydra copies what it reads from; nothing changes this."""
        return self

    def is_config(self, config_path: str) -> bool:
        """An optional entry of a defaults list is passed over where there is no file, not where it can't be read."""
        if config_path in self.roots or super().is_config(config_path):
            return True
        check_reachable(Path(self.path), self._normalize_file_name(config_path))
        return False

    def load_config(self, config_path: str) -> ConfigResult:
        """Read it as Hydra does; an error names the file."""
        if config_path in self.roots:
            keys, header = dict(self.roots[config_path]), {"package": None}
        else:
            file = Path(self.path, self._normalize_file_name(config_path))
            keys = read_keys(file)
            if "defaults" in keys:
                check_defaults(file, keys["defaults"])
            text = file.read_text(encoding="utf-8-sig")
            try:
                header = self._get_header_dict(text)
            except ValueError as error:
                raise ConfigError(f"{file}: {error}") from None
            check_package(file, text, header["package"])
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(keys), header)


@contextmanager
def _version_base() -> Iterator[None]:
    """Have Hydra behave as version 1.3, whatever the user chose for a Hydra of their own."""
    with _LOCK:
        before = VersionBase.instance().version_base
        setbase("1.3")
        try:
            yield
        finally:
            VersionBase.instance().version_base = before


def compose(
    directories: Sequence[Path],
    roots: Mapping[str, Mapping[str, Any]],
    name: str,
    overrides: Sequence[str],
    most_loads: int | None = None,
    *,
    skip_missing: bool = False,
) -> tuple[DictConfig, dict[str, str | None], list[Layer]]:
    """Compose the configuration *name* of *roots*; interpolations stay as they are written.

    *directories* are configuration trees, the first that has a file wins; *overrides* choose presets. Gives the
    configuration, the preset of each key of the defaults lists, None for no preset, and what each file set, the
    strongest last. *skip_missing*: a preset that is still to be chosen, `???`, is passed over.
    Raises `RecursionError` where a file includes itself, and after *most_loads* loads of files, also of the same file
    again: Python's own limit can come after hours.
    """
    with _version_base():
        loader = ConfigLoaderImpl(create_config_search_path(None))
        loader.repository.sources[:0] = [_Tree(directory, roots) for directory in directories]
        try:
            found, repository = _defaults(loader, name, overrides, most_loads, skip_missing, with_hydra=False)
        except ConfigCompositionException as error:
            if "hydra/" not in str(error):
                raise
            # A tree that is an application's, too, may choose presets of Hydra's own configuration.
            found, repository = _defaults(loader, name, overrides, most_loads, skip_missing, with_hydra=True)
        choices = {
            key: option
            for key, option in found.overrides.known_choices.items()
            if not key.startswith("hydra/")
        }
        files = [one for one in found.defaults if not one.config_path.startswith("hydra/")]
        config = OmegaConf.create()
        layers: list[Layer] = []
        for one in files:
            body = repository.load_config(one.config_path).config
            if one.package:
                inner, body = body, OmegaConf.create()
                OmegaConf.update(body, one.package, inner, merge=False)
            keys: Any = OmegaConf.to_container(body, resolve=False)
            try:
                config.merge_with(body)
            except TypeError as error:
                if wrong := _clash(OmegaConf.to_container(config, resolve=False), keys):
                    raise ConfigError(f"the presets don't compose: {one.config_path}.yaml: {wrong}") from error
                raise
            chosen_by = _chosen_by(one, files, choices)
            layers.append(Layer(chosen_by, keys, one.config_path, one.parent or "", one.package or ""))
    assert isinstance(config, DictConfig)
    return config, choices, layers


def _defaults(
    loader: ConfigLoaderImpl,
    name: str,
    overrides: Sequence[str],
    most_loads: int | None,
    skip_missing: bool,
    *,
    with_hydra: bool,
) -> tuple[Any, Any]:
    """The defaults list of *name*, and what reads each of its files once; Hydra's own configuration takes as long."""
    parsed, repository = loader._parse_overrides_and_create_caching_repo(name, list(overrides))
    load, loads = repository.load_config, itertools.count(1)

    def load_config(config_path: str) -> ConfigResult | None:
        if most_loads is not None and next(loads) > most_loads:
            raise RecursionError
        return load(config_path)

    repository.load_config = load_config
    return create_defaults_list(repository, name, parsed, with_hydra, skip_missing), repository


def _clash(under: Any, over: Any, path: str = "") -> str | None:
    """Where *over* has a list in the place of a block of *under*, or a block in that of a list, which cannot merge."""
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        found = (_clash(under.get(key), value, f"{path}.{key}".lstrip(".")) for key, value in over.items())
        return next(filter(None, found), None)
    if isinstance(under, Mapping) and isinstance(over, list):
        return f"{path} is a list; it must be a block of keys"
    if isinstance(under, list) and isinstance(over, Mapping):
        return f"{path} is a block of keys; it must be a list"
    return None


def _chosen_by(file: ResultDefault, files: Sequence[ResultDefault], choices: Mapping[str, str | None]) -> str:
    """The key of *choices* whose preset is *file*, or names it in its own defaults list; "" for none."""
    parents = {one.config_path: one.parent for one in files}
    path = file.config_path
    while path is not None:
        for key, option in choices.items():
            group, _, package = key.partition("@")
            inside = f"{file.package or ''}.".startswith(f"{package}.") or not package
            if f"{group}/{option}" == path and inside:
                return key
        path = parents.get(path)
    return ""
