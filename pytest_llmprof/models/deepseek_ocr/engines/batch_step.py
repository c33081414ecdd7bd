"""The decode step of `fast` for 2 to 8 rows: `batch_kernels.py` in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_llmprof.models.deepseek_ocr.engines.kernel_step import KernelModel, KernelStep, power_of_two

if TYPE_CHECKING:
    from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache


class Tiles(NamedTuple):
    """How a kernel takes its matrix."""

    rows: int
    """Of a program; of gate and up together."""
    block: int
    """Columns of a tile."""
    stages: int
    """Tiles in the pipeline."""
    warps: int
    ahead: bool = True
    """Whether a program asks for its part of the matrix ahead of the loop."""


class BatchStep(KernelStep):
    """One decode step of *rows* rows that computes what `Step` of `step.py` computes."""

    PROJECT, JOIN, WIDEN = Tiles(64, 128, 4, 4), Tiles(16, 256, 4, 4), Tiles(32, 128, 4, 4, ahead=False)
    EXPERTS, NARROW, HEAD = Tiles(32, 128, 4, 4, ahead=False), Tiles(64, 64, 4, 4), Tiles(64, 128, 4, 4, ahead=False)
    ROUTED = 16
    """`widen`: the router's rows of a program."""
    SPLITS, PLACES, ATTEND_WARPS = 16, 16, 1

    def __init__(self, model: KernelModel, rows: int) -> None:
        """Take memory for what lies between the kernels of a step."""
        super().__init__(model, rows)
        from pytest_llmprof.models.deepseek_ocr.engines import batch_kernels

        self._batch_kernels = batch_kernels
        text, device, layers = model.text, model.device, len(model.layers)

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros((rows, *shape), device=device)

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        def packed(size: int, *shape: int) -> torch.Tensor:
            return torch.zeros((*shape, 2, rows, size), dtype=model.head.dtype, device=device)

        hidden, vocabulary = text.hidden_size, text.vocab_size
        top, inner = text.num_experts_per_tok, text.moe_intermediate_size
        # `narrow`: the columns of a dense matrix that a program takes, as many as an expert's.
        self._span = inner
        dense = max(mlp[-1].shape[1] for _, mlp in model.layers)
        self._stream = floats(1 + top + -(-dense // self._span), hidden)
        self.blend = packed(self.blend.shape[-1])
        self._normed = packed(hidden)
        """What products of the stream read: from `gather` a norm, from `join` one without its factor."""
        self._squares = torch.zeros((power_of_two(-(-hidden // self.JOIN.rows)), 8), device=device)
        self._factors = torch.zeros(8, device=device)
        self._inner = torch.zeros(2 * rows * dense, dtype=model.head.dtype, device=device)
        self._router_ticket = integers(1)
        # Of each layer, as `narrow` reads them before its wait.
        experts = text.n_routed_experts
        self._scores, self._shares = (torch.zeros((layers, rows, experts), device=device) for _ in range(2))
        self._slots = integers(layers, rows, experts)
        self._order, self._members = integers(layers, experts), integers(layers, experts)
        self._listed = min(experts, rows * top)
        """The most experts that a layer's list can have."""
        self._routed = packed(inner, self._listed)
        self.scores = floats(vocabulary)
        """[rows, vocabulary]: the last step's scores before the ban."""
        blocks = -(-vocabulary // self.HEAD.rows)
        self._best = floats(blocks)
        self._tokens = torch.zeros_like(self._best, dtype=torch.int32)

    def __call__(self, cache: Cache, ngram: int) -> None:
        """Advance *cache* by one token a row."""
        model, kernels, eps, rows = self.model, self._batch_kernels, self.model.eps, self.rows
        text, hidden, top = model.text, model.text.hidden_size, model.text.num_experts_per_tok
        experts, inner, stride = text.n_routed_experts, text.moe_intermediate_size, self._stream.stride(0)
        batch = {"BATCH": rows}
        shape = {**batch, "HIDDEN": hidden}
        self.begin_step(cache, ngram, self._stream)
        norms = [attention.norm for attention, _ in model.layers[1:]] + [model.norm]

        def gather(norm: torch.Tensor, slots: int, dense: int) -> None:
            self.launch(
                kernels.gather, (rows,), 8,
                self._stream, cache.ended, norm, self._normed, eps,
                SLOTS=slots, DENSE=dense, TOP=top, STRIDE=stride, POWER=power_of_two(hidden), **shape,
            )  # fmt: skip

        gather(model.layers[0][0].norm, 0, 0)
        for layer, ((attention, mlp), (keys, values)) in enumerate(zip(model.layers, cache.stored, strict=True)):
            qkv = len(attention.qkv)
            self._launch_tiles(
                kernels.project, qkv, self.PROJECT, self._normed, attention.qkv, self.qkv, N=qkv, **shape
            )
            self.attend(cache, keys, values)
            self._launch_tiles(
                kernels.join, hidden, self.JOIN,
                self.blend, attention.out, mlp.norm, self._stream, self._normed, self._squares,
                K=self.blend.shape[-1], STRIDE=stride, **shape,
            )  # fmt: skip
            gate_up, down, router, routed, chosen = self.mlp_of(mlp)
            slots, shares = self._slots[layer], self._shares[layer]
            order, members = self._order[layer], self._members[layer]
            dense, listed = down.shape[1], self._listed if chosen else 0
            self._launch_tiles(
                kernels.widen, 2 * dense, self.WIDEN,
                self._normed, self._squares, router, gate_up, cache.ended, self._factors, self._scores[layer],
                self._router_ticket, slots, shares, order, members, self._inner, eps, text.routed_scaling_factor,
                first=-(-routed // self.ROUTED), EXPERTS=routed, POWER=power_of_two(experts), TOP=top, LISTED=listed,
                INNER=dense, PARTS=len(self._squares), BATCH_POWER=power_of_two(rows), ROUTED=self.ROUTED, **shape,
            )  # fmt: skip
            choice = {"EXPERTS": experts, "INNER": inner}
            if chosen:
                self._launch_tiles(
                    kernels.experts, 2 * inner, self.EXPERTS,
                    self._normed, self._factors, shares, order, members, mlp.gate_up, self._routed,
                    beside=listed, **choice, **shape,
                )  # fmt: skip
            spans = -(-dense // self._span)
            self._launch_tiles(
                kernels.narrow, hidden, self.NARROW,
                slots, order, members, self._routed, mlp.down, self._inner, down, self._stream,
                beside=listed + spans, LISTED=listed, TOP=top, DENSE=dense, SPAN=self._span, STRIDE=stride,
                **choice, **shape,
            )  # fmt: skip
            gather(norms[layer], chosen, spans)
        self._launch_tiles(
            kernels.head, text.vocab_size, self.HEAD,
            self._normed, model.head, self.banned, cache.length, self.scores, self._best, self._tokens,
            VOCABULARY=text.vocab_size, **shape,
        )  # fmt: skip
        self.choose(cache, 8, self._best, self._tokens)

    def _launch_tiles(
        self, kernel: Any, count: int, tiles: Tiles, *values: Any, first: int = 0, beside: int = 1, **constants: Any
    ) -> None:
        """Launch *first* programs and then programs for *count* rows of a matrix, *beside* times."""
        self.launch(
            kernel, (first + -(-count // tiles.rows), beside), tiles.warps, *values,
            ROWS=tiles.rows, BLOCK=tiles.block, STAGES=tiles.stages, AHEAD=tiles.ahead and self.model.dependent,
            **constants,
        )  # fmt: skip
