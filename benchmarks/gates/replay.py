"""How often the sequential gate is wrong, by gates drawn from processes that really ran.

    python benchmarks/gates/replay.py [POOL ...] [--gates 400] [--delayed 200] [--seed 1] [--metric tpot_ms]

A pool is a file of `record.py`, by default each of benchmarks/gates/pools/. Each gate draws its own processes from one
session of it, none twice: blocks of four that ran one after the other, so that what the machine did meanwhile stays in
their differences. A block is ABBA or BAAB in the product's order, and a coin says which side the delay is on. Side A
has its processes' rounds without a delay, side B those with it; both are what `metrics.json` would have.
`SequentialDecision` decides with the plan of `llmprof ab`, for a pool of duets (`record.py --duet`) with that of
`llmprof ab --duet`. A pool too small for all of a gate's pairs ends it as unclear.

Prints false alarms, found, missed and unclear gates with 95 % Clopper-Pearson intervals, the median number of pairs
and the median time to a verdict: imports, loading and warm-up of each process, and its rounds at one level. "Measured"
is by how much the metric really rose within the processes, "by clock" what the delay was by the clock that set it. The
intervals are those of independent gates; these share the pool's processes, so they hold for this pool.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

import numpy as np
from simulate import shown

from pytest_llmprof.compare.sequential import DUET_PLAN, Plan, SequentialDecision, order
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.measure.figures import figures_of
from pytest_llmprof.records.metrics import Sample

POOLS = Path(__file__).with_name("pools")
BLOCK = 4
"""Processes of a block, ABBA."""


@dataclass(frozen=True)
class Process:
    """One recorded process."""

    at: float
    """Begin of its rounds, seconds of the epoch."""
    values: tuple[float, ...]
    """The metric at each level."""
    beside: tuple[float, ...]
    """The metric without a delay, as the other side of a gate has it: in a duet while the process beside it had each
    level, else that of level 0."""
    injected: tuple[float | None, ...]
    """Each level's delay as a share of the step, by the clock that set it; None where that was not kept."""
    seconds: float
    """What it would take a gate: imports, loading, warm-up, rounds of one level."""


@dataclass(frozen=True)
class Pool:
    """All recorded processes of one engine on one machine."""

    name: str
    head: dict[str, Any]
    levels: tuple[float, ...]
    sessions: tuple[tuple[Process, ...], ...]

    @property
    def processes(self) -> list[Process]:
        return [process for session in self.sessions for process in session]

    def risen(self, level: int) -> float:
        """By how much the metric rose from no delay to *level*, within processes: the median."""
        return median(process.values[level] / process.values[0] for process in self.processes) - 1

    def __str__(self) -> str:
        place = self.head["environment"]
        gpu = place["gpu"] and place["gpu"]["name"]
        logs = np.log([process.values[0] for process in self.processes])
        spread = f", SD between processes {100 * stdev(logs):.2f} %" if len(logs) > 1 else ""
        return (
            f"{self.name}: {len(logs)} processes in {len(self.sessions)} session(s) of infer={self.head['engine']} on "
            f"{gpu or place['host']['cpu']}, Python {place['python'].split()[-1]}, torch {place['versions']['torch']}"
            f"{spread}"
        )


