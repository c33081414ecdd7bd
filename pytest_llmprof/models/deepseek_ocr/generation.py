"""Greedy generation, one token at a time, so that each token is seen as it arrives.

`stream` is the loop of the engine `reference`; `EagerDecoder` calls transformers' modules one by one. The forward
passes, the n-gram ban and the choice of the next token stay on the device. The host waits in one place: where it
reads the tokens of a step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import Token
from pytest_llmprof.models.ngrams import ban_repeats

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases

NOT_A_TOKEN = -1
"""Padding before a shorter prompt. It equals no token, so no n-gram with padding in it repeats."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left to one length."""

    ids: Tensor
    """int64 [rows, length]; -1 where padded."""
    starts: Tensor
    """int64 [rows, 1]: where each row's prompt begins. Uploaded early: later it would wait for the vision tower."""
    padding: tuple[int, ...]
    """Padded places of each row."""

    @property
    def ids_to_embed(self) -> Tensor:
        """The ids with 0 where padded: the embedding needs a valid id there, and attention ignores the place."""
        return self.ids.clamp_min(0)


@dataclass(frozen=True)
class Limits:
    """When an answer stops, and which repeats are banned."""

    max_new_tokens: int
    positions: int
    """The model's positions: a prompt and its answer must fit in them."""
    eos: int | None
    """Token that ends an answer; None = go on to the limit."""
    pad: int
    """Token fed to rows that have ended."""
    ngram: int
    """No n-gram of this size occurs twice; 0 = no ban."""

    def answer_tokens(self, prompt_tokens: int) -> int:
        """Most tokens that may follow a prompt of this length. Raises `ModelError` where the prompt does not fit."""
        if prompt_tokens >= self.positions:
            raise ModelError(f"the prompt has {prompt_tokens} tokens; the model has {self.positions} positions")
        return min(self.max_new_tokens, self.positions - prompt_tokens)


def pad_prompts(rows: Sequence[Sequence[int]], device: torch.device) -> Prompts:
    """Pad the token ids of several prompts on the left and upload them."""
    length = max(map(len, rows))
    padding = tuple(length - len(row) for row in rows)
    padded = [[NOT_A_TOKEN] * left + list(row) for left, row in zip(padding, rows, strict=True)]
    starts = torch.tensor(padding)[:, None]
    return Prompts(torch.tensor(padded).to(device), starts.to(device), padding)


def stream(model: Any, prompts: Prompts, embeddings: Tensor, limits: Limits, phases: Phases) -> Iterator[Token]:
    """Yield the answers' tokens, greedily chosen, each as it arrives on the host.

    *embeddings* is [rows, length, hidden] with the images' features merged in. Call it in inference mode.
    """
    tracker = TokenTracker(prompts, limits)
    decoder = EagerDecoder(model, prompts, limits, tracker.max_tokens)
    with phases.phase("prefill"):
        chosen = decoder.first(embeddings)
    arrived = tracker.add(chosen.tolist())
    if tracker.active:
        yield from arrived
        with phases.phase("decode"):
            while True:
                with phases.step():
                    arrived = tracker.add(decoder.next().tolist())
                if not tracker.active:
                    break
                yield from arrived
    decoder.check()
    yield from arrived


class TokenTracker:
    """Turns the ids of each step into `Token`s and knows which rows have ended."""

    def __init__(self, prompts: Prompts, limits: Limits) -> None:
        """Raises `ModelError` where a prompt does not fit."""
        length = prompts.ids.shape[1]
        self._allowed = [limits.answer_tokens(length - padding) for padding in prompts.padding]
        self._eos = limits.eos
        self._count = 0
        self.active = list(range(len(self._allowed)))
        """Rows whose answers have not ended."""
        self.max_tokens = max(self._allowed)
        """Most tokens that any row may have."""

    def add(self, ids: Sequence[int]) -> list[Token]:
        """The tokens of one step, without rows that have ended. *ids* has one id a row and has just reached the host.

        Raises `ModelError` for an id of -1: an engine's sign that the scores of a row were not numbers.
        """
        now = perf_counter_ns()
        self._count += 1
        if any(ids[row] == NOT_A_TOKEN for row in self.active):
            raise ModelError(f"the scores of token {self._count} are not numbers (NaN): model.dtype=float32 may help")
        tokens = [Token(row, ids[row], None, now, self._finish(row, ids[row])) for row in self.active]
        self.active = [token.row for token in tokens if token.finish is None]
        return tokens

    def _finish(self, row: int, token: int) -> str | None:
        if token == self._eos:
            return "eos"
        return "length" if self._count >= self._allowed[row] else None


