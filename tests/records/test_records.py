"""metrics.json and its neighbours: written and read as records."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET, Struct

from pytest_llmprof.errors import ArtifactError, StageError
from pytest_llmprof.records.catalogue import BUILTIN, Declaration
from pytest_llmprof.records.environment import Environment, Git, Gpu, Host
from pytest_llmprof.records.files import decode_record, read_bytes, write_json
from pytest_llmprof.records.metrics import (
    DatasetInfo,
    Energy,
    ErrorRecord,
    Fingerprint,
    GateResult,
    Metrics,
    ModelInfo,
    Peak,
    RoundEnergy,
    Sample,
    Spread,
)
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords


class Rows(Struct):
    """A stage's block."""

    rows: list[int]
    note: str | None = None


@pytest.fixture
def metrics() -> Metrics:
    sample = Sample(
        round=0, page="a", batch_id=0, tokens=5, ttft_ms=1.0, tpot_ms=None, total_ms=9.0, other_ms=0.5,
        phases={"decode": 8.0}, peak_bytes=None,
    )  # fmt: skip
    return Metrics(
        test="test_it/test_pages",
        id="test_it.py::test_pages",
        stage="mine",
        kind="pages",
        status="error",
        errors=[ErrorRecord("b", "cannot read b.png")],
        rounds=1,
        pages=1,
        samples=[sample],
        round_seconds=[0.009],
        phase_peaks={"decode": Peak(1, 2)},
        energy=Energy(update_s=0.1, rounds=[RoundEnergy(None, 0.2, "too short")]),
        figures={"ttft_ms": 1.0, "tpot_ms": None},
        spread={"ttft_ms": Spread(min=1.0, max=1.0, p50=1.0, p90=1.0, iqr=None)},
        quality={"cer": None, "pages": 1},
        quality_reason="the weights are random",
        gates=[GateResult("ttft_ms", "<=2", 1.0, "passed")],
        model=ModelInfo("tiny", "random", "random:tiny:0", 10, "cpu", "float32", "tiny", "reference", {"size": 2}),
        dataset=DatasetInfo("pages", "sha256:1", 2),
        fingerprint=Fingerprint(device="cpu", versions={"torch": "2.11.0", "triton": None}),
    )


@pytest.fixture
def environment() -> Environment:
    gpu = Gpu("H100", "GPU-1", throttle_reasons=("gpu_idle",), other_processes=0, throttled_ms={"power": 2.5})
    git = Git("4d93b1440cf26c9284e97da972b4f22330b3f9a0", dirty=True)
    return Environment(python="CPython 3.12.3", versions={"triton": None}, host=Host(cores=8), git=git, gpu=gpu)


def test_a_stage_comes_back_as_it_was_written(tmp_path: Path, metrics: Metrics, environment: Environment) -> None:
    StageRecords(metrics, {"mine": Rows([1, 2]), "profile": None}, environment).write(tmp_path)
    read = StageRecords.read(tmp_path)
    assert (read.metrics, read.environment) == (metrics, environment)
    assert list(read.blocks) == ["mine", "profile"]
    assert read.block("mine", Rows) == Rows([1, 2])
    assert read.block("profile", Rows) is read.block("missing", Rows) is None


def test_optional_parts_may_be_missing(tmp_path: Path, metrics: Metrics) -> None:
    StageRecords(metrics).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert "p99" not in json.loads((tmp_path / "metrics.json").read_text())["spread"]["ttft_ms"]
    assert StageRecords.read(tmp_path).metrics.spread["ttft_ms"].p99 is UNSET
    least = {"test": "t", "id": "test_it.py::t", "stage": "mine", "kind": None, "status": "ok"}
    write_json(tmp_path / "metrics.json", {"schema": 1, **least})
    assert StageRecords.read(tmp_path) == StageRecords(msgspec.convert(least, Metrics))


def test_the_run_comes_back_with_its_catalogue() -> None:
    run = RunRecord(
        status="complete",
        argv=["pytest"],
        started="2026-01-01T00:00:00+00:00",
        versions={"torch": None},
        metrics=[metric.declaration for metric in BUILTIN],
        tests=[TestRecord("test_it.py::test", "mine", None, "failed", None, "no page could be read")],
    )
    assert decode_record(msgspec.json.encode(run), RunRecord, 1, "run.json") == run
    assert all(type(metric) is Declaration for metric in run.metrics)


