"""Compare two sides, each one run or several of the same tests: a row for each test and metric, with its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pytest_llmprof.compare.comparable import config_notice, other_machine, other_work, some
from pytest_llmprof.compare.intervals import Interval, assumed, ratio_of, unpaired
from pytest_llmprof.compare.kernels import KernelChange, kernel_changes
from pytest_llmprof.compare.looks import Noise, Rounds, Sides
from pytest_llmprof.compare.pairs import judge_pairs, show_interval, value_of
from pytest_llmprof.compare.result import Comparison, Row, Side, TextChange
from pytest_llmprof.compare.rules import Rule, is_speed, is_statistical, rule_for
from pytest_llmprof.compare.saved import whole_key
from pytest_llmprof.compare.sequential import ALPHA, BETA, Plan
from pytest_llmprof.compare.verdicts import BAD, DEFAULT_MARGIN, GOOD, Verdict, decide
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.baseline import SavedRun, SavedTest
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.text.numbers import count

STEADY_SD = 0.005
"""Assumed standard deviation between processes of decode times with CUDA graphs: an H100 showed 0.4 % (`fast`) and
0.1 % (`compiled`), benchmarks/gates/noise_h100.json. Fewer than 6 processes are not believed to have less."""
OTHER_SD = 0.15
"""Of all other times: TTFT had 14 to 15 % there, as work of the CPU is in it."""
ONE_PROCESS = "one process on a side: a single disturbed one looks the same"
"""The note of a change that was seen in one process."""
MEMORY = 0.005
"""Relative change of memory that counts."""
_WIDEST = 1e6
"""A relative spread that nothing can be seen through; the square of a wider one may be no float."""
_STEADY_ENGINES = frozenset(("fast", "compiled"))
_STEADY_METRICS = frozenset(("tpot_ms", "tokens_per_s", "batch_tokens_per_s", "decode_ms"))


@dataclass(frozen=True)
class Terms:
    """How to compare."""

    margin: float = DEFAULT_MARGIN
    alpha: float = ALPHA
    beta: float = BETA
    process_sd: float | None = None
    """Standard deviation between processes (relative) where too few show it; None: see `STEADY_SD`."""
    rules: tuple[Rule, ...] = ()
    force: bool = False
    """Compare also what is of other work or another machine."""
    force_option: str = "llmprof compare --force"
    """How the user sets `force`, for messages."""
    plan: Plan | None = None
    """Set where the runs of both sides are pairs, in the order of `sequential.order`: its looks decide. Its margin,
    errors and family are those of the terms."""
    rounds: Rounds | None = None
    """For the gates of a test that runs; None for runs that have ended."""


def compare(before: Sequence[SavedRun], after: Sequence[SavedRun], terms: Terms | None = None) -> Comparison:
    """Compare *after* with the baseline *before*.

    Raises `ArtifactError` with one line where they cannot be compared at all: the same run on both sides, half a run,
    no common test, other work in every test, single rounds only.
    """
    return _Comparer(before, after, terms or Terms()).result()


def compare_test(before: Sequence[SavedRun], after: SavedRun, terms: Terms) -> tuple[list[Row], bool]:
    """The rows of the rules of *terms* for the one test of *after*, which all runs of *before* have.

    Second: whether more rounds, up to `terms.rounds`, may settle one that is unclear. What cannot be compared is not
    measured, with the reason in its row.
    """
    comparer = _Comparer(before, [after], terms)
    return comparer.gated(), comparer.open


@dataclass(frozen=True)
class _Pair:
    """The measured tests of one id on both sides, and why it cannot be compared."""

    id: str
    stage: str
    before: list[SavedTest]
    after: list[SavedTest]
    other_work: str | None
    """Why its results are not of the same work."""
    other_machine: str | None
    """Why its times are not of the same machine."""
    untimed: str | None
    """Why a side has no test whose times can be trusted."""
    problem: str | None

    timed: tuple[list[SavedTest], list[SavedTest]] = ([], [])
    """Those whose times can be trusted."""


class _Comparer:
    def __init__(self, before: Sequence[SavedRun], after: Sequence[SavedRun], terms: Terms) -> None:
        self.before, self.after, self.terms = before, after, terms
        self.metrics: dict[str, Declaration] = {}
        for run in (*after, *before):
            for metric in run.metrics:
                self.metrics.setdefault(metric.name, metric)
        self.tests = [[{test.id: test for test in run.tests} for run in side] for side in (before, after)]
        self.open = False
        """Whether more rounds may settle a row that is unclear."""

    def gated(self) -> list[Row]:
        """The rows of one test's rules, whether or not they can be compared."""
        pairs = [self._pair(name, _by_id(self.before)[name], new) for name, new in _by_id(self.after).items()]
        plans = [
            (pair, metric, rule)
            for pair in pairs
            for metric in self.metrics.values()
            if (rule := rule_for(metric, self.terms.rules)) is not None
        ]
        return [self._row(pair, metric, rule, len(plans), _text_change(pair)) for pair, metric, rule in plans]

    def result(self) -> Comparison:
        self._check_runs()
        old, new = _by_id(self.before), _by_id(self.after)
        common = [name for name in old if name in new]
        if not common:
            raise ArtifactError(
                f"{_source(self.before)} and {_source(self.after)} have no test in common: "
                f"{some(old)} against {some(new)}"
            )
        pairs = [self._pair(name, old[name], new[name]) for name in common]
        self._check_work(pairs)
        texts = {pair.id: change for pair in pairs if (change := _text_change(pair)) is not None}
        plans = [(pair, metric, rule_for(metric, self.terms.rules)) for pair in pairs for metric in self._metrics(pair)]
        gated = sum(rule is not None for *_, rule in plans)
        if self.terms.rules and not gated:
            raise ArtifactError(f"nothing that the limit {self.terms.rules[0].text} is for was measured in any test")
        rows = [self._row(pair, metric, rule, gated, texts.get(pair.id)) for pair, metric, rule in plans]
        return Comparison(
            before=_side(self.before),
            after=_side(self.after),
            margin=self.terms.margin,
            alpha=self.terms.alpha,
            gated=gated,
            notices=list(dict.fromkeys((*self._notices(pairs), *_text_notices(pairs)))),
            reasons={
                pair.id: why
                for pair in pairs
                if (why := pair.problem or pair.other_work or pair.other_machine or pair.untimed)
            },
            only_before=[name for name in old if name not in new],
            only_after=[name for name in new if name not in old],
            rows=rows,
            texts=list(texts.values()),
            kernels=[change for pair in pairs for change in _kernels(pair)],
        )

    def _check_runs(self) -> None:
        for side in (self.before, self.after):
            for run in side:
                if not run.tests:
                    raise ArtifactError(f"{run.source} has no test of pytest-llmprof in it")
                if run.status != "complete" and not self.terms.force:
                    raise ArtifactError(
                        f"{run.source} is half a run (its status is {run.status}): "
                        f"run it to its end, or compare what is there with {self.terms.force_option}"
                    )
        if self.terms.plan is None:
            refuse_copies(self.before)
            refuse_copies(self.after)
        keys = {whole_key(run.key): run for run in self.before}
        for run in self.after:
            if same := keys.get(whole_key(run.key)):
                raise ArtifactError(f"{run.source} is the same run as its baseline {same.name or same.source}")

    def _pair(self, name: str, old: list[SavedTest], new: list[SavedTest]) -> _Pair:
        before, after = ([test for test in side if test.problem is None] for side in (old, new))
        if not before or not after:
            missing, tests = ("before", old) if not before else ("after", new)
            return _Pair(name, new[0].stage, before, after, None, None, None, f"{missing}: {tests[0].problem}")
        work = machine = untimed = None
        if not self.terms.force:
            if self.terms.plan is None:  # processes of one side may be of several machines
                before = [one for one in before if other_machine(one.machine, after[0].machine) is None] or before
            work = next((why for one in before for other in after if (why := other_work(one, other))), None)
            machine = next(
                (why for one in before for other in after if (why := other_machine(one.machine, other.machine))), None
            )
            if self.terms.plan is None:  # else pairs are left out
                doubts: dict[str, list[str]] = {}
                for place, side in (("before", before), ("after", after)):
                    if all(test.doubts for test in side):
                        doubts.setdefault(side[0].doubts[0], []).append(place)
                untimed = "; ".join(f"{' and '.join(places)}: {doubt}" for doubt, places in doubts.items()) or None
        timed = [[test for test in side if self.terms.force or not test.doubts] for side in (before, after)]
        return _Pair(name, new[0].stage, before, after, work, machine, untimed, None, (timed[0], timed[1]))

    def _check_work(self, pairs: Sequence[_Pair]) -> None:
        if all(pair.other_work for pair in pairs):
            raise ArtifactError(
                f"{_source(self.before)} and {_source(self.after)} did not do the same work: {pairs[0].other_work}; "
                f"{self.terms.force_option} compares them all the same"
            )
        measured = [pair for pair in pairs if pair.problem is None and not pair.other_work]
        single = [
            pair
            for pair in measured
            if max(len(pair.before), len(pair.after)) < 3
            and any(all(test.rounds == 1 for test in side) for side in (pair.before, pair.after))
        ]
        if measured and len(single) == len(measured) and not self.terms.force and self.terms.plan is None:
            raise ArtifactError(
                "every test has a single round on one side, so its noise is not known: measure more "
                "(measure.rounds=5), save 3 runs or more, or compare what is exact with "
                f"{self.terms.force_option}"
            )

    def _metrics(self, pair: _Pair) -> Iterator[Declaration]:
        own = {rule.metric for rule in self.terms.rules}
        for metric in self.metrics.values():
            if metric.name not in own and _is_the_pages(metric, (*pair.before, *pair.after)):
                continue  # it would say the same twice, and share the error of the gates
            rule = rule_for(metric, self.terms.rules)
            # A gate must not pass because its test failed, or because nothing measured what it names.
            gated = rule is not None and (pair.problem is not None or metric.name in own)
            if gated or any(value_of(test, metric) is not None for test in (*pair.before, *pair.after)):
                yield metric

    def _row(
        self, pair: _Pair, metric: Declaration, rule: Rule | None, gated: int, text: TextChange | None
    ) -> Row:
        old = [value for test in pair.before if (value := value_of(test, metric)) is not None]
        new = [value for test in pair.after if (value := value_of(test, metric)) is not None]
        row = Row(
            test=pair.id,
            stage=pair.stage,
            metric=metric.name,
            title=metric.title_for(next((test.kind for test in (*pair.after, *pair.before) if test.kind), None)),
            shown=rule is not None or "report" in metric.shown or metric.name == "cer",
            before=median(old) if old else None,
            after=median(new) if new else None,
            verdict=Verdict.NOT_MEASURED,
            limit=rule.text if rule else None,
        )
        if pair.problem or pair.other_work:
            row.note = pair.problem or pair.other_work or ""
        elif not old or not new:
            row.note = f"missing {'before' if not old else 'after'}" if old or new else "missing on both sides"
        elif metric.section == "quality":
            self._judge_quality(row, metric, rule)
        else:
            self._judge(row, pair, metric, rule, gated, old, new)
        row.failed = rule is not None and row.verdict in BAD
        row.not_worse |= row.verdict in GOOD | {Verdict.SAME}
        if text is not None and row.verdict in BAD | GOOD and is_statistical(metric):
            row.note = "; ".join(filter(None, (row.note, text.text)))
        return row

    @staticmethod
    def _judge_quality(row: Row, metric: Declaration, rule: Rule | None) -> None:
        assert row.before is not None
        assert row.after is not None
        change = row.after - row.before
        if abs(change) <= (rule.limit if rule else 0.0) + 1e-12:  # 0.035 - 0.03 is more than 0.005
            row.verdict = Verdict.SAME
        elif metric.better is None:
            row.verdict = Verdict.CHANGED
        else:
            row.verdict = Verdict.WORSE if (change > 0) == (metric.better == "lower") else Verdict.BETTER
        row.how = "exact"

    def _judge(
        self,
        row: Row,
        pair: _Pair,
        metric: Declaration,
        rule: Rule | None,
        gated: int,
        old: Sequence[float],
        new: Sequence[float],
    ) -> None:
        assert row.before is not None
        assert row.after is not None
        margin = rule.limit if rule else self.terms.margin
        statistical = is_statistical(metric)
        why = pair.other_machine or (pair.untimed if statistical else None)
        if why and (statistical or metric.unit == "GiB"):
            row.note = why
            return
        if not statistical and len(set(old)) == len(set(new)) == 1:
            _judge_exact(row, metric, rule)
            return
        if self.terms.plan is not None:
            family = gated if rule else 1
            plan = replace(
                self.terms.plan, margin=margin, alpha=self.terms.alpha, beta=self.terms.beta, family=family
            )
            tests = [(old.get(pair.id), new.get(pair.id)) for old, new in zip(*self.tests, strict=True)]
            judge_pairs(row, tests, metric, plan, force=self.terms.force)
            return
        before, after = ([test for test in side if value_of(test, metric) is not None] for side in pair.timed)
        if not before or not after:
            row.note = "missing where the GPU was not disturbed"
            return
        row.before, row.after = (median(value_of(test, metric) or 0.0 for test in side) for side in (before, after))
        first, second = (_logs(side, metric) for side in (before, after))
        if first is None or second is None:
            row.note = "a value that is not above 0 has no ratio"
            return
        alpha = self.terms.alpha / (gated if rule else 1)
        row.how = f"{len(before)} and {count(len(after), 'process', 'processes')}"
        if max(len(before), len(after)) >= 3:
            change, equality = (unpaired(first, second, error, STEADY_SD) for error in (alpha, 2 * self.terms.beta))
        elif self.terms.rounds is not None:
            deviation = self.terms.process_sd or _assumed_sd((*before, *after), metric)
            row.how += f", SD {100 * deviation:g} % assumed, {count(after[-1].rounds, 'round')}"
            sides = Sides(first, second, [_noise(test, metric) for test in (*before, *after)], deviation)

            def settled(change: Interval, equality: Interval) -> bool:
                verdict = decide(change, equality, margin, metric.better)
                return verdict is not Verdict.UNCLEAR or _not_worse(equality, margin, metric)

            errors, within = (alpha, 2 * self.terms.beta), sides.within()
            if within is None:
                row.note = "a single round on both sides: its noise is not known"
                self.open |= sides.may_settle(self.terms.rounds, *errors, settled)
                return
            change, equality = (sides.interval(within, self.terms.rounds.looks, error) for error in errors)
            self.open |= not settled(change, equality) and sides.may_settle(self.terms.rounds, *errors, settled)
        else:
            rounds = [_rounds_error(side, metric) for side in (before, after)]
            if rounds[0] is None or rounds[1] is None:
                row.verdict, row.note = Verdict.UNCLEAR, "a single round: its noise is not known"
                row.ratio = ratio_of(second[0] - first[0])
                return
            deviation = self.terms.process_sd or _assumed_sd((*before, *after), metric)
            own = (rounds[0], rounds[1])
            change, equality = (
                assumed(first, second, deviation, own, error) for error in (alpha, 2 * self.terms.beta)
            )
            row.how += f", SD {100 * deviation:g} % assumed"
        row.verdict = decide(change, equality, margin, metric.better, speed=is_speed(metric))
        row.not_worse = _not_worse(equality, margin, metric)
        if row.verdict in BAD | GOOD and min(len(before), len(after)) == 1:
            row.note = ONE_PROCESS
        show_interval(row, equality if row.verdict is Verdict.SAME else change)

    def _notices(self, pairs: Sequence[_Pair]) -> Iterator[str]:
        for name in ("before", "after"):
            git = next((run.git for run in getattr(self, name) if run.git), None)
            if git and git.dirty is not False:
                had = "the work tree had" if git.dirty else "git does not know whether the work tree had"
                yield f"{name}: {had} changes that its commit {git.commit[:12]} does not have"
        configs = {digest: keys for run in (*self.before, *self.after) for digest, keys in run.configs.items()}
        for pair in pairs:
            for one, other in zip(pair.before[:1], pair.after[:1], strict=False):
                old, new = one.fingerprint, other.fingerprint
                if old.config and new.config and old.config != new.config:
                    yield config_notice(configs.get(old.config), configs.get(new.config))
                versions = new.versions or old.versions or {}
                changed = [
                    f"{name} {version} → {versions.get(name)}"
                    for name, version in (old.versions or {}).items()
                    if versions.get(name) != version
                ]
                if changed:
                    yield f"versions differ: {some(changed)}"


