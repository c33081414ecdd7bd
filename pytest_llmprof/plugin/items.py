"""One pytest item of ours: its stage, directory, settings, and the overrides and gates of its markers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ConfigError, LlmprofError, nearest

if TYPE_CHECKING:
    from pytest_llmprof.compare.gates import Given
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.plugin.rows import Row
    from pytest_llmprof.plugin.shared import SharedState
    from pytest_llmprof.records.metrics import GateResult
    from pytest_llmprof.records.stage import StageRecords
    from pytest_llmprof.run.directory import TestKey
    from pytest_llmprof.run.gates import TestGates
    from pytest_llmprof.run.session import Session

STAGE_FIXTURE = "llmprof_stage"
"""All our fixtures request it, so a test that has it uses one of them."""
_WRITERS = frozenset({"llmprof", "llmprof_output"})
"""The fixtures through which a test writes outputs. A test without them cannot overwrite another's."""
_GATE = "llmprof_gate"
_NO_USE = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
"""Warnings that a user can do nothing about: torch uses what it deprecates when it imports its own compiler."""


class ItemState:
    """One test in one stage."""

    def __init__(self) -> None:
        self.error: str | None = None
        """Why it cannot run: an error in its marker, or, in an xdist worker, in the session."""
        self.settings: Settings | None = None
        self.gates: TestGates | None = None
        self.name = ""
        """Its node id without the stage."""
        self.test = ""
        """Its directory under the run directory."""
        self.stage = ""
        self.row: Row | None = None
        """What it measured, for the controller."""
        self.verdicts: Sequence[GateResult] = ()
        """The results of its gates."""
        self.unavailable: str | None = None
        """What this machine lacks for it: the test is skipped."""
        self.tool = False
        """Whether it runs in a child process under a tool, not here."""
        self.files_lost = False
        """Whether its files could not be sent to the controller's run directory."""
        self.named_for_benchmark = False
        """Whether pytest-benchmark's fixture stands in its list of fixtures, while tests are collected."""

    @property
    def directory(self) -> str:
        """The stage directory, relative to the run directory; empty before it is known."""
        return f"{self.test}/{self.stage}" if self.test else ""

    def keep(self, item: pytest.Item, records: StageRecords, *, timed: bool) -> None:
        """Keep what *item* measured here, or in its child; *timed*: whether its times are valid."""
        from pytest_llmprof.plugin.rows import Row

        self.verdicts = records.metrics.gates
        self.row = Row.of(item, self.name, self.stage, self.directory, records, timed=timed)


ITEM = pytest.StashKey[ItemState]()


def state_of(item: pytest.Item) -> ItemState:
    """The item's state, made where it has none yet."""
    return item.stash.setdefault(ITEM, ItemState())


def uses_llmprof(item: pytest.Item) -> bool:
    """Whether the test uses a fixture of ours."""
    return STAGE_FIXTURE in getattr(item, "fixturenames", ()) and STAGE_FIXTURE in _params(item)


def has_rounds(item: pytest.Item, shared: SharedState) -> bool:
    """Whether the test will have rounds for pytest-benchmark here, and does not request its fixture itself."""
    names = getattr(item, "fixturenames", ())
    if "llmprof" not in names or "benchmark" in names or not uses_llmprof(item) or shared.child:
        return False
    return not shared.session.stage(_stage_of(item)).in_child


def prepare_items(
    items: Sequence[pytest.Item], session: Session, refuse: Callable[[Sequence[pytest.Item], str], None]
) -> None:
    """Give each test its directory, settings and gates, and find tests that would write into one directory.

    An error in a test's own marker fails that test later. For other errors *refuse* is called with tests and reason.
    """
    from pytest_llmprof.run.collisions import check_collisions
    from pytest_llmprof.run.directory import test_dirs

    keys = {item: _key(item) for item in items}
    dirs = test_dirs(list(keys.values()))
    owners = []
    for item in items:
        state = state_of(item)
        state.name = f"{keys[item].module}::{keys[item].name}"
        state.test = dirs[keys[item]]
        state.stage = _stage_of(item)
        state.tool = session.stage(state.stage).in_child
        item.add_marker(_NO_USE)
        in_marker = True
        try:
            overrides = _overrides(item)
            marked = _gates(item, session)
            in_marker = bool(overrides)
            where = f"marker of {state.name.partition('[')[0]}"
            settings = session.composer.for_test(overrides, where, state.test, state.stage)
            artifacts = session.artifacts(settings.test)
            save_dirs = artifacts.save_dirs(settings)
            in_marker = True  # those of the session are checked
            state.gates = session.gates(settings, marked)
        except LlmprofError as error:
            if in_marker:
                state.error = str(error)
            else:
                refuse([item], str(error))
            continue
        state.settings = settings
        state.test = settings.test  # a child's is its parent's
        if _WRITERS & set(getattr(item, "fixturenames", ())):
            owners.append((item.nodeid, settings, artifacts.out_dir(settings.stage), save_dirs))
    clashes = check_collisions(owners)
    for item in items:
        if item.nodeid in clashes:
            refuse([item], clashes[item.nodeid])


