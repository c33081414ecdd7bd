"""What the stage `torch_profiler` costs beyond its measured rounds, against a bare page of 64 tokens, by part.

For each engine: bare pages and profiles in turn, with the parts of each profile as the stage records them
(`stage_costs_s`). With the reference, then, the same window under torch's profiler with other options, called directly
and in turn, to see what each of them is worth and what its trace lacks. Nothing is asserted about speed. It prints
tables and writes profiled.json and profiled.md to the stage directory.
"""

import re
import threading
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import pytest
from sweep import markdown, publish, sweep, why_not
from test_overhead import SHORT, Bench, costs

from pytest_llmprof.measure.phases import DOMAIN, WARMUP_DOMAIN
from pytest_llmprof.stages.torch_profiler.cupti import Cupti, capture_messages, free_profiler, synchronise
from pytest_llmprof.stages.torch_profiler.kineto import decode, read_trace

KEYS = ["dataset.limit=1", f"infer.max_new_tokens={SHORT}", "infer.ignore_eos=true"]
pytestmark = pytest.mark.llmprof(overrides=KEYS)
PROFILES, BARE, TURNS = 3, 2, 2
"""Profiles of the stage (the first also pays what a process pays once), bare pages before each, turns of a variant."""
HALF = 16
"""Decode steps of the smaller window."""
VARIANTS = {
    "trace only": {"trace_only": True},
    "all events": {},
    "no external ids": {"trace_only": True, "disable_external_correlation": True},
    "16 steps": {"trace_only": True},
}
"""torch's experimental options of each."""
KIND = re.compile(rb'"cat": "([^"]*)"')


@pytest.mark.parametrize("engine", sweep(["reference", "compiled", "fast"], "infer={}"))
def test_profiled(
    llmprof_config, llmprof_model, llmprof_dataset, llmprof_artifacts, llmprof_stage, request, capsys, engine
):
    if reason := why_not(request):
        pytest.skip(reason)
    out_dir = llmprof_artifacts.begin(llmprof_stage)
    bench = Bench(replace(llmprof_config, stage="torch_profiler"), llmprof_model, llmprof_dataset, out_dir)
    begin = time.perf_counter()
    bench.workload.warmup(2, bench.recorder(WARMUP_DOMAIN))
    bench.window(SHORT)
    bench.bare()
    warm_s = time.perf_counter() - begin
    bare_s, profiles = [], []
    for _ in range(PROFILES):
        bare_s += [bench.bare()["total_ms"] / 1e3 for _ in range(BARE)]
        profiles.append(bench.profile()[0])
    found = {
        "device": bench.workload.device,
        "engine": llmprof_model.info.engine,
        "warm_up_s": warm_s,
        "bare_s": bare_s,
        "profiles": [
            {**costs(one), "load": one["profiler_load_s"], "unload": one["profiler_unload_s"]} for one in profiles
        ],
        "events": profiles[-1]["events"],
        "trace_bytes": profiles[-1]["trace_bytes"],
        "variants": variants(bench, out_dir) if engine == "reference" else {},
    }
    publish(out_dir, "profiled", found, text(found), capsys)
    assert min(bare_s) > 0
    cuda = bench.workload.device.startswith("cuda")
    for of in found["variants"].values():
        assert all(one["kinds"].get("kernel" if cuda else "cpu_op") for one in of)


def variants(bench, out_dir):
    """The window under the profiler with other options, in turn; without those that this torch does not know."""
    from torch._C._profiler import _ExperimentalConfig

    known = {}
    for name, options in VARIANTS.items():
        try:
            known[name] = _ExperimentalConfig(**options)
        except TypeError:
            continue
    found = {name: [] for name in known}
    cupti = Cupti(bench.workload.device, lambda: profiler_of(bench, None))
    cupti.load()  # the stage has ended it, and a start alone would record nothing on the GPU
    for turn in range(TURNS):
        for name in list(known)[:: 1 if turn % 2 == 0 else -1]:
            steps = HALF if name.startswith(str(HALF)) else bench.settings.current.options.window.decode_tokens
            found[name].append(one_trace(bench, known[name], steps, out_dir / "variant.json"))
    cupti.unload()
    return found


