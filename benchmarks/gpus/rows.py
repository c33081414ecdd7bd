"""A decode step of 1, 2, 4 and 8 rows against what the memory can read.

    python benchmarks/gpus/rows.py OUT [--engines fast compiled] [--rows 1 2 4 8] [--positions 411]
                                       [--tune [KERNEL ...]] [--seconds S] [--cpu]

Full size, random weights, made on the device. Keys, values and last tokens are random. A position is the number of
places of the cache that a step reads.

- Step: the median of replays of its CUDA graph, by the device's clock.
- Floor: the bytes that such a step reads, by the experts that its rows chose / the read rate, measured before.
- Error: of the scores of `fast` against float32, norm of the difference / norm, and that of transformers in the model's
  dtype, which reads all at once. Fed with the same drawn tokens. Exit code 1 where it is more than 1.1 times as large,
  or where 50 replays of a step do not give the same bits.
- Kernels, of 1 and of 8 rows, at each position: what each adds to the time in which the GPU is busy (torch.profiler,
  five replays).
- --tune, 8 rows (or the last of --rows) at the last position: each kernel of `batch_kernels.py` with other tiles.
  `alone` is a graph of that kernel's launches and no others; `step` is the whole step with it. At the end the step
  with the best of each.

What does not fit into --seconds is left out, and said. OUT gets rows.json and rows.md. --cpu runs the tiny size in
Triton's interpreter, to see that this script works.
"""

from __future__ import annotations

import argparse
import copy
import gc
import gzip
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sweeps"))
if "--cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from rates import copy_rate, read_rates

from pytest_llmprof.models.deepseek_ocr.engines.batch_step import BatchStep, Tiles
from pytest_llmprof.models.deepseek_ocr.engines.fast import TritonStep
from pytest_llmprof.models.deepseek_ocr.engines.kernel_step import KernelStep, Tuned
from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache, Prefill, cache_places
from pytest_llmprof.models.deepseek_ocr.engines.step import Sparse, Step
from pytest_llmprof.models.deepseek_ocr.generation import Limits, pad_prompts
from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model
from pytest_llmprof.models.graphs import Graphs
from pytest_llmprof.text.markdown import table

NGRAM = 35
REPLAYS, GROUPS = 10, 15
"""Steps between two looks at the clock, and how often."""
LAST = 8192 - REPLAYS
"""The last position that the model has, but for these steps."""
PROMPT, FORCED = 64, 16
"""Tokens of the prompt behind which scores are compared, and positions that are."""
CANDIDATES = {
    "EXPERTS": [
        *((16, 128, 4, 2), (32, 64, 6, 4), (32, 128, 3, 4), (32, 128, 6, 4), (32, 128, 4, 2)),
        *((64, 64, 4, 4), (64, 128, 3, 4), (64, 128, 4, 4), (64, 64, 6, 4), (128, 64, 4, 4)),
    ],
    "NARROW": [(16, 128, 4, 2), (32, 64, 6, 4), (32, 128, 3, 4), (32, 128, 4, 2), (64, 64, 4, 4), (64, 128, 4, 4)],
    "HEAD": [(32, 128, 4, 4), (64, 64, 6, 4), (64, 128, 3, 4), (128, 64, 4, 4), (128, 128, 3, 4), (128, 64, 4, 8)],
    "PROJECT": [(16, 128, 4, 4), (16, 256, 4, 4), (32, 64, 6, 4), (32, 256, 3, 4), (32, 256, 3, 8), (64, 128, 4, 4)],
    "JOIN": [(16, 128, 4, 4), (16, 128, 6, 2), (16, 256, 4, 2), (32, 128, 4, 4), (32, 256, 3, 4)],
    "WIDEN": [(16, 128, 4, 4), (32, 64, 4, 4), (32, 64, 6, 4), (32, 128, 6, 4), (64, 64, 4, 4), (64, 128, 4, 4)],
}
"""What --tune tries beside what is set, with and without asking ahead of the loop: rows, block, stages, warps."""


class Seen(KernelStep):
    """Keeps the launches of a step."""

    seen: list[tuple[Any, ...]] | None = None

    def launch(self, kernel: Any, grid: tuple[int, ...], warps: int, *values: Any, **constants: Any) -> None:
        if self.seen is not None:
            self.seen.append((kernel, grid, warps, values, constants))
        super().launch(kernel, grid, warps, *values, **constants)


