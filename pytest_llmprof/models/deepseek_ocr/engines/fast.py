"""The engine `fast`: the decode step as Triton kernels of our own (`kernels.py`), replayed from one CUDA graph.

Vision and prefill are those of `compiled`. The host launches `block` steps, then looks at their tokens at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.models.deepseek_ocr.engines.graphs import Graphs, refuse_without_compiler
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, Prefill
from pytest_llmprof.models.deepseek_ocr.engines.step import Sparse, check_layers, weights_of
from pytest_llmprof.models.deepseek_ocr.generation import Arrivals

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.engines import Inputs
    from pytest_llmprof.models.deepseek_ocr.generation import Limits

__all__ = ["FastEngine", "refuse"]

_SHORTEST = 512
"""Places of the smallest cache; others have twice, four times as many."""
_TRITON = (3, 5)
"""The first one in which a kernel can be launched ahead, as its kernels are, and that takes tuples of tiles."""
_BLOCK = 256
"""Columns that a program multiplies at once: a warp's 32 threads take 8 each, 16 bytes of bfloat16."""


def refuse(device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
    """Say at once, before weights are loaded, what this engine cannot run, and which one can.

    Raises `EngineUnavailable` for what this machine lacks, `ModelError` for settings. Under TRITON_INTERPRET=1 the
    kernels run on a CPU, slowly and in any type: for tests.
    """
    try:
        import triton
    except ImportError:
        raise EngineUnavailable("infer=fast needs Triton, which is not installed; use infer=reference") from None
    version = triton.__version__
    if tuple(map(int, version.split(".")[:2])) < _TRITON:
        needed = ".".join(map(str, _TRITON))
        raise EngineUnavailable(f"infer=fast needs Triton {needed} or newer, not {version}; use infer=compiled")
    _one_page(batch_size)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if device.type != "cuda" or torch.version.hip:  # torch calls AMD's cards "cuda", too
        raise EngineUnavailable(f"infer=fast needs an NVIDIA card; on {device} use infer=reference")
    if dtype not in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        raise ModelError(f"infer=fast runs in bfloat16 or float16; for model.dtype={name} use infer=compiled")


def _one_page(pages: int) -> None:
    if pages > 1:
        raise ModelError(f"infer=fast reads one page at a time; for infer.batch_size={pages} use infer=compiled")


class FastEngine:
    """One row at a time."""

    block = 16

    def __init__(self, model: Any) -> None:
        """Raises as `refuse` does, and `ModelError` for layers that the kernels don't compute."""
        weight = model.lm_head.weight
        device: torch.device = weight.device
        refuse(device, weight.dtype, 1)
        if device.type == "cuda":
            refuse_without_compiler("fast", device)
        self._model: Any = model
        self._graphs = Graphs(device)
        with torch.inference_mode():
            self._prefill: Any = Prefill(model, self._graphs, compiled=device.type == "cuda")
            self._step: Any = TritonStep(model)
        self._positions: int = model.config.text_config.max_position_embeddings
        self._caches: dict[int, Cache] = {}
        self.details: Mapping[str, Any] = {
            "attention": "split, static cache",
            "experts": "read by index",
            "prefill": "captured" if self._prefill.captured else "eager",
            "dependent_launch": self._step.dependent,
        }

    def generate(self, inputs: Inputs, limits: Limits, phases: Phases) -> Iterator[Token]:
        """Yield the page's tokens, `block` at a time; see `Engine.generate`."""
        prompts = inputs.prompts
        rows, length = prompts.ids.shape
        _one_page(rows)
        arrivals = Arrivals(prompts, limits)
        cache = self._cache_for(length + arrivals.steps)
        step = partial(self._step, cache, limits.ngram)
        key = "step", cache.places, limits.ngram
        if not self._graphs.knows(key):
            cache.clear()
            self._graphs.run(key, step)
        cache.begin(prompts, limits)
        self._step.begin()
        embeddings = self._prefill.embeddings(inputs, phases)
        del inputs
        with phases.phase("prefill"):
            chosen = self._prefill.fill(cache, embeddings, prompts, limits.ngram)
        del embeddings
        yield from arrivals.take(chosen.tolist())
        filled, last = length + 1, length + arrivals.steps
        if not arrivals.rows:
            return
        with phases.phase("decode"):
            while arrivals.rows:
                until = min(filled + self.block, last)
                for _ in range(filled, until):
                    with phases.step():
                        self._graphs.run(key, step)
                for token in cache.ids[0, filled:until].tolist():
                    if arrivals.rows:
                        yield from arrivals.take([token])
                filled = until

    def close(self) -> None:
        """Let go of the model, the graphs and the caches."""
        self._model = self._prefill = self._step = None
        self._graphs.close()
        self._caches.clear()

    def _cache_for(self, places: int) -> Cache:
        """A cache of at least *places* places; graphs hold its address, so it is kept."""
        size = max(_SHORTEST, 1 << (places - 1).bit_length())
        if size not in self._caches:
            self._caches[size] = Cache(self._model, 1, size)
        return self._caches[size]


class TritonStep:
    """One decode step, as `Step` of `step.py` computes it. Weights are used where they lie."""

    # Rows of a matrix that a program takes, and its warps: the fastest on an H100 at full size.
    _PROJECT, _JOIN, _WIDEN, _EXPERTS, _NARROW, _HEAD = (16, 4), (8, 4), (16, 8), (8, 2), (16, 8), (16, 4)
    _SPLITS, _PLACES = 16, 32
    """`attend`: parts of the cache, a program each, and places that one looks at together."""
    _PROGRAMS = 5
    """`head`: programs for each multiprocessor."""
    _WINDOWS = 256
    """`begin`: places at which a program looks for repeated n-grams."""

    def __init__(self, model: Any) -> None:
        """Take *model*'s weights. Raises `ModelError` for layers of another kind."""
        from pytest_llmprof.models.deepseek_ocr.engines import kernels

        self._kernels: Any = kernels
        text, language = model.config.text_config, model.model.language_model
        check_layers(text)
        size = language.layers[0].self_attn.head_dim
        if size != _power(size):
            raise ModelError(f"infer=fast needs heads whose size is a power of two, not {size}: use infer=compiled")
        self._text, self._size, self._eps = text, size, text.rms_norm_eps
        self._embedding, self._head = language.embed_tokens.weight, model.lm_head.weight
        self._norm = language.norm.weight
        self._layers = weights_of(language.layers)
        device = self._head.device
        self.dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        """Whether a kernel may start before the one in front of it has ended."""
        places = torch.arange(text.max_position_embeddings, device=device)
        turns = language.rotary_emb(torch.empty(0, device=device), places[None])
        self._cosines, self._sines = (turn[0, :, : size // 2].contiguous() for turn in turns)  # the halves are equal

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        heads, slots, inner = text.num_attention_heads, text.num_experts_per_tok, text.moe_intermediate_size
        self._each = 2 if slots % 2 == 0 else 1
        self._span = self._each * inner
        dense = max(mlp[-1].shape[1] for _, mlp in self._layers)
        self._stream = floats(1 + slots // self._each + -(-dense // self._span), text.hidden_size)
        self._qkv, self._blend = floats((heads + 2 * text.num_key_value_heads) * size), floats(heads * size)
        self._parts, self._peaks, self._sums = floats(heads * self._SPLITS * size), *floats(2, heads * self._SPLITS)
        self._tickets = torch.zeros(heads, dtype=torch.int32, device=device)
        # A row for each layer: they are read before a wait, when a shared one might be an older layer's.
        self._routes = floats(len(self._layers), text.n_routed_experts)
        self._routed, self._inner = floats(slots * inner), floats(dense)
        self.scores = floats(text.vocab_size)
        """[vocabulary] of the last step, before the ban."""
        self._banned = torch.full((text.vocab_size,), -1, dtype=torch.int32, device=device)
        card = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        self._best = floats(min(card * self._PROGRAMS, -(-text.vocab_size // self._HEAD[0])))
        self._tokens = torch.zeros_like(self._best, dtype=torch.int32)

    def begin(self) -> None:
        """Forget which tokens were banned where: a new answer begins."""
        self._banned.fill_(-1)

    def __call__(self, cache: Cache, ngram: int) -> None:
        """Advance *cache* by one token."""
        kernels, text, eps = self._kernels, self._text, self._eps
        hidden, heads, slots = text.hidden_size, text.num_attention_heads, text.num_experts_per_tok
        experts, inner = text.n_routed_experts, text.moe_intermediate_size
        shape = {"HIDDEN": hidden, "BLOCK": _BLOCK}
        choice = {"EXPERTS": experts, "POWER": _power(experts), "INNER": inner}
        windows = -(-cache.places // self._WINDOWS) if ngram else 0
        parts = 1
        self._launch(
            kernels.begin, (1 + windows,), 4,
            self._embedding, cache.last, cache.ids, cache.length, self._stream, self._banned,
            HIDDEN=hidden, POWER=_power(hidden), NGRAM=max(ngram, 1), SPAN=self._WINDOWS,
        )  # fmt: skip
        for (attention, mlp), (keys, values), routes in zip(self._layers, cache.stored, self._routes, strict=True):
            self._rows(
                kernels.project, [len(self._qkv)], self._PROJECT,
                self._stream, attention.norm, attention.qkv, self._qkv, eps, N=len(self._qkv), PARTS=parts, **shape,
            )  # fmt: skip
            self._launch(
                kernels.attend, (heads, self._SPLITS), 2,
                self._qkv, self._cosines, self._sines, keys, values, cache.length,
                self._parts, self._peaks, self._sums, self._tickets, self._blend, cache.places, self._size**-0.5,
                HEADS=heads, KV_HEADS=text.num_key_value_heads, SIZE=self._size,
                SPLITS=self._SPLITS, BLOCK=self._PLACES,
            )  # fmt: skip
            self._rows(
                kernels.join, [hidden], self._JOIN,
                self._blend, attention.out, self._stream, K=len(self._blend), PARTS=parts, **shape,
            )  # fmt: skip
            if isinstance(mlp, Sparse):
                gate_up, down, router, routed, chosen = mlp.shared_gate_up, mlp.shared_down, mlp.router, experts, slots
            else:
                gate_up, down, router, routed, chosen = mlp.gate_up, mlp.down, mlp.gate_up, 0, 0
            dense = down.shape[1]
            self._rows(
                kernels.widen, [routed, dense], self._WIDEN,
                self._stream, mlp.norm, router, gate_up, routes, self._inner, eps, EXPERTS=routed, INNER=dense, **shape,
            )  # fmt: skip
            if chosen:
                self._rows(
                    kernels.experts, [inner], self._EXPERTS,
                    self._stream, mlp.norm, routes, mlp.gate_up, self._routed, eps, text.routed_scaling_factor,
                    beside=slots, **choice, **shape,
                )  # fmt: skip
            parts = 1 + chosen // self._each + -(-dense // self._span)
            self._rows(
                kernels.narrow, [hidden], self._NARROW,
                routes, self._routed, mlp.down, self._inner, down, self._stream,
                beside=parts - 1, SLOTS=chosen, EACH=self._each, DENSE=dense, SPAN=self._span, **choice, **shape,
            )  # fmt: skip
        self._launch(
            kernels.head, (len(self._best),), self._HEAD[1],
            self._stream, self._norm, self._head, self._banned, cache.length,
            self.scores, self._best, self._tokens, eps,
            VOCABULARY=text.vocab_size, PARTS=parts, ROWS=self._HEAD[0], **shape,
        )  # fmt: skip
        self._launch(
            kernels.choose, (1,), 4,
            self._best, self._tokens, cache.ids, cache.length, cache.last, cache.ended, cache.eos, cache.pad,
            COUNT=len(self._best), POWER=_power(len(self._best)),
        )  # fmt: skip

    def _rows(
        self, kernel: Any, counts: list[int], tuned: tuple[int, int], *values: Any, beside: int = 1, **constants: Any
    ) -> None:
        """Launch with programs for each of *counts* rows, *beside* times."""
        rows, warps = tuned
        grid = (sum(-(-count // rows) for count in counts), beside)
        self._launch(kernel, grid, warps, *values, ROWS=rows, **constants)

    def _launch(self, kernel: Any, grid: tuple[int, ...], warps: int, *values: Any, **constants: Any) -> None:
        launch = {"enable_fp_fusion": True}  # the default of Triton until 3.10
        if self.dependent:
            launch["launch_pdl"] = True
        kernel[grid](*values, PDL=self.dependent, num_warps=warps, **constants, **launch)


def _power(count: int) -> int:
    """The lowest power of two that is not below *count*."""
    return 1 << (count - 1).bit_length()
