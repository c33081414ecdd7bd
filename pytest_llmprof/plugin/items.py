"""What the plugin knows of one pytest item: its directory, its markers' overrides and gates, its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ConfigError, LlmprofError

if TYPE_CHECKING:
    from pytest_llmprof.compare.gates import Gate, Verdict
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.run.directory import TestKey
    from pytest_llmprof.run.session import Session

__all__ = [
    "ITEM",
    "STAGE_FIXTURE",
    "ItemState",
    "asks",
    "marker_gates",
    "marker_overrides",
    "needs_sink",
    "settle",
    "stage_of",
    "stray_gates",
]

STAGE_FIXTURE = "llmprof_stage"
"""Every fixture of ours needs it, so a test that has it asks for us."""
_WRITERS = frozenset({"llmprof", "llmprof_output"})
"""A test writes outputs through one of these; one that only looks at its configuration clashes with nobody."""
_GATE = "llmprof_gate"


class ItemState:
    """What the plugin knows of one test in one stage."""

    def __init__(self) -> None:
        self.error: str | None = None
        """Why it cannot run: its marker's fault, or, in an xdist worker, the session's."""
        self.settings: Settings | None = None
        self.gates: tuple[Gate, ...] = ()
        self.name = ""
        """Its node id without the stage."""
        self.test = ""
        """Its directory under the run directory."""
        self.stage = ""
        self.row: dict[str, Any] | None = None
        """What it came to, as plain data for the controller."""
        self.verdicts: Sequence[Verdict] = ()
        """What came of the gates, once they were judged: here, or in the child that ran the test."""
        self.tool = False
        """Whether it runs in a child process, under a tool: its body does not run here."""
        self.sink = False
        """Whether we asked for pytest-benchmark's fixture on its behalf."""

    @property
    def directory(self) -> str | None:
        """The stage directory, relative to the run directory."""
        return f"{self.test}/{self.stage}" if self.test else None


ITEM = pytest.StashKey[ItemState]()


def asks(item: pytest.Item) -> bool:
    """Whether the test uses a fixture of ours."""
    return STAGE_FIXTURE in getattr(item, "fixturenames", ()) and STAGE_FIXTURE in _params(item)


def needs_sink(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether pytest-benchmark is to be asked on the test's behalf: it has rounds, and doesn't use it itself.

    Under xdist pytest-benchmark is off and would say so for each session; only `--benchmark-skip` still holds.
    """
    names = getattr(item, "fixturenames", ())
    if config.getoption("llmprof_frozen") is not None:  # a child has no rounds to show
        return False
    if "llmprof" not in names or "benchmark" in names or not config.pluginmanager.hasplugin("benchmark"):
        return False
    return not hasattr(config, "workerinput") or bool(config.getoption("benchmark_skip"))


def settle(
    items: Sequence[pytest.Item], session: Session, refuse: Callable[[Sequence[pytest.Item], str], None]
) -> None:
    """Give each test its directory, settings and gates, and find tests that would write into one place.

    A fault of a test's own marker is kept for that test; *refuse* takes the tests that cannot run for another
    reason, and why.
    """
    from pytest_llmprof.run.artifacts import output_dirs
    from pytest_llmprof.run.collisions import check_collisions
    from pytest_llmprof.run.directory import test_dirs

    keys = {item: _key(item) for item in items}
    dirs = test_dirs(list(keys.values()))
    owners = []
    for item in items:
        state = item.stash.setdefault(ITEM, ItemState())
        state.name = f"{keys[item].module}::{keys[item].name}"
        state.test = dirs[keys[item]]
        state.stage = stage_of(item)
        state.tool = session.runs_in_child(state.stage)
        own_fault = True
        try:
            overrides = marker_overrides(item)
            state.gates = marker_gates(item)
            own_fault = bool(overrides)
            where = f"marker of {state.name.partition('[')[0]}"
            settings = session.composer.for_test(overrides, where, state.test, state.stage)
            output_dirs(settings, session.artifacts(state.test))
        except LlmprofError as error:
            if own_fault:
                state.error = str(error)
            else:
                refuse([item], str(error))
            continue
        state.settings = settings
        state.test = settings.test  # a child's is its parent's
        if _WRITERS & set(getattr(item, "fixturenames", ())):
            owners.append((item.nodeid, settings, session.run_dir / state.test))
    clashes = check_collisions(owners)
    for item in items:
        if item.nodeid in clashes:
            refuse([item], clashes[item.nodeid])


def stage_of(item: pytest.Item) -> str:
    """The stage that the test runs in."""
    return str(_params(item)[STAGE_FIXTURE])


def stray_gates(items: Sequence[pytest.Item]) -> None:
    """A gate on a test that does not ask for `llmprof` would hold nothing: that test fails."""
    for item in items:
        if any(mark.name == _GATE for mark in item.own_markers) and not asks(item):
            item.stash.setdefault(ITEM, ItemState()).error = (
                f"llmprof_gate of {item.nodeid}: the test asks for no fixture of llmprof, so it has no figures; "
                "add the argument llmprof and call llmprof.run() or llmprof.measure()"
            )


def marker_overrides(item: pytest.Item) -> tuple[str, ...]:
    """The overrides of the test's `llmprof` marks; later ones win. Raises `ConfigError`."""
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


def marker_gates(item: pytest.Item) -> tuple[Gate, ...]:
    """The limits of the test's `llmprof_gate` marks, the nearest mark's for each name. Raises `ConfigError`."""
    limits: dict[str, object] = {}
    for mark in _marks(item, _GATE):
        if mark.args:
            raise ConfigError(
                f"llmprof_gate of {item.nodeid} takes limits by name, not {mark.args[0]!r}: "
                'write llmprof_gate(cer="<=0.05")'
            )
        limits.update(mark.kwargs)
    if not limits:
        return ()
    from pytest_llmprof.compare.gates import parse_gates

    return parse_gates(limits, item.nodeid)


def _marks(item: pytest.Item, name: str) -> Iterator[pytest.Mark]:
    """The marks called *name* in rising precedence: package, module, class, function, parameter."""
    for node in item.listchain():
        found = [mark for mark in node.own_markers if mark.name == name]
        if isinstance(node, pytest.Class):
            found = _by_class(node.obj, found)
        parameter = [mark for mark in found if any(mark is one for one in _parameter_marks(node))]
        own = [mark for mark in found if not any(mark is one for one in parameter)]
        # pytest keeps the mark nearest to the function first.
        yield from reversed(own)
        yield from reversed(parameter)


def _by_class(cls: type, marks: Sequence[pytest.Mark]) -> list[pytest.Mark]:
    """A class's marks with its own before those of its bases, as pytest orders all others."""
    order: list[object] = []
    for base in cls.__mro__:
        own = base.__dict__.get("pytestmark", [])
        order += [getattr(mark, "mark", mark) for mark in (own if isinstance(own, list) else [own])]

    def distance(mark: pytest.Mark) -> int:
        return next((number for number, one in enumerate(order) if one is mark), -1)

    return sorted(marks, key=distance)


def _parameter_marks(node: object) -> Sequence[pytest.Mark]:
    callspec = getattr(node, "callspec", None)
    return () if callspec is None else [getattr(mark, "mark", mark) for mark in callspec.marks]


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
