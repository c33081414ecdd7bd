"""A stage directory's records, written and read in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_llmprof.errors import StageError
from pytest_llmprof.records import environment as environment_record
from pytest_llmprof.records import metrics as metrics_record
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.files import NOT_JSON, decode, decode_record, read_bytes, write_json
from pytest_llmprof.records.metrics import Metrics

_Block = TypeVar("_Block")


@dataclass(frozen=True)
class StageRecords:
    """What one test measured in one stage, and where."""

    metrics: Metrics
    blocks: Mapping[str, Any] = field(default_factory=dict)
    """What the stage adds to metrics.json, by key: as it gave it, or still encoded where a file was read."""
    environment: Environment | None = None
    """None where environment.json is missing: a tool that never ran its child leaves none."""

    def block(self, name: str, kind: type[_Block]) -> _Block | None:
        """The block *name* as a *kind* (a Struct or dataclass); None where it is missing, null or of another shape."""
        found = self.blocks.get(name)
        try:
            if isinstance(found, msgspec.Raw):
                return msgspec.json.decode(found, type=kind | None)
            return None if found is None else msgspec.convert(found, kind, from_attributes=True)
        except NOT_JSON:
            return None  # another plugin's block of this name

    def write(self, stage_dir: Path) -> None:
        """Write metrics.json and environment.json."""
        content = msgspec.to_builtins(self.metrics)
        if taken := sorted(set(content).intersection(self.blocks)):
            raise StageError(f"the stage {self.metrics.stage} adds a block {taken[0]!r}: metrics.json has it already")
        if self.environment is not None:
            write_json(stage_dir / "environment.json", self.environment)
        write_json(stage_dir / "metrics.json", {**content, **self.blocks})

    @classmethod
    def read(cls, stage_dir: Path) -> StageRecords:
        """Read a stage directory. Raises `ArtifactError` with one line where a file is missing, broken or newer."""
        path = stage_dir / "metrics.json"
        data = read_bytes(path)
        metrics = decode_record(data, Metrics, metrics_record.SCHEMA, path)
        blocks = {
            name: block
            for name, block in decode(data, path, dict[str, msgspec.Raw]).items()
            if name not in Metrics.__struct_fields__
        }
        place = stage_dir / "environment.json"
        environment = None
        if place.exists():
            environment = decode_record(read_bytes(place), Environment, environment_record.SCHEMA, place)
        return cls(metrics, blocks, environment)

