"""The decode step of `fast` for 2 to 8 rows: `batch_kernels.py` in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_llmprof.models.deepseek_ocr.engines.kernel_step import BLOCK, KernelModel, KernelStep, power_of_two

if TYPE_CHECKING:
    from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache


class BatchStep(KernelStep):
    """One decode step of *rows* rows that computes what `Step` of `step.py` computes."""

    # For each kernel the rows of a matrix that a program takes, and its warps.
    PROJECT, JOIN, WIDEN, EXPERTS, NARROW, HEAD = (16, 4), (8, 4), (16, 8), (8, 4), (8, 4), (16, 4)
    SPLITS = 8

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

        hidden, vocabulary = text.hidden_size, text.vocab_size
        top, inner = text.num_experts_per_tok, text.moe_intermediate_size
        # `narrow`: the columns of a dense matrix that a program takes, as many as an expert's.
        self._span = inner
        dense = max(mlp[-1].shape[1] for _, mlp in model.layers)
        self._stream = floats(1 + top + -(-dense // self._span), hidden)
        self._normed, self._inner = floats(hidden), floats(dense)
        self._router_ticket = integers(1)
        # Of each layer, as `narrow` reads them before its wait.
        experts = text.n_routed_experts
        self._scores, self._shares = (torch.zeros((layers, rows, experts), device=device) for _ in range(2))
        self._slots = integers(layers, rows, experts)
        self._order, self._members = integers(layers, experts), integers(layers, experts)
        self._listed = min(experts, rows * top)
        """The most experts that a layer's list can have."""
        self._routed = torch.zeros((self._listed, rows, inner), device=device)
        self.scores = floats(vocabulary)
        """[rows, vocabulary]: the last step's scores before the ban."""
        blocks = -(-vocabulary // self.HEAD[0])
        self._best = floats(blocks)
        self._tokens = torch.zeros_like(self._best, dtype=torch.int32)

    def __call__(self, cache: Cache, ngram: int) -> None:
        """Advance *cache* by one token a row."""
        model, kernels, eps, rows = self.model, self._batch_kernels, self.model.eps, self.rows
        text, hidden, top = model.text, model.text.hidden_size, model.text.num_experts_per_tok
        experts, inner, stride = text.n_routed_experts, text.moe_intermediate_size, self._stream.stride(0)
        batch = {"BATCH": rows, "BLOCK": BLOCK}
        shape = {**batch, "HIDDEN": hidden, "STRIDE": stride}
        together = {"BATCH_POWER": power_of_two(rows)}
        self.begin_step(cache, ngram, self._stream)
        norms = [attention.norm for attention, _ in model.layers[1:]] + [model.norm]

        def gather(norm: torch.Tensor, slots: int, dense: int) -> None:
            self.launch(
                kernels.gather, (rows,), 4,
                self._stream, cache.ended, norm, self._normed, eps,
                SLOTS=slots, DENSE=dense, TOP=top, HIDDEN=hidden, STRIDE=stride, POWER=power_of_two(hidden),
            )  # fmt: skip

        gather(model.layers[0][0].norm, 0, 0)
        for layer, ((attention, mlp), (keys, values)) in enumerate(zip(model.layers, cache.stored, strict=True)):
            qkv = len(attention.qkv)
            self.launch_rows(
                kernels.product, [qkv], self.PROJECT,
                self._normed, attention.qkv, self.qkv, N=qkv, K=hidden, STRIDE=qkv, ADD=False, **batch,
            )  # fmt: skip
            self.attend(cache, keys, values)
            self.launch_rows(
                kernels.product, [hidden], self.JOIN,
                self.blend, attention.out, self._stream,
                N=hidden, K=self.blend.shape[-1], STRIDE=stride, ADD=True, **batch,
            )  # fmt: skip
            gate_up, down, router, routed, chosen = self.mlp_of(mlp)
            slots, shares = self._slots[layer], self._shares[layer]
            order, members = self._order[layer], self._members[layer]
            dense, listed = down.shape[1], self._listed if chosen else 0
            self.launch_rows(
                kernels.widen, [routed, dense], self.WIDEN,
                self._stream, mlp.norm, router, gate_up, cache.ended, self._normed, self._scores[layer],
                self._router_ticket, slots, shares, order, members, self._inner, eps, text.routed_scaling_factor,
                EXPERTS=routed, POWER=power_of_two(experts), TOP=top, LISTED=listed, INNER=dense, **together, **shape,
            )  # fmt: skip
            choice = {"EXPERTS": experts, "INNER": inner}
            if chosen:
                self.launch_rows(
                    kernels.experts, [inner], self.EXPERTS,
                    self._normed, shares, order, members, mlp.gate_up, self._routed,
                    beside=listed, HIDDEN=hidden, **choice, **batch,
                )  # fmt: skip
            spans = -(-dense // self._span)
            self.launch_rows(
                kernels.narrow, [hidden], self.NARROW,
                slots, order, members, self._routed, mlp.down, self._inner, down, self._stream,
                beside=listed + spans, LISTED=listed, TOP=top, DENSE=dense, SPAN=self._span, **choice, **shape,
            )  # fmt: skip
            gather(norms[layer], chosen, spans)
        self.launch_rows(
            kernels.head, [text.vocab_size], self.HEAD,
            self._normed, model.head, self.banned, cache.length, self.scores, self._best, self._tokens,
            VOCABULARY=text.vocab_size, HIDDEN=hidden, **together, **batch,
        )  # fmt: skip
        self.choose(cache, 8, self._best, self._tokens)
