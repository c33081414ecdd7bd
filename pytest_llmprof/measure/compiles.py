"""What compiles, tunes or captures while the clock runs, so that a test can fail with the cause.

Looked at only where the process has imported torch.compile's machinery or Triton already: importing them costs
seconds, and what is not imported compiles nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

__all__ = ["CompileWatch", "complaint"]


class CompileWatch:
    """Open it around a timed pass, outside the clock; `seen` then has one line for each thing that was compiled.

    Sees torch.compile (first compilations, recompilations, its CUDA graphs), Triton's kernels (also those that
    come from its disk cache: loading them takes its time too), Triton's autotuning, and captures of CUDA graphs.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._before: list[Any] = []
        self._triggers: list[str] = []
        self._undo: list[tuple[Any, str, Any]] = []
        self._handler: Any = None

    def __enter__(self) -> CompileWatch:
        self._before = _compilations()
        callback = sys.modules.get("torch._dynamo.callback")
        if callback is not None:
            self._handler = callback.callback_handler
            self._handler.register_start_callback(self._on_compile)
        self._watch_triton()
        self._watch_captures()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, value in reversed(self._undo):
            setattr(owner, name, value)
        if self._handler is not None:
            self._handler.remove_start_callback(self._on_compile)
        known = set(map(id, self._before))
        new = [found for found in _compilations() if id(found) not in known]
        lines = [_line(found) for found in new]
        if self._triggers and not lines:
            lines = [f"torch.compile was at work ({trigger.lower()})" for trigger in dict.fromkeys(self._triggers)]
        self.seen = list(dict.fromkeys(lines + self.seen))
        self._undo, self._before, self._handler = [], [], None

    def _on_compile(self, *arguments: Any) -> None:
        # Some versions hand over nothing.
        trigger = getattr(arguments[0], "callback_trigger", None) if arguments else None
        self._triggers.append(getattr(trigger, "name", "compilation"))

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

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
            bench = tuner._bench
            seen = self.seen

            def watched(this: Any, *arguments: Any, **named: Any) -> Any:
                name = getattr(getattr(this, "base_fn", None), "__name__", "a kernel")
                seen.append(f"Triton tuned {name}")
                return bench(this, *arguments, **named)

            self._replace(tuner, "_bench", watched)

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
        graph = torch.cuda.CUDAGraph
        begin = graph.capture_begin
        seen = self.seen

        def watched(this: Any, *arguments: Any, **named: Any) -> Any:
            seen.append("a CUDA graph was captured")
            return begin(this, *arguments, **named)

        self._replace(graph, "capture_begin", watched)


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
