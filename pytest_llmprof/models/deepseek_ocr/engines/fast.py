"""The engine `fast`: the decode step as this project's Triton kernels (`kernels.py`), replayed from one CUDA graph.

Vision and prefill are those of `compiled`. The host launches `block` steps, then reads their tokens together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.errors import EngineUnavailable, ModelError, error_line
from pytest_llmprof.models.deepseek_ocr.engines import FAST_DTYPES, FAST_TRITON, old_triton
from pytest_llmprof.models.deepseek_ocr.engines.graphs import require_compiler
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, StaticCacheEngine, cache_places
from pytest_llmprof.models.deepseek_ocr.engines.step import Sparse, check_layers, weights_of

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.generation import TokenTracker

_BLOCK = 256
"""Columns that a program multiplies at once: a warp's 32 threads take 8 each, 16 bytes of bfloat16."""


def check_supported(device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
    """Before weights are loaded, refuse what this engine cannot run; the error names an engine that can.

    Raises `EngineUnavailable` for what this machine lacks, `ModelError` for settings. Under TRITON_INTERPRET=1 the
    kernels run on a CPU, slowly and in any dtype: for tests.
    """
    _check_one_page(batch_size)
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
    if old_triton(version):
        needed = ".".join(map(str, FAST_TRITON))
        raise EngineUnavailable(f"infer=fast needs Triton {needed} or newer, not {version}; use infer=compiled")
    name = str(dtype).removeprefix("torch.")
    if not interpreted and name not in FAST_DTYPES:
        raise ModelError(f"infer=fast runs in bfloat16 or float16; for model.dtype={name} use infer=compiled")


def _check_one_page(pages: int) -> None:
    if pages > 1:
        raise ModelError(f"infer=fast reads one page at a time; for infer.batch_size={pages} use infer=compiled")


class FastEngine(StaticCacheEngine):
    """One row at a time."""

    block = 16

    def __init__(self, model: Any) -> None:
        """Raises as `check_supported` does, and `ModelError` for layers that the kernels do not compute."""
        device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
        check_supported(device, dtype, 1)
        cuda = device.type == "cuda"
        if cuda:
            require_compiler("fast", device)
        details = {"attention": "split, static cache", "experts": "read by index"}
        super().__init__(model, TritonStep, details, compiled=cuda)
        self.details = {**self.details, "dependent_launch": self.step.dependent}

    def _prepare(self, rows: int, length: int, max_tokens: int, ngram: int) -> Cache:
        _check_one_page(rows)
        cache = self.cache_for(1, cache_places(length + max_tokens))
        key, step = self._graph(cache, ngram)
        if not self.graphs.has(key):
            cache.clear()
            self.graphs.run(key, step)
        self.step.begin()
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
                for token in cache.ids[0, filled:until].tolist():
                    if tracker.active:
                        yield from tracker.add([token])
                filled = until

    def _graph(self, cache: Cache, ngram: int) -> tuple[Hashable, Callable[[], None]]:
        return ("step", cache.places, ngram), partial(self.step, cache, ngram)


class TritonStep:
    """One decode step that computes what `Step` of `step.py` computes. Weights are not copied."""

    # For each kernel the rows of a matrix that a program takes, and its warps: the fastest on an H100 at full size.
    PROJECT, JOIN, WIDEN, EXPERTS, NARROW, HEAD = (16, 4), (8, 4), (16, 8), (8, 2), (16, 8), (16, 4)
    SPLITS, PLACES = 16, 32
    """`attend`: parts of the cache, one program each, and the places that a program reads together."""
    PROGRAMS = 5
    """`head`: programs for each multiprocessor."""
    WINDOWS = 256
    """`begin`: places at which a program looks for repeated n-grams."""

    def __init__(self, model: Any) -> None:
        """Take *model*'s weights. Raises `ModelError` for layers of another kind."""
        from pytest_llmprof.models.deepseek_ocr.engines import kernels

        self._kernels: Any = kernels
        text, language = model.config.text_config, model.model.language_model
        check_layers(text)
        size = language.layers[0].self_attn.head_dim
        if size != _power_of_two(size):
            raise ModelError(f"infer=fast needs heads whose size is a power of two, not {size}: use infer=compiled")
        self._text, self._size, self._eps = text, size, text.rms_norm_eps
        self._embedding, self._head = language.embed_tokens.weight, model.lm_head.weight
        self.norm = language.norm.weight
        """[hidden]: weights of the last norm."""
        self._layers = weights_of(language.layers)
        device = self._head.device
        self.dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        """Whether a kernel may start before the previous one has ended (PDL)."""
        places = torch.arange(text.max_position_embeddings, device=device)
        rotary = language.rotary_emb(torch.empty(0, device=device), places[None])
        self._cosines, self._sines = (table[0, :, : size // 2].contiguous() for table in rotary)  # equal halves

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        heads, slots, inner = text.num_attention_heads, text.num_experts_per_tok, text.moe_intermediate_size
        # `narrow`: experts, or as many columns of the dense matrix, that a program takes.
        self._each = 2 if slots % 2 == 0 else 1
        self._span = self._each * inner
        dense = max(mlp[-1].shape[1] for _, mlp in self._layers)
        self._stream = floats(1 + slots // self._each + -(-dense // self._span), text.hidden_size)
        self._qkv, self._blend = floats((heads + 2 * text.num_key_value_heads) * size), floats(heads * size)
        self._parts, self._peaks, self._sums = floats(heads * self.SPLITS * size), *floats(2, heads * self.SPLITS)
        self._tickets = torch.zeros(heads, dtype=torch.int32, device=device)
        # A row for each layer: it is read before a wait, when a shared row could still hold another layer's scores.
        self._routes = floats(len(self._layers), text.n_routed_experts)
        self._routed, self._inner = floats(slots * inner), floats(dense)
        self.scores = floats(text.vocab_size)
        """[vocabulary]: the last step's scores before the ban."""
        self._banned = torch.full((text.vocab_size,), -1, dtype=torch.int32, device=device)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        self._best = floats(min(processors * self.PROGRAMS, -(-text.vocab_size // self.HEAD[0])))
        self._tokens = torch.zeros_like(self._best, dtype=torch.int32)

    def begin(self) -> None:
        """Reset the n-gram ban for a new answer."""
        self._banned.fill_(-1)

    def __call__(self, cache: Cache, ngram: int) -> None:
        """Advance *cache* by one token."""
        kernels, text, eps = self._kernels, self._text, self._eps
        hidden, heads, slots = text.hidden_size, text.num_attention_heads, text.num_experts_per_tok
        experts, inner = text.n_routed_experts, text.moe_intermediate_size
        shape = {"HIDDEN": hidden, "BLOCK": _BLOCK}
        choice = {"EXPERTS": experts, "POWER": _power_of_two(experts), "INNER": inner}
        windows = -(-cache.places // self.WINDOWS) if ngram else 0
        parts = 1
        self.launch(
            kernels.begin, (1 + windows,), 4,
            self._embedding, cache.last, cache.ids, cache.length, self._stream, self._banned,
            HIDDEN=hidden, POWER=_power_of_two(hidden), NGRAM=max(ngram, 1), SPAN=self.WINDOWS,
        )  # fmt: skip
        for (attention, mlp), (keys, values), routes in zip(self._layers, cache.stored, self._routes, strict=True):
            self._rows(
                kernels.project, [len(self._qkv)], self.PROJECT,
                self._stream, attention.norm, attention.qkv, self._qkv, eps, N=len(self._qkv), PARTS=parts, **shape,
            )  # fmt: skip
            self.launch(
                kernels.attend, (heads, self.SPLITS), 2,
                self._qkv, self._cosines, self._sines, keys, values, cache.length,
                self._parts, self._peaks, self._sums, self._tickets, self._blend, cache.places, self._size**-0.5,
                HEADS=heads, KV_HEADS=text.num_key_value_heads, SIZE=self._size,
                SPLITS=self.SPLITS, BLOCK=self.PLACES,
            )  # fmt: skip
            self._rows(
                kernels.join, [hidden], self.JOIN,
                self._blend, attention.out, self._stream, K=len(self._blend), PARTS=parts, **shape,
            )  # fmt: skip
            if isinstance(mlp, Sparse):
                gate_up, down, router, routed, chosen = mlp.shared_gate_up, mlp.shared_down, mlp.router, experts, slots
            else:
                gate_up, down, router, routed, chosen = mlp.gate_up, mlp.down, mlp.gate_up, 0, 0
            dense = down.shape[1]
            self._rows(
                kernels.widen, [routed, dense], self.WIDEN,
                self._stream, mlp.norm, router, gate_up, routes, self._inner, eps, EXPERTS=routed, INNER=dense, **shape,
            )  # fmt: skip
            if chosen:
                self._rows(
                    kernels.experts, [inner], self.EXPERTS,
                    self._stream, mlp.norm, routes, mlp.gate_up, self._routed, eps, text.routed_scaling_factor,
                    beside=slots, **choice, **shape,
                )  # fmt: skip
            parts = 1 + chosen // self._each + -(-dense // self._span)
            self._rows(
                kernels.narrow, [hidden], self.NARROW,
                routes, self._routed, mlp.down, self._inner, down, self._stream,
                beside=parts - 1, SLOTS=chosen, EACH=self._each, DENSE=dense, SPAN=self._span, **choice, **shape,
            )  # fmt: skip
        self.launch(
            kernels.head, (len(self._best),), self.HEAD[1],
            self._stream, self.norm, self._head, self._banned, cache.length,
            self.scores, self._best, self._tokens, eps,
            VOCABULARY=text.vocab_size, PARTS=parts, ROWS=self.HEAD[0], **shape,
        )  # fmt: skip
        self.launch(
            kernels.choose, (1,), 4,
            self._best, self._tokens, cache.ids, cache.length, cache.last, cache.ended, cache.eos, cache.pad,
            COUNT=len(self._best), POWER=_power_of_two(len(self._best)),
        )  # fmt: skip

    def _rows(
        self, kernel: Any, counts: list[int], tuned: tuple[int, int], *values: Any, beside: int = 1, **constants: Any
    ) -> None:
        """Launch programs for each of *counts* rows, *beside* times; *tuned* is rows a program and warps."""
        rows, warps = tuned
        grid = (sum(-(-count // rows) for count in counts), beside)
        self.launch(kernel, grid, warps, *values, ROWS=rows, **constants)

    def launch(self, kernel: Any, grid: tuple[int, ...], warps: int, *values: Any, **constants: Any) -> None:
        """Launch one kernel; all of a step's launches come through here."""
        launch = {"enable_fp_fusion": True}  # the default of Triton until 3.10
        if self.dependent:
            launch["launch_pdl"] = True
        kernel[grid](*values, PDL=self.dependent, num_warps=warps, **constants, **launch)


def _power_of_two(count: int) -> int:
    """The lowest power of two that is at least *count*."""
    return 1 << (count - 1).bit_length()