def refuse_copies(side: Sequence[SavedRun]) -> None:
    """Raise `ArtifactError` where a run is there twice: a copy would count as a process without noise."""
    seen: dict[str, SavedRun] = {}
    for run in side:
        if same := seen.get(run.key):
            raise ArtifactError(f"{run.source} and {same.source} are copies of one run, which counts once: remove one")
        seen[run.key] = run


def _judge_exact(row: Row, metric: Declaration, rule: Rule | None) -> None:
    """A count, or memory: the same number in each process of a side."""
    assert row.before is not None
    assert row.after is not None
    limit = rule.limit if rule else MEMORY if metric.unit == "GiB" else 1e-9
    row.ratio = row.after / row.before if row.before > 0 else None
    row.how = "exact"
    if abs(row.after - row.before) <= limit * abs(row.before) * (1 + 1e-12):  # 100 * 29 % is less than 29
        row.verdict = Verdict.SAME
    elif metric.better is None:
        row.verdict = Verdict.CHANGED
    else:
        row.verdict = Verdict.WORSE if (row.after > row.before) == (metric.better == "lower") else Verdict.BETTER


def _not_worse(equality: Interval, margin: float, metric: Declaration) -> bool:
    """Whether the metric is shown not to be worse by *margin*."""
    limit = math.log1p(margin)
    return equality.high < limit if metric.better == "lower" else equality.low > -limit


