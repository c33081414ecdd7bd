"""Absolute limits on a test's metrics: `@pytest.mark.llmprof_gate(cer="<=0.05", ttft_ms="<=200")`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.metrics import GateResult, Metrics

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
_LIMIT = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """One limit."""

    name: str
    relation: str
    limit: float
    stages: tuple[str, ...] | None = None
    """The stages of this run that measure the metric; None where that is not known."""

    @property
    def text(self) -> str:
        """The limit as it was written, "<=0.05"."""
        return f"{self.relation}{self.limit:g}"


def parse_gates(limits: Mapping[str, object], where: str, catalogue: Catalogue) -> tuple[Gate, ...]:
    """Read a marker's keyword arguments. Raises `ConfigError` naming *where* the marker stands."""
    allowed = [metric.name for metric in catalogue.shown_in("gate")]
    gates = []
    for name, limit in limits.items():
        if name not in allowed:
            raise ConfigError(f"llmprof_gate({name}=...) at {where}: {catalogue.unknown(name, allowed)}")
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        if match is None:
            raise ConfigError(
                f'llmprof_gate({name}={limit!r}) at {where}: a limit is a text such as "<=0.05" or ">=100"'
            )
        gates.append(Gate(name, match[1], float(match[2])))
    return tuple(gates)


def judge(gates: Sequence[Gate], metrics: Metrics) -> list[GateResult]:
    """Hold the metrics against the gates. A metric without a value fails only in a strict run."""
    values = {**metrics.figures, **(metrics.quality or {})}
    results = []
    for gate in gates:
        value = values.get(gate.name)
        if value is not None:
            outcome = "passed" if _COMPARE[gate.relation](value, gate.limit) else "failed"
            reason = _missing_truth(gate.name, values)
        elif gate.stages is None or metrics.stage in gate.stages:
            outcome, reason = "not applicable", _why_not(gate.name, metrics)
        elif gate.stages:
            outcome, reason = "measured in another stage", ", ".join(gate.stages)
        else:
            outcome, reason = "not measured", "no stage of this run measures it"
        results.append(GateResult(gate.name, gate.text, value, outcome, reason))
    return results


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
