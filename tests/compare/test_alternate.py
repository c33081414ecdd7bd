"""The loop of an A/B job, with processes that are made up."""

import msgspec
import pytest
from saved_runs import DECLARATIONS, noisy, saved_run, saved_test

from pytest_llmprof.compare.alternate import Alternation, OutOfTime
from pytest_llmprof.compare.compare import Terms
from pytest_llmprof.compare.rules import parse_rules
from pytest_llmprof.compare.sequential import DUET_PLAN, Plan
from pytest_llmprof.compare.table import render
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.errors import ArtifactError


class Machine:
    """Processes with given values, on a clock of its own."""

    def __init__(self, before=(), after=(), seconds=10.0):
        self.values = {"A": iter(before), "B": iter(after)}
        self.seconds = seconds
        self.now = 0.0
        self.order = ""
        self.patience = []
        self.lines = []

    def measure(self, side, number, patience):
        assert number == len(self.order) + 1
        self.order += side
        self.patience.append(patience)
        if self.seconds > patience:
            self.now += patience
            raise OutOfTime
        self.now += self.seconds
        return [self.run(side, next(self.values[side]), number)]

    def run(self, side, value, number):
        return saved_run(saved_test(figures={"tpot_ms": value, "tokens": 256.0}), key=f"{side}{number}")

    def loop(self, rules=("tpot_ms:1%",), seconds=3600.0, **terms):
        return Alternation(
            measure=self.measure,
            rules=lambda metrics: parse_rules(rules, metrics),
            seconds=seconds,
            terms=Terms(**{"plan": Plan(), **terms}),
            progress=self.lines.append,
            clock=lambda: self.now,
        )


def row_of(comparison, metric="tpot_ms"):
    return next(row for row in comparison.rows if row.metric == metric)


@pytest.mark.parametrize(
    ("change", "verdict", "code", "stopped"),
    [
        (0.05, Verdict.SLOWER, 1, "tpot_ms is slower, which no further pair can change"),
        (-0.05, Verdict.FASTER, 0, "every gated metric is decided"),
        (0.0, Verdict.SAME, 0, "every gated metric is decided"),
    ],
)
def test_it_stops_where_it_is_decided(change, verdict, code, stopped):
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.54 * (1 + change), 0.001, 24, 2))
    loop = machine.loop()
    assert loop.run() == stopped
    found = loop.result(stopped)
    row = row_of(found)
    assert (row.verdict, found.exit_code, found.job.stopped) == (verdict, code, stopped)
    assert row.low < 1 + change < row.high
    assert 0 < row.control < 0.02  # both sides have noise of 0.1 %
    assert row.how == f"{found.job.pairs} pairs"
    assert found.job.pairs < 24
    assert machine.lines[-1].startswith(f"look at {found.job.pairs} pairs: tpot_ms {verdict}, ")
    assert found.job.order == machine.order == "ABBABAAB" * (found.job.pairs // 4) + "ABBA" * (found.job.pairs % 4 // 2)


def test_noise_is_unclear_to_the_last_pair():
    machine = Machine(noisy(1, 0.2, 24, 1), noisy(1, 0.2, 24, 2))
    loop = machine.loop()
    stopped = loop.run()
    assert stopped == "24 pairs are all that were planned"
    found = loop.result(stopped)
    assert (row_of(found).verdict, found.exit_code, len(machine.order)) == (Verdict.UNCLEAR, 3, 48)


def test_looks_are_planned_for_the_time_that_is_left():
    machine = Machine(noisy(1, 0.2, 24, 1), noisy(1, 0.2, 24, 2))
    loop = machine.loop(seconds=210)  # 6 pairs take 120 s, 4 more fit
    stopped = loop.run()
    found = loop.result(stopped)
    assert (found.job.pairs, found.job.most, stopped) == (10, 10, "out of time for more than 10 pairs")
    assert row_of(found).how == "10 pairs"


def test_a_short_job_spends_all_its_error_at_its_one_look():
    values = noisy(0.54, 0.001, 24, 1), noisy(0.56, 0.001, 24, 2)
    levels = []
    for seconds in (130, 3600):
        machine = Machine(*values)
        loop = machine.loop(seconds=seconds)
        levels.append(row_of(loop.result(loop.run())).level)
    assert levels[0] == pytest.approx(1 - 0.002)
    assert levels[1] == pytest.approx(1 - 0.002 * (6 / 24) ** 1.5)


def test_too_little_time_for_the_first_look_is_unclear_and_said_early():
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.60, 0.001, 24, 2))
    loop = machine.loop(seconds=70)
    stopped = loop.run()
    assert stopped == "out of time, after 1 min 0 s"
    assert "the first look, at 6 pairs, needs 1 min 20 s more" in machine.lines[1]
    found = loop.result(stopped)
    row = row_of(found)
    assert (row.verdict, row.how, found.exit_code) == (Verdict.UNCLEAR, "3 pairs, the first look has 6", 3)
    assert row.ratio == pytest.approx(0.60 / 0.54, rel=0.01)


