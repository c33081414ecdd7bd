"""CUDA graphs and torch.compile: what engines build at a first call and replay later.

The first call with a new key compiles and captures, so it belongs into warm-up. On a CPU nothing is captured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmprof.errors import EngineUnavailable

_MAX_SHAPES = 64
"""Shapes that one function may be compiled for; two models in one process exceed torch's own limit of 8."""

_HEADING = "backend='inductor' raised:\n"
"""What older torch (seen with 2.6) writes above the reason why it could not compile."""


def _shapes_limit() -> str:
    """torch's name for it; before 2.7 it was another."""
    return "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"


def compile_whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile *function* as one graph, for the exact shapes that it is called with."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    # torch 2.6 would make an input of a number that differs between layers, such as a norm's eps, and then fail.
    settings: dict[str, Any] = {_shapes_limit(): _MAX_SHAPES, "specialize_float": True}

    def call(*inputs: Any) -> Any:
        with torch._dynamo.config.patch(**settings):
            return compiled(*inputs)

    return call


def require_compiler(engine: str, device: torch.device) -> None:
    """Compile one addition for *device*; raise `EngineUnavailable` where torch.compile does not work."""
    with torch.inference_mode():
        given = torch.zeros(8, device=device)  # out of the try: a full device lacks no compiler
        try:
            compile_whole(lambda tensor: tensor + 1)(given)
        # Whatever the reason (no C++ compiler, no Python headers, no Triton), the user gets its first line.
        except Exception as error:
            text = str(error).strip().removeprefix(_HEADING)
            reason = (text or type(error).__name__).splitlines()[0]
            raise EngineUnavailable(
                f"infer={engine} needs torch.compile, which does not work on {device} here: {reason}; "
                "use infer=reference"
            ) from error
    if device.type == "cuda":
        _share_triton_cache(device)


def _share_triton_cache(device: torch.device) -> None:
    """Let our own Triton kernels have the cache directory of torch.compile's, as torch does when it compiles one.

    Where its kernels come from its cache, it leaves Triton's default: ours would be compiled again.
    """
    from torch._inductor.runtime.runtime_utils import triton_cache_dir  # type: ignore[attr-defined]  # torch 2.6 to now

    os.environ.setdefault("TRITON_CACHE_DIR", triton_cache_dir(device.index or 0))


@dataclass(frozen=True)
class _Graph:
    """A captured call, and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor | None


class Graphs:
    """One engine's CUDA graphs, which share a memory pool."""

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._device = device
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._stream: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if cuda else None

    def run(self, key: Hashable, function: Callable[..., Tensor | None], *inputs: Tensor) -> Tensor | None:
        """Return function(*inputs), replayed from the graph of *key* and of the inputs' shapes.

        At the first call *function* runs three times and is then captured. It may write into tensors that it keeps,
        but each run must give the same result. The caller gets a copy of the output: graphs share memory, so a later
        replay may overwrite the original.
        """
        whole = (key, *(tuple(tensor.shape) for tensor in inputs))
        if whole not in self._graphs:
            self._graphs[whole] = self._capture(function, inputs) if self._stream is not None else None
        graph = self._graphs[whole]
        if graph is None:
            return function(*inputs)
        for static, tensor in zip(graph.inputs, inputs, strict=True):
            static.copy_(tensor)
        graph.graph.replay()
        return None if graph.output is None else graph.output.clone()

    def has(self, key: Hashable) -> bool:
        """Whether `run` was called before with *key* and no inputs."""
        return (key,) in self._graphs

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._graphs.clear()

    def _capture(self, function: Callable[..., Tensor | None], inputs: tuple[Tensor, ...]) -> _Graph:
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
