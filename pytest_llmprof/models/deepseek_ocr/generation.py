"""Greedy generation, a token at a time: our own loop, so that every token is seen as it comes.

`stream` is the loop, `Decoder` what it drives; `EagerDecoder` calls transformers' modules one by one. On the
device: the forward passes, the n-gram ban and the choice of the next token. The host waits in one place, where a
step's tokens arrive.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import Token

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases

__all__ = [
    "NOT_A_TOKEN",
    "Arrivals",
    "Decoder",
    "EagerDecoder",
    "Limits",
    "Prompts",
    "ban_repeats",
    "causal_mask",
    "layout",
    "read",
    "stream",
]

NOT_A_TOKEN = -1
"""Fills the places before a shorter prompt: equal to no token, so no n-gram with padding in it repeats."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left to one length."""

    ids: torch.Tensor
    """int64 [rows, length]; -1 where padded."""
    starts: torch.Tensor
    """int64 [rows, 1]: where each row's prompt begins. Uploaded here: later it would wait for the vision tower."""
    padding: tuple[int, ...]
    """Padded places of each row."""

    @property
    def embeddable(self) -> torch.Tensor:
        """The ids with 0 where padded: the embedding needs a token there, and attention leaves it out."""
        return self.ids.clamp_min(0)


@dataclass(frozen=True)
class Limits:
    """When to stop, and what not to say."""

    max_new_tokens: int
    positions: int
    """The model's positions: a prompt and its answer fit in them."""
    eos: int | None
    """End of an answer; None = go on to the limit."""
    pad: int
    """What ended rows are fed."""
    ngram: int
    """No n-gram of this size twice; 0 = no ban."""

    def of(self, prompt_tokens: int) -> int:
        """How many tokens may follow a prompt of this length. Raises `ModelError` where it doesn't fit."""
        if prompt_tokens >= self.positions:
            raise ModelError(
                f"the prompt has {prompt_tokens} tokens; the model has {self.positions} positions"
            )
        return min(self.max_new_tokens, self.positions - prompt_tokens)


def layout(rows: Sequence[Sequence[int]], device: torch.device) -> Prompts:
    """Pad the token ids of several prompts on the left and put them on the device."""
    length = max(map(len, rows))
    padding = tuple(length - len(row) for row in rows)
    padded = [[NOT_A_TOKEN] * left + list(row) for left, row in zip(padding, rows, strict=True)]
    starts = torch.tensor(padding)[:, None]
    return Prompts(torch.tensor(padded).to(device), starts.to(device), padding)


