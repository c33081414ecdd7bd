"""What the hooks, the fixtures and the items under a tool share in one pytest session."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.baselines import Baselines
from pytest_llmprof.plugin.remote import CHANNEL, Away, Home
from pytest_llmprof.plugin.terminal import Progress
from pytest_llmprof.text.escape import quoted

if TYPE_CHECKING:
    from pytest_llmprof.measure.duet import Duet
    from pytest_llmprof.run.session import Session


class SharedState:
    """One process of a pytest session. Cheap to make: `session` is built on first use."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker = hasattr(config, "workerinput")
        """Whether this process is a worker of pytest-xdist."""
        self.controller = not self.worker and bool(
            getattr(config.option, "tx", None) or getattr(config.option, "numprocesses", None)
        )
        """Whether it starts such workers."""
        self.child = config.getoption("llmprof_frozen") is not None
        """Whether it is the child of a stage under a tool."""
        self.configured = options.configured(config, ini=True)
        """Whether an option or an ini value configures it."""
        self.progress = Progress(config)
        self.baselines = Baselines(config)
        self.duet: Duet | None = config.stash[DUET]
        """The connection to the process that measures beside this one."""

    @cached_property
    def from_controller(self) -> Mapping[str, Any]:
        """What the controller sent to this worker; empty in other processes."""
        found: dict[str, Any] = json.loads(getattr(self.config, "workerinput", {}).get("llmprof", "{}"))
        return found

    @cached_property
    def away(self) -> Away | None:
        """A worker's connection to the controller's run directory; None where both see the same files."""
        channel = getattr(self.config, "workerinput", {}).get(CHANNEL)
        return None if channel is None else Away(channel)

    @cached_property
    def home(self) -> Home:
        """The controller's side of it."""
        return Home(lambda: self.session)

    def to_worker(self, child_options: Sequence[str], *, place: tuple[int, int] | None, apart: bool, each: bool) -> str:
        """What a worker gets. *place*: its number and how many there are on this host, where it takes its share of
        that by itself; *apart*: whether it may see other files than this process; *each*: whether others run the same.

        In ASCII, as xdist sends no text that is not valid Unicode: a path may hold any bytes.
        """
        from msgspec.structs import asdict

        session = self.session
        return json.dumps(
            {
                "run_dir": str(session.run_dir),
                "session": session.id,
                "argv": session.argv,
                "process": session.process and asdict(session.process),
                "child_options": list(child_options),
                "baseline": self.baselines.to_worker(apart=apart),
                "cwd": str(self.config.invocation_params.dir),
                "place": place,
                "each": each,
            }
        )

    @property
    def has_session(self) -> bool:
        """Whether anything asked for `session` yet."""
        return "session" in vars(self)

    @cached_property
    def session(self) -> Session:
        """The run's session, made of all that plugins register."""
        from pytest_llmprof.datasets import DatasetPlugin, builtin
        from pytest_llmprof.models import packaged_models
        from pytest_llmprof.models.base import BoxFormat, ModelPlugin
        from pytest_llmprof.records.catalogue import Metric
        from pytest_llmprof.records.run import Process
        from pytest_llmprof.run.directory import choose_run_dir
        from pytest_llmprof.run.session import Session
        from pytest_llmprof.stages import packaged_stages
        from pytest_llmprof.stages.base import StagePlugin, ToolStagePlugin
        from pytest_llmprof.text.secrets import masked_word

        explicit = options.directory(self.config, "llmprof_run_dir")
        sent = self.from_controller

        def run_dir() -> Path:  # a worker's was chosen by its controller
            return Path(sent["run_dir"]) if self.worker else choose_run_dir(explicit, self.config.rootpath)

        def registered(hook: str, *kinds: type) -> list[Any]:
            return _flat(hook, getattr(self.config.hook, hook)(config=self.config), kinds)

        return Session(
            sources=options.sources(self.config),
            models=[
                *packaged_models(registered("pytest_llmprof_box_formats", BoxFormat)),
                *registered("pytest_llmprof_models", ModelPlugin),
            ],
            stages=[*packaged_stages(), *registered("pytest_llmprof_stages", StagePlugin, ToolStagePlugin)],
            datasets=[*builtin(), *registered("pytest_llmprof_datasets", DatasetPlugin)],
            metrics=registered("pytest_llmprof_metrics", Metric),
            choose_run_dir=run_dir,
            id=sent.get("session") or uuid.uuid4().hex,
            argv=sent.get("argv") or [masked_word(str(arg)) for arg in self.config.invocation_params.args],
            process=Process(**sent["process"]) if sent.get("process") else Process.this(),
            explicit=explicit is not None,
            find_baseline=lambda: None if self.child else self.baselines.baseline,
        )


SHARED = pytest.StashKey[SharedState]()
"""Where `config.stash` holds it."""
DUET: pytest.StashKey[Duet | None] = pytest.StashKey()
"""Where it holds the connection of a duet, which is there before the rest."""


def _flat(hook: str, results: Iterable[Any], kinds: tuple[type, ...]) -> list[Any]:
    """What the plugins returned from *hook*, in one list. Raises `ConfigError` for anything but lists of *kinds*."""
    found = []
    for result in results:
        listed = isinstance(result, Iterable) and not isinstance(result, str)
        for one in result if listed else (result,):
            if not listed or not isinstance(one, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise ConfigError(f"the hook {hook} returned {quoted(one)}: it must be a list of {wanted}")
            found.append(one)
    return found
