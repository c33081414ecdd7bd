"""The one place where Hydra composes: presets of a search path, beside a Hydra that the user may run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.config.overrides import quoted
from pytest_llmprof.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["ROOT_NAME", "USER_NAME", "compose_presets"]

ROOT_NAME = "llmprof_root"
"""The name under which a user's own config.yaml lists our root in its defaults."""
USER_NAME = "llmprof_user"
"""The name under which the defaults list of the user's config.yaml is composed."""

# Hydra's public compose works on process-wide singletons, so one composition runs at a time.
_LOCK = threading.RLock()


@contextmanager
def _own_hydra(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Give the block Hydra's singletons, fresh, with *stored* configurations; put back what the user had."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    with _LOCK:
        hydra, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        store = ConfigStore.instance()
        GlobalHydra.instance().clear()
        for name, node in stored.items():
            store.store(name=name, node=dict(node))
        try:
            yield
        finally:
            for name in stored:
                store.repo.pop(f"{name}.yaml", None)
            # Leaving `initialize_config_dir` may have made a new instance: fetch it again.
            GlobalHydra.instance().clear()
            GlobalHydra.instance().hydra = hydra
            VersionBase.instance().version_base = version


def compose_presets(
    search: Sequence[Path], stored: Mapping[str, Mapping[str, Any]], name: str, overrides: Sequence[str]
) -> tuple[DictConfig, dict[str, str]]:
    """Compose the configuration *name* and give it with the preset chosen for each group.

    *search* are configuration trees, the first that has a file wins; *stored* are configurations with
    defaults lists, by name; *overrides* choose presets. Interpolations stay unresolved. Raises `ConfigError`.
    """
    import yaml  # type: ignore[import-untyped]
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    path = ",".join(quoted(f"file://{directory}") for directory in search[1:])
    try:
        with _own_hydra(stored), initialize_config_dir(str(search[0]), version_base="1.3"):
            config = compose(name, [f"hydra.searchpath=[{path}]", *overrides], return_hydra_config=True)
    # Hydra raises plain ones for a defaults list or a file of a wrong shape, and for one that is not UTF-8.
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, OSError) as error:
        cause = error.__cause__ or error.__context__ or error
        told = cause if isinstance(cause, yaml.YAMLError) or not str(error).strip() else error
        text = " ".join(str(told).split()) or type(told).__name__
        raise ConfigError(f"the presets don't compose: {text}") from None
    except RecursionError:
        raise ConfigError(
            f"the presets don't compose: a defaults list in {search[0]} includes itself; "
            f"to build on the packaged root list {ROOT_NAME} instead of config"
        ) from None
    choices = {
        str(key): str(option)
        for key, option in config.hydra.runtime.choices.items()
        if not str(key).startswith("hydra/")
    }
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_struct(config, False)
    return config, choices
