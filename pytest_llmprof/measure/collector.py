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


@contextmanager
def frozen_garbage_collector(*, collect: bool = True) -> Iterator[None]:
    """Collect what is garbage now (with *collect*), and leave what is alive out of collections inside the block.

    Where something is frozen already (by an enclosing block or the user) nothing more is: what is frozen can only be
    thawed as a whole, and a model that stayed frozen would never be freed.
    """
    if collect:
        gc.collect()
    ours = gc.get_freeze_count() < _OF_PYTHON
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
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
            if gc.get_freeze_count() < _OF_PYTHON:
                gc.freeze()
                gc.unfreeze()
            gc.enable()
