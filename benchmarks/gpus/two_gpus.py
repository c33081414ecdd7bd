"""Two GPUs of one host in one run of pytest: what is promised of it, each point with its numbers.

    python benchmarks/gpus/two_gpus.py OUT [--rehearse]

1. `-n 2`: each worker on its own GPU, 1.9 times the pages a second of `-n 0` in the same call or more, each worker's
   TPOT within 2 % of the single process's, one run.json and one benchmark.json.
2. `-n 3` is refused; with --llmprof-share-gpu the shared GPU's figures are marked and its gates not measured. A list in
   CUDA_VISIBLE_DEVICES is kept to.
3. A worker that is killed costs the test that it ran, and nothing on the other GPU.
4. A trace of torch.profiler, and a report of nsys where it is installed, name only their worker's GPU.

OUT gets a log and a run directory of each run, and table.md. Exit code 1 where a point does not hold. With --rehearse
GPUs and model are stand-ins (tests/plugin/data/standin_gpus), which shows that this script works and nothing else; the
limits of point 1 are wide, and point 4 is left out. NSYS_LIBS is as in .ci/gpu.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.visible_gpus import VARIABLE, visible_gpus
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.nsys.stage import NSYS
from pytest_llmprof.stages.tools import find_tool
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import number

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "benchmarks" / "gpus" / "pages.py"
STAND_IN = ROOT / "tests" / "plugin" / "data" / "standin_gpus"
LEAST_SPEEDUP, MOST_DISTURBED = 1.9, 0.02
REHEARSED_SPEEDUP, REHEARSED_DISTURBED = 1.2, 0.5
FULL = (
    *("model=deepseek_ocr_random", "infer=fast", "infer.ignore_eos=true"),
    *("infer.max_new_tokens=1024", "measure.rounds=3"),
)
"""Full size, all eight pages, answers as long as those of a full page: with short ones it is the host's preprocessing,
which a virtual machine may run at two speeds, that decides what is to be seen of the GPUs."""
SMALL = (
    *("model=deepseek_ocr_random", "model.size=tiny", "model.mode=tiny", "dataset.limit=2"),
    *("infer.max_new_tokens=32", "infer.ignore_eos=true"),
)
"""For what is not about speed."""
PLAIN = tuple(f"pipeline.direct_inference.output.{kind}.enable=false" for kind in ("prediction", "visualization"))
REHEARSED = ("model=standin", "infer.prompt=free", "dataset.limit=2", "measure.rounds=5", "infer.max_new_tokens=100")
RUN_S = 280.0
"""A run of pytest that takes longer is ended."""


@dataclass
class Ended:
    """A run of pytest that has ended."""

    code: int
    seconds: float
    text: str
    place: Path
    """Where pages.py wrote."""
    run_dir: Path

    @property
    def record(self) -> RunRecord:
        return msgspec.json.decode((self.run_dir / "run.json").read_bytes(), type=RunRecord)

    def test(self, record: TestRecord) -> StageRecords:
        """What a test measured."""
        assert record.dir is not None
        return StageRecords.read(self.run_dir / record.dir)

    @property
    def passed(self) -> list[tuple[TestRecord, StageRecords]]:
        """The tests that passed, with what they measured."""
        return [(record, self.test(record)) for record in self.record.tests if record.outcome == "passed"]

    @property
    def refusal(self) -> str:
        """pytest's one line of a usage error; else its last line."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("ERROR: ")), lines[-1] if lines else "no output")

    def spans(self) -> dict[str, list[tuple[float, float]]]:
        """Begin and end of each measured round (Unix time), by test."""
        files = sorted(self.place.glob("rounds-*.json"))
        return {path.stem.removeprefix("rounds-"): json.loads(path.read_text()) for path in files}


