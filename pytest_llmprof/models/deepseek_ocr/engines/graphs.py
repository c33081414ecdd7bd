"""CUDA graphs of callables, and torch.compile for them: what engines build at a first call and replay later.

A first call with a new key compiles and captures: that belongs into warm-up. On a CPU a call is a call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_llmprof.errors import EngineUnavailable

__all__ = ["Graphs", "compile_whole", "refuse_without_compiler"]

_VARIANTS = 64
"""Shapes that one function may be compiled for; torch's own limit of 8 is met by two models in one process."""


def compile_whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile *function* in one piece, for the exact shapes that it is called with."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*inputs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            return compiled(*inputs)

    return call


def refuse_without_compiler(engine: str, device: torch.device) -> None:
    """Raise `EngineUnavailable` where torch.compile cannot make code for *device*: it compiles one addition to see."""
    with torch.inference_mode():
        try:
            compile_whole(lambda tensor: tensor + 1)(torch.zeros(8, device=device))
        # Whatever stops it (no C++ compiler, no Python headers, no Triton), the reader gets its first line.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineUnavailable(
                f"infer={engine} needs torch.compile, which does not work on {device} here: {reason}; "
                "use infer=reference"
            ) from error


@dataclass(frozen=True)
class _Graph:
    """A captured call, and where its inputs and outputs lie."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor | None


class Graphs:
    """One engine's CUDA graphs, which share a memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._known: dict[Hashable, _Graph | None] = {}
        self._stream: Any = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None

    def run(
        self, key: Hashable, function: Callable[..., torch.Tensor | None], *inputs: torch.Tensor
    ) -> torch.Tensor | None:
        """Return function(*inputs), replayed from the graph of *key* and of the inputs' shapes.

        At a first call *function* runs three times, then it is captured: it may write into tensors of its own, but
        must come to the same each time. What it returns is the caller's: graphs share their memory, so the next
        replay may write where this one's output lay.
        """
        whole = (key, *(tuple(tensor.shape) for tensor in inputs))
        if whole not in self._known:
            self._known[whole] = self._capture(function, inputs) if self._stream is not None else None
        graph = self._known[whole]
        if graph is None:
            return function(*inputs)
        for static, tensor in zip(graph.inputs, inputs, strict=True):
            static.copy_(tensor)
        graph.graph.replay()
        return None if graph.output is None else graph.output.clone()

    def knows(self, key: Hashable, *inputs: torch.Tensor) -> bool:
        """Whether `run` with these was called before."""
        return (key, *(tuple(tensor.shape) for tensor in inputs)) in self._known

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._known.clear()

    def _capture(self, function: Callable[..., torch.Tensor | None], inputs: tuple[torch.Tensor, ...]) -> _Graph:
        static = tuple(tensor.clone() for tensor in inputs)
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        # cuBLAS gets its workspace on the stream of the capture, before it.
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*static)
            stream.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = function(*static)
        return _Graph(graph, static, output)