def read_pool(path: Path, metric: str = "tpot_ms", rounds: int | None = None) -> Pool:
    """The pool in *path*; of each process and level the first *rounds* rounds, by default all."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    head: dict[str, Any] = {}
    sessions: list[list[dict[str, Any]]] = []
    for line in text.splitlines():
        found = json.loads(line)
        if "session" in found:
            if head and found["levels"] != head["levels"]:
                raise SystemExit(f"{path}: sessions with other delays are another pool")
            head = found
            sessions.append([])
        else:
            sessions[-1].append(found)
    if head.get("duet"):  # an interrupted one may lack its second process
        sessions = [session[: len(session) // 2 * 2] for session in sessions]
    if max(map(len, sessions), default=0) < BLOCK:
        raise SystemExit(f"{path} has no session of {BLOCK} processes")
    processes = [
        tuple(
            _process(one, session[number ^ 1] if head.get("duet") else None, head, metric, rounds)
            for number, one in enumerate(session)
        )
        for session in sessions
    ]
    return Pool(path.name.split(".")[0], head, tuple(head["levels"]), tuple(processes))


def _process(
    found: dict[str, Any], other: dict[str, Any] | None, head: dict[str, Any], metric: str, rounds: int | None
) -> Process:
    """What was recorded of a process; *other* ran at the same time."""

    def value(samples: Sequence[Sample]) -> float:
        measured = figures_of(samples, [])[metric]
        if measured is None:
            raise SystemExit(f"a recording has no {metric}: name the pools that have one")
        return measured

    recorded, levels = found["rounds"], range(len(head["levels"]))
    others = [which for which, _, _ in other["rounds"]] if other else [0] * len(recorded)
    at = {level: list(_samples(recorded, others, (level, 0), rounds)) for level in levels}
    values = tuple(value(at[level]) for level in levels)
    if other is None:
        beside = values[:1] * len(values)
    else:
        beside = tuple(value(list(_samples(recorded, others, (0, level), rounds))) for level in levels)
    spent = sum(sample.total_ms for sample in at[0]) / 1e3
    seconds = head["import_s"] + found["prepare_s"] + spent
    return Process(found["at"], values, beside, tuple(found["injected"]), seconds)


def _samples(
    recorded: Sequence[Any], others: Sequence[int], levels: tuple[int, int], rounds: int | None
) -> Iterator[Sample]:
    """The samples, as the harness had them, of the rounds in which this process and the other one had *levels*."""
    of_level = [pages for (which, _, pages), other in zip(recorded, others, strict=True) if (which, other) == levels]
    for number, pages in enumerate(of_level[:rounds]):
        for page, (tpot, ttft, decode) in enumerate(pages):
            phases = {} if decode is None else {"decode": decode}
            yield Sample(number, f"{page}", page, 0, ttft, tpot, (ttft or 0.0) + (decode or 0.0), 0.0, phases, None)


@dataclass(frozen=True)
class Outcome:
    """What the gates of one delay said."""

    verdicts: Counter[Verdict]
    pairs: float
    """Median until the decision."""
    seconds: float
    """Median until the decision."""

    def count(self, *verdicts: Verdict) -> int:
        return sum(self.verdicts[verdict] for verdict in verdicts)


def draw(random: np.random.Generator, session: Sequence[Process], blocks: int, together: int = 1) -> list[Process]:
    """The processes of one gate in its order of time: up to *blocks* blocks of neighbours, none twice.

    *together* ran at the same time and stay so: 2 in a duet.
    """
    first = together * int(random.integers(BLOCK // together)) if len(session) >= 2 * BLOCK else 0
    starts = np.arange(first, len(session) - BLOCK + 1, BLOCK)
    chosen = random.permutation(starts)[:blocks].tolist()
    return [session[start + place] for start in chosen for place in range(BLOCK)]


def gates(pool: Pool, level: int, number: int, seed: int, plan: Plan | None = None) -> Outcome:
    """Run *number* gates, side B at *level*; 0 is A/A."""
    duet = bool(pool.head.get("duet"))
    plan = plan or (DUET_PLAN if duet else Plan())
    random = np.random.default_rng([seed, level])
    weights = np.array([len(session) // BLOCK for session in pool.sessions], dtype=float)
    verdicts: Counter[Verdict] = Counter()
    looked, seconds = [], []
    for _ in range(number):
        session = pool.sessions[random.choice(len(weights), p=weights / weights.sum())]
        drawn = draw(random, session, plan.max_pairs * 2 // BLOCK, 2 if duet else 1)
        slow = "B" if random.random() < 0.5 else "A"
        decision = SequentialDecision(plan)
        for start in range(0, len(drawn), 2):
            pair = drawn[start : start + 2]
            sides = order(2 * plan.max_pairs)[start : start + 2]
            values = {
                side: one.values[level] if side == slow else one.beside[level]
                for side, one in zip(sides, pair, strict=True)
            }
            decision.add(values["A" if slow == "B" else "B"], values[slow])
            if decision.done:
                break
        verdicts[decision.verdict] += 1
        pairs = [drawn[start : start + 2] for start in range(0, 2 * len(decision.before), 2)]
        looked.append(len(pairs))
        took = max if duet else sum
        seconds.append(sum(took(process.seconds for process in pair) for pair in pairs))
    return Outcome(verdicts, median(looked), median(seconds))


HEAD = (
    "| Pool | Injected | By clock | Measured | Gates | False alarms | Right | Missed | Unclear | Median pairs "
    "| Median time |\n|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def line(pool: Pool, level: int, outcome: Outcome) -> str:
    """One row of the table. Right is same for A/A, slower otherwise."""
    number = outcome.verdicts.total()
    if level:
        false, right = outcome.count(Verdict.FASTER), outcome.count(Verdict.SLOWER)
        missed = shown(outcome.count(Verdict.SAME), number)
        clocks = [share for process in pool.processes if (share := process.injected[level]) is not None]
        clock = f"{median(clocks):.2%}" if clocks else "-"
        columns = [f"{pool.levels[level]:.0%}", clock, f"{pool.risen(level):.2%}"]
    else:
        false, right = outcome.count(Verdict.SLOWER, Verdict.FASTER), outcome.count(Verdict.SAME)
        missed, columns = "-", ["A/A", "", ""]
    columns += [f"{number}", shown(false, number), shown(right, number), missed]
    columns += [shown(outcome.count(Verdict.UNCLEAR), number), f"{outcome.pairs:g}", f"{outcome.seconds:.0f} s"]
    return f"| {pool.name} | {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, help="files of record.py (default: all in pools/)")
    parser.add_argument("--gates", type=int, default=400, help="A/A gates of a pool (default: %(default)s)")
    parser.add_argument("--delayed", type=int, default=200, help="gates of each delay (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--metric", choices=("tpot_ms", "ttft_ms", "decode_ms"), default="tpot_ms")
    parser.add_argument("--rounds", type=int, help="use only the first rounds of a process at each level")
    options = parser.parse_args()
    paths = options.pools or sorted(POOLS.glob("*.jsonl.gz"))
    if not paths:
        raise SystemExit(f"no pool in {POOLS}: see record.py")
    pools = [read_pool(path, options.metric, options.rounds) for path in paths]
    for pool in pools:
        print(f"- {pool}")
    print(f"\n{options.metric}, seed {options.seed}, {Plan()}\n\n{HEAD}")
    for pool in pools:
        for level in range(len(pool.levels)):
            number = options.delayed if level else options.gates
            print(line(pool, level, gates(pool, level, number, options.seed)), flush=True)


if __name__ == "__main__":
    main()
