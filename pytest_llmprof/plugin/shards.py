"""`--llmprof-shard I/N`: run one of N parts of the suite, as CI's matrix or several machines do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ArtifactError, ConfigError, LlmprofError
from pytest_llmprof.plugin.items import state_of, uses_llmprof
from pytest_llmprof.text.escape import encodable
from pytest_llmprof.text.numbers import count, duration, number

if TYPE_CHECKING:
    from pytest_llmprof.plugin.shared import SharedState
    from pytest_llmprof.records.run import Shard
    from pytest_llmprof.run.shards import SuiteTest, Times

_LAST_FAILED = "lfplugin-collwrapper"
"""pytest's name for the part of --lf that leaves tests out while they are collected."""
_NEWEST = 100
"""Saved runs that are read for the times of tests where none is named."""


class Shards:
    """The shard of a session, if it is to run one. Cheap to make."""

    def __init__(self, shared: SharedState) -> None:
        self.line: str | None = None
        """What was chosen, for the summary."""
        self.chose_none = False
        """Whether the suite has tests, and this shard none of them."""
        self._shared = shared
        self._config = shared.config

    @cached_property
    def shard(self) -> Shard | None:
        """What `--llmprof-shard` names. Raises `ConfigError`."""
        given = self._config.getoption("llmprof_shard")
        if given is None or self._shared.child:  # a child runs the one test that its parent chose
            return None
        from pytest_llmprof.run.shards import parse_shard

        return parse_shard(given)

    def check(self) -> None:
        """Check the options, and read the recorded times. Raises `LlmprofError`."""
        if self.shard is None:
            return
        if getattr(self._config.option, "stepwise", False):
            raise ConfigError(
                "--llmprof-shard does not go with --stepwise: each job would begin at a failure of its own, and so "
                "split other tests than the rest"
            )
        _ = self._recorded

    def collect_all(self) -> None:
        """Let all jobs split the same tests: with --lf, pytest would not even collect what passed in this one."""
        manager = self._config.pluginmanager
        if self._config.getoption("llmprof_shard") is not None and manager.has_plugin(_LAST_FAILED):
            manager.unregister(name=_LAST_FAILED)

    @cached_property
    def _recorded(self) -> Times:
        """The times that tests took. A worker gets its controller's, as the store may change meanwhile."""
        import msgspec

        from pytest_llmprof.run.shards import Times, agreed_times

        if self._shared.worker:
            return msgspec.json.decode(self._config.workerinput["llmprof_shards"], type=Times)  # type: ignore[attr-defined]
        agreed: str | None = self._config.getoption("llmprof_shard_times")
        return self._find_times() if agreed is None else agreed_times(Path(agreed), self._find_times)

    def _find_times(self) -> Times:
        from pytest_llmprof.compare.saved import read_seconds
        from pytest_llmprof.run.shards import Times

        store = self._shared.baselines.store
        wanted: str | None = self._config.getoption("llmprof_durations")
        if wanted is None:
            # A saved run's file is named by its time.
            files = [path for name in store.names() for path in store.files(name)]
            places = sorted(files, key=lambda path: (path.name, path.parent), reverse=True)[:_NEWEST]
            return Times(read_seconds(places), f"the store {store.root.name}")
        if not wanted.strip():
            raise ConfigError("--llmprof-durations is empty: give a name or a run, or leave the option out")
        try:
            places = store.places(wanted, self._config.invocation_params.dir)[::-1]
            seconds = read_seconds(places)
        except LlmprofError as error:
            raise type(error)(f"--llmprof-durations: {error}") from None
        if not seconds:
            raise ArtifactError(f"--llmprof-durations: {wanted} holds no times of tests: name a run of this version")
        return Times(seconds, wanted)

    def to_worker(self) -> str:
        """What a worker gets, in ASCII. The controller's own run.json names the shard from here on."""
        if self.shard is None:
            return "null"
        import msgspec

        self._shared.session.take_shard(self.shard)
        return json.dumps(msgspec.to_builtins(self._recorded))  # in ASCII, unlike msgspec's own

    def select(self, items: list[pytest.Item]) -> None:
        """Leave the tests of this shard in *items*, those of the whole suite, and report the others as deselected."""
        shard = self.shard
        if shard is None:
            return
        from msgspec.structs import replace

        from pytest_llmprof.run.shards import digest, split

        seconds, source = self._recorded.seconds, self._recorded.source
        tests = {item: _suite_test(item) for item in items}
        shards = split(list(tests.values()), shard.count, seconds)
        chosen = [item for item in items if shards[tests[item].id] == shard.index]
        others = [item for item in items if shards[tests[item].id] != shard.index]
        self._shared.session.take_shard(replace(shard, split=digest(shards)))
        self.chose_none = bool(items) and not chosen
        self.line = f"shard {shard.index}/{shard.count}: {len(chosen)} of {count(len(items), 'test')}"
        known = [seconds[tests[item].id] for item in items if tests[item].id in seconds]
        if known:
            own = sum(seconds.get(tests[item].id, 0.0) for item in chosen)
            self.line += f", {_time(own)} of {_time(sum(known))} by the times in {source}"
        elif self._config.getoption("llmprof_durations") is not None:
            self.line += f", split by number: {source} has none of these tests"
        if others:
            self._config.hook.pytest_deselected(items=others)
        items[:] = chosen

    def to_controller(self) -> dict[str, Any] | None:
        """What the controller gets of a worker's choice."""
        shard = self._shared.session.shard if self.shard is not None else None
        if shard is None or shard.split is None:
            return None
        return {"split": shard.split, "line": encodable(self.line), "chose_none": self.chose_none}

    def take(self, sent: Mapping[str, Any] | None) -> None:
        """Take over the choice of a worker; all workers choose the same."""
        if sent and self.shard is not None:
            from msgspec.structs import replace

            self.line, self.chose_none = sent["line"], sent["chose_none"]
            self._shared.session.take_shard(replace(self.shard, split=sent["split"]))


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{number(seconds)} s"


def _suite_test(item: pytest.Item) -> SuiteTest:
    """The test as it is split."""
    from pytest_llmprof.run.shards import SuiteTest

    # pytest-xdist and others append to node ids.
    own_id = f"{item.parent.nodeid}::{item.name}" if item.parent is not None else item.nodeid
    ours = uses_llmprof(item)
    groups = {str(mark.args[0] if mark.args else mark.kwargs.get("name")) for mark in item.iter_markers("xdist_group")}
    unit = f"group {'_'.join(sorted(groups))}" if groups else f"test {state_of(item).name if ours else own_id}"
    return SuiteTest(own_id, unit, ours)
