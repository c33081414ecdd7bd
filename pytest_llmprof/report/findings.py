"""What a reader of one report should look at, the weightiest first, and what makes its numbers doubtful.

A finding's weight is the share of a page's time that it is about (0..1), as far as the figures tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_llmprof.stages.static_analysis.section import over_peak
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent
from pytest_llmprof.text.numbers import at, count, number, numeric, share

__all__ = ["Finding", "card_warnings", "findings", "gpu_busy_share", "warnings"]

IDLE_SHARE = 0.3
"""A phase whose card is idle for more than this is worth a line."""
OTHER_SHARE = 0.1
PREPROCESS_SHARE = 0.15
COPIES_A_TOKEN = 1.5
"""One device-to-host copy a token is needed: the token itself."""
OPERATOR_SHARE = 0.15
PYTHON_SHARE = 0.25
FLOOR_SHARE = 0.5
"""A phase that reaches less of its roofline's floor is worth a line."""
THROTTLED = 0.01
"""Share of the rounds for which the driver counted throttling."""
NOISE = 0.1
"""Interquartile range over median of a page's rounds."""

_BEFORE = ("preprocess", "vision", "prefill")
"""Phases that end before the first token."""

_CAUSES = {
    "launch": "launch-bound: it waits for the host to launch work",
    "synchronisation": "held up by synchronisation: the host waits for the card before it launches more",
    "device": "waiting between kernels that are queued already",
}
_CURES = {
    "launch": " CUDA graphs, torch.compile or a larger batch would help.",
    "synchronisation": " Keep the decision on the card, or look at it only every few steps.",
    "device": " Fewer, larger kernels would help.",
}


@dataclass(frozen=True)
class Finding:
    """One sentence or two in Markdown, with its weight."""

    weight: float
    text: str


def gpu_busy_share(metrics: Mapping[str, Any]) -> float | None:
    """Kernel time of a step (profiled) over the clean time of a step; None where one is not known."""
    given = numeric(at(metrics, "profile", "gpu_busy_share"))
    if given is not None:
        return given
    return share(at(metrics, "profile", "gpu_busy_ms_per_step_profiled"), at(metrics, "figures", "tpot_ms"))


def findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """What stands out, the weightiest first."""
    found = [
        *_runaway(metrics),
        *_decode(metrics),
        *_phases(metrics),
        *_floors(metrics),
        *_times(metrics),
        *_copies(metrics),
        *_top(metrics),
        *_python(metrics),
        *_slow_page(metrics),
    ]
    return sorted(found, key=lambda finding: -finding.weight)


def _of_total(metrics: Mapping[str, Any], name: str) -> float | None:
    """A phase's share of a page; in a batch, whose phases are shared, of the batch."""
    whole = at(metrics, "figures", "batch_total_ms")
    return share(at(metrics, "figures", f"{name}_ms"), whole or at(metrics, "figures", "total_ms"))


def _weight(metrics: Mapping[str, Any], phase: str) -> float:
    """Share of a page; before the first token at least a third of the share of TTFT, which users wait for."""
    first = share(at(metrics, "figures", f"{phase}_ms"), at(metrics, "figures", "ttft_ms"))
    of_first = first / 3 if first is not None and phase in _BEFORE else 0.0
    return max(_of_total(metrics, phase) or 0.0, of_first)


