"""How often the sequential gate is wrong, by simulation with recorded noise.

    python benchmarks/gates/simulate.py [--gates 1000] [--seed 1] [--case fast --case eager ...]

Each simulated gate draws its own processes, in the order ABBA BAAB, slows those of side B by an injected share, and
asks `SequentialDecision` with its default plan, as `llmprof ab` does. The tables after the first hold runs against
saved ones, as `llmprof compare` does, on a machine that is as fast as it was then. `noise_h100.json` has rounds of
real processes on an H100; the other cases are made to be difficult: drift, two host speeds, bimodal clocks, outliers,
heavy tails. Those of a duet (`llmprof ab --duet`) share the machine's drift in each pair, and have the plan of one.

Prints false alarms, missed and unclear gates with 95 % Clopper-Pearson intervals, and the median number of pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from pytest_llmprof.compare.compare import STEADY_SD
from pytest_llmprof.compare.intervals import assumed, unpaired
from pytest_llmprof.compare.sequential import ALPHA, BETA, DUET_PLAN, Plan, SequentialDecision, order
from pytest_llmprof.compare.verdicts import DEFAULT_MARGIN, Verdict, decide

NOISE = Path(__file__).with_name("noise_h100.json")
TPOT, TTFT = 0, 1
"""Columns of a recorded round."""
Values = NDArray[np.float64]
Source = Callable[[np.random.Generator, int, int], Values]
"""(generator, gates, processes) -> one value for each process, in the order of time."""


def recorded(engine: str, column: int = TPOT, *, rounds_again: bool = False) -> Source:
    """Processes of *engine* drawn with replacement; the value is the median of their rounds.

    *rounds_again* draws the rounds with replacement, too, which adds their noise a second time.
    """
    pool = np.array(json.loads(NOISE.read_text(encoding="utf-8"))["rounds"][engine])[:, :, column]

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        which = random.integers(len(pool), size=(gates, processes))
        if not rounds_again:
            return np.median(pool, axis=1)[which]
        rounds = random.integers(pool.shape[1], size=(gates, processes, pool.shape[1]))
        return np.median(pool[which[:, :, None], rounds], axis=2)

    return draw


def normal(share: float) -> Source:
    """Independent processes with a standard deviation of *share*."""
    return lambda random, gates, processes: np.exp(random.normal(0, share, (gates, processes)))


def drifting(source: Source, share: float) -> Source:
    """*source* on a host whose speed moves by *share* over the whole job, steadily."""
    return lambda random, gates, processes: source(random, gates, processes) * np.linspace(1, 1 + share, processes)


def wandering(source: Source, share: float) -> Source:
    """*source* on a host whose speed is a random walk with steps of *share*."""

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        steps = random.normal(0, share, (gates, processes)).cumsum(axis=1)
        return source(random, gates, processes) * np.exp(steps)

    return draw


def two_speeds(source: Source, share: float, stay: float) -> Source:
    """*source* on a host that is slower by *share* half of the time; it stays as it is with probability *stay*."""

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        flips = random.random((gates, processes)) > stay
        flips[:, 0] = random.random(gates) > 0.5
        slow = flips.cumsum(axis=1) % 2
        return source(random, gates, processes) * (1 + share * slow)

    return draw


def outliers(source: Source, often: float, share: float) -> Source:
    """*source* with processes that are slower by up to *share*."""

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        hit = random.random((gates, processes)) < often
        return source(random, gates, processes) * (1 + hit * share * random.random((gates, processes)))

    return draw


def heavy_tails(share: float) -> Source:
    """Student's t with 2 degrees of freedom."""
    return lambda random, gates, processes: np.exp(np.clip(share * random.standard_t(2, (gates, processes)), -1, 1))


