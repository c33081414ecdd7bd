"""`--llmprof-save` and `--llmprof-compare`: what is done with a run once it has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.terminal import relative

if TYPE_CHECKING:
    from pytest_llmprof.compare.baseline import Baseline
    from pytest_llmprof.compare.compare import Terms
    from pytest_llmprof.compare.store import Store
    from pytest_llmprof.records.baseline import SavedRun
    from pytest_llmprof.records.metrics import GateResult


class Baselines:
    """The baseline of a session, and the session's run as the next one. Cheap to make."""

    def __init__(self, config: pytest.Config) -> None:
        self.table = ""
        """The comparison, for the terminal."""
        self.notes: list[str] = []
        """What was saved, and what could not be compared."""
        self.not_compared = ""
        """Why there is no comparison with the baseline that was asked for."""
        self.errors: list[str] = []
        """What was asked for and could not be written."""
        self._config = config

    @cached_property
    def store(self) -> Store:
        """Where runs are saved."""
        from pytest_llmprof.compare.store import STORE, Store

        return Store(options.directory(self._config, "llmprof_store") or self._config.rootpath / STORE)

    @cached_property
    def baseline(self) -> Baseline | None:
        """What `--llmprof-compare` names. Raises `LlmprofError`, one line, where there is no such run.

        A worker's was found by its controller, before any run could be saved under the same name.
        """
        if hasattr(self._config, "workerinput"):
            return self._sent()
        given = options.baseline(self._config, "llmprof_compare")
        if given is None:
            return None
        from pytest_llmprof.compare.baseline import Baseline

        wanted, where, start = given
        try:
            return Baseline.find(self.store, wanted, start)
        except LlmprofError as error:
            raise type(error)(f"{where}: {error}") from None

    @property
    def directory(self) -> Path | None:
        """The run directory that the baseline is, or the first of them; None for a saved run or a file."""
        if self.baseline is None:
            return None
        return next((place for place in self.baseline.places if (place / "run.json").is_file()), None)

    def to_worker(self, *, apart: bool) -> dict[str, Any] | None:
        """What a worker gets: the baseline's name and places, and its content where it may be *apart* from them."""
        if self.baseline is None:
            return None
        from pytest_llmprof.records.files import encode_json

        content = encode_json(list(self.baseline.runs)).decode() if apart else ""
        return {"name": self.baseline.name, "places": list(map(str, self.baseline.places)), "content": content}

    def _sent(self) -> Baseline | None:
        sent = json.loads(self._config.workerinput["llmprof"])["baseline"]  # type: ignore[attr-defined]
        if not sent:
            return None
        from pytest_llmprof.compare.baseline import Baseline

        return Baseline(sent["name"], tuple(map(Path, sent["places"])), sent["content"])

    @cached_property
    def _name(self) -> str | None:
        """What `--llmprof-save` names."""
        given = options.baseline(self._config, "llmprof_save")
        if given is None:
            return None
        from pytest_llmprof.compare.store import check_name

        name, where, _ = given
        try:
            check_name(name)
        except LlmprofError as error:
            raise type(error)(f"{where}: {error}") from None
        return name

    def check(self) -> None:
        """Raise `LlmprofError` for what can be seen to be wrong before tests run."""
        _ = self._name, self.store, self.baseline
        if self._name is not None:
            self.store.check_writable()

    def finish(self, run_dir: Path, terms: Callable[[], Terms], gates: Mapping[str, Sequence[GateResult]]) -> None:
        """Compare the run in *run_dir*, which has ended, and save it. *gates* are the results of each test's gates."""
        if self._name is None and self.baseline is None:
            return
        from pytest_llmprof.compare.saved import saved_run

        try:
            run = saved_run(run_dir)
        except LlmprofError as error:
            self.errors.append(str(error))
            self.not_compared = str(error) if self.baseline is not None else ""
            return
        self._compare(run, run_dir, terms, gates)
        self._save(run)

    def _compare(
        self, run: SavedRun, run_dir: Path, terms: Callable[[], Terms], gates: Mapping[str, Sequence[GateResult]]
    ) -> None:
        if self.baseline is None:
            return
        from msgspec.structs import replace

        from pytest_llmprof.compare.compare import compare
        from pytest_llmprof.compare.gates import mark_gated
        from pytest_llmprof.compare.result import COMPARISON
        from pytest_llmprof.compare.saved import machines_of
        from pytest_llmprof.compare.table import render
        from pytest_llmprof.records.files import write_json

        start = self._config.invocation_params.dir
        # Of a run that was stopped, what there is; tests that did not run are named.
        shown = replace(run, source=relative(run_dir, start), status="complete")
        try:
            comparison = compare(self.baseline.of(machines_of(run)), [shown], terms())
        except LlmprofError as error:
            self.not_compared = f"{self.baseline.name}: {error}"
            self.notes.append(f"WARNING: not compared with {self.not_compared}")
            return
        mark_gated(comparison, gates)
        if run.status != "complete":
            comparison.notices.append(f"after: this run was {run.status}")
        self.table = render(comparison)
        try:
            write_json(run_dir / COMPARISON, comparison)
        except LlmprofError as error:
            self.errors.append(str(error))

    def _save(self, run: SavedRun) -> None:
        if self._name is None:
            return
        if run.status != "complete":
            self.notes.append(f"WARNING: not saved as {self._name}: the run was {run.status}, so it is half a run")
            return
        if self._config.getoption("llmprof_shard") is not None:
            self.notes.append(
                f"WARNING: not saved as {self._name}: a shard is a part of a run; llmprof merge --save saves the whole"
            )
            return
        from pytest_llmprof.compare.saved import by_machine
        from pytest_llmprof.compare.store import UNSAVED

        if UNSAVED in os.environ:
            self.notes.append(f"WARNING: not saved as {self._name}: both sides of llmprof ab would be runs of one name")
            return
        for part in by_machine(run):
            try:
                path = self.store.save(part, self._name)
            except LlmprofError as error:
                self.errors.append(str(error))
                return
            self.notes.append(f"saved as {self._name}: {relative(path, self._config.invocation_params.dir)}")
