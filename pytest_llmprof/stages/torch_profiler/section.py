"""The report's section on the profiled window, and what it says about where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_llmprof.analysis.records import busy_kernels_table, counts_of_a_step, left_out, top_rows
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import (
    Finding,
    Section,
    phase_label,
    phase_share,
    phase_weight,
    share,
    share_of_first,
)
from pytest_llmprof.stages.torch_profiler.records import Profile, TopKernel, TopOperator
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, known, percent, table
from pytest_llmprof.text.numbers import count, number

FILES = {
    "trace.json.gz": "the profiled window, for ui.perfetto.dev",
    "timeline.json": "the same as lanes of events, for the run's page",
    "operators.md": "operators, the longest",
    "operators.csv": "operators, all",
    "kernels.md": "kernels, the longest",
    "kernels.csv": "kernels, all",
}
"""What the stage writes into its directory."""

IDLE_SHARE = 0.3
"""A phase whose GPU is idle for more than this is worth a line."""
COPIES_A_TOKEN = 1.5
"""One device-to-host copy a token is needed: the token itself."""
PART_SHARE = 0.05
"""A part of the stage's cost that is shown."""
OPERATOR_SHARE = 0.15
PYTHON_SHARE = 0.25

_CAUSES = {
    "launch": "launch-bound: it waits for the host to launch work",
    "synchronisation": "held up by synchronisation: the host waits for the GPU before it launches more",
    "device": "waiting between kernels that are queued already",
}
_CURES = {
    "launch": " CUDA graphs, torch.compile or a larger batch would help.",
    "synchronisation": " Keep the decision on the GPU, or look at it only every few steps.",
    "device": " Fewer, larger kernels would help.",
}


def profile_section(records: StageRecords) -> Section | None:
    """Paragraphs, tables, findings and warnings; None where nothing was profiled."""
    profile = records.block("profile", Profile)
    if profile is None:
        return None
    metrics = records.metrics
    busy = profile.gpu_busy_share
    if busy is None:  # a clean step's time may have come later than the profile
        busy = share(profile.gpu_busy_ms_per_step_profiled, metrics.figures.get("tpot_ms"))
    operators = [(row.name, row.phase, row.count, row.self_ms_profiled, row.share) for row in profile.top_operators]
    slower = f"GPU busy came out as {percent(busy or 0)}: the profiled steps were slower than the clean ones."
    return Section(
        "Profiled window",
        [
            _window(profile),
            _gpu(profile, busy),
            _phases(profile),
            busy_kernels_table(profile.top_kernels),
            top_rows(["Operator ([more](operators.md))", "Phase", "Calls", "Self ms", "Self share"], operators),
        ],
        findings=[
            *_decode(metrics, profile, busy),
            *_idle_phases(metrics, profile, busy),
            *_copies(metrics, profile),
            *_top(metrics, profile, busy),
            *_python(metrics, profile),
        ],
        warnings=[*([slower] if busy is not None and busy > 1 else []), *left_out(profile.events_left_out)],
    )


# -- paragraphs and tables


def _window(profile: Profile) -> str:
    window, parts = profile.window, []
    if window is not None:
        parts.append(count(window.pages, "batch", "batches") if window.pages != 1 else "one batch")
        if window.start_token:
            parts.append(f"from token {window.start_token} on")
    if profile.steps:
        each = f" (at most {count(window.decode_tokens, 'token')} a batch)" if window is not None else ""
        parts.append(f"{count(profile.steps, 'decode step')}{each}")
    text = f"The profiler recorded {', '.join(parts) or 'the whole call'}"
    if profile.window_ms_profiled is not None and profile.events is not None:
        text += f": {count(profile.events, 'event')} in {number(profile.window_ms_profiled)} ms"
    text += ". It slows what it records, so compare shares and counts here rather than times."
    if profile.stage_cost_s is not None:
        text += f" Profiling added {number(profile.stage_cost_s)} s to the measured rounds{_costs(profile)}."
    return f"{text}\n"


def _costs(profile: Profile) -> str:
    """The parts of the stage's cost that are worth a word, in the order in which they came."""
    least = PART_SHARE * (profile.stage_cost_s or 0.0)
    parts = [f"{name} {number(seconds)} s" for name, seconds in profile.stage_costs_s.items() if seconds >= least]
    return f" ({', '.join(parts)})" if parts else ""


def _gpu(profile: Profile, busy: float | None) -> str:
    if profile.kernels is None:
        return ""
    shares = (
        ("GPU busy in a decode step (kernel time / clean step time)", busy),
        ("GPU idle in the window, under the profiler", profile.gpu_idle_share_profiled),
    )
    graphs = known([("CUDA graph launches in the window", profile.graph_launches or None)], number)
    return table(["Metric", "Value"], [*known(shares, percent), *counts_of_a_step(profile, "a token"), *graphs])


