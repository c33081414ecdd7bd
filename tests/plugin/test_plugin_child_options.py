"""Which of a run's options the child of a tool gets."""

from __future__ import annotations

import pytest

from pytest_llmprof.plugin.tool_items import child_options

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--colour", "-C")
    parser.addoption("--level", nargs="?", const=1, type=int)
    parser.addoption("--sizes", nargs="+")
    parser.addoption("--flag", action="store_true")
"""
PLUGIN = """
def pytest_addoption(parser):
    parser.addoption("--their-mode", "-M")
    parser.addoption("--their-report")
"""
PASSED_ON = [
    *("-o", "xfail_strict=true", "-W", "error", "--import-mode", "importlib", "--confcutdir", ".", "--assert", "plain"),
    *("-s", "-q", "-v", "--tb", "short", "--strict-markers", "--log-level", "INFO", "-p", "no:doctest"),
    *("--colour", "deep red", "-C-1", "--level", "--level", "2", "--sizes", "a", "b", "--flag"),
]
KEPT = [
    *("-n0", "--dist=no", "-x", "--maxfail", "3", "--lf", "--sw", "-k", "a or b", "-mslow", "--deselect=test_it.py::x"),
    *("--junitxml", "out.xml", "--basetemp=base", "--rootdir=.", "--color=no", "--durations=3", "--benchmark-disable"),
    *("--llmprof-stage=nsys", "--llmprof-override", "infer=fast", "--their-mode=a", "-M", "b", "--their-report", "c"),
    "test_it.py",
]


@pytest.fixture
def passed_on(bench, monkeypatch):
    """The child's options of a run with some, in a directory with a conftest, besides a plugin given by name."""
    (bench.path / "conftest.py").write_text(CONFTEST)
    (bench.path / "their_plugin.py").write_text(PLUGIN)
    bench.test()
    monkeypatch.syspath_prepend(bench.path)

    def of(*words: str) -> list[str]:
        config = bench.pytester.parseconfig("-p", "their_plugin", *words)
        found = child_options(config)
        place = found.index("their_plugin")
        assert found[place - 1] == "-p"
        return found[: place - 1] + found[place + 1 :]

    (bench.path / "pytest.ini").write_text("[pytest]\n")
    return of


def test_what_shapes_a_test_is_passed_on(passed_on):
    assert passed_on(*PASSED_ON) == PASSED_ON


def test_what_is_the_runs_own_is_not(passed_on):
    assert passed_on("--flag", *KEPT, "--flag") == ["--flag", "--flag"]


def test_short_options_in_one_word(passed_on):
    assert passed_on("-xsqkname") == ["-s", "-q"]
    assert passed_on("-Cred", "-C", "blue", "--colour=green") == ["-C", "red", "-C", "blue", "--colour", "green"]


def test_the_user_names_more(passed_on, bench):
    bench.ini(tiny=False, llmprof_child_options="--their-mode")
    words = passed_on("--their-mode=a", "-M", "b", "--their-report", "c", "-x")
    assert words[-4:] == ["--their-mode", "a", "-M", "b"]


def test_all_sources_in_the_order_that_pytest_has(passed_on, bench, monkeypatch):
    (bench.path / "pytest.ini").write_text("[pytest]\naddopts = --level 7 -n0\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--colour 'light blue' -x")
    (bench.path / "words.txt").write_text("--flag\n--maxfail=2\n")
    words = passed_on("@words.txt", "--colour=red")
    assert words == ["--level", "7", "--colour", "light blue", "--flag", "--colour", "red"]
