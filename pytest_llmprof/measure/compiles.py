"""What compiles, tunes or captures while the clock runs, so that a test can fail with the cause.

Looked at only where the process has imported torch.compile's machinery or Triton already: importing them costs
seconds, and what is not imported compiles nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any


class CompileWatch:
    """Open it around a timed pass, outside the clock; `seen` then has one line for each thing that was compiled.

    Sees torch.compile (first compilations, recompilations, its CUDA graphs), Triton's kernels (also those that
    come from its disk cache: loading them takes its time too), Triton's autotuning, and captures of CUDA graphs.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._before: list[Any] = []
        self._triggers: list[str] = []
        self._undo = ExitStack()

    def __enter__(self) -> CompileWatch:
        self._before = _compilations()
        callback = sys.modules.get("torch._dynamo.callback")
        if callback is not None:
            callback.callback_handler.register_start_callback(self._on_compile)
            self._undo.callback(callback.callback_handler.remove_start_callback, self._on_compile)
        self._watch_triton()
        self._watch_captures()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        known = set(map(id, self._before))
        lines = [_line(found) for found in _compilations() if id(found) not in known]
        if self._triggers and not lines:
            lines = [f"torch.compile was at work ({trigger.lower()})" for trigger in dict.fromkeys(self._triggers)]
        self.seen = list(dict.fromkeys(lines + self.seen))
        self._before = []

    def _on_compile(self, *arguments: Any) -> None:
        # Some versions hand over nothing.
        trigger = getattr(arguments[0], "callback_trigger", None) if arguments else None
        self._triggers.append(getattr(trigger, "name", "compilation"))

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def _note_calls(self, owner: Any, name: str, line: Callable[[Any], str]) -> None:
        """Add a line at each call of a method; *line* makes it of the object."""
        method = getattr(owner, name)

        def noted(this: Any, *arguments: Any, **named: Any) -> Any:
            self.seen.append(line(this))
            return method(this, *arguments, **named)

        self._replace(owner, name, noted)

    def _watch_triton(self) -> None:
        triton = sys.modules.get("triton")
        if triton is None:
            return
        runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
        jit = getattr(sys.modules.get("triton.runtime.jit"), "JITFunction", None)
        # The hook moved from the class to the knobs in Triton 3.4.
        for owner, name in ((runtime, "jit_post_compile_hook"), (jit, "compiled_hook")):
            if hasattr(owner, name):
                self._replace(owner, name, self._triton_hook(getattr(owner, name)))
                break
        tuner: Any = getattr(sys.modules.get("triton.runtime.autotuner"), "Autotuner", None)
        if hasattr(tuner, "_bench"):
            self._note_calls(tuner, "_bench", lambda this: f"Triton tuned {_function(this)}")

    def _triton_hook(self, before: Any) -> Any:
        def hook(**given: Any) -> Any:
            function = given.get("fn")
            self.seen.append(f"Triton compiled {getattr(function, 'name', None) or given.get('repr', 'a kernel')}")
            return before(**given) if before is not None else None

        return hook

    def _watch_captures(self) -> None:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        self._note_calls(torch.cuda.CUDAGraph, "capture_begin", lambda _: "a CUDA graph was captured")


def complaint(where: str, seen: Sequence[str], warmup: int) -> str:
    """One line for a pass in which something compiled. *where* names it: "round 1, page letter"."""
    first, more = seen[0], f" (and {len(seen) - 1} more)" if len(seen) > 1 else ""
    if warmup:
        hint = (
            f"warm-up (measure.warmup={warmup}) did not run this shape; raise measure.warmup, or give the engine "
            "shapes that do not depend on the answer"
        )
    else:
        hint = "there was no warm-up; set measure.warmup to 1 or more"
    return f"{where}: {first}{more} inside the clock: {hint}"


def _function(tuner: Any) -> str:
    return getattr(getattr(tuner, "base_fn", None), "__name__", "a kernel")


def _compilations() -> list[Any]:
    """What torch.compile remembers of its compilations; empty where it was never imported."""
    utils = sys.modules.get("torch._dynamo.utils")
    recorded = getattr(utils, "get_compilation_metrics", None)
    return list(recorded()) if recorded is not None else []


def _line(found: Any) -> str:
    name = getattr(found, "co_name", None)
    if name is None:
        return "torch.compile tuned or recorded what it had compiled before"
    place = f"{getattr(found, 'co_filename', '?')}:{getattr(found, 'co_firstlineno', '?')}"
    cause = getattr(found, "recompile_reason", None)
    if cause is None:
        return f"torch.compile compiled {name} ({place})"
    # The reason is a guard, then a note in a comment.
    guard = " ".join(str(cause).split("  #")[0].split())
    return f"torch.compile compiled {name} ({place}) again (cause: {guard[:300]})"
