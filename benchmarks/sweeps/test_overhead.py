"""What the harness itself costs, side by side with a bare loop in one process.

It prints a table and writes overhead.json and overhead.md to the stage directory. Nothing is asserted about speed:
the figures are for reading, on a quiet machine. A host drifts by more than what is looked for here, so everything is
measured in turn and each ratio stands beside the same ratio of things that should be equal (its control). Of a page
that the card decodes by itself (the engine `fast`) the decode rows are free of the host's drift. A profiler that is
still there makes every launch slower, so the fastest ones before the first profile and after are compared too.
"""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import msgspec
import pytest
from sweep import markdown, publish

import pytest_llmprof.stages.torch_profiler.kineto  # noqa: F401 - not in the stage's cost and memory
from pytest_llmprof.measure.collector import frozen_garbage_collector
from pytest_llmprof.measure.phases import DOMAIN, WARMUP_DOMAIN, PhaseRecorder
from pytest_llmprof.models.base import NoPhases
from pytest_llmprof.stages.base import StageContext, StageResult
from pytest_llmprof.stages.runner import PagesWorkload
from pytest_llmprof.stages.torch_profiler.cupti import synchronise
from pytest_llmprof.stages.torch_profiler.stage import profile_window

PAIRS, BLOCK_S = 4, 4.0
"""Pairs of a bare and a measured round in a block, and as many more as its seconds hold; even, as their order turns."""
STEPS = 3
"""Profiles with a block before and after, and as many intervals without one."""
INTERVAL_S = 5.0
"""The first interval; the others are as long as the profile before them."""
LAUNCHES, LAUNCHES_S = 100, 2.0
"""What a launch costs: the fastest LAUNCHES small operations in a row within so many seconds."""
SHORT, LONG = 64, 2048
ORDER = (SHORT, LONG, LONG, SHORT) * 2

READ_ALONE = """
import gzip, json, sys, time
from pathlib import Path
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.summary import profile_summary
def memory(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
def seconds(read):
    begin = time.perf_counter()
    read(raw)
    return time.perf_counter() - begin
read_trace(b'{"traceEvents": []}')
raw = gzip.decompress(Path(sys.argv[1]).read_bytes())
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
begin = time.perf_counter()
trace = read_trace(raw)
read = time.perf_counter() - begin
profile_summary(trace)
growth = 1 + (memory("VmHWM") - before) / len(raw)
again = [(seconds(read_trace), seconds(json.loads)) for _ in range(5)]
print(json.dumps({"events": trace.events, "read_s": read, "growth": growth, "again_s": again}))
"""
"""Reads a trace in a process of its own, on Linux, and again in turn with json.loads, a measure of the host's speed.
The growth of its memory counts the raw trace as 1."""


@pytest.mark.llmprof(overrides=["dataset.limit=1", f"infer.max_new_tokens={SHORT}", "infer.ignore_eos=true"])
def test_overhead(llmprof_config, llmprof_model, llmprof_dataset, llmprof_artifacts, llmprof_stage, capsys):
    settings = replace(llmprof_config, stage="torch_profiler")
    out_dir = llmprof_artifacts.begin(llmprof_stage)
    bench = Bench(settings, llmprof_model, llmprof_dataset, out_dir)
    bench.workload.warmup(2, bench.recorder(WARMUP_DOMAIN))
    bench.bare()

    blocks, profiles, interval = [bench.block()], [], INTERVAL_S
    for _ in range(STEPS):
        bench.wait(interval)
        blocks.append(bench.block())
        begin = time.perf_counter()
        profiles.append(bench.profile())
        interval = time.perf_counter() - begin
        blocks.append(bench.block())
    first, growth = profiles[0]
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(out_dir / "trace.json.gz")], capture_output=True, text=True, check=True
    )
    alone = json.loads(done.stdout)
    for tokens in (SHORT, LONG):
        bench.window(tokens)
    stage = [(tokens, bench.profile(tokens)[0]) for tokens in ORDER]

    found = {
        "device": bench.workload.device,
        "engine": llmprof_model.info.engine,
        "parameters": llmprof_model.info.parameters,
        "blocks": blocks,
        "overhead": overhead(blocks),
        "after_interval": {name: steps(blocks, *row, 0) for name, row in STEPPED.items()},
        "after_profile": {name: steps(blocks, *row, 1) for name, row in STEPPED.items()},
        "fastest": {name: fastest(blocks, of) for name, of in FASTEST.items()},
        "profile": {name: value for name, value in first.items() if name.endswith("_s") or name == "trace_bytes"},
        "events": first["events"],
        "process_growth_over_trace": growth,
        "read_alone": alone,
        "stage": [{"tokens": tokens, **costs(profile)} for tokens, profile in stage],
    }
    publish(out_dir, "overhead", found, text(found), capsys)
    assert all(bare["total_ms"] > 0 for block in blocks for bare in block["bare"])
    assert alone["events"] == profiles[-1][0]["events"]


