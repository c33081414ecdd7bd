"""The engine `compiled`: a static cache, torch.compile, and CUDA graphs for every phase."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, StaticCacheEngine, cache_places
from pytest_llmprof.models.deepseek_ocr.engines.step import Step
from pytest_llmprof.models.graphs import require_compiler

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.generation import TokenTracker


class CompiledEngine(StaticCacheEngine):
    """Decode steps launched one ahead: the host reads a token while the next one is computed.

    Attention looks at the first 512, 1024, 2048, ... places of the cache; there is a graph for each of these sizes.
    """

    def __init__(self, model: Any) -> None:
        """Raises `EngineUnavailable` where nothing can be compiled."""
        require_compiler("compiled", model.lm_head.weight.device)
        super().__init__(model, Step, {"attention": "masked, static cache", "experts": "gathered"})
        self._positions: int = model.config.text_config.max_position_embeddings

    def advance(self, cache: Cache, filled: int, ngram: int) -> None:
        """Launch one step, which fills the cache up to *filled* places."""
        places = min(cache_places(filled), cache.places)
        self.graphs.run(_key(cache, places, ngram), partial(self.step, cache, places, ngram))

    def _prepare(self, rows: int, length: int, max_tokens: int, ngram: int) -> Cache:
        last = length + max_tokens
        cache = self.cache_for(rows, min(cache_places(last), max(last, self._positions)))
        filled = length + 2
        while True:
            places = min(cache_places(filled), cache.places)
            if not self.graphs.has(_key(cache, places, ngram)):
                cache.clear()
                self.advance(cache, places, ngram)
            if places >= last:
                break
            filled = places + 1
        # Attention gives empty places the weight 0, but 0 times a NaN of an earlier answer would be NaN.
        cache.stored[..., length:, :].zero_()
        return cache

    def _decode(self, cache: Cache, tracker: TokenTracker, length: int, ngram: int, phases: Phases) -> Iterator[Token]:
        queue = _TokenQueue(cache.last)

        def launch() -> None:
            self.advance(cache, length + 2 + queue.sent, ngram)
            queue.send()

        with phases.phase("decode"):
            with phases.step():
                launch()
            while tracker.active:
                if queue.sent < tracker.max_tokens - 1:
                    with phases.step():  # one for each launched step, also for a last one whose token is not used
                        launch()
                        arrived = tracker.add(queue.take())
                else:
                    arrived = tracker.add(queue.take())
                if not tracker.active:
                    queue.wait()
                yield from arrived


def _key(cache: Cache, places: int, ngram: int) -> tuple[Hashable, ...]:
    return "step", cache.rows, cache.places, places, ngram


class _TokenQueue:
    """Tokens on their way to the host while the next step runs."""

    _SLOTS = 3

    def __init__(self, last: Tensor) -> None:
        """*last* [rows] is where a step leaves its tokens."""
        self.sent = self.taken = 0
        self._last = last
        self._cuda = last.is_cuda
        self._host = torch.empty((self._SLOTS, *last.shape), dtype=last.dtype, pin_memory=self._cuda)
        slots = range(self._SLOTS if self._cuda else 0)
        self._arrived = [torch.cuda.Event() for _ in slots]  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Start to copy the tokens of the step launched last."""
        slot = self.sent % self._SLOTS
        self._host[slot].copy_(self._last, non_blocking=True)
        if self._cuda:
            # The stream of the model's GPU, which need not be the current one.
            self._arrived[slot].record(torch.cuda.current_stream(self._last.device))
        self.sent += 1

    def take(self) -> list[int]:
        """Wait for the oldest tokens not taken yet."""
        slot = self.taken % self._SLOTS
        if self._cuda:
            self._arrived[slot].synchronize()
        self.taken += 1
        ids: list[int] = self._host[slot].tolist()
        return ids

    def wait(self) -> None:
        """Wait for a step whose token is not used: its time belongs to the answer too."""
        if self._cuda and self.sent > self.taken:
            self._arrived[(self.sent - 1) % self._SLOTS].synchronize()