def profiler_of(bench, config):
    """torch's profiler of the host and the device."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if bench.workload.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, experimental_config=config)


def one_trace(bench, config, steps, path):
    """Seconds of each part of one profile, what is in its trace, and how long its export kept other threads waiting."""
    device = bench.workload.device
    window = replace(bench.settings.current.options.window, decode_tokens=steps)
    recorder = bench.recorder(DOMAIN)
    found, mark = {}, [time.perf_counter()]

    def part(name):
        now = time.perf_counter()
        found[name], mark[0] = now - mark[0], now

    (batch,) = (batch for batch in bench.workload.windows(window, recorder))
    next(batch)
    part("reach")
    with capture_messages():
        profiler = profiler_of(bench, config)
        profiler.start()
        part("start")
        for _ in batch:
            pass
        synchronise(device)
        part("window")
        profiler.stop()
        part("stop")
    recorder.take()
    export = threading.Thread(target=profiler.export_chrome_trace, args=[str(path)])
    last, longest = time.perf_counter(), 0.0
    export.start()  # where the export keeps the interpreter's lock, this returns at its end
    while export.is_alive():
        now = time.perf_counter()
        last, longest = now, max(longest, now - last)
        time.sleep(0.0005)
    longest = max(longest, time.perf_counter() - last)
    part("export")
    found["events()"] = None if getattr(config, "trace_only", False) else raw_events(profiler)
    mark[0] = time.perf_counter()
    free_profiler(profiler)
    part("release")
    data = path.read_bytes()
    path.unlink()
    mark[0] = time.perf_counter()
    raw = decode(data)
    part("decode")
    trace = read_trace(data)
    kinds = Counter(kind.decode() for kind in KIND.findall(data))
    unknown = sum(row.operator == "" for row in trace.kernels())
    return {
        **found,
        "waited": longest,
        "events": raw.events,
        "bytes": len(data),
        "kinds": dict(kinds.most_common()),
        "external ids": data.count(b'"External id"'),
        "kernels without an operator": unknown,
    }


def raw_events(profiler):
    """Seconds of torch's own events as columns: what would stand in for the trace's text."""
    begin = time.perf_counter()
    events = profiler.profiler.kineto_results.events()
    for read in ("name", "start_ns", "duration_ns", "start_thread_id", "correlation_id", "linked_correlation_id"):
        [getattr(event, read)() for event in events]
    return time.perf_counter() - begin


def text(found):
    """The tables."""
    bare, profiles = median(found["bare_s"]), found["profiles"]
    later = profiles[1:]

    def seconds(values):
        known = [one for one in values if one is not None]
        return f"{median(known):.3f}" if known else "-"

    rows = [
        [part, f"{first:.3f}" if (first := profiles[0][part]) is not None else "-", seconds(one[part] for one in later)]
        for part in profiles[0]
    ]
    ratio = median(one["all"] for one in later) / bare
    rows += [["all / bare page", f"{profiles[0]['all'] / bare:.2f}", f"{ratio:.2f}"]]
    head = f"{found['device']}, engine {found['engine']}, s"
    lines = [
        f"engine {found['engine']}: bare page of {SHORT} tokens {bare:.3f} s ({min(found['bare_s']):.3f} to "
        f"{max(found['bare_s']):.3f}), profiled stage {median(one['all'] for one in later):.3f} s, ratio {ratio:.2f}; "
        f"{found['events']:,} events, {found['trace_bytes'] / 1e6:.1f} MB; warm-up {found['warm_up_s']:.1f} s",
        "",
        markdown([head, "first", "again"], rows),
    ]
    if not found["variants"]:
        return "\n".join(lines)
    parts = ["start", "window", "stop", "export", "waited", "events()", "release", "decode"]
    rows = [
        [name, *(seconds(one[part] for one in of) for part in parts), f"{of[-1]['events']:,}"]
        for name, of in found["variants"].items()
    ]
    lines.append(markdown(["variant, s", *parts, "events"], rows))
    last = [of[-1] for of in found["variants"].values()]
    kinds = dict.fromkeys(kind for one in last for kind in one["kinds"])
    rows = [
        *([kind, *(f"{one['kinds'].get(kind, 0):,}" for one in last)] for kind in kinds),
        *([key, *(f"{one[key]:,}" for one in last)] for key in ("external ids", "kernels without an operator")),
    ]
    lines.append(markdown(["in the trace", *found["variants"]], rows))
    return "\n".join(lines)
