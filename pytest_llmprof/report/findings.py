"""What a reader of any stage's report should look at, and what makes its numbers doubtful.

A stage adds findings and warnings of its own in its `Section`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pytest_llmprof.records.catalogue import CALLABLE
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.metrics import CONTENDED_ROUNDS, Metrics
from pytest_llmprof.report.sections import Finding, listed, phase_share, phase_weight, share
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import percent
from pytest_llmprof.text.numbers import count, number

OTHER_SHARE = 0.1
PREPROCESS_SHARE = 0.15
THROTTLED = 0.01
"""Share of the rounds for which the driver counted throttling."""
NOISE = 0.1
"""Interquartile range over median of a page's rounds."""
_PILLOW = "Pillow"
"""What DeepSeek-OCR's details name where the CPU preprocesses."""
_GROUPS, _NAMED = 5, 3
"""How many reasons for leaving files out are shown, and how many files of each."""
SLOW_PAGE = 3.0
"""The slowest page over the median page."""


def findings(metrics: Metrics) -> Iterator[Finding]:
    """What stands out in any stage's metrics."""
    if pages := (metrics.quality or {}).get("runaway_pages"):
        text = f"**{count(int(pages), 'page')} ended in a loop** of repeated text: their times say little."
        yield Finding(1.0, text)
    other = phase_share(metrics, "other")
    if other is not None and other > OTHER_SHARE and metrics.kind != CALLABLE:
        yield Finding(other, f"**{percent(other)} of a page's time lies outside all phases** (`other_ms`).")
    yield from _preprocess(metrics)
    total = metrics.spread.get("total_ms")
    if total is not None and total.p50 and total.max > SLOW_PAGE * total.p50:
        yield Finding(
            0.2,
            f"**The slowest page takes {number(total.max / total.p50)} times the median page** (see Slowest pages).",
        )


def _preprocess(metrics: Metrics) -> Iterator[Finding]:
    first = share(metrics.figures.get("preprocess_ms"), metrics.figures.get("ttft_ms"))
    for part, whole in ((phase_share(metrics, "preprocess"), "a page"), (first, "the time to first token")):
        if part is not None and part > PREPROCESS_SHARE:
            on_cpu = metrics.model is None or metrics.model.details.get("preprocess", _PILLOW) == _PILLOW
            yield Finding(
                phase_weight(metrics, "preprocess"),
                f"**Preprocessing takes {percent(part)} of {whole}**: work {'of the CPU ' if on_cpu else ''}before the "
                "model starts.",
            )
            return


def machine_warnings(metrics: Metrics, environment: Environment | None, *, brief: bool = False) -> list[str]:
    """Whether the host was contended, or the GPU shared or throttled, around or during the rounds: a line each.

    *brief* leaves out how much the host was contended and the GPU throttled, so that a list of many tests can join
    equal lines.
    """
    found = list(_contended(metrics, brief=brief))
    if environment is None:
        return found
    workers, on_gpu = environment.other_workers(metrics.device), metrics.device.startswith("cuda")
    if workers and on_gpu:
        by = count(workers, "other worker")
        found.append(f"The GPU was shared with {by} of this run: alone on it the same work is faster.")
    elif workers:
        by = count(workers, "other worker")
        found.append(f"It ran beside {by} of this run on the same host: alone the same work may be faster.")
    readings = [gpu for gpu in (environment.gpu, environment.gpu_after) if gpu is not None]
    others = max((gpu.other_processes or 0 for gpu in readings), default=0)
    if others and not (workers and on_gpu):  # which are those workers
        found.append(f"The GPU was shared with {count(others, 'other process', 'other processes')}.")
    reasons = {inline(reason): None for gpu in readings if gpu.throttled for reason in gpu.throttle_reasons or ()}
    measured = sum(metrics.round_seconds) * 1000
    for cause, milliseconds in (environment.gpu_throttled_ms or {}).items():
        if measured and milliseconds > THROTTLED * measured:
            of = f"{number(milliseconds / 1000)} s during {number(measured / 1000)} s of rounds"
            reasons[inline(cause) if brief else f"{inline(cause)} for {of}"] = None
    if reasons:
        found.append(f"The GPU was throttled ({', '.join(reasons)}): the same work can be faster.")
    return found


