"""Gates: limits on a test's metrics, and on how much worse than a baseline's they may be.

`@pytest.mark.llmprof_gate(ttft_ms="<=200", slower={"tpot_ms": "2%"}, cer_worse="0.005")`, or the keys `gate.*`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from pytest_llmprof.compare.comparable import other_machine
from pytest_llmprof.compare.compare import ONE_PROCESS, Terms, compare_test
from pytest_llmprof.compare.result import Comparison, Row
from pytest_llmprof.compare.rules import Rule
from pytest_llmprof.compare.verdicts import BAD, Verdict, parse_amount, parse_share
from pytest_llmprof.errors import ConfigError, nearest
from pytest_llmprof.records.baseline import SavedRun, SavedTest
from pytest_llmprof.records.catalogue import Catalogue, Declaration
from pytest_llmprof.records.metrics import GateResult, Metrics

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
_LIMIT = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_WORSE = "_worse"
NO_BASELINE = "there is no baseline (--llmprof-compare names one)"

Kind = Literal["limit", "slower", "worse"]


@dataclass(frozen=True)
class Given:
    """A gate as somebody wrote it."""

    kind: Kind
    metric: str
    value: object
    """None: no gate, whatever was set elsewhere."""
    where: str
    """With what was written: "llmprof_gate(cer='<=0.05') at test_it.py::test_it"."""


def of_marker(arguments: Mapping[str, object], where: str, catalogue: Catalogue) -> Iterator[Given]:
    """The gates of a mark's keyword arguments. Raises `ConfigError` naming *where* the mark stands."""
    held: set[str] = set()

    def change(kind: Kind, metric: str, value: object, place: str) -> Given:
        if metric in held:
            raise ConfigError(f"{place}: {metric} has another limit on its change in this mark; give one")
        held.add(metric)
        return Given(kind, metric, value, place)

    for name, value in arguments.items():
        if name in ("slower", "worse"):
            place = f"llmprof_gate({name}={value!r}) at {where}"
            if not isinstance(value, Mapping):
                raise ConfigError(f'{place}: write {name}={{METRIC: LIMIT}}, such as {name}={_EXAMPLES[name]}')
            for metric, limit in value.items():
                yield change("slower" if name == "slower" else "worse", str(metric), limit, place)
        else:
            base = name.removesuffix(_WORSE)
            place = f"llmprof_gate({name}={value!r}) at {where}"
            if name not in catalogue and base != name:
                yield change("worse", base, value, place)
            else:
                yield Given("limit", name, value, place)


_EXAMPLES = {"slower": '{"tpot_ms": "2%"}', "worse": '{"cer": "0.005"}'}


@dataclass(frozen=True)
class Gate:
    """A limit on a metric."""

    name: str
    relation: str
    limit: float
    stages: tuple[str, ...] | None = None
    """The stages of this run that measure the metric; None where that is not known."""

    @property
    def text(self) -> str:
        """The limit as it was written, "<=0.05"."""
        return f"{self.relation}{self.limit:.15g}"


@dataclass(frozen=True)
class ChangeGate:
    """A limit on how much worse than the baseline's a metric may be."""

    name: str
    limit: float
    """Relative; for a metric of quality an amount."""
    text: str
    """ "2% slower"."""
    stages: tuple[str, ...] | None = None


def read_gate(given: Given, catalogue: Catalogue) -> Gate | ChangeGate:
    """Raises `ConfigError`, one line that begins with where it was set, for what is no gate."""
    allowed = [metric.name for metric in catalogue.shown_in("gate")]
    if given.metric not in allowed:
        words = [*allowed, "slower", "worse"] if given.kind == "limit" else allowed
        raise ConfigError(f"{given.where}: {catalogue.unknown(given.metric, words)}")
    if given.kind == "limit":
        match = _LIMIT.fullmatch(given.value) if isinstance(given.value, str) else None
        if match is None or not math.isfinite(float(match[2])):
            raise ConfigError(f'{given.where}: a limit is a text such as "<=0.05" or ">=100"')
        return Gate(given.metric, match[1], float(match[2]))
    metric = catalogue[given.metric]
    if metric.better is None:
        raise ConfigError(f"{given.where}: neither way of {metric.name} is worse, so it cannot be gated")
    quality = metric.section == "quality"
    if quality and given.kind == "slower":
        raise ConfigError(
            f'{given.where}: {metric.name} is a metric of quality: write {metric.name}{_WORSE}="0.005", or the key '
            f"gate.worse.{metric.name}"
        )
    is_number = isinstance(given.value, int | float) and not isinstance(given.value, bool)
    value = str(given.value) if quality and is_number else given.value
    limit = parse_amount(value, given.where) if quality else parse_share(value, given.where)
    return ChangeGate(metric.name, limit, f"{str(value).strip()} {given.kind}")


def judge(gates: Sequence[Gate], metrics: Metrics) -> list[GateResult]:
    """Hold the metrics against their limits. A metric without a value fails only in a strict run."""
    values = {**metrics.figures, **(metrics.quality or {})}
    results = []
    for gate in gates:
        value = values.get(gate.name)
        if value is None:
            results.append(GateResult(gate.name, gate.text, None, *_absent(gate, metrics)))
        else:
            outcome = "passed" if _COMPARE[gate.relation](value, gate.limit) else "failed"
            results.append(GateResult(gate.name, gate.text, value, outcome, _missing_truth(gate.name, values)))
    return results


