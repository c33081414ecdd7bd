"""What keeps two results from being compared: other work, another machine; and what else differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_llmprof.records.baseline import SavedMachine, SavedTest
from pytest_llmprof.text.escape import one_line

NAMED = 3
"""Names that a message lists."""


def other_work(one: SavedTest, other: SavedTest) -> str | None:
    """Why two tests are not of the same work: model, pages, inputs; None where they are."""
    old, new = one.fingerprint, other.fingerprint
    if old.model and new.model and old.model != new.model:
        return f"another model ({old.model[:19]} against {new.model[:19]})"
    gone, come = sorted(one.pages.keys() - other.pages.keys()), sorted(other.pages.keys() - one.pages.keys())
    if one.pages and other.pages and (gone or come):
        parts = [f"only {place}: {some(pages)}" for place, pages in (("before", gone), ("after", come)) if pages]
        return f"other pages ({'; '.join(parts)})"
    if old.dataset and new.dataset and old.dataset != new.dataset:
        return f"other inputs: pages of the same names differ ({old.dataset[:19]} against {new.dataset[:19]})"
    return None


def other_machine(old: SavedMachine, new: SavedMachine) -> str | None:
    """Why times of two machines cannot be compared: GPU, its power or clock limit, CPU; None where they can."""
    if old.gpu != new.gpu:
        return f"another GPU ({old.gpu or 'none'} against {new.gpu or 'none'})"
    if old.gpu is None:
        if (old.cpu, old.cores) != (new.cpu, new.cores):
            return f"another machine ({old.cpu}, {old.cores} cores, against {new.cpu}, {new.cores} cores)"
        return None
    for name, before, after, unit in (
        ("power limit", old.power_limit_w, new.power_limit_w, "W"),
        ("clock limit", old.sm_clock_max_mhz, new.sm_clock_max_mhz, "MHz"),
    ):
        if before is not None and after is not None and before != after:
            return f"another {name} of the GPU ({before:g} against {after:g} {unit})"
    return None


_MISSING = object()


def config_notice(old: Mapping[str, object] | None, new: Mapping[str, object] | None) -> str:
    """The changed keys of two flat configurations, as far as they are known."""
    if not old or not new:
        return "the configurations differ"
    keys = [
        key
        for key in dict.fromkeys((*old, *new))
        if old.get(key, _MISSING) != new.get(key, _MISSING) and not key.startswith(("llmprof.", "gate."))
    ]
    if not keys:
        return "the configurations differ"
    return f"the configurations differ: {some([f'{key} {old.get(key)} → {new.get(key)}' for key in keys])}"


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [one_line(name, 120) for name in names]
    more = len(shown) - NAMED
    return ", ".join(shown[:NAMED]) + (f" and {more} more" if more > 0 else "")