def test_a_process_without_an_end_is_ended_with_the_time():
    machine = Machine(seconds=1000.0)
    loop = machine.loop(seconds=60)
    assert loop.run() == "out of time, after 1 min 0 s; its last process was ended"
    assert machine.patience == [60]
    assert loop.result("") is None


def test_a_process_that_began_in_time_may_be_a_bit_slower_than_the_others():
    machine = Machine(noisy(1, 0.2, 24, 1), noisy(1, 0.2, 24, 2))
    loop = machine.loop(seconds=125)
    machine.seconds = 10
    loop.run()
    assert len(machine.order) == 12
    assert machine.patience[-1] == 20  # a pair's time, though only 15 s were left


def test_in_a_duet_both_of_a_pair_run_at_once_and_their_order_changes():
    asked = []

    def measure(sides, number, patience):
        asked.append((sides, number))
        machine.now += machine.seconds
        return [machine.run(side, next(machine.values[side]), number + place) for place, side in enumerate(sides)]

    speed = noisy(0.5, 0.07, 24, 1)  # that of the machine, in each pair
    own = noisy(1.0, 0.005, 24, 2)
    machine = Machine(speed, [1.05 * one * noise for one, noise in zip(speed, own, strict=True)])
    loop = machine.loop(plan=DUET_PLAN)
    loop.measure, loop.duet = measure, True
    found = loop.result(loop.run())
    row = row_of(found)
    assert (row.verdict, row.how) == (Verdict.SLOWER, "10 pairs")
    assert row.control == pytest.approx((row.high / row.low) ** 0.5 - 1, rel=1e-6)  # nothing but the ratios
    assert asked[:5] == [("AB", 1), ("BA", 3), ("BA", 5), ("AB", 7), ("AB", 9)]
    assert (found.job.duet, found.job.order, found.job.seconds) == (True, "ABBABAABABBABAABABBA", 100.0)


def test_a_duet_that_takes_too_long_leaves_no_half_pair():
    machine = Machine()

    def measure(sides, number, patience):
        if number > 3:
            raise OutOfTime
        machine.now += machine.seconds
        return [machine.run(side, 1.0, number + place) for place, side in enumerate(sides)]

    loop = machine.loop()
    loop.measure, loop.duet = measure, True
    found = loop.result(loop.run())
    assert (found.job.pairs, found.job.order) == (2, "ABBA")


def test_other_work_is_found_after_the_first_pair():
    machine = Machine([1.0] * 24, [1.0] * 24)
    machine.run = lambda side, value, number: saved_run(
        saved_test(pages={side: None}, figures={"tpot_ms": value}), key=f"{side}{number}"
    )
    with pytest.raises(ArtifactError, match="did not do the same work: other pages"):
        machine.loop().run()
    assert machine.order == "AB"


def test_an_interrupted_job_keeps_its_whole_pairs():
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.54, 0.001, 24, 2))
    measure = machine.measure

    def interrupted(side, number, patience):
        if number == 6:
            raise KeyboardInterrupt
        return measure(side, number, patience)

    loop = machine.loop()
    loop.measure = interrupted
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    found = loop.result("interrupted")
    assert (found.job.pairs, found.job.order, found.exit_code) == (2, "ABBAB", 3)
    loop.before.append(loop.before[0])  # it may also come between the sides of a pair
    assert loop.result("interrupted").job.pairs == 2