class Decoder(Protocol):
    """Chooses one batch's tokens, all on the device."""

    def first(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read the prompts, [rows, length, hidden] with the pictures' features merged in; return the first tokens
        [rows]."""

    def next(self) -> torch.Tensor:
        """Feed the tokens chosen last; return the next ones [rows]."""

    def check(self) -> None:
        """Raise `ModelError` where the last scores were not numbers."""


def stream(
    decoder: Decoder, prompts: Prompts, embeddings: torch.Tensor, limits: Limits, phases: Phases
) -> Iterator[Token]:
    """Yield the answers' tokens, greedily chosen, each as it arrives on the host.

    *embeddings* is [rows, length, hidden], the pictures' features merged in. Call it in inference mode.
    """
    arrivals = Arrivals(prompts, limits)
    with phases.phase("prefill"):
        chosen = decoder.first(embeddings)
    arrived = arrivals.take(chosen.tolist())
    if arrivals.rows:
        yield from arrived
        with phases.phase("decode"):
            while True:
                with phases.step():
                    arrived = arrivals.take(decoder.next().tolist())
                if not arrivals.rows:
                    break
                yield from arrived
    decoder.check()
    yield from arrived


class Arrivals:
    """The rows that go on, and what the host knows of them."""

    def __init__(self, prompts: Prompts, limits: Limits) -> None:
        """Raises `ModelError` where a prompt does not fit."""
        length = prompts.ids.shape[1]
        self._allowed = [limits.of(length - padding) for padding in prompts.padding]
        self._eos = limits.eos
        self._count = 0
        self.rows = list(range(len(self._allowed)))
        """Rows whose answers have not ended."""
        self.steps = max(self._allowed)
        """The most tokens that any row may have."""

    def take(self, ids: Sequence[int]) -> list[Token]:
        """The tokens of one step, one id a row, which are on the host just now; none of a row that has ended.

        Raises `ModelError` where an engine gave -1: the scores of that row were not numbers.
        """
        now = perf_counter_ns()
        self._count += 1
        if any(ids[row] == NOT_A_TOKEN for row in self.rows):
            raise ModelError(f"the scores of token {self._count} are not numbers (NaN): model.dtype=float32 may help")
        tokens = [Token(row, ids[row], None, now, self._finish(row, ids[row])) for row in self.rows]
        self.rows = [token.row for token in tokens if token.finish is None]
        return tokens

    def _finish(self, row: int, token: int) -> str | None:
        if token == self._eos:
            return "eos"
        return "length" if self._count >= self._allowed[row] else None


class EagerDecoder:
    """The forward passes over one batch: cache, positions, masks and every id so far, all on the device."""

    def __init__(self, model: Any, prompts: Prompts, limits: Limits) -> None:
        from transformers import DynamicCache

        rows, length = prompts.ids.shape
        device = prompts.ids.device
        steps = max(limits.of(length - padding) for padding in prompts.padding)
        self._text, self._head = model.model.language_model, model.lm_head
        self._limits = limits
        self._cache = DynamicCache(config=model.config.text_config)
        self._length = length
        self._ids = torch.full((rows, length + steps), NOT_A_TOKEN, device=device)
        self._ids[:, :length] = prompts.ids
        self._padded = any(prompts.padding)
        self._starts = prompts.starts
        places = torch.arange(length + steps, device=device)
        self._positions = (places - prompts.starts).clamp_min_(0)
        self._visible = places >= prompts.starts
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._track_ends = rows > 1 and limits.eos is not None

    def first(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read the prompts; return the first tokens [rows]."""
        mask = None
        if self._padded:
            mask = causal_mask(self._starts, self._length)
        return self._forward(embeddings, self._positions[:, : self._length], mask)

    def next(self) -> torch.Tensor:
        """Feed the tokens chosen last; return the next ones [rows]."""
        at = self._length - 1
        embeddings = self._text.embed_tokens(self._ids[:, at : at + 1])
        mask = self._visible[:, None, None, : self._length] if self._padded else None
        return self._forward(embeddings, self._positions[:, at : at + 1], mask)

    def check(self) -> None:
        """Once an answer, as it takes launches that the released loop does not have: what is no number stays in the
        cache, and all later scores are none either."""
        if self._scores.isnan().any():
            raise ModelError("the scores of the last token are not numbers (NaN): model.dtype=float32 may help")

    def _forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        self._scores = scores = self._head(read(self._text, embeddings, positions, mask, self._cache)[:, -1])
        chosen = ban_repeats(self._ids[:, : self._length], scores, self._limits.ngram).argmax(-1)
        if self._track_ends:
            chosen = chosen.masked_fill(self._ended, self._limits.pad)
            self._ended = self._ended | (chosen == self._limits.eos)
        self._ids[:, self._length] = chosen
        self._length += 1
        return chosen


def read(
    text: Any, embeddings: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, kept: Any
) -> torch.Tensor:
    """Run transformers' text model over *embeddings*, [rows, places, hidden]; return its last hidden states.

    *kept* is asked to `update` with each layer's keys and values. A mask is bool, [rows, 1, places, places seen].
    """
    # A ready mask keeps transformers from making one, which waits for the device at every step.
    hidden: torch.Tensor = text(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": mask},
        position_ids=positions,
        use_cache=True,
        **{_cache_keyword(type(text).forward): kept},
    ).last_hidden_state
    return hidden


@cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    """What *forward* calls its cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def causal_mask(starts: torch.Tensor, length: int) -> torch.Tensor:
    """What each place of prompts that begin at *starts* [rows, 1] sees: bool [rows, 1, length, length]."""
    places = torch.arange(length, device=starts.device)
    causal = places[:, None] >= places
    # A padded place sees itself: with nothing to see its softmax would be NaN, and NaN spreads.
    itself = places[:, None] == places
    return (causal & ((places >= starts)[:, None] | itself))[:, None]


def ban_repeats(ids: torch.Tensor, scores: torch.Tensor, ngram: int) -> torch.Tensor:
    """Return *scores* [rows, vocabulary], -inf where a token would repeat an n-gram of *ids* [rows, length].

    What transformers' `NoRepeatNGramLogitsProcessor` bans, prompt included. All on the device.
    """
    length = ids.shape[1]
    if ngram <= 0 or length < ngram:
        return scores
    vocabulary = scores.shape[1]
    tail = ids[:, length - ngram + 1 :]
    earlier = ids.unfold(1, ngram, 1)
    repeats = (earlier[..., :-1] == tail[:, None]).all(-1)
    # What is not to be banned lands in a column past the vocabulary.
    last = earlier[..., -1]
    banned = torch.where(repeats & (last >= 0), last, vocabulary)
    mask = scores.new_zeros((scores.shape[0], vocabulary + 1), dtype=torch.bool).scatter_(1, banned, True)
    return scores.masked_fill(mask[:, :vocabulary], float("-inf"))