class EagerDecoder:
    """Chooses one batch's tokens with transformers' modules; cache, positions, masks and ids stay on the device."""

    def __init__(self, model: Any, prompts: Prompts, limits: Limits, max_tokens: int) -> None:
        """*max_tokens* is the most that any row's answer may have."""
        from transformers import DynamicCache

        rows, length = prompts.ids.shape
        device = prompts.ids.device
        self._text, self._head = model.model.language_model, model.lm_head
        self._limits = limits
        self._cache = DynamicCache(config=model.config.text_config)
        self._length = length
        self.ids = torch.full((rows, length + max_tokens), NOT_A_TOKEN, device=device)
        """int64 [rows, places]: prompts and answers so far, -1 elsewhere."""
        self.ids[:, :length] = prompts.ids
        self._padded = any(prompts.padding)
        self._starts = prompts.starts
        places = torch.arange(length + max_tokens, device=device)
        self._positions = (places - prompts.starts).clamp_min_(0)
        self._visible = places >= prompts.starts
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._track_ends = rows > 1 and limits.eos is not None

    def first(self, embeddings: Tensor) -> Tensor:
        """Read the prompts, [rows, length, hidden] with the images' features merged in; return the first tokens
        [rows]."""
        mask = causal_mask(self._starts, self._length) if self._padded else None
        return self._forward(embeddings, self._positions[:, : self._length], mask)

    def next(self) -> Tensor:
        """Feed the tokens chosen last; return the next ones [rows]."""
        at = self._length - 1
        embeddings = self._text.embed_tokens(self.ids[:, at : at + 1])
        mask = self._visible[:, None, None, : self._length] if self._padded else None
        return self._forward(embeddings, self._positions[:, at : at + 1], mask)

    def check(self) -> None:
        """Raise `ModelError` where the last scores were not numbers.

        Once an answer, because the check takes launches that the released loop does not have. That is enough: a NaN
        stays in the cache and makes all later scores NaN.
        """
        if self._scores.isnan().any():
            raise ModelError("the scores of the last token are not numbers (NaN): model.dtype=float32 may help")

    def _forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        scores = self._head(text_forward(self._text, embeddings, positions, mask, self._cache)[:, -1])
        self._scores = scores
        chosen = ban_repeats(self.ids[:, : self._length], scores, self._limits.ngram).argmax(-1)
        if self._track_ends:
            chosen = chosen.masked_fill(self._ended, self._limits.pad)
            self._ended = self._ended | (chosen == self._limits.eos)
        self.ids[:, self._length] = chosen
        self._length += 1
        return chosen


def text_forward(text: Any, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    """Run transformers' text model over *embeddings* [rows, places, hidden]; return its last hidden states.

    Each layer calls `update` of *cache* with its keys and values. A mask is bool [rows, 1, places, places seen].
    """
    # A ready mask keeps transformers from making one, which waits for the device at every step.
    hidden: Tensor = text(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": mask},
        position_ids=positions,
        use_cache=True,
        **{_cache_keyword(type(text).forward): cache},
    ).last_hidden_state
    return hidden


@functools.cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    """The name of *forward*'s cache parameter: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def causal_mask(starts: Tensor, length: int) -> Tensor:
    """Which places each place of a padded prompt attends to: bool [rows, 1, length, length]. Prompts begin at *starts*
    [rows, 1]."""
    places = torch.arange(length, device=starts.device)
    causal = places[:, None] >= places
    # A padded place attends to itself: with nothing to attend to its softmax would be NaN, and NaN spreads.
    itself = places[:, None] == places
    return (causal & ((places >= starts)[:, None] | itself))[:, None]
