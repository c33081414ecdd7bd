"""The gates of one test: those of its markers and of the configuration, judged against its metrics and the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from pytest_llmprof.compare.baseline import Baseline
from pytest_llmprof.compare.compare import Terms
from pytest_llmprof.compare.gates import ChangeGate, Gate, Given, Kind, Reference, judge, judge_changes, read_gate
from pytest_llmprof.compare.looks import Rounds, planned
from pytest_llmprof.compare.rules import is_statistical
from pytest_llmprof.compare.saved import saved_test, shared_gpu
from pytest_llmprof.compare.verdicts import parse_share
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.metrics import GateResult
from pytest_llmprof.records.stage import StageRecords

_KEYS: tuple[tuple[Kind, str], ...] = (("limit", "limits"), ("slower", "slower"), ("worse", "worse"))
"""What the keys `gate.*` hold."""


def of_settings(settings: Settings) -> Iterator[Given]:
    """The gates of the configuration. Raises `ConfigError` where two keys limit the change of one metric."""
    held: dict[str, str] = {}
    for kind, block in _KEYS:
        for metric, value in getattr(settings.gate, block).items():
            key = f"gate.{block}.{metric}"
            where = f"{key}={value}{settings.where(key)}"
            if kind != "limit" and value is not None and held.setdefault(metric, key) != key:
                raise ConfigError(f"{where}: {held[metric]} is a limit on the same change; give one")
            yield Given(kind, metric, value, where)


def terms_of(settings: Settings) -> Terms:
    """How to compare with a baseline. Raises `ConfigError` naming a key whose value is none."""

    def share(name: str, text: str) -> float:
        where = f"gate.{name}{settings.where(f'gate.{name}')}"
        found = parse_share(text, where)
        if name != "margin" and found >= 1:
            raise ConfigError(f"{where}: {text!r} is not allowed; give less than 100%")
        return found

    gate = settings.gate
    return Terms(
        margin=share("margin", gate.margin),
        alpha=share("alpha", gate.alpha),
        process_sd=None if gate.process_sd is None else share("process_sd", gate.process_sd),
    )


@dataclass(frozen=True)
class TestGates:
    """All gates of one test."""

    __test__ = False

    limits: tuple[Gate, ...] = ()
    changes: tuple[ChangeGate, ...] = ()
    terms: Terms = field(default_factory=Terms)
    looks: tuple[int, ...] = ()
    """The numbers of rounds after which the changes are judged; each after the first only where they are unclear."""
    baseline: Baseline | None = None
    marked: bool = False
    """Whether a mark of the test set one."""

    def __bool__(self) -> bool:
        return bool(self.limits or self.changes)


def gates_of(
    settings: Settings,
    marked: Iterable[Given],
    catalogue: Catalogue,
    stages: Callable[[str], tuple[str, ...]],
    baseline: Baseline | None,
) -> TestGates:
    """The gates of a test: those of its marks, *marked*, in rising precedence, above those of its configuration.

    *stages* gives the stages of the run that measure a metric. Raises `ConfigError`, one line, for what is no gate.
    """
    own = list(marked)
    chosen: dict[tuple[bool, str], Given] = {}
    for given in (*of_settings(settings), *own):
        chosen[given.kind == "limit", given.metric] = given
    gates = [read_gate(given, catalogue) for given in chosen.values() if given.value is not None]
    placed = [replace(gate, stages=stages(gate.name)) for gate in gates]
    looks = planned(settings.measure.rounds, settings.gate.max_rounds)
    return TestGates(
        limits=tuple(gate for gate in placed if isinstance(gate, Gate)),
        changes=tuple(gate for gate in placed if isinstance(gate, ChangeGate)),
        terms=replace(terms_of(settings), rounds=Rounds(len(looks), looks[-1])),
        looks=tuple(looks),
        baseline=baseline,
        marked=any(given in own for given in chosen.values() if given.value is not None),
    )


class Judge:
    """Judges the gates of one test while it runs: after each look, and at its end."""

    def __init__(self, gates: TestGates, catalogue: Catalogue) -> None:
        self._gates = gates
        self._declarations = [metric.declaration for metric in catalogue]
        self._passed: dict[str, GateResult] = {}
        """Gates against the baseline that an earlier look has settled."""

    @property
    def looks(self) -> bool:
        """Whether more rounds may be asked for."""
        return bool(self._gates.changes) and self._gates.baseline is not None

    def more_rounds(self, records: StageRecords, stage_dir: Path) -> int:
        """How many rounds to measure beyond those in *records*: up to the next look where a gate is unclear, else 0."""
        results, more = self._changes(records, stage_dir)
        if not more or any(gate.outcome == "failed" for gate in results):
            return 0
        self._passed |= {gate.name: gate for gate in results if gate.outcome == "passed"}
        done = records.metrics.rounds
        return next((look - done for look in self._gates.looks if look > done), 0)

    def judge(self, records: StageRecords, stage_dir: Path) -> list[GateResult]:
        """The results of all gates."""
        return self._limits(records) + (self._changes(records, stage_dir)[0] if self._gates.changes else [])

    def _limits(self, records: StageRecords) -> list[GateResult]:
        """The results of the limits. A time on a GPU that workers shared says nothing, whichever it is."""
        found = judge(self._gates.limits, records.metrics)
        why = shared_gpu(records.metrics, records.environment)
        if why is None:
            return found
        noisy = {metric.name for metric in self._declarations if is_statistical(metric)}
        return [
            structs.replace(gate, outcome="not measured", reason=why)
            if gate.figure is not None and gate.name in noisy
            else gate
            for gate in found
        ]

    def _changes(self, records: StageRecords, stage_dir: Path) -> tuple[list[GateResult], bool]:
        """The results of the gates against the baseline, and whether more rounds may settle one."""
        gates, test = self._gates, saved_test(records, stage_dir)
        reference = None
        if gates.baseline is not None:
            reference = Reference(gates.baseline.name, gates.baseline.runs)
        found, more = judge_changes(gates.changes, records.metrics, test, reference, gates.terms, self._declarations)
        judged = [self._passed.get(gate.name, gate) for gate in found]
        return judged, more and any(gate.outcome in ("unclear", "not measured") for gate in judged)
