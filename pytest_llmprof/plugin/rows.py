"""What one test measured, as it travels from the process that ran it to the controller."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmprof.errors import text_of
from pytest_llmprof.records.metrics import GateResult, gate_texts
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.findings import machine_warnings, page_notes

if TYPE_CHECKING:
    import pytest


class Row(msgspec.Struct):
    """A test's line in the summary and its entry in benchmark.json."""

    id: str
    name: str
    """The node id without the stage."""
    stage: str
    kind: str | None
    dir: str
    """The stage directory under the run directory."""
    values: dict[str, float | None]
    """Metrics by name."""
    quality_reason: str | None
    machine_warnings: list[str]
    """What the host or the GPU did to the times."""
    gate_notes: list[str]
    """Gates without a value, those of which a part has none, and those that are unclear."""
    round_seconds: list[float]
    iterations: int
    """Calls a round."""
    params: dict[str, Any]
    param: str
    group: str | None
    """From pytest-benchmark's marker."""
    xdist_workers: int | None
    """Number of workers, where it ran beside others."""
    gates: list[GateResult] = []
    """Those against a baseline."""
    page_notes: list[str] = []
    """Files that were left out, and pages that were allowed to fail."""

    @classmethod
    def of(cls, item: pytest.Item, name: str, stage: str, dir: str, records: StageRecords, *, timed: bool) -> Row:
        """What *item* measured; without rounds where they are not *timed*."""
        metrics = records.metrics
        callspec = item.callspec  # type: ignore[attr-defined]
        worker = getattr(item.config, "workerinput", None)
        benchmark = item.get_closest_marker("benchmark")
        return cls(
            id=item.nodeid,
            name=name,
            stage=stage,
            kind=metrics.kind,
            dir=dir,
            values={**metrics.figures, **(metrics.quality or {})},
            quality_reason=metrics.quality_reason,
            machine_warnings=machine_warnings(metrics, records.environment, brief=True),
            gate_notes=gate_texts(
                (
                    gate
                    for gate in metrics.gates
                    if gate.reason
                    and gate.outcome != "measured in another stage"
                    and (gate.verdict is None or gate.outcome in ("unclear", "not measured"))
                ),
                prefix=True,
            ),
            round_seconds=metrics.round_seconds if timed else [],
            iterations=metrics.iterations,
            params={name: _param(value) for name, value in callspec.params.items()},
            param=callspec.id,
            group=str(benchmark.kwargs["group"]) if benchmark and "group" in benchmark.kwargs else None,
            xdist_workers=None if worker is None else worker["workercount"],
            gates=[gate for gate in metrics.gates if gate.verdict is not None],
            page_notes=page_notes(metrics),
        )

    @property
    def extra_info(self) -> dict[str, Any]:
        """The `extra_info` of pytest-benchmark: the metrics that are known."""
        known: dict[str, Any] = {name: value for name, value in self.values.items() if value is not None}
        return known | ({"xdist_workers": self.xdist_workers} if self.xdist_workers is not None else {})

    def encode(self) -> dict[str, Any]:
        """The row as plain data, which xdist can send."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Row:
        """The row of `encode`."""
        return msgspec.convert(data, cls)


def _param(value: object) -> object:
    """A parameter as JSON: all but numbers, bools and None becomes text."""
    if (type(value) is float and math.isfinite(value)) or type(value) in (bool, int, type(None)):
        return value
    return text_of(value)