def duet(share: float, own: Source) -> Source:
    """Pairs that run at the same time on a host whose speed differs by *share* from pair to pair; *own* is what the two
    of a pair do not have in common."""

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        host = random.normal(0, share, (gates, processes // 2)).repeat(2, axis=1)
        return own(random, gates, processes) * np.exp(host)

    return draw


def disturbed(source: Source, often: float, share: float) -> Source:
    """*source* where in some pairs one of the two, by chance, is slower by *share*."""

    def draw(random: np.random.Generator, gates: int, processes: int) -> Values:
        hit = random.random((gates, processes // 2)) < often
        second = random.random((gates, processes // 2)) < 0.5
        slow = np.stack([hit & ~second, hit & second], axis=2).reshape(gates, processes)
        return source(random, gates, processes) * (1 + share * slow)

    return draw


RATIO = 2**-0.5
"""The noise of a pair's ratio is that of two processes."""
FAST = recorded("fast")
AGAIN = recorded("fast", rounds_again=True)
CASES: dict[str, tuple[Source, tuple[float, ...]]] = {
    "fast": (FAST, (0, 0.01, 0.02, 0.05)),
    "fast, rounds drawn again": (AGAIN, (0, 0.01, 0.02, 0.05)),
    "compiled": (recorded("compiled"), (0, 0.01, 0.02, 0.05)),
    "normal 0.4 %": (normal(0.004), (0, 0.01, 0.02, 0.05)),
    "fast, drift 10 %": (drifting(FAST, 0.1), (0, 0.02, 0.05)),
    "fast, walk 0.5 %": (wandering(FAST, 0.005), (0, 0.02, 0.05)),
    "two speeds 20 %": (two_speeds(FAST, 0.2, 0.5), (0, 0.05)),
    "two speeds, slow": (two_speeds(FAST, 0.2, 0.9), (0, 0.05)),
    "bimodal clocks 1.5 %": (two_speeds(normal(0.0002), 0.015, 0.5), (0, 0.02, 0.05)),
    "outliers 5 %": (outliers(FAST, 0.05, 0.3), (0, 0.01, 0.02, 0.05)),
    "heavy tails": (heavy_tails(0.003), (0, 0.02, 0.05)),
    "cpu 1.5 %": (normal(0.015), (0, 0.02, 0.05, 0.1)),
    "eager, walk 10 %": (wandering(normal(0.02), 0.1), (0, 0.05)),
    "eager, two speeds": (two_speeds(wandering(normal(0.02), 0.05), 0.35, 0.8), (0, 0.05)),
    "ttft of fast": (recorded("fast", TTFT), (0, 0.05, 0.2)),
}
DUETS: dict[str, tuple[Source, tuple[float, ...]]] = {
    "duet 2 %": (duet(0.07, normal(0.02 * RATIO)), (0, 0.02, 0.05)),
    "duet, heavy tails": (duet(0.07, heavy_tails(0.01 * RATIO)), (0, 0.02, 0.05)),
    "duet, 1 in 20 disturbed": (duet(0.07, disturbed(normal(0.02 * RATIO), 0.05, 0.1)), (0, 0.02, 0.05)),
    "duet, always disturbed": (duet(0.07, disturbed(normal(0.003), 1.0, 0.1)), (0, 0.05)),
    "duet, two speeds 5 %": (duet(0.07, two_speeds(normal(0.002), 0.05, 0.5)), (0, 0.05)),
}
"""Noise of pairs that run at the same time: SD 7 % in common, the ratio's own is 2 %."""


@dataclass(frozen=True)
class Outcome:
    """What a case's gates said."""

    verdicts: Counter[Verdict]
    pairs: float | None = None
    """Median pairs until the decision; None where all processes are there at once."""

    def count(self, *verdicts: Verdict) -> int:
        return sum(self.verdicts[verdict] for verdict in verdicts)


def gates(source: Source, slowdown: float, number: int, plan: Plan, seed: int) -> Outcome:
    """Run *number* gates on *source* with B slower by *slowdown*."""
    random = np.random.default_rng(seed)
    sides = np.array(list(order(2 * plan.max_pairs)))
    values = source(random, number, 2 * plan.max_pairs)
    before, after = values[:, sides == "A"], values[:, sides == "B"] * (1 + slowdown)
    verdicts: Counter[Verdict] = Counter()
    looked = []
    for first, second in zip(before.tolist(), after.tolist(), strict=True):
        decision = SequentialDecision(plan)
        for pair in zip(first, second, strict=True):
            decision.add(*pair)
            if decision.done:
                break
        verdicts[decision.verdict] += 1
        looked.append(decision.looked)
    return Outcome(verdicts, median(looked))


def clopper_pearson(hits: int, number: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided binomial interval (Clopper & Pearson 1934, Biometrika 26:404)."""
    tail = (1 - level) / 2
    low = float(betaincinv(hits, number - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, number - hits, 1 - tail)) if hits < number else 1.0
    return low, high


def shown(hits: int, number: int) -> str:
    """ "0.3 % (0.1 to 0.9)"."""
    low, high = clopper_pearson(hits, number)
    return f"{100 * hits / number:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def line(case: str, slowdown: float, outcome: Outcome, number: int) -> str:
    """One row of the table: an alarm is false where nothing was injected, or where it has the wrong direction."""
    if slowdown:
        false, found = outcome.count(Verdict.FASTER), outcome.count(Verdict.SLOWER)
        missed = shown(outcome.count(Verdict.SAME), number)
    else:
        false, found, missed = outcome.count(Verdict.SLOWER, Verdict.FASTER), outcome.count(Verdict.SAME), "-"
    unclear = shown(outcome.count(Verdict.UNCLEAR), number)
    injected = f"{slowdown:.0%}" if slowdown else "A/A"
    return (
        f"| {case} | {injected} | {shown(false, number)} | {shown(found, number)} | {missed} | {unclear} |"
        f"{'' if outcome.pairs is None else f' {outcome.pairs:g} |'}"
    )


SIDES = ((3, 3), (8, 8), (16, 16), (5, 1), (8, 1), (16, 1), (1, 1))
"""Processes of the baseline and of the new side."""


def baselines(source: Source, sides: tuple[int, int], slowdown: float, number: int, seed: int) -> Outcome:
    """Compare *number* new sides, slower by *slowdown*, with baselines, as `llmprof compare` does for `fast`."""
    random = np.random.default_rng(seed)
    values = np.log(source(random, number, sum(sides)))
    values[:, sides[0] :] += np.log1p(slowdown)
    verdicts: Counter[Verdict] = Counter()
    for row in values.tolist():
        before, after = row[: sides[0]], row[sides[0] :]
        if max(sides) >= 3:
            change, equality = (unpaired(before, after, error, STEADY_SD) for error in (ALPHA, 2 * BETA))
        else:
            change, equality = (assumed(before, after, STEADY_SD, (0, 0), error) for error in (ALPHA, 2 * BETA))
        verdicts[decide(change, equality, DEFAULT_MARGIN, "lower")] += 1
    return Outcome(verdicts)


BASELINE_CASES = ("fast", "compiled", "normal 0.4 %", "bimodal clocks 1.5 %", "outliers 5 %")
HEAD = "| {} | Injected | False alarms | Right | Missed | Unclear |{}\n|:--|--:|--:|--:|--:|--:|{}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=1000, help="gates of each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", action="append", choices=sorted(CASES | DUETS), help="only this one; may be repeated")
    options = parser.parse_args()
    begun = time.perf_counter()
    plan = Plan()
    print(f"{options.gates} gates a row, seed {options.seed}, {plan}; of duets {DUET_PLAN}\n")
    print(HEAD.format("Noise", " Median pairs |", "--:|"))
    for case in options.case or CASES | DUETS:
        source, slowdowns = (CASES | DUETS)[case]
        own = DUET_PLAN if case in DUETS else plan
        for slowdown in slowdowns:
            print(line(case, slowdown, gates(source, slowdown, options.gates, own, options.seed), options.gates))
    for case in () if options.case else BASELINE_CASES:
        print(f"\n{case}, against saved runs\n\n{HEAD.format('Processes', '', '')}")
        for sides in SIDES:
            for slowdown in (0.0, 0.02, 0.05):
                outcome = baselines(CASES[case][0], sides, slowdown, options.gates, options.seed)
                print(line(f"{sides[0]} and {sides[1]}", slowdown, outcome, options.gates))
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
