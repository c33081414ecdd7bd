"""The engine `fast`: the decode step as this project's Triton kernels, replayed from one CUDA graph.

One row has the kernels of `kernels.py`, 2 to 8 rows those of `batch_kernels.py`. Vision and prefill are those of
`compiled`. The host launches `block` steps, then reads their tokens together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_llmprof.errors import EngineUnavailable, ModelError, error_line
from pytest_llmprof.models.deepseek_ocr.engines import FAST_DTYPES, FAST_ROWS, FAST_TRITON
from pytest_llmprof.models.deepseek_ocr.engines.batch_step import BatchStep
from pytest_llmprof.models.deepseek_ocr.engines.kernel_step import (
    BLOCK,
    KernelModel,
    KernelStep,
    Tuned,
    power_of_two,
)
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, StaticCacheEngine, cache_places
from pytest_llmprof.models.engine_choice import dotted, older
from pytest_llmprof.models.graphs import require_compiler

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.generation import TokenTracker


def check_supported(device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
    """Before weights are loaded, refuse what this engine cannot run; the error names an engine that can.

    Raises `EngineUnavailable` for what this machine lacks, `ModelError` for settings. Under TRITON_INTERPRET=1 the
    kernels run on a CPU, slowly and in any dtype: for tests.
    """
    _check_rows(batch_size)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (device.type != "cuda" or torch.version.hip):  # torch calls AMD's GPUs "cuda" too
        raise EngineUnavailable(f"infer=fast needs an NVIDIA GPU; on {device} use infer=reference")
    try:
        import triton
    except ImportError:
        raise EngineUnavailable("infer=fast needs Triton, which is not installed; use infer=reference") from None
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it
        raise EngineUnavailable(
            f"infer=fast needs Triton, and it cannot be imported: {error_line(error)}; use infer=reference"
        ) from None
    version = getattr(triton, "__version__", "of no version")
    if older(version, FAST_TRITON):
        needed = f"Triton {dotted(FAST_TRITON)} or newer"
        raise EngineUnavailable(f"infer=fast needs {needed}, not {version}; use infer=compiled")
    name = str(dtype).removeprefix("torch.")
    if not interpreted and name not in FAST_DTYPES:
        raise ModelError(f"infer=fast runs in bfloat16 or float16; for model.dtype={name} use infer=compiled")


def _check_rows(pages: int) -> None:
    if pages > FAST_ROWS:
        raise ModelError(
            f"infer=fast reads up to {FAST_ROWS} pages at a time; for infer.batch_size={pages} use infer=compiled"
        )


class FastEngine(StaticCacheEngine):
    """Up to 8 rows at a time."""

    block = 16
    step: TritonStep

    def __init__(self, model: Any) -> None:
        """Raises as `check_supported` does, and `ModelError` for layers that the kernels do not compute."""
        device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
        check_supported(device, dtype, 1)
        cuda = device.type == "cuda"
        if cuda:
            require_compiler("fast", device)
        details = {"attention": "split, static cache", "experts": "read by index"}
        super().__init__(model, TritonStep, details, compiled=cuda)
        self.details = {**self.details, "dependent_launch": self.step.model.dependent}
        self._batches: dict[int, BatchStep] = {}

    def step_of(self, rows: int) -> TritonStep | BatchStep:
        """The step for *rows* rows, whose memory is taken at the first call."""
        if rows == 1:
            return self.step
        if rows not in self._batches:
            self._batches[rows] = BatchStep(self.step.model, rows)
        return self._batches[rows]

    def close(self) -> None:
        """Drop the model, the graphs and the caches."""
        super().close()
        self._batches.clear()

    def _prepare(self, rows: int, length: int, max_tokens: int, ngram: int) -> Cache:
        _check_rows(rows)
        cache = self.cache_for(rows, cache_places(length + max_tokens))
        key, step = self._graph(cache, ngram)
        if not self.graphs.has(key):
            cache.clear()
            self.graphs.run(key, step)
        self.step_of(rows).begin()
        return cache

    def _decode(self, cache: Cache, tracker: TokenTracker, length: int, ngram: int, phases: Phases) -> Iterator[Token]:
        filled, last = length + 1, length + tracker.max_tokens
        key, step = self._graph(cache, ngram)
        with phases.phase("decode"):
            while tracker.active:
                until = min(filled + self.block, last)
                for _ in range(filled, until):
                    with phases.step():
                        self.graphs.run(key, step)
                for tokens in zip(*cache.ids[:, filled:until].tolist(), strict=True):
                    if tracker.active:
                        yield from tracker.add(tokens)
                filled = until

    def _graph(self, cache: Cache, ngram: int) -> tuple[Hashable, Callable[[], None]]:
        return ("step", cache.rows, cache.places, ngram), partial(self.step_of(cache.rows), cache, ngram)


class TritonStep(KernelStep):
    """One decode step of one row that computes what `Step` of `step.py` computes."""

    # The fastest at full size: on an H100, and where an H200 has others.
    PROJECT, JOIN, WIDEN = Tuned(16, 4), Tuned(8, 4), Tuned(16, 8)
    EXPERTS, NARROW, HEAD = Tuned(8, 2), Tuned(16, 8), Tuned(16, 4)
    ON_H200: ClassVar = {
        "WIDEN": Tuned(16, 8, 128),
        "EXPERTS": Tuned(8, 4),
        "NARROW": Tuned(16, 4),
        "HEAD": Tuned(16, 4, 96),
    }
    SPLITS, PLACES, ATTEND_WARPS = 32, 16, 1
    PROGRAMS = 5
    """`head`: programs for each multiprocessor."""

    def __init__(self, model: Any) -> None:
        """Take the weights of transformers' *model*. Raises `ModelError` for layers of another kind."""
        super().__init__(KernelModel(model), rows=1)
        text, device = self.model.text, self.model.device

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        slots, inner = text.num_experts_per_tok, text.moe_intermediate_size
        # `narrow`: experts, or as many columns of the dense matrix, that a program takes.
        self._each = 2 if slots % 2 == 0 else 1
        self._span = self._each * inner
        dense = max(mlp[-1].shape[1] for _, mlp in self.model.layers)
        self._stream = floats(1 + slots // self._each + -(-dense // self._span), text.hidden_size)
        # A row for each layer: it is read before a wait, when a shared row could still hold another layer's scores.
        self._routes = floats(len(self.model.layers), text.n_routed_experts)
        self._routed, self._inner = floats(slots * inner), floats(dense)
        self.scores = floats(text.vocab_size)
        """[vocabulary]: the last step's scores before the ban."""
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        if card is not None and "H200" in card.name:
            for kernel, tuned in self.ON_H200.items():
                setattr(self, kernel, tuned)
        processors = card.multi_processor_count if card else 1
        self._best = floats(min(processors * self.PROGRAMS, -(-text.vocab_size // self.HEAD.rows)))
        self._tokens = torch.zeros_like(self._best, dtype=torch.int32)

    def __call__(self, cache: Cache, ngram: int) -> None:
        """Advance *cache* by one token."""
        model, kernels, text, eps = self.model, self.kernels, self.model.text, self.model.eps
        hidden, slots = text.hidden_size, text.num_experts_per_tok
        experts, inner = text.n_routed_experts, text.moe_intermediate_size
        shape = {"HIDDEN": hidden, "BLOCK": BLOCK}
        choice = {"EXPERTS": experts, "POWER": power_of_two(experts), "INNER": inner}
        parts = 1
        self.begin_step(cache, ngram, self._stream)
        for (attention, mlp), (keys, values), routes in zip(model.layers, cache.stored, self._routes, strict=True):
            qkv = len(attention.qkv)
            self.launch_rows(
                kernels.project, [qkv], self.PROJECT,
                self._stream, attention.norm, attention.qkv, self.qkv, eps, N=qkv, PARTS=parts, **shape,
            )  # fmt: skip
            self.attend(cache, keys, values)
            self.launch_rows(
                kernels.join, [hidden], self.JOIN,
                self.blend, attention.out, self._stream, K=self.blend.shape[-1], PARTS=parts, **shape,
            )  # fmt: skip
            gate_up, down, router, routed, chosen = self.mlp_of(mlp)
            dense = down.shape[1]
            self.launch_rows(
                kernels.widen, [routed, dense], self.WIDEN,
                self._stream, mlp.norm, router, gate_up, routes, self._inner, eps, EXPERTS=routed, INNER=dense, **shape,
            )  # fmt: skip
            if chosen:
                self.launch_rows(
                    kernels.experts, [inner], self.EXPERTS,
                    self._stream, mlp.norm, routes, mlp.gate_up, self._routed, eps, text.routed_scaling_factor,
                    beside=slots, WARPS=self.EXPERTS.warps, **choice, **shape,
                )  # fmt: skip
            parts = 1 + chosen // self._each + -(-dense // self._span)
            self.launch_rows(
                kernels.narrow, [hidden], self.NARROW,
                routes, self._routed, mlp.down, self._inner, down, self._stream,
                beside=parts - 1, SLOTS=chosen, EACH=self._each, DENSE=dense, SPAN=self._span,
                WARPS=self.NARROW.warps, **choice, **shape,
            )  # fmt: skip
        self.launch(
            kernels.head, (len(self._best),), self.HEAD.warps,
            self._stream, model.norm, model.head, self.banned, cache.length,
            self.scores, self._best, self._tokens, eps,
            VOCABULARY=text.vocab_size, PARTS=parts, ROWS=self.HEAD.rows, registers=self.HEAD.registers, **shape,
        )  # fmt: skip
        self.choose(cache, 4, self._best, self._tokens)
