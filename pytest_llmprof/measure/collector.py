"""Python's garbage collector, kept out of the measured rounds and of long imports.

A full collection walks every object of torch, transformers and pytest, a tenth of a second and more. Objects that
exist when the rounds begin are frozen, so that the GC ignores them while the clock runs; what a model leaves behind is
still collected, and costs the model what it would cost elsewhere.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_OF_PYTHON = 1000
"""Fewer frozen objects than this are the interpreter's own: CPython 3.12 begins with 375. To thaw them is harmless."""
_ours = False
"""Whether a block of ours has frozen objects. To count what is frozen takes a tenth of a second in a large process."""


@contextmanager
def frozen_garbage_collector(*, collect: bool = True) -> Iterator[None]:
    """Collect what is garbage now (with *collect*), and leave what is alive out of collections inside the block.

    Where something is frozen already (by an enclosing block or the user) nothing more is: what is frozen can only be
    thawed as a whole, and a model that stayed frozen would never be freed.
    """
    global _ours

    if collect:
        gc.collect()
    if _frozen():
        yield
        return
    gc.freeze()
    _ours = True
    try:
        yield
    finally:
        _ours = False
        gc.unfreeze()


@contextmanager
def paused_garbage_collector() -> Iterator[None]:
    """No collection inside the block, for imports of large libraries.

    What they make stays, and is walked again and again: a quarter of the time that torch and transformers take. At the
    end it is put with the old objects (freeze and thaw do that), or the next new object would have all of it walked.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            due = gc.get_count()[0] > gc.get_threshold()[0]
            if due and not _frozen():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _frozen() -> bool:
    return _ours or gc.get_freeze_count() >= _OF_PYTHON
