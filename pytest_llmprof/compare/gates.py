"""Absolute limits on a test's metrics: `@pytest.mark.llmprof_gate(cer="<=0.05", ttft_ms="<=200")`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.metrics import GateResult

__all__ = ["Gate", "judge", "parse_gates"]

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
_LIMIT = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """One limit."""

    name: str
    relation: str
    limit: float

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


def judge(gates: tuple[Gate, ...], values: Mapping[str, float | None]) -> list[GateResult]:
    """Hold the metrics against the gates. A metric that is None is not applicable, and does not fail."""
    results = []
    for gate in gates:
        value = values.get(gate.name)
        if value is None:
            outcome = "not applicable"
        else:
            outcome = "passed" if _COMPARE[gate.relation](value, gate.limit) else "failed"
        results.append(GateResult(gate.name, gate.text, value, outcome))
    return results
