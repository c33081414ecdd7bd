"""Runs as they are compared: made of a run directory, a saved run, or a file of pytest-benchmark."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.compare.kernels import read_kernels
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records import baseline, run
from pytest_llmprof.records.baseline import SavedMachine, SavedPage, SavedRun, SavedTest
from pytest_llmprof.records.catalogue import BUILTIN, CALLABLE
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.files import NOT_JSON, decode_record, read_bytes
from pytest_llmprof.records.metrics import CONTENDED_ROUNDS, Metrics
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import count, number

MACHINE = "llmprof_machine"
"""The machine of a benchmark in a joined file of pytest-benchmark, in its `extra_info`, where there are several."""
CONTENDED = "the host was contended"
"""How a doubt begins that an A/B job need not have: its pairs share it, and its control shows what it does."""
_CONFIGS = 20
"""Configurations that are read of a run: YAML is slow."""
_THROTTLED = 0.01
"""Share of the rounds for which the driver counted throttling."""


def places(path: Path) -> list[Path]:
    """The directory or file of each run at *path*: a run directory, a directory of them, a saved run, or a file of
    pytest-benchmark. Raises `ArtifactError` where there is none."""
    try:
        if path.is_file() or (path / "run.json").exists():
            return [path]
        if not path.is_dir():
            raise ArtifactError(f"there is no run at {path}: name a run directory, a saved run or a JSON file")
        # A link such as `latest` would bring a run twice.
        found = sorted(one for one in path.iterdir() if not one.is_symlink() and (one / "run.json").exists())
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}") from error
    if not found:
        raise ArtifactError(f"{path} holds no run: there is no run.json in it, nor in a directory below")
    return found


def read_place(place: Path) -> SavedRun:
    """The run of one of `places`. Raises `ArtifactError` with one line where it cannot be read."""
    return read_run(place) if place.is_file() else saved_run(place)


class _Benchmark(msgspec.Struct):
    fullname: str
    stats: dict[str, Any]
    extra_info: dict[str, Any] = {}


class _Cpu(msgspec.Struct, frozen=True):
    brand_raw: str | None = None
    count: int | None = None


class _Machine(msgspec.Struct, frozen=True):
    cpu: _Cpu = _Cpu()


class _BenchmarkFile(msgspec.Struct):
    benchmarks: list[_Benchmark]
    machine_info: _Machine = _Machine()
    datetime: str = ""


def read_run(path: Path) -> SavedRun:
    """A saved run, or a file of pytest-benchmark. Raises `ArtifactError` with one line."""
    data = read_bytes(path)
    if not data.strip():
        raise ArtifactError(f"{path} is empty: it is neither a saved run nor a file of pytest-benchmark")
    try:
        found = msgspec.json.decode(data, type=_BenchmarkFile)
    except msgspec.ValidationError:
        return decode_record(data, SavedRun, baseline.SCHEMA, path)
    except NOT_JSON as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    return _of_benchmark(found, path)


def _of_benchmark(file: _BenchmarkFile, path: Path) -> SavedRun:
    machine = SavedMachine(cpu=file.machine_info.cpu.brand_raw, cores=file.machine_info.cpu.count)
    tests = []
    for one in file.benchmarks:
        middle, spread, rounds = (one.stats.get(name) for name in ("median", "iqr", "rounds"))
        if not isinstance(middle, int | float) or not isinstance(rounds, int) or not 0 < middle < 1e300:
            raise ArtifactError(f"{path}: the benchmark {one_line(one.fullname)} has no median above 0 and its rounds")
        noise = {"round_s": spread / middle} if isinstance(spread, int | float) and rounds > 1 else {}
        tests.append(
            SavedTest(
                id=one.fullname,
                stage="pytest-benchmark",
                kind=CALLABLE,
                rounds=rounds,
                figures={"round_s": float(middle)},
                noise=noise,
                machine=_own_machine(one, path) or machine,
            )
        )
    found = SavedRun(
        key=_key(file.datetime, "", ([one.stats["median"]] for one in file.benchmarks)),
        source=str(path),
        started=file.datetime,
        machine=machine_name(machine),
        metrics=[metric.declaration for metric in BUILTIN if metric.name == "round_s"],
        tests=tests,
    )
    found.machine = " + ".join(machines_of(found)) or found.machine
    return found


def _own_machine(one: _Benchmark, path: Path) -> SavedMachine | None:
    if MACHINE not in one.extra_info:
        return None
    try:
        return msgspec.convert(one.extra_info[MACHINE], SavedMachine)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path}: {MACHINE} of the benchmark {one_line(one.fullname)}: {error}") from error


class _TestTime(msgspec.Struct):
    id: str
    seconds: float | None = None


class _TestTimes(msgspec.Struct):
    """The part of run.json and of a saved run that says how long its tests took."""

    tests: list[_TestTime]


def read_seconds(places: Iterable[Path]) -> dict[str, float]:
    """The wall time of each test of the runs at *places*, the newest first: of a test the newest that is known.

    Raises `ArtifactError` where a file is no run's.
    """
    found: dict[str, float] = {}
    for place in places:
        path = place if place.is_file() else place / "run.json"
        newest = baseline.SCHEMA if place.is_file() else run.SCHEMA
        for test in decode_record(read_bytes(path), _TestTimes, newest, path).tests:
            if test.seconds is not None:
                found.setdefault(test.id, test.seconds)
    return found


def saved_run(directory: Path) -> SavedRun:
    """Read a run directory. Raises `ArtifactError` with one line where a file is missing, broken or newer."""
    record = RunRecord.read(directory)
    saved = SavedRun(
        key="",
        source=str(directory),
        started=record.started,
        status=record.status,
        metrics=record.metrics,
    )
    seconds = []
    for test in record.tests:
        records = _records(directory, test)
        seconds.append(records.metrics.round_seconds if records else [])
        saved.tests.append(msgspec.structs.replace(_saved_test(directory, test, records), seconds=test.seconds))
        if records and test.dir:
            _add_config(saved, records.metrics.fingerprint.config, directory / test.dir / "config.yaml")
            if records.environment and saved.git is None:
                saved.git = records.environment.git
    saved.key = _key(record.started, record.session, seconds)
    saved.machine = " + ".join(machines_of(saved)) or machine_name(None)
    return saved


def machines_of(saved: SavedRun) -> list[str]:
    """The machines that its tests ran on: several where shards were joined, or workers sat on several hosts.

    With a GPU in the run, those with a GPU: tests of the CPU beside it make no second machine.
    """
    known = [test.machine for test in saved.tests if test.machine != SavedMachine()]
    with_gpu = [machine for machine in known if machine.gpu]
    return sorted({machine_name(machine) for machine in with_gpu or known})


def by_machine(saved: SavedRun) -> list[SavedRun]:
    """The run as one for each of its machines, so that the store never holds two under one name.

    Tests without a machine of these, such as those that failed, go with the first.
    """
    names = machines_of(saved)
    if len(names) < 2:
        return [saved]
    owners = [machine_name(test.machine) for test in saved.tests]
    return [
        msgspec.structs.replace(
            saved,
            key=part_key(saved.key, name),
            machine=name,
            tests=[
                test
                for test, owner in zip(saved.tests, owners, strict=True)
                if owner == name or (owner not in names and name == names[0])
            ],
        )
        for name in names
    ]


def part_key(key: str, machine: str) -> str:
    """The key of the part of a run that is of *machine*."""
    return f"{key}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"


def whole_key(key: str) -> str:
    """The key of the run that a saved run is a part of, or is."""
    return key.partition("-")[0]


def _key(started: str, session: str, seconds: Iterable[Iterable[float]]) -> str:
    """Sessions tell runs apart that began in the same second; of pytest-benchmark's, measured times do."""
    text = msgspec.json.encode([started, session, [list(one) for one in seconds]])
    return hashlib.sha256(text).hexdigest()[:16]


