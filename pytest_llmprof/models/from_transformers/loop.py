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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StaticCache

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.ngrams import ban_repeats

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases

Step = tuple[list[int], int]
"""One token a row, and when they were on the host."""


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
    """Yield the tokens of each step until the caller stops. Call it in inference mode.

    Rows that have ended go on: what they give is for the caller to leave out.
    """
    kwargs: dict[str, Any] = {
        name: plan.static(value) if isinstance(value, StaticCache) else value for name, value in model_kwargs.items()
    }

    def choose(output: Any) -> Tensor:
        # A copy, so that the prefill's logits (or a CUDA graph's output) are not held.
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        scores = ban_repeats(input_ids, logits_processor(input_ids, scores), plan.ngram)
        if plan.random is None:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=plan.random).squeeze(1)

    with plan.phases.phase("prefill"):
        output = model._prefill(input_ids, generation_config, kwargs)
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        unusable = output.logits[:, -1].isnan().any().to(input_ids.device)
        if plan.random is not None and bool(unusable):  # a GPU that draws from them stops for good
            raise _no_numbers(output.logits.dtype)
        chosen = choose(output)
        *ids, failed = torch.cat([chosen, unusable[None]]).tolist()  # one read
        if failed:
            raise _no_numbers(output.logits.dtype)
    yield ids, perf_counter_ns()
    with plan.phases.phase("decode"), model._optimize_model_for_decode():
        while True:
            with plan.phases.step():
                input_ids = torch.cat([input_ids, chosen[:, None]], -1)
                inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
                output = plan.forward(**inputs, return_dict=True)
                kwargs = model._update_model_kwargs_for_generation(output, kwargs)
                chosen = choose(output)
                ids = chosen.tolist()
            yield ids, perf_counter_ns()


def _no_numbers(dtype: torch.dtype) -> ModelError:
    return ModelError(
        "the model's scores are no numbers (NaN): its weights hold NaN or infinity, or values grow beyond "
        f"{str(dtype).removeprefix('torch.')}; try another model.dtype, such as float32"
    )
