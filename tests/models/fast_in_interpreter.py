"""The kernels of `fast` on a CPU, in Triton's interpreter. It is a program of its own, because the interpreter must be
chosen before Triton is imported. Prints each case's results as JSON for `test_model_fast.py`."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from ocr_helpers import Record, blocks_image, generate, sam_attention_by_torch
from triton.language.core import is_builtin
from triton.runtime import interpreter

from pytest_llmprof.config.schema import DatasetSettings, InferSettings, ModelSettings
from pytest_llmprof.datasets.embedded import embedded_dataset
from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.models.deepseek_ocr import generation
from pytest_llmprof.models.deepseek_ocr.engines import kernels, sam_attention
from pytest_llmprof.models.deepseek_ocr.engines.batch_step import BatchStep, Tiles
from pytest_llmprof.models.deepseek_ocr.engines.fast import FastEngine, TritonStep
from pytest_llmprof.models.deepseek_ocr.engines.kernel_step import Tuned, power_of_two
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, Prefill
from pytest_llmprof.models.deepseek_ocr.engines.reference import ReferenceEngine
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model
from pytest_llmprof.models.graphs import Graphs

CPU = torch.device("cpu")
SETTINGS = ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu", dtype="float32")
INFER = InferSettings(max_new_tokens=7, no_repeat_ngram_size=3)
ROUTES = (
    [0.25, -3.5, 2.0, 2.0, -1e-20, 1e-30, -3.5, 0.25, 2.0],
    [-1.0, -2.0, -1.5, -30.0, -1.0],
    [1e30, -1e30, 0.0, 5.0],
    [0.5] * 6,
)
"""Scores of a router: equal ones, small and large ones, none above zero."""


class Coarse(TritonStep):
    """Few programs, each of many rows: the interpreter is slow for each program."""

    PROJECT = WIDEN = HEAD = Tuned(512, 4)
    JOIN = EXPERTS = NARROW = Tuned(256, 4)
    SPLITS, PLACES, WINDOWS = 2, 64, 512


class CoarseBatch(BatchStep):
    PROJECT = WIDEN = HEAD = Tiles(512, 256, 1, 4)
    JOIN = EXPERTS = NARROW = Tiles(256, 256, 1, 4)
    SPLITS, PLACES, WINDOWS = 2, 64, 512


def look_once() -> None:
    """The interpreter looks through all of Triton's language for what it replaces, for each program and each function
    that one calls. From now on it looks at the names that it finds the first time."""
    names: dict[Any, list[str]] = {}

    def members(place: Any) -> list[tuple[str, Any]]:
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if is_builtin(member)]
        return [(name, getattr(place, name)) for name in names[place]]

    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": members})


def answer(generate: Any, *given: Any) -> Any:
    try:
        return [[token.row, token.id, token.finish] for token in generate(*given)]
    except LlmprofError as error:
        return str(error)


def rows_of(answer: list[list[Any]]) -> list[list[int]]:
    """The tokens of each row."""
    rows = 1 + max(row for row, _, _ in answer)
    return [[token for row, token, _ in answer if row == which] for which in range(rows)]


def pages(
    settings: ModelSettings, infer: InferSettings, images: list[Any], engines: Sequence[str] = ("reference", "fast")
) -> dict[str, Any]:
    """The answer to each batch of images from the *engines*, and the phases that they opened."""
    found: dict[str, Any] = {}
    batches = [images[first : first + infer.batch_size] for first in range(0, len(images), infer.batch_size)]
    for engine in engines:
        model = load(settings, replace(infer, engine=engine))
        record = Record()
        found[engine] = [answer(model.generate, batch, infer, record) for batch in batches]
        found[f"{engine} phases"] = record.events
        model.close()
    return found


def prompts(
    model: Any,
    lengths: Sequence[int],
    limits: generation.Limits,
    ends_with: int | None = None,
    broken: bool = False,
) -> dict[str, Any]:
    """Answers to prompts of random embeddings. With *ends_with* the end token is the reference's token there, of the
    last row."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 900, (length,), generator=generator).tolist() for length in lengths]
    batch = generation.pad_prompts(ids, CPU)
    embeddings = torch.randn(len(ids), max(lengths), model.config.text_config.hidden_size, generator=generator)

    def run(engine: Any) -> Any:
        engine.prefill.embeddings = lambda inputs, phases: embeddings
        return answer(engine.generate, SimpleNamespace(prompts=batch), limits, Record())

    def eager() -> Any:
        return answer(generate, model, batch, embeddings, limits)

    with torch.inference_mode():
        ReferenceEngine(model)
        reference = eager()
        if ends_with is not None:
            limits = replace(limits, eos=rows_of(reference)[-1][ends_with])
            reference = eager()
        fast = FastEngine(model)
        if broken:
            fast.step.model.norm = torch.full_like(fast.step.model.norm, torch.nan)
        return {"reference": reference, "fast": run(fast)}


def errors(config: Any, rows: int) -> list[float]:
    """The error of the scores of `fast` in float16 against float32, norm of the difference / norm, and that of
    transformers' layers: a token of each row behind a prompt of six."""
    model = random_model(config, 3, CPU, torch.float16)
    exact_model = copy.deepcopy(model).float()
    ids = torch.randint(3, 300, (rows, 7), generator=torch.Generator().manual_seed(rows))

    def at_once(network: Any) -> torch.Tensor:
        text, places = network.model.language_model, torch.arange(7)[None].expand(rows, -1)
        inputs = {"inputs_embeds": text.embed_tokens(ids), "attention_mask": {"full_attention": None}}
        return network.lm_head(text(**inputs, position_ids=places).last_hidden_state[:, -1]).float()

    with torch.inference_mode():
        exact = at_once(exact_model)
        cache = Cache(model, rows, 512)
        prompts = generation.pad_prompts(ids[:, :6].tolist(), CPU)
        cache.begin(prompts, generation.Limits(2, 8192, None, 1, 0))
        # The prompt in float32, so that the error is that of the step.
        embeddings = exact_model.model.language_model.embed_tokens(ids[:, :6])
        Prefill(exact_model, Graphs(CPU), compiled=False).fill(cache, embeddings, prompts, 0)
        step = CoarseBatch(Coarse(model).model, rows)
        cache.last.copy_(ids[:, 6])
        step(cache, 0)
        return [((one - exact).norm() / exact.norm()).item() for one in (step.scores, at_once(model))]