def _is_the_pages(metric: Declaration, tests: Iterable[SavedTest]) -> bool:
    """Whether *metric* is one of a batch, and each batch of *tests* was a page."""
    name = metric.name.removeprefix("batch_")
    values = ((test.figures.get(metric.name), test.figures.get(name)) for test in tests)
    return name != metric.name and all(
        one == other if one is None or other is None else math.isclose(one, other) for one, other in values
    )


def _logs(tests: Sequence[SavedTest], metric: Declaration) -> list[float] | None:
    """The logarithms of the tests' values; None where one is not above 0."""
    values = [value for test in tests if (value := value_of(test, metric)) is not None]
    return [math.log(value) for value in values] if min(values) > 0 else None


def _rounds_error(tests: Sequence[SavedTest], metric: Declaration) -> float | None:
    """The relative standard error of a process's value, from its rounds; None for a single round.

    A median's error is 1.2533 of a mean's, for normal noise.
    """
    noises = [_noise(test, metric) for test in tests]
    if any(noise.rounds < 2 for noise in noises):
        return None
    return max(1.2533 * math.sqrt(noise.variance / noise.rounds) for noise in noises)


def _spread(test: SavedTest, metric: Declaration) -> float:
    """The relative interquartile range of a metric's rounds; not a number for a single round.

    Of a metric of whole rounds, which has none of its own, that of the noisiest metric. Throughput is 1 / round_s.
    """
    own = test.noise.get("round_s" if metric.name == "pages_per_s" else metric.name)
    spread = max(test.noise.values(), default=math.nan) if own is None else own
    return min(spread, _WIDEST)