def test_a_block_is_decoded_only_when_a_reader_asks(tmp_path: Path, metrics: Metrics) -> None:
    StageRecords(metrics, {"mine": {"rows": [3], "later": "a newer version's"}}).write(tmp_path)
    read = StageRecords.read(tmp_path)
    assert isinstance(read.blocks["mine"], msgspec.Raw)
    assert read.block("mine", Rows) == Rows([3])
    assert read.block("mine", TestRecord) is None  # another plugin's block of this name
    read.write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["mine"] == {"rows": [3], "later": "a newer version's"}


@pytest.mark.parametrize("given", [Rows([1], "x"), {"rows": [1], "note": "x"}])
def test_a_block_in_memory_reads_as_one_from_a_file(metrics: Metrics, given: object) -> None:
    records = StageRecords(metrics, {"mine": given})
    assert records.block("mine", Rows) == Rows([1], "x")
    assert records.block("mine", TestRecord) is None


@pytest.mark.parametrize("name", ["figures", "schema", "quality_reason"])
def test_a_block_of_a_taken_name_is_refused(tmp_path: Path, metrics: Metrics, name: str) -> None:
    with pytest.raises(StageError, match=f"^the stage mine adds a block '{name}': metrics.json has it already$"):
        StageRecords(metrics, {"mine": Rows([]), name: {}}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def refused(stage_dir: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        StageRecords.read(stage_dir)
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["metrics.json", "environment.json"])
def test_a_newer_schema_is_refused(
    tmp_path: Path, metrics: Metrics, environment: Environment, name: str
) -> None:
    StageRecords(metrics, {}, environment).write(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    # A newer schema may have another shape altogether: its number alone is read.
    write_json(tmp_path / name, {**content, "schema": 2, "errors": "elsewhere", "host": []})
    assert refused(tmp_path) == (
        f"{tmp_path / name} has schema 2, and this pytest-llmprof reads up to 1: install a newer pytest-llmprof"
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"schema": 1} {}', b"not JSON\nat all", b'{"schema": 1, "test": "\xff"}']
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    assert refused(tmp_path).startswith(f"{tmp_path / 'metrics.json'} is not JSON: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"figures": [1]}, "Expected `object`, got `array` - at `$.figures`"),
        ({"samples": [{"round": 0}]}, "missing required field `page` - at `$.samples[0]`"),
        ({"rounds": "three"}, "Expected `int`, got `str` - at `$.rounds`"),
        ({"schema": "1"}, "Expected `int`, got `str` - at `$.schema`"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, metrics: Metrics, change: dict[str, object], reason: str) -> None:
    write_json(tmp_path / "metrics.json", msgspec.to_builtins(metrics) | change)
    text = refused(tmp_path)
    assert text.startswith(f"{tmp_path / 'metrics.json'} is not a file of this kind: ")
    assert reason in text


@pytest.mark.parametrize(("content", "reason"), [("[1]", "Expected `object`"), ("{}", "missing required field")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    assert reason in refused(tmp_path)


def test_a_missing_metrics_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"cannot read {tmp_path / 'metrics.json'}: No such file or directory"


# Readers raise their own errors.

FOREIGN = {
    "invalid UTF-8 in a value": b'{"schema": 1, "test": "\xff"}',
    "invalid UTF-8 in a name": b'{"schema": 1, "\xff": 3}',
    "a lone surrogate": b'{"schema": 1, "test": "\\ud800"}',
    "nested too deep": b'{"schema": 1, "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested too deep in a field": b'{"schema": 1, "samples": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "nothing": b"",
    "another type": b'{"schema": "one"}',
    "a number beyond 64 bits": b'{"schema": 99999999999999999999999}',
    "UTF-16": '{"schema": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_shape_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(FOREIGN[what])
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        StageRecords.read(tmp_path)


@pytest.mark.parametrize("block", [b'{"rows": [1], "note": "\xff"}', b'{"rows": ' + b"[" * 100_000, b"[]", b"3"])
def test_a_block_of_another_shape_is_none(block: bytes, metrics: Metrics) -> None:
    assert StageRecords(metrics, {"mine": msgspec.Raw(block)}).block("mine", Rows) is None


def test_an_invalid_name_beside_the_fields_is_refused(metrics: Metrics, tmp_path: Path) -> None:
    data = msgspec.json.encode(metrics)[:-1] + b', "\xff": 3}'
    (tmp_path / "metrics.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"metrics\.json is not JSON"):
        StageRecords.read(tmp_path)


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path, link: bool) -> None:
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if link:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    with pytest.raises(ArtifactError, match="it is not a regular file"):
        write_json(path, {})
    assert pipe.is_fifo()
    assert path.is_symlink() == link


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "environment.json")
    with pytest.raises(ArtifactError, match="it is a pipe"):
        read_bytes(tmp_path / "environment.json")


def test_a_path_with_a_null_character_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        read_bytes(Path("a\0b"))