def sam_errors(side: int, heads: int, size: int) -> list[float]:
    """The error of SAM's attention in float16 against float32, norm of the difference / norm, and that of torch's."""
    generator = torch.Generator().manual_seed(side)
    qkv = torch.randn(2, side * side, 3, heads, size, generator=generator).half()
    rows, columns = torch.randn(2, side, side, size, generator=generator).half().unbind(0)
    exact = sam_attention_by_torch(qkv.float(), rows.float(), columns.float())
    found = sam_attention.mix(qkv, rows, columns, size**-0.5), sam_attention_by_torch(qkv, rows, columns)
    return [((one.float() - exact).norm() / exact.norm()).item() for one in found]


def sam_far() -> list[bool]:
    """Whether SAM's attention and torch's give numbers where float16 does not hold the scores of a row of keys."""
    qkv = torch.full((1, 64, 3, 1, 16), 100.0).half()
    rows, columns = torch.zeros(2, 8, 8, 16).half().unbind(0)
    rows[:, 3] = -50
    found = sam_attention.mix(qkv, rows, columns, 0.25), sam_attention_by_torch(qkv, rows, columns)
    return [bool(one.isfinite().all()) for one in found]


@triton.jit
def slots(scores, experts, shares, EXPERTS: tl.constexpr, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The expert and the share of each slot, one program each."""
    slot = tl.program_id(0)
    expert, share = kernels._chosen(scores, slot, EXPERTS, POWER, 2)
    tl.store(experts + slot, expert)
    tl.store(shares + slot, share)


def routes(scores: list[float]) -> dict[str, Any]:
    """What the kernels choose by a router's *scores*, and what torch would."""
    given, count = torch.tensor(scores), len(scores)
    experts, shares = torch.zeros(count, dtype=torch.int32), torch.zeros(count)
    slots[(count,)](given, experts, shares, EXPERTS=count, POWER=power_of_two(count))
    exact = given.softmax(0).sort(descending=True, stable=True)
    return {
        "experts": experts.tolist(),
        "torch's experts": given.sort(descending=True, stable=True).indices.tolist(),
        "difference": (shares - exact.values).abs().max().item(),
    }


def main() -> None:
    from pytest_llmprof.models.deepseek_ocr.engines import fast

    look_once()
    fast.TritonStep, fast.BatchStep = Coarse, CoarseBatch  # type: ignore[misc]
    FastEngine.block = 4
    limits = generation.Limits(12, 8192, None, 1, 3)
    config = random_config("tiny")
    config.text_config.num_hidden_layers = 2  # one of each kind
    tiny = random_model(config, 0, CPU, torch.float32)
    config = copy.deepcopy(config)
    config.text_config.num_key_value_heads = 2
    config.text_config.num_experts_per_tok = 3
    config.text_config.vocab_size = 333
    grouped = random_model(config, 2, CPU, torch.float32)
    three = replace(INFER, batch_size=3, no_repeat_ngram_size=2, max_new_tokens=3)
    sizes = enumerate([(500, 400), (700, 1300), (1400, 700)], 1)  # no crops, and as many tokens as two grids need
    reading = replace(INFER, no_repeat_ngram_size=35, max_new_tokens=8)
    page = embedded_dataset("sample_pages").load(DatasetSettings())[0].load()
    print(
        json.dumps(
            {
                "block": FastEngine.block,
                "pages": pages(SETTINGS, INFER, [blocks_image(1)]),
                "no ban": pages(SETTINGS, replace(INFER, no_repeat_ngram_size=0), [blocks_image(1)], ["reference"]),
                "reader": pages(replace(SETTINGS, weights="embedded"), reading, [page]),
                "long": prompts(tiny, [500], replace(limits, max_new_tokens=3)),
                "ends": prompts(tiny, [60], replace(limits, max_new_tokens=8), ends_with=5),
                "grouped": prompts(grouped, [40], replace(limits, max_new_tokens=5, ngram=0)),
                "not a number": prompts(tiny, [20], replace(limits, max_new_tokens=3), broken=True),
                "two": prompts(grouped, [60, 41], replace(limits, max_new_tokens=7), ends_with=3),
                "three": pages(replace(SETTINGS, mode="gundam"), three, [blocks_image(n, size) for n, size in sizes]),
                "eight": prompts(grouped, [9, 33, 2, 40, 33, 17, 40, 5], replace(limits, max_new_tokens=3)),
                "not a number in a batch": prompts(grouped, [20, 12], replace(limits, max_new_tokens=2), broken=True),
                "positions": prompts(tiny, [60], replace(limits, positions=65)),
                "too long": prompts(tiny, [60], replace(limits, positions=60)),
                "routes": [routes(scores) for scores in ROUTES],
                "not a number in routes": routes([1.0, math.nan, 0.5])["difference"],
                "sam": [sam_errors(*shape) for shape in ((16, 1, 32), (14, 2, 32), (20, 1, 16))],
                "sam far": sam_far(),
                "errors": {rows: errors(config, rows) for rows in (2, 3, 8)},
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