@dataclass(frozen=True)
class Reference:
    """What the gates of a test compare it with."""

    name: str
    """The baseline's."""
    runs: Sequence[SavedRun]

    def of_test(self, test: SavedTest) -> list[SavedRun]:
        """The runs that have the test, with nothing else in them: those of its machine, where there are any."""
        found = [(run, one) for run in self.runs for one in run.tests if one.id == test.id]
        same = [(run, one) for run, one in found if other_machine(one.machine, test.machine) is None]
        return [replace(run, tests=[one], configs={}) for run, one in same or found]

    def why_not(self, test: str) -> str:
        """That the test is missing, and the nearest that is not."""
        known = dict.fromkeys(one.id for run in self.runs for one in run.tests)
        return f"the baseline {self.name} has no test {test}{nearest(test, known)}"


def judge_changes(
    gates: Sequence[ChangeGate],
    metrics: Metrics,
    test: SavedTest,
    reference: Reference | None,
    terms: Terms,
    declarations: Sequence[Declaration],
) -> tuple[list[GateResult], bool]:
    """Hold the metrics of *test* against those of the baseline.

    Second: whether more rounds, as `terms.rounds` plans them, may settle a gate that is unclear. What cannot be
    compared is not measured, with the reason.
    """
    values = {**metrics.figures, **(metrics.quality or {})}
    before = reference.of_test(test) if reference is not None else []
    missing = NO_BASELINE if reference is None else reference.why_not(test.id)
    known = [gate for gate in gates if values.get(gate.name) is not None]
    found: dict[str, Row] = {}
    more = False
    if before and known:
        rules = tuple(Rule(gate.name, gate.limit, gate.text) for gate in known)
        after = SavedRun(key="", source="this run", started="", tests=[test], metrics=list(declarations))
        rows, more = compare_test(before, after, dataclasses.replace(terms, rules=rules))
        found = {row.metric: row for row in rows}
    results = []
    for gate in gates:
        value, row = values.get(gate.name), found.get(gate.name)
        if value is None:
            results.append(GateResult(gate.name, gate.text, None, *_absent(gate, metrics)))
        elif row is None:
            results.append(GateResult(gate.name, gate.text, value, "not measured", missing))
        else:
            results.append(_of_row(gate, row))
    return results, more


def _of_row(gate: ChangeGate, row: Row) -> GateResult:
    verdict = row.verdict.value
    if row.verdict in BAD:
        outcome = "failed"
    elif row.verdict is Verdict.NOT_MEASURED:
        outcome = "not measured"
    elif row.not_worse:
        outcome = "passed"
        verdict = f"not {gate.text.rpartition(' ')[2]}" if row.verdict is Verdict.UNCLEAR else verdict
    else:
        outcome = "unclear"
    return GateResult(
        gate.name,
        gate.text,
        row.after,
        outcome,
        _reason(row, outcome),
        verdict=verdict,
        baseline=row.before,
        ratio=row.ratio,
        low=row.low,
        high=row.high,
        level=row.level,
        how=row.how or None,
    )


def _reason(row: Row, outcome: str) -> str | None:
    if outcome != "unclear":
        return row.note.removeprefix(ONE_PROCESS).removeprefix("; ") or None
    advice = "save 3 runs or more, or set gate.process_sd" if "assumed" in row.how else "save more runs"
    return f"{row.how}: {advice}"


def mark_gated(comparison: Comparison, results: Mapping[str, Sequence[GateResult]]) -> None:
    """Let the rows of *comparison* say what the gates said of them; *results* are those of each test."""
    for row in comparison.rows:
        for gate in results.get(row.test, ()):
            if gate.name == row.metric and gate.baseline is not None:
                row.limit, row.failed, row.shown = gate.limit, gate.outcome == "failed", True
                row.ratio, row.low, row.high, row.level = gate.ratio, gate.low, gate.high, gate.level
                if gate.outcome != "failed":
                    row.note = "" if gate.outcome == "unclear" else gate.reason or ""
                if gate.verdict in set(Verdict):
                    row.verdict = Verdict(gate.verdict)
                comparison.gated += 1


def _absent(gate: Gate | ChangeGate, metrics: Metrics) -> tuple[str, str]:
    """The outcome of a gate whose metric has no value, and why."""
    if gate.stages is None or metrics.stage in gate.stages:
        return "not applicable", _why_not(gate.name, metrics)
    if gate.stages:
        return "measured in another stage", ", ".join(gate.stages)
    return "not measured", "no stage of this run measures it"


def _why_not(name: str, metrics: Metrics) -> str:
    if name in (metrics.quality or {}):
        return metrics.quality_reason or "no page has a truth for it"
    if name.startswith("joules_") and metrics.energy is not None and metrics.energy.reason:
        return metrics.energy.reason
    return f"not known for {'a callable' if metrics.kind == 'callable' else 'these pages'} on {metrics.device}"


def _missing_truth(name: str, values: Mapping[str, float | None]) -> str | None:
    """How many pages an error rate is of, where some have no truth: its file may have vanished."""
    scored, truth = values.get("pages"), values.get("truth_pages")
    if name not in ("cer", "wer") or scored is None or truth is None or truth >= scored:
        return None
    return f"only {truth:.0f} of {scored:.0f} pages have truth"