def _runaway(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    pages = numeric(at(metrics, "quality", "runaway_pages"))
    if pages:
        text = f"**{count(int(pages), 'page')} ended in a loop** of repeated text: their times say little."
        yield Finding(1.0, text)


def _idle_cause(idle: Any) -> str | None:
    """The cause with the most idle time, where there is any."""
    if not isinstance(idle, Mapping):
        return None
    known = {name: numeric(value) or 0.0 for name, value in idle.items() if name in _CAUSES}
    cause = max(known, key=lambda name: known[name], default=None)
    return cause if cause is not None and known[cause] > 0 else None


def _decode(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    busy = gpu_busy_share(metrics)
    if busy is None or 1 - busy < IDLE_SHARE:
        return
    cause = _idle_cause(at(metrics, "profile", "phases", "decode", "idle_ms_profiled")) or "launch"
    launches = numeric(at(metrics, "profile", "host_launches_per_token"))
    kernels = numeric(at(metrics, "profile", "kernels_per_token"))
    each = ""
    if launches is not None and kernels is not None:
        each = f" A token takes {number(launches)} launches by the host and {number(kernels)} kernels."
    yield Finding(
        (_of_total(metrics, "decode") or 1.0) * (1 - busy),
        f"**In decode the card is busy {percent(busy)} of a step**, {_CAUSES[cause]}.{each}{_CURES[cause]}",
    )


def _phases(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    phases = at(metrics, "profile", "phases")
    for name, phase in phases.items() if isinstance(phases, Mapping) else ():
        idle = numeric(at(phase, "gpu_idle_share_profiled"))
        cause = _idle_cause(at(phase, "idle_ms_profiled"))
        known = gpu_busy_share(metrics) is not None
        if idle is None or cause is None or idle < IDLE_SHARE or at(phase, "parent"):
            continue
        if name == "preprocess" or (name == "decode" and known):
            continue  # preprocessing is the host's own work; decode has its clean figure
        first = share(at(metrics, "figures", f"{name}_ms"), at(metrics, "figures", "ttft_ms"))
        before = f" It is {percent(first)} of the time to first token." if first and name in _BEFORE else ""
        yield Finding(
            _weight(metrics, name) * idle,
            f"**In {inline(name)} the card is idle {percent(idle)} of its time** (under the profiler, which "
            f"slows launches), {_CAUSES[cause]}.{before}",
        )


def _floors(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Phases that take far longer than the card needs for their FLOPs and bytes."""
    for name in ("vision", "prefill", "decode"):
        phase = at(metrics, "static_analysis", "phases", name)
        reached, bound = numeric(at(phase, "of_floor")), at(phase, "bound")
        if not reached or reached > FLOOR_SHARE or bound not in ("compute", "memory"):
            continue
        least = "its arithmetic" if bound == "compute" else "moving its weights, cache and activations once"
        yield Finding(
            _weight(metrics, name) * (1 - reached),
            f"**{name.capitalize()} takes {number(1 / reached)} times its floor**: {least} "
            f"would take {number(at(phase, 'floor_ms'))} of its {number(at(phase, 'ms'))} ms a round.",
        )


def _times(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    other = _of_total(metrics, "other")
    if other is not None and other > OTHER_SHARE and at(metrics, "kind") != "callable":
        yield Finding(other, f"**{percent(other)} of a page's time lies outside all phases** (`other_ms`).")
    preprocess = _of_total(metrics, "preprocess")
    first = share(at(metrics, "figures", "preprocess_ms"), at(metrics, "figures", "ttft_ms"))
    for part, whole in ((preprocess, "a page"), (first, "the time to first token")):
        if part is not None and part > PREPROCESS_SHARE:
            yield Finding(
                _weight(metrics, "preprocess"),
                f"**Preprocessing takes {percent(part)} of {whole}**: work of the CPU before the model starts.",
            )
            return


def _copies(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    decode = _of_total(metrics, "decode") or 0.0
    copies = numeric(at(metrics, "profile", "d2h_copies_per_token"))
    if copies is not None and copies > COPIES_A_TOKEN:
        yield Finding(
            0.3 * decode,
            f"**{number(copies)} device-to-host copies a token**: one is needed (the token); look for `.item()`, "
            "`.tolist()`, `.cpu()` and conditions on tensors in the loop.",
        )
    waits = numeric(at(metrics, "profile", "synchronisations_per_token"))
    if waits is not None and waits > COPIES_A_TOKEN:
        yield Finding(
            0.25 * decode, f"**The host waits for the card {number(waits)} times a token**; one is needed."
        )


def _top(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """The kernel (without a card: the operator) that takes most of a page, as far as the window tells.

    The window holds few decode steps, so a row counts by its share of its phase and the phase's share of a page.
    """
    kernels = at(metrics, "profile", "top_kernels") or []
    rows = kernels or [row for row in at(metrics, "profile", "top_operators") or [] if at(row, "kind") == "op"]

    def weight(row: Any) -> float:
        part = numeric(at(row, "phase_share")) or 0.0
        return part * _weight(metrics, str(at(row, "phase") or ""))

    top = max(rows, key=weight, default=None)
    part = numeric(at(top, "phase_share"))
    if part is None or part < OPERATOR_SHARE or not at(top, "phase"):
        return
    phase = inline(str(at(top, "phase")))
    calls = int(numeric(at(top, "count")) or 0)
    name = code(str(at(top, "name")), cell=False)
    if kernels:
        caller = code(str(at(top, "operator") or ""), cell=False)
        busy = gpu_busy_share(metrics) if phase == "decode" else None
        yield Finding(
            weight(top) * (1.0 if busy is None else min(busy, 1.0)),
            f"**{name} takes {percent(part)} of the card's time in {phase}** ({calls:,} times in the window, "
            f"launched by {caller}).",
        )
    else:
        yield Finding(weight(top), f"**{name} takes {percent(part)} of {phase}**, {calls:,} calls in the window.")


def _python(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Time of our own ranges in no operator: Python, and the framework between its operators."""
    shares: dict[str, float] = {}
    for row in at(metrics, "profile", "top_operators") or []:
        if at(row, "kind") == "range" and str(at(row, "name")).startswith("llmprof/"):
            phase = str(at(row, "phase") or "")
            shares[phase] = shares.get(phase, 0.0) + (numeric(at(row, "phase_share")) or 0.0)
    for phase, part in shares.items():
        if part > PYTHON_SHARE and phase != "preprocess":
            yield Finding(
                part * _weight(metrics, phase),
                f"**{percent(part)} of {inline(phase)} is Python between operators** (under the profiler, which "
                "makes it look longer).",
            )


def _slow_page(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    total = at(metrics, "spread", "total_ms")
    times = numeric(at(total, "max")), numeric(at(total, "p50"))
    if times[0] is not None and times[1] and times[0] > 3 * times[1]:
        yield Finding(
            0.2,
            f"**The slowest page takes {number(times[0] / times[1])} times the median page** "
            "(see Slowest pages).",
        )


def card_warnings(metrics: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Whether the card was shared or throttled around or during the rounds, a line each."""
    found = []
    readings = [at(environment, "gpu"), at(environment, "gpu_after")]
    others = max((numeric(at(card, "other_processes")) or 0.0 for card in readings), default=0.0)
    if others:
        found.append(f"The card was shared with {count(int(others), 'other process', 'other processes')}.")
    reasons: dict[str, None] = {}
    for card in readings:
        if at(card, "throttled"):
            reasons.update(dict.fromkeys(inline(str(reason)) for reason in at(card, "throttle_reasons") or ()))
    held = at(environment, "gpu_throttled_ms")
    measured = sum(numeric(seconds) or 0.0 for seconds in at(metrics, "round_seconds") or ()) * 1000
    for cause, spent in held.items() if isinstance(held, Mapping) else ():
        milliseconds = numeric(spent) or 0.0
        if measured and milliseconds > THROTTLED * measured:
            of = f"{number(milliseconds / 1000)} s during {number(measured / 1000)} s of rounds"
            reasons[f"{inline(str(cause))} for {of}"] = None
    if reasons:
        found.append(f"The card was throttled ({', '.join(reasons)}): the same work can be faster.")
    return found


def warnings(metrics: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """What makes the numbers doubtful, in Markdown."""
    found = card_warnings(metrics, environment)
    device = str(at(metrics, "fingerprint", "device") or at(metrics, "model", "device") or "")
    if at(metrics, "profiler_ran_before") and not device.startswith("cpu"):
        found.append("A profiler had run before in this process: its hooks stay, so launches cost a little more.")
    if at(metrics, "deterministic") is False:
        found.append("Rounds did not give equal tokens, so their times are not of equal work.")
    if at(metrics, "model", "weights") == "random":
        found.append("The weights are random: the answers mean nothing and quality is not applicable.")
    noise = share(at(metrics, "spread", "total_ms", "iqr"), at(metrics, "figures", "total_ms"))
    if noise is not None and noise > NOISE:
        of = "a page" if at(metrics, "kind") != "callable" else "the callable"
        found.append(f"Noisy: the rounds of {of} spread by {percent(noise)} of its time (IQR of total).")
    over = over_peak(metrics)
    if over is not None:
        found.append(over)
    if at(metrics, "rounds") == 1 and at(metrics, "stage") not in ("nsys", "ncu"):
        found.append("Only one round was measured, so the noise is not known.")
    busy = gpu_busy_share(metrics)
    if busy is not None and busy > 1:
        found.append(f"GPU busy came out as {percent(busy)}: the profiled steps were slower than the clean ones.")
    return found