@dataclass
class Proof:
    """All points, and what is needed to run them."""

    out: Path
    rehearse: bool
    gpus: tuple[str, str]
    rows: list[tuple[str, str, bool | None]] = field(default_factory=list)
    """What was looked at, what was found, whether it is as promised; None where it could not be looked at."""

    def note(self, what: str, found: str, holds: bool | None) -> None:
        self.rows.append((what, found, holds))
        print(f"{'--' if holds is None else 'ok' if holds else 'FAILED'}  {what}: {found}", flush=True)

    def start(
        self, name: str, tests: str, args: Sequence[str], overrides: Sequence[str], gpus: Sequence[str] | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start pytest on the tests of pages.py that *tests* (-k) names, on *gpus* (default: both)."""
        place = self.out / f"{name}-files"
        place.mkdir(parents=True)
        given = [word for key in (*overrides, *PLAIN) for word in ("--llmprof-override", key)]
        stage = [] if any(arg.startswith("--llmprof-stage") for arg in args) else ["--llmprof-stage=direct_inference"]
        stand_in = ["-p", "standin_gpus"] if self.rehearse else []
        command = [sys.executable, "-m", "pytest", str(PAGES), "-k", tests, "-q", "--tb=short", *stand_in]
        command += ["-p", "no:cacheprovider", f"--llmprof-run-dir={self.out / name}", *stage, *args, *given]
        environment = dict(os.environ, TWO_GPUS_PLACE=str(place))
        environment[VARIABLE] = ",".join(self.gpus if gpus is None else gpus)
        paths = [str(ROOT), *([str(STAND_IN)] if self.rehearse else []), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with (self.out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return process, place

    def finish(self, name: str, process: subprocess.Popen[bytes], place: Path, begin: float) -> Ended:
        """Wait for its end."""
        try:
            code = process.wait(max(1.0, RUN_S - (time.monotonic() - begin)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        text = (self.out / f"{name}.log").read_text(errors="replace")
        return Ended(code, time.monotonic() - begin, text, place, self.out / name)

    def run(self, name: str, *given: Any, **more: Any) -> Ended:
        """`start`, then `finish`."""
        begin = time.monotonic()
        process, place = self.start(name, *given, **more)
        return self.finish(name, process, place, begin)

    @property
    def full(self) -> Sequence[str]:
        return REHEARSED if self.rehearse else FULL

    @property
    def small(self) -> Sequence[str]:
        return REHEARSED if self.rehearse else SMALL


def uuid_of(records: StageRecords) -> str:
    """The GPU that a test ran on."""
    gpu = records.environment.gpu if records.environment else None
    return (gpu.uuid if gpu else None) or "unknown"


def pages_per_s(ended: Ended, *, at_once: bool) -> float:
    """Pages a second of all tests, from a test's first round to its last, what lies between rounds included; *at_once*:
    the tests ran at the same time, from the first begin to the last end."""
    pages = sum(len(records.metrics.samples) for _, records in ended.passed)
    tests = [(min(begin for begin, _ in spans), max(end for _, end in spans)) for spans in ended.spans().values()]
    if at_once:
        return pages / (max(end for _, end in tests) - min(begin for begin, _ in tests))
    return pages / sum(end - begin for begin, end in tests)


def both_gpus(proof: Proof) -> None:
    """Point 1."""
    alone = proof.run("alone", "same_pages", ["-n", "0"], proof.full, gpus=proof.gpus[:1])
    both = proof.run("both", "same_pages", ["-n", "2"], proof.full)
    for name, ended in (("-n 0", alone), ("-n 2", both)):
        proof.note(f"1 {name} runs", f"exit code {ended.code}, {ended.seconds:.0f} s", ended.code == 0)
    if alone.code or both.code:
        return
    uuids = [uuid_of(records) for _, records in both.passed]
    proof.note("1 each worker on its own GPU", ", ".join(uuids), len(uuids) == len(set(uuids)) == 2)
    speedup, disturbed = LEAST_SPEEDUP, MOST_DISTURBED
    if proof.rehearse:
        speedup, disturbed = REHEARSED_SPEEDUP, REHEARSED_DISTURBED
    one, two = pages_per_s(alone, at_once=False), pages_per_s(both, at_once=True)
    text = f"{two:.2f} / {one:.2f} = {two / one:.3f}, at least {speedup:g}"
    proof.note("1 pages a second, -n 2 / -n 0", text, two / one >= speedup)
    known = {record.id: records.metrics.figures["tpot_ms"] for record, records in alone.passed}
    for name, ended in (("-n 0", alone), ("-n 2", both)):
        for record, records in ended.passed:
            figures = records.metrics.figures
            parts = [f"{metric} {number(figures.get(metric))}" for metric in ("preprocess_ms", "ttft_ms", "total_ms")]
            proof.note(f"1 {name} {record.id.rpartition('::')[2]}", ", ".join(parts), None)
    for record, records in both.passed:
        was, now = known[record.id], records.metrics.figures["tpot_ms"]
        change = now / was - 1 if was and now else float("nan")
        text = f"{was:.4g} → {now:.4g} ms, {change:+.2%}, at most ±{disturbed:.0%}"
        proof.note(f"1 TPOT {record.id.rpartition('::')[2]} on {uuid_of(records)}", text, abs(change) <= disturbed)
    ids = [sorted(record.id for record in ended.record.tests) for ended in (alone, both)]
    whole = ids[0] == ids[1] and both.record.status == "complete"
    proof.note("1 run.json as that of -n 0", f"{len(ids[1])} tests, {both.record.status}", whole)
    compared = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(both.run_dir / "benchmark.json"), "--csv"],
        capture_output=True,
        text=True,
        cwd=proof.out,
    )
    rows = sum("test_same_pages" in line for line in compared.stdout.splitlines())
    proof.note("1 pytest-benchmark compare", f"reads {rows} tests", compared.returncode == 0 and rows >= 2)


def more_workers(proof: Proof) -> None:
    """Point 2."""
    refused = proof.run("three", "gated", ["-n", "3"], proof.small)
    proof.note("2 -n 3", refused.refusal, refused.code == 4 and "--llmprof-share-gpu" in refused.refusal)
    only = proof.run("listed", "gated", ["-n", "2"], proof.small, gpus=proof.gpus[:1])
    proof.note("2 -n 2 with one GPU listed", only.refusal, only.code == 4 and proof.gpus[0] in only.refusal)
    second = proof.run("second", "gated and a-direct", ["-n", "1"], proof.small, gpus=proof.gpus[1:])
    found = [uuid_of(records) for _, records in second.passed]
    proof.note("2 -n 1 with the second GPU listed", ", ".join(found) or second.refusal, second.code == 0)
    shared = proof.run("shared", "gated", ["-n", "3", "--llmprof-share-gpu"], proof.small)
    proof.note("2 -n 3 --llmprof-share-gpu", f"exit code {shared.code}", shared.code == 0)
    if shared.code:
        return
    by_gpu: dict[str, list[StageRecords]] = {}
    for _, records in shared.passed:
        by_gpu.setdefault(uuid_of(records), []).append(records)
    proof.note("2 workers on each GPU", ", ".join(str(len(one)) for one in by_gpu.values()), len(by_gpu) == 2)
    other = next((uuid for uuid in by_gpu if uuid not in found), "")
    proof.note("2 the second GPU listed was another than the first", other, bool(other) and len(found) == 1)
    for uuid, tests in by_gpu.items():
        for records in tests:
            workers = records.environment.workers if records.environment else None
            outcome = records.metrics.gates[0].outcome
            wanted = "not measured" if len(tests) > 1 else "passed"
            text = f"workers on it: {workers.on_gpu if workers else 'unknown'}; gate: {outcome}"
            holds = workers is not None and workers.on_gpu == len(tests) and outcome == wanted
            proof.note(f"2 {records.metrics.id.rpartition('::')[2]} on {uuid}", text, holds)
    marked = shared.text.count("The GPU was shared with 1 other worker of this run")
    proof.note("2 marked in the summary", f"{marked} line(s)", marked > 0)


def killed_worker(proof: Proof) -> None:
    """Point 3."""
    begin = time.monotonic()
    process, place = proof.start("killed", "long", ["-n", "2"], [*proof.small, "measure.rounds=20"])
    until = begin + RUN_S
    while not (begun := sorted(place.glob("begun-*.json"))) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    if begun:
        time.sleep(0.05)  # written whole, and in the middle of the rounds
        os.kill(json.loads(begun[0].read_text())["pid"], signal.SIGKILL)
    ended = proof.finish("killed", process, place, begin)
    if not begun or not (ended.run_dir / "run.json").exists():
        proof.note("3 a worker is killed", ended.refusal, False)
        return
    victim = begun[0].stem.removeprefix("begun-")
    outcomes = {record.id: (record.outcome, record.error) for record in ended.record.tests}
    failed = [name for name, (outcome, _) in outcomes.items() if outcome == "failed"]
    text = f"{', '.join(failed)}: {', '.join(str(outcomes[name][1]) for name in failed)}"
    copy = victim.rpartition("-")[2]
    proof.note("3 the killed worker's test", text, len(failed) == 1 and f"[{copy}-" in failed[0])
    whole = [records for _, records in ended.passed if records.metrics.status == "ok"]
    text = f"{len(whole)} of {len(outcomes) - 1} passed; exit code {ended.code}"
    proof.note("3 all other tests", text, len(whole) == 3 == len(outcomes) - 1 and ended.code == 1)
    uuids = {uuid_of(records) for records in whole}
    proof.note("3 its GPU goes to the worker in its place", ", ".join(sorted(uuids)), len(uuids) == 2)


def own_kernels(proof: Proof) -> None:
    """Point 4."""
    stages, libraries = ["torch_profiler"], os.environ.get("NSYS_LIBS")
    try:
        find_tool(NSYS, None, {})
        stages.append("nsys")
    except StageError as error:
        proof.note("4 nsys", f"not run: {error}", None)
    keys = [f"pipeline.nsys.env={{LD_LIBRARY_PATH: {libraries}}}"] if libraries else []
    ended = proof.run("traced", "traced", ["-n", "2", f"--llmprof-stage={','.join(stages)}"], [*proof.small, *keys])
    proof.note("4 traced runs", f"exit code {ended.code}, {ended.seconds:.0f} s", ended.code == 0)
    seen: dict[str, set[str]] = {}
    for record, records in ended.passed:
        uuid, stage_dir = uuid_of(records), ended.run_dir / str(record.dir)
        seen.setdefault(record.stage, set()).add(uuid)
        read = trace_gpus if record.stage == "torch_profiler" else report_gpus
        kernels, gpus = read(stage_dir)
        text = f"{kernels} kernels on {', '.join(sorted(gpus)) or 'no GPU'}; its worker's is {uuid}"
        holds = kernels > 0 and len(gpus) == 1 and (record.stage != "nsys" or _bare(uuid) in map(_bare, gpus))
        proof.note(f"4 {record.id.rpartition('::')[2]}", text, holds)
    for stage, uuids in seen.items():
        proof.note(f"4 GPUs of {stage}", ", ".join(sorted(uuids)), len(uuids) == 2)


def trace_gpus(stage_dir: Path) -> tuple[int, set[str]]:
    """Kernels in the trace of torch.profiler, and the devices of these and of the trace's own list of devices.

    A process with one visible GPU has device 0 alone; a trace gives no UUID.
    """
    with gzip.open(stage_dir / "trace.json.gz") as stream:
        trace = json.load(stream)
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    devices = {event["args"]["device"] for event in kernels} | {one["id"] for one in trace.get("deviceProperties", ())}
    return len(kernels), {f"device {device}" for device in devices}


def report_gpus(stage_dir: Path) -> tuple[int, set[str]]:
    """Kernels in the reports of nsys, and the GPUs that they ran on: UUIDs where the report has them."""
    kernels, gpus = 0, set()
    for path in sorted(stage_dir.glob("nsys*.sqlite")):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            names = dict(_cuda_devices(database))
            for device, count in database.execute(
                "select deviceId, count(*) from CUPTI_ACTIVITY_KIND_KERNEL group by deviceId"
            ):
                kernels += count
                gpus.add(names.get(device, f"device {device}"))
    return kernels, gpus


def _cuda_devices(database: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    """The UUID of each CUDA device of the process that ran the kernels: another's device 0 may be another GPU."""
    rows = database.execute(
        "select distinct device.cudaId, gpu.uuid from TARGET_INFO_CUDA_DEVICE device "
        "join TARGET_INFO_GPU gpu on device.gpuId = gpu.id "
        "where device.pid in (select (globalPid >> 24) & 0xffffff from CUPTI_ACTIVITY_KIND_KERNEL)"
    )
    yield from ((device, str(uuid)) for device, uuid in rows)


def _bare(uuid: str) -> str:
    """A UUID as it is compared: tools write it with and without GPU- and dashes."""
    return uuid.lower().removeprefix("gpu-").replace("-", "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--rehearse", action="store_true", help="with stand-ins for GPUs and model")
    args = parser.parse_args(argv)
    if args.rehearse:
        os.environ["STANDIN_GPUS"] = "GPU-one GPU-two"
    gpus = ("GPU-one", "GPU-two") if args.rehearse else visible_gpus(os.environ).entries
    if len(gpus) < 2:
        print(f"two_gpus.py needs two GPUs; here: {visible_gpus(os.environ)}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("xdist") is None:
        print("two_gpus.py needs pytest-xdist: pip install pytest-xdist", file=sys.stderr)
        return 2
    try:
        args.out.mkdir(parents=True)
    except OSError as error:
        print(f"cannot make {args.out}: {error.strerror}; name a new directory", file=sys.stderr)
        return 2
    proof = Proof(args.out.resolve(), args.rehearse, (gpus[0], gpus[1]))
    begin = time.monotonic()
    points: list[Callable[[Proof], None]] = [both_gpus, more_workers, killed_worker]
    if not args.rehearse:
        points.append(own_kernels)
    for point in points:
        try:
            point(proof)
        except Exception as error:  # noqa: BLE001 - the other points are run all the same
            proof.note(f"{(point.__doc__ or '').strip('.')}", f"{type(error).__name__}: {error}", False)
    words = {None: "-", True: "yes", False: "NO"}
    cells = [[what, found.replace("|", "\\|"), words[holds]] for what, found, holds in proof.rows]
    text = table(["", "Found", "Holds"], cells, 3)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    failed = sum(holds is False for *_, holds in proof.rows)
    kind = "rehearsed with stand-ins: no result" if args.rehearse else "measured"
    print(f"\n{text}\n\n{kind}; {failed} of {len(proof.rows)} do not hold; {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
