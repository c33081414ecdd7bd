"""What the decode steps of `fast` share: a model's weights as its kernels read them, and how kernels are launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.engines.step import Dense, Sparse, check_layers, weights_of

if TYPE_CHECKING:
    from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache

BLOCK = 256
"""Columns that a program multiplies at once: a warp's 32 threads take 8 each, 16 bytes of bfloat16."""


class Tuned(NamedTuple):
    """How the programs of a kernel of `kernels.py` are cut."""

    rows: int
    """Rows of the matrix that a program takes."""
    warps: int
    registers: int = 0
    """Most registers of a thread, so that more programs fit on a multiprocessor; 0: as many as it needs."""


class KernelModel:
    """The language model's sizes and weights. Weights are not copied."""

    def __init__(self, model: Any) -> None:
        """Take transformers' *model*. Raises `ModelError` for layers of another kind."""
        text, language = model.config.text_config, model.model.language_model
        check_layers(text)
        size = language.layers[0].self_attn.head_dim
        if size != power_of_two(size):
            raise ModelError(f"infer=fast needs heads whose size is a power of two, not {size}: use infer=compiled")
        self.text, self.size, self.eps = text, size, text.rms_norm_eps
        self.embedding, self.head = language.embed_tokens.weight, model.lm_head.weight
        self.norm = language.norm.weight
        """[hidden]: weights of the last norm."""
        self.layers = weights_of(language.layers)
        self.device = device = self.head.device
        self.dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        """Whether a kernel may start before the previous one has ended (PDL)."""
        places = torch.arange(text.max_position_embeddings, device=device)
        rotary = language.rotary_emb(torch.empty(0, device=device), places[None])
        self.cosines, self.sines = (table[0, :, : size // 2].contiguous() for table in rotary)  # equal halves


class KernelStep:
    """Launches the kernels of a decode step."""

    SPLITS: int
    """`attend`: parts of the cache, one program each."""
    PLACES: int
    """`attend`: places that a program reads together."""
    ATTEND_WARPS: int
    WINDOWS = 256
    """`begin`: places at which a program looks for repeated n-grams."""

    def __init__(self, model: KernelModel, rows: int) -> None:
        """Take memory for what lies between those kernels that steps of one row and of several *rows* share."""
        from pytest_llmprof.models.deepseek_ocr.engines import kernels

        self.model, self.rows = model, rows
        self.kernels: Any = kernels
        text, size, device = model.text, model.size, model.device
        heads, kv_heads, splits = text.num_attention_heads, text.num_key_value_heads, self.SPLITS

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros((rows, *shape), device=device)

        self.qkv = floats((heads + 2 * kv_heads) * size)
        """[rows, queries, keys and values]: what `attend` reads."""
        self.blend = floats(heads * size)
        """[rows, heads * head size]: what `attend` writes."""
        self._parts, self._peaks, self._sums = floats(heads, splits, size), floats(heads, splits), floats(heads, splits)
        self._tickets = torch.zeros((rows, heads), dtype=torch.int32, device=device)
        self._last_ticket = torch.zeros(1, dtype=torch.int32, device=device)
        self.banned = torch.full((rows, text.vocab_size), -1, dtype=torch.int32, device=device)
        """[rows, vocabulary]: the place that a token may not fill."""

    def begin(self) -> None:
        """Reset the n-gram ban for new answers."""
        self.banned.fill_(-1)

    def begin_step(self, cache: Cache, ngram: int, stream: torch.Tensor) -> None:
        """Launch `begin`. The first part of each row of *stream* is the row's."""
        hidden = self.model.text.hidden_size
        windows = -(-cache.places // self.WINDOWS) if ngram else 0
        self.launch(
            self.kernels.begin, (1 + windows, self.rows), 4,
            self.model.embedding, cache.last, cache.ids, cache.length, stream, self.banned, cache.places,
            HIDDEN=hidden, POWER=power_of_two(hidden), NGRAM=max(ngram, 1), SPAN=self.WINDOWS,
            STRIDE=stream.stride(0), VOCABULARY=self.model.text.vocab_size, BATCH=self.rows,
        )  # fmt: skip

    def attend(self, cache: Cache, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Launch `attend`, from `qkv` to `blend`, with the *keys* and *values* of a layer."""
        model, text = self.model, self.model.text
        self.launch(
            self.kernels.attend, (text.num_attention_heads, self.SPLITS, self.rows), self.ATTEND_WARPS,
            self.qkv, model.cosines, model.sines, keys, values, cache.length, cache.starts, cache.ended,
            self._parts, self._peaks, self._sums, self._tickets, self.blend,
            cache.places, len(model.cosines), model.size**-0.5,
            HEADS=text.num_attention_heads, KV_HEADS=text.num_key_value_heads, SIZE=model.size,
            SPLITS=self.SPLITS, BLOCK=self.PLACES, BATCH=self.rows,
        )  # fmt: skip

    def choose(self, cache: Cache, warps: int, best: torch.Tensor, tokens: torch.Tensor) -> None:
        """Launch `choose` with the *best* scores of `head`'s programs and their *tokens*, [rows, programs] each."""
        self.launch(
            self.kernels.choose, (self.rows,), warps,
            best, tokens, cache.ids, cache.length, cache.last, cache.ended, cache.eos, cache.pad,
            self._last_ticket, cache.places,
            COUNT=best.shape[-1], POWER=power_of_two(best.shape[-1]), BATCH=self.rows,
        )  # fmt: skip

    def mlp_of(self, mlp: Dense | Sparse) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
        """What a layer's kernels read: gate and up, down (of the shared experts, where there are any), the router, the
        number of routed experts and how many of them a token has; 0 of both, and any matrix as router, without one."""
        if isinstance(mlp, Sparse):
            text = self.model.text
            experts, top = text.n_routed_experts, text.num_experts_per_tok
            return mlp.shared_gate_up, mlp.shared_down, mlp.router, experts, top
        return mlp.gate_up, mlp.down, mlp.gate_up, 0, 0

    def launch_rows(
        self, kernel: Any, counts: list[int], tuned: Tuned, *values: Any, beside: int = 1, **constants: Any
    ) -> None:
        """Launch programs for each of *counts* rows of a matrix, *beside* times."""
        grid = (sum(-(-count // tuned.rows) for count in counts), beside)
        self.launch(kernel, grid, tuned.warps, *values, ROWS=tuned.rows, registers=tuned.registers, **constants)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], warps: int, *values: Any, registers: int = 0, **constants: Any
    ) -> None:
        """Launch one kernel; all of a step's launches come through here. *registers*: as in `Tuned`."""
        launch: dict[str, Any] = {"enable_fp_fusion": True}  # the default of Triton until 3.10
        if self.model.dependent:
            launch["launch_pdl"] = True
        if registers:
            launch["maxnreg"] = registers
        kernel[grid](*values, PDL=self.model.dependent, num_warps=warps, **constants, **launch)


def power_of_two(count: int) -> int:
    """The lowest power of two that is at least *count*."""
    return 1 << (count - 1).bit_length()