def test_disturbed_processes_are_left_out_and_never_pass_as_the_same():
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.54, 0.001, 24, 2))

    def run(side, value, number):
        doubts = ["1 other process used the GPU"] if number in disturbed else []
        return saved_run(saved_test(figures={"tpot_ms": value}, doubts=doubts), key=f"{side}{number}")

    machine.run = run
    disturbed = {3}
    loop = machine.loop()
    found = loop.result(loop.run())
    row = row_of(found)
    assert row.verdict is Verdict.SAME
    assert row.note.startswith("1 pair left out: 1 other process used the GPU")
    assert row.how == f"{found.job.pairs - 2} pairs"  # a pair fewer, so its look came one pair later

    machine = Machine([0.9] * 7 + [0.54] * 17, [0.54] * 24)
    machine.run = run
    disturbed = {1, 4, 6, 7, 9, 12, 14}  # the first seven of A
    loop = machine.loop()
    assert row_of(loop.result(loop.run())).before == 0.54, "what is shown is of the pairs that count"

    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.54, 0.001, 24, 2))
    machine.run = run
    disturbed = set(range(49))
    loop = machine.loop()
    found = loop.result(loop.run())
    assert (row_of(found).verdict, found.exit_code) == (Verdict.NOT_MEASURED, 3)
    assert found.job.pairs == 24  # the disturbance might have ended

    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.54, 0.001, 24, 2))
    machine.run = run
    loop = machine.loop(force=True)
    assert row_of(loop.result(loop.run())).verdict is Verdict.SAME


def test_a_contended_host_is_counted_and_its_noise_left_to_the_control():
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.56, 0.001, 24, 2))

    def run(side, value, number):
        doubts = ["the host was contended in 20 % of the rounds"] if number in (1, 4, 5) else []
        return saved_run(saved_test(figures={"tpot_ms": value}, doubts=doubts), key=f"{side}{number}")

    machine.run = run
    loop = machine.loop()
    found = loop.result(loop.run())
    assert (row_of(found).verdict, row_of(found).note, found.job.contended) == (Verdict.SLOWER, "", 3)
    assert "; the host was contended in 3 pairs" in render(found)


def test_what_is_missing_on_a_side_is_not_waited_for():
    machine = Machine([1.0] * 24, [1.0] * 24)
    loop = machine.loop(rules=("ttft_ms:1%",))
    stopped = loop.run()
    found = loop.result(stopped)
    assert (found.job.pairs, stopped) == (6, "no gated metric can be measured")
    assert (row_of(found, "ttft_ms").verdict, found.exit_code) == (Verdict.NOT_MEASURED, 3)


def test_the_error_is_shared_among_gated_metrics():
    values = noisy(0.54, 0.001, 24, 1), noisy(0.56, 0.001, 24, 2)
    levels = []
    for rules in (("tpot_ms:1%",), ("tpot_ms:1%", "ttft_ms:1%")):
        machine = Machine(*values)
        machine.run = lambda side, value, number: saved_run(
            saved_test(figures={"tpot_ms": value, "ttft_ms": 40.0}), key=f"{side}{number}"
        )
        loop = machine.loop(rules)
        levels.append(1 - row_of(loop.result(loop.run())).level)
    assert levels[1] == pytest.approx(levels[0] / 2)


def test_changed_answers_are_named_beside_the_speed():
    machine = Machine(noisy(0.54, 0.001, 24, 1), noisy(0.50, 0.001, 24, 2))

    def run(side, value, number):
        test = saved_test(figures={"tpot_ms": value})
        pages = {name: msgspec.structs.replace(page, text=side) for name, page in test.pages.items()}
        return saved_run(saved_test(figures={"tpot_ms": value}, pages=pages), key=f"{side}{number}")

    machine.run = run
    loop = machine.loop()
    assert "text of 2 of 2 pages differs" in row_of(loop.result(loop.run())).note



def test_the_catalogue_of_both_sides_is_known_to_the_rules():
    machine = Machine([1.0] * 24, [1.0] * 24)
    loop = machine.loop()
    seen = []
    loop.rules = lambda metrics: seen.extend(metrics) or ()
    loop.run()
    assert [metric.name for metric in seen] == [metric.name for metric in DECLARATIONS]