def outside(state: ItemState, session: Session) -> list[Path]:
    """The directories outside of the run directory into which the test has written outputs."""
    if state.settings is None:
        return []
    run_dir = Path(os.path.realpath(session.run_dir))
    save_dirs = session.artifacts(state.test).save_dirs(state.settings).values()
    return [path for path in save_dirs if not path.is_relative_to(run_dir) and path.exists()]


def _stage_of(item: pytest.Item) -> str:
    return str(_params(item)[STAGE_FIXTURE])


def check_marks(items: Sequence[pytest.Item], config: pytest.Config) -> None:
    """Let a test fail whose marks would check nothing: a misspelt one, or a gate without a fixture of ours."""
    known = {re.split(r"[:(\s]", line, maxsplit=1)[0] for line in config.getini("markers")}
    ours = sorted(name for name in known if name.startswith("llmprof"))
    for item in items:
        for mark in item.iter_markers():
            if mark.name.startswith("llmprof") and mark.name not in known:
                state_of(item).error = (
                    f"@pytest.mark.{mark.name} of {item.nodeid}: unknown marker{nearest(mark.name, ours)}; "
                    f"allowed: {', '.join(ours)}"
                )
        if any(mark.name == _GATE for mark in item.own_markers) and not uses_llmprof(item):
            state_of(item).error = (
                f"llmprof_gate of {item.nodeid}: the test asks for no fixture of llmprof, so it has no figures; "
                "add the argument llmprof and call llmprof.run() or llmprof.measure()"
            )


def _overrides(item: pytest.Item) -> tuple[str, ...]:
    """The overrides of the test's `llmprof` marks, lowest precedence first. Raises `ConfigError`."""
    result: list[str] = []
    for mark in _marks(item, "llmprof"):
        unknown = sorted(set(mark.kwargs) - {"overrides"})
        if mark.args or unknown:
            given = ", ".join([*map(repr, mark.args), *unknown])
            raise ConfigError(
                f"@pytest.mark.llmprof of {item.nodeid}: unknown argument {given}; "
                "allowed: overrides=['key=value', ...]"
            )
        values = mark.kwargs.get("overrides", ())
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise ConfigError(
                f"@pytest.mark.llmprof of {item.nodeid}: overrides={values!r} is not a list of texts; "
                "write overrides=['key=value', ...]"
            )
        result += values
    return tuple(result)


def _gates(item: pytest.Item, session: Session) -> list[Given]:
    """The gates of the test's `llmprof_gate` marks, lowest precedence first. Raises `ConfigError`."""
    marks = list(_marks(item, _GATE))
    if not marks:
        return []
    from pytest_llmprof.compare.gates import of_marker

    found: list[Given] = []
    for mark in marks:
        if mark.args:
            raise ConfigError(
                f"llmprof_gate of {item.nodeid} takes limits by name, not {mark.args[0]!r}: "
                'write llmprof_gate(cer="<=0.05")'
            )
        found += of_marker(mark.kwargs, item.nodeid, session.catalogue)
    return found


def _marks(item: pytest.Item, name: str) -> Iterator[pytest.Mark]:
    """The marks called *name*, lowest precedence first: package, module, class, function, parameter."""
    for node in item.listchain():
        found = [mark for mark in node.own_markers if mark.name == name]
        if isinstance(node, pytest.Class):
            found = _by_class(node.obj, found)
        of_parameter = _parameter_marks(node)
        # pytest keeps the mark nearest to the function first.
        found.reverse()
        yield from sorted(found, key=lambda mark: id(mark) in of_parameter)


def _by_class(cls: type, marks: Sequence[pytest.Mark]) -> list[pytest.Mark]:
    """A class's marks with its own before those of its bases, as pytest orders all others."""
    distance: dict[int, int] = {}
    for base in cls.__mro__:
        own = base.__dict__.get("pytestmark", [])
        for mark in own if isinstance(own, list) else [own]:
            distance.setdefault(id(getattr(mark, "mark", mark)), len(distance))
    return sorted(marks, key=lambda mark: distance.get(id(mark), -1))


def _parameter_marks(node: object) -> set[int]:
    """The ids of a test's marks that its parameters bring."""
    callspec = getattr(node, "callspec", None)
    return set() if callspec is None else {id(getattr(mark, "mark", mark)) for mark in callspec.marks}


def _params(item: pytest.Item) -> Mapping[str, Any]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def _key(item: pytest.Item) -> TestKey:
    """The test without its stage, from its own parts: plugins may append to a node id."""
    from pytest_llmprof.run.directory import TestKey

    chain = item.listchain()
    module = next((node.nodeid for node in chain if isinstance(node, pytest.Module)), item.nodeid.partition("::")[0])
    names = [node.name for node in chain if isinstance(node, pytest.Class)]
    names.append(getattr(item, "originalname", None) or item.name.partition("[")[0])
    parameters = item.callspec.id.removesuffix(_params(item)[STAGE_FIXTURE]).removesuffix("-")  # type: ignore[attr-defined]
    return TestKey(module, "::".join(names) + (f"[{parameters}]" if parameters else ""))
