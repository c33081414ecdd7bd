"""The report's table of where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import at, count, number, numeric

__all__ = ["environment_table"]


def environment_table(environment: Mapping[str, Any]) -> str:
    """A Markdown table of environment.json; empty where there is nothing to show."""
    rows = [[name, inline(value, 200)] for name, value in _rows(environment) if value]
    return table(["", "Value"], rows, 2) if rows else ""


def _rows(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Card", _card(at(environment, "gpu"), at(environment, "gpu_reason"))
    after = _state(at(environment, "gpu_after"))
    yield "Card's state before" if after else "Card's state", _state(at(environment, "gpu"))
    yield "Card's state after", after
    yield "Throttled during the rounds", _held(at(environment, "gpu_throttled_ms"))
    host = at(environment, "host")
    cores, usable = numeric(at(host, "cores")), numeric(at(host, "affinity"))
    parts = [str(at(host, "cpu") or "")]
    if cores is not None:
        parts.append(f"{int(cores)} cores" + (f" ({int(usable)} usable)" if usable and usable != cores else ""))
    if at(host, "torch_threads"):
        parts.append(count(int(at(host, "torch_threads")), "torch thread"))
    if at(host, "ram_gib"):
        parts.append(f"{number(at(host, 'ram_gib'))} GiB memory")
    yield "Processor", ", ".join(part for part in parts if part)
    container = at(host, "container")
    yield "System", str(at(host, "os") or "") + (f", in a container ({container})" if container else "")
    yield "Python", str(at(environment, "python") or "")
    versions = at(environment, "versions")
    if isinstance(versions, Mapping):
        yield "Versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    yield "CUDA of torch", str(at(environment, "cuda") or "")
    commit = at(environment, "git", "commit")
    if commit:
        yield "Commit", f"{str(commit)[:12]}" + (", with local changes" if at(environment, "git", "dirty") else "")


def _card(card: Any, reason: Any) -> str:
    if not isinstance(card, Mapping):
        return f"none ({reason})" if reason else ""
    parts = [str(card.get("name") or "")]
    if card.get("memory_gib"):
        parts.append(f"{number(card['memory_gib'])} GiB")
    if card.get("driver"):
        parts.append(f"driver {card['driver']}")
    if reason:
        parts.append(str(reason))
    return ", ".join(parts)


def _held(throttled: Any) -> str:
    if not isinstance(throttled, Mapping):
        return ""
    parts = [f"{cause} {number(spent)} ms" for cause, spent in throttled.items() if numeric(spent)]
    return ", ".join(parts) or "not at all, by the driver's counters"


def _state(card: Any) -> str:
    if not isinstance(card, Mapping):
        return ""
    parts = []
    if card.get("power_limit_w"):
        parts.append(f"power cap {number(card['power_limit_w'])} W")
    if card.get("sm_clock_mhz"):
        top = f" of {card['sm_clock_max_mhz']}" if card.get("sm_clock_max_mhz") else ""
        parts.append(f"SM clock {card['sm_clock_mhz']}{top} MHz")
    if card.get("temperature_c"):
        parts.append(f"{card['temperature_c']} °C")
    if card.get("throttled") is not None:
        parts.append("throttled" if card["throttled"] else "not throttled")
    if card.get("other_processes") is not None:
        parts.append("shared" if card["other_processes"] else "not shared")
    return ", ".join(parts)
