"""Absolute limits on a test's figures: `@pytest.mark.llmprof_gate(cer="<=0.05", ttft_ms="<=200")`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from pytest_llmprof.errors import ConfigError, nearest
from pytest_llmprof.measure.figures import FIGURE_NAMES
from pytest_llmprof.quality.score import Quality

__all__ = ["GATE_NAMES", "Gate", "Verdict", "judge", "parse_gates"]

GATE_NAMES = (*FIGURE_NAMES, *(item.name for item in fields(Quality)))
"""Every figure a gate can name: the words of metrics.json."""

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


@dataclass(frozen=True)
class Verdict:
    """What came of a gate. A figure that is None is not applicable, and does not fail."""

    name: str
    limit: str
    figure: float | None
    outcome: str
    """passed | failed | not applicable"""


def parse_gates(limits: Mapping[str, object], where: str) -> tuple[Gate, ...]:
    """Read a marker's keyword arguments. Raises `ConfigError` naming *where* the marker stands."""
    gates = []
    for name, limit in limits.items():
        if name not in GATE_NAMES:
            raise ConfigError(
                f"llmprof_gate({name}=...) at {where}: there is no figure of this name{nearest(name, GATE_NAMES)}; "
                f"allowed: {', '.join(GATE_NAMES)}"
            )
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        if match is None:
            raise ConfigError(
                f'llmprof_gate({name}={limit!r}) at {where}: a limit is a text such as "<=0.05" or ">=100"'
            )
        gates.append(Gate(name, match[1], float(match[2])))
    return tuple(gates)


def judge(gates: tuple[Gate, ...], figures: Mapping[str, float | None]) -> list[Verdict]:
    """Hold the figures against the gates."""
    verdicts = []
    for gate in gates:
        figure = figures.get(gate.name)
        if figure is None:
            outcome = "not applicable"
        else:
            outcome = "passed" if _COMPARE[gate.relation](figure, gate.limit) else "failed"
        verdicts.append(Verdict(gate.name, gate.text, figure, outcome))
    return verdicts