def machine_name(machine: SavedMachine | None) -> str:
    """What a machine is called in the store."""
    if machine is None:
        return "unknown"
    return machine.gpu or f"{machine.cpu or 'cpu'}, {count(machine.cores or 0, 'core')}"


def _records(directory: Path, test: TestRecord) -> StageRecords | None:
    if test.dir is None or not (directory / test.dir / "metrics.json").exists():
        return None
    return StageRecords.read(directory / test.dir)


def _saved_test(directory: Path, test: TestRecord, records: StageRecords | None) -> SavedTest:
    if records is None:
        why = one_line(test.error) if test.error else f"the test {test.outcome} without measuring"
        if test.error is None and test.kind is not None:  # it has measured
            why = f"its {one_line(test.dir or 'directory')} has no metrics.json: copy the whole run directory"
        return SavedTest(id=test.id, stage=test.stage, kind=test.kind, problem=why)
    return saved_test(records, directory / (test.dir or ""))


def saved_test(records: StageRecords, stage_dir: Path) -> SavedTest:
    """A test as it is compared. Raises `ArtifactError` where a file of its stage directory is broken."""
    metrics = records.metrics
    problem: str | None = None
    if metrics.status != "ok":
        first = metrics.errors[0] if metrics.errors else None
        page = f"page {first.page}: " if first and first.page else ""
        problem = one_line(f"{page}{first.error}") if first else f"its status is {metrics.status}"
    return SavedTest(
        id=metrics.id,
        stage=metrics.stage,
        kind=metrics.kind,
        problem=problem,
        doubts=_doubts(metrics, records.environment),
        duet=records.environment is not None and records.environment.duet,
        rounds=metrics.rounds,
        figures=dict(metrics.figures),
        quality=dict(metrics.quality or {}),
        noise=_noise(metrics),
        engine=metrics.model.engine if metrics.model else None,
        fingerprint=metrics.fingerprint,
        machine=_machine(records.environment),
        pages=_pages(metrics, stage_dir),
        kernels=read_kernels(stage_dir / "kernels.csv"),
    )