def _contended(metrics: Metrics, *, brief: bool) -> Iterator[str]:
    hosts = metrics.round_host
    contended = [host for host in hosts if host.contended]
    if not hosts or len(contended) <= CONTENDED_ROUNDS * len(hosts):
        return
    waited = max((host.waited_share for host in contended if host.waited_share is not None), default=None)
    parts = listed(
        waited is not None and f"a thread waited for a processor for up to {percent(waited or 0.0)} of a round",
        contended[-1].load is not None and f"load {number(contended[-1].load)}",
    )
    rounds = f"{len(contended)} of {count(len(hosts), 'round')}{'' if brief else f' ({parts})'}"
    yield f"The host was contended in {rounds}: on a quiet machine the same work is faster."


def page_notes(metrics: Metrics, text: Callable[[str], str] = str) -> list[str]:
    """What the model says of how it ran, how the prompt was read, which files were left out, and which pages failed in
    a test that may have such.

    *text* escapes a value.
    """
    found = [text(note) for note in (metrics.model and metrics.model.note, metrics.prompt_note) if note]
    if metrics.dataset is not None and (groups := metrics.dataset.left_out):
        parts = []
        for one in sorted(groups, key=lambda one: -one.count)[:_GROUPS]:
            files = ", ".join(text(file) for file in one.files[:_NAMED])
            parts.append(f"{one.count} {text(one.reason)} ({files}{', …' if one.count > _NAMED else ''})")
        parts += [f"and {len(groups) - _GROUPS} more kinds"] if len(groups) > _GROUPS else []
        found.append(f"{count(sum(one.count for one in groups), 'file')} left out: {'; '.join(parts)}")
    failed = [text(one.page) for one in metrics.errors if one.page]
    if failed and metrics.status == "ok":
        names = ", ".join(failed[:_NAMED]) + (", …" if len(failed) > _NAMED else "")
        found.append(f"{count(len(failed), 'page')} failed, as measure.max_failed_pages allows: {names}")
    return found


def warnings(metrics: Metrics, environment: Environment | None, *, brief: bool = False) -> list[str]:
    """What makes any stage's numbers doubtful, in Markdown.

    *brief* gives the same lines without what differs from test to test, as in `machine_warnings`.
    """
    found = [*machine_warnings(metrics, environment, brief=brief), *page_notes(metrics, inline)]
    if metrics.profiler_ran_before and not metrics.device.startswith("cpu"):
        found.append("A profiler had run before in this process: its hooks stay, so launches cost a little more.")
    if metrics.deterministic is False:
        found.append("Rounds did not give equal tokens, so their times are not of equal work.")
    if metrics.model is not None and metrics.model.weights == "random":
        found.append("The weights are random: the answers mean nothing and quality is not applicable.")
    if pages := (metrics.quality or {}).get("by_block_pages"):
        text = f"{count(int(pages), 'page')} had too long a text to be compared as a whole"
        found.append(f"{text}: their error rates may be a little too high.")
    total = metrics.spread.get("total_ms")
    noise = share(total.iqr if total else None, metrics.figures.get("total_ms"))
    if noise is not None and noise > NOISE:
        of = "a page" if metrics.kind != CALLABLE else "the callable"
        by = f"more than {percent(NOISE)}" if brief else percent(noise)
        found.append(f"Noisy: the total time of {of} varies by {by} from round to round (IQR over median).")
    if metrics.rounds == 1 and metrics.round_seconds:
        found.append("Only one round was measured, so the noise is not known.")
    return found