class Bench:
    """One page through one model, with the harness and without."""

    def __init__(self, settings, model, pages, out_dir):
        self.settings, self.model, self.out_dir = settings, model, out_dir
        self.page = pages[0]
        self.rounds = 0
        self.workload = self._workload(settings.infer)

    def _workload(self, infer):
        return PagesWorkload(
            self.model,
            [self.page],
            infer,
            on_answer=lambda *_: None,
            on_failure=lambda *facts: pytest.fail(str(facts[-1])),
            progress=lambda *_: None,
        )

    def recorder(self, domain):
        return PhaseRecorder(self.workload.device, domain=domain)

    def bare(self):
        """The model's own loop, on a picture read outside the clock as in a round."""
        image = self.page.load()
        begin = time.perf_counter_ns()
        times = [token.time_ns for token in self.model.generate([image], self.settings.infer, NoPhases())]
        return clocked((time.perf_counter_ns() - begin) / 1e6, (times[0] - begin) / 1e6, len(times))

    def measured(self, recorder):
        """The same as a measured round."""
        (sample,), _ = self.workload.round(self.rounds, recorder)
        self.rounds += 1
        return clocked(sample.total_ms, sample.ttft_ms, sample.tokens)

    def launch_us(self):
        """Microseconds of a small operation on the device."""
        import torch

        ones = torch.ones(8, device=self.workload.device)
        fastest, until = float("inf"), time.perf_counter() + LAUNCHES_S
        while time.perf_counter() < until:
            synchronise(self.workload.device)
            begin = time.perf_counter_ns()
            for _ in range(LAUNCHES):
                ones.add_(1)
            fastest = min(fastest, (time.perf_counter_ns() - begin) / 1e3 / LAUNCHES)
        return fastest

    def block(self):
        """What a launch costs, then bare and measured rounds in turn: A B, B A, A B, ..."""
        recorder = self.recorder(DOMAIN)
        launch_us = self.launch_us()
        bare, measured = [], []
        until = time.perf_counter() + BLOCK_S
        with frozen_garbage_collector():
            while len(bare) < PAIRS or time.perf_counter() < until:
                bare.append(self.bare())
                measured += [self.measured(recorder), self.measured(recorder)]
                bare.append(self.bare())
        return {"launch_us": launch_us, "bare": bare, "measured": measured}

    def wait(self, seconds):
        """Work without a profile, for the control."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self.bare()

    @contextmanager
    def answers_of(self, tokens):
        infer = replace(self.settings.infer, max_new_tokens=tokens)
        before, self.workload = self.workload, self._workload(infer)
        yield replace(self.settings, infer=infer)
        self.workload = before

    def window(self, tokens):
        """The window for answers of *tokens*, unprofiled: what is made once for a length is not in the stage's cost."""
        recorder = self.recorder(WARMUP_DOMAIN)
        with self.answers_of(tokens) as settings:
            for batch in self.workload.windows(settings.current.options.window, recorder):
                for _ in batch:
                    pass
        recorder.take()

    def profile(self, tokens=SHORT):
        """The profiler's part of the stage for answers of *tokens*; its figures and the process's growth."""
        with self.answers_of(tokens) as settings, peak_memory() as peak:
            profile = profile_window(
                StageContext(
                    settings=settings,
                    out_dir=self.out_dir,
                    workload=self.workload,
                    recorder=self.recorder,
                    progress=lambda *_: None,
                    result=StageResult(),
                )
            )
        return msgspec.to_builtins(profile), peak[0] / profile.trace_bytes


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


def clocked(total_ms, first_ms, tokens):
    """A round: to its end, to its first token, and each later token."""
    later = (total_ms - first_ms) / (tokens - 1) if tokens > 1 else 0.0
    return {"total_ms": total_ms, "first_ms": first_ms, "later_ms": later}


TIMES = {"a page": "total_ms", "decode, a token": "later_ms"}
STEPPED = {f"{kind}, {what}": (kind, key) for what, key in TIMES.items() for kind in ("bare", "measured")}
"""What is compared between blocks, by its row."""
FASTEST = {
    "a launch, us": lambda block: block["launch_us"],
    "bare, decode, a token, ms": lambda block: min(times["later_ms"] for times in block["bare"]),
}
"""What a disturbed host shows in its quiet moments alone; what a profiler that stayed adds, it adds to these too."""