def _noise(metrics: Metrics) -> dict[str, float]:
    """Of each metric, the rounds' interquartile range over its value."""
    found = {}
    for name, spread in metrics.spread.items():
        value = metrics.figures.get(name)
        if spread.iqr is not None and value and math.isfinite(value):
            found[name] = spread.iqr / abs(value)
    return found


def _machine(environment: Environment | None) -> SavedMachine:
    if environment is None:
        return SavedMachine()
    host, gpu = environment.host, environment.gpu
    cores = host.affinity or host.cores
    if gpu is None:
        return SavedMachine(cpu=host.cpu, cores=cores)
    return SavedMachine(gpu.name, gpu.power_limit_w, gpu.sm_clock_max_mhz, host.cpu, cores)


def shared_gpu(metrics: Metrics, environment: Environment | None) -> str | None:
    """That other workers of the run used the GPU of this test; None where they did not."""
    workers = environment.other_workers(metrics.device) if environment else 0
    if not workers or not metrics.device.startswith("cuda"):
        return None
    return f"{count(workers, 'other worker')} of its run used the GPU (--llmprof-share-gpu)"


def _doubts(metrics: Metrics, environment: Environment | None) -> list[str]:
    contended = metrics.figures.get("contended") or 0.0
    found = [f"{CONTENDED} in {100 * contended:.0f} % of the rounds"] if contended > CONTENDED_ROUNDS else []
    if environment is None:
        return found
    if shared := shared_gpu(metrics, environment):
        found.append(shared)
    elif workers := environment.other_workers(metrics.device):
        found.append(f"{CONTENDED} by {count(workers, 'other worker')} of its run")
    readings = [gpu for gpu in (environment.gpu, environment.gpu_after) if gpu is not None]
    others = max((gpu.other_processes or 0 for gpu in readings), default=0)
    if others and not shared:  # which are those workers
        found.append(f"{count(others, 'other process', 'other processes')} used the GPU")
    causes = {one_line(cause): None for gpu in readings if gpu.throttled for cause in gpu.throttle_reasons or ()}
    measured = 1000 * sum(metrics.round_seconds)
    for cause, held in (environment.gpu_throttled_ms or {}).items():
        if measured and held > _THROTTLED * measured:
            causes[f"{one_line(cause)} for {number(held / 1000)} s"] = None
    if causes:
        found.append(f"the GPU was throttled ({', '.join(causes)})")
    return found


class _Answer(msgspec.Struct):
    """The part of a line of predictions.jsonl that is compared."""

    page: str
    text_raw: str = ""
    tokens: int = 0
    cer: float | None = None
    status: str = "ok"


_ANSWERS = msgspec.json.Decoder(_Answer)


def _pages(metrics: Metrics, stage_dir: Path) -> dict[str, SavedPage]:
    pages = {sample.page: SavedPage(sample.tokens) for sample in metrics.samples if sample.round == 0}
    if metrics.kind != "pages":
        return {}
    path = stage_dir / "pred" / "predictions.jsonl"
    if not path.exists():
        path = next(stage_dir.glob("*/predictions.jsonl"), path)
    if path.exists():
        *lines, _ = read_bytes(path).split(b"\n")  # a line that was not ended is not whole
        for place, line in enumerate(lines, 1):
            try:
                answer = _ANSWERS.decode(line)
            except NOT_JSON as error:
                raise ArtifactError(f"{path}, line {place}, is no prediction: {error}") from error
            if answer.status == "ok":
                digest = hashlib.sha256(answer.text_raw.encode("utf-8", "surrogatepass")).hexdigest()[:16]
                pages[answer.page] = SavedPage(answer.tokens, digest, answer.cer)
    return pages


def _add_config(saved: SavedRun, digest: str | None, path: Path) -> None:
    if digest is None or digest in saved.configs or len(saved.configs) >= _CONFIGS:
        return
    config = read_config(path)
    if config is not None:
        saved.configs[digest] = config


def read_config(path: Path) -> dict[str, Any] | None:
    """A config.yaml, flat ("infer.engine"); None where it is missing or no YAML: then only the names of changed keys
    are lost. Raises `ArtifactError` where it cannot be read."""
    if not path.exists():
        return None
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(read_bytes(path), Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return dict(_flat(content, "")) if isinstance(content, dict) else {}


def _flat(block: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