def _phases(profile: Profile) -> str:
    if profile.kernels is None:
        return ""
    rows = []
    for name, phase in profile.phases.items():
        idle, causes = phase.gpu_idle_share_profiled, phase.idle_ms_profiled or {}
        cause = max(causes, key=lambda key: causes[key], default="")
        counts = (phase.kernels, phase.host_launches, phase.d2h_copies, phase.synchronisations)
        rows.append(
            [
                phase_label(name, phase.parent),
                inline(cause) if idle else "",
                number(phase.gpu_busy_ms_profiled),
                "" if idle is None else percent(idle),
                *("" if one is None else f"{one:,}" for one in counts),
            ]
        )
    head = ["Phase", "Idle cause", "GPU busy ms", "GPU idle", "Kernels", "Launches", "D2H copies", "Syncs"]
    return table(head, rows, 2)


# -- findings


def _idle_cause(idle_ms: Mapping[str, float] | None) -> str | None:
    """The cause with the most idle time, where there is any."""
    known = {name: value or 0.0 for name, value in (idle_ms or {}).items() if name in _CAUSES}
    cause = max(known, key=lambda name: known[name], default=None)
    return cause if cause is not None and known[cause] > 0 else None


def _decode(metrics: Metrics, profile: Profile, busy: float | None) -> Iterator[Finding]:
    if busy is None or 1 - busy < IDLE_SHARE:
        return
    decode = profile.phases.get("decode")
    cause = _idle_cause(decode.idle_ms_profiled if decode else None) or "launch"
    launches, kernels = profile.host_launches_per_token, profile.kernels_per_token
    each = ""
    if launches is not None and kernels is not None:
        each = f" A token takes {number(launches)} launches by the host and {number(kernels)} kernels."
    yield Finding(
        (phase_share(metrics, "decode") or 1.0) * (1 - busy),
        f"**In decode the GPU is busy {percent(busy)} of a step**, {_CAUSES[cause]}.{each}{_CURES[cause]}",
    )


def _idle_phases(metrics: Metrics, profile: Profile, busy: float | None) -> Iterator[Finding]:
    for name, phase in profile.phases.items():
        idle, cause = phase.gpu_idle_share_profiled, _idle_cause(phase.idle_ms_profiled)
        if idle is None or cause is None or idle < IDLE_SHARE or phase.parent:
            continue
        if name == "preprocess" or (name == "decode" and busy is not None):
            continue  # preprocessing is the host's own work; decode has its clean figure
        first = share_of_first(metrics, name)
        before = f" It is {percent(first)} of the time to first token." if first else ""
        yield Finding(
            phase_weight(metrics, name) * idle,
            f"**In {inline(name)} the GPU is idle {percent(idle)} of its time** (under the profiler, which "
            f"slows launches), {_CAUSES[cause]}.{before}",
        )


def _copies(metrics: Metrics, profile: Profile) -> Iterator[Finding]:
    decode = phase_share(metrics, "decode") or 0.0
    copies, waits = profile.d2h_copies_per_token, profile.synchronisations_per_token
    if copies is not None and copies > COPIES_A_TOKEN:
        yield Finding(
            0.3 * decode,
            f"**{number(copies)} device-to-host copies a token**: one is needed (the token); look for `.item()`, "
            "`.tolist()`, `.cpu()` and conditions on tensors in the loop.",
        )
    if waits is not None and waits > COPIES_A_TOKEN:
        yield Finding(0.25 * decode, f"**The host waits for the GPU {number(waits)} times a token**; one is needed.")


def _top(metrics: Metrics, profile: Profile, busy: float | None) -> Iterator[Finding]:
    """The kernel (without a GPU: the operator) that takes most of a page, as far as the window tells.

    The window holds few decode steps, so a row counts by its share of its phase and the phase's share of a page.
    """
    operators = [row for row in profile.top_operators if row.kind == "op"]
    rows: Sequence[TopKernel | TopOperator] = profile.top_kernels or operators

    def weight(row: TopKernel | TopOperator) -> float:
        return row.phase_share * phase_weight(metrics, row.phase)

    top = max(rows, key=weight, default=None)
    if top is None or top.phase_share < OPERATOR_SHARE or not top.phase:
        return
    phase, name = inline(top.phase), code(top.name, cell=False)
    if isinstance(top, TopOperator):
        text = f"**{name} takes {percent(top.phase_share)} of {phase}**, {count(top.count, 'call')} in the window."
        yield Finding(weight(top), text)
        return
    in_use = min(busy, 1.0) if busy is not None and phase == "decode" else 1.0
    yield Finding(
        weight(top) * in_use,
        f"**{name} takes {percent(top.phase_share)} of the GPU's time in {phase}** ({top.count:,} times in the window, "
        f"launched by {code(top.operator, cell=False)}).",
    )


def _python(metrics: Metrics, profile: Profile) -> Iterator[Finding]:
    """Time of our own ranges in no operator: Python, and the framework between its operators."""
    shares: dict[str, float] = {}
    for row in profile.top_operators:
        if row.kind == "range" and row.name.startswith("llmprof/") and row.phase:
            shares[row.phase] = shares.get(row.phase, 0.0) + row.phase_share
    for phase, part in shares.items():
        if part > PYTHON_SHARE and phase not in ("", "preprocess"):
            yield Finding(
                part * phase_weight(metrics, phase),
                f"**{percent(part)} of {inline(phase)} is Python between operators** (under the profiler, which "
                "makes it look longer).",
            )