def overhead(blocks):
    """Measured over bare, from pairs of neighbours; as its control, the same of neighbours of one kind."""
    pairs = [pair for block in blocks for pair in zip(block["bare"], block["measured"], strict=True)]
    like = [
        (block["measured"][number], block["measured"][number + 1])
        for block in blocks
        for number in range(0, len(block["measured"]), 2)
    ]

    def compared(key):
        ratios = [other[key] / one[key] - 1 for one, other in like]
        bare, quickest = (min(one[key] for one in side) for side in zip(*pairs, strict=True))
        return {
            "ratio": median(one[key] / other[key] for other, one in pairs) - 1,
            "control": median(ratios),
            "pair_noise": median(map(abs, ratios)),
            "fastest": quickest / bare - 1,
        }

    return {what: compared(key) for what, key in TIMES.items()}


def middle(block, kind, key):
    """A block's median of its rounds of a kind."""
    return median(times[key] for times in block[kind])


def fastest(blocks, of):
    """The fastest in the blocks before the first profile and in those after it, and all blocks'."""
    each = [of(block) for block in blocks]
    before, after = each[:2], each[2:]
    return {"before": min(before), "after": min(after), "each": each}


def steps(blocks, kind, key, offset):
    """Each later block over the one before: from block *offset* on every second pair."""
    return [
        middle(blocks[number + 1], kind, key) / middle(blocks[number], kind, key) - 1
        for number in range(offset, len(blocks) - 1, 2)
    ]


def costs(profile):
    """The stage's cost and all of its parts."""
    parts, whole = profile["stage_costs_s"], profile["stage_cost_s"]
    return {"all": whole, **parts, "other": whole - sum(parts.values())}


def text(found):
    """The figures as tables."""
    profile, alone, over = found["profile"], found["read_alone"], found["overhead"]
    unload = profile["profiler_unload_s"]

    def percents(values):
        return f"{median(values):+.2%} ({', '.join(f'{value:+.1%}' for value in values)})"

    def of(tokens, part):
        return [one[part] for one in found["stage"] if one["tokens"] == tokens]

    def seconds(tokens, part):
        return f"{median(of(tokens, part)):.3f} ({', '.join(f'{value:.2f}' for value in of(tokens, part))})"

    def speed(time_s):
        return f"{alone['events'] / time_s:,.0f}"

    read_s, json_s = (median(times) for times in zip(*alone["again_s"], strict=True))

    rows = [
        *(
            (f"{kind}, {what}, ms", f"{median(middle(block, kind, key) for block in found['blocks']):.3f}")
            for what, key in TIMES.items()
            for kind in ("bare", "measured")
        ),
        *(
            (f"measured over bare: {what}; the fastest of each", f"{one['ratio']:+.2%}; {one['fastest']:+.2%}")
            for what, one in over.items()
        ),
        *(
            (
                f"control: a second measured round over the first: {what}",
                f"{one['control']:+.2%}, apart {one['pair_noise']:.2%}",
            )
            for what, one in over.items()
        ),
        *(
            (f"{name}: a block after {what} over the block before", percents(found[key][name]))
            for name in STEPPED
            for key, what in (("after_profile", "a profile"), ("after_interval", "as long without one (control)"))
        ),
        *(
            (
                f"the fastest, before the first profile and after: {name}",
                f"{one['before']:.3f}, {one['after']:.3f}: {one['after'] / one['before'] - 1:+.2%}",
            )
            for name, one in found["fastest"].items()
        ),
        ("profiler's first start, s", f"{profile['profiler_load_s']:.3f}"),
        ("profiler's end, s", "stays loaded" if unload is None else f"{unload:.3f}"),
        ("profiler's part of the stage, first in the process, s", f"{profile['stage_cost_s']:.3f}"),
        ("trace, MB", f"{profile['trace_bytes'] / 1e6:.1f}"),
        ("events", f"{found['events']:,}"),
        ("reading alone, events/s: first; again", f"{speed(alone['read_s'])}; {speed(read_s)}"),
        ("json.loads over reading again, time", f"{json_s / read_s:.1f}"),
        ("memory for reading alone / trace", f"{alone['growth']:.2f}"),
        ("growth of the process / trace", f"{found['process_growth_over_trace']:.2f}"),
        (f"{LONG} over {SHORT} tokens", f"{median(of(LONG, 'all')) / median(of(SHORT, 'all')) - 1:+.2%}"),
    ]
    parts = [part for part in found["stage"][0] if part != "tokens"]
    head = f"{found['device']}, engine {found['engine']}, {found['parameters'] / 1e6:.1f} M parameters"
    again = [[part, seconds(SHORT, part), seconds(LONG, part)] for part in parts]
    again_head = ["profiler's part again, s", f"{SHORT} tokens", f"{LONG} tokens"]
    tables = markdown([head, ""], rows), markdown(again_head, again)
    return "\n".join(tables)