class SeenStep(Seen, TritonStep):
    """Of one row."""


class SeenBatch(Seen, BatchStep):
    """Of several rows."""


class Bench:
    """One model, its steps and caches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.begun = time.monotonic()
        self.options = options
        self.device = torch.device("cpu" if options.cpu else "cuda")
        self.found: dict[str, Any] = {"steps": [], "kernels": {}, "tuned": [], "left_out": []}
        self.lines: list[str] = []
        self.rates = read_rates(self.device.type)
        self.rate = max(self.rates.values())
        self.found |= {"read_bytes_per_s": self.rates, "copy_bytes_per_s": copy_rate(self.device.type)}
        card = "CPU" if options.cpu else torch.cuda.get_device_name()
        rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in self.rates.items())
        self.say(f"{card}. Read rate, GB/s: {rates}; copy rate {self.found['copy_bytes_per_s'] / 1e9:,.0f}.")
        if options.cpu:  # few programs: the interpreter is slow for each
            for kind in CANDIDATES:
                setattr(SeenBatch, kind, Tiles(256, 256, 1, 4))
                setattr(SeenStep, kind, Tuned(256, 4))
            SeenBatch.SPLITS = SeenStep.SPLITS = 2
        # The interpreter multiplies in float16, but not in bfloat16.
        self.dtype = torch.float16 if options.cpu else torch.bfloat16
        self.network = random_model(random_config("tiny" if options.cpu else "full"), 0, self.device, self.dtype)
        self.text = self.network.config.text_config
        self.one = SeenStep(self.network)
        self.weights = self.one.model.layers
        self.graphs = Graphs(self.device)
        self.made: dict[int, Any] = {1: self.one}
        self.caches: dict[tuple[int, int], Cache] = {}
        self.position: int = options.positions[0]
        self.exact: Any = None
        """The model in float32."""
        self.say(f"Model and rates after {self.spent():.0f} s.")

    def spent(self) -> float:
        return time.monotonic() - self.begun

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def fits(self, what: str, seconds: float) -> bool:
        """Whether there is time for it; else it is noted."""
        if self.spent() + seconds <= self.options.seconds:
            return True
        self.found["left_out"].append(what)
        self.say(f"Left out, as {self.options.seconds:g} s are over: {what}")
        return False

    def step(self, rows: int, **tiles: Tiles) -> Any:
        """The step of `fast`; with *tiles* another one than before."""
        if tiles:
            return type("Tuned", (SeenBatch,), tiles)(self.one.model, rows)
        if rows not in self.made:
            self.made[rows] = SeenBatch(self.one.model, rows)
        return self.made[rows]

    def cache(self, rows: int) -> Cache:
        """A filled cache. Graphs hold its address."""
        places = cache_places(self.position + REPLAYS)
        if (rows, places) not in self.caches:
            made = self.caches[rows, places] = Cache(self.network, rows, places)
            made.stored.normal_(generator=torch.Generator(self.device).manual_seed(rows))
        self.rewind(self.caches[rows, places])
        return self.caches[rows, places]

    def rewind(self, cache: Cache, back: int = 0) -> None:
        """To the step at the position, or to one before it."""
        position = self.position - back
        generator = torch.Generator(self.device).manual_seed(7)
        shape = cache.ids.shape
        cache.ids.copy_(torch.randint(3, self.text.vocab_size - 8, shape, generator=generator, device=self.device))
        cache.length.fill_(position)
        cache.last.copy_(cache.ids[:, position - 1])
        cache.ended.fill_(False)

    def replayed(self, cache: Cache, key: Any, run: Callable[[], None]) -> float:
        """Milliseconds of a step, or whatever *run* is."""
        replays, groups = (1, 1) if self.options.cpu else (REPLAYS, GROUPS)
        self.graphs.run(key, run)
        found = []
        for _ in range(groups):
            self.rewind(cache, replays // 2)
            if self.options.cpu:
                begin = time.perf_counter()
                self.graphs.run(key, run)
                found.append(1e3 * (time.perf_counter() - begin))
                continue
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(replays):
                self.graphs.run(key, run)
            last.record()
            torch.cuda.synchronize()
            found.append(first.elapsed_time(last) / replays)
        return median(found)

    def distinct(self, rows: int) -> float:
        """Experts that a layer reads in a step of *rows* rows: the mean of some steps."""
        if rows == 1:
            return float(self.text.num_experts_per_tok)
        step, cache, counts = self.step(rows), self.cache(rows), []
        for number in range(1 if self.options.cpu else 5):
            self.rewind(cache, number)
            step(cache, NGRAM)
            sparse = [layer for layer, (_, mlp) in enumerate(self.weights) if isinstance(mlp, Sparse)]
            counts.append((step._members[sparse, : step._listed] != 0).sum(1).float().mean().item())
        return sum(counts) / len(counts)

    def read(self, rows: int, distinct: float) -> dict[str, float]:
        """The bytes that each kernel of a step reads: weights, and the cache."""
        text, size = self.text, self.network.lm_head.weight.element_size()
        head = self.one.model.size
        found: dict[str, float] = defaultdict(float)
        for attention, mlp in self.weights:
            found["project"] += _bytes(attention.qkv)
            found["join"] += _bytes(attention.out)
            found["attend"] += rows * self.position * 2 * text.num_key_value_heads * head * size
            sparse = isinstance(mlp, Sparse)
            found["widen"] += _bytes(mlp.shared_gate_up) + _bytes(mlp.router) if sparse else _bytes(mlp.gate_up)
            found["narrow"] += _bytes(mlp.shared_down) if sparse else _bytes(mlp.down)
            if sparse:
                found["experts"] += _bytes(mlp.gate_up) / len(mlp.gate_up) * distinct
                found["narrow"] += _bytes(mlp.down) / len(mlp.down) * distinct
        found["head"] = _bytes(self.network.lm_head.weight)
        return dict(found)

    def measure(self, engine: str, rows: int) -> None:
        """A row of the table of steps."""
        if not self.fits(f"{engine}, {rows} rows at {self.position}", 20 if engine == "compiled" else 5):
            return
        distinct = self.distinct(rows)
        floor = 1e3 * sum(self.read(rows, distinct).values()) / self.rate
        cache = self.cache(rows)
        if engine == "fast":
            run = partial(self.step(rows), cache, NGRAM)
        else:
            run = partial(self.compiled, cache, cache.places, NGRAM)
        spent = self.replayed(cache, (engine, rows, cache.places), run)
        error = eager = repeats = None
        if engine == "fast":
            error, eager = self.errors(rows)
            repeats = self.repeats(rows, run)
        self.found["steps"].append(
            {
                "engine": engine,
                "rows": rows,
                "position": self.position,
                "step_ms": spent,
                "floor_ms": floor,
                "of_floor": floor / spent,
                "experts": distinct,
                "error": error,
                "error_eager": eager,
                "repeats": repeats,
            }
        )
        shown = "" if error is None else f", error {error:.4f} (transformers {eager:.4f}), same bits again: {repeats}"
        self.say(
            f"{engine}, {rows} rows at {self.position}: {spent:.4f} ms, floor {floor:.4f} ms ({distinct:.1f} experts), "
            f"{floor / spent:.1%} of the floor{shown}; {self.spent():.0f} s"
        )

    def repeats(self, rows: int, run: Callable[[], None]) -> bool:
        """Whether replays of one step give the same bits."""
        cache, step, found = self.cache(rows), self.step(rows), []
        for _ in range(2 if self.options.cpu else 50):
            self.rewind(cache)
            self.graphs.run(("fast", rows, cache.places), run)
            found.append(step.scores.clone())
        return all(torch.equal(one, found[0]) for one in found)

    @property
    def holds(self) -> bool:
        """Whether `fast` is right: as near to float32 as the limit of the tests, and the same bits again."""
        return all(
            one["error"] <= 1.1 * one["error_eager"] and one["repeats"]
            for one in self.found["steps"]
            if one["engine"] == "fast"
        )

    @cached_property
    def compiled(self) -> Step:
        return Step(self.network)

    def errors(self, rows: int) -> tuple[float, float]:
        """The errors of `fast` and of transformers against float32."""
        device, vocabulary = self.device, self.text.vocab_size - 8
        prompt, forced = (16, 2) if self.options.cpu else (PROMPT, FORCED)
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(3, vocabulary, (rows, prompt + forced), generator=generator).to(device)
        if self.exact is None:
            self.exact = copy.deepcopy(self.network).float()
            for network in (self.exact, self.network):
                network.set_experts_implementation("grouped_mm")

        def at_once(network: Any) -> torch.Tensor:
            language = network.model.language_model
            places = torch.arange(ids.shape[1], device=device)[None].expand(rows, -1)
            hidden = language(
                inputs_embeds=language.embed_tokens(ids), attention_mask={"full_attention": None}, position_ids=places
            ).last_hidden_state
            scores: torch.Tensor = network.lm_head(hidden[:, -forced:]).float()
            return scores

        exact, eager = at_once(self.exact), at_once(self.network)
        step, found = self.step(rows), []
        cache = Cache(self.network, rows, cache_places(prompt + forced + 1))
        prompts = pad_prompts(ids[:, :prompt].tolist(), device)
        cache.begin(prompts, Limits(forced + 1, 8192, None, 1, 0))
        embeddings = self.network.model.language_model.embed_tokens(ids[:, :prompt])
        Prefill(self.network, Graphs(device), compiled=False).fill(cache, embeddings, prompts, 0)
        step.begin()
        for place in range(prompt, prompt + forced):
            cache.last.copy_(ids[:, place])
            cache.ids[:, place] = ids[:, place]
            step(cache, 0)
            found.append(step.scores.view(rows, -1).clone())
        fast = torch.stack(found, 1)
        return tuple(((one - exact).norm() / exact.norm()).item() for one in (fast, eager))  # type: ignore[return-value]

    def kernels(self, rows: int) -> None:
        """What each kernel of a step takes."""
        if not self.fits(f"kernels, {rows} rows at {self.position}", 6):
            return
        cache = self.cache(rows)
        key = "fast", rows, cache.places
        run, replays = partial(self.step(rows), cache, NGRAM), 1 if self.options.cpu else 5
        self.graphs.run(key, run)
        self.rewind(cache)
        spans = profiled(lambda: [self.graphs.run(key, run) for _ in range(replays)], self.options.out / "trace.json")
        read = self.read(rows, self.distinct(rows))
        found, cells = {}, []
        for name, (count, total, added) in sorted(spans.items(), key=lambda item: -item[1][2])[:16]:
            each, us, moved = count / replays, added / replays, read.get(name)
            share = None if moved is None else 1e6 * moved / self.rate / us
            found[name] = {"launches": each, "us": total / replays, "added_us": us, "share": share}
            cells.append(
                [
                    *(name[:60], f"{each:g}", f"{us / each:.2f}", f"{total / count:.2f}", f"{us:.1f}"),
                    "" if moved is None else f"{moved / 1e6:.1f}",
                    "" if share is None else f"{share:.0%}",
                ]
            )
        self.found["kernels"][f"{rows} rows at {self.position}"] = found
        head = ["kernel", "launches", "us added", "us begin to end", "us a step", "MB a step", "of the read rate"]
        self.say(f"\nKernels, {rows} rows at {self.position}:\n\n{table(head, cells)}")

    def tune(self, rows: int) -> None:
        """Each kernel with other tiles."""
        cache = self.cache(rows)
        read = self.read(rows, self.distinct(rows))
        base = self.replayed(cache, ("fast", rows, cache.places), partial(self.step(rows), cache, NGRAM))
        best: dict[str, Tiles] = {}
        cells = []
        for kind in self.options.tune or CANDIDATES:
            set_now: Tiles = getattr(SeenBatch, kind)
            fastest, lowest = set_now, float("inf")
            tried = [set_now, set_now._replace(ahead=False), *(Tiles(*one) for one in CANDIDATES[kind])]
            for tiles in tried[:2] if self.options.cpu else tried:
                if not self.fits(f"{kind} {tuple(tiles)}", 4):
                    break
                try:
                    alone, whole = self.with_tiles(rows, cache, {kind: tiles})
                except Exception as error:  # noqa: BLE001 - too many registers, or too much shared memory
                    self.say(f"{kind} {tuple(tiles)}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                    continue
                if whole < lowest:
                    fastest, lowest = tiles, whole
                share = 1e3 * read[kind.lower()] / self.rate / alone
                self.found["tuned"].append({"kernel": kind, "tiles": tiles, "alone_ms": alone, "step_ms": whole})
                cells.append([kind, str(tuple(tiles)), f"{1e3 * alone:.1f}", f"{share:.0%}", f"{whole:.4f}"])
                print(*cells[-1], f"{self.spent():.0f} s", sep="  ", flush=True)
            if fastest != set_now:
                best[kind] = fastest
        head = ["kernel", "rows, block, stages, warps, ahead", "alone us a step", "of the read rate", "step ms"]
        self.say(f"\nTiles, {rows} rows; the step as it is set: {base:.4f} ms\n\n{table(head, cells, left=2)}")
        if best and self.fits("the best tiles together", 3):
            _, whole = self.with_tiles(rows, cache, best)
            words = "; ".join(f"{kind} = Tiles{tuple(tiles)}" for kind, tiles in best.items())
            self.say(f"The best together: {whole:.4f} ms: {words}")
            self.found["best"] = {"step_ms": whole, "tiles": best}

    def with_tiles(self, rows: int, cache: Cache, tiles: dict[str, Tiles]) -> tuple[float, float]:
        """Milliseconds of the kernels with other tiles alone, and of a whole step."""
        step = self.step(rows, **tiles)
        graphs, self.graphs = self.graphs, Graphs(self.device)
        try:
            self.rewind(cache)
            step.seen = []
            step(cache, NGRAM)
            seen, step.seen = [one for one in step.seen if one[0].__name__.upper() in tiles], None
            launch = partial(KernelStep.launch, step)

            def alone() -> None:
                for kernel, grid, warps, values, constants in seen:
                    launch(kernel, grid, warps, *values, **constants)

            whole = self.replayed(cache, "whole", partial(step, cache, NGRAM))
            return self.replayed(cache, "alone", alone), whole
        finally:
            self.graphs.close()
            self.graphs = graphs

    def write(self) -> None:
        """rows.json and rows.md."""
        steps = [
            [
                *(one["engine"], str(one["rows"]), str(one["position"])),
                *(f"{one['step_ms']:.3f}", f"{one['floor_ms']:.3f}"),
                *(f"{one['of_floor']:.1%}", f"{one['experts']:.1f}"),
                *("" if one[key] is None else f"{one[key]:.4f}" for key in ("error", "error_eager")),
            ]
            for one in self.found["steps"]
        ]
        head = ["engine", "rows", "position", "step ms", "floor ms", "of the floor", "experts a layer"]
        head += ["error", "transformers'"]
        self.say(f"\n{table(head, steps)}\n{self.spent():.0f} s")
        self.options.out.mkdir(parents=True, exist_ok=True)
        (self.options.out / "rows.json").write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
        (self.options.out / "rows.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def profiled(work: Callable[[], Any], trace: Path) -> dict[str, tuple[int, float, float]]:
    """Of each kernel (on a CPU: operator) of *work* its launches, the microseconds from begin to end, and those that it
    adds to the time in which any runs."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        work()
        if cuda:
            torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    trace.with_suffix(".json.gz").write_bytes(gzip.compress(trace.read_bytes()))
    trace.unlink()
    wanted = {"kernel", "gpu_memcpy", "gpu_memset"} if cuda else {"cpu_op"}
    spans = sorted((one["ts"], one["dur"], one["name"]) for one in events if one.get("cat") in wanted)
    found: dict[str, tuple[int, float, float]] = {}
    until = 0.0
    for begin, length, name in spans:
        count, total, added = found.get(name, (0, 0.0, 0.0))
        found[name] = count + 1, total + length, added + max(0.0, begin + length - max(begin, until))
        until = max(until, begin + length)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--engines", nargs="*", default=["fast", "compiled"], choices=["fast", "compiled"])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--positions", nargs="+", type=int, default=[411])
    parser.add_argument("--tune", nargs="*", choices=list(CANDIDATES))
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if wrong := [one for one in options.positions if not REPLAYS <= one <= LAST]:
        parser.error(f"--positions: {wrong[0]} is not {REPLAYS} to {LAST}")
    with torch.inference_mode():
        bench = Bench(options)
        try:
            if "fast" in options.engines:
                for bench.position in options.positions:
                    for rows in options.rows:
                        bench.measure("fast", rows)
                bench.exact = None
                gc.collect()
                for bench.position in options.positions:
                    for rows in sorted({1, 8} & set(options.rows)):
                        bench.kernels(rows)
            if options.tune is not None:
                bench.tune(options.rows[-1])
            if "compiled" in options.engines:  # last: its compiler takes a minute
                for bench.position in options.positions:
                    for rows in reversed(options.rows):
                        bench.measure("compiled", rows)
        finally:
            bench.write()
    return 0 if bench.holds else 1


if __name__ == "__main__":
    sys.exit(main())
