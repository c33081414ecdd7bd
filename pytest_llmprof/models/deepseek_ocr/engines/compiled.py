"""The engine `compiled`: a static cache, torch.compile, and CUDA graphs for every phase."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.models.deepseek_ocr.engines.graphs import Graphs, refuse_without_compiler
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, Prefill
from pytest_llmprof.models.deepseek_ocr.engines.step import Step
from pytest_llmprof.models.deepseek_ocr.generation import Arrivals

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.engines import Inputs
    from pytest_llmprof.models.deepseek_ocr.generation import Limits

__all__ = ["CompiledEngine"]

_SHORTEST = 512
"""Attention looks at this many places, or twice, four times as many: a graph for each, made at a first call."""


class CompiledEngine:
    """Decode steps that the host launches ahead: it reads a token while the next one is computed."""

    block = 1

    def __init__(self, model: Any) -> None:
        """Raises `EngineUnavailable` where nothing can be compiled."""
        device = model.lm_head.weight.device
        refuse_without_compiler("compiled", device)
        self._model: Any = model
        self._graphs = Graphs(device)
        with torch.inference_mode():
            self._prefill: Any = Prefill(model, self._graphs)
            self._step: Any = Step(model)
        self._positions: int = model.config.text_config.max_position_embeddings
        self._caches: dict[tuple[int, int], Cache] = {}
        self.details: Mapping[str, Any] = {
            "attention": "masked, static cache",
            "experts": "gathered",
            "prefill": "captured" if self._prefill.captured else "eager",
        }

    def generate(self, inputs: Inputs, limits: Limits, phases: Phases) -> Iterator[Token]:
        """Yield the batch's tokens as they come; see `Engine.generate`."""
        prompts = inputs.prompts
        arrivals = Arrivals(prompts, limits)
        rows, length = prompts.ids.shape
        cache = self._cache_for(rows, length + arrivals.steps)
        self._make_steps(cache, length + 2, length + arrivals.steps, limits.ngram)
        cache.begin(prompts, limits)
        # Attention weighs places that are not filled with 0, and 0 times what was no number is none either.
        cache.stored[..., length:, :].zero_()
        embeddings = self._prefill.embeddings(inputs, phases)
        del inputs
        with phases.phase("prefill"):
            chosen = self._prefill.fill(cache, embeddings, prompts, limits.ngram)
        del embeddings
        yield from arrivals.take(chosen.tolist())
        if arrivals.rows:
            yield from self._decode(cache, arrivals, length, limits.ngram, phases)

    def _decode(self, cache: Cache, arrivals: Arrivals, length: int, ngram: int, phases: Phases) -> Iterator[Token]:
        ahead = _Ahead(cache.last)

        def launch() -> None:
            self._advance(cache, length + 2 + ahead.sent, ngram)
            ahead.send()

        with phases.phase("decode"):
            with phases.step():
                launch()
            while arrivals.rows:
                if ahead.sent < arrivals.steps - 1:
                    with phases.step():  # one for each step that is launched, also for what is launched for nothing
                        launch()
                        arrived = arrivals.take(ahead.take())
                else:
                    arrived = arrivals.take(ahead.take())
                if not arrivals.rows:
                    ahead.wait()
                yield from arrived

    def close(self) -> None:
        """Let go of the model, the graphs and the caches."""
        self._model = self._prefill = self._step = None
        self._graphs.close()
        self._caches.clear()

    def _cache_for(self, rows: int, places: int) -> Cache:
        """The cache of batches of *rows* rows with up to *places* places: one for each length looked at, since graphs
        hold its address."""
        key = rows, min(_looked_at(places), max(places, self._positions))
        if key not in self._caches:
            self._caches[key] = Cache(self._model, *key)
        return self._caches[key]

    def _make_steps(self, cache: Cache, first: int, last: int, ngram: int) -> None:
        """Compile and capture what steps that fill from *first* to *last* places need: here, not in the midst of an
        answer. What these steps write is overwritten."""
        places = first
        while True:
            places = min(_looked_at(places), cache.places)
            if not self._graphs.knows(_key(cache, places, ngram)):
                cache.clear()
                self._advance(cache, places, ngram)
            if places >= last:
                return
            places += 1

    def _advance(self, cache: Cache, filled: int, ngram: int) -> None:
        places = min(_looked_at(filled), cache.places)
        self._graphs.run(_key(cache, places, ngram), partial(self._step, cache, places, ngram))


def _key(cache: Cache, places: int, ngram: int) -> tuple[Hashable, ...]:
    return "step", cache.rows, cache.places, places, ngram


def _looked_at(filled: int) -> int:
    """How many places attention looks at where *filled* are."""
    return max(_SHORTEST, 1 << (filled - 1).bit_length())


class _Ahead:
    """Tokens on their way to the host while the next step runs."""

    _SLOTS = 3

    def __init__(self, last: torch.Tensor) -> None:
        """*last* [rows] is where a step leaves its tokens."""
        self.sent = self.taken = 0
        self._last = last
        self._cuda = last.is_cuda
        self._host = torch.empty((self._SLOTS, *last.shape), dtype=last.dtype, pin_memory=self._cuda)
        self._there = [torch.cuda.Event() for _ in range(self._SLOTS)] if self._cuda else []  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Send the tokens of the step launched last."""
        slot = self.sent % self._SLOTS
        self._host[slot].copy_(self._last, non_blocking=True)
        if self._cuda:
            # Of the model's card, which need not be the current one.
            self._there[slot].record(torch.cuda.current_stream(self._last.device))
        self.sent += 1

    def take(self) -> list[int]:
        """Wait for the oldest tokens not taken yet."""
        slot = self.taken % self._SLOTS
        if self._cuda:
            self._there[slot].synchronize()
        self.taken += 1
        ids: list[int] = self._host[slot].tolist()
        return ids

    def wait(self) -> None:
        """Wait for a step that was launched for nothing: its time is the answer's too."""
        if self._cuda and self.sent > self.taken:
            self._there[(self.sent - 1) % self._SLOTS].synchronize()