def _noise(test: SavedTest, metric: Declaration) -> Noise:
    spread = _spread(test, metric)
    return Noise(0.0, 1) if math.isnan(spread) else Noise(spread, test.rounds)


def _assumed_sd(tests: Sequence[SavedTest], metric: Declaration) -> float:
    """Between the processes of both sides' *tests*: that of the noisiest."""
    steady = all(test.machine.gpu and test.engine in _STEADY_ENGINES for test in tests)
    return STEADY_SD if steady and metric.name in _STEADY_METRICS else OTHER_SD


def _by_id(runs: Iterable[SavedRun]) -> dict[str, list[SavedTest]]:
    found: dict[str, list[SavedTest]] = {}
    for run in runs:
        for test in {test.id: test for test in run.tests}.values():  # one run is one process, whatever it repeats
            found.setdefault(test.id, []).append(test)
    return found


def _text_change(pair: _Pair) -> TextChange | None:
    """How the answers of the first processes differ; None where they do not."""
    if not pair.before or not pair.after or pair.other_work:
        return None
    old, new = pair.before[0], pair.after[0]
    pages = [name for name in old.pages if name in new.pages]
    exact = bool(pages) and all(old.pages[name].text and new.pages[name].text for name in pages)
    differ = sum(
        old.pages[name].text != new.pages[name].text if exact else old.pages[name].tokens != new.pages[name].tokens
        for name in pages
    )
    if not differ:
        return None
    return TextChange(pair.id, differ, len(pages), exact, old.quality.get("cer"), new.quality.get("cer"))


def _text_notices(pairs: Iterable[_Pair]) -> Iterator[str]:
    for pair in pairs:
        for test in (*pair.before[:1], *pair.after[:1]):
            if test.pages and any(page.text is None for page in test.pages.values()):
                yield (
                    "answers were not kept, so only their token counts are compared "
                    f"(pipeline.{test.stage}.output.prediction.enable=true keeps them)"
                )
                return


def _kernels(pair: _Pair) -> list[KernelChange]:
    if pair.other_work or pair.problem:
        return []
    old = next((test.kernels for test in pair.before if test.kernels), None)
    new = next((test.kernels for test in pair.after if test.kernels), None)
    return kernel_changes(pair.id, pair.after[0].stage, old, new) if old and new else []


def _side(runs: Sequence[SavedRun]) -> Side:
    git = next((run.git for run in runs if run.git), None)
    return Side(
        runs[0].name or runs[0].source,
        len(runs),
        tuple(run.key for run in runs),
        runs[0].machine,
        git.commit if git else None,
        git.dirty if git else False,
    )


def _source(runs: Sequence[SavedRun]) -> str:
    return runs[0].name or runs[0].source
