"""transformers' token loop as a generator, so that each token is seen as it arrives.

`generate` prepares inputs, cache and logits processors and hands over to `decode` (its argument `custom_generate`). The
host waits in one place a step: where it reads the step's tokens. `GenerationMixin._sample` reads at least twice.

Names of transformers that are not public: `_prefill`, `_update_model_kwargs_for_generation`,
`_optimize_model_for_decode`. The tests hold the tokens against those of `generate` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import StaticCache

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.ngrams import ban_repeats

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases

_NO_TOKEN = -1
"""In place of one that cannot be drawn."""


class Step(NamedTuple):
    """What a step gives."""

    ids: list[int]
    """One token a row."""
    time_ns: int
    """When they were on the host."""
    scores: Tensor
    """[rows, vocabulary], as the model gave them."""

    def check(self) -> None:
        """Raise `ModelError` where the scores are no numbers.

        Once an answer, since the host waits for it. That is enough: NaN in the cache makes all later scores NaN.
        """
        if self.scores.isnan().any():
            raise _no_numbers(self.scores.dtype)


@dataclass(frozen=True)
class Plan:
    """What `decode` needs beside transformers' own arguments."""

    phases: Phases
    forward: Callable[..., Any]
    """Runs a decode step; the model itself, or a compiled call of it."""
    ngram: int
    """No n-gram of this size occurs twice; 0 = no ban."""
    random: torch.Generator | None
    """Draws the tokens; None = the likeliest."""
    static: Callable[[StaticCache], StaticCache]
    """The cache to use in place of a static one that `generate` has made and nothing has filled yet."""


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    plan: Plan,
    **model_kwargs: Any,
) -> Generator[Step, None, None]:
    """Yield the tokens of each step until the caller stops. Call it in inference mode. Raises `ModelError` where the
    first scores are no numbers, or none can be drawn by them; of later ones the caller asks `Step.check`.

    Rows that have ended go on: what they give is for the caller to leave out.
    """
    kwargs: dict[str, Any] = {
        name: plan.static(value) if isinstance(value, StaticCache) else value for name, value in model_kwargs.items()
    }

    def choose(output: Any) -> Tensor:
        # A copy, which the processors may change.
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        scores = ban_repeats(input_ids, logits_processor(input_ids, scores), plan.ngram)
        if plan.random is None:
            return scores.argmax(-1)
        shares = scores.softmax(-1)
        # A GPU that draws from NaN stops for good.
        drawn = torch.multinomial(shares.nan_to_num(1.0), 1, generator=plan.random).squeeze(1)
        return drawn.masked_fill(shares[:, 0].isnan(), _NO_TOKEN)  # one NaN makes all of its row NaN

    with plan.phases.phase("prefill"):
        output = model._prefill(input_ids, generation_config, kwargs)
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        unusable = output.logits[:, -1].isnan().any().to(input_ids.device)
        chosen = choose(output)
        *ids, failed = torch.cat([chosen, unusable[None]]).tolist()  # one read
        if failed or _NO_TOKEN in ids:
            raise _no_numbers(output.logits.dtype)
    yield Step(ids, perf_counter_ns(), output.logits[:, -1])
    with plan.phases.phase("decode"), model._optimize_model_for_decode():
        while True:
            with plan.phases.step():
                input_ids = torch.cat([input_ids, chosen[:, None]], -1)
                inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
                output = plan.forward(**inputs, return_dict=True)
                kwargs = model._update_model_kwargs_for_generation(output, kwargs)
                chosen = choose(output)
                ids = chosen.tolist()
                if _NO_TOKEN in ids:
                    raise _no_numbers(output.logits.dtype)
            yield Step(ids, perf_counter_ns(), output.logits[:, -1])


def _no_numbers(dtype: torch.dtype) -> ModelError:
    return ModelError(
        "the model's scores are no numbers (NaN): its weights hold NaN or infinity, or values grow beyond "
        f"{str(dtype).removeprefix('torch.')}; try another model.dtype, such as float32"
    )
