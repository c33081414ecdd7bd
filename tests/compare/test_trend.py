"""Change points and the SVG."""

import xml.etree.ElementTree as ET

import pytest
from saved_runs import noisy, saved_run, saved_test

from pytest_llmprof.compare.trend import change_points, series, svg
from pytest_llmprof.records.environment import Git


def test_a_step_is_found_where_it_is():
    values = noisy(1.0, 0.005, 20, 1) + noisy(1.03, 0.005, 15, 2)
    assert change_points(values) == [20]


def test_two_steps_and_back():
    values = noisy(1.0, 0.005, 15, 1) + noisy(1.05, 0.005, 15, 2) + noisy(1.0, 0.005, 15, 3)
    assert change_points(values) == [15, 30]


def test_slow_creep_is_seen():
    values = [value * (1 + 0.004 * place) for place, value in enumerate(noisy(1.0, 0.005, 40, 1))]
    assert change_points(values)


def test_noise_is_seldom_a_change():
    found = [change_points(noisy(1.0, 0.02, 40, seed)) for seed in range(100)]
    assert sum(map(bool, found)) <= 5


def test_an_outlier_is_no_change():
    values = noisy(1.0, 0.005, 30, 4)
    values[12] = 2.0
    assert change_points(values) == []


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 5, [1.0] * 40, [0.0] * 10, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_short_or_constant_series_have_none(values):
    assert change_points(values) == []


def test_constant_levels_are_told_apart():
    assert change_points([3.0] * 6 + [4.0] * 6) == [6]
    assert change_points([3.0] * 6 + [3.001] * 6) == []


def history():
    values = noisy(0.54, 0.003, 12, 1) + noisy(0.56, 0.003, 12, 2)
    return [
        saved_run(
            saved_test(figures={"tpot_ms": value}),
            key=str(place),
            started=f"2026-11-{place + 1:02d}T10:00:00+00:00",
            git=Git(f"{place:040x}", False),
        )
        for place, value in enumerate(values)
    ]


def test_series_of_a_history():
    runs = history()
    runs[3].tests[0].doubts = ["the GPU was throttled"]
    runs[5].tests[0].problem = "failed"
    (found,) = series(runs, ["tpot_ms"])
    assert len(found.values) == 22
    (change,) = found.changes
    assert (change.index, change.started, change.commit) == (10, "2026-11-13T10:00:00+00:00", f"{12:040x}")
    assert change.after > change.before


def test_svg_is_xml_and_escapes_names():
    (found,) = series(history(), ["tpot_ms"])
    found.test = "test_x.py::test_a[<script>&]"
    root = ET.fromstring(svg(found))
    assert root.tag.endswith("svg")
    circles = [part for part in root.iter() if part.tag.endswith("circle")]
    assert len(circles) == 24
    assert "test_a[<script>&]" in "".join(root.itertext())
    assert "+3." in "".join(root.itertext())
