"""What the harness itself costs, side by side with a bare loop in one process.

It prints a table and writes overhead.json and overhead.md to the stage directory. Nothing is asserted about speed:
the ratios are for reading, on a quiet machine.
"""

import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sweep import publish

import pytest_llmprof.analysis  # noqa: F401 - loaded here, so that it is not in the stage's cost and memory
from pytest_llmprof.measure.phases import DOMAIN, WARMUP_DOMAIN, PhaseRecorder
from pytest_llmprof.models.base import NoPhases
from pytest_llmprof.stages.base import StageContext, StageResult
from pytest_llmprof.stages.torch_profiler import profile_window
from pytest_llmprof.stages.workloads import PagesWorkload

ROUNDS = 5
SHORT, LONG = 64, 2048

READ_ALONE = """
import gzip, json, sys, time
from pathlib import Path
from pytest_llmprof.analysis import profile_summary, read_trace
def memory(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
read_trace(b'{"traceEvents": []}')
raw = gzip.decompress(Path(sys.argv[1]).read_bytes())
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
begin = time.perf_counter()
trace = read_trace(raw)
read = time.perf_counter() - begin
profile_summary(trace)
print(json.dumps({"events": trace.events, "read_s": read, "growth": 1 + (memory("VmHWM") - before) / len(raw)}))
"""
"""Reads a trace in a process of its own, on Linux; the growth of its memory counts the raw trace as 1."""


@pytest.mark.llmprof(overrides=["dataset.limit=1", f"infer.max_new_tokens={SHORT}", "infer.ignore_eos=true"])
def test_overhead(llmprof_config, llmprof_model, llmprof_dataset, llmprof_artifacts, llmprof_stage, capsys):
    settings = replace(llmprof_config, stage="torch_profiler")
    out_dir = llmprof_artifacts.begin(llmprof_stage)
    bench = Bench(settings, llmprof_model, llmprof_dataset, out_dir)
    bench.workload.warmup(1, bench.recorder(WARMUP_DOMAIN))
    bench.bare()

    before = bench.alternate()
    profile, growth = bench.profile()
    after = bench.alternate()
    stage = {SHORT: [], LONG: []}
    for tokens in (SHORT, LONG, LONG, SHORT):
        stage[tokens].append(bench.profile(tokens)[0]["stage_cost_s"])
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(out_dir / "trace.json.gz")], capture_output=True, text=True, check=True
    )
    alone = json.loads(done.stdout)

    found = {
        "device": bench.workload.device,
        "engine": llmprof_model.info.engine,
        "parameters": llmprof_model.info.parameters,
        "rounds": ROUNDS,
        "before": before,
        "after": after,
        "profile": {name: value for name, value in profile.items() if name.endswith("_s") or name == "trace_bytes"},
        "events": profile["events"],
        "process_growth_over_trace": growth,
        "read_alone": alone,
        "stage_cost_s": {str(tokens): costs for tokens, costs in stage.items()},
    }
    publish(out_dir, "overhead", found, markdown(found), capsys)
    assert before["bare"] > 0
    assert alone["events"] == profile["events"]


class Bench:
    """One page through one model, with the harness and without."""

    def __init__(self, settings, model, pages, out_dir):
        self.settings, self.model, self.out_dir = settings, model, out_dir
        self.image = pages[0].load()
        self.workload = PagesWorkload(
            model,
            pages[:1],
            settings.infer,
            on_answer=lambda *_: None,
            on_failure=lambda *facts: pytest.fail(str(facts[-1])),
            progress=lambda text: None,
        )

    def recorder(self, domain):
        return PhaseRecorder(self.workload.device, domain=domain)

    def bare(self):
        """The model's own loop; milliseconds."""
        begin = time.perf_counter_ns()
        for _ in self.model.generate([self.image], self.settings.infer, NoPhases()):
            pass
        return (time.perf_counter_ns() - begin) / 1e6

    def alternate(self):
        """Bare and measured rounds in turn; medians of both in milliseconds, and of the ratios of neighbours."""
        recorder = self.recorder(DOMAIN)
        bare, measured = [], []
        for number in range(ROUNDS):
            bare.append(self.bare())
            (sample,), _ = self.workload.round(number, recorder)
            measured.append(sample.total_ms)
        ratios = [one / other for one, other in zip(measured, bare, strict=True)]
        return {
            "bare": statistics.median(bare),
            "measured": statistics.median(measured),
            "overhead": statistics.median(ratios) - 1,
        }

    def profile(self, tokens=SHORT):
        """The profiler's part of the stage for answers of *tokens*; its figures and the process's growth."""
        infer = replace(self.settings.infer, max_new_tokens=tokens)
        self.workload.infer = infer
        context = StageContext(
            settings=replace(self.settings, infer=infer),
            out_dir=self.out_dir,
            workload=self.workload,
            recorder=self.recorder,
            progress=lambda text: None,
            result=StageResult(),
        )
        with peak_memory() as peak:
            profile = profile_window(context)
        self.workload.infer = self.settings.infer
        return profile, peak[0] / profile["trace_bytes"]


@contextmanager
def peak_memory():
    """Bytes by which this process's memory grew at most inside the block (Linux)."""
    status, found = Path("/proc/self/status"), []

    def read(name):
        return int(status.read_text().split(f"{name}:")[1].split()[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = read("VmRSS")
    yield found
    found.append(read("VmHWM") - before)


def markdown(found):
    """The figures as a table."""
    before, after, profile, alone = found["before"], found["after"], found["profile"], found["read_alone"]
    costs = profile["stage_costs_s"]
    short, long = (statistics.median(found["stage_cost_s"][str(tokens)]) for tokens in (SHORT, LONG))
    unload = profile["profiler_unload_s"]
    rows = [
        ("bare loop, ms a page", f"{before['bare']:.2f}"),
        ("measured round, ms a page", f"{before['measured']:.2f}"),
        ("measured over bare", f"{before['overhead']:+.2%}"),
        ("bare loop after a profile, over before", f"{after['bare'] / before['bare'] - 1:+.2%}"),
        ("measured round after a profile, over before", f"{after['measured'] / before['measured'] - 1:+.2%}"),
        ("profiler's first start, s", f"{profile['profiler_load_s']:.3f}"),
        ("profiler's end, s", "stays loaded" if unload is None else f"{unload:.3f}"),
        ("profiler's part of the stage, s", f"{profile['stage_cost_s']:.3f}"),
        *((f"of it {name}, s", f"{seconds:.3f}") for name, seconds in costs.items()),
        ("trace, MB", f"{profile['trace_bytes'] / 1e6:.1f}"),
        ("events", f"{found['events']:,}"),
        ("reading alone, events/s", f"{alone['events'] / alone['read_s']:,.0f}"),
        ("memory for reading alone / trace", f"{alone['growth']:.2f}"),
        ("growth of the process / trace", f"{found['process_growth_over_trace']:.2f}"),
        (f"profiler's part at {SHORT} tokens, s", f"{short:.3f}"),
        (f"profiler's part at {LONG} tokens, s", f"{long:.3f}"),
        (f"{LONG} over {SHORT} tokens", f"{long / short - 1:+.2%}"),
    ]
    head = f"{found['device']}, engine {found['engine']}, {found['parameters'] / 1e6:.1f} M parameters"
    lines = [f"| {head} | |", "|:--|--:|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"
